"""What is wanted of tproxy with everything on, as figures and ratios within one run.

A goal that is missed does not fail a run: it is told; so is one that was not measured, for want of a subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.report import figures
from bench.report.figures import Value, timed
from bench.suite import Results
from bench.workloads import Workload

WATCHED, UNWATCHED = "tproxy, watched", "tproxy, unwatched"
ON, ENVOY, NGINX, LITELLM = "tproxy, everything on", "envoy", "nginx", "litellm"

STREAMS = "100 streams x 50/s"
MANY = "5,000 streams x 1/s"
FIRST_BYTE = "first byte, 20 connections"
PLAIN = "plain answers, 16 connections"
VIEWED = "500 streams x 10/s"

KEPT, MISSED, NOT_MEASURED = "kept", "missed", "not measured"


class NotMeasured(Exception):
    """What a goal needs did not run. Its text says what."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of a goal: in words, and KEPT, MISSED or NOT_MEASURED."""

    measured: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the goals.

    Attributes:
        wanted: the goal in words.
        value: what it came to, as a number and in words; raises NotMeasured.
        bound: the most that the number may be; or, if `at_least`, the least.
    """

    what: str
    wanted: str
    value: Callable[[Results], tuple[float, str]]
    bound: float
    at_least: bool = False

    def reached(self, results: Results) -> Reached:
        """Look at a run."""
        try:
            number, words = self.value(results)
        except NotMeasured as error:
            return Reached(str(error), NOT_MEASURED)
        kept = number >= self.bound if self.at_least else number <= self.bound
        return Reached(words, KEPT if kept else MISSED)


def _workload(results: Results, name: str) -> Workload:
    for workload in results.workloads:
        if workload.name == name:
            return workload
    raise NotMeasured(f"{name} was not run")


def _middle(results: Results, name: str, subject: str, value: Value) -> float:
    workload = _workload(results, name)
    found = figures.values(results.of(workload, subject), value, workload)
    if not found:
        raise NotMeasured(f"{subject} did not run {name}, or too little of it")
    return median(found)


def _figure(name: str, value: Value, unit: str, digits: int = 0) -> Callable[[Results], tuple[float, str]]:
    """Of tproxy alone."""

    def measured(results: Results) -> tuple[float, str]:
        number = _middle(results, name, ON, value)
        return number, f"{number:,.{digits}f} {unit}"

    return measured


def _ratio(name: str, value: Value, other: str, unit: str, subject: str = ON) -> Callable[[Results], tuple[float, str]]:
    """Of tproxy's figure and another's."""

    def measured(results: Results) -> tuple[float, str]:
        ours, theirs = _middle(results, name, subject, value), _middle(results, name, other, value)
        if not theirs:
            raise NotMeasured(f"{other} used no time that the clock could tell")
        return ours / theirs, f"{ours / theirs:,.2f} x ({ours:,.0f} and {theirs:,.0f} {unit})"

    return measured


def _added_ms(name: str, value: Value, base: str, subject: str = ON) -> Callable[[Results], tuple[float, str]]:
    """What tproxy adds to another, by round, in ms."""

    def measured(results: Results) -> tuple[float, str]:
        found = figures.added(results, _workload(results, name), subject, value, base)
        if not found:
            raise NotMeasured(f"{subject} and {base} did not both run {name}, or too little of it")
        return median(found) / 1000, f"{median(found) / 1000:,.2f} ms"

    return measured


def _idle(results: Results) -> tuple[float, str]:
    found = [cell.idle_bytes / 1e6 for cell in results.cells if cell.subject == ON]
    if not found:
        raise NotMeasured(f"{ON} did not run")
    return median(found), f"{median(found):,.1f} MB"


def _dropped(results: Results) -> tuple[float, str]:
    most = max((cell.tally.dropped for cell in results.of(_workload(results, MANY), ON)), default=None)
    if most is None:
        raise NotMeasured(f"{ON} did not run {MANY}")
    return most, f"{most:,}"


def _growth(results: Results) -> tuple[float, str]:
    many, few = (_middle(results, name, ON, figures.cpu_per_event) for name in (MANY, STREAMS))
    if not few:
        raise NotMeasured("no time that the clock could tell was used")
    return many / few, f"{many / few:,.2f} x ({many:,.1f} and {few:,.1f} µs)"


GOALS = (
    Goal(
        f"CPU per event, {STREAMS}", "≤ 1.5 x envoy",
        _ratio(STREAMS, figures.cpu_per_event, ENVOY, "µs"), 1.5,
    ),
    Goal(f"event p50, {STREAMS}", "≤ envoy", _ratio(STREAMS, timed("event", "p50"), ENVOY, "µs"), 1),
    Goal(f"event p99, {STREAMS}", "≤ 2 x nginx", _ratio(STREAMS, timed("event", "p99"), NGINX, "µs"), 2),
    Goal(
        f"first byte p50, added to nginx, {FIRST_BYTE}", "≤ 1 ms",
        _added_ms(FIRST_BYTE, timed("first_byte", "p50"), NGINX), 1,
    ),
    Goal(f"CPU per answer, {PLAIN}", "≤ 600 µs", _figure(PLAIN, figures.cpu_per_answer, "µs"), 600),
    Goal(
        f"answers/s, {PLAIN}", "≥ 12 x litellm",
        _ratio(PLAIN, figures.answers_per_second, LITELLM, "per second"), 12, at_least=True,
    ),
    Goal("idle process, resident", "≤ 70 MB", _idle, 70),
    Goal(f"each open stream, resident, {MANY}", "≤ 32 KiB", _figure(MANY, figures.kib_per_stream, "KiB", 1), 32),
    Goal(f"event p99, added to direct, {MANY}", "≤ 25 ms", _added_ms(MANY, timed("event", "p99"), "direct"), 25),
    Goal(f"streams dropped, {MANY}", "none", _dropped, 0),
    Goal("CPU per event, 5,000 streams against 100", "no higher", _growth, 1),
    Goal(
        f"CPU per event of all that is watched, {STREAMS}", "≤ 1.15 x unwatched",
        _ratio(STREAMS, figures.cpu_per_event, UNWATCHED, "µs", WATCHED), 1.15,
    ),
    Goal(
        f"CPU per answer of all that is watched, {PLAIN}", "≤ 1.15 x unwatched",
        _ratio(PLAIN, figures.cpu_per_answer, UNWATCHED, "µs", WATCHED), 1.15,
    ),
    Goal(
        f"event p99, added by a viewer to unwatched, {VIEWED}", "≤ 1 ms",
        _added_ms(VIEWED, timed("event", "p99"), UNWATCHED, WATCHED), 1,
    ),
)  # fmt: skip
