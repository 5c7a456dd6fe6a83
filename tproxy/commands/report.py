"""`tproxy report`: what a month came to, by team, user, key, customer, tag or model: to be read, mailed or added up.

Asks a running server, as `tproxy spend --by` does, with one request: all figures are of one state of the ledger. Days
are those of UTC.
"""

from __future__ import annotations

import calendar
import re
import sys
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import typer

from tproxy import terminal
from tproxy.client import ApiFault
from tproxy.commands.keys import end, say, talk
from tproxy.commands.report_figures import Report, figures_of, table_of
from tproxy.commands.report_html import page
from tproxy.commands.spend import day
from tproxy.manage.csv_text import csv_text
from tproxy.plaintext import plain

# What the server tells of at most: those that cost most, all others are one line; and groups times days.
GROUPS_MAX: Final = 100
FIGURES_MAX: Final = 40_000
_MONTH: Final = re.compile(r"([0-9]{4})-([0-9]{2})")


class By(StrEnum):
    """What a report is grouped by."""

    team = "team"
    user = "user"
    key = "key"
    customer = "customer"
    tag = "tag"
    model = "model"


class Format(StrEnum):
    """What a report is written as."""

    table = "table"
    csv = "csv"
    html = "html"


def report(
    by: By, form: Format | None, out: Path | None, url: str, *, month: str | None, since: str | None, until: str | None
) -> None:
    """Ask the server at `url`, and print the report or write it to `out`.

    Raises:
        typer.BadParameter: the days are none, or the format does not go with `out`.
    """
    now = datetime.now(UTC)
    form = form or _format_of(out)
    if out is not None and form == Format.table:
        raise typer.BadParameter("a table is for the terminal: give --format csv or html too", param_hint="--out")
    first, last = days(month, since, until, now.date())
    with talk(url) as api:
        limit = max(min(GROUPS_MAX, FIGURES_MAX // ((last - first).days + 1)), 1)
        answer = api.get("/spend/by/day", by=by.value, since=first.isoformat(), until=last.isoformat(), limit=limit)
        try:
            found = figures_of(answer, by.value, first, last)
        except ValueError as fault:
            raise ApiFault(f"{api.url} gave no report ({fault}): is it tproxy's?") from None
    if form == Format.table:
        rows = [row.as_sum() for row in found.rows]
        terminal.show_sums(by.value, rows, found.total.as_sum(), note(found))
        return
    text = csv_text(*table_of(found)) if form == Format.csv else page(found, now)
    _write(text, out)


def days(month: str | None, since: str | None, until: str | None, today: date) -> tuple[date, date]:
    """The first and the last day: of a month such as `2026-11`, or as named; else of the month that holds `today`.

    Raises:
        typer.BadParameter: there is no such month or day, or the first comes after the last.
    """
    if month is not None and (since is not None or until is not None):
        raise typer.BadParameter("give either a month, or --since and --until", param_hint="--month")
    if since is None and until is None:
        return whole_month(month or f"{today:%Y-%m}")
    if since is None:
        raise typer.BadParameter("it needs --since", param_hint="--until")
    first = day(since, today, "--since")
    last = today if until is None else day(until, today, "--until")
    if last < first:
        raise typer.BadParameter(f"{last} comes before {first}", param_hint="--until")
    return first, last


def whole_month(text: str) -> tuple[date, date]:
    """The first and the last day of a month.

    Raises:
        typer.BadParameter: it is no month.
    """
    match = _MONTH.fullmatch(text)
    try:
        year, month = (int(match[1]), int(match[2])) if match else (0, 0)
        return date(year, month, 1), date(year, month, calendar.monthrange(year, month)[1])
    except ValueError:  # IllegalMonthError is one
        raise typer.BadParameter(f"{text!r} must be a month, such as 2026-11", param_hint="--month") from None


def note(found: Report) -> str:
    """What is to be said below the figures."""
    notes = [f"{found.first} to {found.last}, days of UTC"]
    if found.overlaps:
        notes.append("an exchange counts for each of its tags, and once in all")
    if found.unpriced:
        notes.append(f"{found.unpriced:,} of the calls have tokens whose price is not known, which are in no figure")
    return "; ".join(notes)


def _format_of(out: Path | None) -> Format:
    """What the name of a file says that is in it."""
    ending = "" if out is None else out.suffix.lower()
    return {".csv": Format.csv, ".html": Format.html, ".htm": Format.html}.get(ending, Format.table)


def _write(text: str, out: Path | None) -> None:
    content = text.encode("utf-8", "replace")
    if out is None:
        # What users chose must not steer a terminal; where a file or a program reads, it gets the bytes as they are.
        lines = text.splitlines() if sys.stdout.isatty() else []
        typer.echo("\n".join(plain(line) for line in lines) if lines else content, nl=bool(lines))
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        end(f"cannot write {out}: {error.strerror or error}", 1)
    say(f"written: {out}")
