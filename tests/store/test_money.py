from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.store.laws import T0, make_opening, make_subject
from tproxy.store import claims, money
from tproxy.store.base import EXPECTED, Claim, Standing
from tproxy.store.budgets import Budgets
from tproxy.store.migrate import migrate
from tproxy.store.money import Tally
from tproxy.store.subjects import Budget

UTC = ZoneInfo("UTC")
HOUR = 3_600_000_000
DAY = 24 * HOUR
MIDNIGHT = T0 - T0 % DAY + DAY


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_us=1)
    yield connection
    connection.close()


def _hold(connection: sqlite3.Connection, number: int, amount: int, subject: str = "ada") -> None:
    budgets = Budgets()
    budgets.begin(connection, T0, UTC)
    decision = claims.hold(connection, budgets, make_opening(number).id, [Claim("user", subject, EXPECTED, amount)])
    budgets.flush()
    assert decision.refusal is None


def _figures(
    connection: sqlite3.Connection, subject: str = "ada", now_us: int = T0
) -> list[tuple[str | None, int | None, int, int]]:
    found = money.standings(connection, "user", [subject], now_us, UTC)[subject]
    return [(s.period, s.limit_nano, s.spent_nano, s.held_nano) for s in found]


def test_budgets_are_those_of_the_terms_in_their_order(connection: sqlite3.Connection) -> None:
    subject = make_subject("user", "ada", Budget("1mo", 100, 80), Budget(None, 1000), Budget("1d", 10), cut=True)
    money.set_budgets(connection, subject, T0, UTC)
    base: dict[str, Any] = {"kind": "user", "subject": "ada", "spent_nano": 0, "held_nano": 0}
    assert money.standings(connection, "user", ["ada", "bob"], T0, UTC) == {
        "ada": [
            Standing(**base, period="1mo", limit_nano=100, soft_nano=80, reset_us=1_764_547_200_000_000),
            Standing(**base, period=None, limit_nano=1000, soft_nano=None, reset_us=None),
            Standing(**base, period="1d", limit_nano=10, soft_nano=None, reset_us=MIDNIGHT),
        ],
        "bob": [],
    }
    assert connection.execute("SELECT DISTINCT cut, started_us FROM budget").fetchall() == [(1, T0)]


def test_the_time_zone_says_when_a_day_ends(connection: sqlite3.Connection) -> None:
    money.set_budgets(connection, make_subject("user", "ada", Budget("1d", 1)), T0, ZoneInfo("Asia/Tokyo"))
    [standing] = money.standings(connection, "user", ["ada"], T0, UTC)["ada"]
    assert standing.reset_us == MIDNIGHT + 15 * HOUR  # T0 is 16:00 UTC: there, the next day has begun


def test_a_new_set_keeps_what_was_spent_and_held_of_a_period_that_stays(connection: sqlite3.Connection) -> None:
    money.set_budgets(connection, make_subject("user", "ada", Budget("1mo", 100), Budget("1d", 100)), T0, UTC)
    money.set_spent(connection, "user", "ada", 30, T0, UTC)
    _hold(connection, 1, 7)
    money.set_budgets(
        connection, make_subject("user", "ada", Budget(None, 5), Budget("1mo", 50, 40), cut=True), T0 + DAY, UTC
    )
    assert _figures(connection) == [(None, 5, 0, 7), ("1mo", 50, 30, 7)]
    rows = connection.execute("SELECT period, started_us, soft_nano, cut FROM budget ORDER BY period").fetchall()
    assert rows == [("", T0 + DAY, None, 1), ("1mo", T0, 40, 1)]
    assert connection.execute("SELECT amount_nano FROM reservation").fetchall() == [(7,), (7,)]


def test_a_period_that_is_changed_begins_now_and_keeps_its_figures(connection: sqlite3.Connection) -> None:
    """As long as it has not ended."""
    for now_us, spent in ((MIDNIGHT - 1, 30), (MIDNIGHT, 0)):
        money.set_budgets(connection, make_subject("user", "ada", Budget("1d", 100)), T0, UTC)
        money.set_spent(connection, "user", "ada", 30, T0, UTC)
        money.set_budgets(connection, make_subject("user", "ada", Budget("5h", 100)), now_us, UTC)
        assert _figures(connection, now_us=now_us) == [("5h", 100, spent, 0)]
        dates = connection.execute("SELECT started_us, reset_us FROM budget").fetchall()
        assert dates == [(now_us, now_us + 5 * HOUR)]
        money.drop_budgets(connection, "user", "ada")


