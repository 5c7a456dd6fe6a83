"""The plots of a report, as SVG, each with its text for those who do not see it and the same figures as a table.

The same run gives the same bytes: no date, and identifiers from a fixed salt. Text stays text. A subject has the same
colour, dashes and mark in every plot; the colours are told apart also by those who see few of them (Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.load import QUANTILES
from bench.report import figures
from bench.report.figures import BOUND, DIRECT, Figure, Value, timed, told, values
from bench.report.tables import NONE, Table
from bench.suite import Results
from bench.workloads import CLOSED, HELD, PACED, SHARES, Workload

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#806000")
DASHES = ("-", "--", "-.", ":")
MARKS = "os^Dv<>P*X"
WIDE, HIGH = 8.0, 4.5  # inches
SEEN_SHARES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        name: of its file, without `.svg`.
        alt: what there is to see.
        table: the same figures.
    """

    name: str
    title: str
    alt: str
    svg: str
    table: Table


def plots(results: Results) -> list[Plot]:
    """All plots that a run has the figures for."""
    found = [_latency(results, workload) for workload in results.workloads if workload.core]
    found.append(
        _growth(results, "cpu-per-event", "CPU per event", "µs", figures.cpu_per_event, digits=1),
    )
    found.append(_growth(results, "memory", "Resident memory", "MB", figures.loaded_mb, digits=1))
    found += [_answers(results, workload) for workload in results.workloads if workload.core]
    return [plot for plot in found if plot is not None]


@dataclass(frozen=True, slots=True)
class Timed:
    """What a curve of latency is of: its name in a tally, and words for it."""

    name: str
    title: str
    axis: str
    share: str


CURVES = {
    HELD: Timed(
        "event",
        "Latency of an event",
        "from the sending of an event to the reading of its last byte, µs",
        "share of the events",
    ),
    PACED: Timed(
        "first_byte",
        "Time to the first byte",
        "from when a request was due to the first byte of its answer, µs",
        "share of the answers",
    ),
}


def _latency(results: Results, workload: Workload) -> Plot | None:
    """How many had arrived within how long: of each share, the median of the rounds."""
    timed_here = CURVES.get(workload.shape)
    if timed_here is None:
        return None
    curves: dict[str, list[float]] = {}  # of each share, to the last that there were enough samples for
    rows = []
    for name in results.subjects(workload):
        cells = results.of(workload, name)
        drawn = [cell for cell in cells if cell.tally.cdf.get(timed_here.name)]
        seen = [share for share in SHARES if all(told(cell.tally, timed_here.name, share) for cell in drawn)]
        if drawn and seen:
            rounds = [cell.tally.cdf[timed_here.name][: len(seen)] for cell in drawn]
            curves[name] = [median(times) for times in zip(*rounds, strict=True)]
            found = [values(cells, timed(timed_here.name, quantile), workload) for quantile in QUANTILES]
            rows.append((name, *(Figure(tuple(times)) if times else NONE for times in found)))
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for name, times in curves.items():
            colour, dashes, _ = _style(results, name)
            axes.plot(times, SHARES[: len(times)], color=colour, linestyle=dashes, label=name)
        axes.set_xscale("log")
        axes.set_yscale("logit")
        axes.set_yticks(SEEN_SHARES, [f"{share:g}" for share in SEEN_SHARES])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.005, 0.9995)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(timed_here.axis)
        axes.set_ylabel(timed_here.share)

    title = f"{timed_here.title}, {workload.name}"
    middle = "; ".join(f"{name} {_middle(results, workload, name, timed_here)}" for name in curves)
    alt = f"{title}: a curve for each subject, {timed_here.share} against time. Medians in µs: {middle}."
    return Plot(
        f"latency-{_slug(workload.name)}",
        title,
        alt,
        _svg(f"latency-{workload.name}", title, draw),
        Table(f"{title}, µs", ("", *QUANTILES), tuple(rows)),
    )


def _middle(results: Results, workload: Workload, name: str, of: Timed) -> str:
    found = values(results.of(workload, name), timed(of.name, "p50"), workload)
    return Figure(tuple(found)).middle if found else "not known"


