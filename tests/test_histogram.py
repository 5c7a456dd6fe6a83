from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tproxy.histogram import Histogram


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1, 10))
    for value in (-5, 0, 1, 2, 10, 11, 10**12):
        histogram.observe(value)
    assert histogram.counts == [3, 2, 2]
    assert histogram.count == 7


@given(st.lists(st.integers()), st.lists(st.integers(), unique=True).map(sorted))
def test_it_counts_as_the_definition_says(values: list[int], bounds: list[int]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    for place, bound in enumerate(bounds):
        assert sum(histogram.counts[: place + 1]) == sum(value <= bound for value in values)
    assert (histogram.count, histogram.total) == (len(values), sum(values))
