from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.large import book
from tests.store.laws import T0, make_closing, make_opening
from tproxy.store import rows, search
from tproxy.store.base import OPEN, Opening
from tproxy.store.file import LedgerFile
from tproxy.store.search import Count, Wanted

NAMES = ("caller", "team", "user", "customer", "session")
# The names of tags that could be taken for a part of the array that holds them.
TAGS = ("a", "b", "a b", '"', '", "', "\\", "[", "ü", "%", "'")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    file = LedgerFile(tmp_path / "t.db", now_us=1, busy_seconds=1)
    yield file.ready()
    file.close()


def write(connection: sqlite3.Connection, *openings: Opening, running: tuple[int, ...] = ()) -> None:
    for number, opening in enumerate(openings):
        rows.insert(connection, opening)
        if number not in running:
            rows.note(connection, make_closing(0, id=opening.id, cost_nano=number))


def found(
    connection: sqlite3.Connection, wanted: Wanted | None = None, *, limit: int = 100, offset: int = 0
) -> list[int]:
    """The numbers of the exchanges that are found."""
    dicts = search.rows(connection, wanted or Wanted(), limit=limit, offset=offset)
    return [int(row["id"][-12:], 16) for row in dicts]


def test_a_row_has_all_its_columns(connection: sqlite3.Connection) -> None:
    write(connection, make_opening(1, tags=TAGS, agent="g", parent_agent="p", expected_nano=5))
    (row,) = search.rows(connection, Wanted())
    assert row["tags"] == list(TAGS)
    assert (row["agent"], row["parent_agent"], row["expected_nano"], row["cost_nano"]) == ("g", "p", 5, 0)
    assert row["id"] == make_opening(1).id


