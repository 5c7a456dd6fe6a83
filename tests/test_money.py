from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.money import NANO, to_dollars, to_nano, usd


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [
        (25, 25 * NANO),
        (0, 0),
        (0.1, 100_000_000),
        (1.1, 1_100_000_000),
        (1e-9, 1),
        ("0.000000001", 1),
        ("1e3", 1000 * NANO),
        (Decimal("2.5"), 2_500_000_000),
        (1_000_000_000, 10**18),
    ],
)
def test_dollars_are_taken_exactly(dollars: object, nano: int) -> None:
    assert to_nano(dollars) == nano


@pytest.mark.parametrize(
    "dollars",
    [
        -1,
        -1e-9,
        "1e-10",
        float("nan"),
        float("inf"),
        "much",
        "",
        None,
        True,
        [1],
        1_000_000_001,
        "1e400",
        "1e999999999",
    ],
)
def test_what_is_no_amount_is_refused_with_a_reason(dollars: object) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        to_nano(dollars)


@given(st.integers(0, 10**15))
def test_an_amount_survives_the_way_out_and_back(nano: int) -> None:
    assert to_nano(usd(nano)) == nano
    assert to_nano(to_dollars(nano)) == nano


def test_amounts_are_shown_exactly() -> None:
    assert [usd(nano, 2) for nano in (13_408_000, 0, -1, 25 * NANO)] == ["0.013408", "0.00", "-0.000000001", "25.00"]
