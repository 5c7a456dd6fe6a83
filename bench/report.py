"""What a run came to, for people: a table for each workload, with the median, the least and the most of the rounds.

`added` is the difference to the direct run of the same round. It can be a little below zero: that is the noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.cell import Cell
from bench.suite import Results
from bench.workloads import CLOSED, HELD, PACED, Workload

BUSY_MACHINE = 0.1  # cores of other work, above which the reader is warned
LEGEND = (
    "Times in µs; p50, p99, p99.9 as the client sees them. Each figure: the median of the rounds, their least and most."
)

Value = Callable[[Cell, Workload], float]


def timed(name: str, quantile: str) -> Value:
    """A quantile of what was timed, in µs."""
    return lambda cell, workload: cell.tally.times[name][quantile]


def cpu_per_event(cell: Cell, workload: Workload) -> float:
    """The proxy's µs of CPU for each event that went through."""
    return cell.proxy_cpu_seconds * 1e6 / cell.tally.events


def cpu_per_answer(cell: Cell, workload: Workload) -> float:
    """The proxy's µs of CPU for each whole exchange."""
    return cell.proxy_cpu_seconds * 1e6 / cell.tally.answers


def answers_per_second(cell: Cell, workload: Workload) -> float:
    """Exchanges that ended, by the clock of the load."""
    return cell.tally.answers / cell.tally.seconds


def events_per_read(cell: Cell, workload: Workload) -> float:
    """How many events the client found in one read; above 1, something on the way had joined them."""
    return cell.tally.events / cell.tally.reads


def idle_mb(cell: Cell, workload: Workload) -> float:
    """The proxy's resident memory before its first request, in MB."""
    return cell.idle_bytes / 1e6


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


COLUMNS: dict[str, tuple[Column, ...]] = {
    HELD: (
        Column("event p50", timed("event", "p50"), added=True),
        Column("p99", timed("event", "p99"), added=True),
        Column("p99.9", timed("event", "p99.9")),
        Column("events/read", events_per_read, digits=2),
        Column("CPU/event", cpu_per_event, digits=1, of_proxy=True),
        Column("idle MB", idle_mb, digits=1, of_proxy=True),
        Column("KiB/stream", kib_per_stream, digits=1, of_proxy=True),
    ),
    PACED: (
        Column("first byte p50", timed("first_byte", "p50"), added=True),
        Column("p99", timed("first_byte", "p99"), added=True),
        Column("first event p50", timed("first_event", "p50"), added=True),
        Column("answers/s", answers_per_second),
        Column("CPU/answer", cpu_per_answer, of_proxy=True),
    ),
    CLOSED: (
        Column("answers/s", answers_per_second),
        Column("answer p50", timed("answer", "p50")),
        Column("p99", timed("answer", "p99")),
        Column("CPU/answer", cpu_per_answer, of_proxy=True),
    ),
}


def spread(values: Sequence[float], digits: int, mark: str = "") -> str:
    """The median, behind a mark; if there is more than one value, the least and the most on two lines below it."""
    shown = [median(values)] if len(values) == 1 else [median(values), min(values), max(values)]
    first, *rest = (f"{value:,.{digits}f}" for value in shown)
    return mark + "\n".join([first, *(f"[dim]{value}[/dim]" for value in rest)])


def render(results: Results) -> RenderableType:
    """All tables of a run, below what they were measured on."""
    tables = [_table(results, workload) for workload in results.workloads]
    return Group(basis(results), *tables, Text(LEGEND), *(Text(text, style="bold red") for text in warnings(results)))


def basis(results: Results) -> RenderableType:
    """What the figures were measured on, a fact a line."""
    grid = Table.grid(padding=(0, 2))
    for name, fact in results.facts.items():
        grid.add_row(name, escape(fact if isinstance(fact, str) else json.dumps(fact)))
    return grid


def warnings(results: Results) -> list[str]:
    """What the reader must know before trusting the figures."""
    told = []
    pinned = results.facts["pinned"]
    if isinstance(pinned, dict) and pinned["proxy"] == pinned["load"]:
        told.append("The proxy shared its only core with the load: these figures say little.")
    foreign = max(cell.foreign_cores for cell in results.cells)
    if foreign > BUSY_MACHINE:
        told.append(f"Other work took up to {foreign:.2f} cores meanwhile: run this on a quiet machine.")
    if any(cell.load_bound for cell in results.cells):
        told.append("≥: the load was at its own limit; the subject could do more.")
    return told


def _table(results: Results, workload: Workload) -> Table:
    columns = COLUMNS[workload.shape]
    table = Table(title=f"{workload.name}, {workload.seconds:.0f} s", box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column.heading, justify="right")
        if column.added:
            table.add_column("added", justify="right")
    table.add_column("load busy", justify="right")
    for name in results.subjects():
        cells, direct = results.of(workload, name), results.of(workload, "direct")
        row = [name if len(cells) == 1 else f"{name}\n[dim]least\nmost[/dim]"]
        for column in columns:
            row.append("" if column.of_proxy and name == "direct" else _figure(column, cells, workload))
            if column.added:
                pairs = zip(cells, direct, strict=False) if name != "direct" else ()
                differences = [column.value(cell, workload) - column.value(other, workload) for cell, other in pairs]
                row.append(spread(differences, column.digits) if differences else "")
        row.append(f"{max(cell.side_busy for cell in cells):.0%}")
        table.add_row(*row)
    return table


def _figure(column: Column, cells: Sequence[Cell], workload: Workload) -> str:
    bound = column.value is answers_per_second and any(cell.load_bound for cell in cells)
    return spread([column.value(cell, workload) for cell in cells], column.digits, "≥ " if bound else "")
