from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner, Result

from tests.store.laws import T0, make_closing, make_opening
from tproxy.cli import app
from tproxy.store.retention import drop_oldest
from tproxy.store.sqlite import open_ledger

DAY = 86_400_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text('[tproxy]\ndatabase = "sqlite:t.db"\naccess = "open"\n')

    async def fill() -> None:
        async with open_ledger(tmp_path / "t.db") as ledger:
            for number in range(3):
                await ledger.open(make_opening(number, accepted_us=T0 + number * DAY, user="a\x1b[2J")).durable()
                ledger.close(make_closing(number, cost_nano=5))
                await ledger.write(lambda connection: None)

    trio.run(fill)
    return tmp_path


def run(directory: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["ledger", "verify", "--config", str(directory / "config.toml"), *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def change(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "t.db", isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount > 0


def test_all_holds(directory: Path) -> None:
    lines = run(directory).stdout.splitlines()
    assert lines[0].endswith("t.db: 3 rows have ended, 0 run; 3 entries")
    assert lines[2:6] == [
        "the journal and the rows: agree",
        "the sums by day and the rows: agree",
        "the tallies and the sums by day: agree",
        "what is held and the reservations: agree",
    ]
    with closing(sqlite3.connect(directory / "t.db")) as connection:
        (digest,) = connection.execute("SELECT hex(digest) FROM settled WHERE seq = 3").fetchone()
    assert lines[6] == f"The newest entry is 3, its digest {digest.lower()}."
    told = json.loads(run(directory, "--json").stdout)
    assert (told["holds"], told["ended"], told["faults"], told["digest"]) == (True, 3, [], digest.lower())


def test_what_does_not_hold_is_told_with_its_place(directory: Path) -> None:
    id = make_opening(1).id
    change(directory, f"UPDATE exchange SET user_agent = 'x' WHERE id = '{id}'")
    change(directory, "UPDATE tally SET cost_nano = 16 WHERE kind = 'user'")
    output = run(directory, code=1).stdout
    assert "the journal and the rows: 1 fault\n" in output
    assert f"  entry 2, row {id}: there is the digest " in output
    assert "  kind 'user', id " in output
    assert ": there is cost_nano 16; there should be cost_nano 15\n" in output
    assert "\x1b" not in output
    told = json.loads(run(directory, "--json", code=1).stdout)
    assert told["holds"] is False
    assert told["number"] == {"journal": 1, "daily": 0, "tally": 1, "held": 0}
    assert [fault["part"] for fault in told["faults"]] == ["journal", "tally"]


def test_more_faults_than_are_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tproxy.store.verify.FAULTS_MAX", 1)
    change(directory, "UPDATE exchange SET user_agent = 'x'")
    assert "the journal and the rows: 3 faults\n" in run(directory, code=1).stdout
    assert "  and 2 more\n" in run(directory, code=1).stdout


def test_where_rows_were_deleted_it_says_so(directory: Path) -> None:
    async def retain() -> None:
        async with open_ledger(directory / "t.db") as ledger:
            await ledger.write(lambda connection: drop_oldest(connection, T0 // DAY * DAY + DAY, None, 500))

    trio.run(retain)
    assert "Rows of days before 2025-11-25 were deleted" in run(directory).stdout


def test_what_cannot_be_read(directory: Path) -> None:
    (directory / "t.db").write_bytes(b"something else that is long enough to be looked at")
    for suffix in ("-wal", "-shm"):
        (directory / f"t.db{suffix}").unlink(missing_ok=True)
    assert "not a database" in run(directory, code=2).stderr
    (directory / "t.db").unlink()
    assert "no such file" in run(directory, code=2).stderr
    (directory / "config.toml").unlink()
    assert "config.toml" in run(directory, code=2).stderr
