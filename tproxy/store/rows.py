"""The row of one exchange, as SQL. The statements are made from the fields of `Opening` and `Closing`.

Each function is one statement (`close` looks again when its own changed nothing), which SQLite undoes by itself when
it fails. They begin and end no transaction, and raise `ROW_FAULTS` when this row cannot be written, `sqlite3.Error`
or anything else when the database cannot.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from tproxy.store.base import LOST, Closing, Opening

# What one row can be refused for.
ROW_FAULTS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    AttributeError,
    OverflowError,
    TypeError,
    ValueError,
)

_OPENING = (*(name for name in Opening.__struct_fields__ if name != "tags"), "tags")
_CLOSING = tuple(name for name in Closing.__struct_fields__ if name != "id")
_WHOLE = _OPENING + _CLOSING
COLUMNS = ", ".join(f"exchange.{name}" for name in _WHOLE)  # of a query whose rows `values` takes
# What was measured here, whatever the upstream said.
_MEASURED = ("status", "dialled_us", "head_us", "first_content_us", "last_byte_us", "bytes_in", "bytes_out")


def _marks(columns: tuple[str, ...]) -> str:
    return ", ".join("?" * len(columns))


# Only names of fields are put into the text of a statement, never a value.
_INSERT = f"INSERT INTO exchange ({', '.join(_OPENING)}) VALUES ({_marks(_OPENING)})"  # noqa: S608
_UPDATE = f"UPDATE exchange SET {', '.join(f'{c} = ?' for c in _CLOSING)} WHERE id = ? AND ended = 'open'"  # noqa: S608
_CLOSE = f"{_UPDATE} RETURNING caller"
_UPSERT = (
    f"INSERT INTO exchange ({', '.join(_WHOLE)}) VALUES ({_marks(_WHOLE)}) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _CLOSING)} WHERE ended = 'open' "
    "RETURNING caller"
)
_SELECT = f"SELECT {', '.join(_CLOSING)} FROM exchange WHERE id = ?"  # noqa: S608
_READ = f"SELECT {', '.join(_WHOLE)} FROM exchange WHERE "  # noqa: S608

ALREADY = "it says the same already"

_closing_values: Callable[[Closing], tuple[Any, ...]] = attrgetter(*_CLOSING)
_opening_but_tags: Callable[[Opening], tuple[Any, ...]] = attrgetter(*_OPENING[:-1])
_tags = json.JSONEncoder(ensure_ascii=False).encode


def _opening_values(opening: Opening) -> tuple[Any, ...]:
    return (*_opening_but_tags(opening), _tags(opening.tags))


def insert(connection: sqlite3.Connection, opening: Opening) -> None:
    """A new row, `open`."""
    connection.execute(_INSERT, _opening_values(opening))


def note(connection: sqlite3.Connection, closing: Closing) -> None:
    """What is known so far; no row that runs, no change."""
    connection.execute(_UPDATE, (*_closing_values(closing), closing.id))


def close(connection: sqlite3.Connection, closing: Closing, opening: Opening | None) -> tuple[str | None, str]:
    """The end of a row. With `opening`, the row is written whole where it is not there.

    Returns:
        The caller that the row names now, if it went from open, or from nothing, to its end; else None, and why it did
        not. `ALREADY` is as good: a commit that seemed to fail may have succeeded.
    """
    values = _closing_values(closing)
    if opening is None:
        written = connection.execute(_CLOSE, (*values, closing.id)).fetchall()
    else:
        written = connection.execute(_UPSERT, _opening_values(opening) + values).fetchall()
    if written:
        return str(written[0][0]), ""
    there = connection.execute(_SELECT, (closing.id,)).fetchone()
    if there is None:
        return None, "its row is not in the ledger"
    return None, ALREADY if there == values else f"its row has ended as {there[0]}"


def rename_caller(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Let the exchanges of a caller that run now be another one's. Those that have ended stay as they are."""
    connection.execute(  # a caller may have millions that have ended: only those that run are looked at
        "UPDATE exchange INDEXED BY exchange_open SET caller = ? WHERE caller = ? AND ended = 'open'", (new, old)
    )


def close_bare(connection: sqlite3.Connection, closing: Closing) -> bool:
    """The end of a row whose figures cannot be written: its status, times and bytes, or the end alone where one of
    these is the trouble. Figures noted before stay. Returns whether it was open."""
    try:
        return _close_with(connection, closing, ("ended", "ended_us", *_MEASURED))
    except ROW_FAULTS:
        return _close_with(connection, closing, ("ended", "ended_us"))


def _close_with(connection: sqlite3.Connection, closing: Closing, columns: tuple[str, ...]) -> bool:
    return bool(
        connection.execute(
            f"UPDATE exchange SET {', '.join(f'{c} = ?' for c in columns)} WHERE id = ? AND ended = 'open'",  # noqa: S608
            (*(getattr(closing, column) for column in columns), closing.id),
        ).rowcount
    )


def is_there(connection: sqlite3.Connection, id: str) -> bool:
    return connection.execute("SELECT 1 FROM exchange WHERE id = ?", (id,)).fetchone() is not None


def read(connection: sqlite3.Connection, id: str) -> tuple[Opening, Closing]:
    """A row that is there."""
    return values(connection.execute(f"{_READ} id = ?", (id,)).fetchone())


def lose(connection: sqlite3.Connection, now_us: int) -> list[tuple[Opening, Closing]]:
    """Close every row that is open as `lost`, with what was noted of it. Returns them as they are then."""
    lost = [values(row) for row in connection.execute(f"{_READ} ended = 'open'")]
    connection.execute("UPDATE exchange SET ended = ?, ended_us = ? WHERE ended = 'open'", (LOST, now_us))
    return [(opening, replace(closing, ended=LOST, ended_us=now_us)) for opening, closing in lost]


def values(row: Sequence[Any]) -> tuple[Opening, Closing]:
    """What a row says, of which `row` has the `COLUMNS`."""
    opening = dict(zip(_OPENING, row, strict=False))
    tags = opening["tags"]
    opening["tags"] = () if tags == "[]" else tuple(json.loads(tags))
    if opening["stream"] is not None:
        opening["stream"] = bool(opening["stream"])
    return Opening(**opening), Closing(id=opening["id"], **dict(zip(_CLOSING, row[len(_OPENING) :], strict=True)))
