"""The audit of the ledger: every row, every token, every nano-dollar."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench import talk
from bench.load import Tally
from bench.process import BenchFault, Cores
from bench.subjects import address_in, audit_ledger
from bench.suite import installed
from tproxy.store.base import EXACT, FINISHED
from tproxy.store.migrate import migrate

TALLY = Tally(exchanges=2, asked=30)
COST = (talk.INPUT_TOKENS * talk.NANO_PER_INPUT_TOKEN, 15 * talk.NANO_PER_OUTPUT_TOKEN)
ROW = {
    "accepted_us": 1,
    "method": "POST",
    "path": "/v1/messages",
    "upstream": "http://127.0.0.1:1",
    "caller": "anonymous",
    "tags": "[]",
    "ended": FINISHED,
    "certainty": EXACT,
    "input_tokens": talk.INPUT_TOKENS,
    "output_tokens": 15,
    "cost_nano": sum(COST),
}


def ledger(home: Path, *rows: dict[str, object]) -> None:
    with closing(sqlite3.connect(home / "ledger.db", isolation_level=None)) as connection:
        migrate(connection, now_us=0)
        for number, row in enumerate(rows):
            values = {"id": str(number)} | row
            places = ",".join("?" * len(values))
            connection.execute(f"INSERT INTO exchange ({','.join(values)}) VALUES ({places})", [*values.values()])


def test_a_right_ledger(tmp_path: Path) -> None:
    ledger(tmp_path, ROW, ROW)
    assert audit_ledger(tmp_path, TALLY) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROW], "1 rows, not 2"),
        ([ROW, ROW, ROW], "3 rows, not 2"),
        ([ROW, ROW | {"ended": "client_gone"}], "1 whole exchanges as client_gone"),
        ([ROW, ROW | {"certainty": "estimated"}], "1 exact rows, not 2"),
        ([ROW, ROW | {"input_tokens": 24}], "49 input tokens, not 50"),
        ([ROW, ROW | {"output_tokens": 14}], "29 output tokens, not 30"),
        ([ROW, ROW | {"cost_nano": sum(COST) + 1}], "200,001 nano-dollars, not 200,000"),
        ([ROW, ROW | {"cost_nano": None}], "100,000 nano-dollars, not 200,000"),
    ],
    ids=["lost", "twice", "unfinished", "estimated", "input", "output", "cost", "unpriced"],
)
def test_a_wrong_ledger(tmp_path: Path, rows: list[dict[str, object]], told: str) -> None:
    ledger(tmp_path, *rows)
    assert any(told in fault for fault in audit_ledger(tmp_path, TALLY))


def test_an_address_is_read_from_what_a_server_prints() -> None:
    assert address_in("tproxy listening on http://127.0.0.1:4000") == ("127.0.0.1", 4000)


def test_a_subject_that_is_not_there() -> None:
    assert [subject.name for subject in installed(["direct"])] == ["direct"]
    with pytest.raises(BenchFault, match="not installed: hare"):
        installed(["direct", "hare"])


@pytest.mark.parametrize(
    ("cores", "shared"),
    [([3], (3, 3, 3)), ([0, 1], (0, 1, 1)), ([2, 4, 6], (2, 4, 6)), ([0, 1, 2, 3], (0, 1, 2))],
)
def test_the_proxy_has_a_core_for_itself_where_there_are_two(cores: list[int], shared: tuple[int, int, int]) -> None:
    proxy, upstream, load = shared
    assert Cores.share(cores) == Cores(frozenset([proxy]), frozenset([upstream]), frozenset([load]))
