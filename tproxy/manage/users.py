"""The routes of users: the people and programs that hold keys."""

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
from tproxy.manage.faults import Unprocessable
from tproxy.manage.fields import InQuery, PageNumber, PageSize
from tproxy.manage.keys import text_and_subject
from tproxy.manage.permit import Who
from tproxy.manage.teams import joined
from tproxy.manage.translation import check
from tproxy.store import subject_rows
from tproxy.store.subjects import KEY, TEAM, USER, Member, Subject

_KEYS_SHOWN = 1000

_ROLES = {
    "proxy_admin": {"description": "everything, as with the master key", "ui_label": "Admin (All Permissions)"},
    "proxy_admin_viewer": {"description": "sees everything, changes nothing", "ui_label": "Admin (View Only)"},
    "internal_user": {"description": "uses keys", "ui_label": "Internal User"},
    "internal_user_viewer": {"description": "uses keys", "ui_label": "Internal Viewer"},
}


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["users"])

    @routes.post("/user/new")
    async def new(asked: bodies.UserNew, who: Who) -> dict[str, Any]:
        """Make a user, put it into teams, and make a key for it, unless `auto_create_key` is false."""
        subject = records.new(desk, who, USER, asked.user_id or f"user-{secrets.token_hex(8)}")
        teams = [bodies.InTeam(team_id=each) if isinstance(each, str) else each for each in asked.teams or ()]
        for each in teams:
            check(each)
        with_key = asked.auto_create_key is not False
        text, key = text_and_subject(desk, who, None)
        key_asked = bodies.KeyNew(
            user_id=subject.id, key_alias=asked.key_alias, duration=asked.duration, tags=asked.tags, models=asked.models
        )

        def make(connection: sqlite3.Connection) -> list[Subject]:
            found = [records.made(connection, desk, subject, asked)]
            found += [_joining(connection, desk, each, found[0]) for each in teams]
            return [*found, records.made(connection, desk, key, key_asked)] if with_key else found

        made = await desk.directory.apply(make)
        page = {**await records.show_one(desk, made[0]), "teams": [each.team_id for each in teams]}
        if with_key:
            row = await records.show_one(desk, made[-1])
            page |= {"key": text, **{name: row[name] for name in ("token", "key_name", "key_alias", "expires", "tags")}}
        return page

    @routes.post("/user/update")
    async def update(asked: bodies.UserUpdate, who: Who) -> dict[str, Any]:
        """Change a user."""
        if asked.user_id is None:
            raise Unprocessable("user_id is needed", param="user_id")
        page = await records.show_one(desk, await records.amend(desk, who, USER, asked.user_id, asked))
        return {**page, "data": page}

    @routes.post("/user/delete")
    async def delete(asked: bodies.UsersNamed) -> dict[str, Any]:
        """Delete users with their keys, all of those that are named or none. They leave their teams."""
        await desk.directory.apply(lambda _: (), gone=[(USER, id) for id in dict.fromkeys(asked.user_ids)])
        return {"deleted_users": asked.user_ids}

    @routes.get("/user/info")
    async def info(who: Who, user_id: InQuery = None) -> Response:
        """A user with its keys and teams; without `user_id`, the one whose key asks."""
        id = user_id or (who.subject.user if who.subject is not None else None)
        if not id:
            raise Unprocessable("user_id is needed", param="user_id")

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            [page] = records.rows(connection, desk, [records.found(connection, USER, id)])
            teams = subject_rows.teams_of(connection, id)
            return {
                "user_id": id,
                "user_info": {**page, "teams": [each.id for each in teams]},
                "keys": _keys(connection, desk, id),
                "teams": records.rows(connection, desk, teams),
            }

        return await told(desk, read)

    @routes.get("/v2/user/info")
    async def row(user_id: InQuery = None) -> Response:
        """A user alone."""
        if not user_id:
            raise Unprocessable("user_id is needed", param="user_id")
        return await told(
            desk, lambda connection: records.rows(connection, desk, [records.found(connection, USER, user_id)])[0]
        )

    @routes.get("/user/list")
    async def list_users(page: PageNumber = 1, page_size: PageSize = 25, user_ids: InQuery = None) -> Response:
        """The users, or those whose id is given."""

        def read(connection: sqlite3.Connection) -> object:
            users, total = records.listed(connection, desk, USER, page, page_size, user_ids or None)
            teams: dict[str, list[str]] = {each["user_id"]: [] for each in users}
            for user, team in subject_rows.memberships(connection):
                if user in teams:
                    teams[user].append(team)
            for each in users:
                each["key_count"] = subject_rows.count(connection, KEY, user=each["user_id"])
                each["teams"] = teams[each["user_id"]]
            return records.paged("users", users, total, page, page_size)

        return await told(desk, read)

    @routes.get("/user/available_roles")
    async def available_roles() -> dict[str, Any]:
        """The roles that a user can have."""
        return _ROLES

    return routes


def _joining(connection: sqlite3.Connection, desk: Desk, asked: bodies.InTeam, user: Subject) -> Subject:
    team = records.there(connection, desk, TEAM, asked.team_id)
    added = Member(user=user.id, role=asked.user_role, email=user.kept.get("user_email"))
    return msgspec.structs.replace(team, members=joined(team.members, [added]))


def _keys(connection: sqlite3.Connection, desk: Desk, user: str) -> Sequence[dict[str, Any]]:
    in_file = [key for key in desk.directory.file_keys.values() if key.user == user]
    keys = [*in_file, *subject_rows.find(connection, KEY, user=user, limit=_KEYS_SHOWN)]
    return records.rows(connection, desk, keys)
