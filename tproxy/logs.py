"""Logs: one JSON object a line (or text for a terminal) on stderr, for our own lines and those of the libraries.

    structlog ──┐
                ├──► Lines: at most LINES_MAX ──► thread: rendered, one write(2) for some of them
    logging ────┘

- A line of plain values is rendered by the thread, which wakes for many lines at a time: one is said for each exchange,
  on the loop that all streams share. What else is said is rendered where it is said, for it may change, or be a
  traceback.

- To log never waits and never raises: whoever reads stderr may be slow, stuck or gone, and the disk may be full. Lines
  that cannot be kept or written are counted, and the count is written as soon as something can be.
- The thread writes to the descriptor itself: a thread that hangs in Python's own buffered stderr would abort the
  interpreter when it ends.
- No line holds a body or a key. So tracebacks come without local variables.

stdout is left to the lines that programs wait for.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from tproxy.plaintext import plain

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

LINES_MAX = 10_000  # lines that wait for the thread; past it, they are dropped
WRITTEN_AT_ONCE = 32  # some 30 kB: a pipe holds 64
FLUSH_SECONDS = 1.0
GATHER_SECONDS = 0.01  # from the first line that waits until the thread writes: others then go with it

# They write every request down with its URL, which may be a secret, and its headers.
_TALKATIVE: Final = ("httpx2", "httpcore2")
_PLAIN: Final = {str, int, float, bool, type(None)}


class Lines:
    """A file to write lines to that never blocks; a daemon thread hands them to `descriptor`.

    Args:
        descriptor: an open file, of any kind.

    Attributes:
        notice: says, as a line, how many were dropped.
        dropped: how many were, since the start.
    """

    def __init__(self, descriptor: int) -> None:
        self.notice: Callable[[int], str] = "{} lines of this log were dropped\n".format
        self._descriptor = descriptor
        self._waiting: deque[str | Callable[[], str]] = deque()
        self.dropped = 0
        self._untold = 0
        self._broken_off = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str | Callable[[], str]) -> None:
        """Keep a line, which ends with a newline, until it is written; or what makes it, to be called by the thread."""
        with self._changed:
            if len(self._waiting) < LINES_MAX:
                self._waiting.append(line)
                self._changed.notify_all()
            else:
                self._drop()

    def drop(self) -> None:
        """Count a line that could not even be made."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def flush(self) -> None:
        """Nothing: loggers call this after each line, and must not wait. See `drain`."""

    def drain(self, seconds: float) -> bool:
        """Wait until all is written or dropped, for so long at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
            time.sleep(GATHER_SECONDS)  # noqa: TID251 (no loop runs on this thread)
            while self._waiting:
                self._write_first()

    def _write_first(self) -> None:
        """Write the lines that have waited longest: some at a time, for each write costs as much as a line."""
        self._tell()
        with self._changed:
            lines = list(islice(self._waiting, WRITTEN_AT_ONCE))
        texts = [text for line in lines if (text := _text(line)) is not None]
        lost = len(lines) - self._put(texts)
        with self._changed:
            for _ in range(lost):
                self._drop()
        if len(lines) - lost == len(texts):  # else something could not be written, and neither can this
            self._tell()
        self._done(len(lines))

    def _tell(self) -> None:
        """Say how many lines were dropped of which that was not said yet."""
        with self._changed:
            dropped = self._untold
        if dropped and self._put([self.notice(dropped)]):
            with self._changed:
                self._untold -= dropped

    def _done(self, count: int) -> None:
        """Let go of the lines that have waited longest: only now, for `drain` waits for it."""
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            self._changed.notify_all()

    def _put(self, texts: Sequence[str]) -> int:
        """Write lines, however long that takes. Returns how many are there whole: not all if it failed."""
        data = [text.encode("utf-8", "backslashreplace") for text in texts]
        rest = memoryview(b"\n" * self._broken_off + b"".join(data))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # someone who shares it made it non-blocking
                select.select([], [self._descriptor], [])
            except (OSError, ValueError):
                return self._whole(data, len(rest))
            else:
                self._broken_off = False
        return len(texts)

    def _whole(self, data: Sequence[bytes], unwritten: int) -> int:
        """How many lines are there whole, where so many bytes at their end are not."""
        for count in range(len(data), 0, -1):
            if unwritten <= 0:
                return count
            self._broken_off = self._broken_off or unwritten < len(data[count - 1])
            unwritten -= len(data[count - 1])
        return 0


def _made_plain(logger: Any, method: str, event: EventDict) -> EventDict:
    """A processor: no value steers the terminal. What a library says, and a traceback, may have lines."""
    return {
        name: plain(value) if isinstance(value, str) and name not in ("event", "exception") else value
        for name, value in event.items()
    }


def _text(line: str | Callable[[], str]) -> str | None:
    """A line that may still have to be made; None if it cannot be."""
    try:
        return line if isinstance(line, str) else line()
    except Exception:
        return None


class _Handler(logging.StreamHandler[TextIO]):
    """The standard library's lines. One that cannot be rendered is counted, where Python would print why on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        cast(Lines, self.stream).drop()


