"""The processes of a run: started on their cores, known to be ready, measured from outside, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0
END_SECONDS = 30.0
LINE_BYTES = 1_000_000
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class BenchFault(Exception):
    """The run cannot be trusted, or cannot be made. Its text is for the reader of the report."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the proxy, the upstream and the load run on."""

    proxy: frozenset[int]
    upstream: frozenset[int]
    load: frozenset[int]

    @classmethod
    def share(cls, cores: Sequence[int]) -> Cores:
        """One for each of the three; of two, one for the proxy alone. A single core is shared by all."""
        one = [frozenset([core]) for core in cores]
        match one:
            case [only]:
                return cls(only, only, only)
            case [first, second]:
                return cls(first, second, second)
            case [first, second, third, *_]:
                return cls(first, second, third)
        raise BenchFault("no core to run on")


class Running:
    """A process that runs, with those that it started."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, timeout: float = READY_SECONDS) -> str:
        """The next line of its standard output.

        Raises:
            BenchFault: it ended, or said nothing for `timeout` seconds.
        """
        stdout = self._process.stdout
        assert stdout is not None
        with trio.move_on_after(timeout) as limit:
            await trio.lowlevel.checkpoint()
            while b"\n" not in self._buffer:
                data = await stdout.receive_some(65_536)
                if not data or len(self._buffer) > LINE_BYTES:
                    raise BenchFault(f"{self.name} ended early: {self.tail()}")
                self._buffer += data
        if limit.cancelled_caught:
            raise BenchFault(f"{self.name} said nothing for {timeout:.0f} s: {self.tail()}")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def tail(self) -> str:
        """The end of what it wrote to its standard error."""
        return self.log.read_text(errors="replace")[-1000:].strip() or "no message"

    def cpu_seconds(self) -> float:
        """User and system time so far, of all its threads and of the processes that it started (proc(5), stat)."""
        return sum(_cpu_seconds(pid) for pid in self._family())

    def resident_bytes(self) -> int:
        """Resident memory now (proc(5), statm); pages that several processes share are counted in each."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in self._family())

    def _family(self) -> list[int]:
        found = [self.pid]
        for pid in found:  # grows while it is walked
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found

    async def end(self) -> None:
        """Ask it to end, and wait; kill it when it does not.

        Raises:
            BenchFault: it had to be killed, or it had failed.
        """
        self._process.terminate()
        with trio.move_on_after(END_SECONDS):
            code = await self._process.wait()
            if code not in (0, -signal.SIGTERM):
                raise BenchFault(f"{self.name} ended with {code}: {self.tail()}")
            return
        raise BenchFault(f"{self.name} did not end within {END_SECONDS:.0f} s of SIGTERM")

    def kill(self) -> None:
        """End it now, if it still runs, with those that it started."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


@asynccontextmanager
async def running(name: str, command: Sequence[str], cores: frozenset[int], home: Path) -> AsyncIterator[Running]:
    """Run a command on some cores, with its standard error in a file in the directory `home`.

    When the block ends, so does the process: asked if all went well, killed if not.
    """
    log = home / f"{name}.log"
    with log.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            start_new_session=True,  # a group of its own, so that it can be killed with its children
        )
    started = Running(name, process, log)
    try:
        os.sched_setaffinity(process.pid, cores)
        yield started
        await started.end()
    finally:
        started.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
            await process.wait()


def busy_seconds() -> dict[int, float]:
    """How long each core has worked since the machine started, for whomever, stolen time included (proc(5), stat)."""
    busy = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            busy[int(name[3:])] = (user + nice + system + irq + softirq + steal) / TICKS
    return busy


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
