"""The proxy's side of the process that keeps captures (`keeper`): it is started, given batches, killed, started anew.

One batch is with it at a time. Where it takes too long, or the process dies, the process is killed and the batch is
lost; the next process is started after a pause that doubles each time, up to `PAUSE_MOST`. One that even SIGKILL does
not end, since the disk hangs, is the last one until it has ended.

No thread is held while it works: the loop writes to a pipe, and reads from another one. Only to start it takes a
thread, for some milliseconds, of a limiter of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec
import trio

from tproxy.capture.keeper import PREFIX, Batch, Done

# -P: what lies about in the working directory is not imported.
COMMAND = (sys.executable, "-P", "-m", "tproxy.capture.keeper")
PAUSE = 1.0
PAUSE_MOST = 60.0
ENDING_SECONDS = 5.0
KILLED_SECONDS = 1.0
_POLL_SECONDS = 0.01
_ANSWER_BYTES = 1 << 20
# What Python needs of the environment. Credentials are in there as well, and are not passed on.
_NAMES = frozenset({"HOME", "LANG", "PATH", "SQLITE_TMPDIR", "TMPDIR", "TZ", "VIRTUAL_ENV"})
_PREFIXES = ("PYTHON", "LC_", "LD_", "DYLD_")

_decoder = msgspec.msgpack.Decoder(Done)


class Lost(Exception):
    """A batch was not kept, and its process is gone. It says why."""


class _Child:
    """A process that runs, and the pipes to it."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, source: int) -> None:
        self.process = process
        self._to = trio.lowlevel.FdStream(to)
        self._from = trio.lowlevel.FdStream(source)

    async def ask(self, data: bytes) -> bytes:
        """Give it a message, and read its answer."""
        await self._to.send_all(len(data).to_bytes(PREFIX))
        await self._to.send_all(data)
        length = int.from_bytes(await self._read(PREFIX))
        if length > _ANSWER_BYTES:
            raise EOFError
        return await self._read(length)

    async def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = await self._from.receive_some(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    async def ended(self) -> None:
        """Let it end by itself, and wait until it has."""
        await trio.aclose_forcefully(self._to)
        while self.process.poll() is None:  # noqa: ASYNC110 (a moment, and no thread is held for it)
            await trio.sleep(_POLL_SECONDS)

    async def kill(self) -> None:
        """End it now. Returns when it has ended, or cannot be."""
        self.process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(KILLED_SECONDS):
            await trio.aclose_forcefully(self._from)
            await self.ended()


class Keeping:
    """Has batches kept by a process of their own, which is started with the first one.

    Args:
        command: of the process.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._child: _Child | None = None
        self._killed: _Child | None = None  # the last one
        self._pause = 0.0
        self._again = 0.0
        self._starting = trio.CapacityLimiter(1)

    @property
    def pid(self) -> int | None:
        """That of the process; None where there is none."""
        return None if self._child is None else self._child.process.pid

    async def keep(self, batch: Batch) -> Done:
        """Have a batch kept, in its seconds.

        Raises:
            Lost: it was not.
        """
        await trio.sleep_until(self._again)
        if self._child is not None and self._child.process.poll() is not None:
            await self.kill()  # it ended while it had nothing to do, which costs nothing
        data = msgspec.msgpack.encode(batch)
        done: Done | None = None
        try:
            with trio.fail_after(batch.seconds):
                child = self._child or await self._start()
                done = _decoder.decode(await child.ask(data))
        except trio.TooSlowError:
            raise Lost(f"the process that keeps them took more than {batch.seconds:g} s, and was killed") from None
        except (EOFError, trio.BrokenResourceError, msgspec.MsgspecError):
            raise Lost("the process that keeps them died") from None
        except OSError as fault:
            raise Lost(f"the process that keeps them cannot be started: {fault}") from None
        finally:
            if done is None:
                self._pause = min(max(PAUSE, 2 * self._pause), PAUSE_MOST)
                self._again = trio.current_time() + self._pause
                with trio.CancelScope(shield=True), trio.move_on_after(KILLED_SECONDS):
                    await self.kill()
        self._pause = 0.0
        return done

    async def end(self) -> None:
        """Let the process end, if there is one; kill it where it does not in `ENDING_SECONDS`."""
        if self._child is not None:
            with trio.move_on_after(ENDING_SECONDS):
                await self._child.ended()
            await self.kill()

    async def kill(self) -> None:
        """Kill it, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            self._killed = child
            await child.kill()

    async def _start(self) -> _Child:
        if self._killed is not None and self._killed.process.poll() is None:
            raise OSError("the one before was killed, and does not end")
        self._killed = None
        # Not abandoned where it is cancelled: nobody would know of the process.
        self._child = _Child(*await trio.to_thread.run_sync(_open, self._command, limiter=self._starting))
        return self._child


def _open(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], int, int]:
    """In a thread: a process, and our ends of the pipes to it and from it."""
    ends: list[int] = []
    try:
        ends += [*os.pipe(), *os.pipe()]  # none of them is inherited, but by the names of stdin and stdout
        source, to, ours, sink = ends
        environment = _environment(os.environ)
        process = subprocess.Popen(command, stdin=source, stdout=sink, env=environment, start_new_session=True)  # noqa: S603 (ours)
    except BaseException:
        for end in ends:
            os.close(end)
        raise
    os.close(source)
    os.close(sink)
    return process, to, ours


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
