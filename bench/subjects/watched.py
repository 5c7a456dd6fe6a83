"""What it costs to be seen: tproxy with all that an operator can look at, and with nothing of it.

Both are *everything on* as in `ours.py`. *Unwatched* counts nothing and logs errors only. *Watched* counts, logs,
exports every exchange three ways (files, a signed webhook, OTLP), keeps the bodies of errors, tells alerts, is scraped
every five seconds, and shows its running streams to a viewer. Who receives all that (`bench/onlooker.py`) is a process
of its own, on the cores of the load.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from bench.load import Tally
from bench.process import running
from bench.subjects import ours
from bench.subjects.base import Served, Start, Subject, Upstream

MASTER = "sk-bench-master-0123456789"
ACCESS = f'''{ours.KEYS}
master_key = "{MASTER}"'''

UNWATCHED = """
[tproxy.log]
level = "error"
[tproxy.metrics]
enabled = false
"""
WATCHING = """
[tproxy.capture]
errors = true
[tproxy.export.jsonl]
directory = "exports"
[tproxy.export.webhook]
url = "{url}/webhook"
secret = "a-secret-of-the-bench"
[tproxy.export.otlp]
endpoint = "{url}"
[tproxy.alerts]
webhook_url = "{url}/alerts"
"""
WORKLOADS = frozenset(
    {"100 streams x 50/s", "500 streams x 10/s", "plain answers, 16 connections", "first byte, 20 connections"}
)


def _unwatched() -> Start:
    @asynccontextmanager
    async def start(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
        async with ours.serving(home, ours.config(upstream, ACCESS) + UNWATCHED, cores) as served:
            yield served

    return start


def _watched() -> Start:
    @asynccontextmanager
    async def start(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
        others = frozenset(os.sched_getaffinity(0)) - cores or cores
        program = [sys.executable, "-m", "bench.onlooker"]
        (home / "exports").mkdir()
        async with running("receiver", [*program, "receive"], others, home) as receiver:
            url = (await receiver.line()).rpartition(" ")[2]
            text = ours.config(upstream, ACCESS) + WATCHING.format(url=url)
            async with ours.serving(home, text, cores) as served:
                host, port = served.address
                watch = [*program, "watch", f"http://{host}:{port}"]
                async with running("watcher", watch, others, home, env={"TPROXY_MASTER_KEY": MASTER}) as watcher:
                    await watcher.line()
                    yield served

    return start


def audit_exports(home: Path, tally: Tally) -> list[str]:
    """The audit of the money, and of what was written to files: every exchange up to the cursor, once, in order."""
    faults = ours.audit_money(home, tally)
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        cursors = dict(ledger.execute("SELECT sink, seq FROM cursor"))
        ids = [id for (id,) in ledger.execute("SELECT id FROM settled ORDER BY seq")]
    lines = [
        json.loads(line)
        for file in sorted((home / "exports").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    found = [line["id"] for line in lines]
    if len(cursors) != 3:
        faults.append(f"{len(cursors)} exports have a cursor, not 3")
    if found != ids[: len(found)] or len(found) < cursors.get("jsonl", 0):
        faults.append(
            f"the files hold {len(found):,} exchanges, which are not the first of {len(ids):,} in their order"
        )
    return faults


WATCHED = (
    Subject(
        name="tproxy, unwatched", version=ours.version, start=_unwatched(), audit=ours.audit_money,
        headers=ours.HEADERS, only=WORKLOADS,
    ),
    Subject(
        name="tproxy, watched", version=ours.version, start=_watched(), audit=audit_exports, headers=ours.HEADERS,
        only=WORKLOADS,
    ),
)  # fmt: skip
