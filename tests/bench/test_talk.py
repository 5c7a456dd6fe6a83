"""The check that every event arrives once, in order and unchanged."""

from __future__ import annotations

import json

import pytest

from bench import talk
from bench.talk import PROLOGUE, Asked, Check, Mismatch, Request, delta, epilogue, plain
from tests.cuts import every_cut

THREE = Asked(stream=True, events=3)
TIMES = [(1_000_000_001, 999_999_999), (2_000_000_000, 2_000_000_000), (3 << 60, 3 << 59)]
D0, D1, D2 = (delta(place, *times) for place, times in enumerate(TIMES))
WHOLE = PROLOGUE + D0 + D1 + D2 + epilogue(3)


@pytest.mark.parametrize("pieces", list(every_cut(WHOLE)), ids=len)
def test_each_event_is_reported_once_when_it_is_complete(pieces: list[bytes]) -> None:
    check = Check(THREE)
    got, stamps = 0, []
    for piece in pieces:
        got += len(piece)
        stamps += check.feed(piece)
        complete = (got - len(PROLOGUE)) // talk.DELTA_LENGTH if got >= len(PROLOGUE) else 0
        assert stamps == TIMES[: min(3, complete)]
    check.end()


WRONG = {
    "an event is missing": PROLOGUE + D0 + D2 + epilogue(3),
    "the last event is missing": PROLOGUE + D0 + D1 + epilogue(3),
    "an event comes twice": PROLOGUE + D0 + D1 + D1 + D2 + epilogue(3),
    "two events are swapped": PROLOGUE + D0 + D2 + D1 + epilogue(3),
    "a byte of an event differs": PROLOGUE + D0 + D1.replace(b"prose", b"Prose") + D2 + epilogue(3),
    "a byte of the beginning differs": WHOLE.replace(b"message_start", b"message_stArt", 1),
    "a byte of the end differs": WHOLE.replace(b"end_turn", b"end_tUrn"),
    "the end is missing": PROLOGUE + D0 + D1 + D2,
    "the end is cut": WHOLE[:-1],
    "there is more": WHOLE + b"\n",
    "there is nothing": b"",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_what_differs_is_seen(body: bytes) -> None:
    for pieces in every_cut(body, random_cuts=3):
        check = Check(THREE)
        with pytest.raises(Mismatch):
            _take(check, pieces)


@pytest.mark.parametrize("pieces", list(every_cut(plain(5))), ids=len)
def test_a_plain_answer(pieces: list[bytes]) -> None:
    check = Check(Asked(stream=False, events=5))
    assert [check.feed(piece) for piece in pieces] == [[]] * len(pieces)
    check.end()


@pytest.mark.parametrize("body", [plain(5)[:-1], plain(5) + b" ", plain(4), plain(5).replace(b"word", b"Word", 1)])
def test_another_plain_answer(body: bytes) -> None:
    with pytest.raises(Mismatch):
        _take(Check(Asked(stream=False, events=5)), [body])


def _take(check: Check, pieces: list[bytes]) -> None:
    for piece in pieces:
        check.feed(piece)
    check.end()


ASKED = [THREE, Asked(False, 7), Asked(True, 500, interval_us=20_000, phase_us=17), Asked(True, 99_999_999, 99_999_999)]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.events}")
@pytest.mark.parametrize("body_bytes", [0, 100_000])
def test_a_request_says_what_it_asks_for(asked: Asked, body_bytes: int) -> None:
    request = Request.make("127.0.0.1:1", "/v1/messages", stream=asked.stream, body_bytes=body_bytes)
    head, _, body = request.asking(asked).partition(b"\r\n\r\n")
    assert Asked.read(body) == asked
    assert Asked.read(json.dumps(json.loads(body), separators=(",", ":"), sort_keys=True).encode()) == asked
    assert json.loads(body)["stream"] == asked.stream
    assert b"content-length: %d" % len(body) in head.split(b"\r\n")
    assert abs(len(body) - (body_bytes or 2_300)) < 1_000


def test_a_long_request_is_a_conversation_with_tools() -> None:
    body = json.loads(Request.make("h", "/", stream=True, body_bytes=100_000).asking(THREE).partition(b"\r\n\r\n")[2])
    roles = [said["role"] for said in body["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    parts = [part for said in body["messages"] if isinstance(said["content"], list) for part in said["content"]]
    used = [part["id"] for part in parts if part["type"] == "tool_use"]
    assert used == [part["tool_use_id"] for part in parts if part["type"] == "tool_result"]
    assert len(set(used)) == len(used) > 10
    assert len({tool["name"] for tool in body["tools"]}) == len(body["tools"]) > 10


def test_headers_may_be_added_and_replaced() -> None:
    head = Request.make("h:1", "/x", stream=True, more={"X-Api-Key": "sk-other", "x-more": "1"}).before
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[:2] == [b"POST /x HTTP/1.1", b"host: h:1"]
    assert {b"x-api-key: sk-other", b"x-more: 1"} <= set(lines)
    assert b"sk-bench" not in head


@pytest.mark.parametrize("pieces", list(every_cut(plain(5).replace(b",", b", "))), ids=len)
def test_a_plain_answer_written_anew_has_its_words(pieces: list[bytes]) -> None:
    _take(Check(Asked(stream=False, events=5), exact=False), pieces)


@pytest.mark.parametrize("asked", [Asked(stream=False, events=6), THREE], ids=["other words", "a stream"])
def test_what_is_not_excused(asked: Asked) -> None:
    with pytest.raises(Mismatch):
        _take(Check(asked, exact=False), [plain(5)])


def test_answers_are_anthropics() -> None:
    *events, rest = WHOLE.split(b"\n\n")
    named = [event.removeprefix(b"event: ").split(b"\ndata: ") for event in events]
    assert rest == b""
    assert all(json.loads(data)["type"] == name.decode() for name, data in named)
    assert [name.decode() for name, _ in named] == [
        "message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert json.loads(named[-2][1])["usage"] == {"input_tokens": talk.INPUT_TOKENS, "output_tokens": 3}
    message = json.loads(plain(7))
    assert message["content"] == [{"type": "text", "text": "word " * 7}]
    assert message["usage"] == {"input_tokens": talk.INPUT_TOKENS, "output_tokens": 7}


def test_other_requests_ask_for_nothing() -> None:
    assert Asked.read(b'{"model": "m", "messages": []}') is None
