"""Where the base64 data of images and documents stands in a body, found without reading the body as JSON.

A span is the text of a string value, of at least 1,024 bytes, of a member named `data`. It holds no quote and no escape
but `\\/`, so a name or a mark that stands anywhere in the body never stands within one, and what is left when it is cut
out is the same JSON with other strings. Whether it is base64 is for the reader to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_LEAST: Final = 1_024
_DATA: Final = re.compile(rb'"data"[ \t\n\r]*:[ \t\n\r]*"')
_OURS: Final = re.compile(rb'"(?:#|\\u0023)(?:[0-9]|\\u003[0-9])')  # the beginning of a name, in any spelling


def data_spans(body: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each span, in their order."""
    if len(body) < _LEAST:
        return
    end = 0
    while (found := _DATA.search(body, end)) is not None:
        start = found.end()
        end = body.find(b'"', start)
        if end < 0:
            return
        if end - start >= _LEAST and _no_escape(body, start, end):
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
