"""The two charts of a report, as SVG within HTML: stacked bars of spend over time, and a bar for each total.

They need no script and nothing from elsewhere; colours are classes, `s0` to `s7`, that the page gives in light and in
dark. Money is whole until the very end, where it becomes a length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from typing import Final

from tproxy.commands.report_figures import Report, Row
from tproxy.money import usd
from tproxy.plaintext import plain

SERIES: Final = 7  # with a colour of their own; all others are `s7`, grey
BARS: Final = 15  # of totals
OTHERS: Final = "all others"
DAYS_MAX: Final = 92  # shown by day; more are shown by month

_WIDTH: Final = 760
_HEIGHT: Final = 250
_LEFT: Final = 70
_TOP: Final = 10
_BOTTOM: Final = 26
_ROW: Final = 26
_NAMES: Final = 200  # the width of the names beside the bars
_LABEL_MAX: Final = 26


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the first chart: the parts from below, each a series and its nano-dollars."""

    label: str
    total_nano: int
    parts: Sequence[tuple[int, int]]


def series_of(report: Report) -> list[Row]:
    """The rows that have a colour: those that cost most. None where rows overlap, so that nothing can be stacked."""
    return [] if report.overlaps else [row for row in report.rows if row.spend_nano][:SERIES]


def over_time(report: Report) -> str:
    """Spend by day, or by month where there are very many days, stacked by group."""
    bars = bars_of(report)
    top = _round_up(max((bar.total_nano for bar in bars), default=0))
    plot = _HEIGHT - _TOP - _BOTTOM
    slot = (_WIDTH - _LEFT) / max(len(bars), 1)
    width = min(slot * 0.72, 48)
    drawn = list(_grid(top, plot))
    every = -(-len(bars) // 10)
    names = [row.name for row in series_of(report)] or ["all"]
    for number, bar in enumerate(bars):
        left = _LEFT + number * slot + (slot - width) / 2
        if number % every == 0:
            middle = left + width / 2
            drawn.append(
                f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{bar.label}</text>'
            )
        below = 0
        for series, nano in bar.parts:
            height = nano / top * plot
            y = _TOP + plot - (below + nano) / top * plot
            name = names[series] if series < len(names) else OTHERS
            drawn.append(
                f'<rect class="s{series}" x="{left:.1f}" y="{y:.2f}" width="{width:.1f}" height="{height:.2f}">'
                f"<title>{escape(plain(f'{bar.label}, {name}: {money(nano)} USD'))}</title></rect>"
            )
            below += nano
    return _svg(_HEIGHT, "Spend over time, in USD", drawn)


def bars_of(report: Report) -> list[Bar]:
    """The bars of the chart over time, those of nothing included."""
    by_month = len(report.days) > DAYS_MAX
    place = {row.key: number for number, row in enumerate(series_of(report))}
    sums: dict[date, dict[int, int]] = {}
    for day in report.days:
        parts = sums.setdefault(day.day.replace(day=1) if by_month else day.day, {})
        for row in day.rows if place else (day.total,):
            series = place.get(row.key, SERIES) if place else 0
            parts[series] = parts.get(series, 0) + row.spend_nano
    return [
        Bar(
            f"{on:%b %Y}" if by_month else f"{on.day} {on:%b}",
            sum(parts.values()),
            [(series, nano) for series, nano in sorted(parts.items()) if nano],
        )
        for on, parts in sums.items()
    ]


def totals(report: Report) -> str:
    """What each came to, as a bar; at most `BARS`."""
    rows = [row for row in report.rows if row.spend_nano]
    shown = rows[:BARS]
    place = {row.key: number for number, row in enumerate(series_of(report))}
    top = max((row.spend_nano for row in shown), default=1)
    room = _WIDTH - _NAMES - 130  # the figure stands to the right of the bar
    drawn: list[str] = []
    for number, row in enumerate(shown):
        y = number * _ROW + 4
        series = 0 if report.overlaps else place.get(row.key, SERIES)
        length = row.spend_nano / top * room
        drawn.append(
            f'<text class="name" x="{_NAMES - 8}" y="{y + 14}" text-anchor="end">{escape(_short(plain(row.name)))}'
            f"<title>{escape(plain(row.name))}</title></text>"
            f'<rect class="s{series}" x="{_NAMES}" y="{y}" width="{max(length, 1):.1f}" height="{_ROW - 8}" rx="2"/>'
            f'<text class="figure" x="{_NAMES + max(length, 1) + 6:.1f}" y="{y + 14}">{money(row.spend_nano)}</text>'
        )
    return _svg(max(len(shown), 1) * _ROW + 6, "Totals, in USD", drawn)


def money(nano: int, decimals: int = 2) -> str:
    """Dollars for people: exact, with at least so many decimals, and a comma at each thousand."""
    whole, _, fraction = usd(nano, decimals).partition(".")
    return f"{int(whole):,}.{fraction}"


def _grid(top: int, plot: int) -> Iterable[str]:
    """Lines across, with their amounts: four steps from nothing to `top`."""
    for step in range(5):
        y = _TOP + plot - plot * step / 4
        amount = money(top * step // 4, 1).removesuffix(".0")
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{amount}</text>'


def _round_up(nano: int) -> int:
    """The least amount that is not below, and of which a quarter is round: 1, 1.5, 2, … times a power of ten."""
    power = 1
    while True:
        for step in (4, 6, 8, 10, 12, 16, 20, 24, 32):
            if step * power >= nano:
                return step * power
        power *= 10


def _svg(height: int, title: str, drawn: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_MAX else f"{name[: _LABEL_MAX - 1]}…"
