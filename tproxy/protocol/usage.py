"""What an answer says that it cost: read from the events of a stream, or from a whole JSON answer.

The rule is that of the official SDKs: begin with `message_start.usage`; every value of a `message_delta` that is not
null overwrites it, none is added; what a `message_delta` does not name stays. `usage` may be missing from a
`message_delta`, and there may be several. The upstream's last word on `output_tokens` is thus the last
`message_delta`; without one, they are at least what was delivered, of which an estimate is kept (`tokens`).

Nothing that the upstream sends raises here. An event of an unknown type, and a value of a wrong type, is passed over
and counted in `odd`. No event takes long: a usage, or content, of a size that no answer has is odd as a whole.
Not known here: prices; how the connection ended; the framing of events (`sse`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import msgspec
from msgspec import Raw

from tproxy.protocol.counts import Iteration, MergedUsage, Usage
from tproxy.protocol.tokens import TokenCounter

__all__ = ["Iteration", "Outcome", "Usage", "UsageReader"]

_MAX_TEXT = 256
_MAX_BLOCKS = 100_000
_MAX_COUNTED = 64 * 1024  # characters of one delta
T = TypeVar("T")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
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
        odd_usage: some of them were part of a usage, or one of its figures is missing: `usage` may tell too little.
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
    odd_usage: bool


_ABSENT = Raw()


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
    to: Raw = _ABSENT  # of a fallback


class _Object(msgspec.Struct):
    """An event, a message, an error: its values are read one by one, so that an odd one spoils no other."""

    type: Raw = _ABSENT
    id: Raw = _ABSENT
    model: Raw = _ABSENT
    content: Raw = _ABSENT
    content_block: Raw = _ABSENT
    delta: Raw = _ABSENT
    message: Raw = _ABSENT
    stop_reason: Raw = _ABSENT
    usage: Raw = _ABSENT
    error: Raw = _ABSENT


_NULL = Raw(b"null")
_decode_delta = msgspec.json.Decoder(_DeltaEvent).decode
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_blocks = msgspec.json.Decoder(list[_Block]).decode
_decode_text = msgspec.json.Decoder(str).decode

# Blocks that hold no output before a delta comes; `fallback` never holds any.
_EMPTY_AT_START = frozenset({"text", "thinking", "compaction", "fallback"})
_SILENT = frozenset({"ping", "content_block_stop"})


class UsageReader:
    """Reads one answer: the events of a stream through `feed_event`, or a whole body through `feed_json`."""

    def __init__(self) -> None:
        self.first_content_seen = False
        self._usage = MergedUsage()
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
                step(self, _decode_object(data))
            elif event_name not in _SILENT:
                self._odd += 1
        except (ValueError, RecursionError):
            if event_name in ("message_start", "message_delta"):
                self._usage.odd += 1  # which they hold
            else:
                self._odd += 1
            self._output_seen = True  # it may have been; a refusal is then booked as billed
            self._final = False

    def feed_json(self, body: bytes) -> None:
        """Take the whole body of an answer that is not a stream. Only a `message` has a usage that is billed."""
        try:
            answer = _decode_object(body)
        except (ValueError, RecursionError):
            self._odd += 1
            return
        self._stopped = True
        self._final = True
        self._error(answer)
        if self._text(answer.type) == "message":
            self._message(answer)
            crowded = bytes(answer.content).count(b"{") > _MAX_BLOCKS
            blocks = None if crowded else self._read(answer.content, _decode_blocks)
            self._output_seen = blocks is None or any(map(_holds_output, blocks))
            for block in blocks or ():
                self._fallback(block)

    def outcome(self) -> Outcome:
        """What is known now. May be asked at any time, and again."""
        model = self._model
        usage, doubtful = self._usage.read(final=self._final)
        for iteration in (usage.iterations if usage else None) or ():
            if iteration.kind == "fallback_message":  # the one that served; there need not be a block for it
                model = iteration.model or model
        return Outcome(
            usage=usage,
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
            odd=self._odd + self._usage.odd,
            odd_usage=doubtful,
        )

    def _content_block_delta(self, data: bytes) -> None:
        self.first_content_seen = True
        self._final = False
        delta = _decode_delta(data).delta
        text = delta.text or delta.thinking or delta.partial_json or delta.content
        if text:
            self._output_seen = True
            self._counter.feed(delta.type, text[:_MAX_COUNTED])
        elif delta.type == "signature_delta":  # of thinking that is not shown
            self._output_seen = True

    def _content_block_start(self, event: _Object) -> None:
        self.first_content_seen = True
        self._final = False
        block = self._read(event.content_block, _decode_block) or _Block()
        if block.name:
            self._counter.tool_call(block.name[:_MAX_TEXT])
        elif block.text:
            self._counter.feed("text_delta", block.text[:_MAX_COUNTED])
        if block.text or block.type not in _EMPTY_AT_START:
            self._output_seen = True
        self._fallback(block)

    def _message_start(self, event: _Object) -> None:
        self._started = True
        self._message(self._object(event.message))

    def _message_delta(self, event: _Object) -> None:
        self._stop_reason = self._text(self._object(event.delta).stop_reason) or self._stop_reason
        self._final = self._usage.merge(event.usage) or self._final

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
        self._usage.merge(message.usage)

    def _fallback(self, block: _Block) -> None:
        """A `fallback` block names the model that goes on from there."""
        if block.type == "fallback":
            self._model = self._text(self._object(block.to).model) or self._model

    def _read(self, raw: Raw, decode: Callable[[Raw], T]) -> T | None:
        """A value by itself, or `None` where it is absent, null or, which is odd, of another kind."""
        if raw is _ABSENT or raw == _NULL:
            return None
        try:
            return decode(raw)
        except (ValueError, RecursionError):
            self._odd += 1
            return None

    def _object(self, raw: Raw) -> _Object:
        return self._read(raw, _decode_object) or _Object()

    def _text(self, raw: Raw) -> str | None:
        text = self._read(raw, _decode_text)
        return text[:_MAX_TEXT] if text else None


def _holds_output(block: _Block) -> bool:
    return block.type != "fallback" and (block.type != "text" or bool(block.text))
