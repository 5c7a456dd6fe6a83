"""The periods of budgets and the lifetimes of keys: `30s`, `15m`, `6h`, `1d`, `2w`, `1mo`.

A budget's period ends at the calendar's own edges where it has them, as LiteLLM's does: `1d` at midnight, `7d` and `1w`
on Monday, `30d` and `1mo` on the first of the month, `Nd` and `Nmo` N days or months after the day or month in which
it began; all in the time zone of the setting `budgets.timezone`. Seconds, minutes and hours are counted from its start.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_FORM: Final = re.compile(r"([1-9]\d{0,5})(mo|s|m|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_DAYS: Final = 36_500


def parse(text: str) -> tuple[int, str]:
    """The count and the unit (`s m h d w mo`) of a period.

    Raises:
        ValueError: it has another form, or is longer than a century.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("must be a number and one of s, m, h, d, w, mo, such as 30d")
    count, unit = int(match[1]), match[2]
    if (count * 31 if unit == "mo" else count * _SECONDS[unit] / 86_400) > _MAX_DAYS:
        raise ValueError("must be shorter than a century")
    return count, unit


def later(text: str, now_us: int) -> int:
    """The moment at which something that starts now and lasts so long ends; a month has 30 days here.

    Raises:
        ValueError: see `parse`.
    """
    count, unit = parse(text)
    seconds = count * 30 * _SECONDS["d"] if unit == "mo" else count * _SECONDS[unit]
    return now_us + seconds * 1_000_000


def next_reset(text: str, now_us: int, started_us: int, zone: ZoneInfo) -> int:
    """When the period that holds `now_us` ends, in microseconds since the epoch; always after `now_us`.

    Args:
        started_us: when the budget, or its period before, began: periods without an edge in the calendar count from it.
    """
    count, unit = parse(text)
    if unit in "smh":
        length = count * _SECONDS[unit] * 1_000_000
        return started_us + ((now_us - started_us) // length + 1) * length
    now = _local(now_us, zone)
    if (unit, count) == ("d", 30):
        unit, count = "mo", 1
    if unit == "w":
        unit, count = "d", count * 7
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if unit == "mo":
        start = _local(started_us, zone) if count > 1 else now
        months = (now.year - start.year) * 12 + now.month - start.month
        months = start.year * 12 + start.month - 1 + (months // count + 1) * count
        edge = today.replace(year=months // 12, month=months % 12 + 1, day=1)
    elif count == 7:
        edge = today + timedelta(days=7 - now.weekday())
    else:
        start = _local(started_us, zone) if count > 1 else now
        passed = (now.date() - start.date()).days
        edge = today + timedelta(days=(passed // count + 1) * count - passed)
    edge_us = _us(edge)
    # Where the clocks went back over midnight it comes twice, and may have been once already.
    return edge_us if edge_us > now_us else _us(edge.replace(fold=1))


def _local(us: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + timedelta(microseconds=us)).astimezone(zone)


def _us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
