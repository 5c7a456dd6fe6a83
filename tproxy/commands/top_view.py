"""How `tproxy top` looks: a line of totals, and a line for each exchange, cut to the terminal and never wrapped.

A terminal that is too narrow for all columns gets the first of `_COLUMNS` for which it has room; the names of callers
and models share what is left. One that is too low gets the first lines of the order, and is told how many there are.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import StringIO
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tproxy.money import NANO, usd
from tproxy.plaintext import plain

Snapshot = Mapping[str, Any]

_GAP: Final = 1
_FIRST: Final = 6  # so many columns are shown before names get more room than they need
_HEADING: Final = 3  # lines above the exchanges
_FILE_WIDTH: Final = 160  # where there is no terminal
_UNKNOWN: Final = "-"
_PHASES: Final = {
    "connecting": "connect",
    "waiting_for_head": "head",
    "waiting_for_content": "content",
    "streaming": "stream",
}


class Sort(StrEnum):
    """By what the exchanges are ordered, the most first."""

    AGE = "age"
    TOKENS = "tokens"
    COST = "cost"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure of an exchange.

    Args:
        least: how many cells it has at least.
        is_name: it may be cut to that, gets what is left up to `most`, and is left out where no exchange has one.
    """

    heading: str
    cell: Callable[[Mapping[str, Any], int], str]
    least: int
    most: int = 0
    is_name: bool = False


def _text(name: str, *others: str) -> Callable[[Mapping[str, Any], int], str]:
    def cell(row: Mapping[str, Any], now_us: int) -> str:
        for each in (name, *others):
            if row.get(each):
                return plain(str(row[each]))
        return _UNKNOWN

    return cell


def _count(name: str) -> Callable[[Mapping[str, Any], int], str]:
    def cell(row: Mapping[str, Any], now_us: int) -> str:
        return _figure(row.get(name))

    return cell


def _seconds(name: str) -> Callable[[Mapping[str, Any], int], str]:
    def cell(row: Mapping[str, Any], now_us: int) -> str:
        ms = _number(row.get(name))
        return _UNKNOWN if ms is None else f"{ms / 1000:.2f}"

    return cell


def _phase(row: Mapping[str, Any], now_us: int) -> str:
    phase = row.get("phase")
    return _PHASES.get(phase, _UNKNOWN) if isinstance(phase, str) else _UNKNOWN


def _age(row: Mapping[str, Any], now_us: int) -> str:
    accepted_us = _number(row.get("accepted_us"))
    if accepted_us is None:
        return _UNKNOWN
    seconds = max(0, (now_us - accepted_us) / 1e6)
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours else f"{minutes}m{seconds:02}"


def _rate(row: Mapping[str, Any], now_us: int) -> str:
    rate = _rate_of(row)
    return _UNKNOWN if rate is None else f"{rate:,.1f}"


def _rate_of(row: Mapping[str, Any]) -> float | None:
    rate = _number(row.get("tokens_per_second"))
    return _number(row.get("average_tokens_per_second")) if rate is None else rate


def _cost(row: Mapping[str, Any], now_us: int) -> str:
    nano = row.get("cost_nano")
    return usd(nano, 2) if isinstance(nano, int) else _UNKNOWN


# The first ones stay longest where there is little room.
_COLUMNS: Final = (
    _Column("caller", _text("caller_alias", "caller"), 8, 16, is_name=True),
    _Column("model", _text("model_served", "model_asked", "path"), 10, 25, is_name=True),
    _Column("age", _age, 5),
    _Column("out", _count("output_tokens"), 6),
    _Column("tok/s", _rate, 5),
    _Column("cost", _cost, 8),
    _Column("phase", _phase, 7),
    _Column("in", _count("prompt_tokens"), 7),
    _Column("first s", _seconds("first_content_ms"), 7),
    _Column("head s", _seconds("head_ms"), 6),
    _Column("bytes", _count("bytes_out"), 9),
    _Column("team", _text("team"), 8, 16, is_name=True),
    _Column("user", _text("user"), 8, 16, is_name=True),
    _Column("customer", _text("customer"), 8, 16, is_name=True),
)

_KEYS: Final[Mapping[Sort, Callable[[Mapping[str, Any]], float]]] = {
    Sort.AGE: lambda row: -(_number(row.get("accepted_us")) or 0),
    Sort.TOKENS: lambda row: _number(row.get("output_tokens")) or 0,
    Sort.COST: lambda row: _number(row.get("cost_nano")) or 0,
    Sort.RATE: lambda row: _rate_of(row) or 0,
}


