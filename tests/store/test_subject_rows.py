from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.store import subject_rows
from tproxy.store.migrate import migrate
from tproxy.store.subject_rows import AliasTaken, AlreadyThere, NotThere
from tproxy.store.subjects import CUSTOMER, KEY, TAG, TEAM, TERMS, USER, Budget, Member, Subject, Terms


def empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_us=0)
    return connection


@pytest.fixture
def table() -> Iterator[sqlite3.Connection]:
    with closing(empty()) as connection:
        yield connection


def key(number: int, **more: Any) -> Subject:
    return Subject(kind=KEY, id=f"{number:064x}", created_us=number, **more)


def test_what_is_put_in_is_found_by_id_and_alias(table: sqlite3.Connection) -> None:
    there = key(1, alias="a", terms=Terms(budgets=(Budget("1d", 5),)), metadata={"x": [1, "ü"]})
    subject_rows.insert(table, there)
    subject_rows.insert(table, Subject(kind=TEAM, id=there.id, alias="a"))
    assert subject_rows.get(table, KEY, there.id) == there
    assert subject_rows.by_alias(table, "a") == there
    assert subject_rows.get(table, USER, there.id) is None
    assert subject_rows.by_alias(table, "b") is None


def test_a_kind_has_an_id_once(table: sqlite3.Connection) -> None:
    subject_rows.insert(table, key(1, alias="a"))
    for again in (key(1), key(1, alias="a"), key(1, alias="b")):
        with pytest.raises(AlreadyThere) as caught:
            subject_rows.insert(table, again)
        assert (caught.value.kind, caught.value.id) == (KEY, again.id)
    assert subject_rows.get(table, KEY, key(1).id) == key(1, alias="a")


def test_keys_have_an_alias_once_and_others_as_often_as_they_like(table: sqlite3.Connection) -> None:
    subject_rows.insert(table, key(1, alias="a"))
    subject_rows.insert(table, key(2))
    subject_rows.insert(table, key(3))
    for write in (subject_rows.insert, subject_rows.replace):
        with pytest.raises(AliasTaken, match="alias 'a'") as caught:
            write(table, key(4 if write is subject_rows.insert else 2, alias="a"))
        assert caught.value.alias == "a"
    for team in ("s", "t"):
        subject_rows.insert(table, Subject(kind=TEAM, id=team, alias="a"))
    subject_rows.replace(table, key(1, alias="b"))
    subject_rows.replace(table, key(2, alias="a"))
    assert subject_rows.by_alias(table, "a") == key(2, alias="a")


def test_what_is_not_there_is_not_replaced(table: sqlite3.Connection) -> None:
    with pytest.raises(NotThere) as caught:
        subject_rows.replace(table, Subject(kind=TAG, id="t"))
    assert (caught.value.kind, caught.value.id) == (TAG, "t")
    assert subject_rows.count(table, TAG) == 0


def test_what_replaces_is_found_by_what_it_is_now(table: sqlite3.Connection) -> None:
    subject_rows.insert(table, key(1, alias="a", team="s", user="u", terms_of="x"))
    subject_rows.replace(table, key(1, alias="b", team="t"))
    assert subject_rows.by_alias(table, "a") is None
    assert subject_rows.find(table, KEY, team="s") == []
    assert subject_rows.find(table, KEY, user="u") == []
    assert subject_rows.referring(table, "x") == []
    assert subject_rows.find(table, KEY, team="t") == [subject_rows.by_alias(table, "b")]


def test_what_is_deleted_is_gone_once(table: sqlite3.Connection) -> None:
    subject_rows.insert(table, key(1))
    assert not subject_rows.delete(table, TEAM, key(1).id)
    assert subject_rows.delete(table, KEY, key(1).id)
    assert not subject_rows.delete(table, KEY, key(1).id)
    assert subject_rows.get(table, KEY, key(1).id) is None


FILTERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({}, [4, 3, 2, 1]),
    "oldest first": ({"newest_first": False}, [1, 2, 3, 4]),
    "a team": ({"team": "s"}, [3, 1]),
    "a user": ({"user": "u"}, [2, 1]),
    "both": ({"team": "s", "user": "u"}, [1]),
    "nobody": ({"team": "nope"}, []),
    "an alias": ({"alias": "two"}, [2]),
    "an id": ({"id": f"{3:064x}"}, [3]),
    "terms": ({"terms_of": "gold"}, [4, 1]),
    "a page": ({"offset": 1, "limit": 2}, [3, 2]),
    "past the end": ({"offset": 4}, []),
    "none": ({"limit": 0}, []),
}


