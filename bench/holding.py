"""Many streams held at once: what tproxy promises of its memory, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.report import basis, idle_mb, kib_per_stream, warnings
from bench.suite import Results
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Bound:
    """A promise: what, in which unit, and the most that it may come to. None: nothing is promised."""

    what: str
    value: Callable[[Results, Workload], float]
    most: float | None = None


def _dropped(results: Results, workload: Workload) -> float:
    return results.of(workload, "tproxy")[0].tally.dropped


def _event_added_ms(quantile: str) -> Callable[[Results, Workload], float]:
    def value(results: Results, workload: Workload) -> float:
        through, direct = (results.of(workload, name)[0].tally.times["event"] for name in ("tproxy", "direct"))
        return (through[quantile] - direct[quantile]) / 1000

    return value


BOUNDS = (
    Bound("streams dropped", _dropped, 0),
    Bound("added to an event, p50, ms", _event_added_ms("p50")),
    Bound("added to an event, p99, ms", _event_added_ms("p99")),
    Bound(
        "idle process, MB resident", lambda results, workload: idle_mb(results.of(workload, "tproxy")[0], workload), 80
    ),
    Bound(
        "each open stream, KiB resident",
        lambda results, workload: kib_per_stream(results.of(workload, "tproxy")[0], workload),
        96,
    ),
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
    return Group(basis(results), table, *(Text(text, style="bold red") for text in warnings(results)))
