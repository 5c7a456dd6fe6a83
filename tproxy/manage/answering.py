"""Answers made of what the ledger says.

They are read, put into shape and written as JSON in a thread: a page of a thousand rows would otherwise hold up all
streams that run meanwhile.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from fastapi import Response

from tproxy.manage.desk import Desk
from tproxy.money import to_dollars
from tproxy.store import reports, search, subject_rows
from tproxy.store.base import Standing
from tproxy.store.search import Wanted
from tproxy.store.subjects import CUSTOMER, KEY

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_encode = msgspec.json.Encoder().encode


def page(content: object) -> Response:
    """An answer of JSON."""
    return Response(_encode(content), media_type="application/json")


async def told(desk: Desk, read: Callable[[sqlite3.Connection], Any]) -> Response:
    """What `read` finds, as JSON. What it raises is raised here."""
    return Response(await desk.look(lambda connection: _encode(read(connection))), media_type="application/json")


def caller_id(desk: Desk, api_key: str) -> str:
    """The caller in the ledger of a key that is given as it is or by its hash, or of another caller such as
    `anonymous`. A key that is not known has an id too; there is nothing in the ledger of it."""
    digest = api_key if _HASH.fullmatch(api_key) else None
    if api_key.startswith("sk-"):
        digest = hashlib.sha256(api_key.encode()).hexdigest()
    if digest is None:
        return api_key
    master = desk.master()
    return "master" if master is not None and hmac.compare_digest(digest, master) else f"key:{digest}"


def alias_of(desk: Desk, kind: str, id: str, connection: sqlite3.Connection | None = None) -> str | None:
    """The name for people of a subject, if it has one; of a caller by its id in the ledger.

    Args:
        connection: where those are looked up that are not in memory: most customers, and keys that are there no more,
            which have the name that they had in the last of their exchanges.
    """
    is_caller = kind == reports.CALLER
    subject = desk.directory.find(KEY, id.removeprefix("key:")) if is_caller else desk.directory.find(kind, id)
    if subject is not None or connection is None:
        return None if subject is None else subject.alias
    if is_caller:
        last = search.rows(connection, Wanted(caller=id), limit=1)
        return last[0]["caller_alias"] if last else None
    subject = subject_rows.get(connection, kind, id) if kind == CUSTOMER else None
    return None if subject is None else subject.alias


def limit_of(standings: Sequence[Standing]) -> float | None:
    """The limit in dollars of what people call *the* budget: the first of several."""
    if not standings or standings[0].limit_nano is None:
        return None
    return to_dollars(standings[0].limit_nano)
