"""What is counted of exchanges: plain whole numbers, in an object for each set of labels.

    admitted, ended, refused ──► two look-ups, a few additions ┄┄► families(), when somebody scrapes

It is done on the loop that all streams share, so an exchange may cost some microseconds here and no more. Money stays
in nano-dollars and times in microseconds until they are written. The names that begin with `litellm_` and their labels
are LiteLLM's, where they mean the same (docs/metrics.md says where they do not).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tproxy.flow.observer import Observer, Refused, Sight
from tproxy.flow.settle import prompt_tokens
from tproxy.histogram import Histogram
from tproxy.money import NANO
from tproxy.observe import labels
from tproxy.observe.labels import Prices, Who
from tproxy.observe.series import OTHER, Family, Labels, LabelSets, by, histograms
from tproxy.setting_tables import Metrics as MetricsTable
from tproxy.store import base
from tproxy.store.base import Closing

PROVIDER: Final = "anthropic"

# Microseconds.
_LATENCY: Final = tuple(
    int(seconds * 1e6) for seconds in (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 30, 60, 120, 300, 600)
)
_FIRST: Final = tuple(int(s * 1e6) for s in (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60))
_OVERHEAD: Final = (500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000)

# Where a client was when it left.
UPLOADING, BEFORE_HEAD, BEFORE_CONTENT, MIDWAY = PHASES = ("uploading", "before_head", "before_content", "midway")

_GOOD: Final = frozenset({base.FINISHED, base.CLIENT_GONE})


class Usage:
    """What the exchanges of one set of labels came to. Tokens of the input are all that the model read."""

    __slots__ = (
        "api",
        "cached",
        "created",
        "first",
        "input",
        "nano",
        "output",
        "overhead",
        "requests",
        "total",
        "wrote",
    )

    def __init__(self) -> None:
        self.requests = self.nano = self.input = self.output = self.cached = self.created = self.wrote = 0
        self.total = Histogram(_LATENCY)
        self.api = Histogram(_LATENCY)
        self.first = Histogram(_FIRST)
        self.overhead = Histogram(_OVERHEAD)


class Count:
    """How many."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


@dataclass(slots=True)
class ByModel:
    """Times of one model, whoever asked, and its money."""

    head: Histogram = field(default_factory=lambda: Histogram(_FIRST))
    content: Histogram = field(default_factory=lambda: Histogram(_FIRST))
    nano: int = 0


