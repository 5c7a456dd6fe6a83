"""The figures: what is computed of a cell, and which of them are told of which shape of workload.

A figure of a subject is the median of its rounds, with the least and the most. `added` is the difference to the direct
run of the same round. It can be a little below zero: that is the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.cell import Cell
from bench.load import QUANTILES, Tally
from bench.suite import Results
from bench.workloads import CLOSED, HELD, Workload

DIRECT = "direct"
BOUND = "≥ "  # the load was at its own limit
BEYOND = 8  # times that must lie beyond a quantile; of fewer, it is one of the few worst, and another each time
Value = Callable[[Cell, Workload], float]


class TooFew(ArithmeticError):
    """There is nothing to compute a figure of, or not enough."""


def told(tally: Tally, name: str, share: float) -> bool:
    """Whether enough was timed for the quantile at a share. The highest of all is what it is."""
    count = tally.events if name == "event" else tally.answers
    return share == 1 or count - math.ceil(share * count) >= BEYOND


def timed(name: str, quantile: str) -> Value:
    """A quantile of what was timed, in µs."""

    def value(cell: Cell, workload: Workload) -> float:
        if not told(cell.tally, name, QUANTILES[quantile]):
            raise TooFew
        return cell.tally.times[name][quantile]

    return value


def cpu_per_event(cell: Cell, workload: Workload) -> float:
    """The proxy's µs of CPU for each event that went through."""
    return cell.proxy_cpu_seconds * 1e6 / cell.tally.events


def cpu_per_answer(cell: Cell, workload: Workload) -> float:
    """The proxy's µs of CPU for each whole exchange."""
    return cell.proxy_cpu_seconds * 1e6 / cell.tally.answers


def streams_per_core(cell: Cell, workload: Workload) -> float:
    """Derived: how many streams of this pace would use up one core, were the CPU all that they need."""
    return workload.interval_us / cpu_per_event(cell, workload)


def answers_per_second(cell: Cell, workload: Workload) -> float:
    """Exchanges that ended, by the clock of the load."""
    return cell.tally.answers / cell.tally.seconds


def events_per_second(cell: Cell, workload: Workload) -> float:
    """Events that arrived, by the clock of the load."""
    return cell.tally.events / cell.tally.seconds


def megabytes_per_second(cell: Cell, workload: Workload) -> float:
    """What the client has read, in MB."""
    return cell.tally.bytes / 1e6 / cell.tally.seconds


def events_per_read(cell: Cell, workload: Workload) -> float:
    """How many events the client found in one read; above 1, something on the way had joined them."""
    return cell.tally.events / cell.tally.reads


def idle_mb(cell: Cell, workload: Workload) -> float:
    """The proxy's resident memory before its first request, in MB."""
    return cell.idle_bytes / 1e6


def loaded_mb(cell: Cell, workload: Workload) -> float:
    """The proxy's resident memory with all streams open, in MB."""
    return cell.loaded_bytes / 1e6


def kib_per_stream(cell: Cell, workload: Workload) -> float:
    """The resident memory that each open stream adds to the idle process, in KiB."""
    return (cell.loaded_bytes - cell.idle_bytes) / 1024 / workload.connections


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of each subject.

    Attributes:
        added: also tell its difference to the direct run.
        of_proxy: it has no meaning where there is no proxy.
    """

    heading: str
    value: Value
    digits: int = 0
    added: bool = False
    of_proxy: bool = False


_EVENT = (
    Column("event p50", timed("event", "p50"), added=True),
    Column("p99", timed("event", "p99"), added=True),
    Column("p99.9", timed("event", "p99.9"), added=True),
    Column("events/read", events_per_read, digits=2),
    Column("CPU/event", cpu_per_event, digits=1, of_proxy=True),
)
_ANSWERS = (
    Column("answers/s", answers_per_second),
    Column("CPU/answer", cpu_per_answer, of_proxy=True),
)
_HELD = (
    *_EVENT,
    Column("streams/core", streams_per_core, of_proxy=True),
    Column("idle MB", idle_mb, digits=1, of_proxy=True),
    Column("KiB/stream", kib_per_stream, digits=1, of_proxy=True),
)
_PACED = (
    Column("first byte p50", timed("first_byte", "p50"), added=True),
    Column("p90", timed("first_byte", "p90"), added=True),
    Column("p99", timed("first_byte", "p99"), added=True),
    Column("first event p50", timed("first_event", "p50"), added=True),
    *_ANSWERS,
)
_FLOOD = (
    Column("events/s", events_per_second),
    Column("MB/s", megabytes_per_second, digits=1),
    Column("events/read", events_per_read, digits=2),
    Column("CPU/event", cpu_per_event, digits=2, of_proxy=True),
    *_ANSWERS,
)
_PLAIN = (
    Column("answer p50", timed("answer", "p50")),
    Column("p90", timed("answer", "p90")),
    Column("p99", timed("answer", "p99")),
    *_ANSWERS,
)


def columns(workload: Workload) -> tuple[Column, ...]:
    """What is told of a workload."""
    if workload.shape == CLOSED:
        return _FLOOD if workload.stream else _PLAIN
    return _HELD if workload.shape == HELD else _PACED


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one subject: its values of all rounds.

    Attributes:
        mark: stands before it, such as `≥ `.
    """

    values: tuple[float, ...]
    digits: int = 0
    mark: str = ""

    @property
    def middle(self) -> str:
        """The median of the rounds."""
        return self.mark + self._text(median(self.values))

    @property
    def ends(self) -> tuple[str, ...]:
        """The least and the most, if there was more than one round."""
        return (self._text(min(self.values)), self._text(max(self.values))) if len(self.values) > 1 else ()

    def __str__(self) -> str:
        return f"{self.middle} ({'–'.join(self.ends)})" if self.ends else self.middle  # noqa: RUF001

    def _text(self, value: float) -> str:
        text = f"{value:,.{self.digits}f}"
        return text.lstrip("-") if not text.strip("-0.,") else text  # no -0


def values(cells: Sequence[Cell], value: Value, workload: Workload) -> list[float]:
    """Of each round in which there was something to compute it of."""
    found = []
    for cell in cells:
        try:
            found.append(value(cell, workload))
        except (KeyError, ZeroDivisionError, TooFew):
            continue
    return found


def added(results: Results, workload: Workload, subject: str, value: Value, base: str = DIRECT) -> list[float]:
    """The difference to another subject, direct if none is named, of each round that both have."""
    bases = {cell.turn: cell for cell in results.of(workload, base)}
    differences = []
    for cell in results.of(workload, subject):
        if cell.turn in bases:
            pair = values((cell, bases[cell.turn]), value, workload)
            differences += [pair[0] - pair[1]] if len(pair) == 2 else []
    return differences
