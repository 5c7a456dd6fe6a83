"""The routes of captured bodies: which there are, one of them as the conversation that it was, and its end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
import structlog
import trio
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from tproxy.capture.record import shown
from tproxy.capture.shelf import Shelf
from tproxy.manage.answering import page
from tproxy.manage.desk import Desk
from tproxy.manage.faults import ApiFault, NotFound

log = structlog.get_logger("tproxy.manage")

LIMIT_MAX: Final = 1_000
THREADS: Final = 2
SECONDS: Final = 20.0

T = TypeVar("T")
Id = Annotated[str, Query(max_length=64)]
Text = Annotated[str | None, Query(max_length=256)]


class Unusable(ApiFault):
    """The file cannot be read or written."""

    status = 503
    type = "no_db_connection"


class Named(BaseModel):
    """One capture."""

    id: str = Field(max_length=64)


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["captures"])
    threads = trio.CapacityLimiter(THREADS)  # apart from those of the other routes: this file's disk may be another one

    async def ask(read: Callable[[Shelf], T]) -> T | None:
        shelf = desk.captures()
        if shelf is None:
            return None
        try:
            with trio.fail_after(SECONDS):
                return await trio.to_thread.run_sync(read, shelf, limiter=threads, abandon_on_cancel=True)
        except trio.TooSlowError:
            log.warning("the file of captures cannot be used", why=f"it took more than {SECONDS:g} s")
            raise Unusable("The file of captures cannot be used now. The log says why.") from None
        except (sqlite3.Error, OSError) as fault:
            log.warning("the file of captures cannot be used", why=str(fault))
            raise Unusable("The file of captures cannot be used now. The log says why.") from None

    @routes.get("/capture/list")
    async def listed(
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 100,
        before: Text = None,
        caller: Text = None,
        ended: Text = None,
    ) -> Response:
        """The captures, newest first, without their bodies.

        `caller` is an alias, or an id such as `key:…`; `ended` as in the ledger. The next page is asked for with
        `before`, which `next` holds; it is null on the last one.
        """
        rows = await ask(lambda shelf: shelf.rows(limit=limit + 1, before=before, caller=caller, ended=ended)) or []
        more = rows[limit:]
        rows = rows[:limit]
        return page({"captures": rows, "next": rows[-1]["id"] if more else None})

    @routes.get("/capture/info")
    async def info(id: Id) -> Response:
        """One capture: `request` as it was sent, and `answer` as the message that it was, both redacted.

        `answer_kind` is `message` where a stream was joined, `json` or `text`. Where `answer_whole` is false, the
        stream ended before its message did; `answer_error` is what it ended with, if it said so.
        """
        found = await ask(lambda shelf: _read(shelf, id))
        if found is None:
            raise NotFound("No bodies are kept of this exchange.", param="id")
        return Response(found, media_type="application/json")

    @routes.post("/capture/delete")
    async def delete(named: Named) -> dict[str, Any]:
        """Delete the bodies of one exchange. Its row in the ledger stays."""
        if not await ask(lambda shelf: shelf.remove(named.id)):
            raise NotFound("No bodies are kept of this exchange.", param="id")
        return {"deleted": named.id}

    return routes


def _read(shelf: Shelf, id: str) -> bytes | None:
    """In the thread: a body may be large."""
    row = shelf.find(id)
    if row is None:
        return None
    for name in ("request", "answer"):
        row[name] = shown(row[name], row[f"{name}_kind"])
    row["answer_error"] = shown(row["answer_error"], None)
    return msgspec.json.encode(row)
