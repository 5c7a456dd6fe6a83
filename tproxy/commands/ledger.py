"""`tproxy ledger`: the ledger's file itself. It is read where it is; a server may run meanwhile."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tproxy.commands.keys import Json, out
from tproxy.plaintext import plain

if TYPE_CHECKING:
    from tproxy.store.verify import Verdict

app = typer.Typer(help="The ledger's file: prove that it agrees with itself.", no_args_is_help=True)

_PARTS = {
    "journal": "the journal and the rows",
    "daily": "the sums by day and the rows",
    "tally": "the tallies and the sums by day",
    "held": "what is held and the reservations",
}


@app.callback()
def _ledger() -> None:
    pass


@app.command()
def verify(
    config: Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")] = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Prove that rows, journal, sums and budgets agree. Exit code 0: they do; 1: not all; 2: it cannot be read."""
    from tproxy.settings import SettingsFault, load_books
    from tproxy.store.migrate import LedgerUnusable
    from tproxy.store.verify import verify as look

    try:
        database, _ = load_books(config)
        verdict = look(database)
    except SettingsFault as fault:
        typer.echo(str(fault), err=True)
        sys.exit(2)
    except LedgerUnusable as fault:
        typer.echo(f"tproxy: {fault}", err=True)
        sys.exit(2)
    if as_json:
        out({"holds": verdict.holds, **asdict(verdict)})
    else:
        _show(database, verdict)
    sys.exit(0 if verdict.holds else 1)


def _show(path: Path, verdict: Verdict) -> None:
    typer.echo(f"{path}: {verdict.ended:,} rows have ended, {verdict.running:,} run; {verdict.entries:,} entries")
    if verdict.since_day is not None:
        typer.echo(f"Rows of days before {verdict.since_day} were deleted: their sums cannot be compared with rows.")
    typer.echo(
        f"{verdict.daily:,} sums of {verdict.days:,} days, {verdict.tallies:,} tallies, "
        f"{verdict.budgets:,} budgets, {verdict.reservations:,} reservations"
    )
    for part, name in _PARTS.items():
        number = verdict.number[part]
        faults = "1 fault" if number == 1 else f"{number:,} faults"
        typer.echo(f"{name}: {faults if number else 'agree'}")
        shown = [fault for fault in verdict.faults if fault.part == part]
        for fault in shown:
            typer.echo(plain(f"  {fault.place}: there is {fault.there}; there should be {fault.expected}"))
        if number > len(shown):
            typer.echo(f"  and {number - len(shown):,} more")
    if verdict.newest:
        typer.echo(f"The newest entry is {verdict.newest}, its digest {verdict.digest}.")
