"""Exchanges as lines of JSON in files of a directory.

    exchanges-20261125-000000000001.jsonl    the day (UTC) on which its exchanges ended, and the number of the first

- Names sort as the exchanges do. A file that has reached its size, or whose day is over, is followed by another one.
- A batch is on the disk (fsync of the file, and of the directory where the file is new) before it counts as taken.
- What was written of a batch that could not be written whole is cut off again. After a crash, a last line that is
  torn is cut off before the next one is written, so that every file consists of whole lines at any time that nobody
  writes. A batch whose taking was not noted stands there twice.
- All of it is done by threads. A disk that hangs keeps one thread, and nothing else waits for it; until it is back, no
  other is given to it.

It does not compress and does not lock: the directory is for this process alone to write in.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final

import trio

from tproxy.export.record import encoded
from tproxy.export.sink import BATCH, LINGER_SECONDS, NotTaken
from tproxy.setting_tables import Jsonl
from tproxy.store.feed import Settled

_NAME: Final = re.compile(r"exchanges-(\d{8})-(\d{12,})\.jsonl")
_BLOCK: Final = 65536
_CLOSED: Final = -1  # in place of a descriptor

_WHY: Final = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk is full", errno.EROFS: "it is read-only"}


class JsonlSink:
    """A `Sink` that writes in `settings.directory`, which is set; it is made if it is not there."""

    name = "jsonl"
    batch = BATCH
    linger = LINGER_SECONDS

    def __init__(self, settings: Jsonl) -> None:
        if settings.directory is None:
            raise ValueError("there is no directory")
        self._files = Files(settings.directory, settings.max_file_bytes, settings.keep_files)
        self._writing = threading.Lock()

    async def open(self) -> None:
        """See `Sink`. Nothing is to be loaded that a first `send` could wait for."""
        await trio.lowlevel.checkpoint()

    async def send(self, settled: Sequence[Settled]) -> None:
        """See `Sink`."""
        lines = await encoded(settled)
        pieces = [
            (day, settled[group[0]].seq, b"".join(lines[number] + b"\n" for number in group))
            for day, group in _by_day(settled)
        ]
        await trio.to_thread.run_sync(self._write, pieces, abandon_on_cancel=True)

    async def aclose(self) -> None:
        """See `Sink`."""
        await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    def _write(self, pieces: Sequence[tuple[str, int, bytes]]) -> None:
        if not self._writing.acquire(blocking=False):
            raise NotTaken("the disk hangs")
        try:
            for day, seq, text in pieces:
                self._files.append(day, seq, text)
        except OSError as fault:
            raise NotTaken(_WHY.get(fault.errno or 0) or os.strerror(fault.errno or 0)) from fault
        finally:
            self._writing.release()

    def _close(self) -> None:
        if self._writing.acquire(blocking=False):
            try:
                self._files.close()
            finally:
                self._writing.release()


def ended_day(settled: Settled) -> str:
    """The day (UTC) on which it ended, as `YYYYMMDD`."""
    microseconds = settled.closing.ended_us
    if microseconds is None:
        microseconds = settled.opening.accepted_us
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y%m%d")


def _by_day(settled: Sequence[Settled]) -> list[tuple[str, list[int]]]:
    """The places of those of one day that follow each other."""
    return [(day, list(group)) for day, group in groupby(range(len(settled)), lambda n: ended_day(settled[n]))]


class Files:
    """Appends to the newest file of `directory`, or to a new one. For one thread at a time; every method may block and
    raises `OSError`.

    Args:
        max_bytes: a file of at least so many gets no more.
        keep: when a file is made, only so many of the newest stay; 0: all do.
    """

    def __init__(self, directory: Path, max_bytes: int, keep: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep = keep
        self._file = _CLOSED
        self._path = directory
        self._day = ""
        self._size = 0

    def append(self, day: str, seq: int, lines: bytes) -> None:
        """Write whole lines of one day, the first of which has the number `seq`, and return when they are safe."""
        if not self._is_there():
            self._go_on()
        if self._file == _CLOSED or day > self._day or self._size >= self._max_bytes:
            self._begin(day, seq)
        file, size = self._file, self._size
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        except OSError:
            # Not to be trusted after this: it is opened and looked at anew.
            try:
                os.ftruncate(file, size)
            finally:
                self.close()
            raise
        self._size = size + len(lines)

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, _CLOSED
        if file != _CLOSED:
            os.close(file)

    def _names(self) -> list[str]:
        return sorted(filter(_NAME.fullmatch, os.listdir(self._directory)), key=_order)

    def _go_on(self) -> None:
        """Open the newest file, if there is one, and cut off what is torn."""
        self.close()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = self._names()
        if names:
            self._open(names[-1], 0)
            whole = _whole(self._file)
            if whole != os.fstat(self._file).st_size:
                os.ftruncate(self._file, whole)
                os.fsync(self._file)
            self._size = whole
            self._keep_name()

    def _is_there(self) -> bool:
        """Whether the open file still has its name: what goes into a file that was moved away is never found."""
        if self._file == _CLOSED:
            return False
        here = os.fstat(self._file)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def _keep_name(self) -> None:
        """A new file's name is on the disk with its directory only."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _begin(self, day: str, seq: int) -> None:
        """Make a file. One of that name is there only if it was to be made before, and holds what was given again."""
        self.close()
        self._open(f"exchanges-{day}-{seq:012d}.jsonl", os.O_CREAT)
        self._size = os.fstat(self._file).st_size
        try:
            self._keep_name()
        except OSError:
            self.close()
            raise
        if self._keep:
            for name in self._names()[: -self._keep]:
                os.unlink(self._directory / name)

    def _open(self, name: str, flags: int) -> None:
        self._path = self._directory / name
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        found = _NAME.fullmatch(name)
        self._day = found[1] if found else ""


def _order(name: str) -> tuple[str, int]:
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else ("", 0)


def _whole(file: int) -> int:
    """The bytes up to the end of the last whole line."""
    end = os.fstat(file).st_size
    while end:
        start = max(end - _BLOCK, 0)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
