from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields, replace

from tests.store.laws import make_closing, make_opening
from tproxy.store import rows
from tproxy.store.base import CLIENT_GONE, LOST, OPEN, PARTIAL, Closing, Opening
from tproxy.store.migrate import migrate


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_us=1)
    yield connection
    connection.close()


def _closing_columns(connection: sqlite3.Connection) -> list[object]:
    return connection.execute("SELECT ended, output_tokens, customer, tags FROM exchange").fetchall()


def test_the_columns_are_the_fields(connection: sqlite3.Connection) -> None:
    declared = {
        name: (kind, bool(not_null), default is not None)
        for _, name, kind, not_null, default, _ in connection.execute("PRAGMA table_info(exchange)")
    }
    expected = {}
    for struct in (Closing, Opening):
        for field in fields(struct):
            type = struct.__annotations__[field.name]
            has_value = field.name == "ended" or field.default not in (msgspec.NODEFAULT, None)
            expected[field.name] = (
                "INTEGER" if type.removesuffix(" | None") in ("int", "bool") else "TEXT",
                not type.endswith("| None"),
                struct is Closing and has_value,
            )
    assert declared == expected


def test_a_new_row_has_the_defaults_of_a_closing(connection: sqlite3.Connection) -> None:
    rows.insert(connection, make_opening(1))
    names = Closing.__struct_fields__
    there = connection.execute(f"SELECT {', '.join(names)} FROM exchange").fetchone()
    assert Closing(**dict(zip(names, there, strict=True))) == Closing(id=make_opening(1).id, ended=OPEN)


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "not opened"])
def test_a_whole_close_writes_the_row_once(connection: sqlite3.Connection, opened: bool) -> None:
    if opened:
        rows.insert(connection, make_opening(1))
    assert rows.close(connection, make_closing(1), make_opening(1)) == (make_opening(1).caller, "")
    assert rows.close(connection, make_closing(1), make_opening(1)) == (None, rows.ALREADY)  # it meets its own success
    assert _closing_columns(connection) == [
        ("finished", 22, "acme & sons, gmbh €", '["a", "ü,\\n\\"\'", "b"]'),
    ]


def test_a_close_again_is_taken_for_its_own_success(connection: sqlite3.Connection) -> None:
    rows.insert(connection, make_opening(1))
    assert rows.close(connection, make_closing(1), None) == (make_opening(1).caller, "")
    assert rows.close(connection, make_closing(1), None) == (None, rows.ALREADY)


@pytest.mark.parametrize("opening", [None, make_opening(1)], ids=["end", "whole"])
def test_another_end_is_refused(connection: sqlite3.Connection, opening: Opening | None) -> None:
    rows.insert(connection, make_opening(1))
    rows.close(connection, make_closing(1), None)
    assert rows.close(connection, make_closing(1, CLIENT_GONE), opening) == (None, "its row has ended as finished")
    assert rows.close(connection, make_closing(1, output_tokens=1), opening) == (None, "its row has ended as finished")
    rows.note(connection, make_closing(1, OPEN))
    assert not rows.close_bare(connection, make_closing(1, CLIENT_GONE))
    assert [row[:2] for row in connection.execute("SELECT ended, output_tokens FROM exchange")] == [("finished", 22)]


def test_a_close_of_no_row_is_told(connection: sqlite3.Connection) -> None:
    assert rows.close(connection, make_closing(1), None) == (None, "its row is not in the ledger")


def test_recovery_reads_only_what_is_open(connection: sqlite3.Connection) -> None:
    plan = connection.execute(
        "EXPLAIN QUERY PLAN UPDATE exchange SET ended = 'lost', ended_us = 1 WHERE ended = 'open'"
    ).fetchall()
    assert any("exchange_open" in step[3] for step in plan)
    for n in range(5):
        rows.insert(connection, make_opening(n))
        if n % 2:
            rows.close(connection, make_closing(n), None)
    rows.note(connection, make_closing(2, OPEN))
    assert rows.lose(connection, 9) == [
        (make_opening(0), Closing(id=make_opening(0).id, ended=LOST, ended_us=9)),
        (make_opening(2), make_closing(2, LOST, ended_us=9, certainty=PARTIAL)),
        (make_opening(4), Closing(id=make_opening(4).id, ended=LOST, ended_us=9)),
    ]
    assert rows.read(connection, make_opening(2).id) == (
        make_opening(2),
        make_closing(2, LOST, ended_us=9, certainty=PARTIAL),
    )
    ended = connection.execute("SELECT ended, ended_us, certainty FROM exchange ORDER BY id").fetchall()
    assert ended[::2] == [("lost", 9, "partial")] * 3
    assert {row[0] for row in ended[1::2]} == {"finished"}


@pytest.mark.parametrize(
    ("odd", "status", "bytes_out"),
    [({"input_tokens": 2**63}, 200, 500), ({"input_tokens": 2**63, "bytes_out": 2**63}, None, 0)],
    ids=["a figure of the upstream", "one of ours too"],
)
def test_a_bare_close_keeps_what_was_measured(
    connection: sqlite3.Connection, odd: dict[str, Any], status: int | None, bytes_out: int
) -> None:
    rows.insert(connection, make_opening(1))
    closing = replace(make_closing(1, status=200, bytes_out=500), **odd)
    with pytest.raises(rows.ROW_FAULTS):
        rows.close(connection, closing, None)
    assert rows.close_bare(connection, closing)
    there = connection.execute("SELECT ended, ended_us, status, bytes_out, input_tokens FROM exchange").fetchone()
    assert there == ("finished", closing.ended_us, status, bytes_out, None)
