"""`python -m bench`: the suite. `hold`: very many streams at once. `report`: tells of a saved run.

Exit code 1: there is nothing to report.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer
from rich.console import Console, RenderableType

from bench import holding, report
from bench.plan import (
    BUDGET_SECONDS,
    LEAST_SECONDS,
    QUICK_BUDGET_SECONDS,
    QUICK_LEAST_SECONDS,
    ROUNDS,
    Plan,
    fitted,
    plan,
)
from bench.process import BenchFault
from bench.progress import Progress
from bench.report import terminal
from bench.subjects import Subject
from bench.suite import Results, installed, read, run
from bench.workloads import WORKLOADS, Workload, hold

FILE_WIDTH = 160

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Write report.md, report.html and the plots into this folder.")
]


@app.callback(invoke_without_command=True)
def suite(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: one short round, without peers.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"Rounds; {ROUNDS} of the core workloads.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="Only this subject; may be repeated.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="Only this workload; may be repeated.")] = None,
    json: JsonOption = None,
    folder: ReportOption = None,
) -> None:
    """Measure what tproxy adds to a direct connection, beside what else is installed."""
    if context.invoked_subcommand is not None:
        return
    try:
        subjects = [one for one in installed(subject or []) if not (quick and one.peer and not subject)]
        workloads = [one for one in named(workload or []) if one.short or not quick or workload]
    except BenchFault as error:
        _refuse(str(error))
    steps = planned(workloads, subjects, rounds, quick=quick)
    if not steps.steps:
        _refuse("none of these subjects takes part in any of these workloads")
    see_that_they_can_be_written(json, folder)
    results = _run(steps, subjects)
    show(terminal.render(results))
    _write(results, json, folder)


@app.command("hold")
def hold_command(
    streams: Annotated[int, typer.Option(min=1, help="Streams that are open at once, at one event a second.")] = 1_000,
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 60.0,
    json: JsonOption = None,
) -> None:
    """Hold many streams through tproxy, and compare with the bounds of memory that it promises."""
    workload = hold(streams, seconds)
    try:
        subjects = installed(holding.SUBJECTS)
    except BenchFault as error:
        _refuse(str(error))
    see_that_they_can_be_written(json, None)
    results = _run(plan([workload], subjects, 1), subjects)
    show(holding.render(results, workload))
    _write(results, json, None)
    if not holding.within_bounds(results, workload):
        sys.exit(1)


@app.command("report")
def report_command(
    file: Annotated[Path, typer.Argument(help="What --json has written.")],
    folder: ReportOption = None,
    docs: Annotated[bool, typer.Option("--docs", help="Put it into docs/bench.md, with the plots beside it.")] = False,
) -> None:
    """Tell of a saved run: on the terminal, and in files."""
    try:
        results = read(file)
        show(terminal.render(results))
        _write(results, None, folder)
        if docs:
            report.write_docs(results)
    except (BenchFault, OSError) as error:
        _refuse(str(error))


def planned(workloads: Sequence[Workload], subjects: Sequence[Subject], rounds: int | None, *, quick: bool) -> Plan:
    """What the suite runs, within the time that it may take."""
    if quick:
        return fitted(workloads, subjects, rounds or 1, budget=QUICK_BUDGET_SECONDS, least=QUICK_LEAST_SECONDS)
    return fitted(workloads, subjects, rounds, budget=BUDGET_SECONDS, least=LEAST_SECONDS)


def named(names: Sequence[str]) -> list[Workload]:
    """The workloads of these names; all, if there are none.

    Raises:
        BenchFault: one is unknown.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            raise BenchFault(f"no workload is named {name!r}; there are: {'; '.join(known)}")
    return [workload for workload in WORKLOADS if not names or workload.name in names]


def show(tables: RenderableType) -> None:
    """Print, also into a file or a pipe, where the width is not known. Lines that a terminal wraps lose no digit."""
    console = Console()
    console.width = max(console.width, FILE_WIDTH)
    console.print(tables)


def see_that_they_can_be_written(json: Path | None, folder: Path | None) -> None:
    """Before a run, so that none is lost: end the program where its files cannot be written."""
    files = [json] if json is not None else []
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            files += [folder / "report.md", folder / "report.html"]
        for file in files:
            new = not file.exists()
            file.open("ab").close()
            if new:
                file.unlink()
    except OSError as error:
        _refuse(f"cannot be written: {error}")


def _write(results: Results, json: Path | None, folder: Path | None) -> None:
    """Write the files of a run; end the program where that fails."""
    try:
        if json is not None:
            json.write_bytes(results.as_json())
        if folder is not None:
            report.write(results, folder)
    except OSError as error:
        _refuse(str(error), heading="Not all of the run could be written.")


def _run(steps: Plan, subjects: Sequence[Subject]) -> Results:
    """Run; end the program when there is nothing to report."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in its background
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))  # so that all is ended
    progress = Progress(steps, Console(stderr=True))
    try:
        results = trio.run(run, steps, subjects, progress)
        faults = results.faults()
    except BenchFault as error:
        faults = [str(error)]
    finally:
        progress.end()
    if faults:
        _refuse(*faults, heading="No report: these figures cannot be trusted.")
    return results


def _refuse(*faults: str, heading: str = "There is nothing to report.") -> NoReturn:
    errors = Console(stderr=True)
    errors.print(heading, style="bold red")
    for fault in faults:
        errors.print(f"- {fault}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    app()
