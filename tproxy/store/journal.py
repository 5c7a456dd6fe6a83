"""The journal: one entry for each row that has ended, in the order in which they did.

    entry = (seq, id, digest)        digest = SHA-256(digest of the entry before, what the row says), 16 bytes of it

An entry is written in the transaction that ends its row, so there is neither one without the other. Since each digest
is made of the one before, a row that is changed, put in or taken out later is found (`verify`), by whoever has kept
nothing but the newest digest even if all others were made anew.

`seq` counts from 1 without gaps. The newest entry is never deleted: it is what the next one goes on from.

What a row says is encoded as MessagePack, in the order of `_COLUMNS`, without the nulls at the end: a column that a
later version adds at the end changes no digest of a row that has none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import sha256
from operator import attrgetter
from typing import Any, Final

import msgspec

from tproxy.store import rows
from tproxy.store.base import Closing, Opening

NOTHING: Final = bytes(16)  # what the first entry goes on from

# fmt: off
_OPENING: Final = (
    "id", "accepted_us", "method", "path", "upstream", "model_asked", "stream", "caller", "caller_alias", "team",
    "user", "customer", "tags", "session", "agent", "parent_agent", "expected_nano", "client_address", "user_agent",
    "traceparent",
)
_CLOSING: Final = (
    "ended", "ended_us", "dialled_us", "head_us", "first_content_us", "last_byte_us", "status", "model_served",
    "request_id", "message_id", "stop_reason", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_write_5m_tokens", "cache_write_1h_tokens", "thinking_tokens", "web_searches", "service_tier", "speed", "geo",
    "cost_nano", "cost_input_nano", "cost_output_nano", "cost_cache_read_nano", "cost_cache_write_nano",
    "cost_tools_nano", "price_version", "certainty", "bytes_in", "bytes_out", "error_type", "tap_fault",
)
# fmt: on
_COLUMNS: Final = _OPENING + _CLOSING

_SLICE: Final = 1000  # entries that are written at a time when old rows are adopted

_opened: Callable[[Opening], tuple[Any, ...]] = attrgetter(*_OPENING)
_ended: Callable[[Closing], tuple[Any, ...]] = attrgetter(*_CLOSING)
_encode = msgspec.msgpack.Encoder().encode


def digest(before: bytes, opening: Opening, closing: Closing) -> bytes:
    """The digest of the entry of a row, after the entry whose digest is `before`.

    Raises:
        ValueError: the row says what no row can: text that is none.
    """
    values = _opened(opening) + _ended(closing)
    end = len(values)
    while values[end - 1] is None:
        end -= 1
    return sha256(before + _encode(values[:end])).digest()[:16]


class Journal:
    """Adds to the journal. The newest entry is read once and known from then on.

    To be used within a transaction; where that is undone, it is to be told (`forget`).
    """

    def __init__(self) -> None:
        self._newest: tuple[int, bytes] | None = None  # its number and digest
        self._entries: list[tuple[int, str, bytes]] = []

    def add(self, connection: sqlite3.Connection, opening: Opening, closing: Closing) -> None:
        """The row of an exchange has just ended, and says this now."""
        seq, before = self._newest or _read(connection)
        made = digest(before, opening, closing)
        self._newest = seq + 1, made
        self._entries.append((seq + 1, opening.id, made))

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write what was added."""
        if self._entries:
            connection.executemany("INSERT INTO settled (seq, id, digest) VALUES (?, ?, ?)", self._entries)
            self._entries.clear()

    def forget(self) -> None:
        """The table is right, whatever is known here."""
        self._newest = None
        self._entries.clear()

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Give rows that ended before there was a journal their entries, if it is empty: in the order in which they
        ended."""
        if _read(connection)[0]:
            return
        ids = connection.execute("SELECT id FROM exchange WHERE ended != 'open' ORDER BY ended_us, id")
        while some := ids.fetchmany(_SLICE):
            for (id,) in some:
                self.add(connection, *rows.read(connection, id))
            self.flush(connection)


def _read(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The newest entry."""
    found = connection.execute("SELECT seq, digest FROM settled ORDER BY seq DESC LIMIT 1").fetchone()
    return (0, NOTHING) if found is None else found
