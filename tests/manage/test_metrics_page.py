"""The page goes out whole, whatever a part of it does; and scrapes wait for each other, but not for ever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from tproxy.capture.capturing import Capturing
from tproxy.export.runner import SinkStatus
from tproxy.manage import metrics_page as page
from tproxy.manage.desk import Desk
from tproxy.manage.gate import ASGIApp
from tproxy.observe.metrics import Metrics
from tproxy.observe.series import Family, single
from tproxy.protocol.pricing import built_in
from tproxy.setting_tables import Capture
from tproxy.setting_tables import Metrics as Table


async def look(read: Any) -> list[Family]:
    return [single("looked", "gauge", "X.", 1)]


def application(*extra: page.Extra) -> ASGIApp:
    """A page for everybody, over a desk without a file."""
    settings = Table(public=True)
    book = built_in()
    desk = SimpleNamespace(
        look=look, clock=lambda: 0, zone=lambda: None, directory=SimpleNamespace(find=lambda kind, id: None)
    )

    async def now() -> list[Family]:
        return [single("now", "gauge", "X.", 2)]

    metrics = Metrics(settings, lambda: book)
    return page.metrics_page(cast(Desk, desk), lambda: settings, metrics, now, extra)


async def get(app: ASGIApp, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await app({"type": "http", "method": "GET", "headers": list(headers), "client": None}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def test_what_other_parts_tell_is_in_it() -> None:
    sinks = [SinkStatus("jsonl", 3, None, 2, "the disk is full"), SinkStatus("otlp", 0, 5, 0, None)]
    status, body = await get(application(lambda: page.exported(sinks)))
    assert status == 200
    for line in (
        b"looked 1.0",
        b"now 2.0",
        b"tproxy_budgets_read 1.0",
        b'tproxy_export_lag_exchanges{sink="jsonl"} 3.0',
        b'tproxy_export_failures_total{sink="jsonl"} 2.0',
        b'tproxy_export_lag_exchanges{sink="otlp"} 0.0',
    ):
        assert line in body.splitlines()
    assert b"disk" not in body


async def test_captures_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    capturing = Capturing(Capture(database=f"sqlite:{tmp_path}/captures.db"), lambda: 0)
    capturing.kept, capturing.dropped, capturing.failed, capturing.held = 5, 4, 3, 2
    _, body = await get(application(lambda: page.captured(capturing)))
    for line in (
        b'tproxy_captures_total{outcome="kept"} 5.0',
        b'tproxy_captures_total{outcome="dropped"} 4.0',
        b'tproxy_captures_total{outcome="failed"} 3.0',
        b"tproxy_captures_held_bytes 2.0",
    ):
        assert line in body.splitlines()


async def test_a_part_that_fails_is_left_out() -> None:
    def fails() -> Iterable[Family]:
        raise ZeroDivisionError

    with capture_logs() as said:
        status, body = await get(application(fails, lambda: [single("other", "gauge", "X.", 1)]))
    assert status == 200
    assert b"other 1.0" in body
    assert [line["event"] for line in said] == ["metrics: a part cannot tell its figures"]


async def test_a_scrape_waits_for_those_before_it(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(families: Iterable[Family], accept: str) -> tuple[str, bytes]:
        await trio.sleep(8)
        return "text/plain", b"written"

    monkeypatch.setattr(page, "_written", slowly)
    app = application()
    found: list[tuple[float, int, bytes]] = []

    async def one() -> None:
        status, body = await get(app)
        found.append((trio.current_time() - start, status, body))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
    assert [(round(seconds), status) for seconds, status, _ in found] == [(8, 200), (10, 503), (16, 200)]
    assert b"Try again" in found[1][2]
    assert await get(app) == (200, b"written")


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        (b"gzip", True),
        (b"br, gzip;q=0.5", True),
        (b"GZIP", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000", False),
        (b"identity", False),
        (b"", False),
    ],
)
async def test_compression_is_asked_for(accepted: bytes, takes: bool) -> None:
    status, body = await get(application(), (b"accept-encoding", accepted))
    assert status == 200
    assert body.startswith(b"\x1f\x8b") == takes
