"""The routes of keys: made, changed, shown, listed, blocked, deleted. Regenerating them is in `rotate.py`.

A key is shown once, where it is made. It is named by itself or by its hash; an answer names it by its hash alone.
"""

from __future__ import annotations

import hmac
import re
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal

from fastapi import APIRouter, Response

from tproxy.manage import records
from tproxy.manage.answering import told
from tproxy.manage.asked import KeyAsked, KeyNamed, KeyNew, KeysNamed, KeyUpdate
from tproxy.manage.auth import Asker, for_any_key, reads
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Forbidden, Invalid, NotFound, Unprocessable
from tproxy.manage.fields import PAGE_MAX, InQuery, PageNumber, PageSize
from tproxy.manage.permit import Who
from tproxy.protocol.keys import CHANCE_BYTES, chosen_fault, compose, hash_key, last4
from tproxy.store import subject_rows
from tproxy.store.directory import InFile, NotThere
from tproxy.store.subjects import ADMIN, KEY, VIEWER, Subject

_HASH: Final = re.compile(r"[0-9a-f]{64}")


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["keys"])

    @routes.post("/key/generate")
    async def generate(asked: KeyNew, who: Who) -> dict[str, Any]:
        """Make a key. The answer holds it in `key`, this once."""
        return await make(desk, who, asked)

    @routes.post("/key/service-account/generate")
    async def generate_for_service(asked: KeyNew, who: Who) -> dict[str, Any]:
        """Make a key that belongs to a team and to no user."""
        if asked.team_id is None:
            raise Unprocessable("team_id is needed for a service account", param="team_id")
        if asked.user_id is not None:
            raise Unprocessable("user_id must not be given: a service account has no user", param="user_id")
        return await make(desk, who, asked)

    @routes.post("/key/update")
    async def update(asked: KeyUpdate, who: Who) -> dict[str, Any]:
        """Change a key, named by `key`, or by `key_alias` alone."""
        id = await named(desk, asked.key, asked.key_alias)
        return await answer(desk, await records.amend(desk, who, KEY, id, asked))

    @routes.post("/key/delete")
    async def delete(asked: KeysNamed) -> dict[str, Any]:
        """Delete keys, all of those that are named or none. What they spent stays in the ledger."""
        if not asked.keys and not asked.key_aliases:
            raise Unprocessable("keys or key_aliases is needed", param="keys")
        found = await _all_named(desk, asked.keys or (), asked.key_aliases or ())
        await desk.directory.apply(lambda _: (), gone=[(KEY, id) for id in found])
        return {"deleted_keys": found}

    @routes.get("/key/info")
    @for_any_key
    async def info(who: Who, key: InQuery = None) -> dict[str, Any]:
        """A key, by itself or by its hash; without `key`, the one that asks. A key without a role sees itself only."""
        if not key and who.subject is None:
            raise Unprocessable("key is needed: the master key has no row", param="key")
        id = digest(key) if key else who.subject.id if who.subject else ""
        if who.role not in (ADMIN, VIEWER) and (who.subject is None or id not in (who.subject.id, who.presented)):
            raise Forbidden("This key may ask about itself only.")
        page = await records.show_one(desk, known(desk, id))
        return {"key": page.pop("token"), "info": page}

    @routes.post("/v2/key/info")
    @reads
    async def info_of_many(asked: KeysNamed) -> dict[str, Any]:
        """Several keys."""
        ids = [digest(key) for key in asked.keys or ()]
        pages = await records.show(desk, [known(desk, id) for id in ids])
        return {"key": [page.pop("token") for page in pages], "info": pages}

    @routes.get("/key/list")
    async def list_keys(
        page: PageNumber = 1,
        size: PageSize = 10,
        user_id: InQuery = None,
        team_id: InQuery = None,
        key_hash: InQuery = None,
        key_alias: InQuery = None,
        return_full_object: bool = False,
        sort_by: Literal["created_at"] = "created_at",
        sort_order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """The keys that fit all that is given; those of the key file first. `key_hash` may be the beginning of one."""
        filters = {"user": user_id or None, "team": team_id or None, "alias": key_alias or None}
        wanted = _Wanted(desk, filters, (key_hash or "").lower(), newest_first=sort_order == "desc")

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            keys, total = wanted.page(connection, (page - 1) * size, size)
            entries = records.rows(connection, desk, keys) if return_full_object else [key.id for key in keys]
            return {"keys": entries, **_counted(total, page, size)}

        return await told(desk, read)

    @routes.get("/key/aliases")
    async def aliases(page: PageNumber = 1, size: PageSize = PAGE_MAX) -> Response:
        """The aliases of a page of the keys."""
        wanted = _Wanted(desk, {}, "", newest_first=True)

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            keys, total = wanted.page(connection, (page - 1) * size, size)
            return {"aliases": [key.alias for key in keys if key.alias], **_counted(total, page, size)}

        return await told(desk, read)

    @routes.post("/key/block")
    async def block(asked: KeyNamed, who: Who) -> dict[str, Any]:
        """Let a key open nothing. What runs goes on."""
        return await answer(desk, await records.change(desk, who, KEY, digest(asked.key), records.blocking(True)))

    @routes.post("/key/unblock")
    async def unblock(asked: KeyNamed, who: Who) -> dict[str, Any]:
        """Let a blocked key open things again."""
        return await answer(desk, await records.change(desk, who, KEY, digest(asked.key), records.blocking(False)))

    return routes


class _Wanted:
    """Which keys a list is of."""

    def __init__(self, desk: Desk, filters: dict[str, str | None], beginning: str, *, newest_first: bool) -> None:
        self._desk = desk
        self._filters = filters
        self._beginning = beginning
        self._newest_first = newest_first

    def page(self, connection: sqlite3.Connection, offset: int, size: int) -> tuple[Sequence[Subject], int]:
        """Some of them from the `offset`th on, and how many there are."""
        in_file = [key for key in self._desk.directory.file_keys.values() if self._fits(key)]
        shown = in_file[offset : offset + size]
        offset, size = max(0, offset - len(in_file)), size - len(shown)
        if not self._beginning or _HASH.fullmatch(self._beginning):
            exact = {**self._filters, "id": self._beginning or None}
            found = subject_rows.find(
                connection, KEY, **exact, offset=offset, limit=size, newest_first=self._newest_first
            )
            return [*shown, *found], len(in_file) + subject_rows.count(connection, KEY, **exact)
        ids = [id for id in subject_rows.ids(connection, KEY, **self._filters) if id.startswith(self._beginning)]
        if self._newest_first:
            ids.reverse()
        keys = [subject_rows.get(connection, KEY, id) for id in ids[offset : offset + size]]
        return [*shown, *(key for key in keys if key is not None)], len(in_file) + len(ids)

    def _fits(self, key: Subject) -> bool:
        named = all(value is None or getattr(key, name) == value for name, value in self._filters.items())
        return named and key.id.startswith(self._beginning)


def _counted(total: int, page: int, size: int) -> dict[str, int]:
    return {"total_count": total, "current_page": page, "total_pages": -(-total // size)}


def digest(key: str) -> str:
    """The hash of a key that is named by itself or by its hash."""
    return key.lower() if _HASH.fullmatch(key.lower()) else hash_key(key)


def known(desk: Desk, id: str) -> Subject:
    """The key with this hash.

    Raises:
        NotThere: there is none.
    """
    key = desk.directory.key(id)
    if key is None:
        raise NotThere(KEY, id)
    return key


async def named(desk: Desk, key: str | None, alias: str | None) -> str:
    """The hash of the key that is named by itself, its hash or its alias.

    Raises:
        Unprocessable: by none of them.
        NotFound, InFile: no key has this alias, or one of the key file has it.
    """
    if key is not None:
        return digest(key)
    if alias is None:
        raise Unprocessable("key or key_alias is needed", param="key")
    [id] = await _all_named(desk, (), [alias])
    return id


async def _all_named(desk: Desk, keys: Sequence[str], aliases: Sequence[str]) -> list[str]:
    """The hashes of keys that all have rows.

    Raises:
        NotFound: some are not known.
        InFile: one stands in the key file.
    """
    in_file = {key.alias: key.id for key in desk.directory.file_keys.values()}

    def read(connection: sqlite3.Connection) -> list[str | None]:
        by_alias = [subject_rows.by_alias(connection, alias) for alias in aliases]
        return [
            *(id if desk.directory.key(id) is not None else None for id in map(digest, keys)),
            *(in_file.get(alias) if key is None else key.id for alias, key in zip(aliases, by_alias, strict=True)),
        ]

    found = await desk.look(read)
    unknown = found.count(None)
    if unknown:
        raise NotFound(
            f"{unknown} of the {len(found)} keys named are not known; nothing has been changed.", param="keys"
        )
    ids = list(dict.fromkeys(id for id in found if id is not None))
    for id in ids:
        if id in desk.directory.file_keys:
            raise InFile("The key stands in the key file, and is changed there.", KEY, id)
    return ids


def text_and_subject(desk: Desk, who: Asker, chosen: str | None, param: str = "key") -> tuple[str, Subject]:
    """A new key, and the subject for it.

    Raises:
        Unprocessable: the chosen one has a form that is not accepted.
        Invalid: it is the master key.
    """
    text = chosen if chosen is not None else compose(secrets.token_bytes(CHANCE_BYTES))
    if (fault := chosen_fault(text)) is not None:
        raise Unprocessable(f"{param} {fault}", param=param)
    id = hash_key(text)
    if hmac.compare_digest(id, desk.master() or ""):
        raise Invalid(f"{param} must not be the master key", param=param)
    return text, records.new(desk, who, KEY, id, last4=last4(text) or None)


async def make(desk: Desk, who: Asker, asked: KeyAsked) -> dict[str, Any]:
    """Make a key, and show it in `key`."""
    text, subject = text_and_subject(desk, who, getattr(asked, "key", None))
    return await shown_once(desk, text, await records.create(desk, subject, asked))


async def shown_once(desk: Desk, text: str, subject: Subject) -> dict[str, Any]:
    """The answer that holds a key."""
    return {**await answer(desk, subject), "key": text}


async def answer(desk: Desk, subject: Subject) -> dict[str, Any]:
    """The answer that holds a key's row; `key` is its hash."""
    page = await records.show_one(desk, subject)
    return {"key": subject.id, "token_id": subject.id, **page}
