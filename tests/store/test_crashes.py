"""A small form of `crashes`: the large one is run by hand."""

from __future__ import annotations

from pathlib import Path

from tests.store.crashes import crash
from tproxy.store.base import FINISHED, LOST
from tproxy.store.reading import reading


def test_a_ledger_that_was_killed_again_and_again_agrees_with_itself(tmp_path: Path) -> None:
    verdict = crash(tmp_path / "t.db", 1500, 3, seed=7)
    assert verdict.faults == []
    assert verdict.holds
    assert verdict.ended > 700
    assert (verdict.running, verdict.reservations) == (0, 0)
    with reading(tmp_path / "t.db") as connection:
        ends = {row[0] for row in connection.execute("SELECT DISTINCT ended FROM exchange")}
        assert {FINISHED, LOST} <= ends
        assert connection.execute("SELECT count(*) FROM renamed").fetchone()[0] > 0
