"""The table `subject`: one row for each subject, its document and the columns by which it is looked for.

Functions on a connection, within a transaction of the caller. Those that write are for the ledger's thread
(`SqliteLedger.write`); those that read may be used by any connection. Budgets are not looked after here
(`directory.py` does that, with `money.py`), nor keys that stand in the key file: they have no rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from tproxy.store import subjects
from tproxy.store.subjects import Subject, from_document, to_document

# Both take the values of a subject in the order in which `_write` gives them.
_INSERT = """
INSERT INTO subject (alias, team, user, terms_of, created_us, document, kind, id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_REPLACE = """
UPDATE subject SET alias = ?, team = ?, user = ?, terms_of = ?, created_us = ?, document = ? WHERE kind = ? AND id = ?
"""


class SubjectFault(Exception):
    """What was asked of the subjects cannot be done; nothing has changed.

    Attributes:
        kind, id: of the subject at fault.
    """

    def __init__(self, message: str, kind: str, id: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.id = id


class NotThere(SubjectFault):
    """There is no such subject."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"There is no {kind} {id!r}.", kind, id)


class AlreadyThere(SubjectFault):
    """A subject of this kind has this id already."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"There is a {kind} {id!r} already.", kind, id)


class AliasTaken(SubjectFault):
    """Another key, of the database or of the key file, has this alias. `id` is that of the one that wants it."""

    def __init__(self, alias: str, id: str) -> None:
        super().__init__(f"Another key has the alias {alias!r}.", subjects.KEY, id)
        self.alias = alias


def insert(connection: sqlite3.Connection, subject: Subject) -> None:
    """Add a subject.

    Raises:
        AlreadyThere: its kind and id are taken.
        AliasTaken: it is a key, and its alias is.
    """
    try:
        _write(connection, _INSERT, subject)
    except AliasTaken:
        if get(connection, subject.kind, subject.id) is not None:  # by itself
            raise AlreadyThere(subject.kind, subject.id) from None
        raise


def replace(connection: sqlite3.Connection, subject: Subject) -> None:
    """Let a subject that is there be as given.

    Raises:
        NotThere: it is not.
        AliasTaken: it is a key, and another one has its alias.
    """
    if not _write(connection, _REPLACE, subject):
        raise NotThere(subject.kind, subject.id)


def _write(connection: sqlite3.Connection, statement: str, subject: Subject) -> int:
    try:
        return connection.execute(
            statement,
            (
                subject.alias,
                subject.team,
                subject.user,
                subject.terms_of,
                subject.created_us,
                to_document(subject),
                subject.kind,
                subject.id,
            ),
        ).rowcount
    except sqlite3.IntegrityError as fault:
        if fault.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
            raise AlreadyThere(subject.kind, subject.id) from None
        if fault.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE and subject.alias is not None:
            raise AliasTaken(subject.alias, subject.id) from None
        raise


def delete(connection: sqlite3.Connection, kind: str, id: str) -> bool:
    """Delete a subject's row; False if there was none."""
    return connection.execute("DELETE FROM subject WHERE kind = ? AND id = ?", (kind, id)).rowcount > 0


def get(connection: sqlite3.Connection, kind: str, id: str) -> Subject | None:
    """One subject."""
    row = connection.execute("SELECT document FROM subject WHERE kind = ? AND id = ?", (kind, id)).fetchone()
    return None if row is None else from_document(row[0])


def by_alias(connection: sqlite3.Connection, alias: str) -> Subject | None:
    """The key with this alias."""
    row = connection.execute("SELECT document FROM subject WHERE kind = 'key' AND alias = ?", (alias,)).fetchone()
    return None if row is None else from_document(row[0])


def find(
    connection: sqlite3.Connection,
    kind: str,
    *,
    team: str | None = None,
    user: str | None = None,
    alias: str | None = None,
    id: str | None = None,
    terms_of: str | None = None,
    offset: int = 0,
    limit: int = 100,
    newest_first: bool = True,
) -> list[Subject]:
    """Some subjects of a kind, by when they were made: those that fit all that is given, from the `offset`th on."""
    where, values = _where(kind, team, user, alias, id, terms_of)
    order = "ORDER BY created_us DESC, id DESC" if newest_first else "ORDER BY created_us, id"
    rows = connection.execute(
        f"SELECT document FROM subject {where} {order} LIMIT ? OFFSET ?",  # noqa: S608
        (*values, limit, offset),
    )
    return [from_document(document) for (document,) in rows]


def ids(
    connection: sqlite3.Connection,
    kind: str,
    *,
    team: str | None = None,
    user: str | None = None,
    alias: str | None = None,
    id: str | None = None,
    terms_of: str | None = None,
) -> list[str]:
    """The ids of all subjects of a kind that fit all that is given, the oldest first."""
    where, values = _where(kind, team, user, alias, id, terms_of)
    return [id for (id,) in connection.execute(f"SELECT id FROM subject {where} ORDER BY created_us, id", values)]  # noqa: S608


def count(
    connection: sqlite3.Connection,
    kind: str,
    *,
    team: str | None = None,
    user: str | None = None,
    alias: str | None = None,
    id: str | None = None,
    terms_of: str | None = None,
) -> int:
    """How many subjects of a kind fit all that is given."""
    where, values = _where(kind, team, user, alias, id, terms_of)
    return int(connection.execute(f"SELECT count(*) FROM subject {where}", values).fetchone()[0])  # noqa: S608


def _where(
    kind: str, team: str | None, user: str | None, alias: str | None, id: str | None, terms_of: str | None
) -> tuple[str, list[str]]:
    named = {"team": team, "user": user, "alias": alias, "id": id, "terms_of": terms_of}
    given = {column: value for column, value in named.items() if value is not None}
    return "WHERE kind = ?" + "".join(f" AND {column} = ?" for column in given), [kind, *given.values()]


def referring(connection: sqlite3.Connection, terms_of: str) -> list[Subject]:
    """All subjects, of whatever kind, whose terms were taken from these TERMS."""
    rows = connection.execute("SELECT document FROM subject WHERE terms_of = ?", (terms_of,))
    return [from_document(document) for (document,) in rows.fetchall()]


def teams_of(connection: sqlite3.Connection, user: str) -> list[Subject]:
    """The teams that have a user among their members."""
    rows = connection.execute(
        # The text is looked through before it is read as JSON, which takes ten times as long.
        "SELECT document FROM subject WHERE kind = 'team' AND instr(document, ?) AND EXISTS "
        "(SELECT 1 FROM json_each(document, '$.members') WHERE json_extract(value, '$.user') = ?)",
        (msgspec.json.encode(user).decode(), user),
    )
    return [from_document(document) for (document,) in rows.fetchall()]


def memberships(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """The user and the team of all memberships, each once."""
    return connection.execute(
        "SELECT DISTINCT json_extract(value, '$.user'), subject.id "
        "FROM subject, json_each(document, '$.members') WHERE subject.kind = 'team' ORDER BY subject.id"
    )


def documents(connection: sqlite3.Connection, kind: str) -> Iterator[tuple[str, str]]:
    """The id and the document of all subjects of a kind, in no order."""
    return iter(connection.execute("SELECT id, document FROM subject WHERE kind = ?", (kind,)))
