from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import trio

from tests.store.laws import kept_sums, known, summed
from tests.store.victim import CLAIM, COST
from tproxy.store.base import FINISHED, LOST
from tproxy.store.reading import recent
from tproxy.store.sqlite import open_ledger
from tproxy.store.verify import verify

ROOT = Path(__file__).parents[2]
ROUNDS = 15


def test_a_kill_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    dice = random.Random(5)
    opened: list[str] = []
    closed: set[str] = set()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.victim", str(path), str(ROUNDS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        victim, left, kills = 0, 0, 0
        for line in process.stdout:
            word, value = line.split()
            if word == "pid":
                victim, left = int(value), dice.randint(1, 150)
            else:
                opened.append(value) if word == "open" else closed.add(value)
                left -= 1
                if left == 0:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
    assert kills == ROUNDS
    assert process.returncode == 0
    assert len(opened) > ROUNDS

    async def restart() -> None:
        async with open_ledger(path):
            await trio.lowlevel.checkpoint()

    trio.run(restart)
    rows = {row["id"]: row["ended"] for row in recent(path, 1_000_000)}
    assert len(opened) == len(set(opened))
    assert set(opened) <= set(rows)
    assert {rows[exchange_id] for exchange_id in closed} == {FINISHED}
    assert set(rows.values()) == {FINISHED, LOST}
    assert verify(path).faults == []
    with closing(sqlite3.connect(path)) as connection:
        ended = [*rows.values()]
        booked = ended.count(FINISHED) * COST + ended.count(LOST) * CLAIM.amount_nano
        assert connection.execute("SELECT spent_nano, held_nano FROM budget").fetchall() == [(booked, 0)]
        assert connection.execute("SELECT * FROM reservation").fetchall() == []
        assert kept_sums(connection) == summed(recent(path, 1_000_000), known(connection))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