def frame(snapshot: Snapshot, width: int, height: int | None, sort: Sort, note: str = "") -> list[Text]:
    """The lines of a picture of `width` cells, and of `height` lines or as many as there are exchanges.

    Args:
        note: stands in place of the totals, where there is something to be said.
    """
    rows = sorted(snapshot["exchanges"], key=_KEYS[sort], reverse=True)
    now_us = int(_number(snapshot.get("at_us")) or 0)
    room = len(rows) if height is None else max(0, height - _HEADING)
    shown = rows[:room]
    columns, cells = _fitting(shown, now_us, width)
    head = plain(note) if note else _totals(snapshot["totals"])
    running = _number(snapshot["totals"].get("running")) or 0
    more = "" if running <= len(shown) else f"{len(shown):,} of {running:,} exchanges, by {sort}"
    lines = [
        Text(_cut(head, width), "bold red" if note else "bold"),
        Text(_cut(more, width), "dim"),
        Text(_cut(_line(columns, [column.heading for column, _ in columns]), width), "reverse"),
        *(Text(_cut(_line(columns, row), width)) for row in cells),
    ]
    return lines if height is None else lines[:height]


def table(snapshot: Snapshot, sort: Sort, width: int | None = None) -> str:
    """A whole snapshot as text, each line with its end; as wide as the terminal."""
    width = width or shutil.get_terminal_size((_FILE_WIDTH, 0)).columns
    out = StringIO()
    for line in frame(snapshot, width, None, sort):
        if line.plain.strip():
            out.write(line.plain.rstrip() + "\n")
    return out.getvalue()


def show(watching: Callable[[Callable[[str], None]], Iterator[Snapshot]], sort: Sort) -> None:
    """Draw each snapshot over the whole terminal, until interrupted.

    Args:
        watching: gives snapshots, and is given what takes a note about their absence.
    """
    from rich.live import Live

    console = Console(emoji=False)
    newest: Snapshot = {"totals": {}, "exchanges": []}

    def draw(note: str = "") -> None:
        lines = frame(newest, console.width, console.height, sort, note)
        live.update(Text("\n", no_wrap=True).join(lines), refresh=True)

    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        for snapshot in watching(draw):
            newest = snapshot
            draw()


def _totals(totals: Mapping[str, Any]) -> str:
    cost = _number(totals.get("cost_nano_per_second"))
    head, content = (_figure(totals.get(f"waiting_for_{what}")) for what in ("head", "content"))
    parts = [
        f"{_figure(totals.get('running'))} running",
        f"{_figure(totals.get('tokens_per_second'))} tok/s",
        f"{_UNKNOWN if cost is None else f'{cost * 3600 / NANO:,.2f}'} USD/h",
        f"{_figure(totals.get('admitted_per_second'))} req/s",
        f"{_figure(totals.get('refused_per_second'))} refused/s",
        f"{_figure(totals.get('events_per_second'))} events/s",
        f"waiting: {head} for a head, {content} for content",
    ]
    return "  ".join(parts)


def _fitting(
    rows: Sequence[Mapping[str, Any]], now_us: int, width: int
) -> tuple[list[tuple[_Column, int]], list[list[str]]]:
    """The columns that there is room for, with their widths, and the cells of the rows in them."""
    found: list[tuple[_Column, int, int]] = []  # with what it needs, and what it would like
    cells: list[list[str]] = []
    left = width
    for column in _COLUMNS:
        texts = [column.cell(row, now_us) for row in rows]
        if column.is_name and rows and set(texts) == {_UNKNOWN}:
            continue
        longest = max(map(cell_len, [*texts, column.heading]))
        need = column.least if column.is_name else max(column.least, longest)
        squeezed = 0 if len(found) < _FIRST else sum(wish - least for _, least, wish in found)
        if found and left - squeezed < need + _GAP:
            break
        left -= need + (_GAP if found else 0)
        found.append((column, need, max(need, min(longest, column.most))))
        cells.append(texts)
    columns = []
    for column, need, wish in found:
        given = min(left, wish - need)
        left -= given
        columns.append((column, need + given))
    return columns, [list(row) for row in zip(*cells, strict=True)]


def _line(columns: Sequence[tuple[_Column, int]], texts: Sequence[str]) -> str:
    parts = []
    for (column, width), text in zip(columns, texts, strict=True):
        if column.is_name:
            parts.append(set_cell_size(_cut(text, width), width))
        else:
            parts.append(" " * max(0, width - cell_len(text)) + text)
    return (" " * _GAP).join(parts)


def _cut(text: str, width: int) -> str:
    """So much of a text as fits, with an ellipsis where that is not all."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…" if width > 0 else ""


def _number(value: object) -> float | None:
    """A finite number of the server's JSON; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _figure(value: object) -> str:
    number = _number(value)
    if number is None:
        return _UNKNOWN
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
