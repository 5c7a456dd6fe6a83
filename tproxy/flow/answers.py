"""The answers that are ours: their heads, and the last event of a stream that we end."""

from __future__ import annotations

from collections.abc import Sequence

from tproxy.errors import Fault, Header, envelope


def fault_headers(fault: Fault, ids: Sequence[Header]) -> tuple[Header, ...]:
    """The headers of an answer of our own. `request-id` is where the SDKs look for what to quote."""
    return (*ids, (b"request-id", ids[0][1]), *fault.headers)


def json_head(body: bytes, more: Sequence[Header]) -> list[Header]:
    """Response headers for a JSON body, or for an empty one."""
    framing = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return [*(framing if body else framing[1:]), *more]


def error_event(fault: Fault, request_id: str) -> bytes:
    """A fault as the last event of a stream, in the form of Anthropic's (API reference, "Streaming", error events)."""
    return b"event: error\ndata: " + envelope(fault, request_id) + b"\n\n"
