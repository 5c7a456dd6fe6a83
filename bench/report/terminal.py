"""A report on the terminal: the tables alone."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as Drawn
from rich.text import Text

from bench.report import tables
from bench.report.figures import Figure
from bench.report.tables import Entry, Table
from bench.suite import Results


def render(results: Results) -> RenderableType:
    """All tables of a run, below what they were measured on; warnings and goals last, where they are read."""
    return Group(
        draw(tables.facts(results)),
        *(draw(table) for table in tables.of_workloads(results)),
        draw(tables.of_load(results)),
        Text(tables.LEGEND),
        *(Text(told) for told in tables.who_did_not_run(results)),
        draw(tables.goals(results)),
        *alarms(results),
    )


def alarms(results: Results) -> list[Text]:
    """The warnings, in red."""
    return [Text(told, style="bold red") for told in tables.warnings(results)]


def draw(table: Table) -> RenderableType:
    """One table, the least and the most of each figure on two lines below it."""
    drawn = Drawn(title=table.title, box=box.SIMPLE, title_justify="left", show_header=any(table.headings))
    for place, heading in enumerate(table.headings):
        drawn.add_column(heading, justify="right" if place and heading else "left")
    for name, *entries in table.rows:
        spread = any(isinstance(entry, Figure) and entry.ends for entry in entries)
        drawn.add_row(
            f"{escape(str(name))}\n[dim]least\nmost[/dim]" if spread else escape(str(name)), *map(_text, entries)
        )
    return Group(drawn, Text(table.note)) if table.note else drawn


def _text(entry: Entry) -> str:
    if isinstance(entry, Figure):
        return "\n".join([entry.middle, *(f"[dim]{end}[/dim]" for end in entry.ends)])
    return escape(entry)
