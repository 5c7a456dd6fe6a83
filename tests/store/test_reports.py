from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.store.large import book, fill
from tests.store.laws import T0, make_closing, make_opening
from tproxy.store import reports, rows
from tproxy.store.base import CLIENT_GONE, FINISHED, OPEN, UNPRICED, Closing, Opening
from tproxy.store.file import LedgerFile
from tproxy.store.reports import DaySum, Sum

DAY_US = 86_400_000_000
DAYS = ("2025-11-24", "2025-11-25", "2025-11-26")
KINDS = (reports.CALLER, reports.TEAM, reports.USER, reports.CUSTOMER, reports.TAG)
Pair = tuple[Opening, Closing]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    file = LedgerFile(tmp_path / "t.db", now_us=1, busy_seconds=1)
    yield file.ready()
    file.close()


def write(connection: sqlite3.Connection, pairs: Sequence[Pair]) -> None:
    for table in ("exchange", "tally", "daily", "renamed"):
        connection.execute(f"DELETE FROM {table}")
    for opening, closing in pairs:
        rows.insert(connection, opening)
        rows.note(connection, closing)
    book(connection)


def pair(number: int, cost: int | None, *, day: int = 0, ended: str = FINISHED, **changes: Any) -> Pair:
    opening = make_opening(number, accepted_us=T0 + day * DAY_US + number, **changes)
    closing = make_closing(number, ended=ended, model_served=None, cost_nano=cost)
    return opening, closing


def ids(opening: Opening, kind: str) -> tuple[str | None, ...]:
    if kind == reports.TAG:
        return opening.tags
    return (opening.model_asked,) if kind == reports.MODEL else (getattr(opening, kind),)


