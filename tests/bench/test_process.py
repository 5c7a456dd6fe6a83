"""Processes: what they say, what they use, and that they end."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from bench.process import BenchFault, Running, busy_seconds, running

CORES = frozenset(os.sched_getaffinity(0))
WAIT = "import signal, sys; print('ready', flush=True); signal.pause()"


def python(code: str, home: Path, cores: frozenset[int] = CORES) -> AbstractAsyncContextManager[Running]:
    return running("it", [sys.executable, "-c", code], cores, home)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_it_is_asked_to_end(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: open('{0}', 'w').close() or exit());" + WAIT
    async with python(code.replace("{0}", str(tmp_path / "asked")), tmp_path) as process:
        assert await process.line() == "ready"
    assert (tmp_path / "asked").exists()
    assert not runs(process.pid)


async def test_it_is_killed_when_the_block_fails(tmp_path: Path) -> None:
    process: Running | None = None

    async def fail() -> None:
        nonlocal process
        async with python(f"import signal; signal.signal(15, signal.SIG_IGN); {WAIT}", tmp_path) as process:
            await process.line()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        await fail()
    assert process is not None
    assert not runs(process.pid)


async def test_it_ends_too_early(tmp_path: Path) -> None:
    with pytest.raises(BenchFault, match="it ended early: out of luck"):
        async with python("import sys; sys.exit('out of luck')", tmp_path) as process:
            await process.line()


async def test_it_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchFault, match="it said nothing for 0 s"):
        async with python("import signal; signal.pause()", tmp_path) as process:
            await process.line(timeout=0.01)


async def test_it_fails_at_its_end(tmp_path: Path) -> None:
    code = f"import signal, os; signal.signal(15, lambda *_: os._exit(3)); {WAIT}"
    with pytest.raises(BenchFault, match="it ended with 3"):
        async with python(code, tmp_path) as process:
            await process.line()


async def test_it_is_measured_and_killed_with_its_children(tmp_path: Path) -> None:
    child = "import signal; sum(range(10_000_000)); print('busy', flush=True); signal.pause()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    async def look() -> None:
        async with python(WAIT, tmp_path) as alone, python(code, tmp_path) as parent:
            await alone.line()
            assert await parent.line() == "busy"
            assert parent.cpu_seconds() > alone.cpu_seconds() + 0.03
            assert parent.resident_bytes() > 1.5 * alone.resident_bytes() > 3_000_000
            parent.kill()
            await parent.line(timeout=5)  # its end is seen when nobody holds the other end of the pipe

    with pytest.raises(BenchFault, match="it ended early"):
        await look()


async def test_it_runs_on_the_cores_that_it_was_given(tmp_path: Path) -> None:
    core = min(CORES)
    async with python(WAIT, tmp_path, frozenset([core])) as process:
        await process.line()
        assert os.sched_getaffinity(process.pid) == {core}


async def test_the_cores_of_the_machine_are_read() -> None:
    await trio.lowlevel.checkpoint()
    assert busy_seconds().keys() >= CORES
    assert all(seconds > 0 for seconds in busy_seconds().values())
