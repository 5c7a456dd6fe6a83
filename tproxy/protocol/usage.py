"""What an answer says that it cost: read from the events of a stream, or from a whole JSON answer.

The rule is that of the official SDKs: begin with `message_start.usage`; every value of a `message_delta` that is not
null overwrites it, none is added; what a `message_delta` does not name stays. `usage` may be missing from a
`message_delta`, and there may be several. The upstream's last word on `output_tokens` is thus the last
`message_delta`; without one, they are at least what was delivered, of which an estimate is kept (`tokens`).

Nothing that the upstream sends raises here. An event of an unknown type, and a value of a wrong type, is passed over
and counted in `odd`.
Not known here: prices; how the connection ended; the framing of events (`sse`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import Raw

from tproxy.protocol.tokens import TokenCounter

_MAX_TEXT = 256
_MAX_INTEGER = 2**53
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens by class. `input_tokens` is the uncached part; `thinking_tokens` are a part of `output_tokens`.

    A cache write whose lifetime is not told is one of five minutes.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    thinking_tokens: int | None = None
    web_searches: int | None = None
    web_fetches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration(Counts):
    """One run of a model within an answer. `kind` is `message`, `fallback_message`, `compaction` or
    `advisor_message`; `model` is `None` where the answer does not name it: it is then the model asked for."""

    kind: str
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(Counts):
    """The `usage` of one answer (API reference, "Messages").

    The top level is the sum of the `message` iterations or, after a fallback, the attempt that served, and leaves out
    compaction and advisors. Where there are `iterations`, they are what is billed; given only once they are final.
    """

    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None
    iterations: tuple[Iteration, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of an answer so far, or at its end.

    Attributes:
        usage: as merged; `None` where the upstream said nothing. Figures that are not `final` are a lower bound.
        model: the model that served, after a fallback the last one.
        refused_unbilled: a refusal before any output; it is not billed, though its usage is not zero.
        error_type: the type of an `error` event or of an error body.
        started: a `message_start` was seen.
        stopped: the `message_stop`, or a whole JSON answer, was seen.
        final: `usage.output_tokens` is the upstream's last word: nothing was delivered after it.
        delivered_tokens: an estimate of the output in the deltas of a stream.
        odd: how many events and values were passed over.
    """

    usage: Usage | None
    model: str | None
    message_id: str | None
    stop_reason: str | None
    refused_unbilled: bool
    error_type: str | None
    started: bool
    stopped: bool
    final: bool
    delivered_tokens: int
    first_content_seen: bool
    odd: int


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    content: str | None = None  # of a compaction


class _DeltaEvent(msgspec.Struct, gc=False):
    delta: _Delta


class _Block(msgspec.Struct):
    type: str = ""
    name: str | None = None  # of a tool call, whoever runs it
    text: str | None = None
    to: Raw = Raw()  # of a fallback


class _Object(msgspec.Struct):
    """An event, a message, an error: its values are read one by one, so that an odd one spoils no other."""

    type: Raw = Raw()
    id: Raw = Raw()
    model: Raw = Raw()
    content: Raw = Raw()
    content_block: Raw = Raw()
    delta: Raw = Raw()
    message: Raw = Raw()
    stop_reason: Raw = Raw()
    usage: Raw = Raw()
    error: Raw = Raw()


_NULL = Raw(b"null")
_decode_delta = msgspec.json.Decoder(_DeltaEvent).decode

# Blocks that hold no output before a delta comes; `fallback` never holds any.
_EMPTY_AT_START = frozenset({"text", "thinking", "compaction", "fallback"})
_SILENT = frozenset({"ping", "content_block_stop"})
_CACHE_WRITES = "cache_writes"  # of both lifetimes

