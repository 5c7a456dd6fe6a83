from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.period import later, next_reset, parse

SECOND = 1_000_000
# Clocks that skip or repeat midnight, a day or half an hour, and some that do not.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
)
PERIODS = ("1s", "90s", "15m", "6h", "24h", "1d", "2d", "7d", "10d", "30d", "45d", "1w", "2w", "1mo", "2mo", "12mo")

_moments = st.integers(0, 4_000_000_000 * SECOND)  # 1970 to 2096
_zones = st.sampled_from(ZONES).map(ZoneInfo)
_periods = st.sampled_from(PERIODS)


def _us(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * SECOND


def _local(us: int, zone: str) -> str:
    return datetime.fromtimestamp(us / SECOND, ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1s", (1, "s")),
        ("15m", (15, "m")),
        ("6h", (6, "h")),
        ("1d", (1, "d")),
        ("2w", (2, "w")),
        ("1mo", (1, "mo")),
        ("36500d", (36500, "d")),
        ("1177mo", (1177, "mo")),
        ("999999m", (999999, "m")),
    ],
)
def test_a_period_is_a_number_and_a_unit(text: str, parsed: tuple[int, str]) -> None:
    assert parse(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "1", "d", "0d", "01d", "-1d", "1.5d", "1 d", "1D", "1y", "1M", "1d\n", "1mon", "٣d", "1234567s", "1d1d"],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30d"):
        parse(text)
    with pytest.raises(ValueError, match="such as 30d"):
        later(text, 0)
    with pytest.raises(ValueError, match="such as 30d"):
        next_reset(text, 0, 0, ZoneInfo("UTC"))


@pytest.mark.parametrize("text", ["36501d", "5215w", "1178mo", "876001h"])
def test_a_century_is_too_long(text: str) -> None:
    with pytest.raises(ValueError, match="century"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("15m", 900), ("6h", 21_600), ("1d", 86_400), ("2w", 1_209_600), ("1mo", 2_592_000)],
)
def test_a_lifetime_is_counted_from_now(text: str, seconds: int) -> None:
    assert later(text, 77) == 77 + seconds * SECOND


