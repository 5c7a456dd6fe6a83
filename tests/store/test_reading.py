from __future__ import annotations

import os
import shutil
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.laws import make_closing, make_opening, make_row
from tproxy.store import rows
from tproxy.store.base import ESTIMATED, LOST, OPEN, PARTIAL, UNPRICED, Closing, Opening
from tproxy.store.file import LedgerFile
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.reading import DayModel, exchange, recent, spend_by_day
from tproxy.store.sqlite import open_ledger

HOUR_US = 3_600_000_000


def _us(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )


def _write(path: Path, pairs: list[tuple[Opening, Closing | None]]) -> Path:
    file = LedgerFile(path, now_us=1, busy_seconds=1)
    connection = file.ready()
    connection.execute("BEGIN")
    for opening, closing in pairs:
        rows.insert(connection, opening)
        if closing is not None:
            rows.note(connection, closing)
    connection.execute("COMMIT")
    file.close()
    return path


def _day(day: str, model: str, exchanges: int, **figures: int) -> DayModel:
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_nano")
    counts = ("unpriced", "estimated", "partial", "open")
    values = dict.fromkeys((*names, *counts), 0) | figures
    return DayModel(date.fromisoformat(day), False, model, exchanges, **values)


def test_one_exchange_in_full(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "t.db",
        [(make_opening(1), make_closing(1)), (make_opening(2, stream=None, tags=()), None)],
    )
    first, second = make_opening(1).id, make_opening(2).id
    assert exchange(path, first) == make_row(make_opening(1), make_closing(1))
    assert exchange(path, f" {second.upper()}\n") == make_row(make_opening(2, stream=None, tags=()))
    assert exchange(path, "019ab000-0000-7000-8000-00000000000f") is None
    assert list(exchange(path, first) or {})[:2] == ["id", "accepted_us"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("aaaaaaaa", "aaaaaaaa-1"),
        ("aaaaaaaa-1", "aaaaaaaa-1"),
        ("ffffffff", "ffffffff-1"),
        ("bbbbbbbb", ValueError),
        ("bbbbbbbb-2", "bbbbbbbb-2"),
        ("aaaaaaa", ValueError),
        ("", ValueError),
        ("aaaaaaab", None),
        ("aaaaaaa%", None),
        ("aaaaaaaa-1-", None),
    ],
)
def test_the_beginning_of_an_id_is_enough(tmp_path: Path, prefix: str, found: str | type[Exception] | None) -> None:
    ids = ["aaaaaaaa-1", "bbbbbbbb-1", "bbbbbbbb-2", "ffffffff-1"]
    path = _write(tmp_path / "t.db", [(make_opening(n, id=name), None) for n, name in enumerate(ids)])
    if isinstance(found, type):
        with pytest.raises(found):
            exchange(path, prefix)
    else:
        row = exchange(path, prefix)
        assert (row and row["id"]) == found


def test_the_newest_come_first(tmp_path: Path) -> None:
    openings = [make_opening(n, accepted_us=(n * 7) % 10) for n in range(10)]
    path = _write(tmp_path / "t.db", [(opening, None) for opening in openings])
    assert [row["accepted_us"] for row in recent(path, 4)] == [9, 8, 7, 6]
    assert len(recent(path)) == 10


