"""From a raw request target to a path and query that are safe to send upstream, or a refusal.

The target is what a client wrote between the method and the HTTP version. Three readers look at it: the
router, the policy and the upstream. They must see the same path, so a target that two readers could read
differently is refused, and one that passes is kept byte for byte: nothing is decoded, normalised or put in
order.

- Only origin-form is served (RFC 9112 section 3.2.1). Absolute-form (3.2.2) is taken for origin-form where it
  names the request's own Host; it never chooses where tproxy dials.
- A path is looked at as often as a careless server might decode it, and what would then change its segments
  is refused: dot segments, slashes, backslashes, control bytes, over-long UTF-8.
- A query means nothing to us: only what would break the request line is refused.

This file knows no route and no upstream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tproxy.errors import BadRequest

MAX_TARGET_BYTES = 16 * 1024

# How often a path is decoded before it is called over-encoded: the work stays linear in its length.
_MAX_DECODINGS = 5
_MAX_SHOWN_BYTES = 64

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
# host[:port] as it occurs in practice: a name, an IPv4 address, a bracketed IPv6 address (RFC 9110, 7.2).
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]*)?")

_NOT_IN_PATH = re.compile(rb"[^!-~]|[\\#@;]")
_NOT_IN_QUERY = re.compile(rb"[^!-~]|#")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)

# A path of which nothing can be said against: no escapes, and segments of harmless characters that begin with no dot.
_HARMLESS = re.compile(rb"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*+)++/?")

# What must not show up when a path is decoded. A dot segment may carry a tail that some servers cut off.
_DOT_SEGMENT = re.compile(rb"/\.{1,2}(?:[;?#][^/]*)?(?:/|\Z)")
_UNSAFE_WHEN_DECODED = re.compile(
    rb"[\x00-\x1f\x7f\\]"
    rb"|[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]"  # UTF-8 longer than it need be: hides ASCII
)


@dataclass(frozen=True, slots=True)
class Target:
    """A safe target, in the client's own bytes.

    `path` starts with "/". `query` is what follows the first "?": `None` where there is no "?", `b""` where
    nothing follows it.
    """

    path: bytes
    query: bytes | None

    @property
    def raw(self) -> bytes:
        """The target in origin-form, as it goes into a request line."""
        return self.path if self.query is None else self.path + b"?" + self.query

    def under(self, prefix: bytes) -> bytes | None:
        """The path below `prefix`: `b""` for the prefix itself, `None` if the path is elsewhere.

        `prefix` has no trailing slash. Only whole segments count: `/anthropics` is not under `/anthropic`.
        """
        if not self.path.startswith(prefix):
            return None
        below = self.path[len(prefix) :]
        return below if below[:1] in (b"", b"/") else None


def parse_target(raw: bytes, host: bytes | None) -> Target:
    """Read a request target.

    Args:
        raw: the target as it stood in the request line.
        host: the value of the Host header; `None` if there was none (HTTP/1.0).

    Raises:
        BadRequest: the target could be read in two ways, leads elsewhere, or is too long; or Host is not a
            host (RFC 9112 section 3.2). The message shows neither the query nor an authority: both may hold
            secrets.
    """
    if len(raw) > MAX_TARGET_BYTES:
        raise BadRequest(f"the request target is longer than {MAX_TARGET_BYTES} bytes")
    if host is not None and not _HOST.fullmatch(host):
        raise BadRequest("the Host header is not a host name or address with an optional port")
    path, mark, query = _origin_form(raw, host).partition(b"?")
    _check_path(path)
    if found := _NOT_IN_QUERY.search(query):
        raise BadRequest(f"the query of the request target holds the byte {found[0]!a}; percent-encode it")
    return Target(path, query if mark else None)


def _origin_form(raw: bytes, host: bytes | None) -> bytes:
    """Take our own authority off an absolute-form target (RFC 9112 section 3.2.2)."""
    absolute = _ABSOLUTE.match(raw)
    if absolute is None:
        return raw
    if not absolute[1] or host is None or absolute[1].lower() != host.lower():
        raise BadRequest("the request target names an authority other than that of the Host header")
    rest = raw[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def _check_path(path: bytes) -> None:
    """Refuse a path that any of its readers could take for another one."""
    if _HARMLESS.fullmatch(path):  # nearly all are
        return
    if not path.startswith(b"/"):
        raise BadRequest('the request target is not a path: it must start with "/"')
    if found := _NOT_IN_PATH.search(path):
        raise _refusal(f"holds the byte {found[0]!a}", path)
    if found := _BROKEN_ESCAPE.search(path):
        raise _refusal(f"holds the malformed percent-escape {found[0]!a}", path)
    if b"//" in path:
        raise _refusal("holds an empty segment", path)
    slashes = path.count(b"/")
    seen = path
    for _ in range(_MAX_DECODINGS):
        if _DOT_SEGMENT.search(seen):
            raise _refusal("holds a dot segment", path)
        if found := _UNSAFE_WHEN_DECODED.search(seen):
            raise _refusal(f"holds {found[0]!a} when decoded", path)
        if seen.count(b"/") != slashes:
            raise _refusal("holds an encoded slash", path)
        decoded = unquote_to_bytes(seen)
        if decoded == seen:
            return
        seen = decoded
    raise _refusal(f"is percent-encoded {_MAX_DECODINGS} times or more", path)


def _refusal(why: str, path: bytes) -> BadRequest:
    shown = ascii(path[:_MAX_SHOWN_BYTES])[1:] + ("..." if len(path) > _MAX_SHOWN_BYTES else "")
    return BadRequest(f"the path of the request target {why}: {shown}")
