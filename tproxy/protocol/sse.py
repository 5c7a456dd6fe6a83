"""Server-sent events, as the tap reads them (WHATWG HTML, "Server-sent events", sections 9.2.5 and 9.2.6).

Bytes go in as they came from the network, cut anywhere; whole events come out. Rules kept here:
- The events do not depend on the cuts.
- The time is linear in the bytes: what has no line end yet is kept aside and looked at once it has one.
- The memory is bounded by `max_line` + `max_event`, and an event by `MAX_DATA_LINES`. Past a bound the parser gives
  up for good, since what follows would be guesswork.
- Data stays bytes: only the reader knows whether they are JSON, and a cut inside a character does no harm.
- An event as nearly all are, two lines with a name that is known, is taken apart as a whole; the rest is read line by
  line. The two ways give the same, and each may take over from the other at any blank line.

Not known here: HTTP, JSON, and what the events mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
LF = 0x0A
MAX_DATA_LINES = 10_000
_BLANK_LINES = re.compile(rb"\n{3,}")

# The first lines of events as the Messages API sends them.
_NAMES = {
    b"event: " + name.encode(): name
    for name in (
        "content_block_delta",
        "content_block_start",
        "content_block_stop",
        "error",
        "message_delta",
        "message_start",
        "message_stop",
        "ping",
    )
}
_LONGEST_NAME = max(map(len, _NAMES))
_DATA = len(b"data: ")
_tuple = tuple.__new__


class Event(NamedTuple):
    """A dispatched event: a tuple, for one is made for each event of thousands of streams.

    `event` is "message" where the stream names none. `data` has its lines joined by LF. `id` and `retry` (in
    milliseconds) are the last that the stream has set, at this event or before; "" and None if none.
    """

    event: str
    data: bytes
    id: str = ""
    retry: int | None = None


class SSEOverflow(Exception):
    """A line or an event is longer than its bound. `events` are those that the same feed held before it."""

    def __init__(self, message: str, events: Sequence[Event] = ()) -> None:
        super().__init__(message)
        self.events = tuple(events)


class SSEParser:
    """Reads one event stream.

    Args:
        max_line: the longest line, in bytes without its end.
        max_event: the most data in one event, in bytes after joining.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_data_lines",
        "_event",
        "_id",
        "_max_event",
        "_max_line",
        "_overflow",
        "_plain",
        "_retry",
        "_tail",
    )

    def __init__(self, max_line: int = 1 << 20, max_event: int = 4 << 20) -> None:
        self._max_line = max_line
        self._max_event = max_event
        # The most data that an event may have to be taken apart as a whole: whether it is too long is seen elsewhere.
        self._plain = min(max_line - _DATA, max_event) if max_line >= _LONGEST_NAME else -1
        self._tail = bytearray()  # the last line, as far as it has come
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._at_start = True  # no line has ended yet: the first one may open with a BOM
        self._event = b""
        self._data: bytes | bytearray | None = None  # None: no data field yet, which is not the same as empty
        self._data_lines = 0
        self._id = ""
        self._retry: int | None = None
        self._overflow: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the stream; return the events that they complete, in order.

        An event that is unfinished when the stream ends is never returned.

        Raises:
            SSEOverflow: a bound was passed, now or in an earlier feed.
        """
        if self._overflow is not None:
            raise SSEOverflow(self._overflow)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == LF:
                chunk = chunk[1:]
        has_cr = b"\r" in chunk
        if not has_cr and b"\n" not in chunk:
            self._keep(chunk)
            return []
        if self._tail:
            chunk = bytes(self._tail) + chunk
            self._tail.clear()
        if self._at_start:
            self._at_start = False
            chunk = chunk.removeprefix(BOM)
        if b"\n\n\n" in chunk:
            chunk = _BLANK_LINES.sub(b"\n\n", chunk)  # one blank line says as much as many, and costs less
        events: list[Event] = []
        if has_cr:
            lines = chunk.splitlines()  # of bytes: at LF, CR and CRLF only
            self._after_cr = chunk.endswith(b"\r")
            rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        else:
            blocks = chunk.split(b"\n\n")
            begun = blocks.pop()
            if blocks:
                self._read_blocks(blocks, events)
            if not begun:
                return events
            lines = begun.split(b"\n")
            rest = lines.pop()
        self._read(lines, events)
        self._keep(rest, events)
        return events

    def _read_blocks(self, blocks: Sequence[bytes], events: list[Event]) -> None:
        """Interpret what stands before each of some blank lines, adding to `events`."""
        begun = self._data is not None or self._event != b""
        for block in blocks:
            head, _, data = block.partition(b"\ndata: ")
            name = _NAMES.get(head)
            if name is None or begun or not 0 < len(data) <= self._plain or b"\n" in data:
                self._read([*block.split(b"\n"), b""], events)
                begun = False
            else:
                # As `Event(…)`, which a named tuple does in Python.
                events.append(_tuple(Event, (name, data, self._id, self._retry)))

    def _keep(self, rest: bytes, events: Sequence[Event] = ()) -> None:
        self._tail += rest
        # A first line that may hold a BOM is judged when it is whole.
        if len(self._tail) > self._max_line + len(BOM) * self._at_start:
            raise self._give_up(f"a line of more than {self._max_line} bytes", events)

    def _read(self, lines: Sequence[bytes], events: list[Event]) -> None:
        """Interpret whole lines (section 9.2.6), adding to `events`."""
        max_line = self._max_line
        for line in lines:
            if not line:
                if self._data is not None:
                    name = self._event.decode("utf-8", "replace") if self._event else "message"
                    events.append(Event(name, bytes(self._data), self._id, self._retry))
                    self._data = None
                self._event = b""
                continue
            if len(line) > max_line:
                raise self._give_up(f"a line of more than {max_line} bytes", events)
            field, _, value = line.partition(b":")
            if value.startswith(b" "):
                value = value[1:]
            if field == b"data":
                self._data_lines = 1 if self._data is None else self._data_lines + 1
                if self._data_lines > MAX_DATA_LINES:
                    raise self._give_up(f"an event of more than {MAX_DATA_LINES} lines of data", events)
                self._data = value if self._data is None else self._joined(value)
                if len(self._data) > self._max_event:
                    raise self._give_up(f"an event of more than {self._max_event} bytes", events)
            elif field == b"event":
                self._event = value
            elif field == b"id":
                if b"\0" not in value:
                    self._id = value.decode("utf-8", "replace")
            elif field == b"retry" and value.isdigit() and len(value) < 16:
                self._retry = int(value)
            # Everything else is a comment (an empty name) or a field that nobody knows: both are ignored.

    def _joined(self, value: bytes) -> bytearray:
        """Return the data so far and one more line of it."""
        data = self._data if isinstance(self._data, bytearray) else bytearray(self._data or b"")
        data += b"\n"
        data += value
        return data

    def _give_up(self, why: str, events: Sequence[Event]) -> SSEOverflow:
        self._overflow = why
        self._data = None
        self._tail = bytearray()
        return SSEOverflow(why, events)
