"""What runs in which order, and how long it will take.

Subjects take turns (A B A B), so that what drifts in the machine meets all alike. Peers run the core workloads alone,
and fewer rounds of them. Where all this would take longer than it may, every workload is measured for less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.subjects import Subject
from bench.workloads import SETTLE_SECONDS, Workload

ROUNDS, PEER_ROUNDS, OTHER_ROUNDS = 3, 1, 1  # core workloads; those of peers; the workloads that are not core
BUDGET_SECONDS, QUICK_BUDGET_SECONDS = 600.0, 60.0
LEAST_SECONDS, QUICK_LEAST_SECONDS = 2.0, 1.0  # of measuring: less says nothing
# Of a cell, beside its workload: starting and ending all processes, waiting for calm. As measured, over all subjects.
AROUND_SECONDS, PEER_AROUND_SECONDS = 1.25, 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """One cell to come: `turn` is its round, from 0."""

    workload: Workload
    subject: Subject
    turn: int

    @property
    def seconds(self) -> float:
        """How long it should take."""
        around = PEER_AROUND_SECONDS if self.subject.peer else AROUND_SECONDS
        return around + self.workload.opening_seconds + SETTLE_SECONDS + self.workload.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a run, in their order."""

    workloads: tuple[Workload, ...]
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """How long the run should take."""
        return sum(step.seconds for step in self.steps)


def runs(workload: Workload, subject: Subject) -> bool:
    """Whether a subject takes part in a workload."""
    if subject.only is not None and workload.name not in subject.only:
        return False
    return (workload.core or not subject.peer) and (subject.tls or not workload.tls)


def rounds_of(workload: Workload, subject: Subject, rounds: int | None) -> int:
    """How many rounds a subject runs of a workload.

    Args:
        rounds: how many are asked for; None: as many as are usual. A peer never runs more than is usual.
    """
    if not runs(workload, subject):
        return 0
    if subject.peer:
        return min(PEER_ROUNDS, rounds or PEER_ROUNDS)
    return rounds or (ROUNDS if workload.core else OTHER_ROUNDS)


def plan(workloads: Sequence[Workload], subjects: Sequence[Subject], rounds: int | None = None) -> Plan:
    """Every workload through every subject that takes part in it, round by round."""
    steps = []
    for workload in workloads:
        counts = {subject.name: rounds_of(workload, subject, rounds) for subject in subjects}
        for turn in range(max(counts.values(), default=0)):
            steps += [Step(workload, subject, turn) for subject in subjects if turn < counts[subject.name]]
    return Plan(tuple(workloads), tuple(steps))


def fitted(
    workloads: Sequence[Workload], subjects: Sequence[Subject], rounds: int | None, *, budget: float, least: float
) -> Plan:
    """The same, with every workload measured for the same part of its time, so that the whole fits in a budget.

    Args:
        budget: seconds that the run may take; it takes longer where no workload can be measured for less.
        least: seconds that each workload is measured for at least.
    """
    full = plan(workloads, subjects, rounds)
    measured = sum(step.workload.seconds for step in full.steps)
    if full.seconds <= budget or not measured:
        return full
    part = max(0.0, (budget - (full.seconds - measured)) / measured)
    shorter = [workload.lasting(min(workload.seconds, max(least, workload.seconds * part))) for workload in workloads]
    return plan(shorter, subjects, rounds)
