"""`tproxy top`: what runs now, in a terminal, from the server's `/live`.

| stdout is | shown |
|---|---|
| a terminal | the newest snapshot, over the whole terminal, until Ctrl-C |
| anything else, or `--once` | one snapshot as a table |
| with `--json` | each snapshot as a line of JSON; with `--once` too, one |

A server that goes away is asked again, at growing distances, for `GIVE_UP_SECONDS`; one that was never there, or that
says no, is not.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import typer

from tproxy.client import Api, ApiFault
from tproxy.commands.keys import say, talk
from tproxy.commands.top_view import Sort, show, table
from tproxy.plaintext import plain

LEAST_SECONDS: Final = 0.5
MOST_SECONDS: Final = 10.0
GIVE_UP_SECONDS: Final = 60.0
_NEVER: Final = threading.Event()
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 8.0
_PATIENCE: Final = 30.0  # beyond the interval


def top(url: str, *, interval: float, sort: Sort, once: bool, as_json: bool) -> None:
    """Ask the server at `url`, and print what it says until it is interrupted."""
    with suppress(KeyboardInterrupt), talk(url) as api:
        if once or not (as_json or sys.stdout.isatty()):
            _once(api, sort, as_json=as_json)
        elif as_json:
            for snapshot in watch(api, interval, say):
                _print(snapshot)
        else:
            show(lambda note: watch(api, interval, note), sort)


def _once(api: Api, sort: Sort, *, as_json: bool) -> None:
    """The first snapshot that knows rates: they need two looks."""
    snapshots = ask(api, LEAST_SECONDS)
    snapshot = next(snapshots, None)
    if snapshot is not None and snapshot["totals"].get("admitted_per_second") is None:
        snapshot = next(snapshots, snapshot)
    if snapshot is None:
        raise ApiFault(f"{api.url} is shutting down, and shows nothing any more")
    if as_json:
        _print(snapshot)
    else:
        typer.echo(table(snapshot, sort), nl=False)


def _print(snapshot: dict[str, Any]) -> None:
    typer.echo(json.dumps(snapshot, separators=(",", ":")))  # flushes; what is not ASCII is escaped


def watch(
    api: Api,
    interval: float,
    note: Callable[[str], None],
    *,
    pause: Callable[[float], object] = _NEVER.wait,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Snapshots for as long as they come; a server that goes away is asked again.

    Args:
        note: told why there is none for now, until there is one again.
        pause: waits for so many seconds.

    Raises:
        ApiFault: it says no, cannot be reached at first, or has been away for `GIVE_UP_SECONDS`.
    """
    came: float | None = None  # when the last one did
    wait = _FIRST_PAUSE
    while True:
        why = f"{api.url} is shutting down"
        try:
            for snapshot in ask(api, interval):
                came, wait = clock(), _FIRST_PAUSE
                yield snapshot
        except ApiFault as fault:
            if came is None or (fault.status is not None and fault.status < 500):
                raise
            why = str(fault)
        came = clock() if came is None else came
        if clock() - came > GIVE_UP_SECONDS:
            raise ApiFault(f"given up after {GIVE_UP_SECONDS:g} seconds: {why}")
        note(f"{why}; asking again in {wait:g} s")
        pause(wait)
        wait = min(2 * wait, _LONGEST_PAUSE)


def ask(api: Api, interval: float) -> Iterator[dict[str, Any]]:
    """The snapshots of one answer of `/live`, until the server ends it.

    Raises:
        ApiFault: it says no, breaks off, or says what is none.
    """
    event = ""
    for line in api.lines("/live", interval + _PATIENCE, interval=f"{interval:g}"):
        name, _, value = line.rstrip(b"\r\n").partition(b": ")
        if name == b"event":
            event = value.decode("latin-1")
        elif name == b"data" and event == "end":
            return
        elif name == b"data" and event == "snapshot":
            yield _snapshot(api, value)
        elif line[:1] == b"<":
            break
    else:
        raise ApiFault(f"{api.url} has broken off")
    raise ApiFault(f"{api.url} shows nothing that runs: is it tproxy's?")


def _snapshot(api: Api, content: bytes) -> dict[str, Any]:
    try:
        snapshot = json.loads(content)
    except (ValueError, RecursionError):
        snapshot = None
    match snapshot:
        case {"totals": dict(), "exchanges": list() as rows} if all(isinstance(row, dict) for row in rows):
            return dict(snapshot)
    raise ApiFault(plain(f"{api.url} shows something that is no snapshot: is it tproxy's?"))
