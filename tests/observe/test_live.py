"""What is shown of running exchanges, who may look, and that to be looked at holds nobody up."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.flow.asgi import Asked, Stage, stage
from tests.wire.peer import Line, Script
from tproxy.errors import BadRequest
from tproxy.flow.course import Course
from tproxy.flow.identify import ANONYMOUS
from tproxy.flow.limits import Taken
from tproxy.flow.observer import Refused, Sight
from tproxy.flow.pulse import Pulse
from tproxy.flow.route import Passage
from tproxy.flow.settle import settle
from tproxy.flow.tap import Tap
from tproxy.observe import live as module
from tproxy.observe.live import MAX_ROWS, MAX_VIEWERS, SLICE, Full, Live
from tproxy.observe.live_row import LEAST_WORK, WINDOW_SECONDS, Rate
from tproxy.observe.running import Running
from tproxy.protocol.pricing import built_in
from tproxy.store.base import Closing, Opening
from tproxy.wire.pool import Bounds

START_US = 1_795_000_000_000_000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(kind: str, **fields: Any) -> bytes:
    """One event of a stream, as a chunk."""
    data = f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


BEGIN = event(
    "message_start",
    message={"id": "msg_1", "model": "claude-opus-5-5", "usage": {"input_tokens": 100, "output_tokens": 1}},
)
CONTENT = event("content_block_start", index=0, content_block={"type": "text", "text": ""}) + event(
    "content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello there, this is some text. " * 10}
)
LAST_WORD = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 90})
END = event("message_stop") + b"0\r\n\r\n"


def clock() -> int:
    return START_US + int(trio.current_time() * 1e6)


class Steps:
    """An upstream that says its next piece when the test says so."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self._turns = trio.Semaphore(0)

    async def script(self, line: Line) -> None:
        while await line.request() is not None:
            for piece in self._pieces:
                await self._turns.acquire()
                await line.send(piece)

    def next(self) -> None:
        self._turns.release()


class Eye:
    """One who looks."""

    def __init__(self, live: Live) -> None:
        self.live = live

    async def look(self) -> dict[str, Any]:
        """A snapshot that was begun after this was called."""
        newest = (await self.live.newer(0)).number
        snapshot = await self.live.newer(newest)
        found: dict[str, Any] = json.loads(b"".join(snapshot.pieces))
        return found

    async def row(self) -> dict[str, Any]:
        """The one exchange that runs."""
        [row] = (await self.look())["exchanges"]
        assert isinstance(row, dict)
        return row


@asynccontextmanager
async def looking(live: Live, seconds: float = 1.0) -> AsyncIterator[Eye]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run)
        with live.watching(seconds):
            yield Eye(live)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def watched_stage(*scripts: Script, **more: Any) -> AsyncIterator[tuple[Stage, Eye]]:
    """A stage whose exchanges are looked at."""
    running = Running()
    live = Live(running, Pulse(), clock)
    async with stage(*scripts, observers=[running, live], **more) as s, looking(live) as eye:
        yield s, eye


