"""Where the base64 data of images and documents stands in a body, found without reading the body as JSON.

A span is the text of a string value, of at least 1,024 bytes, of a member named `data`. It holds no quote and no escape
but `\\/`, so a name or a mark that stands anywhere in the body never stands within one, and what is left when it is cut
out is the same JSON with other strings. Whether it is base64 is for the reader to say.

All of this takes a few passes over the body at most, whatever it holds: after so many spans, the rest is left as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_LEAST: Final = 1_024
_MOST: Final = 4_096  # several times as many as the upstream takes in a request
_DATA: Final = re.compile(rb'"data"[ \t\n\r]*+:[ \t\n\r]*+"(?=[^"]{1024})')
_OURS: Final = re.compile(rb'"(?:#|\\u0023)(?:[0-9]|\\u003[0-9])')  # the beginning of a name, in any spelling

_MARKS: Final = (b"{", b"[", b",")


def data_spans(body: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each span, in their order; of the first 4,096 that may be one."""
    if len(body) < _LEAST:
        return
    end = 0
    for _ in range(_MOST):
        found = _DATA.search(body, end)
        if found is None:
            return
        start = found.end()
        end = body.find(b'"', start)
        if end < 0:
            return
        if _no_escape(body, start, end):
            yield start, end


def _no_escape(body: bytes, start: int, end: int) -> bool:
    if body.find(b"\\", start, end) < 0:
        return True
    return body.count(b"\\", start, end) == body.count(b"\\/", start, end)


def cut(body: bytes) -> tuple[bytes, dict[str, int]]:
    """Put a short name in the place of each span.

    Returns:
        The body with the names, and how many bytes each name stands for. A body that has no span, or in which such a
        name stands already, is returned as it is.
    """
    pieces: list[bytes] = []
    lengths: dict[str, int] = {}
    done = 0
    for start, end in data_spans(body):
        pieces.append(body[done:start])
        lengths[f"#{len(lengths)}"] = end - start
        done = end
    if not lengths:
        return body, {}
    pieces.append(body[done:])
    if _OURS.search(b"".join(pieces)):
        return body, {}
    joined = b"".join(piece + name.encode() for piece, name in zip(pieces, lengths, strict=False))
    return joined + pieces[-1], lengths


def count_values(body: bytes, most: int) -> int:
    """How many values a JSON body may hold, told without building them: its objects, lists and commas.

    Never less than there are before the first fault in it. What stands in strings counts too, as long as that makes no
    more than `most`.
    """
    within = sum(body.count(mark) for mark in _MARKS)
    if within <= most:
        return within + 1
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # now each quote begins or ends a string
    quotes = plain.count(b'"')
    if quotes > 4 * most:  # a name and a value for each mark
        return quotes // 4 + 1
    outside = b"".join(plain.split(b'"')[::2])
    return sum(outside.count(mark) for mark in _MARKS) + 1
