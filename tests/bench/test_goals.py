"""The goals: computed right, and told where they could not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from bench.cell import Cell
from bench.goals import (
    FIRST_BYTE,
    GOALS,
    KEPT,
    MANY,
    MISSED,
    NOT_MEASURED,
    ON,
    PLAIN,
    STREAMS,
    UNWATCHED,
    VIEWED,
    WATCHED,
)
from bench.process import ROOT
from bench.suite import Results
from tests.bench.runs import NAMED, usual, whole

DOCS = ROOT / "docs" / "bench.md"
Change = Callable[[Cell], None]


def verdicts(results: Results) -> list[str]:
    return [goal.reached(results).verdict for goal in GOALS]


def changed(results: Results, workload: str, subject: str, change: Change) -> Results:
    for cell in results.cells:
        if (cell.workload, cell.subject) == (workload, subject):
            change(cell)
    return results


def test_the_goals_are_about_workloads_that_there_are() -> None:
    assert {STREAMS, MANY, FIRST_BYTE, PLAIN, VIEWED} <= NAMED.keys()


def test_the_docs_list_them() -> None:
    listed = DOCS.read_text().partition("| goal | wanted |\n|---|---|\n")[2].partition("\n\n")[0]
    assert listed.splitlines() == [f"| {goal.what} | {goal.wanted} |" for goal in GOALS]


def cpu(us: float) -> Change:
    def change(cell: Cell) -> None:
        cell.proxy_cpu_seconds = us * cell.tally.events / 1e6

    return change


def cpu_per_answer(us: float) -> Change:
    def change(cell: Cell) -> None:
        cell.proxy_cpu_seconds = us * cell.tally.answers / 1e6

    return change


def time(name: str, quantile: str, us: float) -> Change:
    def change(cell: Cell) -> None:
        cell.tally.times[name] = cell.tally.times[name] | {quantile: us}

    return change


def answers(count: int) -> Change:
    def change(cell: Cell) -> None:
        cell.tally.answers = count

    return change


def memory(idle_mb: float, kib: float, streams: int) -> Change:
    def change(cell: Cell) -> None:
        cell.idle_bytes = int(idle_mb * 1e6)
        cell.loaded_bytes = cell.idle_bytes + int(kib * 1024 * streams)

    return change


def dropped(count: int) -> Change:
    def change(cell: Cell) -> None:
        cell.tally.dropped = count

    return change


# The place of the goal, whose cells are changed, how it is just kept and just missed, and what is told of the latter.
CASES: list[tuple[int, str, str, Change, Change, str]] = [
    (0, STREAMS, ON, cpu(75), cpu(76), "1.52 x (76 and 50 µs)"),
    (1, STREAMS, ON, time("event", "p50", 205), time("event", "p50", 206), "1.00 x (206 and 205 µs)"),
    (2, STREAMS, ON, time("event", "p99", 620), time("event", "p99", 626), "2.02 x (626 and 310 µs)"),
    (3, FIRST_BYTE, ON, time("first_byte", "p50", 1_155), time("first_byte", "p50", 1_165), "1.01 ms"),
    (4, PLAIN, ON, cpu_per_answer(600), cpu_per_answer(601), "601 µs"),
    (5, PLAIN, ON, answers(72_000), answers(71_400), "11.90 x (11,900 and 1,000 per second)"),
    (7, MANY, ON, memory(60, 32, 5_000), memory(60, 32.5, 5_000), "32.5 KiB"),
    (8, MANY, ON, time("event", "p99", 25_210), time("event", "p99", 25_230), "25.02 ms"),
    (9, MANY, ON, dropped(0), dropped(1), "1"),
    (10, MANY, ON, cpu(50), cpu(51), "1.02 x (51.0 and 50.0 µs)"),
    (11, STREAMS, WATCHED, cpu(57), cpu(58), "1.16 x (58 and 50 µs)"),
    (12, PLAIN, WATCHED, cpu_per_answer(95), cpu_per_answer(96), "1.15 x (96 and 83 µs)"),
    (13, VIEWED, WATCHED, time("event", "p99", 1_705), time("event", "p99", 1_720), "1.01 ms"),
]


@pytest.mark.parametrize("case", CASES, ids=[GOALS[case[0]].what for case in CASES])
def test_a_goal_is_kept_to_its_bound_and_missed_beyond_it(case: tuple[int, str, str, Change, Change, str]) -> None:
    place, workload, subject, keep, miss, told = case
    assert GOALS[place].reached(changed(usual(), workload, subject, keep)).verdict == KEPT
    reached = GOALS[place].reached(changed(usual(), workload, subject, miss))
    assert (reached.verdict, reached.measured) == (MISSED, told)


def test_idle_is_the_median_of_all_its_processes() -> None:
    results = usual()
    sizes = []
    for number, cell in enumerate(cell for cell in results.cells if cell.subject == ON):
        cell.idle_bytes = 65_000_000 + number * 1_000_000
        sizes.append(cell.idle_bytes / 1e6)
    reached = GOALS[6].reached(results)
    assert (reached.verdict, reached.measured) == (KEPT, f"{median(sizes):.1f} MB")


@pytest.mark.parametrize(
    ("missing", "places"),
    [
        ("envoy", {0, 1}),
        ("nginx", {2, 3}),
        ("litellm", {5}),
        ("direct", {8}),
        (ON, set(range(11))),
        (UNWATCHED, {11, 12, 13}),
        (WATCHED, {11, 12, 13}),
    ],
    ids=["envoy", "nginx", "litellm", "direct", "tproxy", "unwatched", "watched"],
)
def test_what_needs_a_subject_that_did_not_run_is_not_measured(missing: str, places: set[int]) -> None:
    results = usual()
    results = replace(results, cells=tuple(cell for cell in results.cells if cell.subject != missing))
    assert {place for place, verdict in enumerate(verdicts(results)) if verdict == NOT_MEASURED} == places


@pytest.mark.parametrize(
    ("missing", "places"),
    [(STREAMS, {0, 1, 2, 10, 11}), (MANY, {7, 8, 9, 10}), (FIRST_BYTE, {3}), (PLAIN, {4, 5, 12}), (VIEWED, {13})],
    ids=["streams", "many", "first byte", "plain", "viewed"],
)
def test_what_needs_a_workload_that_was_not_run_is_not_measured(missing: str, places: set[int]) -> None:
    results = usual()
    kept = tuple(workload for workload in results.workloads if workload.name != missing)
    results = Results(results.facts, kept, tuple(cell for cell in results.cells if cell.workload != missing))
    assert {place for place, verdict in enumerate(verdicts(results)) if verdict == NOT_MEASURED} == places
    reasons = [GOALS[place].reached(results).measured for place in places]
    assert all(missing in reason for reason in reasons)


def test_a_clock_that_was_too_coarse_is_no_figure() -> None:
    results = changed(usual(), STREAMS, "envoy", cpu(0))
    assert GOALS[0].reached(results).verdict == NOT_MEASURED
    assert NOT_MEASURED in verdicts(whole())
