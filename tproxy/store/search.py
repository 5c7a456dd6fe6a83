"""Exchanges looked for in the ledger: by id, by who asked, by session, tag and time, a page at a time.

Functions over a connection that only reads. They speak of exchanges that have ended; one that runs has no figures yet.

The work for an answer is bounded, however large the ledger is: exchanges are found through the index of one column,
newest first. Where more is asked of them, at most `LOOKED_AT_MAX` of those that the index gives are looked at, and the
count says so.

The exchanges of a key that was rotated are found by the hash that it has now, also those from before; by an earlier
hash, those of its own time.
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

# Each name of a caller is looked for by itself, and what is found merged by time. Of a caller with more names than
# these, all that it has is sorted.
_MERGED_MAX: Final = 50

_NEWEST: Final = "ORDER BY accepted_us DESC, row DESC"

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
    search = _search(connection, wanted)
    values = _bounded(connection, search)[0] if search.rest else search.values
    cursor = connection.execute(
        "SELECT * FROM exchange WHERE rowid IN ("  # noqa: S608
        f"SELECT row FROM ({_found(search, search.rest)} LIMIT :limit OFFSET :offset)) "
        "ORDER BY accepted_us DESC, rowid DESC",
        values | {"limit": limit, "offset": offset},
    )
    names = [column[0] for column in cursor.description]
    dicts = [dict(zip(names, row, strict=True)) for row in cursor]
    return [row | {"tags": json.loads(row["tags"])} for row in dicts]


def count(connection: sqlite3.Connection, wanted: Wanted) -> Count:
    """How many exchanges `rows` can find."""
    if (kept := _tallied(connection, wanted)) is not None:
        kind, ids = kept
        (number,) = connection.execute(
            "SELECT coalesce(sum(exchanges), 0) FROM tally WHERE kind = ? AND id IN (SELECT value FROM json_each(?))",
            (kind, json.dumps(ids)),
        ).fetchone()
        return Count(number, True)
    search = _search(connection, wanted)
    values, exact = _bounded(connection, search)
    each = (f"SELECT 1 FROM exchange WHERE {first}{search.rest}" for first in search.firsts)  # noqa: S608
    found = " UNION ALL ".join(each)
    (number,) = connection.execute(f"SELECT count(*) FROM ({found})", values).fetchone()  # noqa: S608
    return Count(number, exact)


def _tallied(connection: sqlite3.Connection, wanted: Wanted) -> tuple[str, list[str]] | None:
    """The kind and ids in `tally` of the exchanges, if these are all those of one subject."""
    given = [name for name in wanted.__slots__ if getattr(wanted, name) is not None]
    if not given:
        return "proxy", [""]
    if len(given) > 1 or given[0] not in _TALLIED:
        return None
    if wanted.caller is None:
        return given[0], [getattr(wanted, given[0])]
    # What an earlier hash came to is in the tally of the one that the key has now.
    if connection.execute("SELECT 1 FROM renamed WHERE old = ?", (wanted.caller,)).fetchone():
        return None
    return "caller", _names(connection, wanted.caller)


def _names(connection: sqlite3.Connection, caller: str) -> list[str]:
    """The names that a caller has in the rows: the one of now, and those before its key was rotated."""
    old = connection.execute("SELECT old FROM renamed WHERE new = ? AND old != new ORDER BY old", (caller,))
    return [caller, *(name for (name,) in old)]


@dataclass(frozen=True, slots=True)
class _Search:
    """`firsts` are conditions that one index each answers, no exchange fulfils two of them; `rest` is what else is
    asked of the exchanges that they give; `values` are those of all conditions."""

    firsts: list[str]
    rest: str
    values: dict[str, Any]


def _search(connection: sqlite3.Connection, wanted: Wanted) -> _Search:
    values = {name: getattr(wanted, name) for name in ("id", "tag", *_INDEXED)}
    values["since"] = 0 if wanted.since_us is None else wanted.since_us
    values["until"] = _LATEST_US if wanted.until_us is None else wanted.until_us
    values["tag_json"] = json.dumps(wanted.tag, ensure_ascii=False)
    leading = next((name for name in ("id", *_INDEXED) if getattr(wanted, name) is not None), None)
    firsts = [f"{leading} = :{leading} AND {_ENDED}" if leading else _ENDED]
    # The `+` keeps SQLite from taking the index of another column.
    rest = {name: f" AND +{name} = :{name}" for name in _INDEXED if name != leading and values[name] is not None}
    if wanted.tag is not None:
        rest["tag"] = _TAGGED
    names = [] if wanted.caller is None else _names(connection, wanted.caller)
    if len(names) > 1:
        one_of_them = "caller IN (SELECT value FROM json_each(:names))"
        values["names"] = json.dumps(names)
        if leading != "caller":
            rest["caller"] = f" AND +{one_of_them}"
        elif len(names) > _MERGED_MAX:
            firsts = [f"{one_of_them} AND {_ENDED}"]
        else:
            firsts = [f"caller = :name{place} AND {_ENDED}" for place in range(len(names))]
            values |= {f"name{place}": name for place, name in enumerate(names)}
    return _Search(firsts, "".join(rest.values()), values)


def _found(search: _Search, rest: str = "") -> str:
    """The question for the places and times of the exchanges, newest first."""
    each = (f"SELECT rowid AS row, accepted_us FROM exchange WHERE {first}{rest}" for first in search.firsts)  # noqa: S608
    return f"{' UNION ALL '.join(each)} {_NEWEST}"


def _bounded(connection: sqlite3.Connection, search: _Search) -> tuple[dict[str, Any], bool]:
    """The values with a later `since` where there are too many exchanges to be looked at; and whether there are not."""
    last = connection.execute(
        f"SELECT accepted_us FROM ({_found(search)} LIMIT 1 OFFSET {LOOKED_AT_MAX})",  # noqa: S608
        search.values,
    ).fetchone()
    return (search.values, True) if last is None else (search.values | {"since": last[0] + 1}, False)
