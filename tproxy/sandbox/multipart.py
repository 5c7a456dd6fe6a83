"""A multipart/form-data body read as it comes (RFC 7578): a large upload is hashed, never held.

PREAMBLE ──boundary──► HEAD ──blank line──► DATA ──boundary──► HEAD …
                                                 ──boundary, "--"──► END
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from tproxy.sandbox.errors import invalid

_MOST_HEAD = 16 * 1024


@dataclass(slots=True)
class Part:
    """One part. `content` is the beginning of it, up to the reader's `keep`."""

    name: str
    filename: str | None
    mime_type: str
    size: int = 0
    content: bytearray = field(default_factory=bytearray)
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        digest: str = self.digest.hexdigest()
        return digest


class _State(enum.Enum):
    PREAMBLE = enum.auto()
    HEAD = enum.auto()
    DATA = enum.auto()
    END = enum.auto()


class MultipartReader:
    """Feed it the body; `parts` then has them in order.

    Args:
        content_type: the request's Content-Type, with its boundary.
        keep: bytes of each part's content that are held.

    Raises:
        ApiError: 400, here and in `feed` and `close`, for what is no multipart/form-data.
    """

    def __init__(self, content_type: bytes, *, keep: int) -> None:
        header = Message()
        header["content-type"] = content_type.decode("latin-1")
        boundary = header.get_param("boundary")
        if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
            raise invalid("Expected multipart/form-data with a boundary")
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._keep = keep
        self._state = _State.PREAMBLE
        self._buffer = bytearray(b"\r\n")  # the first boundary has no line end before it
        self.parts: list[Part] = []

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self._step():
            pass

    def close(self) -> None:
        """No more comes."""
        if self._state is not _State.END:
            raise invalid("The multipart body ends before its last boundary")

    def _step(self) -> bool:
        """Take what can be taken; whether to try again."""
        match self._state:
            case _State.PREAMBLE | _State.DATA:
                return self._to_boundary()
            case _State.HEAD:
                return self._head()
            case _State.END:
                self._buffer.clear()
        return False

    def _to_boundary(self) -> bool:
        at = self._buffer.find(self._delimiter)
        safe = at if at >= 0 else max(len(self._buffer) - len(self._delimiter) + 1, 0)
        if self._state is _State.DATA:
            self._take(bytes(self._buffer[:safe]))
        del self._buffer[:safe]
        if at < 0 or len(self._buffer) < len(self._delimiter) + 2:
            return False
        end = len(self._delimiter) + 2
        mark = bytes(self._buffer[end - 2 : end])
        del self._buffer[:end]
        self._state = _State.END if mark == b"--" else _State.HEAD
        if mark not in {b"--", b"\r\n"}:
            raise invalid("Malformed multipart boundary")
        return True

    def _take(self, data: bytes) -> None:
        part = self.parts[-1]
        part.size += len(data)
        part.digest.update(data)
        part.content += data[: max(self._keep - len(part.content), 0)]

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MOST_HEAD:
                raise invalid("The head of a part is too long")
            return False
        head = Message()
        for line in bytes(self._buffer[:end]).decode("utf-8", "replace").split("\r\n"):
            field_, _, value = line.partition(":")
            head[field_.strip()] = value.strip()
        del self._buffer[: end + 4]
        name = head.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise invalid("A part has no name")
        type_ = head["content-type"] or "application/octet-stream"
        self.parts.append(Part(name, head.get_filename(), type_))
        self._state = _State.DATA
        return True
