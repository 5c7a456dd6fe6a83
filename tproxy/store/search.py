"""Exchanges looked for in the ledger: by id, by who asked, by session, tag and time, a page at a time.

Functions over a connection that only reads. They speak of exchanges that have ended; one that runs has no figures yet.

The work for an answer is bounded, however large the ledger is: exchanges are found through the index of one column,
newest first. Where more is asked of them, at most `LOOKED_AT_MAX` of those that the index gives are looked at, and the
count says so.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

LOOKED_AT_MAX: Final = 100_000
OFFSET_MAX: Final = 1_000_000

_LATEST_US: Final = (1 << 63) - 1

# The columns with an index of their own, those that tell most apart first.
_INDEXED: Final[tuple[str, ...]] = ("session", "caller", "customer", "user", "team")

# The subjects whose exchanges are counted in `tally`, and their kind there.
_TALLIED: Final = frozenset({"caller", "team", "user", "customer", "tag"})

_NEWEST: Final = "ORDER BY accepted_us DESC, rowid DESC"

# Those that run are told by an index that holds nothing else: the index of the column then suffices for all of this.
_ENDED: Final = (
    "accepted_us >= :since AND accepted_us < :until "
    "AND rowid NOT IN (SELECT rowid FROM exchange INDEXED BY exchange_open WHERE ended = 'open')"
)

# The text of the array is looked through first: that is cheaper than to read the array.
_TAGGED: Final = " AND instr(tags, :tag_json) AND EXISTS (SELECT 1 FROM json_each(tags) WHERE json_each.value = :tag)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which exchanges: those for which all that is given here is true, accepted from `since_us` on, before `until_us`.

    `caller` is an id such as `key:<hash>`.
    """

    id: str | None = None
    caller: str | None = None
    team: str | None = None
    user: str | None = None
    customer: str | None = None
    session: str | None = None
    tag: str | None = None
    since_us: int | None = None
    until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """How many exchanges; where it is not `exact`, there are at least so many."""

    total: int
    exact: bool


def rows(connection: sqlite3.Connection, wanted: Wanted, *, offset: int = 0, limit: int = 100) -> list[dict[str, Any]]:
    """Exchanges, newest first, each as a dict of its columns; `tags` as a list.

    Raises:
        ValueError: `offset` is above `OFFSET_MAX`.
    """
    if offset > OFFSET_MAX:
        raise ValueError(f"only the newest {OFFSET_MAX:,} can be paged through; ask for fewer days")
    first, rest, values = _search(wanted)
    if rest:
        values, _ = _bounded(connection, first, values)
    cursor = connection.execute(
        "SELECT * FROM exchange WHERE rowid IN ("  # noqa: S608
        f"SELECT rowid FROM exchange WHERE {first}{rest} {_NEWEST} LIMIT :limit OFFSET :offset) {_NEWEST}",
        values | {"limit": limit, "offset": offset},
    )
    names = [column[0] for column in cursor.description]
    dicts = [dict(zip(names, row, strict=True)) for row in cursor]
    return [row | {"tags": json.loads(row["tags"])} for row in dicts]


def count(connection: sqlite3.Connection, wanted: Wanted) -> Count:
    """How many exchanges `rows` can find."""
    if (kept := _tallied(wanted)) is not None:
        row = connection.execute("SELECT exchanges FROM tally WHERE kind = ? AND id = ?", kept).fetchone()
        return Count(row[0] if row else 0, True)
    first, rest, values = _search(wanted)
    values, exact = _bounded(connection, first, values)
    (number,) = connection.execute(f"SELECT count(*) FROM exchange WHERE {first}{rest}", values).fetchone()  # noqa: S608
    return Count(number, exact)


def _tallied(wanted: Wanted) -> tuple[str, str] | None:
    """The kind and id in `tally` of the exchanges, if these are all those of one subject."""
    given = [name for name in wanted.__slots__ if getattr(wanted, name) is not None]
    if not given:
        return "proxy", ""
    if len(given) == 1 and given[0] in _TALLIED:
        return given[0], getattr(wanted, given[0])
    return None


def _search(wanted: Wanted) -> tuple[str, str, dict[str, Any]]:
    """The condition that one index answers, what else is asked of the exchanges that it gives, and all values."""
    leading = next((name for name in ("id", *_INDEXED) if getattr(wanted, name) is not None), None)
    first = f"{leading} = :{leading} AND {_ENDED}" if leading else _ENDED
    # The `+` keeps SQLite from taking the index of another column.
    rest = [f" AND +{name} = :{name}" for name in _INDEXED if name != leading and getattr(wanted, name) is not None]
    if wanted.tag is not None:
        rest.append(_TAGGED)
    values = {name: getattr(wanted, name) for name in ("id", "tag", *_INDEXED)}
    values["since"] = 0 if wanted.since_us is None else wanted.since_us
    values["until"] = _LATEST_US if wanted.until_us is None else wanted.until_us
    values["tag_json"] = json.dumps(wanted.tag, ensure_ascii=False)
    return first, "".join(rest), values


def _bounded(connection: sqlite3.Connection, first: str, values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The values with a later `since` where there are too many exchanges to be looked at; and whether there are not."""
    last = connection.execute(
        f"SELECT accepted_us FROM exchange WHERE {first} {_NEWEST} LIMIT 1 OFFSET {LOOKED_AT_MAX}",  # noqa: S608
        values,
    ).fetchone()
    return (values, True) if last is None else (values | {"since": last[0] + 1}, False)
