"""The process that keeps captures: `python -m tproxy.capture.keeper`, a child of the proxy's (`keeping` is its side).

It reads batches from its stdin, and answers each on its stdout: joined, redacted, written. An expression that takes
for ever, a disk that hangs, a body that is large: they are its own affair, and cost no stream anything.

Both ways a message is its length in four bytes, and MessagePack. All that it needs comes with each batch, the patterns
too: nothing is in its arguments or its environment, where others could read it.

It never outlives the proxy for long. Its stdin ends with the proxy. While a batch is worked on, when nothing in Python
may be able to run, an alarm of the system ends it. Signals that are meant for the proxy are not heeded: it is needed
until the proxy has nothing more to keep.

Nothing of a body is ever said: of a bug it tells its kind and its place. It imports neither trio nor the server.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from tproxy.capture.record import Kept, Taken, develop
from tproxy.capture.shelf import Shelf
from tproxy.protocol.redact import Redactor

PREFIX = 4  # bytes of a length
NICE = 10
GRACE_SECONDS = 2  # the proxy, which can say why, is the first to end it


class Tidy(msgspec.Struct, frozen=True):
    """What is too old or too much, and is to go."""

    now_us: int
    days: int
    most_bytes: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to do.

    Attributes:
        path: the file.
        seconds: what it may take. The process ends, where that is past and the proxy does not end it.
    """

    path: str
    patterns: tuple[str, ...]
    max_bytes: int
    seconds: int
    taken: list[Taken] = []
    tidy: Tidy | None = None


class Done(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        kept: captures that were written.
        fault: why the others could not be, where it was the file.
        bugs: what went wrong for a bug of ours: kind and place, with the capture's id where it is about one.
    """

    kept: int = 0
    fault: str | None = None
    bugs: list[str] = []


class Keeper:
    """Does what a batch says."""

    def __init__(self) -> None:
        self._shelf: Shelf | None = None

    def do(self, batch: Batch) -> Done:
        """Keep some, and tidy up. What cannot be done is told, and raises nothing."""
        redactor = Redactor([re.compile(pattern) for pattern in batch.patterns])  # `re` has them from before
        rows: list[Kept] = []
        bugs: list[str] = []
        for taken in batch.taken:
            try:
                rows.append(develop(taken, redactor, batch.max_bytes))
            except Exception as fault:
                bugs.append(f"{taken.id}: {_place(fault)}")
        kept = 0
        try:
            shelf = self._of(Path(batch.path))
            if rows:
                shelf.put(rows)
                kept = len(rows)
            if batch.tidy is not None:
                shelf.tidy(batch.tidy.now_us, batch.tidy.days, batch.tidy.most_bytes)
        except (sqlite3.Error, OSError) as fault:
            return Done(kept, str(fault), bugs)
        except Exception as fault:
            bugs.append(_place(fault))
        return Done(kept, None, bugs)

    def close(self) -> None:
        """Let go of the file."""
        if self._shelf is not None:
            self._shelf.close()

    def _of(self, path: Path) -> Shelf:
        if self._shelf is None or self._shelf.path != path:
            self.close()
            self._shelf = Shelf(path)
        return self._shelf


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer every batch until there are no more."""
    keeper, decoder = Keeper(), msgspec.msgpack.Decoder(Batch)
    while len(prefix := source.read(PREFIX)) == PREFIX:
        length = int.from_bytes(prefix)
        data = source.read(length)
        if len(data) < length:
            break
        batch = decoder.decode(data)
        signal.alarm(batch.seconds + GRACE_SECONDS)
        answer = msgspec.msgpack.encode(keeper.do(batch))
        signal.alarm(0)
        sink.write(len(answer).to_bytes(PREFIX) + answer)
        sink.flush()
    keeper.close()


def main() -> None:
    """Run as the child."""
    os.nice(NICE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process, whatever Python is at
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        with suppress(BrokenPipeError):  # the proxy is gone
            serve(sys.stdin.buffer, sys.stdout.buffer)
    except Exception as fault:
        sys.stderr.write(f"the process that keeps captures ends for a bug: {_place(fault)}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # nothing is left to be done, and a pipe that is broken must not be flushed again


def _place(fault: Exception) -> str:
    """What an exception is and where it was raised; not what it says, which may be of a body."""
    frames = traceback.extract_tb(fault.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(fault).__name__ + where


if __name__ == "__main__":
    main()