def test_spend_is_summed_by_day_and_model(tmp_path: Path) -> None:
    def at(text: str, number: int, **changes: Any) -> Opening:
        return make_opening(number, accepted_us=_us(text), **changes)

    def closing(number: int, **changes: Any) -> Closing:
        return make_closing(number, **({"cost_nano": 5} | changes))

    path = _write(
        tmp_path / "t.db",
        [
            (at("2025-01-01T23:59:59.999999", 1), closing(1)),
            (at("2025-01-02T00:00:00", 2), closing(2, certainty=ESTIMATED)),
            (at("2025-01-02T10:00:00", 3), closing(3, ended=LOST, certainty=PARTIAL)),
            (at("2025-01-02T10:00:00", 4), closing(4, certainty=UNPRICED, cost_nano=None)),
            (at("2025-01-02T10:00:00", 5), None),
            (at("2025-01-02T10:00:00", 6, model_asked=None, path="/v1/models"), None),
            (at("2025-01-02T11:00:00", 7), closing(7, ended=OPEN, certainty=PARTIAL)),
            (at("2025-03-01T11:00:00", 8), closing(8, cost_nano=2**61 + 1)),
            (at("2025-03-01T11:00:00", 9), closing(9, cost_nano=2**61)),
        ],
    )
    served, asked = "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"
    tokens = {"output_tokens": 22, "cache_read_tokens": 33, "cache_write_tokens": 99}

    def times(count: int, **figures: int) -> dict[str, int]:
        return {name: value * count for name, value in tokens.items()} | figures

    assert spend_by_day(path) == [
        _day("2025-01-01", served, 1, **times(1, input_tokens=12, cost_nano=5)),
        _day("2025-01-02", "/v1/models", 1, open=1),
        _day("2025-01-02", asked, 1, open=1),
        _day(
            "2025-01-02",
            served,
            4,
            **times(4, input_tokens=60, cost_nano=15, unpriced=1, estimated=1, partial=1, open=1),
        ),
        _day("2025-03-01", served, 2, **times(2, input_tokens=39, cost_nano=2**62 + 1)),
    ]
    assert {row.day for row in spend_by_day(path, tz="America/New_York")} == {
        date(2025, 1, 1),
        date(2025, 1, 2),
        date(2025, 3, 1),
    }
    assert [row.exchanges for row in spend_by_day(path, tz="America/New_York")] == [2, 1, 1, 3, 2]
    second = _us("2025-01-02T00:00:00")
    assert [row.exchanges for row in spend_by_day(path, until_us=second)] == [1]
    assert [row.exchanges for row in spend_by_day(path, since_us=second, until_us=second + 1)] == [1]
    assert spend_by_day(path, since_us=second + 1, until_us=second + 1) == []
    with pytest.raises(ZoneInfoNotFoundError):
        spend_by_day(path, tz="Nowhere/City")


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A ledger with an exchange in every quarter of an hour around odd changes of the clock."""
    around = [
        "2011-12-29T06:00",  # Samoa has no 30 December
        "2018-11-03T20:00",  # Brazil skips a midnight
        "2018-02-17T20:00",  # and has 23:00 twice
        "2022-03-26T18:00",  # Beirut skips a midnight
        "2025-03-29T20:00",
        "2025-10-25T20:00",
    ]
    times = [_us(start) + quarter * HOUR_US // 4 for start in around for quarter in range(160)]
    pairs = [(make_opening(n, accepted_us=t), None) for n, t in enumerate(times)]
    return _write(tmp_path_factory.mktemp("hours") / "t.db", list(pairs)), times


ZONES = ["UTC", "Pacific/Apia", "America/Sao_Paulo", "Asia/Beirut", "Europe/Berlin", "Asia/Kathmandu", "America/Havana"]


@settings(max_examples=30, deadline=None)
@given(zone=st.sampled_from(ZONES), edges=st.tuples(st.integers(0, 959), st.integers(0, 959)))
def test_a_day_is_the_day_of_its_zone(hours: tuple[Path, list[int]], zone: str, edges: tuple[int, int]) -> None:
    path, times = hours
    since, until = times[edges[0]], times[edges[1]]
    expected: dict[date, int] = {}
    for t in times:
        if since <= t < until:
            day = datetime.fromtimestamp(t // 1_000_000, ZoneInfo(zone)).date()
            expected[day] = expected.get(day, 0) + 1
    found = spend_by_day(path, since, until, zone)
    assert [(row.day, row.exchanges) for row in found] == sorted(expected.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "holds no ledger"), (b"text\n" * 1000, "not a database")],
    ids=["missing", "empty", "text"],
)
def test_what_is_no_ledger_is_said_to_be_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.db"
    if content is not None:
        path.write_bytes(content)
    for read in (lambda: recent(path), lambda: exchange(path, "aaaaaaaa"), lambda: spend_by_day(path)):
        with pytest.raises(LedgerUnusable, match=rf"t\.db: .*{message}"):
            read()
    assert os.listdir(tmp_path) == ([] if content is None else ["t.db"])


def test_another_database_is_no_ledger(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "t.db")
    connection.execute("CREATE TABLE exchange (id)")
    connection.close()
    with pytest.raises(LedgerUnusable, match="another program"):
        recent(tmp_path / "t.db")


async def test_it_reads_beside_a_server(tmp_path: Path) -> None:
    path = tmp_path / "a b%20c?d#e.db"
    async with open_ledger(path) as ledger:
        await ledger.open(make_opening(1)).durable()
        assert [row["ended"] for row in recent(path)] == [OPEN]
        ledger.close(make_closing(1))
        await ledger.open(make_opening(2)).durable()
        assert [row["ended"] for row in recent(path)] == [OPEN, "finished"]
    assert [row["ended"] for row in recent(path)] == [OPEN, "finished"]


async def test_it_leaves_the_files_as_they_were(tmp_path: Path) -> None:
    """After a crash the WAL holds rows. Only the writer may carry them over."""
    path, crashed = tmp_path / "t.db", tmp_path / "crashed.db"
    async with open_ledger(path) as ledger:
        await ledger.open(make_opening(1)).durable()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
    before = _content(crashed)
    assert [row["id"] for row in recent(crashed)] == [make_opening(1).id]
    assert _content(crashed) == before


def _content(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


def test_each_report_sees_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [1, 2, 3]
    path = _write(tmp_path / "t.db", [(make_opening(n, accepted_us=_us(f"2025-01-0{n}T01:00")), None) for n in days])
    file = LedgerFile(path, now_us=1, busy_seconds=1)

    class Raced(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if "min(accepted_us)" in sql:
                rows.close(file.ready(), make_closing(days.pop()), None)
            return super().execute(sql, *args)

    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Raced, **options))
        days.append(1)
        assert [row.open for row in spend_by_day(path)] == [1, 1, 1]
    assert [row.open for row in spend_by_day(path)] == [0, 0, 0]
    file.close()


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/files/file_011CNha8iCJcU1wXNR6q4V8w/content", "/v1/files"),
        ("/v1/messages/batches/msgbatch_01/results", "/v1/messages/batches"),
        ("/v1/models/claude-opus-5", "/v1/models"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/models", "/v1/models"),
        ("/api/hello", "/api/hello"),
    ],
)
def test_calls_without_a_model_are_joined_by_the_beginning_of_their_path(
    tmp_path: Path, path: str, family: str
) -> None:
    opening = make_opening(1, model_asked=None, path=path)
    [day] = spend_by_day(_write(tmp_path / "t.db", [(opening, None)]))
    assert day.model == family


def test_what_the_sandbox_served_is_kept_apart(tmp_path: Path) -> None:
    pairs = [
        (make_opening(n, upstream=upstream), make_closing(n)) for n, upstream in enumerate(("sandbox", "https://x"))
    ]
    assert [day.sandbox for day in spend_by_day(_write(tmp_path / "t.db", list(pairs)))] == [False, True]
