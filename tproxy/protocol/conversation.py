"""An answer as the message that it was: the events of a stream joined, as the official SDKs do it.

`message_start` gives the message; a `content_block_start` a block, which its deltas fill; a `message_delta` the reason
of the end, and those usage figures that it names. What an SDK would pass over is kept: a delta that does not belong
to its block stands in the block's `deltas`, and the input of a tool call that is no whole JSON is mended (`mended`), or
stands there as its text.

A stream that is cut gives the message as far as it came. Nothing raises, whatever the events hold; what cannot be used
is counted in `odd`. Time and memory are linear in the bytes.

Not known here: prices, redaction, where the bytes come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from tproxy.protocol.sse import Event, SSEOverflow, SSEParser

_FIRST_LINE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:event|data|id|retry|):")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?P<end>"?)|[{}\[\],]', re.DOTALL)
_HALF_ESCAPE = re.compile(r"(?:\\u[dD][89aAbB][0-9a-fA-F]{2})?(?:\\u[0-9a-fA-F]{0,3})?$")
_MENDABLE = 256  # levels
_decode = msgspec.json.decode
_SILENT = frozenset({"ping", "content_block_stop", "message_stop"})
# Of a block that is filled by deltas: the delta's type, its member, and whether it is added or put in its place.
_ADDED = {"text_delta": "text", "thinking_delta": "thinking"}
_PUT = {"signature_delta": ("signature",), "compaction_delta": ("content", "encrypted_content")}
_OWNERS = {"text_delta": "text", "citations_delta": "text", "thinking_delta": "thinking"}
_OWNERS |= {"signature_delta": "thinking", "compaction_delta": "compaction"}


class Joined(msgspec.Struct, frozen=True):
    """What the events of a stream came to.

    Attributes:
        message: None where there was no `message_start`.
        complete: its `message_stop` was seen.
        error: that of an `error` event, which ends a stream.
        odd: how many events could not be used.
    """

    message: dict[str, Any] | None
    complete: bool = False
    error: Any = None
    odd: int = 0


class _Block:
    """One block of content while it is filled."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.parts: dict[str, list[str]] = {}

    def take(self, delta: Mapping[str, Any]) -> None:
        kind, fields = delta.get("type"), self.fields
        if not isinstance(kind, str) or _OWNERS.get(kind, fields.get("type")) != fields.get("type"):
            kind = ""
        if kind == "input_json_delta" and isinstance(delta.get("partial_json"), str):
            self.parts.setdefault("input", []).append(delta["partial_json"])
        elif kind in _ADDED and isinstance(delta.get(_ADDED[kind]), str):
            self.parts.setdefault(_ADDED[kind], []).append(delta[_ADDED[kind]])
        elif kind == "citations_delta" and "citation" in delta:
            cited = fields.get("citations")
            if not isinstance(cited, list):
                cited = fields["citations"] = []
            cited.append(delta["citation"])
        elif kind in _PUT:
            fields.update({name: delta.get(name) for name in _PUT[kind]})
        else:
            fields.setdefault("deltas", []).append(dict(delta))

    def whole(self) -> dict[str, Any]:
        fields = dict(self.fields)
        for name, parts in self.parts.items():
            text = "".join(parts)
            if name != "input":
                before = fields.get(name)
                fields[name] = (before if isinstance(before, str) else "") + text
            elif text:
                value = mended(text)
                fields[name] = text if value is None else value
        return fields


