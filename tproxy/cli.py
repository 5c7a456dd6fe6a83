"""The commands. Each reads its arguments, does one thing of the floors below, and says what came of it.

Exit codes: 0 done; 1 it failed while running; 2 the configuration or the arguments are at fault.

What a command needs is imported where it is used: the server takes a second of it, and most commands do not.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tproxy import __version__, terminal
from tproxy.client import DEFAULT_URL
from tproxy.commands import captures, keys, ledger
from tproxy.commands import report as reports
from tproxy.commands.spend import By, spend_by
from tproxy.commands.top_view import Sort as TopSort
from tproxy.money import usd
from tproxy.store import reading

if TYPE_CHECKING:
    from tproxy.settings import Settings

app = typer.Typer(
    name="tproxy",
    help="A streaming proxy for the Anthropic API: byte-exact, undelayed, with books kept to the nano-dollar.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(keys.app, name="keys")
app.add_typer(captures.app, name="captures")
app.add_typer(ledger.app, name="ledger")

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
    import trio

    from tproxy.protocol.pricing import PriceFault
    from tproxy.server import serve
    from tproxy.settings import SettingsFault
    from tproxy.store.migrate import LedgerUnusable

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
    import trio

    from tproxy.sandbox.server import serve_sandbox

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            sandbox = await nursery.start(partial(serve_sandbox, bind, paced=paced))
            typer.echo(f"sandbox listening on {sandbox.url}")
            sys.stdout.flush()

    try:
        trio.run(run)
    except* KeyboardInterrupt:
        pass
    except* ValueError as group:
        _faults(group)
    except* OSError as group:
        for error in _leaves(group):
            typer.echo(f"tproxy: {error}", err=True)
        sys.exit(1)


@app.command()
def check(
    config: ConfigOption = DEFAULT_CONFIG,
    sandbox: Annotated[bool, typer.Option(help="As it is for serve --sandbox, which needs no real key.")] = False,
) -> None:
    """Read and check the configuration and the files that it names; print every fault with its place."""
    from tproxy.assembly import prices
    from tproxy.protocol.pricing import PriceFault
    from tproxy.settings import SettingsFault, load
    from tproxy.store.keyfile import load_keys

    faults: list[str] = []
    try:
        settings = load(config, sandbox="http://127.0.0.1" if sandbox else None)
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
    id: Annotated[str | None, typer.Option(help="One exchange in full: its x-tproxy-id, or the start of it.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="The newest exchanges, one a line.")] = None,
    by: Annotated[By | None, typer.Option(help="What each came to; asks the running server at --url.")] = None,
    since: Annotated[str | None, typer.Option(help="With --by: from this day (UTC), or so many days: 7d.")] = None,
    until: Annotated[str | None, typer.Option(help="With --by: to the end of this day.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="With --by: how many at most, the dearest.")] = 50,
    url: keys.Url = DEFAULT_URL,
    as_json: keys.Json = False,
) -> None:
    """Show what was spent, by day and model; or the newest exchanges; or one exchange; or, --by, what each came to."""
    if by is not None:
        if id is not None or last is not None:
            raise typer.BadParameter("it goes with neither --id nor --last", param_hint="--by")
        spend_by(by, url, since=since, until=until, limit=limit, as_json=as_json)
        return
    if since is not None or until is not None:
        raise typer.BadParameter("they need --by", param_hint="--since, --until")
    from tproxy.settings import SettingsFault, load_books
    from tproxy.store.migrate import LedgerUnusable

    try:
        database, timezone = load_books(config)
        if id is not None:
            row = reading.exchange(database, id)
            if row is None:
                raise ValueError(f"no exchange has the id {id}")
            keys.out(row) if as_json else terminal.show_exchange(row)
        elif last is not None:
            rows = reading.recent(database, last)
            keys.out(rows) if as_json else terminal.show_recent(rows)
        else:
            days = reading.spend_by_day(database, tz=timezone)
            keys.out(_as_json(days)) if as_json else terminal.show_days(days)
    except SettingsFault as fault:
        _faults(ExceptionGroup("", [fault]))
    except (LedgerUnusable, ValueError) as fault:
        typer.echo(f"tproxy: {fault}", err=True)
        sys.exit(1)


@app.command()
def top(
    interval: Annotated[float, typer.Option(min=0.5, max=10, help="Seconds between two looks.")] = 1.0,
    sort: Annotated[TopSort, typer.Option(help="The most of this first.")] = TopSort.AGE,
    once: Annotated[
        bool, typer.Option("--once", help="Print one snapshot and end; so it is without a terminal.")
    ] = False,
    url: keys.Url = DEFAULT_URL,
    as_json: keys.Json = False,
) -> None:
    """Show what runs now, until Ctrl-C: who, which model, how many tokens, how fast, at what cost so far."""
    from tproxy.commands.top import top as run

    run(url, interval=interval, sort=sort, once=once, as_json=as_json)


@app.command()
def report(
    by: Annotated[reports.By, typer.Option(help="What it is grouped by.")] = reports.By.team,
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="The month; this one if none is named.")] = None,
    since: Annotated[str | None, typer.Option(help="In place of a month: from this day (UTC), or so many: 7d.")] = None,
    until: Annotated[str | None, typer.Option(help="To the end of this day; today if none is named.")] = None,
    form: Annotated[
        reports.Format | None,
        typer.Option(
            "--format", help="A table for people, CSV for programs, or a page to be mailed; else as --out says."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, .csv or .html; stdout if none is named.")] = None,
    url: keys.Url = DEFAULT_URL,
) -> None:
    """Report what a month came to. Asks a running server."""
    reports.report(by, form, out, url, month=month, since=since, until=until)


def _as_json(days: list[reading.DayModel]) -> dict[str, object]:
    """Days and totals. Where nothing has a known price, the cost is null."""

    def row(day: reading.DayModel) -> dict[str, object]:
        known = day.cost_nano or not day.unpriced
        cost = {"cost_nano": day.cost_nano, "cost_usd": usd(day.cost_nano)}
        return asdict(day) | {"day": day.day.isoformat()} | (cost if known else dict.fromkeys(cost))

    total = sum(day.cost_nano for day in days if not day.sandbox)
    sandbox = sum(day.cost_nano for day in days if day.sandbox)
    return {
        "days": [row(day) for day in days],
        "total_cost_nano": total,
        "total_cost_usd": usd(total),
        "sandbox_cost_nano": sandbox,
    }


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]


def _faults(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    for fault in _leaves(group):
        typer.echo(str(fault), err=True)
    sys.exit(2)


def main() -> None:
    """The entry point of the `tproxy` command."""
    app()