class _Said:
    """What structlog hands to a logger of its own: a line, or what makes it."""

    def __init__(self, lines: Lines) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = lines.write


_lines: Lines | None = None
_say_later: Callable[[str, Callable[[], dict[str, Any]]], None] | None = None


def configure(level: Level, format: Format) -> None:
    """Set up logging for the process. May be called again, with another level or format."""
    global _lines, _say_later
    if _lines is None:
        _lines = Lines(_stderr())
        atexit.register(flush)
    lines, file = _lines, cast(TextIO, _lines)
    # Python's own level numbers; structlog's filter and the standard library's agree on them.
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor
    if format == "json":
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(without_locals))
        renderer = structlog.processors.JSONRenderer(separators=(",", ":"), ensure_ascii=False)
    else:
        shared.append(_made_plain)
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr is not None and sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    processors = [*shared, renderer]

    def render(logger: Any, method: str, event: EventDict) -> Any:
        made: Any = event
        try:
            for processor in processors:
                made = processor(logger, method, made)
        except Exception:
            lines.drop()
            raise structlog.DropEvent from None
        return made

    def of_plain_values(event: EventDict, at: float) -> str:
        event["timestamp"] = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
        if format == "console":
            event = dict(_made_plain(None, event["level"], event))
        else:
            with suppress(ValueError, OverflowError):  # what only the other one takes: a lone surrogate, a huge number
                return msgspec.json.encode(event).decode() + "\n"
        return str(renderer(None, event["level"], event)) + "\n"

    def gathered(event: str, fields: Callable[[], dict[str, Any]], at: float) -> str:
        return of_plain_values({**fields(), "event": event, "level": "info"}, at)

    def say_later(event: str, fields: Callable[[], dict[str, Any]]) -> None:
        if number <= logging.INFO:
            lines.write(partial(gathered, event, fields, time.time()))

    def say(logger: Any, method: str, event: EventDict) -> tuple[tuple[str | Callable[[], str]], dict[str, Any]]:
        if _PLAIN.issuperset(map(type, event.values())) and "exc_info" not in event:
            event["level"] = method
            return (partial(of_plain_values, event, time.time()),), {}
        return (f"{render(logger, method, event)}\n",), {}

    _say_later = say_later
    said = _Said(lines)
    wrapper = structlog.make_filtering_bound_logger(number)
    structlog.configure(
        processors=[say],
        wrapper_class=wrapper,
        logger_factory=lambda *_: said,
        cache_logger_on_first_use=False,
    )
    returning = structlog.wrap_logger(structlog.testing.ReturnLogger(), processors=[render], wrapper_class=wrapper)
    lines.notice = lambda count: f"{returning.error('lines of this log were dropped', count=count)}\n"
    handler = _Handler(file)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def later(event: str, fields: Callable[[], dict[str, Any]]) -> None:
    """Say a line of level `info` whose fields, plain values all, are gathered by the log's thread.

    For what is said of each exchange: the loop that all streams share does little more than to remember it.
    """
    if _say_later is not None:
        _say_later(event, fields)
    else:  # logging has not been set up
        structlog.get_logger().info(event, **fields())


def dropped() -> int:
    """How many lines could not be kept or written, since the start."""
    return 0 if _lines is None else _lines.dropped


def flush() -> None:
    """Wait until the lines are written, for `FLUSH_SECONDS` at most. The end of the process does this by itself."""
    if _lines is not None:
        _lines.drain(FLUSH_SECONDS)


def _stderr() -> int:
    """The descriptor of stderr. If the process was started without one, its number may now be another file's."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return os.open(os.devnull, os.O_WRONLY)
