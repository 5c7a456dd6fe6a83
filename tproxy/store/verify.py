"""Proves that a ledger agrees with itself: rows with the journal, sums with the rows, what is held with who holds it.

All is read in one state of the file, on a connection that cannot write, so a server may run meanwhile. The rows are
gone through once, in the order of the journal; their sums are made anew by the code that made them (`sums`), in
temporary tables, which SQLite keeps on disk where they are large, and are then compared with those of the file.

| part | what holds |
|---|---|
| journal | each row that has ended has one entry, each entry its row, numbers have no gap, each digest is right |
| daily | the sums by day are those of the rows, for all days of which all rows are here |
| tally | each tally is the sum of its days; while no row has been deleted, what was expected is that of the rows too |
| held | what is held of a budget is the sum of its reservations, and these are of exchanges that run |

A customer is summed only while it is known (`customers`), and the file does not say when all of them were. So a sum of
one is at most what its rows come to, and is just that where the customer is known since two days before.

A key that was rotated has its days under the hash of their time and its tally under the newest (`renamed`); tallies of
callers that are, or were, one are therefore compared together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tproxy.store import journal, rows
from tproxy.store.base import OPEN
from tproxy.store.money import FIGURE_MAX
from tproxy.store.reading import reading
from tproxy.store.subjects import CUSTOMER
from tproxy.store.sums import DAILY, DAY_US, Sums, day_of

FAULTS_MAX: Final = 100  # of each part; more are only counted
SLICE: Final = 5000

_NO_DAY: Final = "0000-00-00"
_KEY: Final = ("kind", "day", "id", "caller", "model")


@dataclass(frozen=True, slots=True)
class Fault:
    """What does not hold: in which part, where, what is there and what should be."""

    part: str
    place: str
    there: str
    expected: str


@dataclass(slots=True)
class Verdict:
    """What was looked at, and what does not hold.

    Attributes:
        ended, running: rows.
        since_day: retention has deleted rows of days before it; None where it has deleted none.
        newest, digest: number and digest of the newest entry of the journal; to be kept elsewhere, if at all.
        faults: the first `FAULTS_MAX` of each part.
        number: how many faults there are, by part.
    """

    ended: int = 0
    running: int = 0
    entries: int = 0
    days: int = 0
    daily: int = 0
    tallies: int = 0
    budgets: int = 0
    reservations: int = 0
    since_day: str | None = None
    newest: int = 0
    digest: str = ""
    faults: list[Fault] = field(default_factory=list)
    number: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("journal", "daily", "tally", "held"), 0))

    @property
    def holds(self) -> bool:
        """Does everything?"""
        return not any(self.number.values())

    def fault(self, part: str, place: str, there: object, expected: object) -> None:
        """Add one."""
        self.number[part] += 1
        if self.number[part] <= FAULTS_MAX:
            self.faults.append(Fault(part, place, str(there), str(expected)))


def verify(path: Path, progress: Callable[[int], None] = lambda rows: None) -> Verdict:
    """Look at the whole file. Takes some seconds for 100,000 rows.

    Args:
        path: the ledger's file.
        progress: told now and then how many rows have been gone through.

    Raises:
        LedgerUnusable: it cannot be read, or is no ledger of this version.
    """
    with reading(path) as connection:
        connection.row_factory = None
        verdict = Verdict()
        found = connection.execute("SELECT since_day FROM retained").fetchone()
        verdict.since_day = found[0] if found else None
        _make_tables(connection)
        _rows(connection, verdict, progress)
        _daily(connection, verdict)
        _tallies(connection, verdict)
        _held(connection, verdict)
        return verdict


def _make_tables(connection: sqlite3.Connection) -> None:
    """Empty tables of sums, of the same names and make; from now on these are meant where `main` is not said."""
    connection.execute("PRAGMA temp.cache_size = -65536")
    for table in ("daily", "tally"):
        (made,) = connection.execute("SELECT sql FROM main.sqlite_master WHERE name = ?", (table,)).fetchone()
        connection.execute(made.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))


def _rows(connection: sqlite3.Connection, verdict: Verdict, progress: Callable[[int], None]) -> None:
    """The journal and its rows; their sums are in the temporary tables afterwards."""
    sums = Sums(known=lambda connection, customer: True)
    before, seen, at, numbered = journal.NOTHING, 0, 0, verdict.since_day is None
    for seq, id, digest, *row in connection.execute(
        f"SELECT settled.seq, settled.id, settled.digest, {rows.COLUMNS} "  # noqa: S608
        "FROM settled LEFT JOIN exchange ON exchange.id = settled.id ORDER BY settled.seq"
    ):
        verdict.entries += 1
        place = f"entry {seq}, row {id}"
        if numbered and seq != at + 1:
            verdict.fault("journal", f"entry {at + 1}", f"the next one is {seq}", "an entry")
        if row[0] is not None:
            seen += 1
            _row(row, digest, before, place, verdict, sums)
        elif numbered:
            verdict.fault("journal", place, "no such row", "the row of the entry")
        before, at, numbered = digest, seq, True
        if verdict.entries % SLICE == 0:
            sums.flush(connection)
            progress(verdict.entries)
    sums.flush(connection)
    verdict.newest, verdict.digest = at, before.hex() if at else ""
    ended, running = connection.execute("SELECT sum(ended != 'open'), sum(ended = 'open') FROM exchange").fetchone()
    verdict.ended, verdict.running = ended or 0, running or 0
    if verdict.ended != seen or verdict.number["journal"]:
        for (id,) in connection.execute(
            "SELECT id FROM exchange WHERE ended != 'open' AND id NOT IN (SELECT id FROM settled)"
        ):
            verdict.fault("journal", f"row {id}", "no entry", "the entry of a row that has ended")
        for id, number in connection.execute("SELECT id, count(*) FROM settled GROUP BY id HAVING count(*) > 1"):
            verdict.fault("journal", f"row {id}", f"{number} entries", "one")


def _row(row: list[Any], digest: bytes, before: bytes, place: str, verdict: Verdict, sums: Sums) -> None:
    try:
        opening, closing = rows.values(row)
        made = journal.digest(before, opening, closing)
        if closing.ended == OPEN:
            verdict.fault("journal", place, "a row that is open", "one that has ended")
            return
        sums.add(opening, closing)
    except (ValueError, TypeError) as fault:
        verdict.fault("journal", place, f"a row that cannot be read: {fault}", "what it said when it ended")
        return
    if made != digest:
        verdict.fault(
            "journal", place, f"the digest {digest.hex()}", f"{made.hex()}: the row, or the entry before, is another"
        )


def _daily(connection: sqlite3.Connection, verdict: Verdict) -> None:
    since = verdict.since_day or _NO_DAY
    verdict.days, verdict.daily = connection.execute(
        "SELECT count(DISTINCT day), count(*) FROM main.daily WHERE day >= ?", (since,)
    ).fetchone()
    for key, there, made in _differences(connection, "main.daily", "temp.daily", _KEY, DAILY, since):
        named = dict(zip(_KEY, key, strict=True))
        less = all(a <= b for a, b in zip(there, made, strict=True))
        if named["kind"] == CUSTOMER and less and not _was_known(connection, named["id"], named["day"]):
            continue
        place = ", ".join(f"{name} {value!r}" for name, value in named.items() if value or name == "id")
        _tell(verdict, "daily", place, DAILY, there, made)


def _was_known(connection: sqlite3.Connection, customer: str, day: str) -> bool:
    """Was a customer known all day? Its time is that of the exchange that named it first, which may have been written
    when it ended: so there is a day in between."""
    found = connection.execute("SELECT created_us FROM subject WHERE kind = ? AND id = ?", (CUSTOMER, customer))
    created = found.fetchone()
    return created is not None and day_of(created[0] // DAY_US + 1) < day


# How the columns of a tally come from those of the days.
_BY_DAY: Final = {
    "exchanges": "exchanges",
    "prompt_tokens": f"min(input_tokens + cache_read_tokens + cache_write_tokens, {FIGURE_MAX})",
    "completion_tokens": "output_tokens",
    "cost_nano": "cost_nano",
}
_EXPECTED: Final = ("expected_exchanges", "expected_nano", "expected_cost_nano", "expected_error_nano", "last_us")


def _tallies(connection: sqlite3.Connection, verdict: Verdict) -> None:
    (verdict.tallies,) = connection.execute("SELECT count(*) FROM main.tally").fetchone()
    connection.execute("CREATE TEMP TABLE one (id TEXT NOT NULL PRIMARY KEY, root TEXT NOT NULL) WITHOUT ROWID")
    connection.executemany("INSERT INTO one VALUES (?, ?)", _roots(connection).items())
    figures = ", ".join(_BY_DAY)
    for table in ("tallied", "by_day"):
        columns = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in (*_BY_DAY, *_EXPECTED))
        connection.execute(f"CREATE TEMP TABLE {table} (kind, id, {columns}, PRIMARY KEY (kind, id)) WITHOUT ROWID")
    _add_up(connection, "tallied", "main.tally", figures, tuple(_BY_DAY))
    _add_up(connection, "by_day", "main.daily", ", ".join(_BY_DAY.values()), tuple(_BY_DAY))
    _compare_tallies(connection, verdict, tuple(_BY_DAY))
    if verdict.since_day is None:
        # The rows are all here, so what is only in the tallies can be compared with them.
        connection.execute("DELETE FROM tallied")
        connection.execute("DELETE FROM by_day")
        for table, of in (("tallied", "main.tally"), ("by_day", "temp.tally")):
            _add_up(connection, table, of, ", ".join(_EXPECTED), _EXPECTED)
        _compare_tallies(connection, verdict, _EXPECTED, but=CUSTOMER)


def _compare_tallies(
    connection: sqlite3.Connection, verdict: Verdict, columns: tuple[str, ...], but: str | None = None
) -> None:
    for (kind, id), there, made in _differences(connection, "tallied", "by_day", ("kind", "id"), columns):
        if kind != but:
            _tell(verdict, "tally", f"kind {kind!r}, id {id!r}", columns, there, made)


def _roots(connection: sqlite3.Connection) -> dict[str, str]:
    """One of the callers that are, or were, one, for each of them."""
    root: dict[str, str] = {}

    def find(id: str) -> str:
        while (above := root.setdefault(id, id)) != id:
            root[id] = id = root[above]
        return id

    for old, new in connection.execute("SELECT old, new FROM renamed UNION ALL SELECT old, new FROM parted"):
        root[find(old)] = find(new)
    return {id: find(id) for id in list(root)}


def _add_up(connection: sqlite3.Connection, into: str, table: str, figures: str, columns: tuple[str, ...]) -> None:
    added = ", ".join(
        f"{name} = max({name}, excluded.{name})"
        if name == "last_us"
        else f"{name} = min({name} + excluded.{name}, {FIGURE_MAX})"
        for name in columns
    )
    connection.execute(
        f"INSERT INTO temp.{into} (kind, id, {', '.join(columns)}) "  # noqa: S608
        f"SELECT kind, coalesce(root, source.id), {figures} FROM {table} AS source "
        "LEFT JOIN one ON kind = 'caller' AND one.id = source.id WHERE true "
        f"ON CONFLICT (kind, id) DO UPDATE SET {added}"
    )


def _differences(
    connection: sqlite3.Connection,
    there: str,
    made: str,
    key: tuple[str, ...],
    columns: tuple[str, ...],
    since: str | None = None,
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]]:
    """Key and figures in both tables, where these differ; what is not there is all 0."""
    of_a, of_b = (", ".join(f"{table}.{name}" for name in columns) for table in ("a", "b"))
    same = " AND ".join(f"a.{name} = b.{name}" for name in key)
    days = "AND a.day >= :since" if since is not None else ""
    number = len(key)
    for query in (
        f"SELECT {', '.join(f'a.{name}' for name in key)}, {of_a}, {of_b} "  # noqa: S608
        f"FROM {there} AS a LEFT JOIN {made} AS b ON {same} WHERE ({of_a}) IS NOT ({of_b}) {days}",
        f"SELECT {', '.join(f'a.{name}' for name in key)}, {', '.join('0' for _ in columns)}, {of_a} "  # noqa: S608
        f"FROM {made} AS a WHERE NOT EXISTS (SELECT 1 FROM {there} AS b WHERE {same}) {days}",
    ):
        for row in connection.execute(query, {"since": since} if since is not None else {}):
            figures = tuple(figure or 0 for figure in row[number:])
            here, should = figures[: len(columns)], figures[len(columns) :]
            if here != should:
                yield row[:number], here, should


def _tell(
    verdict: Verdict, part: str, place: str, columns: tuple[str, ...], there: tuple[int, ...], made: tuple[int, ...]
) -> None:
    differing = [(name, a, b) for name, a, b in zip(columns, there, made, strict=True) if a != b]
    verdict.fault(
        part,
        place,
        ", ".join(f"{name} {a}" for name, a, _ in differing),
        ", ".join(f"{name} {b}" for name, _, b in differing),
    )


def _held(connection: sqlite3.Connection, verdict: Verdict) -> None:
    (verdict.budgets,) = connection.execute("SELECT count(*) FROM budget").fetchone()
    held: dict[int, int] = {}
    for exchange, budget, amount, ended, known in connection.execute(
        "SELECT reservation.exchange, reservation.budget, amount_nano, ended, budget.id FROM reservation "
        "LEFT JOIN exchange ON exchange.id = reservation.exchange LEFT JOIN budget ON budget.id = reservation.budget"
    ):
        verdict.reservations += 1
        held[budget] = held.get(budget, 0) + amount
        place = f"reservation of {exchange} on budget {budget}"
        if ended != OPEN:
            verdict.fault("held", place, "no such row" if ended is None else f"a row that is {ended}", "one that runs")
        if known is None:
            verdict.fault("held", place, "no such budget", "its budget")
    for id, kind, subject, amount in connection.execute("SELECT id, kind, subject, held_nano FROM budget"):
        if amount != held.get(id, 0):
            verdict.fault("held", f"budget {id} of {kind} {subject!r}", f"held_nano {amount}", held.get(id, 0))
