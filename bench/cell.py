"""One cell of the bench: one workload through one subject, everything started for it and ended after it.

Whatever makes the figures worthless is a fault of the cell: a byte that differs, an event or a row that is missing,
a load or upstream that was the bottleneck itself. Other work on the machine is no fault, but is measured and told.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench import native
from bench.load import Tally
from bench.process import Cores, Running, busy_seconds, interrupt_seconds, running
from bench.subjects import Subject, Upstream, address_in
from bench.workloads import CLOSED, SETTLE_SECONDS, SLACK_SECONDS, Workload

SATURATED = 0.85  # of a core of the load or the upstream, for whatever work: above it, they would measure themselves
LAG_P99_US = 10_000  # events later than that are not paced as the workload says
CALM_SECONDS = 0.3  # after the start, before the idle memory is read


@dataclass(slots=True, kw_only=True)
class Cell:
    """What was measured.

    Attributes:
        turn: the round of the run, from 0.
        upstream_cpu_seconds: of the upstream, while it was measured.
        proxy_cpu_seconds, idle_bytes, loaded_bytes: of the subject's process; 0 where it has none. Idle: before its
            first request. Loaded: the most of the readings at both ends of the time that is measured.
        side_busy: of the busiest core of load and upstream, the share that the two of them used.
        side_core_busy: the share that was used at all, by them or by other work. The machine counts it in ticks, and
            theirs to the nanosecond, so it is no less than theirs.
        foreign_cores: cores' worth of other work on the machine meanwhile.
        load_bound: the workload goes as fast as it can, and load and upstream had used up their core themselves.
        faults: why the figures are worth nothing.
        disturbed: the same, where it is not the subject's doing, and may be otherwise another time.
        repeats: how often it had been measured in vain, for such a reason.
    """

    workload: str
    subject: str
    turn: int
    tally: Tally
    upstream_cpu_seconds: float = 0.0
    proxy_cpu_seconds: float = 0.0
    idle_bytes: int = 0
    loaded_bytes: int = 0
    side_busy: float = 0.0
    side_core_busy: float = 0.0
    foreign_cores: float = 0.0
    load_bound: bool = False
    faults: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    repeats: int = 0


async def measure(workload: Workload, subject: Subject, cores: Cores, *, turn: int) -> Cell:
    """Run a workload through a subject.

    Raises:
        BenchFault: a process did not start, or did not do its part.
    """
    with TemporaryDirectory(prefix="bench-") as folder:
        home = Path(folder)
        authority = home / "authority.pem" if workload.tls else None
        command = native.upstream_command(workload, authority)
        async with (
            running("upstream", command, cores.upstream, home) as upstream,
            subject.start(home, _upstream_at(await upstream.line(), authority), cores.proxy) as served,
        ):
            await trio.sleep(CALM_SECONDS)
            idle = served.process.resident_bytes() if served.process else 0
            host, port = served.address
            plan = {
                "workload": asdict(workload),
                "host": host,
                "port": port,
                "path": subject.path,
                "exact": subject.exact,
                "headers": {**subject.headers, **served.headers},
            }
            command = [*native.load_command(workload), json.dumps(plan)]
            async with running("load", command, cores.load, home) as load:
                cell = await _observe(workload, load, upstream, served.process, cores)
        cell.subject, cell.turn, cell.idle_bytes = subject.name, turn, idle
        cell.faults += subject.audit(home, cell.tally)
    return cell


async def _observe(workload: Workload, load: Running, upstream: Running, proxy: Running | None, cores: Cores) -> Cell:
    """Read the clocks at both ends of the time that is measured, then the load's account."""

    def clocks() -> tuple[float, float, dict[int, float], dict[int, float]]:
        return upstream.cpu_seconds(), proxy.cpu_seconds() if proxy else 0.0, busy_seconds(), interrupt_seconds()

    await load.line(workload.opening_seconds + SETTLE_SECONDS + SLACK_SECONDS)
    loaded = proxy.resident_bytes() if proxy else 0
    start = clocks()
    await load.line(workload.seconds + SLACK_SECONDS)
    end = clocks()
    loaded = max(loaded, proxy.resident_bytes() if proxy else 0)
    tally = Tally(**json.loads(await load.line(SLACK_SECONDS + 10)))

    upstream_used, proxy_used = end[0] - start[0], end[1] - start[1]
    busy = {core: end[2][core] - start[2][core] for core in start[2]}
    interrupts = {core: end[3][core] - start[3][core] for core in start[3]}
    side_used = {
        core: interrupts[core] + tally.cpu_seconds * (core in cores.load) + upstream_used * (core in cores.upstream)
        for core in cores.load | cores.upstream
    }
    side_busy = max(side_used.values()) / tally.seconds
    foreign = sum(busy.values()) - sum(interrupts.values()) - upstream_used - proxy_used - tally.cpu_seconds
    cell = Cell(
        workload=workload.name,
        subject="",
        turn=0,
        tally=tally,
        upstream_cpu_seconds=upstream_used,
        proxy_cpu_seconds=proxy_used,
        loaded_bytes=loaded,
        side_busy=side_busy,
        side_core_busy=max(side_busy, max(busy[core] for core in cores.load | cores.upstream) / tally.seconds),
        foreign_cores=max(0.0, foreign / tally.seconds),
    )
    cell.faults += [f"{count:,} x {reason}" for reason, count in tally.failures.items()]
    judge(cell, workload)
    return cell


def judge(cell: Cell, workload: Workload) -> None:
    """Whether load and upstream had what they need: sets `load_bound` and adds to `disturbed`."""
    themselves = cell.side_busy > SATURATED
    cell.load_bound = themselves and workload.shape == CLOSED
    if themselves and not cell.load_bound:
        cell.disturbed.append(f"load and upstream were saturated: they used {cell.side_busy:.0%} of a core")
    elif cell.side_core_busy > SATURATED and not themselves:
        cell.disturbed.append(
            f"other work took {cell.side_core_busy - cell.side_busy:.0%} of the core that load and upstream need: "
            "end it and run again"
        )
    times = cell.tally.times
    late_us = times["lag"]["p99"] if "lag" in times else 0.0
    if late_us > LAG_P99_US and workload.shape != CLOSED:
        cell.disturbed.append(f"the upstream sent events late: p99 {late_us / 1000:.1f} ms after they were due")


def _upstream_at(line: str, authority: Path | None) -> Upstream:
    host, port = address_in(line)
    return Upstream(host, port, authority)
