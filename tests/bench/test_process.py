"""Processes: what they say, what they use, and that they end."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from bench.process import ROOT, BenchFault, Running, busy_seconds, cpu_seconds, interrupt_seconds, running

CORES = frozenset(os.sched_getaffinity(0))
WAIT = "import signal, sys; print('ready', flush=True); signal.pause()"


def python(code: str, home: Path, cores: frozenset[int] = CORES) -> AbstractAsyncContextManager[Running]:
    return running("it", [sys.executable, "-c", code], cores, home)


async def to_the_end(process: Running) -> None:
    """Read all lines; the pipe ends when nobody holds the other end of it."""
    while True:
        await process.line(timeout=5)


def threads(pid: int) -> list[int]:
    return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]


def started_by(thread: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{thread}/children").read_text().split()]


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


async def test_what_it_leaves_behind_is_killed(tmp_path: Path) -> None:
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {WAIT!r}]).pid, flush=True)"
    async with python(code, tmp_path) as process:
        assert runs(int(await process.line()))
    with pytest.raises(BenchFault, match="it ended early"):
        await to_the_end(process)


async def test_all_its_threads_run_on_the_cores_that_it_was_given(tmp_path: Path) -> None:
    core = min(CORES)
    code = f"import threading; threading.Thread(target=lambda: {'signal.pause()'}, daemon=True).start(); {WAIT}"
    async with python(f"import signal; {code}", tmp_path, frozenset([core])) as process:
        await process.line()
        found = [os.sched_getaffinity(thread) for thread in threads(process.pid)]
    assert found == [{core}, {core}]


async def test_it_ends_when_the_bench_is_killed(tmp_path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    inner = f"import signal, socket; it = socket.create_connection(('127.0.0.1', {port})); signal.pause()"
    code = f"""
import sys, trio
from pathlib import Path
from bench.process import running
async def run():
    async with running("it", [sys.executable, "-c", {inner!r}], {CORES!r}, Path({str(tmp_path)!r})):
        await trio.sleep_forever()
trio.run(run)
"""
    bench = await trio.lowlevel.open_process([sys.executable, "-c", code], cwd=ROOT)
    with trio.fail_after(20):
        async with listener, await listener.accept() as connection:
            bench.kill()
            await bench.wait()
            assert await connection.receive_some() == b""


async def test_the_thread_that_starts_it_lasts(tmp_path: Path) -> None:
    """For it ends with that thread."""
    async with python(WAIT, tmp_path) as process:
        await process.line()
        assert process.pid in started_by(os.getpid())


async def test_its_surroundings(tmp_path: Path) -> None:
    code = f"import os; print(os.environ['BENCH_SAYS'], len(os.environ) > 1, flush=True); open('here', 'w'); {WAIT}"
    command = [sys.executable, "-c", code]
    async with running("it", command, CORES, tmp_path, env={"BENCH_SAYS": "hello"}, cwd=tmp_path) as process:
        assert await process.line() == "hello True"
        assert await process.line() == "ready"
    assert (tmp_path / "here").exists()


async def test_a_quiet_one_speaks_into_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"print('x' * 1_000_000); {WAIT}"]
    async with running("it", command, CORES, tmp_path, quiet=True) as process:
        with trio.fail_after(5):
            while not process.tail().endswith("ready"):  # noqa: ASYNC110  it is not on this one's clock
                await trio.sleep(0.01)


def test_cpu_is_read_to_the_nanosecond() -> None:
    before = time.process_time()
    read = cpu_seconds(os.getpid())
    assert before < read < time.process_time()


def test_a_process_that_is_not_there_uses_nothing() -> None:
    assert cpu_seconds(2**22 + 1) == 0  # above the highest that Linux gives


async def test_the_cores_of_the_machine_are_read() -> None:
    await trio.lowlevel.checkpoint()
    assert busy_seconds().keys() >= CORES
    assert all(seconds > 0 for seconds in busy_seconds().values())


@pytest.mark.parametrize(("irq", "seconds"), [(0, 0.0), (30, 0.5)], ids=["charged to processes", "apart"])
def test_interrupts_that_nobody_is_charged(monkeypatch: pytest.MonkeyPatch, irq: int, seconds: float) -> None:
    text = f"cpu  1 1 1 1 1 1 1 1 0 0\ncpu3 100 0 100 900 9 {irq} 20 7 0 0\nintr 5\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    monkeypatch.setattr("bench.process.TICKS", 100)
    assert interrupt_seconds() == {3: seconds}
    assert busy_seconds() == {3: (227 + irq) / 100}
