"""What all taps together see of the streams, in numbers: written for each batch, read by the metrics.

One for the process, since a stream that runs for an hour is to be seen while it runs.
"""

from __future__ import annotations

from tproxy.histogram import Histogram

# Microseconds. Models write some 20 to 200 events a second, and pings come every few seconds.
_GAP_BOUNDS = (1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 30_000_000)
_LAG_BOUNDS = (1_000, 10_000, 100_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000)


class Pulse:
    """Attributes:
    gaps: microseconds between two arrivals of one stream.
    lag: for how many microseconds the oldest chunk of a batch had waited for the tap.
    events: events of streams that have been read.
    """

    __slots__ = ("events", "gaps", "lag")

    def __init__(self) -> None:
        self.gaps = Histogram(_GAP_BOUNDS)
        self.lag = Histogram(_LAG_BOUNDS)
        self.events = 0
