"""Where a request goes, decided from its method and target alone.

Two prefixes lead to the upstream: `/anthropic/*` and, for clients that take no path prefix, `/v1/*`. The string that
is decided on here is the string that is sent, so that nothing is read one way and forwarded another. Everything
else belongs to the management side.

The paths named here are the ones that the proxy treats in a way of its own; every other path below the prefixes,
known to us or not, passes through all the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tproxy.protocol.target import Target

PREFIX = b"/anthropic"

# Bodies that are read whole before the upstream is dialled: what they ask for is what they cost.
_INFERENCE = frozenset({b"/v1/messages", b"/v1/complete"})
_HELD = _INFERENCE | {b"/v1/messages/count_tokens"}

# Below these, a POST costs nothing (facts of the price sheet: "free").
_FREE = (
    b"/v1/messages/count_tokens",
    b"/v1/models",
    b"/v1/files",
    b"/v1/skills",
    b"/v1/oauth/",
    b"/v1/organizations/",
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A request that goes to the upstream.

    Args:
        prefix: what of the client's path stays here: `/anthropic` or nothing.
        path: the upstream's path, as it came, without the query.
        query: the query as it came, without its `?`; None where there was no `?`.
    """

    method: str
    prefix: bytes
    path: bytes
    query: bytes | None

    @property
    def target(self) -> bytes:
        """The request target for the upstream, below its base path."""
        return self.path if self.query is None else self.path + b"?" + self.query

    @property
    def held(self) -> bool:
        """Is the request body read whole, however it is framed?"""
        return self.method == "POST" and self._meaning in _HELD

    @property
    def inference(self) -> bool:
        """Does a 2xx answer carry a usage that is billed?"""
        return self.method == "POST" and self._meaning in _INFERENCE

    @property
    def free(self) -> bool:
        """Is it known that the call itself costs nothing?

        Reading and deleting is free. A POST to a path that nobody told us about may cost: it is not called free.
        """
        if self.method != "POST":
            return True
        return self._meaning.startswith(_FREE) or self._meaning.endswith(b"/cancel")

    @property
    def _meaning(self) -> bytes:
        return _meaning(self.path)


@functools.lru_cache(maxsize=1024)
def _meaning(path: bytes) -> bytes:
    """The path as the upstream may read it: `/v1/mess%61ges/` is no way around what holds for `/v1/messages`."""
    return unquote_to_bytes(path).rstrip(b"/")


@dataclass(frozen=True, slots=True)
class Probe:
    """A client that looks whether anybody is there: 200, empty."""


@dataclass(frozen=True, slots=True)
class Manage:
    """A path of the management side, or of nobody."""


def route(method: str, target: Target) -> Passage | Probe | Manage:
    """Decide where a request goes."""
    below = target.under(PREFIX)
    if below is not None and below not in (b"", b"/"):
        return Passage(method, PREFIX, below, target.query)
    if target.path.startswith(b"/v1/"):
        return Passage(method, b"", target.path, target.query)
    if (method in ("GET", "HEAD") and below is not None) or (method == "HEAD" and target.path == b"/"):
        return Probe()
    return Manage()
