"""The routes of teams and their members.

A member is named by the id of a user, or by an address, which then is the id. A member need not be a user with a row.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from tproxy.manage import asked as bodies
from tproxy.manage import records
from tproxy.manage.answering import told
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Invalid, NotFound, Unprocessable
from tproxy.manage.fields import PAGE_MAX, InQuery, PageNumber, PageSize
from tproxy.manage.permit import Who
from tproxy.manage.translation import check
from tproxy.store import subject_rows
from tproxy.store.subjects import KEY, TEAM, Member, Subject

_KEYS_SHOWN = 1000  # of one team
_KEYS_LISTED = 5000  # of all teams in a list together
_MEMBERS_MAX = 10_000


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["teams"])

    @routes.post("/team/new")
    async def new(asked: bodies.TeamNew, who: Who) -> dict[str, Any]:
        """Make a team."""
        id = asked.team_id or f"team-{secrets.token_hex(8)}"
        members = joined((), [member(each) for each in asked.members_with_roles or ()])
        subject = records.new(desk, who, TEAM, id, members=members)
        return await answer(desk, await records.create(desk, subject, asked))

    @routes.post("/team/update")
    async def update(asked: bodies.TeamUpdate, who: Who) -> dict[str, Any]:
        """Change a team."""
        page = await answer(desk, await records.amend(desk, who, TEAM, asked.team_id, asked))
        return {**page, "data": page}

    @routes.post("/team/delete")
    async def delete(asked: bodies.TeamsNamed) -> dict[str, Any]:
        """Delete teams with their keys, all of those that are named or none."""
        await desk.directory.apply(lambda _: (), gone=[(TEAM, id) for id in dict.fromkeys(asked.team_ids)])
        return {"deleted_teams": asked.team_ids}

    @routes.get("/team/info")
    async def info(team_id: InQuery = None) -> Response:
        """A team with its keys."""
        if not team_id:
            raise Unprocessable("team_id is needed", param="team_id")

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            subject = records.found(connection, TEAM, team_id)
            keys = _keys(connection, desk, team_id, _KEYS_SHOWN)
            page = _page(connection, desk, subject)
            return {"team_id": team_id, "team_info": page, "keys": keys, "team_memberships": _memberships(subject)}

        return await told(desk, read)

    @routes.get("/team/list")
    async def list_teams(user_id: InQuery = None) -> Response:
        """The newest teams, up to 1,000, or those of one member; each with its keys, up to 5,000 in all."""

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            teams = (
                subject_rows.teams_of(connection, user_id)
                if user_id
                else subject_rows.find(connection, TEAM, limit=PAGE_MAX)
            )
            listing = _Listing(connection, desk)
            return [
                {
                    **page,
                    **_people(subject),
                    "keys": listing.keys(subject.id),
                    "team_memberships": _memberships(subject),
                }
                for subject, page in zip(teams, records.rows(connection, desk, teams), strict=True)
            ]

        return await told(desk, read)

    @routes.get("/v2/team/list")
    async def list_pages(
        page: PageNumber = 1, page_size: PageSize = 10, team_id: InQuery = None, team_alias: InQuery = None
    ) -> Response:
        """The teams that fit all that is given."""

        def read(connection: sqlite3.Connection) -> object:
            id, alias = team_id or None, team_alias or None
            offset = (page - 1) * page_size
            subjects = subject_rows.find(connection, TEAM, id=id, alias=alias, offset=offset, limit=page_size)
            rows = records.rows(connection, desk, subjects)
            teams = [{**row, **_people(each)} for row, each in zip(rows, subjects, strict=True)]
            total = subject_rows.count(connection, TEAM, id=id, alias=alias)
            return records.paged("teams", teams, total, page, page_size)

        return await told(desk, read)

    @routes.get("/team/available")
    async def available() -> list[dict[str, Any]]:
        """The teams that anybody may join by themselves: none."""
        return []

    @routes.post("/team/block")
    async def block(asked: bodies.TeamNamed, who: Who) -> dict[str, Any]:
        """Let no key of a team open anything. What runs goes on."""
        return await answer(desk, await records.change(desk, who, TEAM, asked.team_id, records.blocking(True)))

    @routes.post("/team/unblock")
    async def unblock(asked: bodies.TeamNamed, who: Who) -> dict[str, Any]:
        """Let the keys of a blocked team open things again."""
        return await answer(desk, await records.change(desk, who, TEAM, asked.team_id, records.blocking(False)))

    @routes.post("/team/member_add")
    async def member_add(asked: bodies.MemberAdd, who: Who) -> dict[str, Any]:
        """Add members to a team, or give those that are there another role."""
        check(asked)
        added = [member(each) for each in (asked.member if isinstance(asked.member, list) else [asked.member])]

        def add(_: sqlite3.Connection, team: Subject) -> Subject:
            return msgspec.structs.replace(team, members=joined(team.members, added))

        page = await answer(desk, await records.change(desk, who, TEAM, asked.team_id, add))
        return {**page, "updated_users": [], "updated_team_memberships": []}

    @routes.post("/team/member_delete")
    async def member_delete(asked: bodies.MemberDelete, who: Who) -> dict[str, Any]:
        """Take a member out of a team."""
        if asked.user_id is None and asked.user_email is None:
            raise Unprocessable("user_id or user_email is needed", param="user_id")

        def remove(_: sqlite3.Connection, team: Subject) -> Subject:
            left = tuple(each for each in team.members if not _is(each, asked.user_id, asked.user_email))
            if len(left) == len(team.members):
                raise NotFound("The team has no such member.", param="user_id")
            return msgspec.structs.replace(team, members=left)

        return await answer(desk, await records.change(desk, who, TEAM, asked.team_id, remove))

    return routes


def member(asked: bodies.Member) -> Member:
    """A member as the store has it.

    Raises:
        Unprocessable: it is not said who.
        Invalid: it has a budget of its own in the team, which is not enforced.
    """
    check(asked)
    user = asked.user_id or asked.user_email
    if user is None:
        raise Unprocessable("user_id or user_email is needed", param="user_id")
    return Member(user=user, role=asked.role, email=asked.user_email)


def joined(members: Sequence[Member], added: Sequence[Member]) -> tuple[Member, ...]:
    """The members with those that are added; each user once, where it stood first.

    Raises:
        Invalid: there would be too many.
    """
    together = {**{each.user: each for each in members}, **{each.user: each for each in added}}
    if len(together) > _MEMBERS_MAX:
        raise Invalid(f"A team has at most {_MEMBERS_MAX} members.")
    return tuple(together.values())


async def answer(desk: Desk, subject: Subject) -> dict[str, Any]:
    """The answer that holds a team's row."""
    return await desk.look(lambda connection: _page(connection, desk, subject))


