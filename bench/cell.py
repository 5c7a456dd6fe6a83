"""One cell of the bench: one workload through one subject, everything started for it and ended after it.

Whatever makes the figures worthless is a fault of the cell: a byte that differs, an event or a row that is missing,
a load or upstream that was the bottleneck itself. Other work on the machine is no fault, but is measured and told.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import Tally
from bench.process import Cores, Running, busy_seconds, running
from bench.subjects import Subject, address_in
from bench.workloads import CLOSED, SETTLE_SECONDS, SLACK_SECONDS, Workload

SATURATED = 0.85  # of a core of the load or the upstream, for whatever work: above it, they would measure themselves
LAG_P99_US = 10_000  # events later than that are not paced as the workload says
CALM_SECONDS = 0.5  # after the start, before the idle memory is read


@dataclass(slots=True, kw_only=True)
class Cell:
    """What was measured.

    Attributes:
        turn: the round of the run, from 0.
        proxy_cpu_seconds, idle_bytes, loaded_bytes: of the subject's process; 0 where it has none. Idle: before its
            first request. Loaded: the most of the readings at both ends of the time that is measured.
        side_busy: of the busiest core of load and upstream, the share that the two of them used.
        side_core_busy: the share that was used at all, by them or by other work.
        foreign_cores: cores' worth of other work on the machine meanwhile.
        load_bound: the workload goes as fast as it can, and the load was what held it back.
        faults: why the figures are worth nothing.
    """

    workload: str
    subject: str
    turn: int
    tally: Tally
    proxy_cpu_seconds: float = 0.0
    idle_bytes: int = 0
    loaded_bytes: int = 0
    side_busy: float = 0.0
    side_core_busy: float = 0.0
    foreign_cores: float = 0.0
    load_bound: bool = False
    faults: list[str] = field(default_factory=list)


async def measure(workload: Workload, subject: Subject, cores: Cores, *, turn: int) -> Cell:
    """Run a workload through a subject.

    Raises:
        BenchFault: a process did not start, or did not do its part.
    """
    with TemporaryDirectory(prefix="bench-") as folder:
        home = Path(folder)
        async with (
            running("upstream", _python("bench.upstream"), cores.upstream, home) as upstream,
            subject.start(home, address_in(await upstream.line()), cores.proxy) as served,
        ):
            await trio.sleep(CALM_SECONDS)
            idle = served.process.resident_bytes() if served.process else 0
            host, port = served.address
            plan = {"workload": asdict(workload), "host": host, "port": port, "path": subject.path}
            async with running("load", [*_python("bench.load"), json.dumps(plan)], cores.load, home) as load:
                cell = await _observe(workload, load, upstream, served.process, cores)
        cell.subject, cell.turn, cell.idle_bytes = subject.name, turn, idle
        cell.faults += subject.audit(home, cell.tally)
    return cell


async def _observe(workload: Workload, load: Running, upstream: Running, proxy: Running | None, cores: Cores) -> Cell:
    """Read the clocks at both ends of the time that is measured, then the load's account."""

    def clocks() -> tuple[float, float, dict[int, float]]:
        return upstream.cpu_seconds(), proxy.cpu_seconds() if proxy else 0.0, busy_seconds()

    await load.line(workload.opening_seconds + SETTLE_SECONDS + SLACK_SECONDS)
    loaded = proxy.resident_bytes() if proxy else 0
    start = clocks()
    await load.line(workload.seconds + SLACK_SECONDS)
    end = clocks()
    loaded = max(loaded, proxy.resident_bytes() if proxy else 0)
    tally = Tally(**json.loads(await load.line(SLACK_SECONDS + 10)))

    upstream_used, proxy_used = end[0] - start[0], end[1] - start[1]
    busy = {core: end[2][core] - start[2][core] for core in start[2]}
    together = cores.load == cores.upstream
    side_used = upstream_used + tally.cpu_seconds if together else max(upstream_used, tally.cpu_seconds)
    foreign = sum(busy.values()) - upstream_used - proxy_used - tally.cpu_seconds
    cell = Cell(
        workload=workload.name,
        subject="",
        turn=0,
        tally=tally,
        proxy_cpu_seconds=proxy_used,
        loaded_bytes=loaded,
        side_busy=side_used / tally.seconds,
        side_core_busy=max(busy[core] for core in cores.load | cores.upstream) / tally.seconds,
        foreign_cores=max(0.0, foreign / tally.seconds),
    )
    saturated = cell.side_core_busy > SATURATED
    cell.load_bound = saturated and workload.shape == CLOSED
    cell.faults += [f"{count:,} x {reason}" for reason, count in tally.failures.items()]
    if saturated and not cell.load_bound:
        cell.faults.append(
            f"load and upstream were saturated: their core was busy for {cell.side_core_busy:.0%} of the time, "
            f"with them for {cell.side_busy:.0%}, with other work for the rest"
        )
    late_us = tally.times["lag"]["p99"] if "lag" in tally.times else 0.0
    if late_us > LAG_P99_US and workload.shape != CLOSED:
        cell.faults.append(f"the upstream sent events late: p99 {late_us / 1000:.1f} ms after they were due")
    return cell


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]
