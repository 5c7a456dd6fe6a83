"""A request as it came: its head in the client's own spelling, its body as bytes or as parts."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tproxy.sandbox.errors import ApiError, Header
from tproxy.sandbox.multipart import MultipartReader, Part

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request. `target` and `headers` are as they came, in order and spelling."""

    method: str
    target: bytes
    version: bytes
    headers: tuple[Header, ...]

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        return next((value for field_, value in self.headers if field_.lower() == name), None)

    @property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as the sandbox got it, kept for tests to compare with what was sent.

    `body` is without its transfer framing, and empty where it was too large to keep; `size` and `sha256` are of all of
    it. `complete` is False where it broke off. `connection` numbers the connections from 1.
    """

    method: str
    target: bytes
    version: bytes
    headers: tuple[Header, ...]
    trailers: tuple[Header, ...]
    body: bytes
    size: int
    sha256: str
    complete: bool
    connection: int

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        return next((value for field_, value in self.headers if field_.lower() == name), None)


@dataclass(slots=True)
class Requests:
    """The newest requests: at most 1,000, with at most 64 MiB of bodies."""

    kept: deque[Received] = field(default_factory=deque)
    weight: int = 0

    def add(self, request: Received) -> None:
        self.kept.append(request)
        self.weight += len(request.body)
        while len(self.kept) > 1 and (len(self.kept) > 1000 or self.weight > 64 * MIB):
            self.weight -= len(self.kept.popleft().body)


class Intake:
    """Takes a request's body as it comes.

    Args:
        most: the largest body in bytes.
        keep: how much of it is held; a larger one is only hashed.
        reader: reads it as multipart, too.
    """

    def __init__(self, *, most: int, keep: int, reader: MultipartReader | None = None) -> None:
        self._most = most
        self._keep = keep
        self._reader = reader
        self._fault: ApiError | None = None
        self._digest = hashlib.sha256()
        self._held = bytearray()
        self.size = 0
        self.trailers: tuple[Header, ...] = ()

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes.

        Raises:
            ApiError: 413, and what follows need not be read. Other faults wait until the body is whole.
        """
        self.size += len(data)
        if self.size > self._most:
            self._held.clear()
            raise ApiError(413)
        self._digest.update(data)
        if self.size <= self._keep:
            self._held += data
        else:
            self._held.clear()
        if self._reader is not None and self._fault is None:
            try:
                self._reader.feed(bytes(data))
            except ApiError as fault:
                self._fault = fault

    @property
    def body(self) -> bytes:
        return bytes(self._held)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def parts(self) -> list[Part]:
        """The parts of a whole multipart body.

        Raises:
            ApiError: 400 for what was none.
        """
        if self._fault is not None:
            raise self._fault
        assert self._reader is not None  # noqa: S101 (only asked of uploads)
        self._reader.close()
        return self._reader.parts
