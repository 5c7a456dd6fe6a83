"""`tproxy spend --by`: what each key, team, user, customer, tag, model or session came to. Asks a running server.

Days are those of UTC, as the server sums them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

import typer

from tproxy import period, terminal
from tproxy.client import ApiFault
from tproxy.commands.keys import out, talk


class By(StrEnum):
    """What spend is summed by."""

    key = "key"
    team = "team"
    user = "user"
    customer = "customer"
    tag = "tag"
    model = "model"
    session = "session"


def spend_by(by: By, url: str, *, since: str | None, until: str | None, limit: int, as_json: bool) -> None:
    """Ask the server at `url`, and print its answer.

    Raises:
        typer.BadParameter: `since` or `until` is no day.
    """
    today = datetime.now(UTC).date()
    first = since and day(since, today, "--since").isoformat()
    last = until and day(until, today, "--until").isoformat()
    with talk(url) as api:
        answer: Any = api.get("/spend/by", by=by.value, since=first, until=last, limit=limit)
        parts = (answer.get("rows"), answer.get("total")) if isinstance(answer, dict) else (None, None)
        match parts:
            case (list() as rows, dict() as total) if all(isinstance(row, dict) for row in rows):
                pass
            case _:
                raise ApiFault(f"{api.url} gave no sums: is it tproxy's?")
    if as_json:
        out(answer)
    else:
        terminal.show_sums(by.value, rows, total, _note(rows, limit, whole=answer.get("complete") is not False))


def _note(rows: Sequence[Any], limit: int, *, whole: bool) -> str | None:
    notes = [
        f"the {limit:,} that cost most; --limit shows more" if len(rows) >= limit else None,
        None if whole else "not all exchanges of these days were looked at",
    ]
    return "; ".join(note for note in notes if note) or None


def day(text: str, today: date, option: str) -> date:
    """A day as people give it: `2026-11-25`, or `7d`, the first of the seven days that end today.

    Raises:
        typer.BadParameter: it is neither.
    """
    try:
        count, unit = period.parse(text)
    except ValueError:
        count, unit = 0, ""
    days = {"d": count, "w": count * 7, "mo": count * 30}.get(unit)
    try:
        return date.fromisoformat(text) if days is None else today - timedelta(days=days - 1)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} must be a day, such as {today}, or so many days, such as 7d", param_hint=option
        ) from None
