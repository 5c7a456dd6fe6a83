from __future__ import annotations

from datetime import date

import pytest

from tproxy.manage.faults import Unprocessable
from tproxy.manage.span import DAYS_MAX, Span, first_day, recent, span, today

NOON_US = 1_763_985_600_000_000  # 2025-11-24T12:00:00Z
DAY = date(2025, 11, 24)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("2025-11-01", date(2025, 11, 1)),
        ("1d", DAY),
        ("7d", date(2025, 11, 18)),
        ("2w", date(2025, 11, 11)),
        ("365d", date(2024, 11, 25)),
    ],
)
def test_the_first_day_of_a_span(text: str | None, expected: date | None) -> None:
    assert first_day(text, NOON_US) == expected


@pytest.mark.parametrize(
    "text", ["", "0d", "d", "7", "7h", "-7d", "7d ", "99999d", "2025-13-01", "20251124", "2025-W48-1", "\uff17d"]
)
def test_what_is_no_first_day(text: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        first_day(text, NOON_US)
    assert caught.value.param == "since"


def test_a_span_has_its_last_day_whole() -> None:
    one = Span(DAY, DAY)
    assert (one.since, one.until) == ("2025-11-24", "2025-11-24")
    assert one.since_us == NOON_US - 43_200_000_000
    assert one.until_us == NOON_US + 43_200_000_000
    assert (Span().since, Span().until, Span().since_us, Span().until_us) == (None, None, None, None)


def test_today_changes_at_midnight() -> None:
    assert [today(NOON_US + 43_200_000_000 + us) for us in (-1, 0)] == [DAY, date(2025, 11, 25)]
    assert recent(NOON_US, 30) == Span(date(2025, 10, 26), DAY)


def test_a_span_goes_forward_and_is_bounded() -> None:
    assert span(DAY, DAY) == Span(DAY, DAY)
    assert span(None, DAY).first is None
    longest = date.fromordinal(DAY.toordinal() + DAYS_MAX - 1)
    assert span(DAY, longest) == Span(DAY, longest)
    for last in (date(2025, 11, 23), date.fromordinal(longest.toordinal() + 1)):
        with pytest.raises(Unprocessable) as caught:
            span(DAY, last, "until")
        assert caught.value.param == "until"
