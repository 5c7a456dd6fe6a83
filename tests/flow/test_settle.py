"""The table of endings: what the tap learnt and how it ended, and the row that comes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tproxy.flow.course import Course
from tproxy.flow.route import Passage
from tproxy.flow.settle import settle
from tproxy.protocol.pricing import built_in
from tproxy.protocol.usage import Outcome, UsageReader
from tproxy.store import base
from tproxy.store.base import Closing

AT_US = 1_795_000_000_000_000  # November 2026
MESSAGES = Passage("POST", b"", b"/v1/messages", None)
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "model": "claude-opus-5-5",
        "usage": {"input_tokens": 1000, "cache_read_input_tokens": 100, "output_tokens": 1},
    },
}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello there, world."}}
LAST = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 65}}
STOP = {"type": "message_stop"}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def stream(*events: dict[str, Any]) -> Outcome:
    reader = UsageReader()
    for event in events:
        reader.feed_event(event["type"], json.dumps(event).encode())
    return reader.outcome()


def answer(body: dict[str, Any]) -> Outcome:
    reader = UsageReader()
    reader.feed_json(json.dumps(body).encode())
    return reader.outcome()


def course(ended: str = base.FINISHED, status: int | None = 200, passage: Passage = MESSAGES) -> Course:
    """A course that ends so, as far as the bytes go."""
    whole = ended in (base.FINISHED, base.REFUSED)
    gone = ended == base.CLIENT_GONE
    return Course(
        "id",
        passage,
        AT_US,
        lambda: AT_US + 5,
        model_asked="claude-opus-5-5",
        sent=ended != base.UPSTREAM_UNREACHABLE,
        status=status,
        upstream_status=status,
        head_us=AT_US + 1 if status else None,
        whole=whole,
        client_gone=gone,
        broken=None if whole or gone or ended == base.FAILED else ended,
    )


def closed(outcome: Outcome, **more: Any) -> Closing:
    return settle(course(**more), outcome, built_in())


WHOLE = (START, BLOCK, DELTA, LAST, STOP)
INPUT_NANO = 1000 * 4000 + 100 * 200  # 4 USD and 0.20 USD per million


def test_a_whole_stream_is_exact() -> None:
    row = closed(stream(*WHOLE))
    assert (row.ended, row.certainty) == (base.FINISHED, base.EXACT)
    assert (row.input_tokens, row.cache_read_tokens, row.output_tokens) == (1000, 100, 65)
    assert row.cost_nano == INPUT_NANO + 65 * 20_000
    assert row.cost_output_nano == 65 * 20_000
    assert (row.model_served, row.message_id, row.stop_reason) == ("claude-opus-5-5", "msg_1", "end_turn")
    assert row.price_version == built_in().version
    assert row.ended_us == AT_US + 5


@pytest.mark.parametrize("ended", [base.CLIENT_GONE, base.UPSTREAM_BROKEN, base.UPSTREAM_TIMEOUT, base.FAILED])
def test_a_cut_stream_is_billed_by_what_was_delivered(ended: str) -> None:
    row = closed(stream(START, BLOCK, *[DELTA] * 10), ended=ended)
    assert (row.ended, row.certainty) == (ended, base.ESTIMATED)
    assert row.output_tokens is not None
    assert 40 <= row.output_tokens <= 110
    assert row.cost_nano == INPUT_NANO + row.output_tokens * 20_000


def test_nothing_delivered_yet_costs_the_input() -> None:
    row = closed(stream(START), ended=base.CLIENT_GONE)
    assert (row.certainty, row.output_tokens) == (base.ESTIMATED, 1)


def test_cut_after_the_last_word_is_exact() -> None:
    row = closed(stream(START, BLOCK, DELTA, LAST), ended=base.CLIENT_GONE)
    assert (row.ended, row.certainty, row.output_tokens) == (base.CLIENT_GONE, base.EXACT, 65)


def test_a_usage_that_may_not_be_the_last_is_partial() -> None:
    more = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 40}}
    assert closed(stream(START, BLOCK, DELTA, more), ended=base.CLIENT_GONE).certainty == base.PARTIAL


def test_a_usage_that_cannot_be_read_whole_is_partial() -> None:
    message = {**START["message"], "usage": {"input_tokens": "1000"}}  # type: ignore[dict-item]
    row = closed(stream({**START, "message": message}, BLOCK, DELTA, LAST, STOP))
    assert (row.output_tokens, row.certainty) == (65, base.PARTIAL)


def test_a_clean_end_without_message_stop_is_incomplete() -> None:
    assert closed(stream(START, BLOCK, DELTA)).ended == base.INCOMPLETE


def test_an_error_event_in_a_stream() -> None:
    row = closed(stream(START, BLOCK, DELTA, ERROR))
    assert (row.ended, row.error_type, row.certainty) == (base.UPSTREAM_ERROR, "overloaded_error", base.ESTIMATED)
    assert row.cost_nano is not None
    assert row.cost_nano > INPUT_NANO


def test_an_error_status_costs_nothing() -> None:
    row = closed(answer(ERROR), ended=base.REFUSED, status=529)
    assert (row.ended, row.error_type, row.cost_nano) == (base.REFUSED, "overloaded_error", 0)
    assert row.certainty == base.EXACT


def test_a_whole_json_answer_is_exact() -> None:
    row = closed(answer({"type": "message", **START["message"], "stop_reason": "end_turn", "content": []}))  # type: ignore[dict-item]
    assert (row.ended, row.certainty, row.cost_nano) == (base.FINISHED, base.EXACT, INPUT_NANO + 20_000)


@pytest.mark.parametrize(
    ("whole", "missed", "events", "ended"),
    [
        (False, False, WHOLE, base.FINISHED),
        (False, True, WHOLE, base.CLIENT_GONE),
        (False, False, WHOLE[:-1], base.CLIENT_GONE),
        (True, False, WHOLE, base.FINISHED),
        (True, False, WHOLE[:-1], base.INCOMPLETE),
    ],
    ids=["had it all but the framing", "drained for the books", "before its end", "after it", "after a short one"],
)
def test_a_client_that_closes_when_it_has_what_it_wants(
    whole: bool, missed: bool, events: tuple[dict[str, Any], ...], ended: str
) -> None:
    left = course(base.CLIENT_GONE)
    left.whole, left.missed = whole, missed
    assert settle(left, stream(*events), built_in()).ended == ended


def test_nothing_seen_has_no_cost() -> None:
    for ended in (base.CLIENT_GONE, base.UPSTREAM_TIMEOUT, base.UPSTREAM_BROKEN):
        row = closed(stream(), ended=ended, status=None)
        assert (row.cost_nano, row.certainty) == (None, base.PARTIAL)


def test_what_was_never_sent_cost_nothing() -> None:
    row = closed(stream(), ended=base.UPSTREAM_UNREACHABLE, status=None)
    assert (row.cost_nano, row.certainty) == (0, base.EXACT)


def test_our_own_answer_is_not_an_answer_of_the_upstream() -> None:
    broken = course(base.UPSTREAM_BROKEN, status=502)
    broken.upstream_status = None
    row = settle(broken, stream(), built_in())
    assert (row.status, row.cost_nano, row.certainty) == (502, None, base.PARTIAL)


def test_what_the_upstream_served_is_not_free_because_we_could_not_pass_it_on() -> None:
    unrecorded = course(base.FAILED, status=503)
    unrecorded.upstream_status, unrecorded.broken = 200, base.FAILED
    row = settle(unrecorded, stream(), built_in())
    assert (row.status, row.cost_nano, row.certainty) == (503, None, base.PARTIAL)


def test_an_unknown_model_is_unpriced_never_free() -> None:
    message = {**START["message"], "model": "claude-opus-99"}  # type: ignore[dict-item]
    row = closed(stream({**START, "message": message}, LAST, STOP))
    assert (row.cost_nano, row.certainty, row.output_tokens) == (None, base.UNPRICED, 65)


@pytest.mark.parametrize(
    ("method", "path", "cost", "certainty"),
    [
        ("POST", b"/v1/messages/count_tokens", 0, base.EXACT),
        ("GET", b"/v1/models", 0, base.EXACT),
        ("DELETE", b"/v1/files/f", 0, base.EXACT),
        ("POST", b"/v1/messages/batches", None, base.UNPRICED),
        ("POST", b"/v1/something/new", None, base.UNPRICED),
    ],
)
def test_other_calls(method: str, path: bytes, cost: int | None, certainty: str) -> None:
    row = closed(stream(), passage=Passage(method, b"", path, None))
    assert (row.cost_nano, row.certainty, row.ended) == (cost, certainty, base.FINISHED)


def test_a_running_exchange_is_noted_as_open() -> None:
    row = settle(course(base.FAILED), stream(START), built_in(), running=True)
    assert (row.ended, row.ended_us, row.input_tokens) == (base.OPEN, None, 1000)
    assert row.certainty == base.ESTIMATED


def test_fast_and_us_are_priced_from_the_answer() -> None:
    usage = {"input_tokens": 1000, "output_tokens": 1, "speed": "fast", "inference_geo": "us"}
    message = {**START["message"], "usage": usage}  # type: ignore[dict-item]
    row = closed(stream({**START, "message": message}, LAST, STOP))
    assert (row.speed, row.geo) == ("fast", "us")
    assert row.cost_nano == (1000 * 4000 + 65 * 20_000) * 2 * 11 // 10
