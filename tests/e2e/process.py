"""The commands as processes, started by a test and ended by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

BIN = Path(sys.executable).parent


@dataclass
class Running:
    """A process that has said where it listens."""

    process: trio.Process
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        with trio.fail_after(30):
            return await self.process.wait()


@asynccontextmanager
async def running(
    *command: str, folder: Path, ready: str, stderr: int | None = None, **environ: str
) -> AsyncIterator[Running]:
    """Start `command` in `folder`, wait for its line that begins with `ready`, and kill it at the end.

    Args:
        stderr: a descriptor for its stderr, in place of a file.
    """
    log = folder / f"{command[0]}-{os.urandom(3).hex()}.log"
    with log.open("wb") as file:
        process: trio.Process = await trio.lowlevel.open_process(
            [str(BIN / command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=file if stderr is None else stderr,
            cwd=folder,
            env={**os.environ, **environ},
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        output = b""
        with trio.fail_after(20):
            while not any(line.startswith(ready) for line in output.decode().splitlines(keepends=True) if "\n" in line):
                piece = await process.stdout.receive_some()
                assert piece, f"{command} ended: {log.read_text()}"
                output += piece
        line = next(line for line in output.decode().splitlines() if line.startswith(ready))
        yield Running(process, line.removeprefix(ready).strip(), log)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            await process.stdout.aclose()  # type: ignore[union-attr]


def tproxy(folder: Path, *arguments: str, **environ: str) -> AbstractAsyncContextManager[Running]:
    """`tproxy serve` with the config in `folder`, ready to serve."""
    ready = "tproxy listening on "
    return running("tproxy", "serve", *arguments, folder=folder, ready=ready, stderr=None, **environ)


async def run(*command: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    call = partial(
        subprocess.run,
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return await trio.to_thread.run_sync(call)


@asynccontextmanager
async def hypercorn(folder: Path) -> AsyncIterator[trio.Process]:
    """hypercorn's own command, once it accepts connections. It says nothing on stdout."""
    command = [str(BIN / "hypercorn"), "--config", "config.toml", "tproxy:app"]
    with (folder / "hypercorn.log").open("wb") as output:
        process: trio.Process = await trio.lowlevel.open_process(
            command, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
    try:
        with trio.fail_after(20):
            while True:
                assert process.poll() is None, (folder / "hypercorn.log").read_text()
                if "started" in (folder / "hypercorn.log").read_text():
                    break
                await trio.sleep(0.02)
        yield process
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