def plain(pairs: Sequence[Pair], kind: str, days: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Exchanges, prompt tokens and cost of each id, added up one by one."""
    found: dict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for opening, closing in pairs:
        if closing.ended == OPEN or DAYS[(opening.accepted_us - T0) // DAY_US] not in days:
            continue
        prompt = (closing.input_tokens or 0) + 33 + 44 + 55
        for id in ids(opening, kind):
            if id is not None:
                exchanges, tokens, cost = found[id]
                found[id] = exchanges + 1, tokens + prompt, cost + (closing.cost_nano or 0)
    return dict(found)


def figures(sums: Sequence[Sum]) -> dict[str, tuple[int, int, int]]:
    return {each.id: (each.exchanges, each.prompt_tokens, each.cost_nano) for each in sums}


def pairs(callers: str = "ab") -> st.SearchStrategy[list[Pair]]:
    few = st.sampled_from(("a", "b"))
    one = st.fixed_dictionaries(
        {
            "cost": st.none() | st.integers(0, 9),
            "day": st.integers(0, 2),
            "ended": st.sampled_from((FINISHED, FINISHED, CLIENT_GONE, OPEN)),
            "caller": st.sampled_from(callers),
            "model_asked": few,
            "team": st.none() | few,
            "user": st.none() | few,
            "customer": st.none() | few,
            "session": st.none() | few,
            "tags": st.lists(few, unique=True).map(tuple),
        }
    )
    return st.lists(one, max_size=8).map(_numbered)


def _numbered(drawn: list[dict[str, Any]]) -> list[Pair]:
    return [pair(number, **each) for number, each in enumerate(drawn)]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=pairs(), span=st.tuples(st.integers(0, 2), st.integers(0, 2)).map(sorted), bound=st.booleans())
def test_all_sums_are_those_of_the_rows(
    connection: sqlite3.Connection, pairs: list[Pair], span: list[int], bound: bool
) -> None:
    write(connection, pairs)
    first, last = span if bound else (0, 2)
    days = DAYS[first : last + 1]
    since, until = (days[0], days[-1]) if bound else (None, None)
    for kind in (*KINDS, reports.MODEL):
        sums = reports.sums(connection, kind, since=since, until=until)
        assert figures(sums) == plain(pairs, kind, days)
        assert [each.cost_nano for each in sums] == sorted((each.cost_nano for each in sums), reverse=True)
        by_day = {(day, id): each for day in days for id, each in plain(pairs, kind, [day]).items()}
        found = reports.day_sums(connection, kind, since=since, until=until, limit=100)
        assert {(each.day, each.model or each.id): _three(each) for each in found} == by_day
    all_ids = plain(pairs, reports.CALLER, days)
    total = reports.total(connection, since=since, until=until)
    assert (total.exchanges, total.cost_nano) == (
        sum(each[0] for each in all_ids.values()),
        sum(each[2] for each in all_ids.values()),
    )
    start, end = (T0 - T0 % DAY_US + place * DAY_US for place in (first, last + 1))
    sessions, complete = reports.session_sums(connection, since_us=start, until_us=end)
    assert figures(sessions) == plain(pairs, reports.SESSION, days)
    assert complete


def _three(each: DaySum) -> tuple[int, int, int]:
    return each.exchanges, each.prompt_tokens, each.cost_nano


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=pairs(), day=st.sampled_from((None, *DAYS)), id=st.sampled_from((None, "a", "b")))
def test_sums_by_day_caller_and_model(
    connection: sqlite3.Connection, pairs: list[Pair], day: str | None, id: str | None
) -> None:
    write(connection, pairs)
    for kind in KINDS:
        found = reports.days(connection, kind, since=day, until=day, id=id, limit=1000)
        assert found == sorted(found, key=lambda each: (each.day, each.id, each.caller, each.model))
        lines = _lines(pairs, kind, DAYS if day is None else [day])
        expected = {key: cost for key, cost in lines.items() if id in (None, key[1])}
        assert {(each.day, each.id, each.caller, each.model): each.cost_nano for each in found} == expected


def test_what_went_wrong_and_what_has_no_price_is_counted(connection: sqlite3.Connection) -> None:
    some = [
        pair(0, 5, caller="a"),
        pair(1, 5, caller="a", ended=CLIENT_GONE),
        pair(2, None, caller="a", day=1),
    ]
    some[2] = some[2][0], make_closing(2, cost_nano=None, certainty=UNPRICED, model_served=None)
    write(connection, some)
    for since in (None, DAYS[0]):
        for kind in (*KINDS[:-1], reports.MODEL):
            (each,) = reports.sums(connection, kind, since=since)
            assert (each.failures, each.unpriced) == (1, 1)
    (each,) = reports.sums(connection, reports.CALLER, since=DAYS[1])
    assert (each.failures, each.unpriced, each.exchanges) == (0, 1, 1)
    (each,) = reports.sums(connection, reports.TEAM, until=DAYS[0])
    assert (each.failures, each.unpriced, each.exchanges) == (1, 0, 2)
    (session,), _ = reports.session_sums(connection)
    assert (session.failures, session.unpriced, session.exchanges) == (None, 1, 3)


def test_only_so_many_are_given(connection: sqlite3.Connection) -> None:
    write(connection, [pair(n, n, caller=f"c{n}", session=f"s{n}", team=f"t{n % 2}", day=n % 2) for n in range(6)])
    for since in (None, DAYS[0], DAYS[1]):
        first, _ = reports.sums(connection, reports.CALLER, since=since, limit=2)
        assert first.id == "c5"
        assert len(reports.sums(connection, reports.TEAM, since=since, limit=1)) == 1
    assert [each.id for each in reports.session_sums(connection, limit=2)[0]] == ["s5", "s4"]
    assert len(reports.days(connection, reports.CALLER, limit=4)) == 4
    assert len(reports.day_sums(connection, reports.CALLER, limit=4)) == 4


def test_what_would_be_too_much_is_not_added_up(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(connection, [pair(n, n, caller="a", day=n % 3) for n in range(6)])
    monkeypatch.setattr(reports, "LOOKED_AT_MAX", 2)
    all_time = [reports.sums(connection, kind)[0] for kind in (reports.CALLER, reports.TEAM)]
    for each in (*all_time, reports.total(connection)):
        assert (each.exchanges, each.cost_nano, each.failures, each.unpriced) == (6, 15, None, None)
    for kind in (reports.CALLER, reports.TEAM, reports.MODEL):  # of some days all is known, whatever the work
        (each,) = reports.sums(connection, kind, since=DAYS[1])
        assert (each.exchanges, each.cost_nano, each.failures, each.unpriced) == (4, 12, 0, 0)
    sessions, complete = reports.session_sums(connection)
    assert (sum(each.exchanges for each in sessions), complete) == (2, False)
    monkeypatch.setattr(reports, "LOOKED_AT_MAX", 6)
    assert reports.sums(connection, reports.CALLER, limit=2)[0].failures == reports.total(connection).failures == 0
    assert reports.session_sums(connection)[1]


def test_what_people_see_can_be_set_back(connection: sqlite3.Connection) -> None:
    write(connection, [pair(n, n, caller=f"key:{n}", user="u") for n in range(1, 4)] + [pair(4, 9, caller="master")])
    seen = reports.seen
    assert seen(connection, reports.CALLER, begin="key:", limit=2) == [("key:3", 1, 3), ("key:2", 1, 2)]
    assert seen(connection, reports.CALLER, limit=1) == [("master", 1, 9)]
    assert seen(connection, reports.CALLER, id="key:1", limit=9) == [("key:1", 1, 1)]
    assert seen(connection, reports.PROXY, limit=9) == [("", 4, 15)]
    connection.execute("UPDATE tally SET written_off_nano = 3 WHERE id = 'key:3'")
    assert [id for id, _, _ in seen(connection, reports.CALLER, begin="key:", limit=3)] == ["key:2", "key:1", "key:3"]
    connection.execute(
        "INSERT INTO budget (kind, subject, period, position, spent_nano, held_nano, started_us) "
        "VALUES ('user', 'u', '', 0, 7, 4, 1)"
    )
    reports.set_back(connection)
    assert {spent for kind in (*KINDS, reports.PROXY) for _, _, spent in seen(connection, kind, limit=9)} == {0}
    assert connection.execute("SELECT spent_nano, held_nano FROM budget").fetchall() == [(0, 4)]
    assert reports.total(connection).cost_nano == 15


RENAMES: tuple[dict[str, str], ...] = ({"a": "b"}, {"a": "c", "b": "c"}, {"a": "c", "b": "d"}, {"b": "a", "c": "new"})


def rename(connection: sqlite3.Connection, renamed: dict[str, str], *, tallied: bool) -> None:
    """Let keys have been rotated; `tallied` if none of their exchanges ran then, so that all of their tally moved."""
    figures = ("exchanges", "prompt_tokens", "completion_tokens", "cost_nano", "written_off_nano", "last_us")
    for old, new in renamed.items():
        connection.execute("INSERT INTO renamed VALUES (?, ?)", (old, new))
        if tallied:
            connection.execute(
                f"INSERT INTO tally (kind, id, {', '.join(figures)}) "
                f"SELECT kind, ?, {', '.join(figures)} FROM tally WHERE kind = 'caller' AND id = ? "
                "ON CONFLICT DO UPDATE SET " + ", ".join(f"{name} = {name} + excluded.{name}" for name in figures),
                (new, old),
            )
            connection.execute("DELETE FROM tally WHERE kind = 'caller' AND id = ?", (old,))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=pairs("abcd"),
    renamed=st.sampled_from(RENAMES),
    tallied=st.booleans(),
    bounds=st.sampled_from(((0, 2, False), (0, 2, True), (0, 0, True), (1, 2, True), (2, 2, True))),
    looked_at=st.sampled_from((2, 6, 20, 100_000)),
    limit=st.integers(1, 3),
)
def test_what_a_key_came_to_before_it_was_rotated_counts_for_the_key_now(
    connection: sqlite3.Connection,
    drawn: list[Pair],
    renamed: dict[str, str],
    tallied: bool,
    bounds: tuple[int, int, bool],
    looked_at: int,
    limit: int,
) -> None:
    write(connection, drawn)
    rename(connection, renamed, tallied=tallied)
    # As if they had had the hash of now from the first.
    now = [(replace(opening, caller=renamed.get(opening.caller, opening.caller)), end) for opening, end in drawn]
    days = DAYS[bounds[0] : bounds[1] + 1]
    since, until = (days[0], days[-1]) if bounds[2] else (None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "LOOKED_AT_MAX", looked_at)
        sums = reports.sums(connection, reports.CALLER, since=since, until=until)
        few = reports.sums(connection, reports.CALLER, since=since, until=until, limit=limit)
        total = reports.total(connection, since=since, until=until)
    expected = plain(now, reports.CALLER, days)
    assert figures(sums) == expected
    assert [each.id for each in sums] == sorted(expected, key=lambda id: (-expected[id][2], id))
    assert figures(few) == figures(sums[:limit])
    assert (sum(each.exchanges for each in sums), sum(each.cost_nano for each in sums)) == (
        total.exchanges,
        total.cost_nano,
    )
    by_day = {(day, id): each for day in days for id, each in plain(now, reports.CALLER, [day]).items()}
    found = reports.day_sums(connection, reports.CALLER, since=since, until=until, limit=100)
    assert {(each.day, each.id): _three(each) for each in found} == by_day
    assert [(each.day, each.id) for each in found] == sorted(by_day)
    assert reports.day_sums(connection, reports.CALLER, since=since, until=until, limit=limit) == found[:limit]
    for kind in KINDS:
        lines = reports.days(connection, kind, since=since, until=until, limit=1000)
        assert {(each.day, each.id, each.caller, each.model): each.cost_nano for each in lines} == _lines(
            now, kind, days
        )
        assert lines == sorted(lines, key=lambda each: (each.day, each.id, each.caller, each.model))
        assert reports.days(connection, kind, since=since, until=until, limit=limit) == lines[:limit]
        for id in {each.id for each in lines}:
            own = [each for each in lines if each.id == id]
            assert reports.days(connection, kind, since=since, until=until, id=id, limit=1000) == own
    all_time = plain(now, reports.CALLER, DAYS)
    seen = reports.seen(connection, reports.CALLER, limit=100)
    assert {id: (exchanges, cost) for id, exchanges, cost in seen} == {
        id: (exchanges, cost) for id, (exchanges, _, cost) in all_time.items()
    }


def _lines(pairs: Sequence[Pair], kind: str, days: Sequence[str]) -> dict[tuple[str, str, str, str], int]:
    """The cost of each day, id, caller and model, added up one by one."""
    found: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for opening, closing in pairs:
        day = DAYS[(opening.accepted_us - T0) // DAY_US]
        for id in ids(opening, kind):
            if closing.ended != OPEN and id is not None and day in days:
                found[day, id, opening.caller, opening.model_asked or ""] += closing.cost_nano or 0
    return found


def test_an_earlier_hash_that_is_asked_for_has_what_stands_under_it(connection: sqlite3.Connection) -> None:
    write(connection, [pair(1, 1, caller="old"), pair(2, 2, caller="now"), pair(3, 4, caller="older")])
    rename(connection, {"old": "now", "older": "now"}, tallied=True)
    for id, costs in (("now", [7]), ("old", [1]), ("older", [4])):
        found = reports.days(connection, reports.CALLER, id=id, limit=9)
        assert [(each.id, each.caller, each.cost_nano) for each in found] == [(id, id, cost) for cost in costs]


@pytest.mark.parametrize("since", [None, DAYS[0], DAYS[1]])
@pytest.mark.parametrize(
    ("old", "others", "expected"),
    [
        pytest.param(
            [3, 3, 3], [6, 5, 4, 4, 4, 4, 4], [("now", 9), ("k0", 6)], id="only together do its names cost most"
        ),
        pytest.param([9, 8, 7], [5, 6], [("now", 24), ("k1", 6)], id="its names alone would be all that is shown"),
        pytest.param([1, 1, 1], [5, 6], [("k1", 6), ("k0", 5)], id="others cost more"),
    ],
)
def test_the_dearest_callers_are_found_whatever_names_they_had(
    connection: sqlite3.Connection,
    since: str | None,
    old: list[int],
    others: list[int],
    expected: list[tuple[str, int]],
) -> None:
    costs = {f"old{n}": cost for n, cost in enumerate(old)} | {f"k{n}": cost for n, cost in enumerate(others)}
    some = [pair(n, cost, caller=caller, day=1) for n, (caller, cost) in enumerate(costs.items())]
    write(connection, [*some, pair(99, 0, caller="earlier")])
    rename(connection, {f"old{n}": "now" for n in range(len(old))}, tallied=False)
    found = reports.sums(connection, reports.CALLER, since=since, limit=2)
    assert [(each.id, each.cost_nano) for each in found] == expected


def test_many_rotated_keys_add_up_to_the_total(connection: sqlite3.Connection) -> None:
    write(connection, [pair(n, n, caller=f"key:{n}", day=n % 3) for n in range(40)])
    rename(connection, {f"key:{n}": f"key:{n % 7}" for n in range(7, 35)}, tallied=False)
    for since in (None, *DAYS):
        sums = reports.sums(connection, reports.CALLER, since=since, limit=1000)
        assert not {each.id for each in sums} & {f"key:{n}" for n in range(7, 35)}
        total = reports.total(connection, since=since)
        for name in ("exchanges", "failures", "prompt_tokens", "completion_tokens", "cost_nano", "unpriced"):
            assert sum(getattr(each, name) for each in sums) == getattr(total, name)


@pytest.mark.parametrize("since", [None, "2025-11-20"])
def test_a_ledger_of_the_make_of_the_large_one_adds_up(tmp_path: Path, since: str | None) -> None:
    fill(tmp_path / "large.db", keys=20, rows=400)
    with sqlite3.connect(tmp_path / "large.db") as connection:
        number = connection.execute(
            "SELECT count(*) FROM exchange WHERE date(accepted_us / 1000000, 'unixepoch') >= ?", (since or "",)
        ).fetchone()[0]
        for kind in (reports.CALLER, reports.TEAM, reports.USER, reports.MODEL):
            assert sum(each.exchanges for each in reports.sums(connection, kind, since=since)) == number
        billed = connection.execute(
            "SELECT count(*) FROM exchange WHERE date(accepted_us / 1000000, 'unixepoch') >= ? "
            "AND (input_tokens > 0 OR cost_nano > 0)",
            (since or "",),
        ).fetchone()[0]
        assert 0 < billed < 400
        assert sum(each.exchanges for each in reports.sums(connection, reports.TAG, since=since)) == 2 * billed
        assert reports.total(connection, since=since).exchanges == number
    connection.close()


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize(
    ("asked", "plan"),
    [
        ("sums of all time", "tally_cost"),
        ("sums of some days", "SEARCH daily USING PRIMARY KEY (kind=? AND day>? AND day<?)"),
        ("sums of some callers", "SEARCH daily USING PRIMARY KEY (kind=? AND day=? AND id=?)"),
        ("days of one", "SEARCH daily USING PRIMARY KEY (kind=? AND day=? AND id=?)"),
        ("sessions", "exchange_accepted"),
    ],
)
def test_no_question_reads_more_than_it_must(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, asked: str, plan: str, renamed: bool
) -> None:
    write(connection, [pair(n, n, day=n % 3) for n in range(6)])
    if renamed:
        rename(connection, {"old": make_opening(0).caller}, tallied=True)
    monkeypatch.setattr(reports, "LOOKED_AT_MAX", 2 if asked == "sums of all time" else 1000)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    if asked == "days of one":
        reports.days(connection, reports.CALLER, id="a", limit=1)
    elif asked == "sessions":
        reports.session_sums(connection)
    elif asked == "sums of some callers":
        reports.sums(connection, reports.CALLER, since=DAYS[1])
        del statements[:-1]
    else:
        reports.sums(connection, reports.TEAM, since=None if asked == "sums of all time" else DAYS[1])
    connection.set_trace_callback(None)
    steps = [
        row[3]
        for statement in statements
        if not statement.lstrip().startswith("--")
        for row in connection.execute("EXPLAIN QUERY PLAN " + statement)
    ]
    assert any(plan in step for step in steps), steps
    assert not any(step in ("SCAN daily", "SCAN tally", "SCAN exchange") for step in steps), steps
