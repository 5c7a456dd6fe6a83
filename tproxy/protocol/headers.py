"""A gateway's duties towards header lines, both ways (RFC 9110 section 7.6), and the credentials in them.

A header is a pair of bytes. Names keep the sender's spelling, lines keep their order, repeated lines stay
repeated; names are compared without regard to case. Lines differ between the two sides only like this:

- hop-by-hop lines are left out: a fixed set, and what `Connection` nominates;
- towards the upstream, Host comes first and is the upstream's; the body's framing and the credential are
  ours, where the client's stood and in its spelling; Expect is left out: tproxy itself asks for the body;
- each side gets our Via, as the last of its Via lines, so that a request that comes round is known again.

Who the caller is, and which real credential stands for it, is decided elsewhere; here credentials are only
read, removed and put in. No error raised here holds a header's value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tproxy.errors import BadRequest, Header

# RFC 9110 section 7.6.1, and what belongs to one connection by its own definition: Trailer (6.6.2), the
# Proxy-* authentication fields (11.7), HTTP2-Settings (RFC 7540 section 3.2.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"http2-settings",
    }
)

# Who the caller is: the first of these that is present decides.
PRECEDENCE = (b"x-litellm-api-key", b"authorization", b"x-api-key", b"api-key")

# Never forwarded, in any repetition. The twins are for servers that take "_" and "-" for the same.
CREDENTIALS = frozenset(name for given in PRECEDENCE for name in (given, given.replace(b"-", b"_")))

# A nomination does not remove these. RFC 9110 section 7.6.1 forbids to nominate a field that is meant for
# every recipient, and without these the next recipient would read another message than we did. Credentials
# are among them because they have a rule of their own: none of the client's goes upstream, ours always does.
UNNOMINABLE = CREDENTIALS | {
    b"cache-control",
    b"content-encoding",
    b"content-language",
    b"content-length",
    b"content-location",
    b"content-range",
    b"content-type",
    b"date",
    b"host",
    b"via",
}

# What no upstream gets of a client's lines.
_NOT_UPSTREAM = HOP_BY_HOP | CREDENTIALS | {b"host", b"content-length", b"expect"}

_FRAMING = (b"content-length", b"transfer-encoding")
_BEARER = re.compile(rb"bearer(?:[ \t]+(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """An Anthropic credential, in the form in which it is sent. It never shows its value.

    `form` is `bearer` (API key, OAuth or federation token in `Authorization`) or `x-api-key` (API key).
    """

    form: Literal["bearer", "x-api-key"]
    value: bytes

    @property
    def header(self) -> Header:
        """The line that carries it."""
        if self.form == "bearer":
            return b"Authorization", b"Bearer " + self.value
        return b"x-api-key", self.value

    def __repr__(self) -> str:
        return f"Credential({self.form!r}, ***)"


class Fields(tuple[Header, ...]):  # noqa: SLOT001 (only a tuple that adds nothing can have slots)
    """Header lines for a reader who asks more than once: `get` and its like look into an index instead of at each line.

    Attributes:
        first: the value of the first line of each name, by the name in lower case.
        repeated: the values of all lines of those names that have more than one.
    """

    first: Mapping[bytes, bytes]
    repeated: Mapping[bytes, list[bytes]]

    def __new__(cls, lines: Iterable[Header]) -> Fields:
        """The lines as they are. Those that are `Fields` already are returned themselves."""
        if isinstance(lines, Fields):
            return lines
        self = super().__new__(cls, lines)
        first: dict[bytes, bytes] = {}
        repeated: dict[bytes, list[bytes]] = {}
        for name, value in self:
            lower = name.lower()
            if lower not in first:
                first[lower] = value
            else:
                repeated.setdefault(lower, [first[lower]]).append(value)
        self.first, self.repeated = first, repeated
        return self


def joined(headers: Sequence[Header], name: bytes) -> bytes | None:
    """All values of a list field as one, in order (RFC 9110 section 5.3); None where there is no such field."""
    return b", ".join(get_all(headers, name)) or None


def get_all(headers: Sequence[Header], name: bytes) -> Sequence[bytes]:
    """The values of all lines called `name` (in any case), in order."""
    wanted = name.lower()
    if isinstance(headers, Fields):
        value = headers.first.get(wanted)
        return () if value is None else headers.repeated.get(wanted) or (value,)
    return [value for given, value in headers if given.lower() == wanted]


def get(headers: Sequence[Header], name: bytes) -> bytes | None:
    """The value of the first line called `name` (in any case), `None` if there is none."""
    if isinstance(headers, Fields):
        return headers.first.get(name.lower())
    values = get_all(headers, name)
    return values[0] if values else None


def hop_by_hop(headers: Sequence[Header]) -> frozenset[bytes]:
    """The lower-case names of the lines that end at this hop: the fixed set and the valid nominations."""
    return HOP_BY_HOP | _nominated(headers)


def _nominated(headers: Sequence[Header]) -> frozenset[bytes]:
    lines = get_all(headers, b"connection")
    if not lines:
        return frozenset()
    return (
        frozenset(option.strip(b" \t").lower() for line in lines for option in line.split(b",")) - UNNOMINABLE - {b""}
    )


def upstream_headers(
    headers: Sequence[Header],
    *,
    host: bytes,
    via: bytes,
    credential: Credential | None,
    framing: Header | None,
) -> list[Header]:
    """The header lines of a request, as they go upstream.

    Args:
        headers: the client's lines.
        host: the upstream's host, with its port if that is not the scheme's own; becomes the first line.
        via: our entry, see `via`; becomes the last line.
        credential: what to send instead of the client's credentials; it stands where the client's deciding
            one stood. `None` to send none.
        framing: `content-length` or `transfer-encoding: chunked` for the body that will be sent; it stands
            where the client's framing stood. `None` for a request without a body.
    """
    fields = Fields(headers)
    places: dict[bytes, Header] = {}
    last: list[Header] = []
    for ours, candidates in ((framing, _FRAMING), (credential.header if credential else None, PRECEDENCE)):
        if ours is None:
            continue
        for name in candidates:
            if name in fields.first:
                places[name] = ours
                break
        else:
            last.append((_spelling(fields, ours[0]), ours[1]))
    ended = _NOT_UPSTREAM | nominated if (nominated := _nominated(fields)) else _NOT_UPSTREAM
    lines: list[Header] = [(_spelling(fields, b"Host"), host)]
    for line in fields:
        lower = line[0].lower()
        if lower in places:
            name, value = places.pop(lower)
            lines.append((line[0] if name.lower() == lower else _spelling(fields, name), value))
        elif lower not in ended and (b"_" not in lower or lower.replace(b"_", b"-") not in CREDENTIALS):
            lines.append(line)
    return [*lines, *last, (b"Via", via)]


def downstream_headers(headers: Sequence[Header], *, via: bytes, extra: Sequence[Header]) -> list[Header]:
    """The header lines of a response, as they go to the client.

    Content-Length is kept, except beside a Transfer-Encoding, which overrides it (RFC 9112 section 6.3).

    Args:
        headers: the upstream's lines.
        via: our entry, see `via`.
        extra: our own lines; they replace the upstream's lines of the same name and come last.
    """
    ended = {name.lower() for name, _ in extra} | _nominated(headers)
    if get(headers, b"transfer-encoding") is not None:
        ended.add(b"content-length")
    kept = [line for line in headers if (lower := line[0].lower()) not in HOP_BY_HOP and lower not in ended]
    return [*kept, (b"Via", via), *extra]


def deciding_credential(headers: Sequence[Header]) -> tuple[bytes, bytes] | None:
    """Who the caller says it is: the lower-case name of the deciding header, and the key in it.

    The first of `PRECEDENCE` that is present decides, even where its key is empty. `x-litellm-api-key` holds
    a key, or `Bearer` and a key. `Authorization` of another scheme than Bearer gives an empty key. `None` if
    no such header is present.

    Raises:
        BadRequest: one of the credential headers is repeated with different values.
    """
    given = _credentials(headers)
    name = next((name for name in PRECEDENCE if name in given), None)
    if name is None:
        return None
    value = given[name]
    if name == b"authorization":
        return name, _bearer(value) or b""
    if name == b"x-litellm-api-key":
        token = _bearer(value)
        return name, value if token is None else token
    return name, value


def anthropic_token(headers: Sequence[Header]) -> Credential | None:
    """The client's own Anthropic credential, for the access mode `own`.

    It is the first of `Authorization`, `x-api-key` and `api-key` that begins as Anthropic's do (`sk-ant-`) and is one
    word: whatever else stands there is meant for tproxy, or is a mistake, and must not go upstream. What stands in
    `x-litellm-api-key` is never looked at.

    Raises:
        BadRequest: one of the credential headers is repeated with different values.
    """
    given = _credentials(headers)
    bearer = _bearer(given.get(b"authorization", b"")) or b""
    if is_anthropic(bearer):
        return Credential("bearer", bearer)
    for name in (b"x-api-key", b"api-key"):
        if is_anthropic(key := given.get(name, b"")):
            return Credential("x-api-key", key)
    return None


def is_anthropic(key: bytes) -> bool:
    """Does it have the form of an Anthropic credential (API key or OAuth token)?"""
    return key.startswith(b"sk-ant-") and len(key.split()) == 1


def via(http_version: bytes, pseudonym: bytes) -> bytes:
    """Our entry in Via (RFC 9110 section 7.6.3).

    Args:
        http_version: of the message that was received, such as `1.1`.
        pseudonym: our name among gateways: a token that differs from one process to the next.
    """
    return http_version + b" " + pseudonym


def is_loop(headers: Sequence[Header], pseudonym: bytes) -> bool:
    """Whether a request has been through the gateway called `pseudonym`, by all its Via lines.

    An entry is `[protocol-name/]version received-by [(comment)]`; a comment may hold commas and comments.
    """
    ours = pseudonym.lower()
    for line in get_all(headers, b"via"):
        for entry in _without_comments(line).split(b","):
            words = entry.split()
            if len(words) >= 2 and words[1].lower() == ours:
                return True
    return False


def _spelling(fields: Fields, name: bytes) -> bytes:
    """How the client writes `name`; `name` itself if it does not."""
    lower = name.lower()
    if lower not in fields.first:
        return name
    return next(given for given, _ in fields if given.lower() == lower)


def _credentials(headers: Sequence[Header]) -> dict[bytes, bytes]:
    """The values of the headers in `PRECEDENCE`, by lower-case name, if each has only one."""
    given: dict[bytes, bytes] = {}
    fields = Fields(headers)
    for name in PRECEDENCE:
        if (value := fields.first.get(name)) is None:
            continue
        given[name] = key = value.strip(b" \t")
        if any(other.strip(b" \t") != key for other in fields.repeated.get(name, ())):
            raise BadRequest(f"ambiguous credentials: {name.decode()} is given twice with different values")
    return given


def _bearer(value: bytes) -> bytes | None:
    """The token of a Bearer credential (RFC 6750 section 2.1), `None` for any other scheme."""
    matched = _BEARER.fullmatch(value)
    return None if matched is None else matched[1] or b""


def _without_comments(value: bytes) -> bytes:
    """A field value without its comments (RFC 9110 section 5.6.5), which may be nested."""
    kept = bytearray()
    depth = 0
    escaped = False
    for byte in value:
        if escaped:
            escaped = False
        elif depth and byte == ord("\\"):
            escaped = True
        elif byte == ord("("):
            depth += 1
        elif depth and byte == ord(")"):
            depth -= 1
        elif not depth:
            kept.append(byte)
    return bytes(kept)
