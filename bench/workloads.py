"""The table of workloads. A new one is a row here; a new shape is a branch in both loads and a table in report.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

HELD = "held"  # each connection carries one stream, from the start of the run to its end
PACED = "paced"  # each connection sends a request every `period_ms`, whether or not answers are slow (open loop)
CLOSED = "closed"  # each connection sends its next request when it has the answer (closed loop): the most that goes

OPENED_PER_SECOND = 500
SETTLE_SECONDS = 1.0
SLACK_SECONDS = 30.0  # how much longer than planned a run may take before what is left counts as dropped

# What a latency curve is drawn through: hundredths, then thousandths, then ten-thousandths.
SHARES = (
    *(n / 100 for n in range(1, 100)),
    *(n / 1_000 for n in range(991, 1_000)),
    *(n / 10_000 for n in range(9_991, 10_000)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the load does.

    Attributes:
        shape: HELD, PACED or CLOSED.
        connections: at a time; opened one after the other, and PACED ones over one period.
        opened_per_second: how fast, at most. Slow subjects need time to open what they then hold with ease.
        stream: whether answers are streamed.
        interval_us: between two events of a stream; 0: as fast as they are taken. HELD streams stand at random phases
            to each other, as real ones do; the same phases in every run.
        events: of one answer (words, in a plain one). HELD streams have as many as fill the run.
        period_ms: see PACED.
        body_bytes: about the size of a request's body; 0: a short prompt of 2 kB.
        fresh: a new connection for every request.
        slow_each: of so many connections, one takes 4 kB and then nothing for `stall_ms`, as long as it is measured,
            so that its stream waits on the way; 0: none does. Its events are counted and checked, but not timed.
        tls, gzip: what the upstream speaks. The load always speaks plain HTTP.
        core: every subject runs it; others are for tproxy and for those that do nothing but forward.
        short: part of the short run.
        seconds: how long is measured, when all connections are open and have settled.
    """

    name: str
    shape: str
    connections: int
    opened_per_second: int = OPENED_PER_SECOND
    stream: bool = True
    interval_us: int = 0
    events: int = 1
    period_ms: int = 0
    body_bytes: int = 0
    fresh: bool = False
    slow_each: int = 0
    stall_ms: int = 0
    tls: bool = False
    gzip: bool = False
    core: bool = False
    short: bool = False
    seconds: float = 6.0

    @property
    def opening_seconds(self) -> float:
        """How long the connections take to open."""
        return max(self.connections / self.opened_per_second, self.period_ms / 1000)

    def lasting(self, seconds: float) -> Workload:
        """The same, measured for so long."""
        return replace(self, seconds=seconds)


def hold(streams: int, seconds: float) -> Workload:
    """So many streams of one event a second."""
    return Workload(
        name=f"{streams:,} streams x 1/s",
        shape=HELD,
        connections=streams,
        opened_per_second=300,
        interval_us=1_000_000,
        seconds=seconds,
    )


_HUNDRED = Workload(name="100 streams x 50/s", shape=HELD, connections=100, opened_per_second=50, interval_us=20_000)
_FIRST_BYTE = Workload(
    name="first byte, 20 connections", shape=PACED, connections=20, interval_us=10_000, events=3, period_ms=400
)  # 50 requests a second: few enough for the slowest of the subjects
_FLOOD_EVENTS = 10_000  # of one answer, 2.5 MB: more than all buffers on the way hold

WORKLOADS = (
    replace(_HUNDRED, core=True, short=True),
    Workload(name="500 streams x 10/s", shape=HELD, connections=500, interval_us=100_000),
    hold(2_000, 6.0),
    hold(5_000, 6.0),
    Workload(name="flood, 8 streams", shape=CLOSED, connections=8, events=_FLOOD_EVENTS),
    Workload(
        name="plain answers, 16 connections", shape=CLOSED, connections=16, stream=False, events=100, core=True,
        short=True,
    ),
    replace(_FIRST_BYTE, core=True, short=True),
    replace(_FIRST_BYTE, name="100 kB requests, 20 connections", period_ms=200, body_bytes=100_000),
    Workload(name="TLS upstream, 100 streams x 20/s", shape=HELD, connections=100, interval_us=50_000, tls=True),
    Workload(name="gzip upstream, 100 streams x 20/s", shape=HELD, connections=100, interval_us=50_000, gzip=True),
    replace(_HUNDRED, name="100 streams x 50/s, 10 read slowly", slow_each=10, stall_ms=2_000),
    replace(_FIRST_BYTE, name="a connection for each request, 200/s", period_ms=100, fresh=True),
)  # fmt: skip
