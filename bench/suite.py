"""A run: the cells of a plan, one after the other, and what they were measured on.

A fault of tproxy or of a floor ends the run: there is nothing to report. A peer that fails is left out, with the
reason, and the others go on.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sqlite3
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import native
from bench.cell import Cell, measure
from bench.plan import Plan, Step
from bench.process import ROOT, BenchFault, Cores
from bench.progress import Progress
from bench.subjects import SUBJECTS, Subject
from bench.workloads import Workload

REPEATS = 2  # of a cell in which the bench itself was disturbed
LIBRARIES = ("trio", "h11", "hypercorn", "msgspec")


@dataclass(frozen=True, slots=True)
class Failure:
    """A peer that could not do a workload, and why. It is left out of what is told of that workload."""

    workload: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run: where and how it was made, and every cell of it."""

    facts: dict[str, object]
    workloads: tuple[Workload, ...]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...] = ()

    def of(self, workload: Workload, subject: str) -> list[Cell]:
        """The cells of one workload and subject, in the order of the rounds."""
        return [cell for cell in self.cells if (cell.workload, cell.subject) == (workload.name, subject)]

    def subjects(self, workload: Workload | None = None) -> list[str]:
        """The names of those that ran (this workload), in the order of the table."""
        ran = dict.fromkeys(c.subject for c in self.cells if workload is None or c.workload == workload.name)
        order = [subject.name for subject in SUBJECTS]
        return sorted(ran, key=lambda name: order.index(name) if name in order else len(order))

    def failures_of(self, workload: Workload) -> list[Failure]:
        """The peers that could not do it."""
        return [failure for failure in self.failures if failure.workload == workload.name]

    def faults(self) -> list[str]:
        """Why nothing of this should be reported; empty if it should."""
        return [f"{c.workload}, {c.subject}, round {c.turn + 1}: {fault}" for c in self.cells for fault in c.faults]

    def as_json(self) -> bytes:
        """All of it, for a file; see `read`."""
        return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n"


def read(file: Path) -> Results:
    """The run that a file holds.

    Raises:
        BenchFault: it holds none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchFault(f"{file} holds no run: {error}") from None


async def run(plan: Plan, subjects: Sequence[Subject], progress: Progress) -> Results:
    """Run a plan; stop at the first cell that has a fault, unless it is a peer's.

    Raises:
        BenchFault: a process did not do its part.
    """
    cores = Cores.share(sorted(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores.load)  # what this process does must not be counted in the proxy's time
    raise_descriptor_limit(max(workload.connections for workload in plan.workloads))
    facts = machine_facts(cores) | {
        "subjects": {subject.name: subject.version() for subject in subjects},
        "not asked": [s.name for s in SUBJECTS if s.version() is not None and s.name not in {o.name for o in subjects}],
        "not installed": [subject.name for subject in SUBJECTS if subject.version() is None],
        "load and upstream": {workload.name: native.kind(workload) for workload in plan.workloads},
    }
    cells: list[Cell] = []
    failures: dict[tuple[str, str], Failure] = {}
    for step in plan.steps:
        progress.at(step)
        place = step.workload.name, step.subject.name
        if place in failures:
            continue
        try:
            cell = await _measured(step, cores)
        except (BenchFault, OSError) as error:
            if not step.subject.peer:
                raise
            failures[place] = Failure(*place, str(error))
            continue
        if cell.faults and step.subject.peer:
            failures[place] = Failure(*place, "; ".join(cell.faults))
            continue
        cells.append(cell)
        if cell.faults:
            break
    whole = tuple(cell for cell in cells if (cell.workload, cell.subject) not in failures)
    return Results(facts, plan.workloads, whole, tuple(failures.values()))


async def _measured(step: Step, cores: Cores) -> Cell:
    """Measure a cell; again, where the bench itself was disturbed."""
    repeats = 0
    while True:
        cell = await measure(step.workload, step.subject, cores, turn=step.turn)
        cell.repeats = repeats
        if cell.faults or not cell.disturbed:
            return cell
        if repeats == REPEATS:
            cell.faults += cell.disturbed
            return cell
        repeats += 1


def installed(names: Sequence[str] = ()) -> list[Subject]:
    """The subjects that are installed here.

    Args:
        names: these alone; empty: all.

    Raises:
        BenchFault: a named one is unknown or not installed.
    """
    known = [subject.name for subject in SUBJECTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchFault(f"no subject is named {'; '.join(unknown)}; there are: {'; '.join(known)}")
    here = [subject for subject in SUBJECTS if subject.version() is not None]
    missing = sorted(set(names) - {subject.name for subject in here})
    if missing:
        raise BenchFault(f"not installed: {'; '.join(missing)}. Run: make bench-peers")
    return [subject for subject in here if not names or subject.name in names]


def raise_descriptor_limit(connections: int) -> None:
    """Allow as many open files as the hard limit does; the processes started from here inherit it.

    Raises:
        BenchFault: that is too few. A proxy needs two for each connection.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < 2 * connections + 100:
        raise BenchFault(f"{connections:,} connections need more open files than the hard limit, {hard:,}")


def machine_facts(cores: Cores) -> dict[str, object]:
    """What the figures depend on."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "memory": _memory(),
        "hyper-threading": {"0": "off", "1": "on"}.get(_told("/sys/devices/system/cpu/smt/active"), "not known"),
        "governor": _told("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not known",
        "pinned": {name: sorted(getattr(cores, name)) for name in ("proxy", "upstream", "load")},
        "busy before": f"{os.getloadavg()[0]:.2f} processes, in the minute before",
        "system": _line_of("/etc/os-release", "PRETTY_NAME", "=").strip('"') or platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"OpenSSL": ssl.OPENSSL_VERSION, "SQLite": sqlite3.sqlite_version},
    }


def _told(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def _line_of(file: str, name: str, separator: str = ":") -> str:
    lines = (line.partition(separator) for line in _told(file).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _memory() -> str:
    """Of the machine; the kernel's kB are of 1,024 bytes."""
    kib = _line_of("/proc/meminfo", "MemTotal").partition(" ")[0]
    return f"{int(kib) * 1024 / 1e9:.1f} GB" if kib else "not known"


def _commit() -> str:
    """The commit that is measured, with a `+` where the tree differs from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return done.stdout.strip()