class Metrics(Observer):
    """Counts.

    Attributes:
        enabled: whether anything is counted.
        bytes_in, bytes_out: of bodies, of the exchanges that have ended.
        remains: what the upstream last said of its own limits (`Course.remains`), by model and credential.
    """

    def __init__(self, settings: MetricsTable, prices: Prices) -> None:
        self._prices = prices
        self.enabled = settings.enabled
        self._settings = settings
        self._begin(settings)
        self.bytes_in = self.bytes_out = self.tap_failures = 0
        self.remains: dict[tuple[str, str], tuple[int | None, ...]] = {}
        self._models: dict[str, ByModel] = {}
        self._ends = dict.fromkeys(labels.ENDS, 0)
        self._certainties = dict.fromkeys(labels.CERTAINTIES, 0)
        self._phases = dict.fromkeys(PHASES, 0)
        self._refusals = dict.fromkeys(labels.fault_codes(), 0)

    def _begin(self, settings: MetricsTable) -> None:
        most = settings.max_label_sets
        self.who = Who(settings)
        self._stream = settings.emit_stream_label
        self.usage: LabelSets[Usage] = LabelSets(most, Usage, _without_asked)
        self.requests: LabelSets[Count] = LabelSets(most, Count, _without_asked)
        self.failures: LabelSets[Count] = LabelSets(most, Count, _without_asked)

    def take(self, settings: MetricsTable) -> None:
        """Go by other settings. Where they name other labels, or another bound, what is counted by labels begins anew,
        as after a restart."""
        before, self._settings, self.enabled = self._settings, settings, settings.enabled
        if before.model_copy(update={"enabled": settings.enabled, "public": settings.public}) != settings:
            self._begin(settings)

    def ended(self, sight: Sight, closing: Closing) -> None:
        """Count an exchange that was let in."""
        if not self.enabled:
            return
        opening, course, prices = sight.opening, sight.course, self._prices()
        who = self.who.of(sight.caller, opening)
        asked = labels.model(opening.model_asked, prices)
        served = asked if closing.model_served is None else labels.model(closing.model_served, prices)
        stream = (_stream(opening.stream),) if self._stream else ()
        self._ends[closing.ended] += 1
        self._certainties[closing.certainty] += 1
        self.bytes_in += closing.bytes_in
        self.bytes_out += closing.bytes_out
        if closing.tap_fault is not None:
            self.tap_failures += 1
        if closing.ended == base.CLIENT_GONE:
            self._phases[_phase(sight, closing)] += 1
        if course.remains and sight.credential != "own":
            self._remain(served, sight.credential, course.remains)
        self._request(who, asked, labels.route(opening.path), labels.status(closing.status), stream)
        if closing.ended not in _GOOD:
            why = labels.error(closing.error_type or closing.ended)
            self._failure(who, asked, labels.route(opening.path), labels.status(closing.status), why, stream)
        self._use(self.usage.at((who, (asked, served, *stream))), self._of_model(served), sight, closing)

    def refused(self, refused: Refused) -> None:
        """Count a request that was not let in."""
        if not self.enabled:
            return
        fault = refused.fault
        who, asked = self.who.of(refused.caller, None), labels.model(refused.model, self._prices())
        stream = (_stream(None),) if self._stream else ()
        self._refusals[fault.code] += 1
        route, status = labels.route(refused.path), labels.status(fault.status)
        self._request(who, asked, route, status, stream)
        self._failure(who, asked, route, status, labels.error(fault.code), stream)

    def _request(self, who: Labels, asked: str, route: str, status: str, stream: Labels) -> None:
        self.requests.at((who, (asked, route, status, *stream))).n += 1

    def _failure(self, who: Labels, asked: str, route: str, status: str, why: str, stream: Labels) -> None:
        self.failures.at((who, (asked, route, status, why, *stream))).n += 1

    def _of_model(self, served: str) -> ByModel:
        found = self._models.get(served)
        if found is None:
            found = self._models[served] = ByModel()
        return found

    def _remain(self, served: str, credential: str, remains: tuple[int | None, ...]) -> None:
        if any(figure is not None for figure in remains):
            self.remains[served, credential] = remains

    @staticmethod
    def _use(use: Usage, model: ByModel, sight: Sight, closing: Closing) -> None:
        use.requests += 1
        cost = closing.cost_nano
        if cost:
            use.nano += cost
            model.nano += cost
        read = prompt_tokens(closing)
        if read is not None:
            use.input += read
            use.cached += closing.cache_read_tokens or 0
            use.created += (closing.cache_write_5m_tokens or 0) + (closing.cache_write_1h_tokens or 0)
        use.output += closing.output_tokens or 0
        use.wrote += closing.thinking_tokens or 0
        dialled, head, first, ended = closing.dialled_us, closing.head_us, closing.first_content_us, closing.ended_us
        if dialled is None or head is None:
            return
        # The wall clock may be set back meanwhile.
        model.head.observe(max(0, head - dialled))
        streamed = first is not None and bool(sight.opening.stream)
        if first is not None and streamed:
            model.content.observe(max(0, first - dialled))
        if closing.ended != base.FINISHED or ended is None:
            return
        # A fast refusal or a client that left early says nothing of how long an answer takes.
        total = max(0, ended - sight.opening.accepted_us)
        api = min(max(0, (closing.last_byte_us or head) - dialled), total)
        use.total.observe(total)
        use.api.observe(api)
        use.overhead.observe(total - api)
        if first is not None and streamed:
            use.first.observe(max(0, first - dialled))

    def families(self) -> Iterator[Family]:
        """All that was counted; may be called by another thread."""
        who, stream = self.who.names, ("stream",) if self._stream else ()
        asked = (*who, "requested_model")
        yield Family(
            "litellm_proxy_total_requests_metric",
            "counter",
            "Requests to the Anthropic API, also those that were refused.",
            (*asked, "route", "status_code", *stream),
            [(values, each.n) for values, each in self.requests.items()],
        )
        yield Family(
            "litellm_proxy_failed_requests_metric",
            "counter",
            "Requests that were refused or did not end well.",
            (*asked, "route", "exception_status", "exception_class", *stream),
            [(values, each.n) for values, each in self.failures.items()],
        )
        used = self.usage.items()
        names = (*asked, "model", *stream)
        for name, about, counts in (
            ("litellm_spend_metric", "US dollars.", [use.nano / NANO for _, use in used]),
            ("litellm_requests_metric", "Exchanges that were let in.", [use.requests for _, use in used]),
            ("litellm_total_tokens_metric", "Tokens read and written.", [use.input + use.output for _, use in used]),
            ("litellm_input_tokens_metric", "Tokens read, cached ones too.", [use.input for _, use in used]),
            ("litellm_output_tokens_metric", "Tokens written.", [use.output for _, use in used]),
            ("litellm_input_cached_tokens_metric", "Tokens read from the cache.", [use.cached for _, use in used]),
            (
                "litellm_input_cache_creation_tokens_metric",
                "Tokens written to the cache.",
                [use.created for _, use in used],
            ),
            ("litellm_output_reasoning_tokens_metric", "Tokens of thinking.", [use.wrote for _, use in used]),
        ):
            samples = [((*values, PROVIDER), count) for (values, _), count in zip(used, counts, strict=True)]
            yield Family(name, "counter", about, (*names, "api_provider"), samples)
        for name, about, measured in (
            (
                "litellm_request_total_latency_metric",
                "From the request to the end of its answer, in seconds.",
                [use.total for _, use in used],
            ),
            (
                "litellm_llm_api_latency_metric",
                "From the dial to the last byte of the answer, in seconds.",
                [use.api for _, use in used],
            ),
            (
                "litellm_llm_api_time_to_first_token_metric",
                "Of streams, from the dial to the first content, in seconds.",
                [use.first for _, use in used],
            ),
        ):
            yield histograms(name, about, names, [(v, each) for (v, _), each in zip(used, measured, strict=True)])
        yield histograms(
            "litellm_overhead_latency_metric",
            "Of the total latency, what was not the upstream's, in seconds.",
            (*who, "model_group", "litellm_model_name", *stream),
            [(values, use.overhead) for values, use in used],
        )
        yield from self._own()

    def _own(self) -> Iterator[Family]:
        models = list(self._models.items())
        yield histograms(
            "tproxy_time_to_head_seconds",
            "From the dial to the head of the answer.",
            ("model",),
            [((name,), each.head) for name, each in models],
        )
        yield histograms(
            "tproxy_time_to_first_content_seconds",
            "Of streams, from the dial to the first content.",
            ("model",),
            [((name,), each.content) for name, each in models],
        )
        yield Family(
            "tproxy_spend_nano",
            "counter",
            "Nano-dollars.",
            ("model",),
            [((name,), each.nano) for name, each in models],
        )
        yield by("tproxy_exchanges_ended", "Exchanges by how they ended.", "ended", self._ends)
        yield by(
            "tproxy_exchanges_certainty", "Exchanges by how sure their figures are.", "certainty", self._certainties
        )
        yield by("tproxy_client_disconnects", "Clients that left before the end, by when.", "phase", self._phases)
        yield by("tproxy_refusals", "Requests that were not let in, by error code.", "code", self._refusals)
        yield Family("tproxy_tap_failures", "counter", "Answers that could not be read.", (), [((), self.tap_failures)])
        remains = list(self.remains.items())
        upstream = ("model_group", "litellm_model_name", "api_provider", "credential")
        for place, what in enumerate(("requests", "tokens")):
            yield Family(
                f"litellm_remaining_{what}_metric",
                "gauge",
                f"What the upstream last said remains of its limit on {what}.",
                upstream,
                [((m, m, PROVIDER, c), figure) for (m, c), told in remains if (figure := told[place]) is not None],
            )


def _without_asked(what: Labels) -> Labels:
    """Of what a request was about, the model that was asked for is left out where callers are not told apart."""
    return (OTHER, *what[1:])


def _stream(stream: bool | None) -> str:
    return "" if stream is None else "true" if stream else "false"


def _phase(sight: Sight, closing: Closing) -> str:
    if closing.head_us is None:
        return BEFORE_HEAD if sight.course.passage.held else UPLOADING
    return BEFORE_CONTENT if closing.first_content_us is None and sight.course.passage.inference else MIDWAY
