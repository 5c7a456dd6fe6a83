"""Nano-dollars and what people write for them.

Inside, money is a whole number of nano-dollars. Only where people or other programs meet it is it dollars: exactly,
through the decimal text of a number, never through its binary value.
"""

from __future__ import annotations

from decimal import Decimal

NANO = 1_000_000_000
_MAX_NANO = 1_000_000_000 * NANO  # a thousand million dollars: far below what a 64-bit column holds


def to_nano(dollars: object) -> int:
    """The nano-dollars of an amount such as `25`, `0.5` or `"0.000000001"`.

    Raises:
        ValueError: it is no number, negative, finer than a nano-dollar or above a thousand million dollars.
    """
    if isinstance(dollars, bool) or not isinstance(dollars, int | float | str | Decimal):
        raise ValueError("must be an amount of dollars, such as 25 or 0.5")
    try:
        nano = Decimal(str(dollars)) * NANO
    except ArithmeticError:  # no number, or one far out of reach
        raise ValueError("must be an amount of dollars, such as 25 or 0.5") from None
    if not nano.is_finite() or not 0 <= nano <= _MAX_NANO:
        raise ValueError("must be an amount from 0 to 1000000000 dollars")
    if nano != nano.to_integral_value():
        raise ValueError("must not be finer than a nano-dollar: it has more than 9 decimals")
    return int(nano)


def to_dollars(nano: int) -> float:
    """Dollars for JSON in LiteLLM's form: the nearest float, which prints as the exact amount up to 15 digits."""
    return nano / NANO


def usd(nano: int, decimals: int = 0) -> str:
    """Nano-dollars as dollars, exactly, with at least so many decimals: 13408000 -> `0.013408`."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    fraction = f"{nano % NANO:09d}".rstrip("0").ljust(max(decimals, 1), "0")
    return f"{sign}{nano // NANO}.{fraction}"
