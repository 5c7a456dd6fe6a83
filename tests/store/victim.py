"""A process that writes a ledger until it is killed, once for each round: `python -m tests.store.victim FILE ROUNDS`.

Each round is a child of its own. It prints `pid N`, then `open ID` for each row that is durable, and `close ID` for
each row whose end is: that is so as soon as a later open is durable. Each holds `CLAIM` and costs `COST`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import trio

from tests.store.laws import make_closing, make_opening, make_subject
from tproxy.store.base import HARD, OPEN, Claim
from tproxy.store.money import set_budgets
from tproxy.store.sqlite import SqliteLedger, open_ledger

TASKS = 8
CLAIM = Claim("team", "core", HARD, 10)
COST = 3
UTC = ZoneInfo("UTC")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def _exchanges(ledger: SqliteLedger, number: int) -> None:
    closed = None
    while True:
        opening = make_opening(number)
        await ledger.open(opening, [CLAIM]).durable()
        _say(f"open {opening.id}")
        if closed:
            _say(f"close {closed}")
        ledger.note(make_closing(number, OPEN, cost_nano=COST))
        ledger.close(make_closing(number, cost_nano=COST))
        closed = opening.id
        number += TASKS


async def _live(path: Path, first: int) -> None:
    async with open_ledger(path) as ledger, trio.open_nursery() as nursery:
        await ledger.write(lambda connection: set_budgets(connection, make_subject("team", "core", 10**12), 1, UTC))
        for task in range(TASKS):
            nursery.start_soon(_exchanges, ledger, first + task)


def main(path: Path, rounds: int) -> None:
    for number in range(rounds):
        if os.fork() == 0:
            _say(f"pid {os.getpid()}")
            trio.run(_live, path, number * 1_000_000)
        os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
