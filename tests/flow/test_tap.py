from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from functools import partial

import pytest
import trio
import trio.testing

from tests.cuts import every_cut
from tproxy.errors import Header
from tproxy.flow.course import Course
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
    tap = Tap(c)
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


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([*SSE, (b"content-encoding", b"snappy")], STREAM),
        ([*SSE, (b"content-encoding", b"gzip")], b"this is not gzip at all"),
        (SSE, STREAM[:300] + b"data: " + b"x" * 2_000_000),
        ([*SSE, (b"content-encoding", b"gzip")], gzip.compress(bytes(80_000_000), 1)),
        (JSON, b'"' + b"x" * 20_000_000 + b'"'),
    ],
    ids=["unknown coding", "broken coding", "endless line", "bomb", "huge JSON"],
)
def test_the_tap_gives_up_and_says_why(headers: list[Header], body: bytes) -> None:
    chunks = [body[i : i + 65536] for i in range(0, len(body), 65536)]
    outcome, c = tapped([*chunks, STREAM], headers)
    assert c.tap_fault
    assert not outcome.final


def test_a_json_answer() -> None:
    body = json.dumps({"type": "message", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
    for pieces in every_cut(body):
        outcome, _ = tapped(pieces, JSON)
        assert outcome.usage is not None
        assert outcome.usage.output_tokens == 4


def test_the_type_of_an_error_is_read_on_any_path() -> None:
    c = course(b"/v1/files")
    tap = Tap(c)
    tap.begin(404, JSON)
    tap.feed(b'{"type":"error","error":{"type":"not_found_error","message":"x"}}', 1)
    assert tap.finish().error_type == "not_found_error"


def test_what_nobody_wants_is_not_kept() -> None:
    c = course(b"/v1/files/f/content")
    tap = Tap(c)
    tap.begin(200, [(b"content-type", b"application/json")])
    for _ in range(100):
        tap.feed(b"x" * 65536, 1)
    assert tap._waiting == []


async def test_it_is_woken_for_the_first_chunk_then_by_time_or_size() -> None:
    tap = Tap(course())
    tap.begin(200, SSE)
    batches = 0

    def batch() -> None:
        nonlocal batches
        batches += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(tap.run, batch))
        await trio.testing.wait_all_tasks_blocked()
        second = 1_000_000
        for now_us, size, expected in [
            (second, 10, 1),
            (second + 1000, 10, 1),
            (second + 2000, 10, 1),
            (second + 600_000, 10, 2),
            (second + 601_000, 40_000, 3),
            (second + 602_000, 10, 3),
        ]:
            tap.feed(b": " + b"x" * size + b"\n", now_us)
            await trio.testing.wait_all_tasks_blocked()
            assert batches == expected
        nursery.cancel_scope.cancel()


def test_a_bug_in_the_tap_is_a_fact_about_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    c = course()
    tap = Tap(c)
    tap.begin(200, SSE)

    def broken(name: str, data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tap._usage, "feed_event", broken)
    tap.feed(STREAM, 1)
    tap.finish()
    assert c.tap_fault
    assert "traceback" in c.tap_fault
