"""What runs now and how much is left, on standard error: a bar on a terminal, a line for each cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from bench.plan import Plan, Step


def lasting(seconds: float) -> str:
    """Such as 20 s, or 9:05 minutes."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02d} minutes"


def counted(number: int, what: str) -> str:
    """Such as 1 round, or 2 rounds."""
    return f"{number:,} {what}{'s' * (number != 1)}"


class Progress:
    """Tells of the steps of a plan as they begin.

    The bar is drawn when a step begins and not in between: a bar that moves by itself would run on the load's core.
    """

    def __init__(self, plan: Plan, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._console = console
        self._clock = clock
        self._start = clock()
        self._begun = 0
        self._planned = 0.0  # seconds, of the steps that have ended
        self._bar = Bar(
            BarColumn(), TextColumn("{task.description}"), console=console, auto_refresh=False, transient=True
        )
        self._task = self._bar.add_task("", total=plan.seconds)
        console.print(
            f"{counted(len(plan.steps), 'measurement')} of {counted(len(plan.workloads), 'workload')}: "
            f"about {lasting(plan.seconds)}",
            highlight=False,
        )
        if console.is_terminal:
            self._bar.start()

    def left(self) -> float:
        """Seconds, as planned, stretched by what the steps so far took more or less than planned."""
        rest = self._plan.seconds - self._planned
        if not self._planned:
            return rest
        return rest * (self._clock() - self._start) / self._planned

    def at(self, step: Step) -> None:
        """A step begins."""
        text = (
            f"{self._begun + 1} of {len(self._plan.steps)}, {lasting(self.left())} left: "
            f"{step.workload.name}, {step.subject.name}, round {step.turn + 1}"
        )
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._planned, description=text)
            self._bar.refresh()
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._begun += 1
        self._planned += step.seconds

    def end(self) -> None:
        """Nothing runs any more."""
        self._bar.stop()