class Joiner:
    """Takes the events of one stream, in their order."""

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}
        self._complete = False
        self._error: Any = None
        self._odd = 0

    def feed(self, name: str, data: bytes) -> None:
        """Take one event: its name, and its data, which should be one JSON object."""
        if name == "message_stop":
            self._complete = self._message is not None
        if name in _SILENT:
            return
        try:
            event = _decode(data)
            self._STEPS[name](self, event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._odd += 1

    def joined(self) -> Joined:
        """What they came to so far."""
        message = self._message
        if message is not None:
            message = message | {"content": [block.whole() for block in self._blocks.values()]}
        return Joined(message, self._complete and self._error is None, self._error, self._odd)

    def _start(self, event: dict[str, Any]) -> None:
        message = dict(event["message"])
        usage = message.get("usage")
        self._message = message | {"usage": dict(usage) if isinstance(usage, dict) else usage}
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        self._blocks = {place: _Block(dict(block)) for place, block in enumerate(blocks)}

    def _block_start(self, event: dict[str, Any]) -> None:
        message, block = self._message, dict(event["content_block"])
        if message is None:
            raise ValueError
        self._blocks[int(event["index"])] = _Block(block)
        to = block.get("to")
        if block.get("type") == "fallback" and isinstance(to, dict):
            message["model"] = to.get("model", message.get("model"))

    def _block_delta(self, event: dict[str, Any]) -> None:
        self._blocks[event["index"]].take(event["delta"])

    def _message_delta(self, event: dict[str, Any]) -> None:
        message = self._message
        if message is None:
            raise ValueError
        delta, usage = dict(event.get("delta") or {}), dict(event.get("usage") or {})
        if delta.get("container") is None:
            delta.pop("container", None)
        message.update(delta)
        message.update({k: v for k, v in event.items() if k not in ("type", "delta", "usage") and v is not None})
        if usage:
            before = message.get("usage")
            figures = {name: value for name, value in usage.items() if value is not None}
            message["usage"] = (before if isinstance(before, dict) else {}) | figures

    def _failed(self, event: dict[str, Any]) -> None:
        self._error = event["error"]

    _STEPS: ClassVar[Mapping[str, Callable[[Joiner, dict[str, Any]], None]]] = {
        "message_start": _start,
        "content_block_start": _block_start,
        "content_block_delta": _block_delta,
        "message_delta": _message_delta,
        "error": _failed,
    }


def is_stream(body: bytes) -> bool:
    """Whether a body reads as an event stream does, by its first line."""
    return _FIRST_LINE.match(body[:1024]) is not None


def join(body: bytes) -> Joined:
    """A stream's message; that of a part of a stream, as far as it came."""
    joiner, parser, odd = Joiner(), SSEParser(), 0
    events: list[Event] = []
    try:
        events = parser.feed(body)
    except SSEOverflow as fault:
        events, odd = list(fault.events), 1
    for event in events:
        joiner.feed(event.event, event.data)
    joined = joiner.joined()
    return msgspec.structs.replace(joined, odd=joined.odd + odd) if odd else joined


def mended(text: str) -> Any:
    """The value of a JSON text; of the beginning of one, what is there of it. None where there is nothing to be had.

    A string that was cut ends where it was cut; a number, word or name that may be a part of one is left out.
    """
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        pass
    open_ones: list[str] = []
    candidates: list[str] = []
    kept, last = 0, ""  # up to `kept` the text is whole, once what is open there is closed
    end = 0
    for token in _TOKEN.finditer(text):
        sign, end = token[0], token.end()
        last = sign if sign[0] != '"' else "closed" if token["end"] else "cut"
        if last in ("closed", "cut"):
            continue
        if sign == ",":
            end = token.start()
        elif sign in "{[":
            open_ones.append("}" if sign == "{" else "]")
        elif open_ones:
            open_ones.pop()
        if len(open_ones) > _MENDABLE:
            return None
        kept = end
    closing = "".join(reversed(open_ones))  # nothing after `kept` opens or closes
    if last == "closed" and not text[end:].strip():
        candidates.append(text[:end] + closing)
    elif last == "cut":
        candidates += [text[:end] + '"' + closing, _HALF_ESCAPE.sub("", text[:end]) + '"' + closing]
    if kept:
        candidates.append(text[:kept] + closing)
    for candidate in candidates:
        try:
            return _decode(candidate)
        except (ValueError, RecursionError):
            continue
    return None
