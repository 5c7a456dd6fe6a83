"""The table of workloads. A new one is a row here; a new shape is a branch in load.py and a table in report.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

HELD = "held"  # each connection carries one stream, from the start of the run to its end
PACED = "paced"  # each connection sends a request every `period_ms`, whether or not answers are slow (open loop)
CLOSED = "closed"  # each connection sends its next request when it has the answer (closed loop): the most that goes

OPENED_PER_SECOND = 250
SETTLE_SECONDS = 1.0
SLACK_SECONDS = 30.0  # how much longer than planned a run may take before what is left counts as dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the load does.

    Attributes:
        shape: HELD, PACED or CLOSED.
        connections: at a time; opened one after the other, `OPENED_PER_SECOND`.
        stream: whether answers are streamed.
        interval_us: between two events of a stream. HELD streams stand at random phases to each other, as real ones
            do; the same phases in every run.
        events: of one answer (words, in a plain one). HELD streams have as many as fill the run.
        period_ms: see PACED.
        seconds: how long is measured, when all connections are open and have settled.
    """

    name: str
    shape: str
    connections: int
    stream: bool = True
    interval_us: int = 0
    events: int = 1
    period_ms: int = 0
    seconds: float = 6.0

    @property
    def opening_seconds(self) -> float:
        """How long the connections take to open."""
        return self.connections / OPENED_PER_SECOND

    def lasting(self, seconds: float) -> Workload:
        """The same, measured for so long."""
        return replace(self, seconds=seconds)


WORKLOADS = (
    Workload(name="100 streams x 50/s", shape=HELD, connections=100, interval_us=20_000),
    Workload(name="1,000 streams x 1/s", shape=HELD, connections=1_000, interval_us=1_000_000),
    Workload(
        name="first byte, 20 connections", shape=PACED, connections=20, interval_us=10_000, events=3, period_ms=100
    ),
    Workload(name="plain answers, 16 connections", shape=CLOSED, connections=16, stream=False, events=100),
)


def hold(streams: int, seconds: float) -> Workload:
    """So many streams of one event a second."""
    return Workload(
        name=f"{streams:,} streams x 1/s", shape=HELD, connections=streams, interval_us=1_000_000, seconds=seconds
    )
