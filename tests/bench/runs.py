"""A small run, as the bench would have measured it, for the tests of what is told of it."""

from __future__ import annotations

from typing import Any

from bench.cell import Cell
from bench.goals import FIRST_BYTE, MANY, ON, PLAIN, STREAMS, UNWATCHED, VIEWED, WATCHED
from bench.load import QUANTILES, Tally
from bench.suite import Failure, Results
from bench.workloads import SHARES, WORKLOADS, Workload

NAMED = {workload.name: workload for workload in WORKLOADS}
FACTS: dict[str, object] = {
    "cpu": "slow",
    "pinned": {"proxy": [0], "upstream": [1], "load": [1]},
    "not installed": ["tortoise"],
    "load and upstream": {STREAMS: "C"},
}


def cell(workload: Workload, subject: str, turn: int = 0, us: float = 100, **more: Any) -> Cell:
    """One cell: every time is `us` at the median, and the double at p99; 10,000 events, 5,000 reads, 6,000 answers."""
    times = dict.fromkeys(QUANTILES, us * 2) | {"p50": us}
    shares = [us * (0.5 + share) for share in SHARES]
    tally = Tally(
        events=10_000,
        reads=5_000,
        answers=6_000,
        seconds=6.0,
        bytes=12_000_000,
        cpu_seconds=0.6,
        times={"event": times, "answer": times, "first_byte": times, "first_event": times},
        cdf={"event": shares, "first_byte": shares},
        dropped=more.pop("dropped", 0),
    )
    made = Cell(workload=workload.name, subject=subject, turn=turn, tally=tally)
    if subject != "direct":
        more = {"proxy_cpu_seconds": 0.5, "idle_bytes": 50_000_000, "loaded_bytes": 50_000_000 + 100 * 40_960} | more
    for name, value in more.items():
        setattr(made, name, value)
    return made


def whole(*subjects: str) -> Results:
    """A run of the workloads of the goals through these subjects and direct; of two rounds."""
    workloads = tuple(NAMED[name] for name in (STREAMS, MANY, FIRST_BYTE, PLAIN, VIEWED))
    cells = [
        cell(workload, subject, turn, 100 + 50 * place + 10 * turn)
        for workload in workloads
        for turn in (0, 1)
        for place, subject in enumerate(("direct", *subjects))
    ]
    failures = (Failure(STREAMS, "hare", "1 x Mismatch: <b>\n at event | 3 of `4`"),)
    return Results(FACTS, workloads, tuple(cells), failures)


def usual() -> Results:
    """With all that the goals compare."""
    return whole("nginx", "envoy", ON, "litellm", UNWATCHED, WATCHED)
