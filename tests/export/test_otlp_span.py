"""What a span says of an exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tests.store.laws import T0, make_closing, make_opening
from tproxy.export import semconv
from tproxy.export.otlp_proto import TraceRequest, _again, _attribute
from tproxy.export.otlp_span import SCOPE, span_of
from tproxy.store.base import (
    CLIENT_GONE,
    CUT_AT_BUDGET,
    FAILED,
    FINISHED,
    INCOMPLETE,
    LOST,
    REFUSED,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
    Closing,
    Opening,
)

RESOURCE = Resource({"service.name": "tproxy"})
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


def make(number: int = 1, opening: dict[str, Any] | None = None, closing: dict[str, Any] | None = None) -> ReadableSpan:
    return span_of(make_opening(number, **(opening or {})), make_closing(number, **(closing or {})), RESOURCE)


def bare(**closing: Any) -> ReadableSpan:
    """Of an exchange of which hardly anything is known."""
    id = make_opening(7).id
    opening = Opening(id=id, accepted_us=T0, method="GET", path="/v1/models", upstream="sandbox", caller="master")
    return span_of(opening, Closing(id=id, **{"ended": FINISHED, **closing}), RESOURCE)


def test_an_inference_call() -> None:
    span = make(opening={"traceparent": PARENT})
    assert (span.name, span.kind) == ("chat claude-sonnet-4-5", SpanKind.CLIENT)
    assert (span.start_time, span.end_time) == ((T0 + 1) * 1000, (T0 + 901) * 1000)
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("tproxy.head", (T0 + 2) * 1000),
        ("tproxy.first_content", (T0 + 3) * 1000),
    ]
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet-4-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "claude-sonnet-4-5-20250929",
        "gen_ai.response.id": "msg_1",
        "gen_ai.response.finish_reasons": ("end_turn",),
        "gen_ai.response.time_to_first_chunk": 2e-6,
        "gen_ai.conversation.id": "s-1",
        "gen_ai.usage.input_tokens": 12 + 33 + 44 + 55,
        "gen_ai.usage.output_tokens": 22,
        "gen_ai.usage.cache_read.input_tokens": 33,
        "gen_ai.usage.cache_creation.input_tokens": 44 + 55,
        "gen_ai.usage.reasoning.output_tokens": 66,
        "gen_ai.usage.cost": 2**62 / 1e9,
        "server.address": "api.anthropic.com",
        "server.port": 443,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/messages",
        "user_agent.original": "curl/8",
        "user.id": "acme & sons, gmbh €",
        "session.id": "s-1",
        "tproxy.exchange.id": make_opening(1).id,
        "tproxy.request_id": "req_1",
        "tproxy.ended": "finished",
        "tproxy.certainty": "exact",
        "tproxy.caller.id": make_opening(1).caller,
        "tproxy.caller.alias": "build",
        "tproxy.team": "core",
        "tproxy.user": "ada",
        "tproxy.customer": "acme & sons, gmbh €",
        "tproxy.tags": ("a", "ü,\n\"'", "b"),
        "tproxy.cost_nano_usd": 2**62,
        "tproxy.price_version": "1",
        "tproxy.tokens.cache_write_5m": 44,
        "tproxy.tokens.cache_write_1h": 55,
        "tproxy.web_searches": 7,
        "tproxy.service_tier": "standard",
        "tproxy.speed": "fast",
        "tproxy.geo": "us",
        "tproxy.bytes_in": 100,
        "tproxy.bytes_out": 200,
        "tproxy.time.dialled_ms": 0.0,
        "tproxy.time.head_ms": 0.001,
        "tproxy.time.first_content_ms": 0.002,
        "tproxy.time.last_byte_ms": 0.003,
        "tproxy.tap_fault": "event too large",
        "langfuse.trace.tags": ("a", "ü,\n\"'", "b"),
        "langfuse.observation.usage_details": (
            '{"input":12,"output":22,"cache_read_input_tokens":33,"cache_creation_input_tokens":99}'
        ),
        "langfuse.observation.completion_start_time": "2025-11-24T16:00:00.000+00:00",
    }


def test_what_is_unknown_has_no_attribute() -> None:
    span = bare()
    assert (span.start_time, span.end_time, span.events) == (T0 * 1000, T0 * 1000, ())
    assert span.attributes == {
        "gen_ai.provider.name": "anthropic",
        "http.request.method": "GET",
        "url.path": "/v1/models",
        "tproxy.upstream": "sandbox",
        "tproxy.exchange.id": make_opening(7).id,
        "tproxy.caller.id": "master",
        "tproxy.ended": "finished",
        "tproxy.certainty": "partial",
        "tproxy.bytes_in": 0,
        "tproxy.bytes_out": 0,
    }


def test_the_address_of_a_client_is_not_told() -> None:
    assert "50000" not in repr(make().attributes)


@dataclass(frozen=True)
class Named:
    """What a request asked, and what its span is called."""

    row: str
    expected: str
    opening: dict[str, Any] = field(default_factory=dict)


NAMES = [
    Named("inference", "chat claude-sonnet-4-5"),
    Named("no model", "chat", {"model_asked": None}),
    Named("complete", "text_completion claude-2", {"path": "/v1/complete", "model_asked": "claude-2"}),
    Named("another method", "GET /v1/messages", {"method": "GET"}),
    Named("counting", "POST /v1/messages/count_tokens", {"path": "/v1/messages/count_tokens"}),
    Named("batches", "POST /v1/messages/batches", {"path": "/v1/messages/batches"}),
    Named("one of many", "GET /v1/files/{id}/content", {"method": "GET", "path": "/v1/files/file_011CNha8/content"}),
    Named("a model", "GET /v1/models/{id}", {"method": "GET", "path": "/v1/models/claude-opus-5-5"}),
    Named("a version alone", "GET /v1", {"method": "GET", "path": "/v1"}),
]


@pytest.mark.parametrize("named", NAMES, ids=lambda named: named.row)
def test_names_are_few(named: Named) -> None:
    assert make(opening=named.opening).name == named.expected


ENDS = {
    "finished": ({"ended": FINISHED}, None),
    "refused": ({"ended": REFUSED, "error_type": "rate_limit_error", "status": 429}, "rate_limit_error"),
    "refused without a type": ({"ended": REFUSED, "error_type": None, "status": 418}, "418"),
    "refused without a status": ({"ended": REFUSED, "error_type": None, "status": None}, "_OTHER"),
    "an error event": ({"ended": UPSTREAM_ERROR, "error_type": "overloaded_error"}, "overloaded_error"),
    "incomplete": ({"ended": INCOMPLETE, "error_type": None}, "incomplete"),
    "client gone": ({"ended": CLIENT_GONE, "error_type": None}, "client_gone"),
    "upstream silent": ({"ended": UPSTREAM_TIMEOUT, "error_type": None}, "upstream_timeout"),
    "cut": ({"ended": CUT_AT_BUDGET, "error_type": None}, "cut_at_budget"),
    "failed": ({"ended": FAILED, "error_type": None}, "failed"),
    "lost": ({"ended": LOST, "error_type": None, "ended_us": None}, "lost"),
}


@pytest.mark.parametrize(("closing", "error"), ENDS.values(), ids=ENDS)
def test_ends_that_are_not_good_are_errors(closing: dict[str, Any], error: str | None) -> None:
    span = make(closing=closing)
    assert span.attributes is not None
    assert span.attributes.get("error.type") == error
    assert span.status.status_code is (StatusCode.UNSET if error is None else StatusCode.ERROR)
    assert span.status.description == (None if error is None else closing["ended"])


def test_a_span_ends_no_earlier_than_it_starts() -> None:
    assert make(closing={"ended_us": T0 - 5}).end_time == make().start_time


def test_ids_follow_from_the_exchange() -> None:
    spans = [make(n).get_span_context() for n in (1, 1, 2)]
    assert [f"{span.trace_id:032x}" for span in spans if span] == [
        make_opening(n).id.replace("-", "") for n in (1, 1, 2)
    ]
    assert [f"{span.span_id:016x}" for span in spans if span] == [
        make_opening(n).id[-17:].replace("-", "") for n in (1, 1, 2)
    ]
    assert make().parent is None


@pytest.mark.parametrize(("header", "unsampled"), [(PARENT, None), (UNSAMPLED, True), (PARENT[:-2] + "03", None)])
def test_a_traceparent_is_the_parent(header: str, unsampled: bool | None) -> None:
    span = make(opening={"traceparent": header})
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    assert parent is not None
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (header[3:35], "8000000000000001")
    assert (parent.trace_id, f"{parent.span_id:016x}", parent.is_remote) == (context.trace_id, header[36:52], True)
    assert context.trace_flags == int(header[-2:], 16)
    assert span.attributes is not None
    assert span.attributes.get("tproxy.trace.unsampled") is unsampled


def test_the_request_is_the_one_that_the_sdk_would_make() -> None:
    spans = [
        make(1),
        make(2, {"traceparent": PARENT}, {"ended": CLIENT_GONE}),
        make(3, {"stream": False, "tags": ()}, {"cost_nano": 0, "input_tokens": 0}),
        bare(),
        bare(ended=LOST, error_type="x" * 300),
    ]
    request = TraceRequest(RESOURCE, SCOPE)
    for span in spans:
        request.add(span)
    assert request.encoded() == encode_spans(spans).SerializeToString()


VALUES = {
    "negative": -1,
    "least": -(2**63),
    "greatest": 2**63 - 1,
    "two bytes": 128,
    "zero": 0,
    "negative float": -0.5,
    "yes": True,
    "no": False,
    "empty": "",
    "just kept": "ü" * 64,
    "not kept": "ü" * 65,
    "long": "x" * 20_000,
    "no texts": (),
    "an empty text": ("",),
    "long texts": ("x" * 200, "y" * 20_000),
}


@pytest.mark.parametrize(("name", "value"), VALUES.items(), ids=VALUES)
def test_an_attribute_is_as_the_sdk_would_write_it(name: str, value: Any) -> None:
    span = ReadableSpan(
        "chat",
        context=make().get_span_context(),
        resource=RESOURCE,
        attributes={name: value},
        instrumentation_scope=SCOPE,
        start_time=1,
        end_time=2,
    )
    for _ in range(2):  # what is kept comes from there the second time
        request = TraceRequest(RESOURCE, SCOPE)
        request.add(span)
        assert request.encoded() == encode_spans([span]).SerializeToString()


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("user.id", "x" * 64, True),
        ("user.id", "x" * 65, False),
        (semconv.TAGS, ("x" * 32, "y" * 32), True),
        (semconv.TAGS, ("x" * 32, "y" * 33), False),
        (semconv.REQUEST_STREAM, True, True),
        ("gen_ai.usage.output_tokens", 12, False),
        *((name, "x", False) for name in sorted(semconv.UNIQUE)),
    ],
    ids=lambda value: None if len(str(value)) < 40 else f"{len(str(value))} characters",
)
def test_what_is_long_or_comes_once_is_not_kept(name: str, value: Any, kept: bool) -> None:
    _again.cache_clear()
    _attribute(name, value)
    assert _again.cache_info().currsize == kept
