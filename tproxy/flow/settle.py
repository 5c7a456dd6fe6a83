"""What an exchange came to: from what the tap learnt and how it ended to the row that closes it.

A table in one function, pure, so that every case can be tested without a socket. How sure the figures are:

| the answer | tokens | certainty |
|---|---|---|
| ended with the upstream's last word on usage | as told | `exact` |
| said a usage and may have had more to say, or said it oddly | as told | `partial` |
| cut after message_start | input as told, output counted from the delivered deltas | `estimated` |
| nothing of it was seen, and the request may have been | none | `partial`, cost unknown |
| nothing was sent: no connection, or the client left before | none | `exact`, cost 0 |
| known tokens without a known price, or a call whose price nobody told us | as told | `unpriced`, cost unknown |
| a call that costs nothing, or an error status | none | `exact`, cost 0 |
"""

from __future__ import annotations

from dataclasses import replace

from tproxy.flow.course import Course
from tproxy.protocol.pricing import Bill, Cost, IterationTokens, PriceBook, Tokens, Unpriced
from tproxy.protocol.usage import Iteration, Outcome, Usage
from tproxy.store import base
from tproxy.store.base import Closing


def settle(course: Course, outcome: Outcome, prices: PriceBook, *, running: bool = False) -> Closing:
    """The closing row of an exchange; with `running`, what is known of it so far (`ended` = OPEN)."""
    passage = course.passage
    usage, estimated = _with_delivered_output(outcome)
    closing = Closing(
        id=course.id,
        ended=base.OPEN if running else _ended(course, outcome),
        ended_us=None if running else course.clock(),
        dialled_us=course.dialled_us,
        head_us=course.head_us,
        first_content_us=course.first_content_us,
        last_byte_us=course.last_byte_us,
        status=course.status,
        model_served=outcome.model,
        request_id=course.request_id,
        message_id=outcome.message_id,
        stop_reason=outcome.stop_reason,
        bytes_in=course.bytes_in,
        bytes_out=course.bytes_out,
        error_type=outcome.error_type or course.error_type,
        tap_fault=course.tap_fault,
    )
    if usage is not None:
        closing = replace(
            closing,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_5m_tokens=usage.cache_write_5m_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            thinking_tokens=usage.thinking_tokens,
            web_searches=usage.web_searches,
            service_tier=usage.service_tier,
            speed=usage.speed,
            geo=usage.geo,
        )
    answered = course.upstream_status is not None
    refused = answered and not _is_success(course.upstream_status)
    unsent = not course.sent or course.broken == base.UPSTREAM_UNREACHABLE
    if unsent or refused or (passage.free and not passage.inference):
        return replace(closing, cost_nano=0, certainty=base.EXACT)
    if not passage.inference:
        # A POST that may cost something which its own answer does not tell: a batch, a session, a path unknown to us.
        return replace(closing, certainty=base.UNPRICED if answered else base.PARTIAL)
    if usage is None:
        return replace(closing, certainty=base.PARTIAL)
    price = prices.price(_bill(course, usage, outcome))
    if isinstance(price, Unpriced):
        return replace(closing, certainty=base.UNPRICED)
    return _priced(closing, price, _certainty(outcome, estimated=estimated))


def _ended(course: Course, outcome: Outcome) -> str:
    """The word for how it ended. A clean end of the bytes is not yet a good end of the answer."""
    if course.broken is not None:
        return course.broken
    # Clients close as soon as they have what they want: what was sent before that is not missing to them.
    last_word = outcome.stopped or outcome.error_type is not None  # no event follows either
    if not course.whole and (course.missed or not last_word):
        return base.CLIENT_GONE if course.client_gone else base.FAILED
    if course.status is not None and course.status >= 400:
        return base.REFUSED
    if not course.passage.inference or course.tap_fault is not None:
        return base.FINISHED
    if outcome.error_type is not None:
        return base.UPSTREAM_ERROR
    return base.FINISHED if outcome.stopped or not outcome.started else base.INCOMPLETE


def _certainty(outcome: Outcome, *, estimated: bool) -> str:
    if estimated:
        return base.ESTIMATED
    last_word = outcome.final and (outcome.stopped or outcome.stop_reason)
    return base.EXACT if last_word and not outcome.odd_usage else base.PARTIAL


def _with_delivered_output(outcome: Outcome) -> tuple[Usage | None, bool]:
    """The usage, its output counted from the deltas where the upstream did not say; and whether it was.

    message_start holds a placeholder of a token or so: what was delivered is the better figure.
    """
    usage = outcome.usage
    if usage is None or outcome.final:
        return usage, False
    return replace(usage, output_tokens=max(usage.output_tokens or 0, outcome.delivered_tokens)), True


def _is_success(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def _bill(course: Course, usage: Usage, outcome: Outcome) -> Bill:
    return Bill(
        model=outcome.model or course.model_asked or "",
        at_us=course.accepted_us,
        tokens=_tokens(usage),
        web_searches=usage.web_searches or 0,
        speed=usage.speed,
        geo=usage.geo,
        batch=usage.service_tier == "batch",
        iterations=None
        if usage.iterations is None
        else tuple(IterationTokens(i.kind, i.model, _tokens(i)) for i in usage.iterations),
        refused_unbilled=outcome.refused_unbilled,
        asked_model=course.model_asked,
    )


def _tokens(usage: Usage | Iteration) -> Tokens:
    return Tokens(
        input=usage.input_tokens or 0,
        cache_write_5m=usage.cache_write_5m_tokens or 0,
        cache_write_1h=usage.cache_write_1h_tokens or 0,
        cache_read=usage.cache_read_tokens or 0,
        output=usage.output_tokens or 0,
    )


def _priced(closing: Closing, cost: Cost, certainty: str) -> Closing:
    return replace(
        closing,
        cost_nano=cost.total_nano,
        cost_input_nano=cost.input_nano,
        cost_output_nano=cost.output_nano,
        cost_cache_read_nano=cost.cache_read_nano,
        cost_cache_write_nano=cost.cache_write_nano,
        cost_tools_nano=cost.tools_nano,
        price_version=cost.version,
        certainty=certainty,
    )


def prompt_tokens(closing: Closing) -> int | None:
    """All that the model read, cached or not; None where the upstream did not say."""
    if closing.input_tokens is None:
        return None
    cached = (closing.cache_read_tokens, closing.cache_write_5m_tokens, closing.cache_write_1h_tokens)
    return closing.input_tokens + sum(count or 0 for count in cached)
