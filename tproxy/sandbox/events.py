"""An answer as a stream of server-sent events (API reference, "Streaming Messages").

Plain events are in the wire form that the API uses: compact JSON, but a space in a ping. The form that `odd` asks for
is as legal, and as far from that as can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from tproxy.sandbox.body import Body
from tproxy.sandbox.messages import Answer
from tproxy.sandbox.script import Script

# An event before it is put in bytes: its name, its JSON, the output tokens that are complete with it.
Event = tuple[str, dict[str, Any], int]

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
OVERLOADED = {"type": "error", "error": {"details": None, "type": "overloaded_error", "message": "Overloaded"}}

# NUL, bytes that are no UTF-8, half a surrogate pair.
_JUNK = b'event: junk\ndata: {"type":"junk","nul":"\x00","bytes":"\xff\xfe\xc3","half":"\\ud83d"}\n\n'
_FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LETTER = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|e")
_EOL = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def streamed(answer: Answer, script: Script, request_id: str) -> Body:
    """The whole stream of an answer, one piece for each event.

    With `error_after` in the script, an `error` event takes the place of what comes after it.
    """
    pieces: list[tuple[bytes, int]] = []
    encode = _odd if script.odd else _plain
    for number, (name, event, tokens) in enumerate(_events(answer, script)):
        if script.error_after is not None and number == script.error_after.number:
            break
        pieces.append((encode(number, name, event), tokens))
        if number == 0:
            pieces += _unknown(script)
    if script.error_after is not None:
        pieces.append((encode(5, "error", OVERLOADED | {"request_id": request_id}), 0))
    if script.eol != "lf":
        pieces = [(data.replace(b"\n", _EOL[script.eol]), tokens) for data, tokens in pieces]
    return Body.of(pieces)


def _events(answer: Answer, script: Script) -> Iterator[Event]:
    yield "message_start", {"type": "message_start", "message": answer.opening()}, 0
    for index, block in enumerate(answer.blocks):
        yield "content_block_start", _block("content_block_start", index, content_block=block.start), 0
        if index == 0:
            yield "ping", {"type": "ping"}, 0
        for kind, text, tokens in block.deltas:
            delta = {"type": kind, _FIELDS.get(kind, "partial_json"): text}
            yield "content_block_delta", _block("content_block_delta", index, delta=delta), tokens
        yield "content_block_stop", _block("content_block_stop", index), 0
    delta_event: dict[str, Any] = {"type": "message_delta", "delta": answer.stop}
    if answer.usage_delta is not None:
        delta_event["usage"] = answer.usage_delta
    if answer.context_management is not None:
        delta_event["context_management"] = answer.context_management
    yield "message_delta", delta_event, 0
    if not script.nostop:
        yield "message_stop", {"type": "message_stop"}, 0


def _block(kind: str, index: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, **more}


def _plain(number: int, name: str, event: dict[str, Any]) -> bytes:
    if name == "content_block_delta":
        return _delta(event["index"], *event["delta"].items())
    if name == "ping":
        return PING
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(event))


@lru_cache(maxsize=8192)
def _delta(index: int, kind: tuple[str, str], text: tuple[str, str]) -> bytes:
    """Kept, since a thousand streams of the same words are the same few thousand events."""
    event = _block("content_block_delta", index, delta=dict((kind, text)))
    return b"event: content_block_delta\ndata: %b\n\n" % msgspec.json.encode(event)


def _odd(number: int, name: str, event: dict[str, Any]) -> bytes:
    """An event in a form that says the same in another way; which, goes by its number."""
    event = {"x_unknown": {"nested": [1, None, {"type": "message_stop"}]}} | _floated(event)
    match number % 5:
        case 0:  # with a comment before it, and every letter that can be escaped, escaped
            text = json.dumps(event, ensure_ascii=True)
            bom = b"" if number else b"\xef\xbb\xbf"
            return b"%b: a comment\nevent: %b\ndata: %b\n\n" % (bom, name.encode(), _escaped(text).encode())
        case 1:  # no space after the colons, the data first
            return b"data:%b\nevent:%b\n\n" % (_utf8(event), name.encode())
        case 2:  # the data on several lines, with an id and a retry
            text = json.dumps(event, ensure_ascii=False, indent=1)
            lines = b"".join(b"data: %b\n" % line.encode() for line in text.split("\n"))
            return b"id: %d\nretry: 3000\nevent: %b\n%b\n" % (number, name.encode(), lines)
        case 3:  # an event of an unknown kind and an empty one before it
            unknown = b'event: weather_report\ndata: {"type": "weather_report", "wind": 4}\n\nevent: nothing\n\n'
            return b"%bevent: %b\ndata: %b\n\n" % (unknown, name.encode(), _utf8(event))
    # an event name given twice (the last counts), an unknown field, blanks around the JSON
    return b"event: other\nfield: x\nevent: %b\ndata:   %b \n\n" % (name.encode(), _utf8(event))


def _utf8(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(" , ", " : ")).encode()


def _floated(value: Any) -> Any:
    """With every count that is not an index as a float: JSON knows one kind of number."""
    if isinstance(value, dict):
        return {
            name: float(member) if type(member) is int and name != "index" else _floated(member)
            for name, member in value.items()
        }
    return [_floated(member) for member in value] if isinstance(value, list) else value


def _escaped(text: str) -> str:
    r"""JSON with each letter `e` of its strings, names too, written as `\u0065`."""
    return _STRING.sub(
        lambda string: _LETTER.sub(lambda sign: "\\u0065" if sign[0] == "e" else sign[0], string[0]), text
    )


def _unknown(script: Script) -> list[tuple[bytes, int]]:
    """The unknown events that a script adds after the first event."""
    extra: list[tuple[bytes, int]] = []
    if script.junk:
        extra.append((_JUNK, 0))
    if script.line:
        extra.append((b"event: long\ndata: %b\n\n" % (b"a" * script.line), 0))
    return extra
