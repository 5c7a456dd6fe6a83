"""The check that every event arrives once, in order and unchanged."""

from __future__ import annotations

import json

import pytest

from bench import talk
from bench.talk import PROLOGUE, Asked, Check, Mismatch, delta, epilogue, plain
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


@pytest.mark.parametrize("asked", [THREE, Asked(False, 7), Asked(True, 500, interval_us=20_000, phase_us=17)])
def test_a_request_says_what_it_asks_for(asked: Asked) -> None:
    head, _, body = asked.request("127.0.0.1:1", "/v1/messages").partition(b"\r\n\r\n")
    assert Asked.read(body) == asked
    assert Asked.read(json.dumps(json.loads(body), separators=(",", ":")).encode()) == asked
    assert b"content-length: %d" % len(body) in head.split(b"\r\n")


def test_other_requests_ask_for_nothing() -> None:
    assert Asked.read(b'{"model": "m", "messages": []}') is None