async def test_an_exchange_is_shown_in_each_of_its_phases(autojump_clock: trio.testing.MockClock) -> None:
    steps = Steps(HEAD, BEGIN, CONTENT, LAST_WORD, END)
    async with watched_stage(steps.script) as (s, eye), trio.open_nursery() as nursery:
        nursery.start_soon(s.ask, Asked())
        row = await eye.row()
        assert (row["phase"], row["status"], row["head_ms"]) == ("waiting_for_head", None, None)
        assert (row["model_asked"], row["model_served"], row["stream"]) == ("claude-opus-5-5", None, True)
        assert (row["method"], row["path"], row["caller"]) == ("POST", "/v1/messages", "anonymous")
        assert (row["input_tokens"], row["cost_nano"], row["certainty"]) == (None, None, "partial")

        steps.next()
        row = await eye.row()
        assert (row["phase"], row["status"], row["first_content_ms"]) == ("waiting_for_content", 200, None)
        head_ms = row["head_ms"]
        assert head_ms > 0

        steps.next()
        row = await eye.row()
        assert (row["phase"], row["model_served"], row["prompt_tokens"]) == (
            "waiting_for_content",
            "claude-opus-5-5",
            100,
        )

        steps.next()
        row = await eye.row()
        assert (row["phase"], row["certainty"], row["head_ms"]) == ("streaming", "estimated", head_ms)
        assert row["first_content_ms"] > head_ms
        assert row["output_tokens"] > 20
        so_far = row["cost_nano"]
        assert so_far > 0
        assert row["tokens_per_second"] > 0
        totals = (await eye.look())["totals"]
        assert (totals["running"], totals["shown"], totals["streaming"], totals["admitted"]) == (1, 1, 1, 1)

        steps.next()
        row = await eye.row()
        assert row["output_tokens"] == 90
        assert row["cost_nano"] != so_far
        last = row

        steps.next()
        await trio.testing.wait_all_tasks_blocked()
        shown = await eye.look()
        assert shown["exchanges"] == []
        assert (shown["totals"]["running"], shown["totals"]["ended"]) == (0, 1)
        same = set(last) & set(s.row) - {"certainty", "bytes_out", "tags"}
        assert {"input_tokens", "output_tokens", "cost_nano", "status", "model_served", "caller", "id"} <= same
        assert {name: last[name] for name in same} == {name: s.row[name] for name in same}