# Where a value stands in a usage object (the object within it, if any, and the name), and our name for it.
_COUNTS = (
    ("", "input_tokens", "input_tokens"),
    ("", "output_tokens", "output_tokens"),
    ("", "cache_read_input_tokens", "cache_read_tokens"),
    ("", "cache_creation_input_tokens", _CACHE_WRITES),
    ("cache_creation", "ephemeral_5m_input_tokens", "cache_write_5m_tokens"),
    ("cache_creation", "ephemeral_1h_input_tokens", "cache_write_1h_tokens"),
    ("output_tokens_details", "thinking_tokens", "thinking_tokens"),
    ("server_tool_use", "web_search_requests", "web_searches"),
    ("server_tool_use", "web_fetch_requests", "web_fetches"),
)
_TEXTS = (("service_tier", "service_tier"), ("speed", "speed"), ("inference_geo", "geo"))


class UsageReader:
    """Reads one answer: the events of a stream through `feed_event`, or a whole body through `feed_json`."""

    def __init__(self) -> None:
        self.first_content_seen = False
        self._usage: dict[str, Any] = {}
        self._iterations: tuple[Iteration, ...] = ()
        self._model: str | None = None
        self._message_id: str | None = None
        self._stop_reason: str | None = None
        self._error_type: str | None = None
        self._started = False
        self._stopped = False
        self._final = False
        self._output_seen = False
        self._counter = TokenCounter()
        self._odd = 0

    def feed_event(self, event_name: str, data: bytes) -> None:
        """Take one event of a stream: its name, and its data, which should be one JSON object."""
        try:
            if event_name == "content_block_delta":
                self._content_block_delta(data)
            elif event_name == "message_stop":
                self._stopped = True
            elif (step := self._STEPS.get(event_name)) is not None:
                step(self, msgspec.json.decode(data, type=_Object))
            elif event_name not in _SILENT:
                self._odd += 1
        except (ValueError, RecursionError):
            self._odd += 1
            self._output_seen = True  # it may have been; a refusal is then booked as billed

    def feed_json(self, body: bytes) -> None:
        """Take the whole body of an answer that is not a stream. Only a `message` has a usage that is billed."""
        try:
            answer = msgspec.json.decode(body, type=_Object)
        except (ValueError, RecursionError):
            self._odd += 1
            return
        self._stopped = True
        self._final = True
        self._error(answer)
        if self._text(answer.type) == "message":
            self._message(answer)
            blocks = self._read(answer.content, list[_Block])
            self._output_seen = blocks is None or any(map(_holds_output, blocks))
            for block in blocks or ():
                self._fallback(block)

    def outcome(self) -> Outcome:
        """What is known now. May be asked at any time, and again."""
        model = self._model
        iterations = self._iterations if self._final else ()
        for iteration in iterations:
            if iteration.kind == "fallback_message":  # the one that served; there need not be a block for it
                model = iteration.model or model
        return Outcome(
            usage=Usage(iterations=iterations or None, **_split(self._usage)) if self._usage else None,
            model=model,
            message_id=self._message_id,
            stop_reason=self._stop_reason,
            refused_unbilled=self._stop_reason == "refusal" and not self._output_seen,
            error_type=self._error_type,
            started=self._started,
            stopped=self._stopped,
            final=self._final,
            delivered_tokens=self._counter.tokens(model),
            first_content_seen=self.first_content_seen,
            odd=self._odd,
        )

    def _content_block_delta(self, data: bytes) -> None:
        self.first_content_seen = True
        delta = _decode_delta(data).delta
        text = delta.text or delta.thinking or delta.partial_json or delta.content
        if text:
            self._output_seen = True
            self._counter.feed(delta.type, text)
        elif delta.type == "signature_delta":  # of thinking that is not shown
            self._output_seen = True

    def _content_block_start(self, event: _Object) -> None:
        self.first_content_seen = True
        self._final = False
        block = self._read(event.content_block, _Block) or _Block()
        if block.name:
            self._counter.tool_call(block.name)
        elif block.text:
            self._counter.feed("text_delta", block.text)
        if block.text or block.type not in _EMPTY_AT_START:
            self._output_seen = True
        self._fallback(block)

    def _message_start(self, event: _Object) -> None:
        self._started = True
        self._message(self._object(event.message))

    def _message_delta(self, event: _Object) -> None:
        self._stop_reason = self._text(self._object(event.delta).stop_reason) or self._stop_reason
        usage = self._read(event.usage, dict[str, Any]) or {}
        self._merge(usage)
        self._final = self._final or _count(usage.get("output_tokens")) is not None

    def _error(self, event: _Object) -> None:
        self._error_type = self._text(self._object(event.error).type)

    _STEPS: ClassVar[Mapping[str, Callable[[UsageReader, _Object], None]]] = {
        "content_block_start": _content_block_start,
        "message_start": _message_start,
        "message_delta": _message_delta,
        "error": _error,
    }

    def _message(self, message: _Object) -> None:
        self._message_id = self._text(message.id)
        self._model = self._text(message.model)
        self._stop_reason = self._text(message.stop_reason)
        self._merge(self._read(message.usage, dict[str, Any]) or {})

    def _fallback(self, block: _Block) -> None:
        """A `fallback` block names the model that goes on from there."""
        if block.type == "fallback":
            self._model = self._text(self._object(block.to).model) or self._model

    def _merge(self, usage: dict[str, Any]) -> None:
        self._merge_counts(usage, self._usage)
        for name, field in _TEXTS:
            value = usage.get(name)
            if isinstance(value, str):
                self._usage[field] = value[:_MAX_TEXT]
            elif value is not None:
                self._odd += 1
        iterations = usage.get("iterations")
        if isinstance(iterations, list):
            self._iterations = tuple(found for item in iterations if (found := self._iteration(item)))
        elif iterations is not None:
            self._odd += 1

    def _merge_counts(self, usage: dict[str, Any], into: dict[str, Any]) -> None:
        for group, name, field in _COUNTS:
            holder = usage.get(group) if group else usage
            value = holder.get(name) if isinstance(holder, dict) else holder
            if isinstance(holder, dict) and (count := _count(value)) is not None:
                into[field] = count
            elif value is not None:
                self._odd += 1

    def _iteration(self, item: object) -> Iteration | None:
        if not isinstance(item, dict) or not isinstance(kind := item.get("type"), str):
            self._odd += 1
            return None
        model, counts = item.get("model"), dict[str, Any]()
        self._merge_counts(item, counts)
        return Iteration(kind=kind, model=model if isinstance(model, str) else None, **_split(counts))

    def _read(self, raw: Raw, kind: type[T]) -> T | None:
        """A value by itself, or `None` where it is absent, null or, which is odd, of another kind."""
        if not len(memoryview(raw)) or raw == _NULL:
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except (ValueError, RecursionError):
            self._odd += 1
            return None

    def _object(self, raw: Raw) -> _Object:
        return self._read(raw, _Object) or _Object()

    def _text(self, raw: Raw) -> str | None:
        text = self._read(raw, str)
        return text[:_MAX_TEXT] if text else None


def _count(value: object) -> int | None:
    """A count, which JSON may also spell `5.0`."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MAX_INTEGER else None


def _holds_output(block: _Block) -> bool:
    return block.type != "fallback" and (block.type != "text" or bool(block.text))


def _split(values: dict[str, Any]) -> dict[str, Any]:
    """The values with their cache writes by lifetime. The total is a later word than the split: what is above the
    split goes to the five minutes, as does all of it where there is no split."""
    total = values.get(_CACHE_WRITES)
    if total is None:
        return values
    long = min(values.get("cache_write_1h_tokens", 0), total)
    told = {name: value for name, value in values.items() if name != _CACHE_WRITES}
    return told | {"cache_write_5m_tokens": total - long, "cache_write_1h_tokens": long}
