"""The processes of a run: started on their cores, known to be ready, measured from outside, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0
END_SECONDS = 30.0
LINE_BYTES = 1_000_000
ASKED_TO_END = (
    0,
    -signal.SIGTERM,
    128 + signal.SIGTERM,
)  # the last: of a program that tells its signal as a shell does
TICKS = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)
PAGE = os.sysconf("SC_PAGE_SIZE")
PR_SET_PDEATHSIG = 1  # prctl(2)


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

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._stdout: trio.lowlevel.FdStream | None = None
        if process.stdout is not None:
            with process.stdout as pipe:
                self._stdout = trio.lowlevel.FdStream(os.dup(pipe.fileno()))
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, timeout: float = READY_SECONDS) -> str:
        """The next line of its standard output.

        Raises:
            BenchFault: it ended, or said nothing for `timeout` seconds.
        """
        assert self._stdout is not None
        with trio.move_on_after(timeout) as limit:
            await trio.lowlevel.checkpoint()
            while b"\n" not in self._buffer:
                data = await self._stdout.receive_some(65_536)
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
        """User and system time so far, of all its threads, ended or not, and of the processes that it started."""
        return sum(cpu_seconds(pid) for pid in self._family())

    def resident_bytes(self) -> int:
        """Resident memory now (proc(5), statm); pages that several processes share are counted in each."""
        return sum(_resident_pages(pid) for pid in self._family()) * PAGE

    def _family(self) -> list[int]:
        found = [self.pid]
        for pid in found:  # grows while it is walked
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in _told(children).split()]
        return found

    async def end(self) -> None:
        """Ask it to end, and wait; kill it when it does not.

        Raises:
            BenchFault: it had to be killed, or it had failed.
        """
        self._process.terminate()
        with trio.move_on_after(END_SECONDS):
            code = await self.ended()
            if code not in ASKED_TO_END:
                raise BenchFault(f"{self.name} ended with {code}: {self.tail()}")
            return
        raise BenchFault(f"{self.name} did not end within {END_SECONDS:.0f} s of SIGTERM")

    async def ended(self) -> int:
        """Wait for its end; returns its exit code."""
        if self._process.returncode is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        return self._process.wait()

    def kill(self) -> None:
        """End it now, if it still runs, with all that it started and left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@asynccontextmanager
async def running(
    name: str,
    command: Sequence[str],
    cores: frozenset[int],
    home: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    quiet: bool = False,
) -> AsyncIterator[Running]:
    """Run a command on some cores, with its standard error in a file in the directory `home`.

    When the block ends, so does the process: asked if all went well, killed if not.

    Args:
        env: variables that it gets beside those of this process.
        quiet: nobody asks for its lines; its standard output goes where its standard error does.
    """
    started = _start(name, command, cores, home / f"{name}.log", {**os.environ, **(env or {})}, cwd, quiet)
    try:
        yield started
        await started.end()
    finally:
        started.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
            await started.ended()


def _start(
    name: str, command: Sequence[str], cores: frozenset[int], log: Path, env: Mapping[str, str], cwd: Path, quiet: bool
) -> Running:
    """Start a process from this thread.

    Linux ends it when the thread that started it ends. Trio would start it from one that soon does.
    """
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stderr if quiet else subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env=env,
            start_new_session=True,  # a group of its own, so that it can be killed with its children
            preexec_fn=partial(_before, cores),
        )
    return Running(name, process, log)


def _before(cores: frozenset[int]) -> None:
    """In the new process: what its first thread begins with, and all others inherit.

    However the bench ends, it is asked to end too. SIGTERM, and not SIGKILL, so that those with workers end these.
    """
    os.sched_setaffinity(0, cores)
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def busy_seconds() -> dict[int, float]:
    """How long each core has worked since the machine started, for whomever, stolen time included (proc(5), stat)."""
    busy = {}
    for core, (user, nice, system, _idle, _iowait, irq, softirq, steal, *_) in _ticks().items():
        busy[core] = (user + nice + system + irq + softirq + steal) / TICKS
    return busy


def interrupt_seconds() -> dict[int, float]:
    """How long each core was in interrupts, most of them its own network traffic; 0 where processes are charged it.

    A kernel that charges nobody (CONFIG_IRQ_TIME_ACCOUNTING) is one that tells of hardware interrupts at all.
    """
    ticks = _ticks()
    apart = any(fields[5] for fields in ticks.values())
    return {core: (fields[5] + fields[6]) / TICKS if apart else 0.0 for core, fields in ticks.items()}


def _ticks() -> dict[int, list[int]]:
    """By core, the columns of proc(5), stat."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return {int(name[3:]): list(map(int, rest)) for name, *rest in lines if name.startswith("cpu") and name != "cpu"}


def cpu_seconds(pid: int) -> float:
    """What a process has used, to the nanosecond, which /proc tells in ticks only (clock_getcpuclockid(3))."""
    clock = ctypes.c_int()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        return 0.0  # it has ended
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0


def _resident_pages(pid: int) -> int:
    fields = _told(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) if fields else 0


def _told(file: Path) -> str:
    """What /proc tells; nothing of a child that has ended meanwhile."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
