"""`/health`: what it says, when it is 503, who may see it, and that asking often costs the upstream nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pydantic import SecretStr

from tests.manage.desk import Office, office
from tests.wire.peer import Peer, answers, close, peer
from tproxy import __version__, setting_tables
from tproxy.alert.alerts import Alerts
from tproxy.export.runner import SinkStatus
from tproxy.manage.health import DRAINING, Manage
from tproxy.manage.health_page import Health, Probe, Upstream, health_pages
from tproxy.settings import Settings

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\n"


@dataclass
class Shown:
    """What a test has in hand."""

    office: Office
    alerts: Alerts
    upstream: Peer
    unready: list[str | None] = field(default_factory=lambda: [None])
    sinks: list[SinkStatus] = field(default_factory=list)

    async def page(self, status: int) -> dict[str, Any]:
        answer = await self.office.get("/health")
        assert answer.status == status, answer.json
        found: dict[str, Any] = answer.json
        return found


def settings(base_url: str, keys: int = 2) -> Settings:
    upstream = setting_tables.Upstream(
        base_url=base_url, api_keys=tuple(SecretStr(f"sk-real-{number}") for number in range(keys))
    )
    return Settings.model_construct(upstream=upstream)


@asynccontextmanager
async def shown(path: Path, script: Any = None) -> AsyncIterator[Shown]:
    async with office(path) as o, peer(script or answers(NOT_FOUND)) as upstream:
        made = Alerts(setting_tables.Alerts(), o.ledger)
        found = Shown(o, made, upstream)
        desk = replace(o.desk, unready=lambda: found.unready[0])
        health = Health(desk, o.ledger, made, lambda: settings(f"http://{upstream.origin}"), lambda: found.sinks)
        pages = health_pages(desk, health)
        o.client._transport.app = Manage(desk.unready, None, pages)  # type: ignore[attr-defined]
        yield found


async def test_all_is_well(tmp_path: Path) -> None:
    async with shown(tmp_path) as s:
        s.alerts.seen._note("api_keys[1]", 200, s.office.clock())
        page = await s.page(200)
        [request] = s.upstream.lines[0].requests
    assert (page["status"], page["version"], page["running"]) == ("healthy", __version__, 0)
    assert (page["healthy_count"], page["unhealthy_count"], page["unhealthy_endpoints"]) == (2, 0, [])
    assert [(each["credential"], each["last_status"], each["last_seen"]) for each in page["healthy_endpoints"]] == [
        ("api_keys[0]", None, None),
        ("api_keys[1]", 200, "2026-11-18T11:06:40Z"),
    ]
    assert page["upstream"]["status"] == 404
    assert page["ledger"]["writable"]
    assert page["ledger"]["file_bytes"] > 0
    assert "sk-real" not in str(page)
    assert request.method == b"HEAD"
    assert not {name.lower() for name, _ in request.headers} & {b"x-api-key", b"authorization"}


async def test_an_upstream_that_does_not_answer(tmp_path: Path) -> None:
    async with shown(tmp_path, close) as s:
        page = await s.page(503)
    assert (page["status"], page["healthy_count"], page["unhealthy_count"]) == ("unhealthy", 0, 2)
    assert not page["upstream"]["reachable"]


@pytest.mark.parametrize(
    ("statuses", "status", "code", "unwell"),
    [
        pytest.param({}, "healthy", 200, 0, id="none was used"),
        pytest.param({"api_keys[0]": 401}, "degraded", 200, 1, id="one is refused"),
        pytest.param({"api_keys[0]": 401, "api_keys[1]": 403}, "unhealthy", 503, 2, id="all are"),
        pytest.param({"api_keys[0]": 529, "api_keys[1]": 429}, "healthy", 200, 0, id="other faults are not theirs"),
    ],
)
async def test_credentials_as_last_seen(
    statuses: dict[str, int], status: str, code: int, unwell: int, tmp_path: Path
) -> None:
    async with shown(tmp_path) as s:
        for name, each in statuses.items():
            s.alerts.seen._note(name, each, s.office.clock())
        page = await s.page(code)
    assert (page["status"], page["unhealthy_count"]) == (status, unwell)


async def test_the_ledger_exports_and_draining(tmp_path: Path) -> None:
    async with shown(tmp_path) as s:
        s.sinks.append(SinkStatus("otlp", 7, s.office.clock(), 3, "no connection"))
        page = await s.page(200)
        assert page["status"] == "degraded"
        assert page["exports"] == [
            {
                "name": "otlp",
                "behind": 7,
                "last_taken": "2026-11-18T11:06:40Z",
                "failures": 3,
                "error": "no connection",
            }
        ]
        s.office.ledger._writable = False
        assert (await s.page(503))["status"] == "unhealthy"
        s.unready[0] = DRAINING
        assert (await s.page(503))["status"] == "draining"


async def test_who_may_see_it(tmp_path: Path) -> None:
    async with shown(tmp_path) as s:
        for who in (None, "sk-not-known"):
            assert (await s.office.get("/health", who=who)).status == 401
            assert (await s.office.get("/health/services", who=who, service="slack")).status == 401
        assert s.upstream.lines == []
        assert (await s.office.ask("HEAD", "/health")).response.content == b""
        assert (await s.office.post("/health")).status == 405
        assert (await s.office.ask("HEAD", "/health/services?service=slack")).status == 400


async def test_the_upstream_is_asked_once_in_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with peer(answers(NOT_FOUND)) as upstream:
        asks = Upstream(lambda: settings(f"http://{upstream.origin}"))
        found: list[Probe] = []

        async def ask() -> None:
            found.append(await asks.probe())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len({id(each) for each in found}) == len(upstream.lines) == 1
        await trio.sleep(11)
        await ask()
        assert len(upstream.lines) == 2
