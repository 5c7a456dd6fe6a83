"""The page of `/metrics`, written by Prometheus' own library: text 0.0.4 or OpenMetrics, as the client accepts.

It is written in pieces, on the loop: the library takes some 20 µs for a sample, so that a page may take a second, and a
thread that is busy for so long holds up the loop by 5 ms at each of its turns. Between two pieces others run.

Loaded with the first scrape, for a process that nobody scrapes need not hold the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tproxy.histogram import Histogram
from tproxy.observe.series import Family, Sample

_LINES: Final = 60  # in a piece; a histogram's are never divided
_END: Final = b"# EOF\n"  # of OpenMetrics


class _One(Collector):
    """What the library writes at a time."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        return iter((self._metric,))


class Writing:
    """A page that is being written.

    Args:
        accept: the request's Accept header.

    Attributes:
        content_type: of the page.
    """

    def __init__(self, families: Iterable[Family], accept: str) -> None:
        self._families = families
        self._encode, self.content_type = choose_encoder(accept)

    def pieces(self) -> Iterator[bytes]:
        """The page, piece by piece."""
        for family in self._families:
            for number, some in enumerate(_divided(list(family.samples))):
                text = self._written(metric(family, some))
                yield text if number == 0 else _without_head(text)
        for each in ProcessCollector(registry=None).collect():
            yield self._written(each)
        if "openmetrics" in self.content_type:
            yield _END

    def _written(self, metric: Metric) -> bytes:
        return self._encode(_One(metric)).removesuffix(_END)


def metric(family: Family, samples: Sequence[Sample]) -> Metric:
    """Some samples of a family as the library has them."""
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in samples:
            if isinstance(value, Histogram):
                buckets, total = _buckets(value, family.unit)
                histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = kind(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        if not isinstance(value, Histogram):
            made.add_metric(labels, value)
    return made


def _divided(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Samples by pieces, one of which may be empty: the family is told all the same."""
    first = samples[0][1] if samples else 0
    at_once = max(1, _LINES // (len(first.counts) + 2)) if isinstance(first, Histogram) else _LINES
    for start in range(0, max(1, len(samples)), at_once):
        yield samples[start : start + at_once]


def _without_head(text: bytes) -> bytes:
    """What was written of a family of which some has been written before."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


def _buckets(histogram: Histogram, unit: float) -> tuple[list[tuple[str, float]], float]:
    buckets: list[tuple[str, float]] = []
    at_most = 0
    for bound, count in zip((*histogram.bounds, None), list(histogram.counts), strict=True):
        at_most += count
        buckets.append(("+Inf" if bound is None else repr(_told(bound, unit)), at_most))
    return buckets, _told(histogram.total, unit)


def _told(value: int, unit: float) -> float:
    """In the metric's unit: divided where that is exact and a product is not, so that 100 ms are 0.1."""
    return value / round(1 / unit) if unit < 1 else value * unit
