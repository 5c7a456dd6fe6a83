"""`/live`: who may look, what is sent, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tests.flow.asgi import Asked
from tests.flow.known import Known, digest, key
from tproxy.flow.pulse import Pulse
from tproxy.manage.desk import Desk
from tproxy.manage.gate import Send
from tproxy.manage.health import DRAINING, LEDGER_FAILS
from tproxy.manage.live_page import SEND_SECONDS, live_page
from tproxy.manage.page import Page
from tproxy.observe.live import MAX_VIEWERS, Live, Totals
from tproxy.observe.live_row import Row
from tproxy.observe.running import Running
from tproxy.protocol.pricing import built_in
from tproxy.store.directory import Directory
from tproxy.store.subjects import VIEWER, Subject

MASTER = "sk-master-of-the-tests"
READER = "sk-one-who-may-read-0123"
PLAIN = "sk-one-who-may-not-0123"


@dataclass
class Room:
    """A page and what it shows."""

    page: Page
    live: Live
    known: Known
    unready: str | None = None

    async def ask(self, asked: Asked, query: bytes = b"") -> Asked:
        await self.page({**asked.scope, "query_string": query}, asked.receive, cast(Send, asked.send))
        return asked


@asynccontextmanager
async def room(master: str | None = MASTER) -> AsyncIterator[Room]:
    live, known = Live(Running(), Pulse(), lambda: 1), Known([key(READER, role=VIEWER), key(PLAIN)])
    desk = Desk(
        directory=cast(Directory, known),
        database=Path("nowhere"),
        clock=lambda: 0,
        zone=lambda: ZoneInfo("UTC"),
        master=lambda: None if master is None else digest(master),
        prices=built_in,
        models=list,
        unready=lambda: made.unready,
        running=lambda: 0,
        mode=lambda: "expected",
    )
    made = Room(live_page(desk, live), live, known)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run)
        yield made
        nursery.cancel_scope.cancel()


def asking(who: str | None = MASTER, method: str = "GET") -> Asked:
    headers = [] if who is None else [(b"authorization", b"Bearer " + who.encode())]
    return Asked(method=method, path=b"/live", headers=headers, body=[b""])


def events(asked: Asked) -> list[dict[str, str]]:
    """The events that came, each with its fields."""
    whole = asked.answer.decode().split("\n\n")[:-1]
    return [dict(line.split(": ", 1) for line in each.split("\n")) for each in whole]


@pytest.mark.parametrize(
    ("who", "method", "status"),
    [
        pytest.param(None, "GET", 401, id="nobody"),
        pytest.param("sk-nobody-has-seen-this", "GET", 401, id="a key that is not known"),
        pytest.param(PLAIN, "GET", 403, id="a key without a role"),
        pytest.param(None, "HEAD", 401, id="nobody, for the head"),
        pytest.param(MASTER, "POST", 405, id="another method"),
        pytest.param(MASTER, "HEAD", 200, id="the head alone"),
    ],
)
async def test_who_may_not_look(who: str | None, method: str, status: int, autojump_clock: object) -> None:
    async with room() as r:
        asked = await r.ask(asking(who, method))
        assert (asked.status, asked.whole) == (status, True)
        assert b"snapshot" not in asked.answer


async def test_without_a_master_key_nobody_may(autojump_clock: object) -> None:
    async with room(master=None) as r:
        assert (await r.ask(asking())).status == 403


@pytest.mark.parametrize("who", [MASTER, READER])
async def test_what_is_sent(who: str, autojump_clock: object) -> None:
    async with room() as r, trio.open_nursery() as nursery:
        asked = asking(who)
        nursery.start_soon(r.ask, asked)
        await trio.sleep(3.5)
        asked.leave()
    assert asked.status == 200
    headers = dict(asked.sent[0]["headers"])
    assert (headers[b"content-type"], headers[b"cache-control"]) == (b"text/event-stream", b"no-store")
    came = events(asked)
    assert [(each["id"], each["event"]) for each in came] == [(str(n), "snapshot") for n in (1, 2, 3, 4)]
    for each in came:
        snapshot = json.loads(each["data"])
        assert snapshot.keys() == {"at_us", "totals", "exchanges"}
        assert snapshot["totals"]["viewers"] == 1


@pytest.mark.parametrize(
    ("queries", "counts"),
    [
        pytest.param([b"interval=0.5"], [21], id="twice a second"),
        pytest.param([b"interval=10"], [2], id="seldom"),
        pytest.param([b""], [11], id="once a second, where nothing is said"),
        pytest.param([b"interval=5", b"interval=1"], [3, 11], id="each as it asks for"),
    ],
)
async def test_how_often(queries: Sequence[bytes], counts: Sequence[int], autojump_clock: object) -> None:
    async with room() as r, trio.open_nursery() as nursery:
        all_asked = [asking() for _ in queries]
        for asked, query in zip(all_asked, queries, strict=True):
            nursery.start_soon(r.ask, asked, query)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(10.2)
        for asked in all_asked:
            asked.leave()
    assert [len(events(asked)) for asked in all_asked] == list(counts)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        pytest.param(b"interval=0.4", "interval", id="too often"),
        pytest.param(b"interval=11", "interval", id="too seldom"),
        pytest.param(b"interval=nan", "interval", id="no number"),
        pytest.param(b"interval=inf", "interval", id="for ever"),
        pytest.param(b"interval=", "interval", id="nothing"),
        pytest.param(b"interval=1&interval=x", "interval", id="the second one"),
        pytest.param(b"intervall=1", "query", id="another parameter"),
    ],
)
async def test_a_query_that_makes_no_sense(query: bytes, param: str, autojump_clock: object) -> None:
    async with room() as r:
        asked = await r.ask(asking(), query)
        assert asked.status == 400
        assert json.loads(asked.answer)["error"]["param"] == param


async def test_there_is_room_for_so_many(autojump_clock: object) -> None:
    async with room() as r:
        with ExitStack() as stack:
            for _ in range(MAX_VIEWERS):
                stack.enter_context(r.live.watching(1))
            asked = await r.ask(asking())
            error = json.loads(asked.answer)["error"]
            assert (asked.status, error["type"], error["code"]) == (429, "rate_limit_error", "429")
            assert str(MAX_VIEWERS) in error["message"]
        async with trio.open_nursery() as nursery:
            again = asking()
            nursery.start_soon(r.ask, again)
            await trio.sleep(1)
            again.leave()
        assert again.status == 200


@pytest.mark.parametrize(
    ("unready", "ends"),
    [pytest.param(DRAINING, True, id="it drains"), pytest.param(LEDGER_FAILS, False, id="it is in other trouble")],
)
async def test_it_does_not_hold_up_a_drain(unready: str, ends: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with room() as r, trio.open_nursery() as nursery:
        asked = asking()
        nursery.start_soon(r.ask, asked, b"interval=10")
        await trio.sleep(2)
        r.unready = unready
        await trio.sleep(1)
        assert asked.whole is ends
        asked.leave()
    if ends:
        assert events(asked)[-1] == {"event": "end", "data": '{"reason":"draining"}'}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(key(READER, role=VIEWER, blocked=True), id="it is blocked"),
        pytest.param(key(READER), id="it may read no more"),
    ],
)
async def test_a_key_that_opens_it_no_more_sees_no_more(changed: Subject, autojump_clock: object) -> None:
    async with room() as r:
        asked = asking(READER)
        with trio.fail_after(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(r.ask, asked, b"interval=10")
                await trio.sleep(3)
                r.known.put(changed)
        assert asked.whole
    assert events(asked)[-1] == {"event": "end", "data": '{"reason":"not_allowed"}'}


async def test_a_client_that_leaves_is_let_go_at_once(autojump_clock: object) -> None:
    async with room() as r, trio.open_nursery() as nursery:
        asked = asking()
        nursery.start_soon(r.ask, asked, b"interval=10")
        await trio.sleep(2)
        with trio.fail_after(0.01):
            asked.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert not r.live._viewers
        assert not asked.whole


def breaks(asked: Asked) -> Callable[[dict[str, Any]], Any]:
    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if len(asked.sent) == 3:
            raise ConnectionResetError
        asked.sent.append(message)

    return send


def stalls(asked: Asked) -> Callable[[dict[str, Any]], Any]:
    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if len(asked.sent) == 3:
            await trio.sleep_forever()
        asked.sent.append(message)

    return send


def takes_nothing(asked: Asked) -> Callable[[dict[str, Any]], Any]:
    async def send(message: dict[str, Any]) -> None:
        await trio.sleep_forever()

    return send


@pytest.mark.parametrize(
    ("sending", "seconds"),
    [
        pytest.param(breaks, 2, id="it breaks"),
        pytest.param(stalls, SEND_SECONDS + 2, id="it reads no more"),
        pytest.param(takes_nothing, SEND_SECONDS + 1, id="it never read"),
    ],
)
async def test_who_takes_nothing_is_dropped_and_delays_nobody(
    sending: Callable[[Asked], Any], seconds: float, autojump_clock: object
) -> None:
    async with room() as r, trio.open_nursery() as nursery:
        good, bad = asking(), asking()
        nursery.start_soon(r.ask, good)
        with capture_logs() as logged, trio.fail_after(seconds):
            await r.page({**bad.scope, "query_string": b""}, bad.receive, sending(bad))
        await trio.sleep(0.5)  # to between two ticks
        came = len(events(good))
        await trio.sleep(5)
        assert len(events(good)) - came == 5
        assert len(r.live._viewers) == 1
        assert not [line for line in logged if line["log_level"] not in ("debug", "info")]
        good.leave()


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "live.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert {*Row.__struct_fields__, *Totals.__struct_fields__} <= named
