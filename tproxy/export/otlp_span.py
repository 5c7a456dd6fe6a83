"""An exchange as a span: the proxy's view of one call to the API.

- A span's ids follow from the exchange alone, so that one which is sent again is the same span: the trace id is that of
  the caller's `traceparent`, or else the exchange's own id (a UUID has as many bits); the span id is the lower half of
  the exchange's id, of which 62 bits are random, and never zero.
- The caller's choice not to sample a trace is told (`tproxy.trace.unsampled`), and the span is made all the same: what
  is exported is the record of all exchanges, and a collector can drop what it does not want.
- What is unknown has no attribute, nor have counts of zero, but for those of input and output.

Made directly, not by a tracer: the exchange is over, and nothing here follows a running one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tproxy import __version__
from tproxy.export import semconv
from tproxy.store.base import FINISHED, REFUSED, Closing, Opening

SCOPE = InstrumentationScope("tproxy", __version__, semconv.SCHEMA_URL)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)

# From fields of the row, as they are, to attributes.
_OF_OPENING = (
    ("model_asked", semconv.REQUEST_MODEL),
    ("stream", semconv.REQUEST_STREAM),
    ("caller", semconv.CALLER),
    ("caller_alias", semconv.CALLER_ALIAS),
    ("team", semconv.TEAM),
    ("user", semconv.KEY_USER),
    ("customer", semconv.CUSTOMER),
    ("session", semconv.CONVERSATION),
    ("session", semconv.SESSION),
    ("agent", semconv.AGENT),
    ("parent_agent", semconv.PARENT_AGENT),
    ("user_agent", semconv.USER_AGENT),
)
_OF_CLOSING = (
    ("ended", semconv.ENDED),
    ("certainty", semconv.CERTAINTY),
    ("status", semconv.STATUS_CODE),
    ("model_served", semconv.RESPONSE_MODEL),
    ("message_id", semconv.RESPONSE_ID),
    ("request_id", semconv.REQUEST_ID),
    ("output_tokens", semconv.OUTPUT_TOKENS),
    ("service_tier", semconv.SERVICE_TIER),
    ("speed", semconv.SPEED),
    ("geo", semconv.GEO),
    ("cost_nano", semconv.COST_NANO),
    ("price_version", semconv.PRICE_VERSION),
    ("bytes_in", semconv.BYTES_IN),
    ("bytes_out", semconv.BYTES_OUT),
    ("tap_fault", semconv.TAP_FAULT),
)
# Most answers have none of these: where they are 0, they are left out.
_COUNTS = (
    ("cache_read_tokens", semconv.CACHE_READ_TOKENS),
    ("cache_write_5m_tokens", semconv.CACHE_WRITE_5M_TOKENS),
    ("cache_write_1h_tokens", semconv.CACHE_WRITE_1H_TOKENS),
    ("thinking_tokens", semconv.REASONING_TOKENS),
    ("web_searches", semconv.WEB_SEARCHES),
)
_TIMES = (
    ("dialled_us", semconv.DIALLED_MS),
    ("head_us", semconv.HEAD_MS),
    ("first_content_us", semconv.FIRST_CONTENT_MS),
    ("last_byte_us", semconv.LAST_BYTE_MS),
)

_OPERATIONS = {"/v1/messages": semconv.CHAT, "/v1/complete": semconv.TEXT_COMPLETION}
# A segment that names one thing of many: ids hold digits, names of routes and their versions do not.
_ID = re.compile(r"(?<=/)(?!v\d+(?:/|$))[^/]*\d[^/]*")


def span_of(opening: Opening, closing: Closing, resource: Resource) -> ReadableSpan:
    """The span of an exchange that has ended."""
    context, parent = _contexts(opening)
    operation = _OPERATIONS.get(opening.path) if opening.method == "POST" else None
    if operation is None:
        name = f"{opening.method} {_route(opening.path)}"
    else:
        name = f"{operation} {opening.model_asked}" if opening.model_asked else operation
    start = opening.accepted_us
    end = max(start, closing.ended_us or closing.last_byte_us or start)
    attributes = _attributes(opening, closing, operation)
    if parent is not None and not parent.trace_flags.sampled:
        attributes[semconv.UNSAMPLED] = True
    status = _UNSET
    if closing.ended != FINISHED:
        attributes[semconv.ERROR_TYPE] = _error_type(closing)
        status = Status(StatusCode.ERROR, closing.ended)
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=resource,
        attributes=attributes,
        events=_events(closing),
        kind=SpanKind.CLIENT,
        status=status,
        start_time=start * 1000,
        end_time=end * 1000,
        instrumentation_scope=SCOPE,
    )


def _contexts(opening: Opening) -> tuple[SpanContext, SpanContext | None]:
    """Of the span itself, and of its parent if the request came with one (W3C Trace Context, section 3.2)."""
    id = int(opening.id.replace("-", ""), 16)
    span_id = id & 0xFFFF_FFFF_FFFF_FFFF
    if opening.traceparent is None:
        return SpanContext(id, span_id, is_remote=False, trace_flags=_SAMPLED), None
    _, trace, parent, flags = opening.traceparent.split("-")[:4]
    trace_id = int(trace, 16)
    trace_flags = TraceFlags(int(flags, 16))
    return (
        SpanContext(trace_id, span_id, is_remote=False, trace_flags=trace_flags),
        SpanContext(trace_id, int(parent, 16), is_remote=True, trace_flags=trace_flags),
    )


def _attributes(opening: Opening, closing: Closing, operation: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        semconv.PROVIDER: semconv.ANTHROPIC,
        semconv.EXCHANGE: opening.id,
        semconv.REQUEST_METHOD: opening.method,
        semconv.URL_PATH: opening.path,
    }
    if operation is not None:
        found[semconv.OPERATION] = operation
    found.update(_server(opening.upstream))
    for field, name in _OF_OPENING:
        if (value := getattr(opening, field)) is not None:
            found[name] = value
    for field, name in _OF_CLOSING:
        if (value := getattr(closing, field)) is not None:
            found[name] = value
    for field, name in _COUNTS:
        if value := getattr(closing, field):
            found[name] = value
    for field, name in _TIMES:
        if (value := getattr(closing, field)) is not None:
            found[name] = (value - opening.accepted_us) / 1000
    if (user := opening.customer or opening.user) is not None:
        found[semconv.USER] = user
    if opening.tags:
        found[semconv.TAGS] = found[semconv.LANGFUSE_TAGS] = opening.tags
    if closing.stop_reason is not None:
        found[semconv.FINISH_REASONS] = (closing.stop_reason,)
    if closing.cost_nano is not None:
        found[semconv.COST] = closing.cost_nano / 1e9
    if closing.first_content_us is not None:
        moment = datetime.fromtimestamp(closing.first_content_us / 1e6, UTC)
        found[semconv.LANGFUSE_FIRST_CONTENT] = moment.isoformat(timespec="milliseconds")
        if opening.stream:
            found[semconv.TIME_TO_FIRST_CHUNK] = (closing.first_content_us - opening.accepted_us) / 1e6
    if closing.input_tokens is not None:
        _count(closing, found)
    return found


def _count(closing: Closing, found: dict[str, Any]) -> None:
    """The API counts the tokens of the cache apart, the conventions among those of the input, Langfuse apart again."""
    fresh, read = closing.input_tokens or 0, closing.cache_read_tokens or 0
    written = (closing.cache_write_5m_tokens or 0) + (closing.cache_write_1h_tokens or 0)
    found[semconv.INPUT_TOKENS] = fresh + read + written
    if written:
        found[semconv.CACHE_CREATION_TOKENS] = written
    usage = {"input": fresh, "output": closing.output_tokens or 0}
    if read:
        usage["cache_read_input_tokens"] = read
    if written:
        usage["cache_creation_input_tokens"] = written
    found[semconv.LANGFUSE_USAGE] = msgspec.json.encode(usage).decode()


def _events(closing: Closing) -> tuple[Event, ...]:
    return tuple(
        Event(name, timestamp=at * 1000)
        for name, at in (
            (semconv.HEAD_EVENT, closing.head_us),
            (semconv.FIRST_CONTENT_EVENT, closing.first_content_us),
        )
        if at is not None
    )


def _error_type(closing: Closing) -> str:
    """The upstream's own word for it, or how the exchange ended."""
    if closing.error_type:
        return closing.error_type
    if closing.ended == REFUSED:
        return str(closing.status) if closing.status is not None else semconv.OTHER_ERROR
    return closing.ended


@lru_cache(maxsize=16)
def _server(upstream: str) -> dict[str, Any]:
    """Where the upstream is: its address and port, if it is a URL; the built-in sandbox has but its name."""
    url = urlsplit(upstream)
    if not url.hostname:
        return {semconv.UPSTREAM: upstream}
    return {
        semconv.SERVER_ADDRESS: url.hostname,
        semconv.SERVER_PORT: url.port or (443 if url.scheme == "https" else 80),
    }


@lru_cache(maxsize=256)
def _route(path: str) -> str:
    """A path without what is peculiar to one request, for spans' names are to be few."""
    return _ID.sub("{id}", path)