async def test_an_exchange_that_waits_for_a_connection_is_connecting(autojump_clock: trio.testing.MockClock) -> None:
    steps = Steps(HEAD)
    async with (
        watched_stage(steps.script, bounds=Bounds(max_connections=1, queue=100)) as (s, eye),
        trio.open_nursery() as nursery,
    ):
        for _ in range(2):
            nursery.start_soon(s.ask, Asked())
            await trio.testing.wait_all_tasks_blocked()
        shown = await eye.look()
        assert [row["phase"] for row in shown["exchanges"]] == ["waiting_for_head", "connecting"]
        assert (shown["totals"]["waiting_for_head"], shown["totals"]["connecting"]) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_an_answer_that_is_no_stream_waits_for_no_content(autojump_clock: trio.testing.MockClock) -> None:
    steps = Steps(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
    body = b'{"model":"claude-opus-5-5","max_tokens":10,"messages":[]}'
    headers = [(b"host", b"h"), (b"x-api-key", b"sk-any"), (b"content-length", b"%d" % len(body))]
    async with watched_stage(steps.script) as (s, eye), trio.open_nursery() as nursery:
        nursery.start_soon(s.ask, Asked(headers=headers, body=[body]))
        steps.next()
        row = await eye.row()
        assert (row["phase"], row["stream"], row["bytes_out"]) == ("streaming", False, 1)
        nursery.cancel_scope.cancel()


async def test_the_totals_are_those_of_the_rows(autojump_clock: trio.testing.MockClock) -> None:
    """All that came while somebody looked is in the rates, also of exchanges that no snapshot has shown."""
    steps = Steps(HEAD + BEGIN + CONTENT, LAST_WORD + END)
    async with watched_stage(steps.script) as (s, eye):
        since = await eye.look()
        for is_seen in (True, False):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(s.ask, Asked())
                steps.next()
                if is_seen:
                    assert (await eye.row())["phase"] == "streaming"
                steps.next()
        await s.ask(Asked(method="POST", path=b"/v1/../x"))  # refused
        now = await eye.look()
        seconds = (now["at_us"] - since["at_us"]) / 1e6 + 1.0  # the first look was a second before `since`
        assert seconds < WINDOW_SECONDS
        totals = now["totals"]
        tokens, cost = (sum(row[name] for row in s.ledger.rows.values()) for name in ("output_tokens", "cost_nano"))
        assert tokens == 180
        assert totals["tokens_per_second"] * seconds == pytest.approx(tokens, abs=0.1 * seconds)
        assert totals["cost_nano_per_second"] * seconds == pytest.approx(cost, abs=seconds)
        assert (totals["admitted"], totals["ended"], totals["refused"]) == (2, 2, 1)
        assert totals["refused_per_second"] == round(1 / seconds, 1)


class Crowd:
    """Streams that are none: they run when the test says so, and count how often they were looked at."""

    def __init__(self) -> None:
        self.running = Running()
        self.pulse = Pulse()
        self.live = Live(self.running, self.pulse, clock)
        self.looks = 0
        self.sights: list[Sight] = []
        self._prices = built_in()

    def begin(self, count: int, so_far: Callable[[Course, Tap], Closing] | None = None) -> None:
        for _ in range(count):
            passage = Passage("POST", b"", b"/v1/messages", None)
            course = Course(f"id-{len(self.sights)}", passage, START_US, clock, sent=True)
            tap = Tap(course, self.pulse)

            def look(course: Course = course, tap: Tap = tap) -> Closing:
                self.looks += 1
                if so_far is not None:
                    return so_far(course, tap)
                return settle(course, tap.outcome, self._prices, running=True)

            opening = Opening(
                id=course.id, accepted_us=START_US, method="POST", path="/v1/messages", upstream="test", caller="me",
                stream=True,
            )  # fmt: skip
            sight = Sight(opening, course, tap, ANONYMOUS, "", cast(Taken, None), look)
            self.sights.append(sight)
            for observer in (self.running, self.live):
                observer.admitted(sight, [], None)

    def move(self) -> None:
        for sight in self.sights:
            sight.course.bytes_out += 1

    def end(self, sight: Sight) -> None:
        self.sights.remove(sight)
        for observer in (self.running, self.live):
            observer.ended(sight, settle(sight.course, sight.tap.outcome, self._prices))


async def test_a_tick_lets_others_run_between_its_slices(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(500)
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(crowd.looks)
            await trio.lowlevel.checkpoint()

    async with looking(crowd.live) as eye, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        snapshot = await eye.live.newer(0)
        nursery.cancel_scope.cancel()
        assert len(json.loads(b"".join(snapshot.pieces))["exchanges"]) == 500
    assert crowd.looks == 500
    held_up = [after - before for before, after in itertools.pairwise(turns)]
    # A slice ends with the fourth look; another task's turn may come before one slice and after the next.
    assert -(-SLICE // LEAST_WORK) == 4
    assert max(held_up) <= 2 * 4


async def test_a_slice_is_shorter_where_much_is_read(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(20)
    for sight in crowd.sights:
        sight.course.bytes_out = 1_000_000
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(crowd.looks)
            await trio.lowlevel.checkpoint()

    async with looking(crowd.live) as eye, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await eye.live.newer(0)
        nursery.cancel_scope.cancel()
    assert crowd.looks == 20
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2


async def test_what_stands_still_is_not_looked_at_again(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(3)
    async with looking(crowd.live) as eye:
        for _ in range(5):
            await eye.look()
        assert crowd.looks == 3 * 2, "once more after it moved, for one look need not read all"
        crowd.move()
        for _ in range(5):
            await eye.look()
        assert crowd.looks == 3 * 4


async def test_while_nobody_looks_nothing_is_reckoned(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.live.run)
        for _ in range(3):
            await trio.sleep(60)
            crowd.move()
        assert crowd.looks == 0
        with crowd.live.watching(1):
            first = json.loads(b"".join((await crowd.live.newer(0)).pieces))
            assert [row["id"] for row in first["exchanges"]] == ["id-0", "id-1"]
            assert first["totals"]["admitted"] == 2
        looks = crowd.looks
        for _ in range(3):
            await trio.sleep(60)
            crowd.move()
        assert crowd.looks == looks
        with crowd.live.watching(1):
            again = json.loads(b"".join((await crowd.live.newer(1)).pieces))
            assert again["at_us"] > first["at_us"] + 100_000_000, "what was seen long ago is shown to nobody"
            assert again["totals"]["admitted_per_second"] is None
        nursery.cancel_scope.cancel()


async def test_more_than_can_be_shown_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(MAX_ROWS - 1)
    async with looking(crowd.live) as eye:
        crowd.begin(3)
        shown = await eye.look()
        assert (shown["totals"]["running"], shown["totals"]["shown"]) == (MAX_ROWS + 2, MAX_ROWS)
        crowd.end(crowd.sights[0])
        shown = await eye.look()
        assert (shown["totals"]["running"], len(shown["exchanges"])) == (MAX_ROWS + 1, MAX_ROWS)
        hidden = {sight.opening.id for sight in crowd.sights} - {row["id"] for row in shown["exchanges"]}
        assert len(hidden) == 1, "one that had no place has the one that is free now"


async def test_a_snapshot_is_in_pieces_that_do_not_hold_up_others(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    crowd.begin(500)
    async with looking(crowd.live) as eye:
        snapshot = await eye.live.newer(0)
        assert len(snapshot.pieces) > 2
        assert max(map(len, snapshot.pieces)) <= 64 * 1024 + 2
        assert not any(b"\n" in piece for piece in snapshot.pieces)


async def test_only_so_many_may_look(autojump_clock: trio.testing.MockClock) -> None:
    live = Crowd().live
    with ExitStack() as stack:
        for _ in range(MAX_VIEWERS - 1):
            stack.enter_context(live.watching(1))
        with live.watching(1), pytest.raises(Full):
            stack.enter_context(live.watching(1))
        stack.enter_context(live.watching(1))


@pytest.mark.parametrize(
    ("intervals", "ticks"),
    [
        pytest.param([1.0], 10, id="one a second"),
        pytest.param([10.0, 2.0], 5, id="the most eager decides"),
        pytest.param([0.5, 10.0], 20, id="in either order"),
    ],
)
async def test_one_tick_serves_all(intervals: list[float], ticks: int, autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.live.run)
        with ExitStack() as stack:
            for seconds in intervals:
                stack.enter_context(crowd.live.watching(seconds))
                await trio.testing.wait_all_tasks_blocked()
            before = (await crowd.live.newer(0)).number
            await trio.sleep(10.1)
            assert (await crowd.live.newer(0)).number - before == ticks
        nursery.cancel_scope.cancel()


async def test_one_that_cannot_be_shown_hides_no_other(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(course: Course, tap: Tap) -> Closing:
        raise ZeroDivisionError

    crowd = Crowd()
    crowd.begin(1, broken)
    crowd.begin(1)
    async with looking(crowd.live) as eye:
        shown = await eye.look()
        assert [row["id"] for row in shown["exchanges"]] == ["id-1"]
        assert (shown["totals"]["running"], shown["totals"]["shown"]) == (2, 1)
    assert "id-0 cannot be shown" in caplog.text


async def test_a_bug_ends_nobody_elses_work(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crowd = Crowd()
    async with looking(crowd.live) as eye:
        with monkeypatch.context() as patch:
            patch.setattr(module, "Totals", None)
            await trio.sleep(2)
        assert (await eye.look())["exchanges"] == []
    assert "no snapshot could be made" in caplog.text


async def test_events_and_refusals_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd()
    async with looking(crowd.live) as eye:
        await eye.look()
        crowd.pulse.events += 30
        crowd.live.refused(Refused("id", "POST", "/v1/messages", BadRequest("no"), ANONYMOUS, None, None))
        totals = (await eye.look())["totals"]
    assert (totals["events"], totals["refused"], totals["viewers"]) == (30, 1, 1)
    assert totals["events_per_second"] > totals["refused_per_second"] > 0


@pytest.mark.parametrize(
    ("counts", "rate"),
    [
        pytest.param([(0.0, 7)], None, id="the first tells nothing"),
        pytest.param([(0.0, 0), (2.0, 10)], 5.0, id="two"),
        pytest.param([(0.0, 0), (1.0, 100), (6.5, 100), (7.5, 100)], 0.0, id="what is long ago does not count"),
        pytest.param([(0.0, 0), (10.0, 50), (20.0, 50), (30.0, 80)], 3.0, id="looks far apart: since the one before"),
        pytest.param([(0.0, 100), (1.0, 101), (6.0, 126)], 5.0, id="of the window alone"),
        pytest.param([(0.0, 50), (1.0, 40)], 0.0, id="an estimate that was too high is no negative rate"),
        pytest.param([(1.0, 1), (1.0, 2)], None, id="no time has passed"),
    ],
)
def test_a_rate_is_that_of_the_last_seconds(counts: list[tuple[float, int]], rate: float | None) -> None:
    made = Rate()
    *_, last = [made.add(at, count) for at, count in counts]
    assert last == rate or (last is not None and rate is not None and math.isclose(last, rate))