@pytest.mark.parametrize("way", ["dropped", "set to none"])
def test_budgets_that_go_take_their_reservations_with_them(connection: sqlite3.Connection, way: str) -> None:
    for subject in ("ada", "bob"):
        money.set_budgets(connection, make_subject("user", subject, 100), T0, UTC)
        _hold(connection, 1 if subject == "ada" else 2, 7, subject)
    if way == "dropped":
        money.drop_budgets(connection, "user", "ada")
    else:
        money.set_budgets(connection, make_subject("user", "ada"), T0, UTC)
    assert _figures(connection) == []
    assert _figures(connection, "bob") == [(None, 100, 0, 7)]
    assert connection.execute("SELECT exchange FROM reservation").fetchall() == [(make_opening(2).id,)]


def test_an_ended_period_is_shown_anew_and_not_written(connection: sqlite3.Connection) -> None:
    money.set_budgets(connection, make_subject("user", "ada", Budget("1d", 100), Budget(None, 100)), T0, UTC)
    money.set_spent(connection, "user", "ada", 30, T0, UTC)
    _hold(connection, 1, 7)
    before = connection.execute("SELECT * FROM budget").fetchall()
    assert _figures(connection, now_us=MIDNIGHT - 1) == [("1d", 100, 30, 7), (None, 100, 30, 7)]
    assert _figures(connection, now_us=MIDNIGHT) == [("1d", 100, 0, 7), (None, 100, 30, 7)]
    [day, _] = money.standings(connection, "user", ["ada"], MIDNIGHT + 5 * DAY, UTC)["ada"]
    assert day.reset_us == MIDNIGHT + 6 * DAY
    assert connection.execute("SELECT * FROM budget").fetchall() == before


def test_a_figure_that_is_set_is_that_of_the_present_period(connection: sqlite3.Connection) -> None:
    money.set_budgets(connection, make_subject("user", "ada", Budget("1d", 100)), T0, UTC)
    money.set_spent(connection, "user", "ada", 30, T0, UTC)
    money.set_spent(connection, "user", "ada", 20, MIDNIGHT + 2 * DAY, UTC)
    assert _figures(connection, now_us=MIDNIGHT + 2 * DAY) == [("1d", 100, 20, 0)]
    assert connection.execute("SELECT started_us, reset_us FROM budget").fetchone() == (MIDNIGHT, MIDNIGHT + 3 * DAY)


@pytest.mark.parametrize(
    ("kind", "id", "tally"),
    [
        ("key", "ab", ("caller", "key:ab")),
        ("user", "ada", ("user", "ada")),
        ("proxy", "", ("proxy", "")),
    ],
)
def test_the_visible_figure_is_what_was_set_and_what_came_after(
    connection: sqlite3.Connection, kind: str, id: str, tally: tuple[str, str]
) -> None:
    connection.execute("INSERT INTO tally (kind, id, exchanges, cost_nano) VALUES (?, ?, 3, 50)", tally)
    money.set_spent(connection, kind, id, 20, T0, UTC)
    assert money.tallies(connection, tally[0], [tally[1]])[tally[1]].visible_nano == 20
    connection.execute("UPDATE tally SET cost_nano = 57")
    assert money.tallies(connection, tally[0], [tally[1]])[tally[1]] == Tally(3, cost_nano=57, written_off_nano=30)
    money.set_spent(connection, kind, id, 0, T0, UTC)
    assert money.tallies(connection, tally[0], [tally[1]])[tally[1]].visible_nano == 0


def test_a_figure_can_be_set_before_anything_was_spent(connection: sqlite3.Connection) -> None:
    money.set_spent(connection, "team", "core", 20, T0, UTC)
    assert money.tallies(connection, "team", ["core", "other"]) == {
        "core": Tally(written_off_nano=-20),
        "other": Tally(),
    }
    assert money.tallies(connection, "team", ["core"])["core"].visible_nano == 20


def test_ids_are_values_and_there_may_be_many(connection: sqlite3.Connection) -> None:
    odd = ["'; DROP TABLE budget; --", '"]', "ü\n", "", "%", "\\"]
    for id in odd:
        money.set_budgets(connection, make_subject("user", id, 100), T0, UTC)
        money.set_spent(connection, "user", id, len(id), T0, UTC)
    many = [*odd, *map(str, range(50_000))]
    found = money.standings(connection, "user", many, T0, UTC)
    assert {id: s[0].spent_nano for id, s in found.items() if s} == {id: len(id) for id in odd}
    assert len(money.tallies(connection, "user", many)) == len(many)


def test_what_is_held_by_kind(connection: sqlite3.Connection) -> None:
    assert money.held(connection) == ({}, 0)
    for subject in (make_subject("user", "ada", 10**9), make_subject("user", "bob", 10**9, Budget("1d", 10**9))):
        money.set_budgets(connection, subject, T0, UTC)
    money.set_budgets(connection, make_subject("team", "core", 10**9), T0, UTC)
    assert money.held(connection) == ({}, 0)
    _hold(connection, 1, 5)
    _hold(connection, 2, 7, "bob")
    assert money.held(connection) == ({"user": 5 + 7 + 7}, 3)
