"""What the load and the upstream say to each other, byte for byte, and the check that it came through.

The request asks for an answer in the text of its message, since that is the one part that every gateway lets through:

    bench events=500 interval_us=20000 phase_us=1234

A streamed answer is PROLOGUE, `events` times a delta, epilogue(events). All deltas have one length and differ only in
three numbers: the place in the stream, when it was sent, when it was due (both of the monotonic clock, in ns, which the
processes of one machine share). So the receiver knows every byte in advance but for the two times, and checks them all.

The clock is not read here, and nothing is sent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache

MODEL = "claude-haiku-4-5"
INPUT_TOKENS = 25
NANO_PER_INPUT_TOKEN = 1_000  # $1 and $5 a million tokens: the list price of MODEL
NANO_PER_OUTPUT_TOKEN = 5_000

_ASKED = re.compile(rb"bench events=(\d+) interval_us=(\d+) phase_us=(\d+)")
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_SYSTEM = "You are the far end of a benchmark. " * 55  # about 2 kB, the size of a short prompt
_HEADERS = (
    "x-api-key: sk-bench\r\nanthropic-version: 2023-06-01\r\ncontent-type: application/json\r\n"
    "accept: application/json\r\nuser-agent: bench\r\n"
)


class Mismatch(Exception):
    """Something else arrived than was sent."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer that is wanted: so many deltas, one each `interval_us`. A plain answer has `events` words.

    The first delta comes at once; or, with a `phase_us`, at the next time that leaves it as the remainder when divided
    by the interval, so that streams can be told to stand at given distances.
    """

    stream: bool
    events: int
    interval_us: int = 0
    phase_us: int = 0

    @classmethod
    def read(cls, body: bytes) -> Asked | None:
        """Find what a request body asks for. None: it asks for nothing that is known here."""
        found = _ASKED.search(body)
        if found is None:
            return None
        events, interval_us, phase_us = (int(number) for number in found.groups())
        return cls(_STREAM.search(body) is not None, events, interval_us, phase_us)

    def request(self, host: str, path: str) -> bytes:
        """The whole request, as HTTP/1.1."""
        words = f"bench events={self.events} interval_us={self.interval_us} phase_us={self.phase_us}"
        body = json.dumps(
            {
                "model": MODEL,
                "max_tokens": 65_536,
                "stream": self.stream,
                "system": _SYSTEM,
                "messages": [{"role": "user", "content": words}],
            }
        )
        return f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{_HEADERS}content-length: {len(body)}\r\n\r\n{body}".encode()


def _event(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, separators=(',', ':'))}\n\n".encode()


def _message(**more: object) -> dict[str, object]:
    return {"id": "msg_bench", "type": "message", "role": "assistant", "model": MODEL, **more}


_STARTED = _message(
    content=[], stop_reason=None, stop_sequence=None, usage={"input_tokens": INPUT_TOKENS, "output_tokens": 1}
)
PROLOGUE = _event("message_start", message=_STARTED) + _event(
    "content_block_start", index=0, content_block={"type": "text", "text": ""}
)
_BEFORE, _AFTER = _event(
    "content_block_delta",
    index=0,
    delta={"type": "text_delta", "text": "# and some words of prose, to the length of a usual event"},
).split(b"#")
_STAMP = b"%08d %019d %019d"
_TIMES = len(_BEFORE) + 9  # where the two times begin
DELTA_LENGTH = len(_BEFORE) + len(_STAMP % (0, 0, 0)) + len(_AFTER)


def delta(place: int, sent_ns: int, due_ns: int) -> bytes:
    """The event at a place in the stream, with its times in it."""
    return _BEFORE + _STAMP % (place, sent_ns, due_ns) + _AFTER


@cache
def epilogue(events: int) -> bytes:
    """How a stream of so many deltas ends; it is billed one output token for each."""
    return (
        _event("content_block_stop", index=0)
        + _event(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"input_tokens": INPUT_TOKENS, "output_tokens": events},
        )
        + _event("message_stop")
    )


@cache
def plain(events: int) -> bytes:
    """The body of an answer that is not streamed."""
    message = _message(
        content=[{"type": "text", "text": "word " * events}],
        stop_reason="end_turn",
        stop_sequence=None,
        usage={"input_tokens": INPUT_TOKENS, "output_tokens": events},
    )
    return json.dumps(message, separators=(",", ":")).encode()


class Check:
    """Reads the body of one answer as it arrives, and compares every byte with what was asked for."""

    __slots__ = ("_asked", "_held", "_place")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._held = b""
        self._place = -1  # of the delta that comes next; -1: the prologue, `events`: the epilogue, above: nothing

    def feed(self, piece: bytes) -> list[tuple[int, int]]:
        """Take the next bytes; return (sent_ns, due_ns) of each delta that is now complete.

        Raises:
            Mismatch: these are not the bytes that were sent.
        """
        self._held += piece
        stamps: list[tuple[int, int]] = []
        if not self._asked.stream:
            self._compare(plain(self._asked.events))
            return stamps
        if self._place == -1:
            self._compare(PROLOGUE)
        at = 0
        while 0 <= self._place < self._asked.events and len(self._held) - at >= DELTA_LENGTH:
            event = self._held[at : at + DELTA_LENGTH]
            at += DELTA_LENGTH
            times = event[_TIMES : _TIMES + 39]
            try:
                stamp = int(times[:19]), int(times[20:])
            except ValueError:
                raise Mismatch(f"at event {self._place}: {event!r}") from None
            if event != delta(self._place, *stamp):
                raise Mismatch(f"at event {self._place}: {event!r}")
            stamps.append(stamp)
            self._place += 1
        self._held = self._held[at:]
        if self._place == self._asked.events:
            self._compare(epilogue(self._asked.events))
        return stamps

    def end(self) -> None:
        """The answer has ended.

        Raises:
            Mismatch: it is too short, or too long.
        """
        if self._place <= self._asked.events or self._held:
            raise Mismatch(f"the answer ended at event {self._place} of {self._asked.events}, after {self._held!r}")

    def _compare(self, expected: bytes) -> None:
        """Take a part that is known in advance, once it is there whole."""
        if len(self._held) < len(expected):
            return
        if not self._held.startswith(expected):
            raise Mismatch(f"{self._held!r} instead of {expected!r}")
        self._held = self._held[len(expected) :]
        self._place = self._place + 1 if self._asked.stream else self._asked.events + 1
