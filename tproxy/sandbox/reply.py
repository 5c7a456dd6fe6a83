"""An answer that is ready to be sent: its head, its body in pieces, and how it shall end.

Everything is decided here; what is left is to write it, on time. Header names are spelled as the real host spells
them: a few in capitals, most in lower case.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal

from tproxy.sandbox.body import Body
from tproxy.sandbox.books import COMPLETE, ERROR_EVENT, REFUSED, Entry
from tproxy.sandbox.coding import acceptable
from tproxy.sandbox.errors import Header
from tproxy.sandbox.received import Head
from tproxy.sandbox.script import Place, Script

INFORMATIONAL = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
UNASKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\nunasked"
LAST_CHUNK = b"0\r\n\r\n"

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus} | {529: b"Overloaded"}
_MINUTE = 60.0
_ONE_WRITE = 32 * 1024

# What does not change from answer to answer.
_STEADY = (
    b"anthropic-organization-id: 5f0c3ad2-0f9b-4d62-9f0e-0a6c1d7e2b11\r\n"
    b"strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    b"x-robots-tag: none\r\n"
    b"x-envoy-upstream-service-time: 42\r\n"
    b"via: 1.1 google\r\n"
    b"cf-cache-status: DYNAMIC\r\n"
    b"Server: cloudflare\r\n"
)


class End(enum.Enum):
    """What follows the body."""

    CLEAN = enum.auto()
    CUT = enum.auto()
    RESET = enum.auto()
    STALL = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    `body` is what is sent, `full_size` what a Content-Length promises, `outcome` what the books say if all is sent.
    """

    status: int
    headers: tuple[Header, ...]
    body: Body
    full_size: int
    framing: Literal["chunked", "length", "close"]
    end: End
    script: Script
    entry: Entry
    outcome: str
    head_only: bool
    http10: bool

    @property
    def bodiless(self) -> bool:
        return self.head_only or self.status == 304

    @property
    def immediate(self) -> bool:
        """Whether all of it goes out in one write, at once."""
        script = self.script
        waits = script.ttft or script.tps or script.chunk or script.head_stall
        return not waits and self.end is End.CLEAN and self.body.size <= _ONE_WRITE

    def head(self, *, close: bool) -> bytes:
        """Status line and header lines. `close`: this is the connection's last answer."""
        lines = [
            b"HTTP/%b %d %b" % (b"1.0" if self.http10 else b"1.1", self.status, _REASONS.get(self.status, b"Unknown")),
            b"Date: " + formatdate(usegmt=True).encode(),
        ]
        if self.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
        elif self.framing == "length" and self.status != 304:
            lines.append(b"Content-Length: %d" % self.full_size)
        lines.append(b"Connection: close" if close else b"Connection: keep-alive")
        lines += [b"%b: %b" % header for header in self.headers]
        if self.script.head:
            lines += [b"x-padding-%d: %b" % (at, b"p" * 1000) for at in range(self.script.head // 1000 + 1)]
        return b"\r\n".join(lines) + b"\r\n" + _STEADY + b"\r\n"


def reply(
    head: Head,
    script: Script,
    entry: Entry,
    *,
    status: int = 200,
    content_type: bytes = b"application/json",
    body: Body,
    streamed: bool = False,
    headers: tuple[Header, ...] = (),
) -> Reply:
    """Put a body in the form that the script asks for.

    Args:
        streamed: the pieces go out one by one, in chunks unless the script says otherwise.
        headers: beside those that every answer has.
    """
    coding = script.coding
    if coding == "accept":
        coding = acceptable(head.get(b"accept-encoding"))
    end, place = _ending(script)
    full = body
    if coding is not None:
        full = body.coded(coding)
    if script.corrupt:
        full = full.spoiled()
    sent = full
    if place is not None:
        if place.unit == "events" and coding is not None:
            sent = body.before(place).coded(coding, ended=False)
        else:
            sent = full.before(place)
    if script.chunk:
        sent = sent.sliced(script.chunk)
    http10 = script.http10
    framing = script.framing or ("chunked" if streamed else "length")
    if framing == "chunked" and (http10 or head.version == b"1.0"):
        framing = "close"
    outcome = REFUSED if status >= 300 else COMPLETE
    if entry.stream and script.error_after is not None and status < 300:
        outcome = ERROR_EVENT
    return Reply(
        status=status,
        headers=(
            (b"Content-Type", content_type),
            *(((b"Content-Encoding", coding.encode()),) if coding is not None else ()),
            *(((b"Cache-Control", b"no-cache"),) if streamed else ()),
            *headers,
            *_limits(entry),
            (b"request-id", entry.request_id.encode()),
            (b"CF-RAY", b"%b-FRA" % entry.request_id[-8:].encode().hex().encode()),
        ),
        body=sent,
        full_size=full.size,
        framing=framing,  # type: ignore[arg-type]
        end=end,
        script=script,
        entry=entry,
        outcome=outcome,
        head_only=head.method == "HEAD",
        http10=http10,
    )


def _ending(script: Script) -> tuple[End, Place | None]:
    if script.cut_after is not None:
        return End.CUT, script.cut_after
    if script.reset_after is not None:
        return End.RESET, script.reset_after
    if script.stall_after is not None:
        return End.STALL, script.stall_after
    return End.CLEAN, None


def _limits(entry: Entry) -> tuple[Header, ...]:
    """Rate limits, as answers to inference requests carry them. The sandbox limits nothing: the figures stand still."""
    if entry.model is None:
        return ()
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.received_at + _MINUTE)).encode()
    headers: list[Header] = []
    for kind, limit in (
        (b"requests", 4000),
        (b"input-tokens", 2_000_000),
        (b"output-tokens", 400_000),
        (b"tokens", 2_400_000),
    ):
        name = b"anthropic-ratelimit-" + kind
        headers.append((name + b"-limit", b"%d" % limit))
        headers.append((name + b"-remaining", b"%d" % (limit - (1 if kind == b"requests" else 1000))))
        headers.append((name + b"-reset", reset))
    return tuple(headers)
