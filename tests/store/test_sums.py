from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from tests.store.laws import T0, kept_sums, known, make_closing, make_opening, summed
from tproxy.store import subject_rows
from tproxy.store.base import CLIENT_GONE, ESTIMATED, EXACT, FINISHED, LOST, OPEN, PARTIAL, REFUSED, UNPRICED
from tproxy.store.migrate import migrate, shipped
from tproxy.store.money import FIGURE_MAX, Tally, tallies
from tproxy.store.subjects import Subject
from tproxy.store.sums import Sums

DAY = 86_400_000_000
CUSTOMERS = [make_opening(1).customer or "", "x\0y"]
TOKENS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
NOTHING: dict[str, Any] = {f"{name}_tokens": None for name in TOKENS} | {"cost_nano": None}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_us=1)
    yield connection
    connection.close()


def _daily(connection: sqlite3.Connection, *columns: str, kind: str = "caller") -> list[tuple[Any, ...]]:
    query = f"SELECT {', '.join(columns)} FROM daily WHERE kind = ? ORDER BY day, id, model"
    return connection.execute(query, (kind,)).fetchall()


def _pairs() -> Iterator[tuple[Any, Any]]:
    """Exchanges of many kinds: each of these properties with each other."""
    whose: list[dict[str, Any]] = [
        {},
        {"team": None, "user": None, "customer": None, "tags": ()},
        {"customer": "x\0y", "team": None},
        {"customer": "made up", "team": "", "tags": ("a", "[1]", 'ü"\\'), "caller": "anonymous", "model_asked": None},
    ]
    ends: list[dict[str, Any]] = [
        {"certainty": EXACT, "cost_nano": 70},
        {"certainty": UNPRICED, "cost_nano": None, "cache_write_1h_tokens": None},
        {"certainty": PARTIAL, "cost_nano": 5, "ended": CLIENT_GONE, "model_served": None, "ended_us": None},
        {"certainty": ESTIMATED, "status": 529, "ended": REFUSED, "model_served": ""},
        {"certainty": EXACT, "status": 404, "input_tokens": None, "output_tokens": None},
        {"certainty": EXACT, "cost_nano": None, "status": None, "cache_read_tokens": None},
        NOTHING | {"ended": REFUSED, "status": 400},
        NOTHING | {"cost_nano": 1},
        NOTHING | {"output_tokens": 1},
        NOTHING | {"cache_write_1h_tokens": 1},
    ]
    for number, (opening, closing, day) in enumerate(product(whose, ends, (0, 1))):
        changes = {"accepted_us": T0 + day * DAY - number, "expected_nano": (None, 60, 90)[number % 3]} | opening
        yield make_opening(number, **changes), make_closing(number, **{"ended": FINISHED, "cost_nano": 9} | closing)


def test_they_are_what_the_rows_come_to(connection: sqlite3.Connection) -> None:
    for name in CUSTOMERS:
        subject_rows.insert(connection, Subject(kind="customer", id=name))
    assert known(connection) == set(CUSTOMERS)
    kept = []
    sums = Sums()
    for number, (opening, closing) in enumerate(_pairs()):
        sums.add(opening, closing)
        kept.append(_row(opening, closing))
        if number % 7 == 0:  # some in one batch, some in another
            sums.flush(connection)
            assert kept_sums(connection) == summed(kept, CUSTOMERS)
    sums.flush(connection)
    sums.flush(connection)
    assert kept_sums(connection) == summed(kept, CUSTOMERS)


def _row(opening: Any, closing: Any) -> dict[str, Any]:
    names = (*opening.__slots__, *closing.__slots__)
    return {n: getattr(closing if n in closing.__slots__ else opening, n) for n in names}


def test_a_file_from_before_gets_the_sums_of_its_rows() -> None:
    """But for what is expected, which was not known then."""
    old = sqlite3.connect(":memory:", isolation_level=None)
    migrate(old, now_us=1, migrations=shipped()[:1])
    there = [column[1] for column in old.execute("PRAGMA table_info(exchange)")]
    kept = []
    for opening, closing in (*_pairs(), (make_opening(99), make_closing(99, OPEN))):
        row = _row(opening, closing) | {"expected_nano": None}
        kept.append(row)
        values = [json.dumps(row[name], ensure_ascii=False) if name == "tags" else row[name] for name in there]
        old.execute(f"INSERT INTO exchange ({', '.join(there)}) VALUES ({', '.join('?' * len(there))})", values)
    migrate(old, now_us=1, migrations=shipped()[:2])
    assert kept_sums(old) == summed(kept, [*CUSTOMERS, "made up"])
    old.close()