def _growth(results: Results, slug: str, what: str, unit: str, value: Value, *, digits: int) -> Plot | None:
    """A figure against the number of streams, over the workloads that differ in nothing but number and pace."""
    steps = sorted((w for w in results.workloads if plainly_held(w)), key=lambda workload: workload.connections)
    lines: dict[str, list[tuple[int, Figure]]] = {}
    for workload in steps:
        for name in results.subjects(workload):
            found = values(results.of(workload, name), value, workload) if name != DIRECT else []
            if found:
                lines.setdefault(name, []).append((workload.connections, Figure(tuple(found), digits)))
    if len(steps) < 2 or not lines:
        return None

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            colour, dashes, mark = _style(results, name)
            axes.plot(
                [streams for streams, _ in points],
                [median(figure.values) for _, figure in points],
                color=colour, linestyle=dashes, marker=mark, label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([w.connections for w in steps], [f"{w.connections:,}" for w in steps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("streams open at once")
        axes.set_ylabel(f"{what}, {unit}")

    title = f"{what} against the number of streams"
    ends = "; ".join(f"{name} {points[0][1].middle} to {points[-1][1].middle}" for name, points in lines.items())
    rows = []
    for name, points in lines.items():
        at = dict(points)
        rows.append((name, *(at.get(workload.connections, "") for workload in steps)))
    return Plot(
        slug,
        title,
        f"{title}: a line for each subject. In {unit}, from the fewest streams to the most: {ends}.",
        _svg(slug, title, draw),
        Table(f"{title}, {unit}", ("", *(workload.name for workload in steps)), tuple(rows)),
    )


def plainly_held(workload: Workload) -> bool:
    """Whether a workload holds streams and does nothing unusual to them."""
    unusual = workload.tls or workload.gzip or workload.slow_each or workload.fresh or workload.body_bytes
    return workload.shape == HELD and not unusual


def _answers(results: Results, workload: Workload) -> Plot | None:
    """A bar for each subject: whole answers a second."""
    bars = {}
    for name in results.subjects(workload):
        found = values(results.of(workload, name), figures.answers_per_second, workload)
        if found and workload.shape == CLOSED:
            bound = any(cell.load_bound for cell in results.of(workload, name))
            bars[name] = Figure(tuple(found), mark=BOUND if bound else "")
    if not bars:
        return None

    def draw(axes: Axes) -> None:
        middles = [median(figure.values) for figure in bars.values()]
        colours = [_style(results, name)[0] for name in bars]
        shown = axes.barh(list(bars), middles, color=colours)
        axes.bar_label(shown, [figure.middle for figure in bars.values()], padding=3)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max(middles) * 1.15)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("answers a second, proxy on one core")

    title = f"Answers a second, {workload.name}"
    middles = "; ".join(f"{name} {figure.middle}" for name, figure in bars.items())
    rows = tuple((name, figure) for name, figure in bars.items())
    return Plot(
        f"answers-{_slug(workload.name)}",
        title,
        f"{title}: a bar for each subject. {middles}.",
        _svg(f"answers-{workload.name}", title, draw, legend=False),
        Table(title, ("", "answers/s"), rows),
    )


def _style(results: Results, name: str) -> tuple[str, str, str]:
    place = results.subjects().index(name)
    again, colour = divmod(place, len(COLOURS))
    return COLOURS[colour], DASHES[(place + again) % len(DASHES)], MARKS[place % len(MARKS)]


def _thousands(number: float, place: int | None) -> str:
    return f"{number:,.0f}"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.replace(",", "")).split()).lower()


def _svg(salt: str, title: str, draw: Callable[[Axes], None], *, legend: bool = True) -> str:
    with mpl.rc_context(STYLE | {"svg.hashsalt": salt}):
        canvas = Canvas(figsize=(WIDE, HIGH), layout="constrained")
        axes = canvas.subplots()
        draw(axes)
        axes.set_title(title, loc="left")
        if legend:
            canvas.legend(*_legend(axes), loc="outside right upper")
        file = StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _legend(axes: Axes) -> tuple[Sequence[Any], Sequence[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, labels
