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

from typing import Final

from msgspec.structs import astuple

from tproxy.flow.course import Course
from tproxy.protocol.keys import masked
from tproxy.protocol.pricing import Bill, Cost, IterationTokens, PriceBook, Tokens
from tproxy.protocol.usage import Iteration, Outcome, Usage
from tproxy.store import base
from tproxy.store.base import Closing

_SILENT: Final = Usage()  # of an answer that told no usage

# What is booked: the fields of a `Cost`, in their order, each None where it is not known.
_Money = tuple[int | None, int | None, int | None, int | None, int | None, int | None, str | None]
_UNKNOWN: Final[_Money] = (None, None, None, None, None, None, None)
_NOTHING: Final[_Money] = (0, None, None, None, None, None, None)


def settle(course: Course, outcome: Outcome, prices: PriceBook, *, running: bool = False) -> Closing:
    """The closing row of an exchange; with `running`, what is known of it so far (`ended` = OPEN)."""
    usage = outcome.usage or _SILENT
    output_tokens, estimated = usage.output_tokens, False
    if outcome.usage is not None and not outcome.final:
        # message_start holds a placeholder of a token or so: what was delivered is the better figure.
        output_tokens, estimated = max(output_tokens or 0, outcome.delivered_tokens), True
    money, certainty = _booked(course, outcome, prices, output_tokens or 0, estimated=estimated)
    cost, cost_input, cost_output, cost_cache_read, cost_cache_write, cost_tools, price_version = money
    return Closing(
        id=course.id,
        ended=base.OPEN if running else _ended(course, outcome),
        ended_us=None if running else course.clock(),
        dialled_us=course.dialled_us,
        head_us=course.head_us,
        first_content_us=course.first_content_us,
        last_byte_us=course.last_byte_us,
        status=course.status,
        model_served=masked(outcome.model) if outcome.model is not None else None,
        request_id=course.request_id,
        message_id=outcome.message_id,
        stop_reason=outcome.stop_reason,
        input_tokens=usage.input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        thinking_tokens=usage.thinking_tokens,
        web_searches=usage.web_searches,
        service_tier=usage.service_tier,
        speed=usage.speed,
        geo=usage.geo,
        cost_nano=cost,
        cost_input_nano=cost_input,
        cost_output_nano=cost_output,
        cost_cache_read_nano=cost_cache_read,
        cost_cache_write_nano=cost_cache_write,
        cost_tools_nano=cost_tools,
        price_version=price_version,
        certainty=certainty,
        bytes_in=course.bytes_in,
        bytes_out=course.bytes_out,
        error_type=outcome.error_type or course.error_type,
        tap_fault=course.tap_fault,
    )


def _booked(
    course: Course, outcome: Outcome, prices: PriceBook, output_tokens: int, *, estimated: bool
) -> tuple[_Money, str]:
    """What the exchange costs, and how sure its figures are."""
    passage = course.passage
    answered = course.upstream_status is not None
    refused = answered and not _is_success(course.upstream_status)
    unsent = not course.sent or course.broken == base.UPSTREAM_UNREACHABLE
    inference = passage.inference
    if unsent or refused or (passage.free and not inference):
        return _NOTHING, base.EXACT
    if not inference:
        # A POST that may cost something which its own answer does not tell: a batch, a session, a path unknown to us.
        return _UNKNOWN, base.UNPRICED if answered else base.PARTIAL
    if outcome.usage is None:
        return _UNKNOWN, base.PARTIAL
    price = prices.price(_bill(course, outcome.usage, outcome, output_tokens))
    if isinstance(price, Cost):
        return astuple(price), _certainty(outcome, estimated=estimated)
    return _UNKNOWN, base.UNPRICED


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


def _is_success(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def _bill(course: Course, usage: Usage, outcome: Outcome, output_tokens: int) -> Bill:
    return Bill(
        model=outcome.model or course.model_asked or "",
        at_us=course.accepted_us,
        tokens=_tokens(usage, output_tokens),
        web_searches=usage.web_searches or 0,
        speed=usage.speed,
        geo=usage.geo,
        batch=usage.service_tier == "batch",
        iterations=None
        if usage.iterations is None
        else tuple(IterationTokens(i.kind, i.model, _tokens(i, i.output_tokens or 0)) for i in usage.iterations),
        refused_unbilled=outcome.refused_unbilled,
        asked_model=course.model_asked,
    )


def _tokens(usage: Usage | Iteration, output_tokens: int) -> Tokens:
    return Tokens(
        usage.input_tokens or 0,
        usage.cache_write_5m_tokens or 0,
        usage.cache_write_1h_tokens or 0,
        usage.cache_read_tokens or 0,
        output_tokens,
    )


def prompt_tokens(closing: Closing) -> int | None:
    """All that the model read, cached or not; None where the upstream did not say."""
    if closing.input_tokens is None:
        return None
    cached = (closing.cache_read_tokens, closing.cache_write_5m_tokens, closing.cache_write_1h_tokens)
    return closing.input_tokens + sum(count or 0 for count in cached)
