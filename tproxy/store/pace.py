"""How the ledger's thread keeps up. The thread writes it, the loop reads it; there is no lock, and none is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tproxy.histogram import Histogram

COMMIT_BOUNDS_US: Final = (
    *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000),
    *(100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000),
)


@dataclass(slots=True)
class Pace:
    """
    Attributes:
        commits: how long each commit took, with its fsync, in microseconds.
        settlements: grows with each row that has ended and is durable, those that the start closed included. A commit
            that failed and may yet have been made counts as one.
        begun_seq: the number of the newest entry of the journal when this process began. What came after it, the rows
            that the start closed included, ended in this process.
        taken: items that were taken from the queue and are not durable.
        taken_since: when the oldest of them was queued (`time.monotonic`); meaningless while there are none.
    """

    commits: Histogram = field(default_factory=lambda: Histogram(COMMIT_BOUNDS_US))
    settlements: int = 0
    begun_seq: int = 0
    taken: int = 0
    taken_since: float = 0.0
