"""A whole report as a list of parts, in reading order; what shows them does not know what is in them."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report import tables
from bench.report.plots import Plot, plots
from bench.report.tables import Table
from bench.suite import Results


@dataclass(frozen=True, slots=True)
class Part:
    """A heading with what stands below it. A plot comes with its table."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: Table | None = None
    plot: Plot | None = None


def document(results: Results) -> list[Part]:
    """The whole report of a run."""
    first = [Part("Read this first", tuple(told))] if (told := tables.warnings(results)) else []
    legend = Part("The figures", (tables.LEGEND,))
    return [
        *first,
        _table(tables.goals(results)),
        legend,
        *(_table(table) for table in tables.of_workloads(results)),
        *(Part(plot.title, (), plot.table, plot) for plot in plots(results)),
        _table(tables.of_load(results)),
        Part("Who did not run", tuple(tables.who_did_not_run(results))),
        _table(tables.facts(results)),
    ]


def _table(table: Table) -> Part:
    return Part(table.title, tuple(table.note.splitlines()), table)
