"""The values that a field of the management API can have: what is let in, and how it is described.

Every text is bounded and holds no control character, every number is exact and in a range, every free-form value is
JSON that can be written and read again. What is refused is said without the value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tproxy.money import to_nano
from tproxy.period import later, parse

MAX_TEXT: Final = 256
MAX_JSON: Final = 64 * 1024
MAX_DEPTH: Final = 20
PAGE_MAX: Final = 1000  # entries of a list
_MAX_COUNT: Final = 10**15
_MAX_WAIT: Final = 600
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_US: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // _MICROSECOND
# C0, DEL, C1, the separators that some take for a line's end, halves of surrogate pairs, and what turns the direction.
_UNCLEAN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _clean(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    if len(value) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters")
    if _UNCLEAN.search(value):
        raise ValueError("must hold no control characters")
    return value


def _emptied(value: Any) -> Any:
    """An empty text, as forms send it, for nothing."""
    return None if value == "" else value


def _count(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"must be a whole number from 0 to {_MAX_COUNT}")
    return value


def _nano(value: Any) -> int:
    if isinstance(value, str) and len(value) > 40:
        raise ValueError("must be an amount of dollars, such as 25 or 0.5")
    try:
        return to_nano(value)
    except ArithmeticError:  # an exponent beyond all bounds
        raise ValueError("must be an amount from 0 to 1000000000 dollars") from None


def _spent_nano(value: Any) -> int:
    """What was spent, as another program summed it up in floats: to the nearest nano-dollar."""
    return _nano(round(value, 9) if isinstance(value, float) and math.isfinite(value) else value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_WAIT:
        raise ValueError(f"must be seconds, from 0 to {_MAX_WAIT}")
    return float(value)


def _lasting(value: str) -> str:
    parse(value)
    return value


def _moment_us(value: Any) -> int:
    """A date with its offset, or a date alone, for midnight UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("must be a date and a time such as 2027-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    us = (moment - _EPOCH) // _MICROSECOND
    if not 0 <= us <= _LAST_US:
        raise ValueError("must be from 1970 to 9999, in UTC")
    return us


def writable(value: Any, depth: int = 0) -> None:
    """Raise ValueError unless JSON can hold a value and the ledger can keep it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"must not be nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, each in value.items():
            writable(key, depth)
            writable(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            writable(each, depth + 1)
    elif isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("must hold no half of a surrogate pair")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must hold no NaN and no infinity")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("must hold no number beyond 64 bits")


def bounded(value: Any) -> Any:
    """A free-form value, once it is known to be writable and not too large.

    Raises:
        ValueError: it is not.
    """
    writable(value)
    if len(json.dumps(value)) > MAX_JSON:
        raise ValueError(f"must have at most {MAX_JSON} bytes as JSON")
    return value


def _distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _schema(validate: Callable[[Any], Any], **schema: Any) -> tuple[Any, ...]:
    return BeforeValidator(validate), WithJsonSchema(schema)


Text = Annotated[str, AfterValidator(_clean)]
MaybeText = Annotated[Text | None, BeforeValidator(_emptied)]
Texts = Annotated[list[Text], Field(max_length=1000), AfterValidator(_distinct)]
Ids = Annotated[list[Text], Field(max_length=1000)]
Count = Annotated[int, *_schema(_count, type="integer", minimum=0, maximum=_MAX_COUNT)]
Counts = Annotated[dict[Text, Count], Field(max_length=200)]
Dollars = Annotated[int, *_schema(_nano, type="number", minimum=0, description="dollars")]
Spent = Annotated[int, *_schema(_spent_nano, type="number", minimum=0, description="dollars")]
Seconds = Annotated[float, *_schema(_seconds, type="number", minimum=0, maximum=_MAX_WAIT)]
Lasting = Annotated[
    str, AfterValidator(_lasting), Field(description="a number and s, m, h, d, w or mo", examples=["30d"])
]
Moment = Annotated[int, *_schema(_moment_us, type="string", format="date-time")]
Metadata = Annotated[dict[str, Any], AfterValidator(bounded)]

# Parameters of a query.
InQuery = Annotated[str | None, Query(max_length=MAX_TEXT)]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
PageSize = Annotated[int, Query(ge=1, le=PAGE_MAX)]


def iso(us: int | None) -> str | None:
    """Microseconds since the epoch as a date and time in UTC: `2027-01-31T12:00:00.000000Z`.

    What no calendar has is shown as its first or last moment: one such row must not spoil a list.
    """
    if us is None:
        return None
    moment = _EPOCH + timedelta(microseconds=min(max(us, _FIRST_US), _LAST_US))
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def until_us(lasting: str, now_us: int) -> int:
    """When something ends that starts now and lasts so long, at the latest with the year 9999."""
    return min(later(lasting, now_us), _LAST_US)
