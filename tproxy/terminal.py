"""The ledger and the keys for people: tables for a terminal. Programs get JSON of the same (`cli.py`, `commands/`).

Money is never rounded and never cut: a column of it has as many decimals as its longest figure, and a terminal that is
too narrow wraps the line instead. What is not known is not shown as 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tproxy.money import NANO, usd
from tproxy.plaintext import plain
from tproxy.store.reading import DayModel

_LEAST_DECIMALS = 2

# The fields of a key that are dollars, in the API's JSON.
_DOLLARS = frozenset({"spend", "max_budget", "soft_budget"})

# What is derived in `show_exchange`: the name, and the two columns whose distance it is.
_DURATIONS = (
    ("time to head", "accepted_us", "head_us"),
    ("time to first content", "accepted_us", "first_content_us"),
    ("time in all", "accepted_us", "ended_us"),
)


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


def show_keys(rows: Sequence[Mapping[str, Any]], now: datetime | None = None) -> None:
    """Print keys as the API lists them, one a line; a key with several budgets has one of them on each line of its own.

    Args:
        now: when it is, for the keys that have expired.
    """
    table = _table("Virtual keys, in USD", f"{len(rows):,} keys" if len(rows) != 1 else "1 key")
    table.add_column("alias", overflow="fold", min_width=10)
    table.add_column("key", no_wrap=True)
    table.add_column("hash", no_wrap=True)
    for heading in ("team", "user"):
        table.add_column(heading, overflow="fold", min_width=6)
    table.add_column("spend", justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("resets", no_wrap=True)
    table.add_column("state", no_wrap=True)
    spends = [_nano(row.get("spend")) for row in rows]
    decimals = _decimals(nano for nano in spends if nano is not None)
    now = now or datetime.now(UTC)
    for row, nano in zip(rows, spends, strict=True):
        budgets = _budgets(row)
        table.add_row(
            _field(row.get("key_alias")),
            _field(row.get("key_name")),
            _field(row.get("token"))[:12],
            _field(row.get("team_id")),
            _field(row.get("user_id")),
            _cost(nano, decimals),
            "\n".join(_plain(text) for text, _ in budgets),
            "\n".join(_minute(reset) for _, reset in budgets),
            _state(row, now),
        )
    _print(table)


def show_key(row: Mapping[str, Any]) -> None:
    """Print what the API tells of one key; what is not set is left out."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        if value is None or value in ("", [], {}):
            continue
        nano = _nano(value) if name in _DOLLARS else None
        if nano is not None:
            shown = f"{usd(nano)} USD"
        elif isinstance(value, str):
            shown = value
        elif name == "budgets":
            table.add_row(_plain(name), "\n".join(_plain(_standing(budget)) for budget in _dicts(value)))
            continue
        elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            shown = ", ".join(value)
        else:
            shown = json.dumps(value, ensure_ascii=False)
        table.add_row(_plain(name), _plain(shown))
    _print(table)


def show_sums(by: str, rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], note: str | None = None) -> None:
    """Print what each of a kind came to, as the API gives it.

    Args:
        by: the kind, which is the heading of the names.
        total: what all exchanges of these days came to, also those of nobody in `rows`.
        note: what is to be said below.
    """
    table = _table(f"Spend by {by}, in USD", note)
    table.add_column(by, overflow="fold", min_width=16)
    for heading in ("calls", "failed", "input", "output", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    decimals = _decimals(nano for row in (*rows, total) if (nano := _whole(row.get("spend_nano"))) is not None)
    for row in rows:
        table.add_row(_field(row.get("alias") or row.get("id")) or "(none)", *_sum_figures(row, decimals))
    table.add_section()
    table.add_row("all exchanges", *_sum_figures(total, decimals))
    _print(table)


def _sum_figures(row: Mapping[str, Any], decimals: int) -> list[str]:
    nano, unpriced = _whole(row.get("spend_nano")), row.get("unpriced")
    counts = (_whole(row.get(name)) for name in ("exchanges", "failures", "prompt_tokens", "completion_tokens"))
    cost = "unpriced" if unpriced and not nano else _cost(nano, decimals) + (" + ?" if unpriced else "")
    return [*("?" if count is None else f"{count:,}" for count in counts), cost]


def _plain(text: str) -> str:
    """The same, and no markup of rich's."""
    return markup.escape(plain(text))


def _field(value: object) -> str:
    return "" if value is None else _plain(str(value))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _nano(dollars: object) -> int | None:
    """The nano-dollars nearest to an amount in JSON; None where it is none."""
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not math.isfinite(dollars):
        return None
    return round(Decimal(str(dollars)) * NANO)


def _budgets(row: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Each budget of a key, such as `25.00 per 1mo`, and when it starts anew."""
    first = {**row, "reset_at": row.get("budget_reset_at")}
    budgets = _dicts(row.get("budgets")) or [first, *_dicts(row.get("budget_limits"))]
    amounts = [(_nano(budget.get("max_budget")), budget) for budget in budgets]
    return [(_amount(nano, budget), budget.get("reset_at")) for nano, budget in amounts if nano is not None]


def _amount(nano: int, budget: Mapping[str, Any]) -> str:
    period = budget.get("budget_duration")
    return usd(nano, _LEAST_DECIMALS) + (f" per {period}" if period else "")


def _standing(budget: Mapping[str, Any]) -> str:
    """How a budget stands: `25.00 per 1mo: spent 3.5, held 0.1, resets 2026-12-01 00:00`."""
    limit, soft = _nano(budget.get("max_budget")), _nano(budget.get("soft_budget"))
    parts = [f"{name} {usd(nano)}" for name in ("spent", "held") if (nano := _nano(budget.get(name))) is not None]
    if soft is not None:
        parts.append(f"warns at {usd(soft)}")
    if budget.get("reset_at"):
        parts.append(f"resets {str(budget['reset_at'])[:16].replace('T', ' ')}")
    return f"{'no limit' if limit is None else _amount(limit, budget)}: {', '.join(parts)}"


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _minute(moment: object) -> str:
    """A moment of the API, such as `2026-12-01T00:00:00Z`, to the minute."""
    return _field(moment)[:16].replace("T", " ")


def _state(row: Mapping[str, Any], now: datetime) -> str:
    if row.get("blocked"):
        return "blocked"
    expires = row.get("expires")
    try:
        moment = datetime.fromisoformat(expires) if isinstance(expires, str) else None
    except ValueError:
        moment = None
    if moment is None:
        return "active, in the file" if row.get("in_key_file") else "active"
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return "expired" if moment <= now else f"until {moment.astimezone(UTC):%Y-%m-%d}"


def _table(title: str, caption: str | None) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, caption=caption)


def _print(table: Table) -> None:
    console = Console(emoji=False)  # a name such as `:x:` is shown as it is
    for column in table.columns:
        if column.no_wrap:  # rich would make it as narrow as its longest word, and cut the rest
            lines = (line for cell in (column.header, *column.cells) for line in str(cell).splitlines())
            column.min_width = max((Text.from_markup(line, emoji=False).cell_len for line in lines), default=None)
    # Measured by a console that has room, so that the least is what the columns need, not what they would get.
    least = Console(width=1000, emoji=False).measure(table).minimum
    Console(width=max(console.width, least), emoji=False).print(table)


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
