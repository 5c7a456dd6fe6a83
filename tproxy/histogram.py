"""A histogram of whole numbers: how many were at most each bound, and their sum.

What is counted for each chunk of a stream is counted with this, and read when somebody asks (`observe/metrics.py`): a
look for the bucket and two additions, with no lock and no object made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts by bucket; `counts` has one entry more than `bounds`, for what is above all of them.

    Args:
        bounds: rising; each belongs to its bucket.

    Attributes:
        total: the sum of all that was observed, in their unit.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)
