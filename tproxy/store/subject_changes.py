"""What a change of a subject brings with it, on the ledger's thread and within one of its transactions.

| change | what goes with it |
|---|---|
| any | its budgets become those of its terms, with what is spent and held of those that stay (`money.set_budgets`) |
| a set of TERMS | every subject whose terms were taken from it; what such a subject has of its own, it keeps |
| a set of TERMS is deleted | those subjects keep their terms, and refer to none |
| a key is deleted | its budgets, and the keys that it took the place of |
| a team or a user is deleted | its budgets and its keys; a user leaves the teams |
| a key is regenerated | its money and running exchanges move to the new hash; the old one goes on for a time, bare |

The rows are written here. What memory must know of it is gathered in `Changes.documents` and `Changes.earlier`, for
`directory.py` to take once the transaction is durable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from tproxy.store import money, rows, subject_rows
from tproxy.store.money import FIGURE_MAX
from tproxy.store.subject_rows import AliasTaken, AlreadyThere, NotThere, SubjectFault
from tproxy.store.subjects import (
    CUSTOMER,
    KEY,
    NO_TERMS,
    TAG,
    TEAM,
    TERMS,
    USER,
    Budget,
    Subject,
    Terms,
    to_document,
)

KINDS = frozenset((KEY, TEAM, USER, CUSTOMER, TAG, TERMS))  # those that have rows

# The sums of a tally, which are added up where two tallies become one.
_SUMS = (
    "exchanges",
    "prompt_tokens",
    "completion_tokens",
    "cost_nano",
    "written_off_nano",
    "expected_exchanges",
    "expected_nano",
    "expected_cost_nano",
    "expected_error_nano",
)
_JOIN_TALLIES = (
    f"INSERT INTO tally (kind, id, last_us, {', '.join(_SUMS)}) "  # noqa: S608
    f"SELECT kind, ?, last_us, {', '.join(_SUMS)} FROM tally WHERE kind = ? AND id = ? "
    "ON CONFLICT (kind, id) DO UPDATE SET last_us = max(last_us, excluded.last_us), "
    + ", ".join(f"{name} = min({name} + excluded.{name}, {FIGURE_MAX})" for name in _SUMS)
)


class InFile(SubjectFault):
    """The key stands in the key file, and is changed there only; or such a key names what is to be deleted."""


class Changes:
    """The changes within one transaction.

    Args:
        file: the keys of the key file by their hash; they have no rows, and are not changed here.
        earlier: of a key that took the place of others, their hashes.

    Attributes:
        documents: what is known of each subject that was written: its document; None if there is nothing to be known,
            because it is gone or has no say in any decision.
        earlier: the entries of the argument that are others now.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        now_us: int,
        zone: ZoneInfo,
        file: Mapping[str, Subject],
        earlier: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.documents: dict[tuple[str, str], str | None] = {}
        self.earlier: dict[str, tuple[str, ...]] = {}
        self._connection = connection
        self._now_us = now_us
        self._zone = zone
        self._file = file
        self._aliases = {key.alias for key in file.values()}
        self._earlier_before = earlier

    def insert(self, subject: Subject) -> None:
        """Add a subject with its budgets.

        Raises:
            AlreadyThere, AliasTaken: see `subject_rows.insert`; also where a key of the file has the hash or alias.
            NotThere: there are no TERMS of its `terms_of`.
        """
        if subject.kind == KEY and subject.id in self._file:
            raise AlreadyThere(KEY, subject.id)
        self._save(subject, None)

    def put(self, subject: Subject) -> None:
        """Add a subject, or let the one that is there be as given.

        Raises:
            InFile: it is a key of the file.
            AliasTaken, NotThere: see `insert`.
        """
        self._refuse_file(subject.kind, subject.id)
        self._save(subject, subject_rows.get(self._connection, subject.kind, subject.id))

    def change(self, kind: str, id: str, how: Callable[[Subject], Subject]) -> Subject:
        """Let a subject be what `how` makes of what it is now. Returns the new one.

        Raises:
            NotThere: there is none, or there are no TERMS of its new `terms_of`.
            InFile: it is a key of the file.
            AliasTaken: see `subject_rows.replace`.
        """
        before = self._there(kind, id)
        after = how(before)
        if (after.kind, after.id, after.replaced_by) != (kind, id, before.replaced_by):
            raise ValueError("a change of a subject cannot make it another one")
        self._save(after, before)
        return after

    def delete(self, kind: str, id: str) -> Subject:
        """Delete a subject and what goes with it. Returns what it was.

        Raises:
            NotThere: there is none.
            InFile: it is a key of the file, or a team or a user that such a key names.
        """
        before = self._there(kind, id)
        if kind == KEY:
            self._delete_key(before)
            return before
        if kind in (TEAM, USER):
            self._delete_keys(kind, id)
        for each in subject_rows.teams_of(self._connection, id) if kind == USER else ():
            members = tuple(member for member in each.members if member.user != id)
            self._save(replace(each, members=members), each)
        for each in subject_rows.referring(self._connection, id) if kind == TERMS else ():
            self._save(replace(each, terms_of=None), each)
        self._forget(kind, id)
        return before

    def _delete_key(self, key: Subject) -> None:
        for old in self._earlier(key.id):
            self._forget(KEY, old)
        self.earlier[key.id] = ()
        if key.replaced_by is not None:
            left = tuple(each for each in self._earlier(key.replaced_by) if each != key.id)
            self.earlier[key.replaced_by] = left
        self._forget(KEY, key.id)

    def _delete_keys(self, kind: str, id: str) -> None:
        for key in self._file.values():
            if (key.team if kind == TEAM else key.user) == id:
                raise InFile(f"The key {key.alias!r} of the key file names the {kind} {id!r}.", kind, id)
        team, user = (id, None) if kind == TEAM else (None, id)
        for each in subject_rows.ids(self._connection, KEY, team=team, user=user):
            self._delete_key(self._there(KEY, each))

    def regenerate(self, old: str, new: str, how: Callable[[Subject], Subject], grace_until_us: int | None) -> Subject:
        """Let a key have another hash. Returns the key under the new one.

        Its budgets with all that is spent and held, its tally, its alias and the exchanges that run are the new hash's
        from now on. With a time
        of grace, the old hash, and earlier ones in their own grace, go on as names of the new key
        (`Subject.replaced_by`): they have no budgets, limits, team or user of their own. Without one, all of
        them end at once.

        Args:
            how: gives what the key is from now on, from what it is; the hash is taken care of.
            grace_until_us: until when the old hash goes on.

        Raises:
            NotThere: there is no such key, or it has been regenerated.
            InFile: it stands in the key file.
            AlreadyThere, AliasTaken: see `insert`.
        """
        before = self._there(KEY, old)
        if before.replaced_by is not None:
            raise NotThere(KEY, old)
        if new == old or new in self._file:
            raise AlreadyThere(KEY, new)
        after = replace(how(before), kind=KEY, id=new, replaced_by=None)
        names = [each for name in self._earlier(old) if (each := subject_rows.get(self._connection, KEY, name))]
        grace = 0
        if grace_until_us is not None and grace_until_us > self._now_us:
            grace = grace_until_us if before.expires_us is None else min(grace_until_us, before.expires_us)
            bare = replace(before, alias=None, team=None, user=None, terms=NO_TERMS, terms_of=None, tags=(), kept={})
            names.append(replace(bare, expires_us=grace))
        for id in (*self._earlier(old), old):
            self._delete_row(KEY, id)
        self._check(after, None)
        subject_rows.insert(self._connection, after)
        self._move_money(old, after)
        self._note(after)
        going_on = tuple(each for each in names if grace and (each.expires_us or 0) > self._now_us)
        for each in going_on:
            name = replace(each, replaced_by=new)
            subject_rows.insert(self._connection, name)
            self._note(name)
        self.earlier[old], self.earlier[new] = (), tuple(each.id for each in going_on)
        if _budgets(after) != _budgets(before):
            money.set_budgets(self._connection, after, self._now_us, self._zone)
        return after

    def reread(self, kind: str, id: str) -> None:
        """Gather what is in the table of a subject, for its last change may have been written or not."""
        subject = subject_rows.get(self._connection, kind, id)
        if subject is None:
            self.documents[kind, id] = None
            return
        self._note(subject)
        if subject.replaced_by is not None and id not in self._earlier(subject.replaced_by):
            self.earlier[subject.replaced_by] = (*self._earlier(subject.replaced_by), id)

    def _there(self, kind: str, id: str) -> Subject:
        self._refuse_file(kind, id)
        subject = subject_rows.get(self._connection, kind, id)
        if subject is None:
            raise NotThere(kind, id)
        return subject

    def _refuse_file(self, kind: str, id: str) -> None:
        if kind == KEY and id in self._file:
            raise InFile("The key stands in the key file, and is changed there.", kind, id)

    def _save(self, subject: Subject, before: Subject | None) -> None:
        self._check(subject, before)
        if before is None:
            subject_rows.insert(self._connection, subject)
            if subject.kind == KEY:  # one that was rotated away once is itself again
                _, caller = money.tally_id(KEY, subject.id)
                self._part(caller)
        else:
            subject_rows.replace(self._connection, subject)
        if subject.kind == TERMS:
            if before is not None and before.terms != subject.terms:
                for each in subject_rows.referring(self._connection, subject.id):
                    self._save(replace(each, terms=_merged(each.terms, before.terms, subject.terms)), each)
        elif subject.replaced_by is None and (before is None or _budgets(before) != _budgets(subject)):
            money.set_budgets(self._connection, subject, self._now_us, self._zone)
        self._note(subject)

    def _check(self, subject: Subject, before: Subject | None) -> None:
        was_replaced_by = before.replaced_by if before is not None else None
        if subject.in_file or subject.kind not in KINDS or subject.replaced_by != was_replaced_by:
            raise ValueError("such a subject has no row, or is not made this way")
        if subject.kind == KEY and subject.alias is not None and subject.alias in self._aliases:
            raise AliasTaken(subject.alias, subject.id)
        if subject.terms_of is not None and (before is None or subject.terms_of != before.terms_of):
            self._there(TERMS, subject.terms_of)

    def _forget(self, kind: str, id: str) -> None:
        self._delete_row(kind, id)
        money.drop_budgets(self._connection, kind, id)

    def _delete_row(self, kind: str, id: str) -> None:
        subject_rows.delete(self._connection, kind, id)
        self.documents[kind, id] = None

    def _note(self, subject: Subject) -> None:
        known = subject.kind != TERMS and (subject.kind != CUSTOMER or subject.governs)
        self.documents[subject.kind, subject.id] = to_document(subject) if known else None

    def _earlier(self, id: str) -> Sequence[str]:
        return self.earlier.get(id, self._earlier_before.get(id, ()))

    def _move_money(self, old: str, after: Subject) -> None:
        money.drop_budgets(self._connection, KEY, after.id)
        self._connection.execute("UPDATE budget SET subject = ? WHERE kind = ? AND subject = ?", (after.id, KEY, old))
        kind, from_id = money.tally_id(KEY, old)
        _, to_id = money.tally_id(KEY, after.id)
        rows.rename_caller(self._connection, from_id, to_id)
        self._connection.execute(_JOIN_TALLIES, (to_id, kind, from_id))
        self._connection.execute("DELETE FROM tally WHERE kind = ? AND id = ?", (kind, from_id))
        self._part(to_id)
        self._connection.execute("UPDATE renamed SET new = ? WHERE new = ?", (to_id, from_id))
        self._connection.execute("INSERT OR REPLACE INTO renamed (old, new) VALUES (?, ?)", (from_id, to_id))

    def _part(self, caller: str) -> None:
        """A caller that is there is nobody else, whatever it was before."""
        self._connection.execute("INSERT OR IGNORE INTO parted SELECT old, new FROM renamed WHERE old = ?", (caller,))
        self._connection.execute("DELETE FROM renamed WHERE old = ?", (caller,))


def _budgets(subject: Subject) -> tuple[tuple[Budget, ...], bool]:
    """What the table of budgets has of its terms."""
    return subject.terms.budgets, subject.terms.cut


def _merged(own: Terms, before: Terms, after: Terms) -> Terms:
    """The terms of a subject whose set of terms is another now: what it has in common with the old set changes."""
    figures = {
        name: getattr(after, name) for name in own.__struct_fields__ if getattr(own, name) == getattr(before, name)
    }
    return replace(own, **figures)
