"""Whose spend an asker may see: whoever has a role, anybody's; any other key, its own.

| asker without a role | of users | of teams | of keys |
|---|---|---|---|
| a key of a user | that user, all keys | its team: this key alone; a team whose admin the user is: all | this key |
| a key of nobody | this key | its team: this key alone | this key |
| a key that is for certain routes | this key | its team: this key alone | this key |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tproxy.manage.answering import caller_id
from tproxy.manage.auth import Asker
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Forbidden, Unprocessable
from tproxy.store import reports
from tproxy.store.subjects import ADMIN, TEAM, VIEWER, Subject


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be read: of the sums of a `kind` those of `ids`, None for all; if named, what `caller` did."""

    kind: str
    ids: Sequence[str] | None = None
    caller: str | None = None


def of_user(desk: Desk, who: Asker, user_id: str | None, api_key: str | None = None) -> Seen:
    """Of a user; of everybody where none is named and the asker has a role.

    Raises:
        Forbidden: it is not for the asker.
    """
    caller = None if api_key is None else caller_id(desk, api_key)
    if is_let_see_all(who):
        return Seen(reports.CALLER, None, caller) if user_id is None else Seen(reports.USER, [user_id], caller)
    key = _key(who)
    own = None if key.routes else key.user
    if user_id is not None and user_id != own:
        raise Forbidden("This key may ask about its own user only.", param="user_id")
    return Seen(reports.CALLER, None, of_key(desk, who, api_key)) if own is None else Seen(reports.USER, [own], caller)


def of_teams(desk: Desk, who: Asker, team_ids: Sequence[str] | None, api_key: str | None = None) -> Seen:
    """Of teams; of all where none is named and the asker has a role.

    Raises:
        Forbidden: it is not for the asker.
        Unprocessable: none is named, and the key that asks has no team.
    """
    caller = None if api_key is None else caller_id(desk, api_key)
    if is_let_see_all(who):
        return Seen(reports.TEAM, team_ids, caller)
    key = _key(who)
    asked = team_ids if team_ids is not None else [key.team] if key.team else []
    if not asked:
        raise Unprocessable("a team is needed: the key that asks has none", param="team_id")
    if not key.routes and key.user and all(_is_admin(desk, team, key.user) for team in asked):
        return Seen(reports.TEAM, asked, caller)
    if any(team != key.team for team in asked):
        raise Forbidden("This key may ask about its own team only.", param="team_id")
    return Seen(reports.TEAM, asked, of_key(desk, who, api_key))


def of_key(desk: Desk, who: Asker, api_key: str | None) -> str:
    """The caller in the ledger; that of the asker where none is named.

    Raises:
        Forbidden: it is not for the asker.
        Unprocessable: none is named, and the asker is no key.
    """
    own = None if who.subject is None else f"key:{who.subject.id}"
    if api_key is None:
        if own is None:
            raise Unprocessable("api_key is needed: the master key has no spend of its own", param="api_key")
        return own
    caller = caller_id(desk, api_key)
    if is_let_see_all(who) or caller == own:
        return caller
    if who.presented is not None and caller == f"key:{who.presented}":  # the earlier text of the same key
        return caller
    raise Forbidden("This key may ask about itself only.", param="api_key")


def is_let_see_all(who: Asker) -> bool:
    """Has the asker a role that may read?"""
    return who.role in (ADMIN, VIEWER)


def _key(who: Asker) -> Subject:
    if who.subject is None:
        raise Forbidden("Nobody asks.")
    return who.subject


def _is_admin(desk: Desk, team: str, user: str) -> bool:
    found = desk.directory.find(TEAM, team)
    return found is not None and any(each.user == user and each.role == "admin" for each in found.members)
