"""Mixed exchanges through a real ledger, in a process that is killed again and again; then the proof that all agrees.

    python -m tests.store.crashes DIR --exchanges 100000 --kills 10

makes `DIR/crashes.db`. A child opens it and lets exchanges of all kinds run: with and without teams, customers, tags
and claims, that end well, badly, with figures that no column can hold, or not at all; between them keys are rotated and
customers deleted. It is killed at a random moment, and the next one goes on. The last one ends by itself.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import trio

from tests.store.laws import make_closing, make_opening, make_subject
from tproxy.errors import LedgerUnavailable
from tproxy.store.base import (
    CLIENT_GONE,
    COUNTED,
    ESTIMATED,
    EXACT,
    EXPECTED,
    FAILED,
    FINISHED,
    HARD,
    OPEN,
    PARTIAL,
    REFUSED,
    SOFT,
    UNPRICED,
    UPSTREAM_ERROR,
    Claim,
    Closing,
    Opening,
)
from tproxy.store.directory import Directory, open_directory
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import CUSTOMER, KEY, TEAM, USER
from tproxy.store.verify import Verdict, verify

ROOT = Path(__file__).parents[2]
TASKS = 16
KEYS = 12
STEP = 50  # exchanges between two words of the child
PER_ROUND = 10_000_000  # numbers of exchanges that each child has for itself
UTC = ZoneInfo("UTC")

_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
_NO_COLUMN_HOLDS = 2**70


def mixed_opening(dice: random.Random, number: int, keys: list[str]) -> Opening:
    """An exchange of one kind or another; they come today or came a day before."""
    customer = None if dice.random() < 0.4 else f"customer-{dice.randrange(40)}"
    return make_opening(
        number,
        accepted_us=now_us() - (dice.random() < 0.3) * 86_400_000_000,
        caller=f"key:{dice.choice(keys)}" if keys and dice.random() < 0.8 else dice.choice(("master", "anonymous")),
        team=dice.choice((None, "core", "infra")),
        user=dice.choice((None, "ada", "bob", "")),
        customer=customer,
        tags=tuple(dice.sample(("a", "b", 'c"', "[1]", "ü"), dice.randrange(4))),
        stream=dice.choice((None, True, False)),
        session=dice.choice((None, "s-1")),
        expected_nano=dice.choice((None, 0, dice.randrange(10**6))),
        traceparent=dice.choice((None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
    )


def mixed_closing(dice: random.Random, number: int, ended: str | None = None) -> Closing:
    """An end of one kind or another; of 50, one cannot be written as it is."""
    tokens: dict[str, Any] = {name: dice.choice((None, 0, dice.randrange(10**5))) for name in _TOKENS}
    if dice.random() < 0.1:
        tokens = dict.fromkeys(_TOKENS)
    elif ended is None and dice.random() < 0.02:
        tokens["output_tokens"] = _NO_COLUMN_HOLDS
    end = ended or dice.choice((FINISHED, FINISHED, FINISHED, REFUSED, CLIENT_GONE, FAILED, UPSTREAM_ERROR))
    return make_closing(
        number,
        end,
        ended_us=None if end == OPEN else now_us(),
        status=dice.choice((None, 200, 200, 200, 404, 529)),
        model_served=dice.choice((None, "claude-haiku-4-5", "claude-opus-4-5")),
        cost_nano=dice.choice((None, 0, dice.randrange(10**7))),
        certainty=PARTIAL if end == OPEN else dice.choice((EXACT, EXACT, EXACT, PARTIAL, ESTIMATED, UNPRICED)),
        error_type=dice.choice((None, "overloaded_error")),
        tap_fault=None,
        **tokens,
    )


def mixed_claims(dice: random.Random, opening: Opening) -> list[Claim]:
    """What it holds of the budgets of its team and its user."""
    subjects = [(kind, id) for kind, id in ((TEAM, opening.team), (USER, opening.user)) if id in ("core", "ada")]
    return [
        Claim(kind, str(id), dice.choice((EXPECTED, HARD, SOFT, COUNTED)), dice.randrange(10**6))
        for kind, id in subjects
    ]


def now_us() -> int:
    return time.time_ns() // 1000


class _Child:
    """One life: exchanges up to the last one, or until it is killed."""

    def __init__(self, ledger: SqliteLedger, directory: Directory, first: int, count: int, seed: int) -> None:
        self.ledger, self.directory = ledger, directory
        self.dice = random.Random(seed)
        self.keys: list[str] = []
        self.next, self.last = first, first + count

    async def live(self) -> None:
        for team in ("core", "ada"):
            subject = make_subject(TEAM if team == "core" else USER, team, 10**15)
            if self.directory.find(subject.kind, team) is None:
                await self.directory.create(subject)
        self.keys = await self._known_keys()
        while len(self.keys) < KEYS:
            self.keys.append(f"{self.dice.getrandbits(256):064x}")
            await self.directory.create(make_subject(KEY, self.keys[-1], 10**15))
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(self._exchanges)

    async def _known_keys(self) -> list[str]:
        found = await self.ledger.write(
            lambda c: c.execute(
                "SELECT id FROM subject WHERE kind = 'key' AND document ->> 'replaced_by' IS NULL"
            ).fetchall()
        )
        return [id for (id,) in found]

    async def _exchanges(self) -> None:
        while self.next < self.last:
            number, self.next = self.next, self.next + 1
            if number % STEP == 0:
                os.write(1, b".\n")
            if number % 100 == 99:
                await self._rotate()
            if number % 150 == 149:
                await self._lose_a_customer()
            await self._exchange(number)

    async def _exchange(self, number: int) -> None:
        opening = mixed_opening(self.dice, number, self.keys)
        ticket = self.ledger.open(opening, mixed_claims(self.dice, opening))
        if self.dice.random() < 0.9:
            try:
                await ticket.admitted()
                if self.dice.random() < 0.5:
                    await ticket.durable()
            except LedgerUnavailable:
                pass
        if self.dice.random() < 0.3:
            self.ledger.note(mixed_closing(self.dice, number, OPEN))
        if self.dice.random() < 0.1:
            self.ledger.extend(opening.id, self.dice.randrange(10**7), lambda refusal: None)
        if self.dice.random() < 0.1:
            await trio.sleep(self.dice.random() / 50)
        self.ledger.close(mixed_closing(self.dice, number))

    async def _rotate(self) -> None:
        old = self.keys.pop(self.dice.randrange(len(self.keys)))
        new = f"{self.dice.getrandbits(256):064x}"
        grace = now_us() + 10**9 if self.dice.random() < 0.5 else None
        await self.directory.regenerate(old, new, lambda key: key, grace)
        self.keys.append(new)

    async def _lose_a_customer(self) -> None:
        id = f"customer-{self.dice.randrange(40)}"

        def gone(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM subject WHERE kind = ? AND id = ?", (CUSTOMER, id))

        await self.ledger.write(gone)


async def _live(path: Path, first: int, count: int, seed: int) -> None:
    async with open_ledger(path, max_customers=30, on_fault=lambda fault: None) as ledger:
        directory = await open_directory(path, ledger, zone=lambda: UTC, clock=now_us)
        await _Child(ledger, directory, first, count, seed).live()


def crash(path: Path, exchanges: int, kills: int, seed: int = 5) -> Verdict:
    """Let about so many exchanges run, through so many kills, and look what there is then.

    Raises:
        RuntimeError: a child ended by itself before it was killed, or could not.
    """
    dice = random.Random(seed)
    per_life = exchanges // (kills + 1)
    for life in range(kills + 1):
        count = per_life if life == kills else PER_ROUND - 1
        command = [sys.executable, "-m", "tests.store.crashes", str(path), "--child"]
        command += ["--first", str(life * PER_ROUND), "--exchanges", str(count), "--seed", str(seed + life)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            wanted = max(1, round(per_life / STEP * dice.uniform(0.7, 1.3)))
            for words, _ in enumerate(child.stdout, 1):
                if life < kills and words == wanted:
                    time.sleep(dice.random() / 100)  # noqa: TID251
                    os.kill(child.pid, signal.SIGKILL)
        expected = -signal.SIGKILL if life < kills else 0
        if child.returncode != expected:
            raise RuntimeError(f"life {life} ended with {child.returncode}")
    return verify(path)


def main() -> None:
    """Run, print what came of it; exit code 1 where something does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    if asked.child:
        trio.run(_live, asked.directory, asked.first, asked.exchanges, asked.seed)
        return
    path = asked.directory / "crashes.db"
    began = time.monotonic()
    verdict = crash(path, asked.exchanges, asked.kills, asked.seed)
    print(f"{verdict.ended:,} exchanges and {asked.kills} kills in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    verify(path)
    print(f"verified in {time.monotonic() - began:.1f} s: {'all holds' if verdict.holds else verdict.number}")
    for fault in verdict.faults[:20]:
        print(fault)
    sys.exit(0 if verdict.holds else 1)


if __name__ == "__main__":
    main()
