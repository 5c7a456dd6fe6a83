from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.cuts import every_cut
from tproxy.errors import Header
from tproxy.flow.course import Course
from tproxy.flow.pulse import Pulse
from tproxy.flow.route import Passage
from tproxy.flow.tap import Tap
from tproxy.protocol.usage import Outcome

SSE: list[Header] = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
JSON: list[Header] = [(b"content-type", b"application/json")]


def event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


STREAM = b"".join(
    [
        event("message_start", message={"id": "m", "model": "claude-opus-5", "usage": {"input_tokens": 7}}),
        event("ping"),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "héllo 🙂"}),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
        event("message_stop"),
    ]
)


def course(path: bytes = b"/v1/messages") -> Course:
    return Course("id", Passage("POST", b"", path, None), 0, lambda: 0)


def tapped(chunks: Iterable[bytes], headers: list[Header], status: int = 200) -> tuple[Outcome, Course]:
    c = course()
    tap = Tap(c, Pulse())
    tap.begin(status, headers)
    for number, chunk in enumerate(chunks):
        tap.feed(chunk, number + 1)
    return tap.finish(), c


def test_a_stream_at_every_cut() -> None:
    for pieces in every_cut(STREAM):
        outcome, c = tapped(pieces, SSE)
        assert outcome.usage is not None
        assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (7, 5)
        assert (outcome.stopped, c.tap_fault) == (True, None)


def test_first_content_is_stamped_with_the_chunk_that_brought_it() -> None:
    border = STREAM.index(b"event: content_block_start")
    _, c = tapped([STREAM[:border], STREAM[border : border + 20], STREAM[border + 20 :]], SSE)
    assert c.first_content_us == 3


@pytest.mark.parametrize(
    ("coding", "encode"),
    [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (None, gzip.compress)],
    ids=["gzip", "deflate", "gzip that is not announced"],
)
def test_coded_streams(coding: bytes | None, encode: object) -> None:
    body = encode(STREAM)  # type: ignore[operator]
    headers = SSE + ([(b"content-encoding", coding)] if coding else [])
    for pieces in every_cut(body):
        if coding is None and len(pieces[0]) < 2:
            continue  # what is not announced must be seen in the first chunk
        outcome, c = tapped(pieces, headers)
        assert (outcome.final, c.tap_fault) == (True, None)


UNREADABLE: dict[str, tuple[list[Header], bytes, str]] = {
    "unknown coding": ([*SSE, (b"content-encoding", b"snappy")], STREAM, "unknown content coding"),
    "broken coding": ([*SSE, (b"content-encoding", b"gzip")], b"this is not gzip at all", "does not fit"),
    "endless line": (SSE, STREAM[:300] + b"data: " + b"x" * 2_000_000, "a line of more than"),
    "bomb": ([*SSE, (b"content-encoding", b"gzip")], gzip.compress(b"\n" * 8_000_000), "more than is allowed"),
    "huge JSON": (JSON, b'"' + b"x" * 5_000_000 + b'"', "a JSON answer of more than 4194304 bytes"),
}


@pytest.mark.parametrize(("headers", "body", "why"), UNREADABLE.values(), ids=UNREADABLE)
async def test_the_tap_gives_up_and_says_why(headers: list[Header], body: bytes, why: str) -> None:
    c = course()
    tap = Tap(c, Pulse())
    tap.begin(200, headers)
    for start in range(0, len(body), 65536):
        tap.feed(body[start : start + 65536], 1)
        await tap.drain()
    tap.feed(STREAM, 1)
    assert not tap.finish().final
    assert c.tap_fault is not None
    assert why in c.tap_fault