@pytest.mark.parametrize(("asked", "found"), FILTERS.values(), ids=FILTERS)
def test_those_that_fit(table: sqlite3.Connection, asked: dict[str, Any], found: list[int]) -> None:
    for each in (
        key(2, alias="two", user="u"),
        key(1, team="s", user="u", terms_of="gold"),
        key(4, terms_of="gold"),
        key(3, team="s"),
        Subject(kind=USER, id="s", team="s", user="u", alias="two", terms_of="gold"),
    ):
        subject_rows.insert(table, each)
    assert [each.created_us for each in subject_rows.find(table, KEY, **asked)] == found
    filters = {name: value for name, value in asked.items() if name not in ("offset", "limit", "newest_first")}
    if len(filters) == len(asked):
        assert subject_rows.count(table, KEY, **filters) == len(found)
        assert subject_rows.ids(table, KEY, **filters) == [key(number).id for number in reversed(found)]


def test_pages_do_not_overlap_where_times_are_the_same(table: sqlite3.Connection) -> None:
    for name in "cabed":
        subject_rows.insert(table, Subject(kind=TAG, id=name, created_us=7))
    pages = [subject_rows.find(table, TAG, offset=offset, limit=2) for offset in (0, 2, 4)]
    assert "".join(each.id for page in pages for each in page) == "edcba"


def test_all_kinds_may_refer_to_terms(table: sqlite3.Connection) -> None:
    given_terms = [key(1, terms_of="gold"), Subject(kind=CUSTOMER, id="c", terms_of="gold")]
    for each in (*given_terms, Subject(kind=TERMS, id="gold"), key(2, terms_of="silver"), key(3)):
        subject_rows.insert(table, each)
    assert sorted(subject_rows.referring(table, "gold"), key=lambda each: each.kind, reverse=True) == given_terms


def test_teams_are_found_by_their_members(table: sqlite3.Connection) -> None:
    odd = "a\"b%'\\"
    teams = [
        Subject(kind=TEAM, id="both", members=(Member("u"), Member(odd))),
        Subject(kind=TEAM, id="email", members=(Member("v", email="u"),)),
        Subject(kind=TEAM, id="empty", metadata={"members": [{"user": "u"}]}),
        Subject(kind=USER, id="no team", members=(Member("u"),)),
    ]
    for each in teams:
        subject_rows.insert(table, each)
    assert subject_rows.teams_of(table, "u") == teams[:1] == subject_rows.teams_of(table, odd)
    assert subject_rows.teams_of(table, "nobody") == []


def test_all_documents_of_a_kind(table: sqlite3.Connection) -> None:
    for each in (key(1, alias="a"), key(2), Subject(kind=TAG, id="t")):
        subject_rows.insert(table, each)
    assert dict(subject_rows.documents(table, KEY)).keys() == {key(1).id, key(2).id}


HOSTILE = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["' OR 1=1 --", '"; DROP TABLE subject; --', "%", "_", "\0", "x\0y", "key'", "\x1b[31m", "é", "é"]
)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_text_changes_anything_but_its_field(id: str, name: str, other: str) -> None:
    with closing(empty()) as table:
        bystander = key(1, alias="bystander", team="s")
        there = Subject(kind=USER, id=id, alias=name, team=name, user=other, terms_of=other, metadata={other: name})
        subject_rows.insert(table, bystander)
        subject_rows.insert(table, there)
        subject_rows.replace(table, there)
        filters: list[Callable[[], list[Subject]]] = [
            lambda: subject_rows.find(table, USER, id=id),
            lambda: subject_rows.find(table, USER, alias=name, team=name),
            lambda: subject_rows.find(table, USER, user=other, terms_of=other),
            lambda: subject_rows.referring(table, other),
        ]
        assert [each() for each in filters] == [[there]] * 4
        assert subject_rows.find(table, KEY) == [bystander]
        assert subject_rows.delete(table, USER, id)
        assert subject_rows.count(table, KEY) == 1
        assert subject_rows.count(table, USER) == 0
