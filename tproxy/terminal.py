"""The ledger for people: tables for a terminal. Programs get JSON from the same rows (`cli.py`).

Money is never rounded and never cut: a column of it has as many decimals as its longest figure, and a terminal that is
too narrow wraps the line instead. What is not known is not shown as 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.table import Table

from tproxy.store.reading import DayModel

_LEAST_DECIMALS = 2

# What is derived in `show_exchange`: the name, and the two columns whose distance it is.
_DURATIONS = (
    ("time to head", "accepted_us", "head_us"),
    ("time to first content", "accepted_us", "first_content_us"),
    ("time in all", "accepted_us", "ended_us"),
)


def usd(nano: int, decimals: int = 0) -> str:
    """Nano-dollars as dollars, exactly, with at least so many decimals: 13408000 -> `0.013408`."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    fraction = f"{nano % 10**9:09d}".rstrip("0").ljust(max(decimals, 1), "0")
    return f"{sign}{nano // 10**9}.{fraction}"


def show_days(days: Sequence[DayModel]) -> None:
    """Print spend by day and model; what the sandbox served stands by itself, since nobody paid for it."""
    table = _table("Spend by day and model, in USD", _notes(days))
    table.add_column("day", no_wrap=True)
    table.add_column("model", overflow="fold", min_width=16)
    for heading in ("calls", "input", "cached", "output", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    decimals = _decimals(day.cost_nano for day in days)
    for sandbox in (False, True):
        some = [day for day in days if day.sandbox == sandbox]
        for day in some:
            table.add_row(day.day.isoformat(), _plain(day.model), *_figures([day], decimals))
        if some or not sandbox:
            table.add_section()
            name = ("sandbox", "not spent") if sandbox else ("total", "")
            table.add_row(*name, *_figures(some, decimals))
            table.add_section()
    _print(table)


def show_recent(rows: Sequence[dict[str, Any]]) -> None:
    """Print exchanges, one a line."""
    table = _table("The newest exchanges, in USD", None)
    table.add_column("id", no_wrap=True)
    for heading in ("accepted", "caller", "model", "ended"):
        table.add_column(heading, overflow="fold", min_width=10)
    table.add_column("cost", justify="right", no_wrap=True)
    decimals = _decimals(row["cost_nano"] or 0 for row in rows)
    for row in rows:
        table.add_row(
            row["id"],
            _time(row["accepted_us"])[:19],
            _plain(row["caller_alias"] or row["caller"][:16]),
            _plain(row["model_served"] or row["model_asked"] or row["path"]),
            row["ended"],
            _cost(row["cost_nano"], decimals),
        )
    _print(table)


def show_exchange(row: dict[str, Any]) -> None:
    """Print one exchange in full: times as dates, money as dollars, and the durations that follow from the times."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        if value is None or value == []:
            shown = ""
        elif name.endswith("_us"):
            name, shown = name.removesuffix("_us"), _time(value)
        elif name.endswith("_nano"):
            name, shown = name.removesuffix("_nano"), f"{usd(value)} USD"
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(name, _plain(shown))
    for name, start, end in _DURATIONS:
        if row[end] is not None:
            table.add_row(name, f"{(row[end] - row[start]) / 1000:,.1f} ms")
    _print(table)


def _plain(text: str) -> str:
    """Text that clients chose, made safe to show: no markup of rich's, and no control character of a terminal's."""
    return markup.escape(re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text))


def _table(title: str, caption: str | None) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, caption=caption)


def _print(table: Table) -> None:
    console = Console()
    # Measured by a console that has room, so that the least is what the columns need, not what they would get.
    least = Console(width=1000).measure(table).minimum
    Console(width=max(console.width, least)).print(table)


def _figures(days: Sequence[DayModel], decimals: int) -> list[str]:
    calls, fresh, written, read, output, unpriced = (
        _total(days, name)
        for name in (
            "exchanges",
            "input_tokens",
            "cache_write_tokens",
            "cache_read_tokens",
            "output_tokens",
            "unpriced",
        )
    )
    nano = _total(days, "cost_nano")
    cost = usd(nano, decimals) + (" + ?" if unpriced else "")
    if unpriced and not nano:
        cost = "unpriced"
    return [*(f"{count:,}" for count in (calls, fresh, written + read, output)), cost]


def _notes(days: Sequence[DayModel]) -> str:
    """How sure the figures are, where that has to be said."""
    said = {
        "estimated": "estimated",
        "partial": "known in part",
        "unpriced": "without a known price, not in the cost",
        "open": "still running",
    }
    notes = [f"{count:,} {what}" for name, what in said.items() if (count := _total(days, name))]
    return "; ".join(["cached: written and read, not in input", *notes])


def _total(days: Sequence[DayModel], name: str) -> int:
    return sum(getattr(day, name) for day in days)


def _cost(nano: int | None, decimals: int) -> str:
    return "?" if nano is None else usd(nano, decimals)


def _decimals(amounts: Iterable[int]) -> int:
    return max([_LEAST_DECIMALS, *(len(usd(nano).partition(".")[2]) for nano in amounts)])


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(sep=" ", timespec="milliseconds")
