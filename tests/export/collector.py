"""A receiver of OTLP over HTTP that is as strict as the protocol (OTLP specification 1.x, "OTLP/HTTP").

What is not a request as the protocol has it is answered as a receiver should: 404, 405, 415, 400; without the headers
that the test wants, 401. All else is answered with the replies that the test gives, the last one again and again.
"""

from __future__ import annotations

import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.wire.peer import Line, Request, peer


def reply(status: int = 200, body: bytes = b"", *headers: str, type: str = "application/x-protobuf") -> bytes:
    """An answer as it is on the wire."""
    lines = [f"HTTP/1.1 {status} x", f"content-type: {type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


TAKEN = reply()


@dataclass
class Span:
    """A span as it arrived: ids in hex, times in nanoseconds, attributes of Python's types."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    status: int
    status_message: str
    flags: int
    attributes: dict[str, Any]
    events: list[tuple[str, int]]
    resource: dict[str, Any]
    scope: tuple[str, str, str]


@dataclass
class Collector:
    """What arrived.

    Attributes:
        requests: all that were made, the bad ones, too.
        spans: of those that were answered with a status of 2xx, each as often as it came.
        changed: set, and replaced, when something arrives.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    async def wait_for(self, count: int) -> list[Span]:
        """The spans, once there are `count` of them."""
        with trio.fail_after(20):
            while len(self.spans) < count:
                await self.changed.wait()
        return self.spans


@asynccontextmanager
async def collector(
    *replies: bytes,
    path: str = "/v1/traces",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Collector]:
    """Receive on a loopback port until the context ends."""
    found = Collector()
    answers = replies or (TAKEN,)

    async def script(line: Line) -> None:
        while (request := await line.request()) is not None:
            try:
                spans = _spans(_accepted(request, path.encode(), headers or {}))
                answer = answers[min(len(found.requests), len(answers) - 1)]
                if answer.startswith(b"HTTP/1.1 2"):
                    found.spans += spans
            except _Refused as refused:
                answer = reply(refused.status)
            found.requests.append(request)
            await line.send(answer)
            found.changed.set()
            found.changed = trio.Event()

    async with peer(script, tls=tls) as upstream:
        found.url = f"{upstream.origin.scheme}://{upstream.origin.host}:{upstream.origin.port}"
        yield found


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def _accepted(request: Request, path: bytes, wanted: Mapping[str, str]) -> bytes:
    """The request's body, uncompressed.

    Raises:
        _Refused: it is not as the protocol has it.
    """
    fields = {name.lower().decode(): value.decode() for name, value in request.headers}
    if request.target != path:
        raise _Refused(404)
    if request.method != b"POST":
        raise _Refused(405)
    if any(fields.get(name.lower()) != value for name, value in wanted.items()):
        raise _Refused(401)
    if fields.get("content-type") != "application/x-protobuf" or len(fields) != len(request.headers):
        raise _Refused(415)
    match fields.get("content-encoding"):
        case None:
            return request.body
        case "gzip":
            try:
                return gzip.decompress(request.body)
            except (EOFError, OSError, zlib.error):
                raise _Refused(400) from None
    raise _Refused(415)


def _spans(body: bytes) -> list[Span]:
    try:
        message = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise _Refused(400) from None
    found = []
    for of_resource in message.resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            scope = of_scope.scope.name, of_scope.scope.version, of_scope.schema_url
            for span in of_scope.spans:
                if (
                    len(span.trace_id) != 16
                    or len(span.span_id) != 8
                    or not any(span.trace_id)
                    or not any(span.span_id)
                ):
                    raise _Refused(400)
                if len(span.parent_span_id) not in (0, 8) or not span.name or not span.start_time_unix_nano:
                    raise _Refused(400)
                found.append(
                    Span(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        kind=span.kind,
                        start=span.start_time_unix_nano,
                        end=span.end_time_unix_nano,
                        status=span.status.code,
                        status_message=span.status.message,
                        flags=span.flags,
                        attributes=_values(span.attributes),
                        events=[(event.name, event.time_unix_nano) for event in span.events],
                        resource=resource,
                        scope=scope,
                    )
                )
    return found


def _values(attributes: Sequence[Any]) -> dict[str, Any]:
    """The attributes; names are unique (OTLP, `Span.attributes`), or the request is refused."""
    found = {each.key: _value(each.value) for each in attributes}
    if len(found) != len(attributes):
        raise _Refused(400)
    return found


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        raise _Refused(400)
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
