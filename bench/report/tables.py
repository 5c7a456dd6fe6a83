"""The tables of a report, whatever they are shown on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cell import SATURATED, Cell
from bench.goals import GOALS, NOT_MEASURED
from bench.plan import LEAST_SECONDS
from bench.report import figures
from bench.report.figures import BOUND, DIRECT, Column, Figure, added, answers_per_second, columns, values
from bench.suite import Results
from bench.workloads import CLOSED, Workload

BUSY_MACHINE = 0.1  # cores of other work, above which the reader is warned
REASON_LENGTH = 300
NONE = "–"  # noqa: RUF001  nothing, or not enough, to compute a figure of
LEGEND = (
    "Times in µs; p50, p99, p99.9 as the client sees them. Each figure is the median of the rounds, with their least "
    "and most. Added: the difference to the direct run of the same round. Streams/core is derived, not measured: how "
    "many streams of this pace would use up one core, were the CPU for their events all that they need. "
    f"{NONE}: nothing, or too little, to compute it of."
)

Entry = Figure | str
_RATES = (answers_per_second, figures.events_per_second, figures.megabytes_per_second)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column says what the row is about.

    Attributes:
        note: a paragraph below it; may be empty.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""


def of_workloads(results: Results) -> list[Table]:
    """A table for each workload that anybody ran."""
    return [of_workload(results, workload) for workload in results.workloads if results.subjects(workload)]


def of_workload(results: Results, workload: Workload) -> Table:
    """Every figure of every subject that ran it."""
    shown = [column for column in columns(workload) if _anybody(results, workload, column)]
    headings = [""]
    for column in shown:
        headings += [column.heading, "added"] if column.added else [column.heading]
    rows = []
    for name in results.subjects(workload):
        cells = results.of(workload, name)
        row: list[Entry] = [name]
        for column in shown:
            row.append(_figure(column, cells, workload))
            if column.added:
                more = added(results, workload, name, column.value) if name != DIRECT else []
                row.append(Figure(tuple(more), column.digits) if more else "" if name == DIRECT else NONE)
        rows.append((*row, f"{max(cell.side_busy for cell in cells):.0%}"))
    left_out = [f"{f.subject} is left out; it failed: {_short(f.reason)}" for f in results.failures_of(workload)]
    return Table(
        f"{workload.name}, {workload.seconds:.1f} s", (*headings, "load busy"), tuple(rows), "\n".join(left_out)
    )


def _anybody(results: Results, workload: Workload, column: Column) -> bool:
    return any(values(results.of(workload, name), column.value, workload) for name in results.subjects(workload))


def _figure(column: Column, cells: Sequence[Cell], workload: Workload) -> Entry:
    found = values(cells, column.value, workload)
    if column.of_proxy and cells[0].subject == DIRECT:
        return ""
    if not found:
        return NONE
    bound = column.value in _RATES and any(cell.load_bound for cell in cells)
    return Figure(tuple(found), column.digits, BOUND if bound else "")


def goals(results: Results) -> Table:
    """What is wanted of tproxy, and what it came to in this run; in one line, why some of it is not known."""
    rows, reasons = [], []
    for goal in GOALS:
        reached = goal.reached(results)
        if reached.verdict == NOT_MEASURED:
            reasons.append(reached.measured)
        else:
            rows.append((goal.what, goal.wanted, reached.measured, reached.verdict))
    notes = []
    if not any(cell.turn for cell in results.cells):
        short = any(workload.seconds < LEAST_SECONDS for workload in results.workloads)
        notes.append(f"One {'short ' * short}round: only a hint.")
    if reasons:
        notes.append(f"Not measured: {len(reasons)} of {len(GOALS)} goals; {'; '.join(dict.fromkeys(reasons))}.")
    return Table("Goals", ("", "goal", "measured", ""), tuple(rows), "\n".join(notes))


def of_load(results: Results) -> Table:
    """What load and upstream cost themselves, in the direct runs, and how much more they could do."""
    kinds = results.facts.get("load and upstream")
    rows = []
    for workload in results.workloads:
        cells = results.of(workload, DIRECT)
        if cells:
            per_event = values(cells, lambda cell, _: cell.tally.cpu_seconds * 1e6 / cell.tally.events, workload)
            per_answer = values(cells, lambda cell, _: cell.tally.cpu_seconds * 1e6 / cell.tally.answers, workload)
            busy = max(cell.side_busy for cell in cells)
            rows.append(
                (
                    workload.name,
                    str(kinds.get(workload.name, "")) if isinstance(kinds, Mapping) else "",
                    Figure(tuple(per_event), 1) if per_event else "",
                    Figure(tuple(per_answer), 1) if per_answer else "",
                    f"{max(cell.tally.cpu_seconds / cell.tally.seconds for cell in cells):.0%}",
                    f"{max(cell.upstream_cpu_seconds / cell.tally.seconds for cell in cells):.0%}",
                    f"{max(cell.side_core_busy for cell in cells):.0%}",
                    f"{SATURATED / busy:.1f} x" if busy and workload.shape != CLOSED else NONE,
                )
            )
    return Table(
        "The load itself, without a proxy",
        ("", "made in", "CPU/event", "CPU/answer", "load", "upstream", "their core", "headroom"),
        tuple(rows),
        "Shares of a core; of theirs, with all other work on it. Headroom: how much more they could do before they use "
        f"{SATURATED:.0%} of it, where a run is refused. A workload that goes as fast as it can has none.",
    )


def _short(reason: str) -> str:
    """In one line, which may have been the end of a log."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + "…"


def facts(results: Results, *without: str) -> Table:
    """What the figures were measured on, but for some of the facts."""
    rows = [(name, _told(fact)) for name, fact in results.facts.items() if name not in without]
    return Table("Measured on", ("", ""), tuple(rows))


def _told(fact: object) -> str:
    if isinstance(fact, Mapping):
        return "; ".join(f"{name}: {_told(value)}" for name, value in fact.items())
    if isinstance(fact, Sequence) and not isinstance(fact, str):
        names = any(isinstance(value, str) for value in fact)  # one holds a comma
        return ("; " if names else ", ").join(_told(value) for value in fact) or "none"
    return str(fact)


def warnings(results: Results) -> list[str]:
    """What the reader must know before trusting the figures."""
    told = []
    pinned = results.facts.get("pinned")
    if isinstance(pinned, Mapping) and pinned["proxy"] == pinned["load"]:
        told.append("The proxy shared its only core with the load: these figures say little.")
    foreign = max((cell.foreign_cores for cell in results.cells), default=0.0)
    if foreign > BUSY_MACHINE:
        told.append(f"Other work took up to {foreign:.2f} cores meanwhile: run this on a quiet machine.")
    repeats = sum(cell.repeats for cell in results.cells)
    if repeats:
        what = "1 measurement was" if repeats == 1 else f"{repeats} measurements were"
        told.append(f"{what} thrown away and repeated, because load and upstream had not all that they need.")
    if any(cell.load_bound for cell in results.cells):
        told.append("≥: load and upstream were at their own limit; the subject could do more.")
    return told


def who_did_not_run(results: Results) -> list[str]:
    """A sentence for each peer that failed, with its reason, and one for those that are not installed."""
    told = [f"{f.subject} is left out of {f.workload}; it failed: {_short(f.reason)}" for f in results.failures]
    for why in ("not asked", "not installed"):
        missing = results.facts.get(why)
        if isinstance(missing, list) and missing:
            told.append(f"{why.capitalize()}: {'; '.join(map(str, missing))}.")
    return told or ["All subjects that the bench knows ran."]
