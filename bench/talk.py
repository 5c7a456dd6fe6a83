"""What the load and the upstream say to each other, byte for byte, and the check that it came through.

The request asks for an answer in the text of its last message, since that is the one part that every gateway lets
through, whatever else it rewrites:

    bench stream=1 events=00000500 interval_us=00020000 phase_us=00001234

A streamed answer is PROLOGUE, `events` times a delta, epilogue(events). All deltas have one length and differ only in
three numbers: the place in the stream, when it was sent, when it was due (both of the monotonic clock, in ns, which the
processes of one machine share). So the receiver knows every byte in advance but for the two times, and checks them all.

The clock is not read here, and nothing is sent. The programs in `native` are compiled with the parts that stand here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

MODEL = "claude-haiku-4-5"
INPUT_TOKENS = 25
NANO_PER_INPUT_TOKEN = 1_000  # $1 and $5 a million tokens: the list price of MODEL
NANO_PER_OUTPUT_TOKEN = 5_000

MARKER = "bench stream=%d events=%08d interval_us=%08d phase_us=%08d"  # of one length, for all that is asked here
_ASKED = re.compile(rb"bench stream=([01]) events=(\d+) interval_us=(\d+) phase_us=(\d+)")
_SENTENCE = "You are the far end of a benchmark. "
_PROMPT_BYTES = 2_000  # the size of a short prompt
_TOOL_BYTES, _TURN_BYTES = 1_500, 3_000  # of each tool's description, and of each turn
HEADERS = {
    "x-api-key": "sk-bench",
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
    "accept": "application/json",
    "user-agent": "bench",
}


class Mismatch(Exception):
    """Something else arrived than was sent."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer that is wanted: so many deltas, one each `interval_us`. A plain answer has `events` words.

    The first delta comes at once; or, with a `phase_us`, at the next time that leaves it as the remainder when divided
    by the interval, so that streams can be told to stand at given distances. Without an interval they follow each other
    as fast as they are taken.
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
        stream, events, interval_us, phase_us = (int(number) for number in found.groups())
        return cls(stream == 1, events, interval_us, phase_us)

    @property
    def marker(self) -> bytes:
        """The words that `read` finds."""
        return (MARKER % (self.stream, self.events, self.interval_us, self.phase_us)).encode()


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request, as HTTP/1.1, but for the marker that stands between its two parts."""

    before: bytes
    after: bytes

    @classmethod
    def make(cls, host: str, path: str, *, stream: bool, body_bytes: int = 0, more: Mapping[str, str] = {}) -> Request:
        """Write one.

        Args:
            stream: what the request says of its answer to those that do not know the marker.
            body_bytes: about how long its body is; 0: a short prompt, without tools.
            more: headers to send beside the usual ones, or in their stead.
        """
        marker = Asked(stream, 1).marker.decode()
        body = json.dumps(_prompt(marker, stream, body_bytes))
        fields = {"host": host} | HEADERS | {name.lower(): value for name, value in more.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        whole = f"POST {path} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n{body}"
        before, _, after = whole.encode().partition(marker.encode())
        return cls(before, after)

    def asking(self, asked: Asked) -> bytes:
        """The request for an answer."""
        return self.before + asked.marker + self.after


def _prompt(marker: str, stream: bool, body_bytes: int) -> dict[str, object]:
    """A request body; a long one is what a coding client sends, a fifth of it tools and the rest turns with results."""
    said: list[dict[str, object]] = []
    tools: list[dict[str, object]] = []
    if body_bytes:
        tools = [_tool(number) for number in range(body_bytes // 5 // _TOOL_BYTES)]
        for number in range((body_bytes * 4 // 5 - _PROMPT_BYTES) // _TURN_BYTES):
            said += _turn(number)
    return {
        "model": MODEL,
        "messages": [*said, {"role": "user", "content": marker}],
        "system": [{"type": "text", "text": _text(_PROMPT_BYTES), "cache_control": {"type": "ephemeral"}}],
        **({"tools": tools} if tools else {}),
        "max_tokens": 65_536,
        "stream": stream,
    }


def _text(length: int) -> str:
    return (_SENTENCE * (length // len(_SENTENCE) + 1))[:length]


def _tool(number: int) -> dict[str, object]:
    path = {"type": "string", "description": "The absolute path of the file"}
    schema = {"type": "object", "properties": {"path": path}, "required": ["path"]}
    return {"name": f"read_{number}", "description": _text(_TOOL_BYTES - 200), "input_schema": schema}


def _turn(number: int) -> list[dict[str, object]]:
    use = {"type": "tool_use", "id": f"toolu_{number:04}", "name": "read_0", "input": {"path": f"/src/{number}.py"}}
    lines = "\n".join(f'{line:6}\t    value[{line}] = "{_SENTENCE}"' for line in range(_TURN_BYTES // 75))
    result = {"type": "tool_result", "tool_use_id": f"toolu_{number:04}", "content": lines}
    asked: dict[str, object] = {"role": "user", "content": "Read the next file."}
    return [
        asked,
        {"role": "assistant", "content": [{"type": "text", "text": "I read it."}, use]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": "It is read."},
    ]


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

DELTA_BEFORE, DELTA_AFTER = _event(
    "content_block_delta",
    index=0,
    delta={"type": "text_delta", "text": "# and some words of prose, to the length of a usual event"},
).split(b"#")
STAMP = "%08d %019d %019d"
_TIMES = len(DELTA_BEFORE) + 9  # where the two times begin
DELTA_LENGTH = len(DELTA_BEFORE) + len(STAMP % (0, 0, 0)) + len(DELTA_AFTER)

# With the number of output tokens between the two parts.
EPILOGUE_BEFORE, EPILOGUE_AFTER = (
    _event("content_block_stop", index=0)
    + _event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"input_tokens": INPUT_TOKENS, "output_tokens": 1},
    ).replace(b'"output_tokens":1', b'"output_tokens":#')
    + _event("message_stop")
).split(b"#")

# With the words between the first two parts, and the number of output tokens between the last two.
WORD = "word "
PLAIN_BEFORE, PLAIN_BETWEEN, PLAIN_AFTER = (
    json.dumps(
        _message(
            content=[{"type": "text", "text": "#"}],
            stop_reason="end_turn",
            stop_sequence=None,
            usage={"input_tokens": INPUT_TOKENS, "output_tokens": "#"},
        ),
        separators=(",", ":"),
    )
    .replace('"output_tokens":"#"', '"output_tokens":#')
    .encode()
    .split(b"#")
)


def delta(place: int, sent_ns: int, due_ns: int) -> bytes:
    """The event at a place in the stream, with its times in it."""
    return DELTA_BEFORE + (STAMP % (place, sent_ns, due_ns)).encode() + DELTA_AFTER


@cache
def epilogue(events: int) -> bytes:
    """How a stream of so many deltas ends; it is billed one output token for each."""
    return b"%b%d%b" % (EPILOGUE_BEFORE, events, EPILOGUE_AFTER)


def words(events: int) -> bytes:
    """The text of an answer that is not streamed."""
    return WORD.encode() * events


@cache
def plain(events: int) -> bytes:
    """The body of an answer that is not streamed."""
    return b"%b%b%b%d%b" % (PLAIN_BEFORE, words(events), PLAIN_BETWEEN, events, PLAIN_AFTER)


class Check:
    """Reads the body of one answer as it arrives, and compares every byte with what was asked for.

    Not `exact`: of a plain answer only its words must be there, for subjects that write JSON anew.
    """

    __slots__ = ("_asked", "_exact", "_held", "_place")

    def __init__(self, asked: Asked, *, exact: bool = True) -> None:
        self._asked = asked
        self._exact = exact or asked.stream
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
            if self._exact:
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
        if not self._exact:
            if words(self._asked.events) not in self._held:
                raise Mismatch(f"its words are not in the answer: {self._held!r}")
        elif self._place <= self._asked.events or self._held:
            raise Mismatch(f"the answer ended at event {self._place} of {self._asked.events}, after {self._held!r}")

    def _compare(self, expected: bytes) -> None:
        """Take a part that is known in advance, once it is there whole."""
        if len(self._held) < len(expected):
            return
        if not self._held.startswith(expected):
            raise Mismatch(f"{self._held!r} instead of {expected!r}")
        self._held = self._held[len(expected) :]
        self._place = self._place + 1 if self._asked.stream else self._asked.events + 1