def test_an_empty_file_has_no_sums(connection: sqlite3.Connection) -> None:
    assert kept_sums(connection) == ({}, {})


@pytest.mark.parametrize(
    ("ended", "status", "failures"),
    [
        (FINISHED, 200, 0),
        (FINISHED, None, 0),
        (FINISHED, 400, 1),
        (FINISHED, 399, 0),
        (CLIENT_GONE, 200, 1),
        (REFUSED, 529, 1),
        (LOST, None, 1),
    ],
)
def test_what_did_not_end_well_is_a_failure(
    connection: sqlite3.Connection, ended: str, status: int | None, failures: int
) -> None:
    sums = Sums()
    sums.add(make_opening(1), make_closing(1, ended, status=status))
    sums.flush(connection)
    assert _daily(connection, "exchanges", "failures") == [(1, failures)]


@pytest.mark.parametrize(
    ("asked", "served", "model"),
    [("a", "b", "b"), ("a", None, "a"), (None, "b", "b"), (None, None, "")],
)
def test_the_model_is_the_one_that_served(
    connection: sqlite3.Connection, asked: str | None, served: str | None, model: str
) -> None:
    sums = Sums()
    sums.add(make_opening(1, model_asked=asked), make_closing(1, model_served=served))
    sums.flush(connection)
    assert _daily(connection, "model") == [(model,)]


@pytest.mark.parametrize(
    ("accepted_us", "day"),
    [
        (1_764_028_800_000_000, "2025-11-25"),
        (1_764_028_799_999_999, "2025-11-24"),
        (1, "1970-01-01"),
        (1 << 62, "9999-12-31"),
        (-(1 << 62), "0001-01-01"),
    ],
)
def test_the_day_is_that_of_utc(connection: sqlite3.Connection, accepted_us: int, day: str) -> None:
    sums = Sums()
    sums.add(make_opening(1, accepted_us=accepted_us), make_closing(1))
    sums.flush(connection)
    assert _daily(connection, "day") == [(day,)]


def test_how_far_off_the_expected_cost_was(connection: sqlite3.Connection) -> None:
    sums = Sums()
    for n, (expected, cost, certainty) in enumerate(
        [(50, 70, EXACT), (50, 20, EXACT), (50, 20, PARTIAL), (None, 20, EXACT), (50, None, EXACT)]
    ):
        sums.add(
            make_opening(n, caller="c", expected_nano=expected), make_closing(n, cost_nano=cost, certainty=certainty)
        )
    sums.flush(connection)
    tally = tallies(connection, "caller", ["c"])["c"]
    assert (tally.exchanges, tally.cost_nano) == (5, 130)
    figures = (tally.expected_exchanges, tally.expected_nano, tally.expected_cost_nano, tally.expected_error_nano)
    assert figures == (2, 100, 90, 50)


@pytest.mark.parametrize("batches", [1, 2])
def test_a_sum_stays_at_what_a_column_can_hold(connection: sqlite3.Connection, batches: int) -> None:
    sums = Sums()
    for n in range(3):
        sums.add(make_opening(n, caller="c"), make_closing(n, cost_nano=FIGURE_MAX - 1, output_tokens=FIGURE_MAX))
        if batches == 2:
            sums.flush(connection)
    sums.flush(connection)
    tally = tallies(connection, "caller", ["c"])["c"]
    assert (tally.exchanges, tally.cost_nano, tally.completion_tokens) == (3, FIGURE_MAX, FIGURE_MAX)
    assert _daily(connection, "exchanges", "cost_nano") == [(3, FIGURE_MAX)]
    assert tally == Tally(
        exchanges=3,
        prompt_tokens=sum(11 + n + 33 + 44 + 55 for n in range(3)),
        completion_tokens=FIGURE_MAX,
        cost_nano=FIGURE_MAX,
        last_us=T0 + 902,
    )