def _page(connection: sqlite3.Connection, desk: Desk, subject: Subject) -> dict[str, Any]:
    [page] = records.rows(connection, desk, [subject])
    return {**page, **_people(subject)}


def _people(subject: Subject) -> dict[str, Any]:
    return {
        "members_with_roles": [
            {"user_id": each.user, "user_email": each.email, "role": each.role} for each in subject.members
        ],
        "members": [each.user for each in subject.members],
        "admins": [each.user for each in subject.members if each.role == "admin"],
    }


def _memberships(subject: Subject) -> list[dict[str, Any]]:
    return [
        {"user_id": each.user, "team_id": subject.id, "budget_id": None, "litellm_budget_table": None}
        for each in subject.members
    ]


def _keys(connection: sqlite3.Connection, desk: Desk, team: str, limit: int) -> list[dict[str, Any]]:
    in_file = [key for key in desk.directory.file_keys.values() if key.team == team]
    keys = [*in_file, *subject_rows.find(connection, KEY, team=team, limit=limit)]
    return records.rows(connection, desk, keys[:limit])


class _Listing:
    """The keys of one team after another, up to so many in all."""

    def __init__(self, connection: sqlite3.Connection, desk: Desk) -> None:
        self._connection = connection
        self._desk = desk
        self._left = _KEYS_LISTED

    def keys(self, team: str) -> list[dict[str, Any]]:
        found = _keys(self._connection, self._desk, team, min(self._left, _KEYS_SHOWN))
        self._left -= len(found)
        return found


def _is(member: Member, user: str | None, email: str | None) -> bool:
    return (user is not None and member.user == user) or (email is not None and email in (member.user, member.email))
