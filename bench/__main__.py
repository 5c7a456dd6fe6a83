"""`python -m bench`: the suite. `python -m bench hold`: very many streams at once. Exit code 1: nothing to report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console, RenderableType

from bench import holding, report
from bench.process import BenchFault
from bench.suite import Results, installed, run
from bench.workloads import WORKLOADS, Workload, hold

QUICK_SECONDS, QUICK_ROUNDS = 3.0, 1
ROUNDS = 5
FILE_WIDTH = 120

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]


@app.callback(invoke_without_command=True)
def suite(
    context: typer.Context,
    quick: Annotated[bool, typer.Option(help="About a minute: one short round of each.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"Rounds; {ROUNDS} if not --quick.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="Only this subject; may be repeated.")] = None,
    json: JsonOption = None,
) -> None:
    """Measure what tproxy adds to a direct connection, beside what else is installed."""
    if context.invoked_subcommand is not None:
        return
    workloads = [workload.lasting(QUICK_SECONDS) for workload in WORKLOADS] if quick else list(WORKLOADS)
    results = _run(workloads, subject or [], rounds or (QUICK_ROUNDS if quick else ROUNDS), json)
    show(report.render(results))


@app.command("hold")
def hold_command(
    streams: Annotated[int, typer.Option(min=1, help="Streams that are open at once, at one event a second.")] = 1_000,
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 60.0,
    json: JsonOption = None,
) -> None:
    """Hold many streams through tproxy, and compare with the bounds of memory that it promises."""
    workload = hold(streams, seconds)
    results = _run([workload], ["direct", "tproxy"], 1, json)
    show(holding.render(results, workload))
    if not holding.within_bounds(results, workload):
        sys.exit(1)


def show(tables: RenderableType) -> None:
    """Print, also into a file or a pipe, where the width is not known."""
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(tables)


def _run(workloads: list[Workload], names: list[str], rounds: int, file: Path | None) -> Results:
    """Run, and write the file; end the program when there is nothing to report."""
    errors = Console(stderr=True)
    try:
        results = trio.run(run, workloads, installed(names), rounds, errors.print)
        faults = results.faults()
    except BenchFault as error:
        faults = [str(error)]
    if faults:
        errors.print("No report: these figures cannot be trusted.", style="bold red")
        for fault in faults:
            errors.print(f"- {fault}", markup=False)
        sys.exit(1)
    if file is not None:
        file.write_text(json.dumps(results.as_json(), indent=1) + "\n")
    return results


if __name__ == "__main__":
    app()
