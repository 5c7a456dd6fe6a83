"""What is told of a run, and what is not."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console, RenderableType

from bench import __main__ as command
from bench import holding, report
from bench.cell import Cell
from bench.load import Tally
from bench.process import BenchFault
from bench.suite import Results
from bench.workloads import CLOSED, HELD, Workload, hold

STREAMS = Workload(name="streams", shape=HELD, connections=100)
PLAIN = Workload(name="plain", shape=CLOSED, connections=2, stream=False)
FACTS: dict[str, object] = {"cpu": "slow", "pinned": {"proxy": [0], "upstream": [1], "load": [1]}}


def cell(subject: str, turn: int, p50: float, *, workload: Workload = STREAMS, **more: Any) -> Cell:
    times = dict.fromkeys(("p50", "p90", "p99", "p99.9", "max"), p50)
    tally = Tally(events=1_000, reads=500, answers=600, seconds=6.0, times={"event": times, "answer": times})
    tally.dropped = 7 if more.pop("dropping", False) else 0
    made = Cell(workload=workload.name, subject=subject, turn=turn, tally=tally)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def through(turn: int, p50: float, **more: Any) -> Cell:
    more = {"proxy_cpu_seconds": 0.05, "idle_bytes": 50_000_000, "loaded_bytes": 50_000_000 + 100 * 40_960} | more
    return cell("tproxy", turn, p50, **more)


def text(tables: RenderableType) -> str:
    file = StringIO()
    Console(width=200, file=file).print(tables)
    return file.getvalue()


def rows(results: Results) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text(report.render(results)).splitlines() if line.strip()}


def test_figures_are_medians_and_added_is_by_round() -> None:
    cells = (
        cell("direct", 0, 100), through(0, 150), cell("direct", 1, 200), through(1, 260), cell("direct", 2, 120),
        through(2, 300),
    )  # fmt: skip
    found = rows(Results(FACTS, (STREAMS,), cells))
    assert found["direct"] == ["120", "120", "120", "2.00", "0%"]
    assert found["tproxy"][:5] == ["260", "60", "260", "60", "260"]
    assert found["tproxy"][5:] == ["2.00", "50.0", "50.0", "40.0", "0%"]
    assert found["least"][:5] == ["150", "50", "150", "50", "150"]
    assert found["most"][:5] == ["300", "180", "300", "180", "300"]


def test_what_the_load_held_back_is_marked() -> None:
    cells = (through(0, 1, workload=PLAIN), cell("direct", 0, 1, workload=PLAIN, load_bound=True))
    found = rows(Results(FACTS, (PLAIN,), cells))
    assert found["tproxy"][:1] == ["100"]
    assert found["direct"][:2] == ["≥", "100"]


@pytest.mark.parametrize(
    ("facts", "more", "told"),
    [
        ({"pinned": {"proxy": [0], "upstream": [0], "load": [0]}}, {}, "shared its only core"),
        ({}, {"foreign_cores": 0.5}, "Other work took up to 0.50 cores"),
        ({}, {"load_bound": True}, "at its own limit"),
    ],
)
def test_warnings(facts: dict[str, object], more: dict[str, Any], told: str) -> None:
    assert not report.warnings(Results(FACTS, (STREAMS,), (through(0, 1),)))
    (warning,) = report.warnings(Results(FACTS | facts, (STREAMS,), (through(0, 1, **more),)))
    assert told in warning


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, True),
        ({"idle_bytes": 80_100_000, "loaded_bytes": 80_200_000}, False),
        ({"loaded_bytes": 50_000_000 + 100 * 97 * 1024}, False),
        ({"dropping": True}, False),
    ],
    ids=["within", "idle", "each stream", "dropped"],
)
def test_promises(more: dict[str, Any], kept: bool) -> None:
    workload = hold(100, 5)
    results = Results(
        FACTS, (workload,), (cell("direct", 0, 9, workload=workload), through(0, 9, workload=workload, **more))
    )
    assert holding.within_bounds(results, workload) is kept
    assert ("missed" in text(holding.render(results, workload))) is not kept


def pretend(monkeypatch: pytest.MonkeyPatch, *cells: Cell, fault: str | None = None) -> None:
    async def run(*args: object) -> Results:
        await trio.lowlevel.checkpoint()
        if fault is not None:
            raise BenchFault(fault)
        return Results(FACTS, (STREAMS,), cells)

    monkeypatch.setattr(command, "run", run)


def test_a_run_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, cell("direct", 0, 100))
    command._run([STREAMS], [], 1, tmp_path / "run.json")
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["facts"]["cpu"] == "slow"
    assert kept["workloads"][0]["connections"] == 100
    assert kept["cells"][0]["tally"]["times"]["event"]["p50"] == 100


@pytest.mark.parametrize(
    ("more", "fault", "told"),
    [
        ({"faults": ["the ledger has 1 rows, not 2"]}, None, "streams, tproxy, round 1: the ledger has 1 rows, not 2"),
        ({}, "nginx ended early", "nginx ended early"),
    ],
)
def test_nothing_is_told_of_a_run_with_a_fault(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: dict[str, Any],
    fault: str | None,
    told: str,
) -> None:
    pretend(monkeypatch, through(0, 100, **more), fault=fault)
    with pytest.raises(SystemExit) as ended:
        command._run([STREAMS], [], 1, tmp_path / "run.json")
    assert ended.value.code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()