def test_the_newest_come_first_a_page_at_a_time(connection: sqlite3.Connection) -> None:
    write(connection, *(make_opening(n, accepted_us=T0 + n // 2) for n in range(7)))
    assert found(connection) == [6, 5, 4, 3, 2, 1, 0]
    pages = [found(connection, limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert pages == [[6, 5, 4], [3, 2, 1], [0], []]
    with pytest.raises(ValueError, match="fewer days"):
        found(connection, offset=search.OFFSET_MAX + 1)


def test_time_is_from_and_before(connection: sqlite3.Connection) -> None:
    write(connection, *(make_opening(n) for n in range(5)))
    assert found(connection, Wanted(since_us=T0 + 1, until_us=T0 + 3)) == [2, 1]
    assert found(connection, Wanted(since_us=T0 + 4)) == [4]
    assert search.count(connection, Wanted(since_us=T0 + 1, until_us=T0 + 3)) == Count(2, True)


def test_what_runs_is_not_there_yet(connection: sqlite3.Connection) -> None:
    write(connection, *(make_opening(n, caller="master") for n in range(4)), running=(1, 3))
    assert found(connection) == found(connection, Wanted(caller="master")) == [2, 0]
    assert found(connection, Wanted(id=make_opening(1).id)) == []
    assert found(connection, Wanted(id=make_opening(2).id)) == [2]
    assert search.count(connection, Wanted(caller="master", since_us=0)) == Count(2, True)
    assert connection.execute("SELECT count(*) FROM exchange WHERE ended = ?", (OPEN,)).fetchone() == (2,)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_looked_for_as_it_is(connection: sqlite3.Connection, name: str) -> None:
    attack = "x' OR '1'='1"
    for number, value in enumerate(("x", attack, "X")):
        write(connection, msgspec.structs.replace(make_opening(number), **{name: value}))
    for value, numbers in (("x", [0]), (attack, [1]), ("%", [])):
        assert found(connection, replace(Wanted(), **{name: value})) == numbers  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_whole_tag(connection: sqlite3.Connection, tag: str) -> None:
    others = tuple(other for other in TAGS if other != tag)
    write(connection, make_opening(0, tags=(tag,)), make_opening(1, tags=others), make_opening(2, tags=TAGS))
    assert found(connection, Wanted(tag=tag)) == [2, 0]
    assert found(connection, Wanted(tag=tag + "x")) == []


def test_the_counts_of_one_subject_are_those_that_are_kept(connection: sqlite3.Connection) -> None:
    write(connection, *(make_opening(n, team=f"t{n % 2}", tags=("a", "b")[: n % 3]) for n in range(6)), running=(5,))
    book(connection)
    assert search.count(connection, Wanted()) == Count(5, True)
    assert search.count(connection, Wanted(team="t0")) == Count(3, True)
    assert search.count(connection, Wanted(tag="a")) == Count(3, True)
    assert search.count(connection, Wanted(tag="none")) == Count(0, True)
    connection.execute("UPDATE tally SET exchanges = 1000 WHERE kind = 'team' AND id = 't0'")
    assert search.count(connection, Wanted(team="t0")).total == 1000  # not counted one by one
    assert search.count(connection, Wanted(team="t0", tag="a")).total == 2


@pytest.mark.parametrize("merged_max", [1, 50])
def test_the_names_of_a_rotated_key_are_one_caller(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, merged_max: int
) -> None:
    monkeypatch.setattr(search, "_MERGED_MAX", merged_max)
    callers = ("old", "other", "now", "older", "now", "old")
    write(connection, *(make_opening(n, caller=caller, session=f"s{n % 2}") for n, caller in enumerate(callers)))
    book(connection)
    # The tally of the first was moved; the other's has what began before the rotation and ended after it.
    connection.execute("DELETE FROM tally WHERE kind = 'caller' AND id = 'older'")
    connection.execute("UPDATE tally SET exchanges = exchanges + 1 WHERE kind = 'caller' AND id = 'now'")
    connection.execute("INSERT INTO renamed VALUES ('old', 'now'), ('older', 'now')")
    for caller, numbers in (("now", [5, 4, 3, 2, 0]), ("old", [5, 0]), ("older", [3]), ("other", [1])):
        assert found(connection, Wanted(caller=caller)) == numbers
        assert search.count(connection, Wanted(caller=caller)) == Count(len(numbers), True)
        assert found(connection, Wanted(caller=caller, session="s1")) == [n for n in numbers if n % 2]
    assert found(connection, Wanted(caller="now"), limit=2, offset=2) == [3, 2]
    monkeypatch.setattr(search, "LOOKED_AT_MAX", 2)
    assert found(connection, Wanted(caller="now", tag="a")) == [5, 4]
    assert search.count(connection, Wanted(caller="now", tag="a")) == Count(2, False)


def test_no_more_is_looked_at_than_the_bound(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LOOKED_AT_MAX", 4)
    write(connection, *(make_opening(n, team=f"t{n % 2}", tags=("a",)) for n in range(10)))
    assert found(connection, Wanted(tag="a")) == [9, 8, 7, 6]
    assert (
        found(connection, Wanted(user="ada", team="t0"))
        == found(connection, Wanted(user="ada", team="t0", tag="a"))
        == [8, 6]
    )
    assert found(connection, Wanted(team="t0")) == [8, 6, 4, 2, 0]  # the index alone tells
    assert search.count(connection, Wanted(user="ada", team="t0")) == Count(2, False)
    assert search.count(connection, Wanted(since_us=T0 + 5)) == Count(4, False)
    assert search.count(connection, Wanted(since_us=T0 + 6)) == Count(4, True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked_for_is_what_a_plain_look_finds(connection: sqlite3.Connection, data: st.DataObject) -> None:
    few = st.sampled_from(("a", "b"))
    maybe = st.none() | few
    connection.execute("DELETE FROM exchange")
    connection.execute("DELETE FROM renamed")
    renamed = data.draw(st.sampled_from(({}, {"c": "a"}, {"c": "b", "a": "b"})))
    connection.executemany("INSERT INTO renamed VALUES (?, ?)", renamed.items())
    openings = [
        make_opening(
            number,
            accepted_us=T0 + data.draw(st.integers(0, 3)),
            caller=data.draw(st.sampled_from(("a", "b", "c"))),
            tags=tuple(data.draw(st.lists(few, unique=True))),
            **{name: data.draw(maybe) for name in NAMES[1:]},
        )
        for number in range(data.draw(st.integers(0, 8)))
    ]
    running = tuple(data.draw(st.sets(st.integers(0, 7), max_size=2)))
    write(connection, *openings, running=running)
    wanted: dict[str, Any] = {name: data.draw(maybe) for name in (*NAMES, "tag")} | {
        "since_us": data.draw(st.none() | st.integers(T0, T0 + 3)),
        "until_us": data.draw(st.none() | st.integers(T0, T0 + 4)),
    }
    plain = [
        number
        for number, opening in enumerate(openings)
        if number not in running
        and all(wanted[name] in (None, getattr(opening, name)) for name in NAMES[1:])
        and wanted["caller"] in (None, opening.caller, renamed.get(opening.caller))
        and (wanted["tag"] is None or wanted["tag"] in opening.tags)
        and (wanted["since_us"] or 0) <= opening.accepted_us < (wanted["until_us"] or T0 + 9)
    ]
    plain.sort(key=lambda number: (openings[number].accepted_us, number), reverse=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_MERGED_MAX", data.draw(st.sampled_from((1, 50))))
        assert found(connection, Wanted(**wanted)) == plain
        assert found(connection, Wanted(**wanted), offset=1, limit=2) == plain[1:3]
        wanted["since_us"] = wanted["since_us"] or 0  # counted one by one
        assert search.count(connection, Wanted(**wanted)) == Count(len(plain), True)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(), "exchange_accepted"),
        (Wanted(tag="a"), "exchange_accepted"),
        (Wanted(id="x"), "sqlite_autoindex_exchange_1"),
        (Wanted(session="s", team="t"), "exchange_session"),
        (Wanted(caller="c", team="t"), "exchange_caller"),
        (Wanted(customer="c", user="u"), "exchange_customer"),
        (Wanted(user="u", team="t", tag="a"), "exchange_user"),
        (Wanted(team="t"), "exchange_team"),
        (Wanted(caller="rotated"), "exchange_caller"),
        (Wanted(caller="rotated", session="s"), "exchange_session"),
    ],
)
def test_each_search_has_its_index(connection: sqlite3.Connection, wanted: Wanted, index: str) -> None:
    connection.execute("INSERT INTO renamed VALUES ('old', 'rotated'), ('older', 'rotated')")
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    search.rows(connection, wanted)
    connection.set_trace_callback(None)
    plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + asked[-1])]
    assert any(f"INDEX {index} " in step for step in plan), plan
    assert not any(step.startswith("SCAN exchange") and "INDEX" not in step for step in plan), plan