# The period; the time zone; when it began; now; when it ends, as the clocks there say.
_RESETS = {
    "seconds from the start": ("90s", "UTC", "2026-01-01T00:00:10", "2026-01-01T00:01:39", "2026-01-01T00:01:40+00:00"),
    "at the edge the next": ("90s", "UTC", "2026-01-01T00:00:10", "2026-01-01T00:01:40", "2026-01-01T00:03:10+00:00"),
    "hours from the start": ("6h", "UTC", "2026-01-01T01:30:00", "2026-01-02T08:00:00", "2026-01-02T13:30:00+00:00"),
    "hours whatever the clocks do": (
        "24h",
        "Europe/Berlin",
        "2026-03-28T12:00:00+01:00",
        "2026-03-28T13:00:00+01:00",
        "2026-03-29T13:00:00+02:00",
    ),
    "a day ends at midnight": ("1d", "UTC", "2026-01-01T01:30:00", "2026-01-01T23:59:59", "2026-01-02T00:00:00+00:00"),
    "at midnight the next": ("1d", "UTC", "2026-01-01T01:30:00", "2026-01-02T00:00:00", "2026-01-03T00:00:00+00:00"),
    "a day elsewhere": (
        "1d",
        "Asia/Tokyo",
        "2026-01-01T01:30:00",
        "2026-01-01T15:00:00",
        "2026-01-03T00:00:00+09:00",
    ),
    "a day of 23 hours": (
        "1d",
        "Europe/Berlin",
        "2026-01-01T00:00:00",
        "2026-03-29T00:00:00+01:00",
        "2026-03-30T00:00:00+02:00",
    ),
    "a day of 25 hours": (
        "1d",
        "Europe/Berlin",
        "2026-01-01T00:00:00",
        "2026-10-25T00:00:00+02:00",
        "2026-10-26T00:00:00+01:00",
    ),
    "a midnight that is skipped": (
        "1d",
        "America/Havana",
        "2026-01-01T00:00:00",
        "2026-03-07T12:00:00-05:00",
        "2026-03-08T01:00:00-04:00",
    ),
    "a midnight that comes twice, before": (
        "1d",
        "America/Havana",
        "2026-01-01T00:00:00",
        "2026-10-31T12:00:00-04:00",
        "2026-11-01T00:00:00-04:00",
    ),
    "a midnight that comes twice, between": (
        "1d",
        "America/Havana",
        "2026-01-01T00:00:00",
        "2026-11-01T00:30:00-05:00",
        "2026-11-02T00:00:00-05:00",
    ),
    "clocks that went back over midnight": (
        "1d",
        "America/St_Johns",
        "2010-01-01T00:00:00",
        "2010-11-06T23:30:00-03:30",
        "2010-11-07T00:00:00-03:30",
    ),
    "a day that is skipped": (
        "1d",
        "Pacific/Apia",
        "2011-01-01T00:00:00",
        "2011-12-29T12:00:00-10:00",
        "2011-12-31T00:00:00+14:00",
    ),
    "days from the day of the start": (
        "10d",
        "UTC",
        "2026-01-01T18:00:00",
        "2026-01-12T03:00:00",
        "2026-01-21T00:00:00+00:00",
    ),
    "days, over a leap day": ("2d", "UTC", "2028-02-27T18:00:00", "2028-02-28T18:00:00", "2028-02-29T00:00:00+00:00"),
    "a week ends on Monday": ("7d", "UTC", "2026-01-01T18:00:00", "2026-01-01T18:00:00", "2026-01-05T00:00:00+00:00"),
    "from Monday to Monday": ("1w", "UTC", "2026-01-01T18:00:00", "2026-01-05T00:00:00", "2026-01-12T00:00:00+00:00"),
    "on Sunday": ("1w", "UTC", "2026-01-01T18:00:00", "2026-01-04T23:00:00", "2026-01-05T00:00:00+00:00"),
    "weeks from the day of the start": (
        "2w",
        "UTC",
        "2026-01-01T18:00:00",
        "2026-01-15T00:00:00",
        "2026-01-29T00:00:00+00:00",
    ),
    "a month ends on the first": (
        "1mo",
        "UTC",
        "2025-11-11T11:00:00",
        "2026-01-31T18:00:00",
        "2026-02-01T00:00:00+00:00",
    ),
    "a year's end": ("1mo", "UTC", "2025-11-11T11:00:00", "2025-12-31T23:59:59", "2026-01-01T00:00:00+00:00"),
    "a leap year": ("1mo", "UTC", "2028-02-01T00:00:00", "2028-02-29T12:00:00", "2028-03-01T00:00:00+00:00"),
    "30 days are a month": ("30d", "UTC", "2026-01-20T18:00:00", "2026-01-31T18:00:00", "2026-02-01T00:00:00+00:00"),
    "31 days are not": ("31d", "UTC", "2026-01-20T18:00:00", "2026-01-31T18:00:00", "2026-02-20T00:00:00+00:00"),
    "months from the month of the start": (
        "5mo",
        "UTC",
        "2025-11-30T18:00:00",
        "2026-04-30T18:00:00",
        "2026-09-01T00:00:00+00:00",
    ),
    "a year": ("12mo", "UTC", "2024-02-29T18:00:00", "2025-01-30T18:00:00", "2025-02-01T00:00:00+00:00"),
    "a clock that was set back": (
        "3d",
        "UTC",
        "2026-01-10T00:00:00",
        "2026-01-05T12:00:00",
        "2026-01-07T00:00:00+00:00",
    ),
}


@pytest.mark.parametrize(
    ("text", "zone", "started", "now", "end"), [pytest.param(*row, id=name) for name, row in _RESETS.items()]
)
def test_a_period_ends_at_an_edge(text: str, zone: str, started: str, now: str, end: str) -> None:
    assert _local(next_reset(text, _us(now), _us(started), ZoneInfo(zone)), zone) == end


@given(text=_periods, now=_moments, started=_moments, zone=_zones)
def test_it_ends_later_and_not_before_its_end(text: str, now: int, started: int, zone: ZoneInfo) -> None:
    end = next_reset(text, now, started, zone)
    assert now < end <= later(text, now) + 32 * 86_400 * SECOND
    for inside in ((now + end) // 2, end - 1):
        assert next_reset(text, inside, started, zone) == end


@given(text=_periods, started=_moments, passed=st.integers(0, 40), zone=_zones)
def test_to_begin_anew_late_is_to_begin_anew_in_time(text: str, started: int, passed: int, zone: ZoneInfo) -> None:
    """The ends are the same whether each was seen, and the next counted from it, or only the last."""
    first = end = next_reset(text, started, started, zone)
    for _ in range(passed):
        end = next_reset(text, end, end, zone)
    assert next_reset(text, end - 1, first, zone) == end or not passed
    assert next_reset(text, end - 1, started, zone) == end


@given(text=_periods, now=_moments, started=_moments)
def test_it_ends_later_even_where_clocks_go_back_over_midnight(text: str, now: int, started: int) -> None:
    assert next_reset(text, now, started, ZoneInfo("America/St_Johns")) > now
