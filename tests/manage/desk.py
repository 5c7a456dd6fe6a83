"""A management side in a test: the real application over a real ledger's file, asked as a server would ask it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2

from tproxy.manage.app import build
from tproxy.manage.desk import Desk
from tproxy.manage.gate import Gate
from tproxy.manage.health import Manage
from tproxy.protocol.pricing import built_in
from tproxy.store.base import COUNTED, EXACT, FINISHED, Claim, Closing, Opening
from tproxy.store.directory import open_directory
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import KEY, Subject

MASTER = "sk-master-of-the-tests"
START_US = 1_795_000_000_000_000  # 2026-11-18 11:06:40 UTC


@dataclass
class Clock:
    """A wall clock that stands until it is set."""

    us: int = START_US

    def __call__(self) -> int:
        return self.us

    def pass_seconds(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)


@dataclass
class Office:
    """What a test has in hand."""

    desk: Desk
    ledger: SqliteLedger
    clock: Clock
    manage: Manage
    client: httpx2.AsyncClient
    master: list[str | None]
    _numbers: Any = field(default_factory=itertools.count)

    async def ask(self, method: str, path: str, body: Any = None, *, who: str | None = MASTER, **more: Any) -> Answer:
        """Ask with the master key, or with another, or (None) without any."""
        headers = {} if who is None else {"authorization": f"Bearer {who}"}
        content = {} if body is None else {"json": body}
        return Answer(await self.client.request(method, path, headers=headers, **content, **more))

    async def get(self, path: str, *, who: str | None = MASTER, **query: Any) -> Answer:
        return await self.ask("GET", path, who=who, params=query)

    async def post(self, path: str, body: Any = None, *, who: str | None = MASTER, **fields: Any) -> Answer:
        return await self.ask("POST", path, fields if body is None else body, who=who)

    async def make(self, **fields: Any) -> tuple[str, str]:
        """A new key and its hash."""
        page = (await self.post("/key/generate", fields)).ok
        return page["key"], page["token"]

    async def spend(self, cost_nano: int, *, key: str, claims: Sequence[Claim] | None = None, **who: Any) -> None:
        """Let one exchange of a key (its hash) have cost so much, and be in the books."""
        id = f"00000000-0000-7000-8000-{next(self._numbers):012d}"
        opening = Opening(
            id=id,
            accepted_us=self.clock(),
            method="POST",
            path="/v1/messages",
            upstream="test",
            caller=f"key:{key}",
            **who,
        )
        ticket = self.ledger.open(opening, claims if claims is not None else [Claim(KEY, key, COUNTED)])
        assert await ticket.admitted() is None
        self.ledger.close(Closing(id=id, ended=FINISHED, ended_us=self.clock(), cost_nano=cost_nano, certainty=EXACT))
        await self.ledger.write(lambda connection: None)  # what was queued before is written now


@dataclass
class Answer:
    """An answer, with what tests look for in it."""

    response: httpx2.Response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def json(self) -> Any:
        return self.response.json()

    @property
    def ok(self) -> Any:
        """The content of an answer that is none of a fault."""
        assert self.status == 200, (self.status, self.response.text)
        return self.json

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert error["code"] == str(self.status)
        assert set(error) == {"message", "type", "param", "code"}
        return error


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@asynccontextmanager
async def office(
    path: Path, *, file_keys: Sequence[Subject] = (), master: str | None = MASTER
) -> AsyncIterator[Office]:
    """Open the management side over a new ledger in the directory `path`."""
    clock, zone, masters = Clock(), ZoneInfo("UTC"), [digest(master) if master else None]
    database = path / "ledger.db"
    async with open_ledger(database, now_us=clock, zone=lambda: zone) as ledger:
        directory = await open_directory(database, ledger, zone=lambda: zone, clock=clock)
        await directory.set_file_keys({key.id: key for key in file_keys})
        book = built_in()
        desk = Desk(
            directory=directory,
            database=database,
            clock=clock,
            zone=lambda: zone,
            master=lambda: masters[0],
            prices=lambda: book,
            models=lambda: sorted(book.table.models),
            unready=lambda: None,
            running=lambda: 0,
            mode=lambda: "expected",
        )
        manage = Manage(desk.unready, Gate(build(desk), desk))
        transport = httpx2.ASGITransport(manage)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tproxy") as client:
            yield Office(desk, ledger, clock, manage, client, masters)
