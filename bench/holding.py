"""Many streams held at once: what tproxy promises of its memory, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from bench.goals import ON
from bench.report import tables
from bench.report.figures import DIRECT, idle_mb, kib_per_stream
from bench.report.terminal import alarms, draw
from bench.suite import Results
from bench.workloads import Workload

SUBJECTS = (DIRECT, ON)
WHO_DID_NOT_RUN = ("not asked", "not installed")  # nobody else was to


@dataclass(frozen=True, slots=True)
class Bound:
    """A promise: what, in which unit, and the most that it may come to. None: nothing is promised."""

    what: str
    value: Callable[[Results, Workload], float]
    most: float | None = None


def _dropped(results: Results, workload: Workload) -> float:
    return results.of(workload, ON)[0].tally.dropped


def _event_added_ms(quantile: str) -> Callable[[Results, Workload], float]:
    def value(results: Results, workload: Workload) -> float:
        through, direct = (results.of(workload, name)[0].tally.times["event"] for name in (ON, DIRECT))
        return (through[quantile] - direct[quantile]) / 1000

    return value


def _idle_mb(results: Results, workload: Workload) -> float:
    return idle_mb(results.of(workload, ON)[0], workload)


def _kib_per_stream(results: Results, workload: Workload) -> float:
    return kib_per_stream(results.of(workload, ON)[0], workload)


BOUNDS = (
    Bound("streams dropped", _dropped, 0),
    Bound("added to an event, p50, ms", _event_added_ms("p50")),
    Bound("added to an event, p99, ms", _event_added_ms("p99"), 25),
    Bound("idle process, MB resident", _idle_mb, 70),
    Bound("each open stream, KiB resident", _kib_per_stream, 32),
)


def within_bounds(results: Results, workload: Workload) -> bool:
    """Whether every promise was kept."""
    return all(bound.most is None or bound.value(results, workload) <= bound.most for bound in BOUNDS)


def render(results: Results, workload: Workload) -> RenderableType:
    """What was measured, with the promises."""
    table = Table(title=f"{workload.name}, {workload.seconds:.0f} s", box=box.SIMPLE, title_justify="left")
    for heading in ("", "measured", "at most", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for bound in BOUNDS:
        value = bound.value(results, workload)
        if bound.most is None:
            table.add_row(bound.what, f"{value:,.2f}", "", "")
        else:
            table.add_row(bound.what, f"{value:,.1f}", f"{bound.most:,}", "kept" if value <= bound.most else "missed")
    return Group(draw(tables.facts(results, *WHO_DID_NOT_RUN)), table, *alarms(results))
