"""A run: each workload through all subjects in turn, A B A B, so that the machine's drift meets all alike."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from bench.cell import Cell, measure
from bench.process import ROOT, BenchFault, Cores
from bench.subjects import SUBJECTS, Subject
from bench.workloads import Workload

LIBRARIES = ("trio", "h11", "hypercorn", "msgspec")


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run: where and how it was made, and every cell of it."""

    facts: dict[str, object]
    workloads: tuple[Workload, ...]
    cells: tuple[Cell, ...]

    def of(self, workload: Workload, subject: str) -> list[Cell]:
        """The cells of one workload and subject, in the order of the rounds."""
        return [cell for cell in self.cells if (cell.workload, cell.subject) == (workload.name, subject)]

    def subjects(self) -> list[str]:
        """The names of those that ran, in the order of the table."""
        return list(dict.fromkeys(cell.subject for cell in self.cells))

    def faults(self) -> list[str]:
        """Why nothing of this should be reported; empty if it should."""
        return [f"{c.workload}, {c.subject}, round {c.turn + 1}: {fault}" for c in self.cells for fault in c.faults]

    def as_json(self) -> dict[str, object]:
        """All of it, for a file."""
        return asdict(self)


async def run(
    workloads: Sequence[Workload], subjects: Sequence[Subject], rounds: int, progress: Callable[[str], None]
) -> Results:
    """Run every workload through every subject, `rounds` times; stop at the first cell that has a fault.

    Args:
        subjects: installed ones; see `installed`.
        progress: is told what runs next.

    Raises:
        BenchFault: a process did not do its part.
    """
    cores = Cores.share(sorted(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores.load)  # what this process does must not be counted in the proxy's time
    raise_descriptor_limit(max(workload.connections for workload in workloads))
    facts = machine_facts(cores) | {
        "rounds": rounds,
        "subjects": {subject.name: subject.version() for subject in subjects},
        "not_installed": [subject.name for subject in SUBJECTS if subject.version() is None],
    }
    cells = []
    await trio.lowlevel.checkpoint()
    for workload in workloads:
        for turn in range(rounds):
            for subject in subjects:
                progress(f"{workload.name}: {subject.name}, round {turn + 1} of {rounds}")
                cells.append(await measure(workload, subject, cores, turn=turn))
                if cells[-1].faults:
                    return Results(facts, tuple(workloads), tuple(cells))
    return Results(facts, tuple(workloads), tuple(cells))


def installed(names: Sequence[str] = ()) -> list[Subject]:
    """The subjects that are installed here.

    Args:
        names: these alone; empty: all.

    Raises:
        BenchFault: a named one is unknown or not installed.
    """
    here = [subject for subject in SUBJECTS if subject.version() is not None]
    missing = set(names) - {subject.name for subject in here}
    if missing:
        raise BenchFault(f"not installed: {', '.join(sorted(missing))}")
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
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "pinned": {name: sorted(getattr(cores, name)) for name in ("proxy", "upstream", "load")},
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """The commit that is measured, with a `+` where the tree differs from it. None: not a git tree."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
