"""How a request says what the sandbox shall do with it.

A script is a list of `key=value`, in the header `x-sandbox: tokens=200; tps=50`, or, where a client cannot set
headers, in the last user message: `[sandbox tokens=200 tps=50]`. The header wins. The fields of `Script` are the
keys; `docs/sandbox.md` holds the same table, and a test compares the two.
"""

# ruff: noqa: RUF009 (`_key` is dataclasses.field with its metadata; every default is immutable)

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

TAG = re.compile(r"\[sandbox\s+([^\]]*)\]")

MOST_TOKENS = 200_000
MOST_BYTES = 64 * 1024 * 1024
MOST_EVENTS = 1_000_000


class Place(NamedTuple):
    """A place in a body: after so many `events` or `bytes`. Written `7` or `700b`."""

    number: int
    unit: Literal["events", "bytes"]


def _int(value: str) -> int:
    """The number, or -1, which nothing takes."""
    try:
        return int(value)
    except ValueError:
        return -1


def _whole(most: int = 1_000_000) -> Callable[[str], int]:
    def read(value: str) -> int:
        number = _int(value)
        if not 0 <= number <= most:
            raise ValueError(f"not a whole number between 0 and {most}")
        return number

    return read


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 86_400:
        raise ValueError("not a number between 0 and 86400")
    return number


def _flag(value: str) -> bool:
    if value not in {"0", "1"}:
        raise ValueError("neither 0 nor 1")
    return value == "1"


def _place(value: str) -> Place:
    in_bytes = value.endswith("b")
    number = _int(value.removesuffix("b"))
    if not 0 <= number <= (MOST_BYTES if in_bytes else MOST_EVENTS):
        raise ValueError(
            f"neither events, as in 7 (at most {MOST_EVENTS}), nor bytes, as in 700b (at most {MOST_BYTES})"
        )
    return Place(number, "bytes" if in_bytes else "events")


def _status(value: str) -> int:
    number = _int(value)
    if number and not 300 <= number <= 599:
        raise ValueError("neither 0 nor a status between 300 and 599")
    return number


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"none of {', '.join(words)}")
        return value

    return read


def _key(default: Any, read: Callable[[str], object], about: str) -> Any:
    return dataclasses.field(default=default, metadata={"read": read, "about": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What shall happen with one request. Times in seconds, sizes in bytes; the defaults do nothing odd."""

    # What is answered
    tokens: int = _key(40, _whole(MOST_TOKENS), "output tokens of the text")
    per: int = _key(0, _whole(1000), "tokens in each delta; 0: one to three, mixed")
    seed: int | None = _key(None, _whole(2**31), "decides the text; by default the last user message does")
    tool: str | None = _key(None, str, "call the tool of this name")
    thinking: int = _key(0, _whole(MOST_TOKENS), "thinking tokens; by default 24 where the request enables thinking")
    web_search: int = _key(0, _whole(20), "web searches made before the text")
    refusal: bool = _key(False, _flag, "refuse before any output: usage is shown, nothing is billed")
    fallback: str | None = _key(None, str, "the model asked for declines, this one serves")
    advisor: str | None = _key(None, str, "an advisor of this model took part (usage.iterations)")
    compaction: int = _key(0, _whole(MOST_TOKENS), "output tokens of a compaction beforehand (usage.iterations)")
    iterations: bool = _key(False, _flag, "usage.iterations is given even where there was only one")
    nousage: bool = _key(False, _flag, "the closing message_delta, or the message, has no usage")
    nostop: bool = _key(False, _flag, "a stream ends cleanly, but without message_stop")
    batch_seconds: float = _key(0.0, _number, "a batch created now ends after so many seconds")
    # When
    ttft: float = _key(0.0, _number, "seconds from the request's end to the answer's head")
    tps: float = _key(0.0, _number, "events per second, on a schedule that does not wait for the client; 0: flood")
    # In what form
    framing: str | None = _key(
        None, _one_of("chunked", "length", "close"), "how the body is delimited: chunked, length or close"
    )
    coding: str | None = _key(
        None,
        _one_of("gzip", "deflate", "br", "zstd", "accept"),
        "gzip, deflate, br or zstd, flushed with each event, whatever the client accepts; accept: what it accepts",
    )
    chunk: int = _key(0, _whole(MOST_BYTES), "cut the body into pieces of this many bytes, wherever events end")
    eol: str = _key("lf", _one_of("lf", "crlf", "cr"), "line ends of a stream: lf, crlf or cr")
    odd: bool = _key(False, _flag, "legal oddities: comments, unknown events and fields, escapes, spaces, 1.0 for 1")
    junk: bool = _key(False, _flag, "an unknown event with NUL, broken UTF-8 and a lone surrogate")
    line: int = _key(0, _whole(MOST_BYTES), "an unknown event with one line this long; with a coding, a bomb")
    head: int = _key(0, _whole(1_000_000), "this many bytes of further response headers")
    informational: bool = _key(False, _flag, "100 and 103 before the answer")
    http10: bool = _key(False, _flag, "answer as HTTP/1.0")
    corrupt: bool = _key(False, _flag, "the last byte of the body is wrong: a checksum that does not fit")
    trailing: bool = _key(False, _flag, "a second, unasked answer right after the answer")
    # How it goes wrong
    status: int = _key(0, _status, "refuse with this status; a 413 is a web page, as from Cloudflare")
    fail: int = _key(0, _whole(), "refuse the first so many requests with the same id, then serve")
    id: str = _key("", str, "names the requests that `fail` counts together")
    retry_after: int = _key(1, _whole(), "the retry-after header of a 429")
    error_after: Place | None = _key(None, _place, "an `error` event after so many events, then a clean end")
    cut_after: Place | None = _key(None, _place, "the connection closes after so many events, or bytes (700b)")
    reset_after: Place | None = _key(None, _place, "the connection is reset after so many events, or bytes")
    stall_after: Place | None = _key(None, _place, "silence after so many events, or bytes, until the client leaves")
    pings: float = _key(0.0, _number, "while stalled, a ping every so many seconds")
    head_stall: bool = _key(False, _flag, "no answer at all, until the client leaves")
    close_before_head: bool = _key(False, _flag, "the connection closes instead of an answer")
    reset_before_head: bool = _key(False, _flag, "the connection is reset instead of an answer")
    early_answer: int = _key(0, _status, "refuse with this status before the body is read, and read no further")
    hangup: bool = _key(False, _flag, "close the connection after the answer without having said so")

    def with_(self, text: str) -> Script:
        """This script, changed by what `text` says.

        Raises:
            ValueError: with a sentence that names the key at fault and, for an unknown one, the nearest known.
        """
        changes: dict[str, Any] = dict(_pair(part) for part in re.split(r"[;\s]+", text) if part)
        return dataclasses.replace(self, **changes)


KEYS = {field.name: field for field in dataclasses.fields(Script)}


def _pair(part: str) -> tuple[str, object]:
    name, equals, value = part.partition("=")
    if name not in KEYS:
        near = difflib.get_close_matches(name, KEYS, n=1)
        raise ValueError(f"unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    read: Callable[[str], object] = KEYS[name].metadata["read"]
    try:
        return name, read(value if equals else "1")
    except ValueError as fault:
        raise ValueError(f"{name}={value}: {fault}") from fault
