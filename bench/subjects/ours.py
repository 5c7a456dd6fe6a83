"""tproxy in its two modes, and the audit of the books that it leaves.

*Bare* lets everybody in and looks nothing up. *Everything on* is a key with all that a key can be held to, in figures
that nobody reaches, and requests that say for whom and for what they are, as a coding client's do. Both write the
ledger to disk, and a log line for each exchange, as in production.
"""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from bench import talk
from bench.load import Tally
from bench.process import running
from bench.subjects.base import Served, Start, Subject, Upstream, address_in

CONFIG = """
bind = ["127.0.0.1:0"]
worker_class = "trio"
backlog = 4096
[tproxy]
{access}
database = "sqlite:ledger.db"
[tproxy.upstream]
base_url = "{url}"
api_keys = ["sk-ant-bench"]
max_connections = 20000
{ca_file}
"""
OPEN = 'access = "open"'
KEYS = 'key_file = "keys.toml"'

TAG = "load"
HEADERS = {
    "x-tproxy-tags": TAG,
    "x-tproxy-customer": "customer",
    "x-claude-code-session-id": "c1a0de00-0000-4000-8000-000000000000",
    "x-claude-code-agent-id": "agent",
}
BUDGETS = ("1mo", "1d")
KEY_FILE = f"""
[[key]]
alias = "bench"
key = "{talk.HEADERS["x-api-key"]}"
max_budget = 1000000
budget_duration = "1mo"
budget_limits = [{{ budget_duration = "1d", max_budget = 100000 }}]
rpm_limit = 100000000
tpm_limit = 100000000000
max_parallel_requests = 100000
tags = ["bench"]
models = ["claude-*"]
"""

_ROWS = """
SELECT count(*), coalesce(sum(certainty = 'exact'), 0), coalesce(sum(input_tokens), 0),
       coalesce(sum(output_tokens), 0), coalesce(sum(cost_nano), 0)
  FROM exchange
"""
_UNLIKE = """
SELECT count(*) FROM exchange WHERE NOT (json(tags) IS ? AND customer IS ? AND session IS ? AND agent IS ?)
"""
_SUMS = "SELECT coalesce(sum(exchanges), 0), coalesce(sum(cost_nano), 0) FROM tally WHERE kind = ? AND id LIKE ?"


def version() -> str | None:
    """What is measured."""
    return f"tproxy {importlib.metadata.version('tproxy')}"


def config(upstream: Upstream, access: str) -> str:
    """Its settings: `access` is OPEN or KEYS."""
    ca_file = f"ca_file = {json.dumps(str(upstream.ca_file))}" if upstream.ca_file else ""
    return CONFIG.format(access=access, url=upstream.url, ca_file=ca_file)


@asynccontextmanager
async def serving(home: Path, text: str, cores: frozenset[int]) -> AsyncIterator[Served]:
    """Run it with a configuration, and the key file beside that."""
    file, keys = home / "config.toml", home / "keys.toml"
    file.write_text(text)
    keys.touch(mode=0o600)
    keys.write_text(KEY_FILE)
    program = Path(sys.executable).with_name("tproxy")
    async with running("tproxy", [str(program), "serve", "--config", str(file)], cores, home) as process:
        yield Served(address_in(await process.line()), process)


def _tproxy(access: str) -> Start:
    @asynccontextmanager
    async def start(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
        async with serving(home, config(upstream, access), cores) as served:
            yield served

    return start


def audit_ledger(home: Path, tally: Tally) -> list[str]:
    """Compare the ledger with what the load has sent: one row for each exchange, every token, every nano-dollar."""
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        found = ledger.execute(_ROWS).fetchone()
        unfinished = ledger.execute("SELECT ended, count(*) FROM exchange WHERE ended != 'finished' GROUP BY ended")
        faults = [f"the ledger has {count:,} whole exchanges as {ended}" for ended, count in unfinished]
    n, tokens_in = tally.exchanges, tally.exchanges * talk.INPUT_TOKENS
    expected = {
        "rows": n,
        "exact rows": n,
        "input tokens": tokens_in,
        "output tokens": tally.asked,
        "nano-dollars": _cost(tally),
    }
    return faults + _differences("the ledger has", expected, found)


def audit_money(home: Path, tally: Tally) -> list[str]:
    """The same, and what the rows are charged to: each says for whom it was, and all sums and budgets agree with it."""
    faults = audit_ledger(home, tally)
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        told = (json.dumps([TAG, "bench"], separators=(",", ":")), *list(HEADERS.values())[1:])
        (unlike,) = ledger.execute(_UNLIKE, told).fetchone()
        if unlike:
            faults.append(f"{unlike:,} rows lack the tags, customer, session or agent of their request")
        expected = {"exchanges": tally.exchanges, "nano-dollars": _cost(tally)}
        for kind, name in (
            ("caller", "key:%"),
            ("tag", TAG),
            ("tag", "bench"),
            ("customer", HEADERS["x-tproxy-customer"]),
        ):
            sums = ledger.execute(_SUMS, (kind, name)).fetchone()
            faults += _differences(f"the sums of {kind} {name.rstrip(':%')} have", expected, sums)
        budgets = {
            period: counts
            for period, *counts in ledger.execute("SELECT period, spent_nano, held_nano FROM budget WHERE kind = 'key'")
        }
        for period in BUDGETS:
            kept = {"nano-dollars spent": _cost(tally), "nano-dollars held": 0}
            faults += _differences(f"the budget {period} has", kept, budgets.get(period, [0, 0]))
        (held,) = ledger.execute("SELECT count(*) FROM reservation").fetchone()
        if held:
            faults.append(f"{held:,} reservations are left")
    return faults


def _cost(tally: Tally) -> int:
    tokens_in = tally.exchanges * talk.INPUT_TOKENS
    return tokens_in * talk.NANO_PER_INPUT_TOKEN + tally.asked * talk.NANO_PER_OUTPUT_TOKEN


def _differences(who: str, expected: dict[str, int], found: list[int]) -> list[str]:
    return [
        f"{who} {there:,} {what}, not {wanted:,}"
        for (what, wanted), there in zip(expected.items(), found, strict=True)
        if there != wanted
    ]


OURS = (
    Subject(name="tproxy", version=version, start=_tproxy(OPEN), audit=audit_ledger, tls=True),
    Subject(
        name="tproxy, everything on", version=version, start=_tproxy(KEYS), audit=audit_money, tls=True,
        headers=HEADERS,
    ),
)  # fmt: skip
