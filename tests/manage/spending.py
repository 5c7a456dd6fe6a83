"""A ledger and a directory with the routes of spend, activity and models on top, asked without a socket."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
from fastapi import Depends, FastAPI
from msgspec.structs import replace

from tests.store.laws import T0, make_closing, make_opening
from tproxy.manage import activity, models, spend, spend_reports
from tproxy.manage.auth import ASKER, identify
from tproxy.manage.desk import Desk
from tproxy.manage.faults import ApiFault
from tproxy.manage.handlers import answer, install
from tproxy.manage.permit import permitted
from tproxy.protocol.pricing import built_in
from tproxy.store.base import Opening
from tproxy.store.directory import open_directory
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import KEY, Subject

MASTER = "sk-master-0000000000000000"
DAY_US = 86_400_000_000
NOW_US = T0 + 3_600_000_000
TODAY = "2025-11-24"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Office:
    """The management side of one proxy. `why` is why it is not ready, `running` how many exchanges run."""

    desk: Desk
    ledger: SqliteLedger
    client: httpx2.AsyncClient
    number: int = 0
    why: list[str] = field(default_factory=list)

    async def exchange(self, cost_nano: int | None = 1_000_000_000, *, days_ago: int = 0, **changes: Any) -> str:
        """An exchange that has ended; fields of its opening and its closing by name. Returns its id."""
        self.number += 1
        names = Opening.__struct_fields__
        opening = make_opening(
            self.number,
            **{"accepted_us": T0 + self.number * 1000 - days_ago * DAY_US}
            | {name: value for name, value in changes.items() if name in names},
        )
        closing = make_closing(
            self.number,
            cost_nano=cost_nano,
            ended_us=opening.accepted_us + 900_000,
            first_content_us=opening.accepted_us + 300_000,
            model_served=None,
        )
        closing = replace(closing, **{name: value for name, value in changes.items() if name not in names})
        await self.ledger.open(opening).durable()
        self.ledger.close(closing)
        await self.ledger.write(lambda _: None)
        return opening.id

    async def key(self, name: str, **changes: Any) -> str:
        """A key of the database, `sk-<name>`. Returns its hash."""
        subject = Subject(kind=KEY, id=digest(f"sk-{name}"), last4=name[-4:], **{"alias": name} | changes)
        await self.desk.directory.create(subject)
        return subject.id

    async def ask(self, path: str, *, key: str = MASTER, json: object = None, **params: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"}
        if json is not None:
            return await self.client.post(path, json=json, headers=headers)
        return await self.client.get(path, params=params, headers=headers)

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON of an answer that is good."""
        answer = await self.ask(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, path: str, **params: Any) -> tuple[int, str | None]:
        """Status and parameter of an answer that is an error."""
        answer = await self.ask(path, **params)
        return answer.status_code, answer.json()["error"]["param"]


def _app(desk: Desk) -> Any:
    app = FastAPI(dependencies=[Depends(permitted)])
    install(app)
    for part in (spend, spend_reports, activity, models):
        app.include_router(part.router(desk))

    async def gate(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                scope[ASKER] = identify(desk, scope["headers"])
            except ApiFault as fault:
                await answer(fault)(scope, receive, send)
                return
        await app(scope, receive, send)

    return gate


@asynccontextmanager
async def office(directory: Path, *, known: Sequence[str] = ("claude-sonnet-4-5",)) -> AsyncIterator[Office]:
    """A proxy's management side over a new ledger."""
    zone = ZoneInfo("UTC")
    path = directory / "t.db"
    async with open_ledger(path, now_us=lambda: NOW_US) as ledger:
        why: list[str] = []
        desk = Desk(
            directory=await open_directory(path, ledger, zone=lambda: zone, clock=lambda: NOW_US),
            database=path,
            clock=lambda: NOW_US,
            zone=lambda: zone,
            master=lambda: digest(MASTER),
            prices=built_in,
            models=lambda: known,
            unready=lambda: why[0] if why else None,
            running=lambda: 3,
            mode=lambda: "expected",
        )
        transport = httpx2.ASGITransport(app=_app(desk))
        async with httpx2.AsyncClient(transport=transport, base_url="http://tproxy") as client:
            yield Office(desk, ledger, client, why=why)