def test_a_json_answer() -> None:
    body = json.dumps({"type": "message", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
    for pieces in every_cut(body):
        outcome, _ = tapped(pieces, JSON)
        assert outcome.usage is not None
        assert outcome.usage.output_tokens == 4


def test_the_type_of_an_error_is_read_on_any_path() -> None:
    c = course(b"/v1/files")
    tap = Tap(c, Pulse())
    tap.begin(404, JSON)
    tap.feed(b'{"type":"error","error":{"type":"not_found_error","message":"x"}}', 1)
    assert tap.finish().error_type == "not_found_error"


def test_what_nobody_wants_is_not_kept() -> None:
    c = course(b"/v1/files/f/content")
    tap = Tap(c, Pulse())
    tap.begin(200, [(b"content-type", b"application/json")])
    for _ in range(100):
        tap.feed(b"x" * 65536, 1)
    assert not tap._waiting


def test_a_stream_that_no_usage_is_wanted_of_is_not_kept() -> None:
    tap = Tap(course(b"/v1/sessions/s/events"), Pulse())
    tap.begin(200, SSE)
    tap.feed(STREAM, 1)
    assert not tap._waiting
    assert not tap.finish().started


@asynccontextmanager
async def running(headers: list[Header], on_batch: Callable[[], None] = lambda: None) -> AsyncIterator[Tap]:
    """A tap whose task runs, and has come to rest."""
    tap = Tap(course(), Pulse())
    tap.begin(200, headers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tap.run, on_batch)
        await trio.testing.wait_all_tasks_blocked()
        yield tap
        nursery.cancel_scope.cancel()


async def test_it_is_woken_for_the_first_chunk_then_by_time_or_size(autojump_clock: MockClock) -> None:
    batches: list[float] = []
    started = trio.current_time()
    async with running(SSE, lambda: batches.append(round(trio.current_time() - started, 3))) as tap:
        for at, size in [(1, 10), (1.1, 10), (5, 10), (8, 10), (8.1, 40_000), (25, 10), (25.1, 40_000)]:
            await trio.sleep_until(started + at)
            tap.feed(b": " + b"x" * size + b"\n", 0)
        await trio.sleep(60)
        assert batches == [1, 6, 8.1, 25, 25.1]
        assert not tap._waiting


async def test_what_waits_is_read_though_nothing_follows(autojump_clock: MockClock) -> None:
    async with running(SSE) as tap:
        tap.feed(STREAM[:40], 1)
        await trio.sleep(0.1)
        tap.feed(STREAM[40:], 2)
        await trio.sleep(0.1)
        assert not tap.outcome.started
        await trio.sleep(5)
        assert tap.outcome.stopped


async def test_with_nothing_waiting_there_is_no_timer(autojump_clock: MockClock) -> None:
    async with running(SSE) as tap:
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        tap.feed(STREAM, 1)
        await trio.sleep(5)
        assert tap.outcome.stopped
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


def _gzipped(body: bytes) -> bytes:
    """Compressed no better than a decoder takes it for: some of it is noise."""
    noise = b": " + random.Random(1).randbytes(60_000).hex().encode() + b"\n\n"
    return gzip.compress(noise + body)


FLOODS: dict[str, tuple[list[Header], bytes]] = {
    "blank lines": (SSE, b"\n" * 3_000_000),
    "blank lines, CR": (SSE, b"\r" * 1_000_000),
    "comments": (SSE, b":\n" * 500_000),
    "events without a name": (SSE, b"data\n\n" * 50_000),
    "deltas": (SSE, event("content_block_delta", delta={"type": "text_delta", "text": "ab "}) * 15_000),
}


@pytest.mark.parametrize(("headers", "flood"), FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("coding", [None, b"gzip"])
async def test_a_flood_is_read_to_its_end_and_others_run_meanwhile(
    headers: list[Header], flood: bytes, coding: bytes | None
) -> None:
    body = flood + STREAM
    if coding is not None:
        headers, body = [*headers, (b"content-encoding", coding)], _gzipped(body)
    c = course()
    tap = Tap(c, Pulse())
    tap.begin(200, headers)
    read = tap._read
    turns: list[int] = [0]  # the bytes read in each turn of the tap

    def counted(portion: bytes) -> int:
        turns[-1] += len(portion)
        return read(portion)

    async def other() -> None:
        while True:
            turns.append(0)
            await trio.lowlevel.checkpoint()

    tap._read = counted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        tap.feed(body, 1)
        await tap.drain()
        nursery.cancel_scope.cancel()
    assert tap.finish().stopped
    assert c.tap_fault is None
    assert sum(turns) > len(flood)
    assert max(turns) <= 2 * 80 * 1024  # two turns may follow upon each other


async def test_a_reading_that_is_cancelled_goes_on_where_it_was() -> None:
    tap = Tap(course(), Pulse())
    tap.begin(200, SSE)
    middle = STREAM.index(b"event: message_delta")
    comments = b": " + b"x" * 200_000 + b"\n"
    tap.feed(STREAM[:middle] + comments + STREAM[middle:], 1)
    with trio.CancelScope() as scope:
        reading = tap._read

        def cancelling(portion: bytes) -> int:
            scope.cancel()
            return reading(portion)

        tap._read = cancelling  # type: ignore[method-assign]
        await tap.drain()
    assert scope.cancelled_caught
    assert not tap.outcome.stopped
    assert tap.finish() == tapped([STREAM], SSE)[0]


def test_the_end_reads_no_more_than_a_little() -> None:
    outcome, c = tapped([STREAM[:300], b": x\n" * 600_000, STREAM[300:]], SSE)
    assert c.tap_fault == "the exchange ended before its answer had been read"
    assert outcome.started
    assert not outcome.stopped


@pytest.mark.parametrize("size", [1, 60_000])
def test_an_answer_that_comes_faster_than_it_can_be_read_is_given_up(size: int) -> None:
    c = course()
    tap = Tap(c, Pulse())
    tap.begin(200, SSE)
    for _ in range(100_000):
        tap.feed(b":" * size, 1)
        if c.tap_fault:
            break
    assert c.tap_fault == "the answer came faster than it could be read"
    assert not tap._waiting


def test_a_bug_in_the_tap_is_a_fact_about_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    c = course()
    tap = Tap(c, Pulse())
    tap.begin(200, SSE)

    def broken(name: str, data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tap._usage, "feed_event", broken)
    tap.feed(STREAM, 1)
    tap.finish()
    assert c.tap_fault
    assert "traceback" in c.tap_fault


def test_what_copies_an_answer_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """It gets all, decoded, until it raises; the figures are those of an answer that nobody copies."""
    plain, c = tapped([STREAM], SSE)
    copied: list[bytes] = []
    tap = Tap(c := course(), Pulse())
    tap.copy = copied.append
    tap.begin(200, [*SSE, (b"content-encoding", b"gzip")])
    tap.feed(gzip.compress(STREAM), 1)
    assert tap.finish() == plain
    assert b"".join(copied) == STREAM

    def fail(portion: bytes) -> None:
        raise ZeroDivisionError

    tap = Tap(c := course(), Pulse())
    tap.copy = fail
    tap.begin(200, SSE)
    tap.feed(STREAM, 1)
    assert tap.finish() == plain
    assert c.tap_fault is None
    assert tap.copy is None
    assert "the tap goes on" in caplog.text


def test_gaps_are_those_between_arrivals() -> None:
    for first_content in (None, 1):
        pulse = Pulse()
        tap = Tap(c := course(), pulse)
        c.first_content_us = first_content  # from then on, chunks are joined
        tap.begin(200, SSE)
        for at_us in (1_000_000, 1_000_500, 1_020_500, 9_020_500):
            tap.feed(event("ping"), at_us)
        tap.finish()
        assert pulse.gaps.count == 3
        assert pulse.gaps.total == 8_020_500
        assert pulse.events == 4
    pulse = Pulse()
    tap = Tap(course(), pulse)
    tap.begin(200, JSON)
    for at_us in (1, 2, 3):
        tap.feed(b" ", at_us)
    tap.finish()
    assert (pulse.gaps.count, pulse.events) == (0, 0)  # of no stream


def test_to_look_is_bounded_and_goes_on_where_it_was() -> None:
    tap = Tap(course(), Pulse())
    tap.begin(200, SSE)
    for number in range(3_000):
        delta = {"type": "text_delta", "text": f"word {number} "}
        tap.feed(event("content_block_delta", index=0, delta=delta), number + 1)
    before = 0
    looks = 0
    while (now := tap.look().delivered_tokens) > before:
        before, looks = now, looks + 1
    assert looks >= 5
    assert tap.finish().delivered_tokens == before
