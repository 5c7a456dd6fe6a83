"""Spans of OpenTelemetry's SDK as the request that OTLP sends (opentelemetry-proto, trace_service.proto).

The SDK has an encoder of its own, and what is made here is the same message to the byte (a test compares them). But
that one makes two messages for each attribute and copies both, which is most of what an exported exchange costs: 144
of 165 µs for a span of 49 attributes, in one piece that keeps the loop from running. Here attributes are encoded by
hand, those that come again once and for all; and spans can be added a few at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode

from tproxy.export import semconv

_KINDS = {kind: Span.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class TraceRequest:
    """What one POST holds: spans that all have the same resource and scope."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._message = ExportTraceServiceRequest()
        spans = self._message.resource_spans.add(schema_url=resource.schema_url)
        _put(spans.resource.attributes, resource.attributes)
        scoped = spans.scope_spans.add(schema_url=scope.schema_url)
        scoped.scope.name = scope.name
        scoped.scope.version = scope.version or ""
        self._spans = scoped.spans

    def add(self, span: ReadableSpan) -> None:
        """Add a span that has a context, ended, and came without links."""
        context, parent = span.get_span_context(), span.parent
        assert context is not None  # noqa: S101 (for mypy)
        message = self._spans.add(
            trace_id=context.trace_id.to_bytes(16, "big"),
            span_id=context.span_id.to_bytes(8, "big"),
            name=span.name,
            kind=_KINDS[span.kind],
            start_time_unix_nano=span.start_time,
            end_time_unix_nano=span.end_time,
            flags=_REMOTE if parent is not None and parent.is_remote else _LOCAL,
        )
        if parent is not None:
            message.parent_span_id = parent.span_id.to_bytes(8, "big")
        # To merge an encoded message is to append what it repeats (protobuf, "Encoding", "Last One Wins").
        message.MergeFromString(b"".join([_attribute(*item) for item in (span.attributes or {}).items()]))
        for event in span.events:
            message.events.add(name=event.name, time_unix_nano=event.timestamp)
        status = message.status
        if span.status.status_code is StatusCode.UNSET:
            status.SetInParent()
        else:
            status.code = span.status.status_code.value
            status.message = span.status.description or ""

    def encoded(self) -> bytes:
        """The request's bytes."""
        return bytes(self._message.SerializeToString())


def _put(attributes: Any, values: Mapping[str, Any]) -> None:
    """Write attributes of the resource: texts all."""
    for name, value in values.items():
        attributes.add(key=name).value.string_value = value


def _attribute(name: str, value: Any) -> bytes:
    """One entry of `Span.attributes`, encoded (protobuf, "Encoding"; opentelemetry-proto, common.proto): a text, a
    truth value, a number, or a sequence of texts."""
    kind = type(value)
    if kind is int:
        return _entry(name, b"\x18" + _varint(value & _64_BITS))
    if kind is float:
        return _entry(name, b"\x21" + _double(value))
    if kind is str:
        again = len(value) <= _SHORT and name not in semconv.UNIQUE
        return _again(name, value) if again else _entry(name, _text(value))
    return _again(name, value) if kind is bool or sum(map(len, value)) <= _SHORT else _other(name, value)


@lru_cache(maxsize=4096)
def _again(name: str, value: Any) -> bytes:
    """What is likely to come again, in the next span."""
    return _other(name, value)


def _other(name: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return _entry(name, b"\x10\x01" if value else b"\x10\x00")
    if isinstance(value, str):
        return _entry(name, _text(value))
    texts = b"".join(b"\x0a" + _varint(len(text)) + text for text in map(_text, value))
    return _entry(name, b"\x2a" + _varint(len(texts)) + texts)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"\x0a" + _varint(len(data)) + data


def _entry(name: str, value: bytes) -> bytes:
    """A `KeyValue` as field 9, with its `AnyValue` encoded."""
    entry = _key(name) + _varint(len(value)) + value
    return b"\x4a" + _varint(len(entry)) + entry


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    return _text(name) + b"\x12"


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _BYTES[number]
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_SHORT = 64  # characters: what is longer is not kept, since clients chose it
_BYTES = [bytes([number]) for number in range(0x80)]
_64_BITS = (1 << 64) - 1
_double = Struct("<d").pack
