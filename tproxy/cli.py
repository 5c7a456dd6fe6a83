"""The commands. Each reads its arguments, does one thing of the floors below, and says what came of it.

Exit codes: 0 done; 1 it failed while running; 2 the configuration or the arguments are at fault.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tproxy import __version__
from tproxy.protocol.pricing import PriceFault
from tproxy.sandbox.server import serve_sandbox
from tproxy.server import prices, serve
from tproxy.settings import Settings, SettingsFault, load
from tproxy.store import reading
from tproxy.store.keyfile import load_keys
from tproxy.store.migrate import LedgerUnusable

app = typer.Typer(
    name="tproxy",
    help="A streaming proxy for the Anthropic API: byte-exact, undelayed, with books kept to the nano-dollar.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
DEFAULT_CONFIG = Path("config.toml")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"tproxy {__version__}")
        raise typer.Exit


@app.command("serve")
def serve_command(
    config: ConfigOption = DEFAULT_CONFIG,
    sandbox: Annotated[bool, typer.Option(help="Use the built-in sandbox as the upstream: no key needed.")] = False,
) -> None:
    """Run the server until SIGTERM or SIGINT, which let running streams finish."""

    announce = _announce_demo if sandbox else _announce
    try:
        drained = trio.run(partial(serve, config, sandbox=sandbox, announce=announce))
    except* (SettingsFault, PriceFault, LedgerUnusable) as group:
        _faults(group)
    except* OSError as group:
        for error in _leaves(group):
            typer.echo(f"tproxy: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if drained else 1)


def _announce(address: str, settings: Settings) -> None:
    typer.echo(f"tproxy listening on {address}")
    sys.stdout.flush()


def _announce_demo(address: str, settings: Settings) -> None:
    _announce(address, settings)
    key = "sk-anything" if settings.access == "open" else "$YOUR_KEY"
    typer.echo(
        "\nThe upstream is the built-in sandbox; nothing is spent. In another terminal, try:\n\n"
        f"curl -N {address}/anthropic/v1/messages \\\n"
        f'  -H "x-api-key: {key}" -H "anthropic-version: 2023-06-01" -H "content-type: application/json" \\\n'
        '  -d \'{"model": "claude-haiku-4-5", "max_tokens": 200, "stream": true, '
        '"messages": [{"role": "user", "content": "Hello, world"}]}\'\n\n'
        f"and then:  {Path(sys.argv[0]).parent.name and sys.argv[0]} spend\n"
    )
    sys.stdout.flush()


@app.command("sandbox")
def sandbox_command(
    bind: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")] = "127.0.0.1:4010",
    paced: Annotated[bool, typer.Option(help="Stream at a reader's pace unless a request says otherwise.")] = False,
) -> None:
    """Run the scripted upstream alone, until interrupted."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            sandbox = await nursery.start(partial(serve_sandbox, bind, paced=paced))
            typer.echo(f"sandbox listening on {sandbox.url}")
            sys.stdout.flush()

    try:
        trio.run(run)
    except* KeyboardInterrupt:
        pass
    except* OSError as group:
        for error in _leaves(group):
            typer.echo(f"tproxy: {error}", err=True)
        sys.exit(1)


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Read and check the configuration and the files that it names; print every fault with its place."""
    faults: list[str] = []
    try:
        settings = load(config)
    except SettingsFault as fault:
        faults += str(fault).splitlines()
    else:
        for read in (
            lambda: load_keys(settings.key_file, os.environ) if settings.key_file else None,
            lambda: prices(settings),
        ):
            try:
                read()
            except (SettingsFault, PriceFault) as fault:
                faults += str(fault).splitlines()
    for line in faults:
        typer.echo(line, err=True)
    if faults:
        sys.exit(2)
    typer.echo(f"{config}: no faults. Access is {settings.access!r}, the upstream {settings.upstream.base_url}.")


@app.command()
def spend(
    config: ConfigOption = DEFAULT_CONFIG,
    id: Annotated[
        str | None, typer.Option(help="Show one exchange in full: its x-tproxy-id, or the start of it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what was spent, by day and model, or one exchange."""
    try:
        settings = load(config, sandbox="http://127.0.0.1")  # reading the books needs no real key
        if id is not None:
            _show_exchange(reading.exchange(settings.database_path, id), id, as_json)
        else:
            _show_days(reading.spend_by_day(settings.database_path, tz=settings.budgets.timezone), as_json)
    except SettingsFault as fault:
        _faults(ExceptionGroup("", [fault]))
    except (LedgerUnusable, ValueError) as fault:
        typer.echo(f"tproxy: {fault}", err=True)
        sys.exit(1)


def _show_exchange(row: dict[str, object] | None, id: str, as_json: bool) -> None:
    if row is None:
        typer.echo(f"tproxy: no exchange has the id {id!r}", err=True)
        sys.exit(1)
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in row.items():
        table.add_row(name, "" if value is None else escape(str(value)))
    Console().print(table)


def _show_days(days: list[reading.DayModel], as_json: bool) -> None:
    if as_json:
        total = sum(day.cost_nano for day in days)
        rows = [asdict(day) | {"day": day.day.isoformat(), "cost_usd": usd(day.cost_nano)} for day in days]
        typer.echo(json.dumps({"days": rows, "total_cost_nano": total, "total_cost_usd": usd(total)}, indent=2))
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="Spend by day and model, in USD",
        caption=_notes(days),
    )
    table.add_column("day", no_wrap=True)
    table.add_column("model", overflow="fold")
    for heading in ("calls", "input", "cached", "output"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    for day in days:
        table.add_row(day.day.isoformat(), escape(day.model), *_figures([day]))
    table.add_section()
    table.add_row("total", "", *_figures(days))
    Console().print(table)


def _figures(days: list[reading.DayModel]) -> list[str]:
    calls, fresh, written, read, output = (
        _total(days, name)
        for name in ("exchanges", "input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens")
    )
    return [*(f"{count:,}" for count in (calls, fresh, written + read, output)), usd(_total(days, "cost_nano"))]


def _notes(days: list[reading.DayModel]) -> str:
    """How sure the figures are, where that has to be said."""
    said = {
        "estimated": "are estimated",
        "unpriced": "have no known price and are not in the cost",
        "open": "still run",
    }
    notes = [f"{count:,} {what}" for name, what in said.items() if (count := _total(days, name))]
    return "; ".join(["cached: written and read, not in input", *notes])


def _total(days: list[reading.DayModel], name: str) -> int:
    return sum(getattr(day, name) for day in days)


def usd(nano: int) -> str:
    """Nano-dollars as dollars, exactly: 13408000 -> `0.013408`."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    fraction = f"{nano % 10**9:09d}".rstrip("0")
    return f"{sign}{nano // 10**9}.{fraction or '0'}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]


def _faults(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    for fault in _leaves(group):
        typer.echo(str(fault), err=True)
    sys.exit(2)


def main() -> None:
    """The entry point of the `tproxy` command."""
    app()
