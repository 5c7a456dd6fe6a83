"""One cell: everything is started for it, measured, and ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.cell import judge, measure
from bench.process import Cores
from bench.subjects import SUBJECTS
from bench.workloads import CLOSED, HELD, Workload
from tests.bench.runs import cell as made

DIRECT = next(subject for subject in SUBJECTS if subject.name == "direct")
CORES = Cores.share(sorted(os.sched_getaffinity(0)))


def children() -> set[str]:
    return {child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()}


async def test_streams_are_measured() -> None:
    before = children()
    workload = Workload(name="few", shape=HELD, connections=5, interval_us=10_000, seconds=0.3)
    cell = await measure(workload, DIRECT, CORES, turn=2)
    assert cell.faults == []
    assert (cell.workload, cell.subject, cell.turn) == ("few", "direct", 2)
    assert 100 <= cell.tally.events <= 200
    assert cell.tally.exchanges == 5
    assert cell.tally.times["event"].keys() >= {"p50", "p99", "p99.9"}
    assert cell.tally.cdf["event"] == sorted(cell.tally.cdf["event"])
    assert 0 < cell.upstream_cpu_seconds < cell.tally.seconds
    assert 0 < cell.side_busy <= cell.side_core_busy < 2
    assert cell.idle_bytes == cell.loaded_bytes == cell.proxy_cpu_seconds == 0
    assert children() == before


async def test_plain_answers_are_measured() -> None:
    workload = Workload(name="plain", shape=CLOSED, connections=2, stream=False, events=10, seconds=0.2)
    cell = await measure(workload, DIRECT, CORES, turn=0)
    assert cell.faults == cell.disturbed == []
    assert cell.tally.answers > 10


OTHERS = "other work took 50% of the core that load and upstream need: end it and run again"
THEMSELVES = "load and upstream were saturated: they used 90% of a core"
LATE = "the upstream sent events late: p99 11.0 ms after they were due"


@pytest.mark.parametrize(
    ("shape", "side", "core", "lag_us", "bound", "disturbed"),
    [
        (HELD, 0.5, 0.8, 9_000, False, []),
        (HELD, 0.4, 0.9, 0, False, [OTHERS]),
        (HELD, 0.9, 1.0, 0, False, [THEMSELVES]),
        (HELD, 0.1, 0.1, 11_000, False, [LATE]),
        (CLOSED, 0.5, 0.8, 11_000, False, []),
        (CLOSED, 0.4, 0.9, 0, False, [OTHERS]),
        (CLOSED, 0.9, 1.0, 0, True, []),
    ],
)
def test_what_load_and_upstream_need(
    shape: str, side: float, core: float, lag_us: float, bound: bool, disturbed: list[str]
) -> None:
    workload = Workload(name="any", shape=shape, connections=1)
    cell = made(workload, "nginx", side_busy=side, side_core_busy=core)
    cell.tally.times["lag"] = {"p99": lag_us}
    judge(cell, workload)
    assert (cell.load_bound, cell.disturbed) == (bound, disturbed)
