"""What the sandbox served, request by request, and what it would bill for it.

A test compares these books with those of whatever stood in between. The rule of billing is the sandbox's own:

- whole answer: the usage that it shows (but nothing for a refusal before any output);
- stream cut by either side: the prompt, the searches, and the output tokens whose events had been handed to the
  client's socket; nothing if not even the first event had;
- answer in one piece: all of it, once its head has gone;
- error answer: nothing.

An entry is opened when its request has been read, and closed exactly once. Totals hold closed entries, also those
that are no longer kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import trio

from tproxy.sandbox.shelf import Shelf

# How an answer ended (`Entry.ended`).
RUNNING = "running"
COMPLETE = "complete"  # all of it went out
REFUSED = "refused"  # an error status went out
ERROR_EVENT = "error_event"  # a stream with an `error` event, by script
CUT = "cut"  # by script: closed, reset, or stalled until the sandbox ended
CLIENT_LEFT = "client_left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What is billed to one model. Each prompt token is in exactly one of the four input columns."""

    model: str
    input_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    web_search_requests: int = 0
    inference_geo: str = "global"
    speed: str | None = None
    service_tier: str = "standard"


_SUMMED = tuple(column.name for column in fields(Bill) if column.type == "int")


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request. Times are seconds since the epoch.

    `output_delivered` counts output tokens, `events_sent` pieces of the body (of a plain stream: its events),
    `bytes_sent` the body's bytes without its transfer framing. `ended_at` of a client that left is when that was
    noticed. `status` is None until the head has gone. A line of a batch is an entry of its own,
    `<batch id>/<custom_id>`.
    """

    request_id: str
    method: str
    path: str
    received_at: float
    model: str | None = None
    stream: bool = False
    status: int | None = None
    bills: list[Bill] = field(default_factory=list)
    output_delivered: int = 0
    events_sent: int = 0
    bytes_sent: int = 0
    ended: str = RUNNING
    ended_at: float | None = None


class Books:
    """All entries, by request id.

    Args:
        keep: how many entries are kept; the totals hold the others too.
    """

    def __init__(self, *, keep: int = 20_000) -> None:
        self._entries: Shelf[str, Entry] = Shelf(count=keep)
        self._closed = trio.Event()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._totals = dict.fromkeys(("requests", *_SUMMED, "output_delivered", "bytes_sent"), 0)
        self._ended: dict[str, int] = {}
        self._running: dict[str, Entry] = {}
        self._signal()

    def open(self, entry: Entry) -> None:
        self._entries.put(entry.request_id, entry)
        self._running[entry.request_id] = entry

    def close(self, entry: Entry, ended: str, now: float) -> None:
        """End an entry and add it to the totals. Its delivered figures are those of its last `events_sent` pieces."""
        if entry.ended != RUNNING:
            return
        entry.ended, entry.ended_at = ended, now
        entry.bills = _billed(entry)
        if self._running.pop(entry.request_id, None) is None:
            return  # opened before a reset
        self._signal()
        self._ended[ended] = self._ended.get(ended, 0) + 1
        self._totals["requests"] += 1
        self._totals["output_delivered"] += entry.output_delivered
        self._totals["bytes_sent"] += entry.bytes_sent
        for bill in entry.bills:
            for column in _SUMMED:
                self._totals[column] += getattr(bill, column)

    def _signal(self) -> None:
        self._closed.set()
        self._closed = trio.Event()

    def __getitem__(self, request_id: str) -> Entry:
        entry = self._entries.get(request_id)
        if entry is None:
            raise KeyError(request_id)
        return entry

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[Entry]:
        """All that are kept, oldest first."""
        return self._entries.values()

    @property
    def running(self) -> int:
        """Entries that are not closed."""
        return len(self._running)

    async def settled(self) -> None:
        """Wait until no entry is running."""
        await trio.lowlevel.checkpoint()
        while self._running:
            await self._closed.wait()

    @property
    def ended(self) -> dict[str, int]:
        """How many entries ended in each way."""
        return dict(self._ended)

    def total(self) -> dict[str, int]:
        """Sums over all closed entries: `requests`, the columns of `Bill`, `output_delivered`, `bytes_sent`."""
        return dict(self._totals)

    def as_json(self) -> dict[str, Any]:
        """All of it, as `GET /sandbox/books` gives it."""
        return {
            "running": self.running,
            "ended": self.ended,
            "total": self.total(),
            "entries": self.entries,
        }


def _billed(entry: Entry) -> list[Bill]:
    if entry.status is None or entry.status >= 300:
        return []
    if entry.ended == COMPLETE or not entry.bills or not entry.stream:
        return entry.bills
    if entry.events_sent == 0:
        return []
    return [replace(entry.bills[0], output_tokens=entry.output_delivered), *entry.bills[1:]]
