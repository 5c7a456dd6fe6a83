"""Who is known: all that the flow asks about callers and whom they ask for, in memory, and the one way to change it.

    change ──► one write of the ledger: rows and budgets ──► durable ──► memory

Rules:
- Memory follows the database and never runs ahead: a change that was not written changes nothing. One change is made
  at a time, so memory sees them in the order of the file.
- A change that has begun is seen to its end, also where whoever asked for it has gone.
- Where it is not known whether a change was written (the disk hung), the next one reads its subjects again.
- A hash stands in the key file or in the database, not in both, and so does an alias of a key. A file that names one of
  the database is refused whole, and the API is refused one of the file. So the file is always at one with the database,
  and to move a key from one to the other is to take it away in the one first; its budgets then begin anew.
- Of customers, of whom there may be many, those without a say in any decision are not held. The sets of TERMS decide
  nothing by themselves, and are not held at all.

Subjects are held as their JSON documents, and decoded when they are asked for, in one or two microseconds: so 100,000
keys take 65 MB, a third of what they would take decoded, and the garbage collector has nothing to do with them. They
are loaded in half a second.

What goes with a change is in `subject_changes`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeVar
from zoneinfo import ZoneInfo

import trio
from msgspec.structs import replace

from tproxy.errors import LedgerUnavailable
from tproxy.store import money, subject_rows
from tproxy.store.reading import reading
from tproxy.store.subject_changes import Changes, InFile
from tproxy.store.subject_rows import AliasTaken, AlreadyThere, NotThere, SubjectFault
from tproxy.store.subjects import CUSTOMER, KEY, PROXY, TAG, TEAM, USER, Subject, Terms, from_document
from tproxy.tomlfile import PlacedFault, SettingsFault

__all__ = ["AliasTaken", "AlreadyThere", "Directory", "InFile", "NotThere", "SubjectFault", "open_directory"]

TURN_SECONDS: Final = 10.0  # how long a change waits for those before it
_HELD: Final = (KEY, TEAM, USER, CUSTOMER, TAG)

T = TypeVar("T")


class Writer(Protocol):
    """What is needed of the ledger; see `SqliteLedger.write`."""

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in a transaction and return what it returned once that is durable."""


class Directory:
    """See the head of this file; `open_directory` makes one that knows what is in the database.

    Every method that changes something raises `LedgerUnavailable` where it cannot be written.

    Args:
        ledger: what writes.
        zone: where the periods of budgets begin and end.
        clock: wall-clock microseconds since the epoch.

    Attributes:
        version: another number whenever somebody may be known otherwise than before.
        on_rotated: called with the old and the new hash of a key that was regenerated, once memory has changed.
    """

    def __init__(self, ledger: Writer, zone: Callable[[], ZoneInfo], clock: Callable[[], int]) -> None:
        self._ledger = ledger
        self._zone = zone
        self._clock = clock
        self.version = 0
        self.on_rotated: Callable[[str, str], None] = lambda old, new: None
        self._documents: dict[str, dict[str, str]] = {kind: {} for kind in _HELD}
        self._earlier: dict[str, tuple[str, ...]] = {}
        self._file: Mapping[str, Subject] = MappingProxyType({})
        self._file_read = False
        self._proxy: Subject | None = None
        self._turn = trio.Lock()
        self._unsure: list[list[Changes]] = []  # may be written or not; read by the ledger's thread alone

    def key(self, digest: str) -> Subject | None:
        """The key with this SHA-256, also if it has expired or is blocked."""
        return self._file.get(digest) or self._held(KEY, digest)

    def holder(self, key: Subject) -> Subject:
        """The key whose money, limits and rights a key shares: itself, or the one that replaced it."""
        if key.replaced_by is None:
            return key
        # It is deleted with the key that replaced it. Should that one be gone all the same, it opens nothing.
        return self.key(key.replaced_by) or replace(key, blocked=True)

    def find(self, kind: str, id: str) -> Subject | None:
        """A key, team, user, tag or the proxy; a customer only if it has a say in whether an exchange is let in."""
        if kind == KEY:
            return self.key(id)
        return self._proxy if kind == PROXY else self._held(kind, id)

    def _held(self, kind: str, id: str) -> Subject | None:
        document = self._documents[kind].get(id) if kind in self._documents else None
        return None if document is None else from_document(document)

    @property
    def file_keys(self) -> Mapping[str, Subject]:
        """The keys of the key file by their hash, in the order of the file."""
        return self._file

    async def create(self, subject: Subject) -> None:
        """Add a subject.

        Raises:
            AlreadyThere: its kind and id are taken; of a key, also by one of the file.
            AliasTaken: it is a key, and another one, also one of the file, has its alias.
            NotThere: there are no TERMS of its `terms_of`.
        """
        await self._write(lambda changes, _: changes.insert(subject))

    async def change(self, kind: str, id: str, how: Callable[[Subject], Subject]) -> Subject:
        """Let a subject be what `how` makes of what it is in the database now; so no two changes undo each other.

        Args:
            how: runs on the ledger's thread, and is quick. What it raises is raised here, and nothing is changed. Of
                what it is given it changes no kind, id or `replaced_by`.

        Returns:
            The new one.

        Raises:
            NotThere: there is none, or there are no TERMS of its new `terms_of`.
            InFile: it is a key of the file.
            AliasTaken: it is a key, and another one has its new alias.
        """
        return await self._write(lambda changes, _: changes.change(kind, id, how))

    async def update(self, subject: Subject) -> None:
        """Let a subject that is there be as given, whatever it was; raises as `change` does."""
        await self.change(subject.kind, subject.id, lambda _: subject)

    async def delete(self, kind: str, id: str) -> Subject:
        """Delete a subject with what belongs to it (`subject_changes`), and return what it was.

        Raises:
            NotThere: there is none.
            InFile: it is a key of the file, or a team or user that a key of the file names.
        """
        return await self._write(lambda changes, _: changes.delete(kind, id))

    async def apply(
        self, change: Callable[[sqlite3.Connection], Sequence[Subject]], gone: Iterable[tuple[str, str]] = ()
    ) -> Sequence[Subject]:
        """Change several subjects at once: all of it is done, or nothing.

        Args:
            change: runs on the ledger's thread; it reads what it needs (`subject_rows`), may set figures (`money`), and
                returns the subjects that are to be added or replaced. It writes no rows of subjects.
            gone: the kinds and ids of those that are deleted first, before `change` is called; one that is gone already
                with another of them is passed over.

        Returns:
            What `change` returned.

        Raises:
            NotThere, InFile, AliasTaken: see `change` and `delete`.
        """
        going = tuple(gone)

        def do(changes: Changes, connection: sqlite3.Connection) -> Sequence[Subject]:
            for kind, id in going:
                if changes.documents.get((kind, id), "") is not None:
                    changes.delete(kind, id)
            found = change(connection)
            for subject in found:
                changes.put(subject)
            return found

        return await self._write(do)

    async def regenerate(
        self, old_hash: str, new_hash: str, how: Callable[[Subject], Subject], grace_until_us: int | None = None
    ) -> Subject:
        """Let a key have another hash, with all that it has spent, and the old one go on for a time of grace.

        Returns:
            The key under its new hash.

        Raises:
            NotThere, InFile, AlreadyThere, AliasTaken: see `Changes.regenerate`.
        """
        return await self._write(
            lambda changes, _: changes.regenerate(old_hash, new_hash, how, grace_until_us),
            lambda: self.on_rotated(old_hash, new_hash),
        )

    async def set_file_keys(self, keys: Mapping[str, Subject]) -> None:
        """Take what the key file says now. The budgets of its keys are set, those of keys that went from it dropped.

        Raises:
            SettingsFault: keys of the database have hashes or aliases of the file; nothing has changed.
        """
        now_us, zone = self._clock(), self._zone()

        def do(_: Changes, connection: sqlite3.Connection) -> None:
            faults = [fault for i, key in enumerate(keys.values()) for fault in _conflicts(connection, i, key)]
            if faults:
                raise SettingsFault(faults)
            gone = self._file.keys() - keys.keys()
            # Only now and then, for it takes a tenth of a second with 100,000 keys.
            for id in gone if self._file_read else _without_key(connection) - keys.keys():
                money.drop_budgets(connection, KEY, id)
            for key in keys.values():
                money.set_budgets(connection, key, now_us, zone)

        def then() -> None:
            self._file = MappingProxyType(dict(keys))
            self._file_read = True

        await self._write(do, then)

    async def set_proxy(self, terms: Terms) -> None:
        """Take what the settings say of the whole proxy."""
        subject = Subject(kind=PROXY, id="", terms=terms)
        now_us, zone = self._clock(), self._zone()

        def then() -> None:
            self._proxy = subject if subject.governs else None

        await self._write(lambda _, connection: money.set_budgets(connection, subject, now_us, zone), then)

    async def _write(
        self, do: Callable[[Changes, sqlite3.Connection], T], then: Callable[[], None] = lambda: None
    ) -> T:
        """Let `do` be written, take what it changed into memory, and let `then` do the rest of that."""
        with trio.move_on_after(TURN_SECONDS) as waiting:
            await self._turn.acquire()
        if waiting.cancelled_caught:
            raise LedgerUnavailable("The ledger did not answer in time.")
        try:
            made: list[Changes] = []
            now_us, zone, unsure = self._clock(), self._zone(), tuple(self._unsure)

            def write(connection: sqlite3.Connection) -> T:
                made.append(changes := Changes(connection, now_us, zone, self._file, self._earlier))
                result = do(changes, connection)
                for kind, id in [subject for each in unsure for other in each for subject in other.documents]:
                    changes.reread(kind, id)
                return result

            try:
                with trio.CancelScope(shield=True):  # for as long as `SqliteLedger.write` waits at most
                    result = await self._ledger.write(write)
            except LedgerUnavailable:
                self._unsure.append(made)
                raise
            self._unsure.clear()
            self.version += 1
            self._take(made[-1])
            then()
            return result
        finally:
            self._turn.release()

    def _take(self, changes: Changes) -> None:
        for (kind, id), document in changes.documents.items():
            if document is not None:
                self._documents[kind][id] = document
            elif kind in self._documents:
                self._documents[kind].pop(id, None)
        for id, earlier in changes.earlier.items():
            if earlier:
                self._earlier[id] = earlier
            else:
                self._earlier.pop(id, None)

    def _load(self, path: Path) -> None:
        with reading(path) as connection:
            for kind in _HELD:
                self._documents[kind] = dict(subject_rows.documents(connection, kind))
        customers = self._documents[CUSTOMER]
        self._documents[CUSTOMER] = {id: text for id, text in customers.items() if from_document(text).governs}
        for id, text in self._documents[KEY].items():
            if '"replaced_by":' in text and (new := from_document(text).replaced_by) is not None:
                self._earlier[new] = (*self._earlier.get(new, ()), id)


async def open_directory(
    path: Path, ledger: Writer, *, zone: Callable[[], ZoneInfo], clock: Callable[[], int]
) -> Directory:
    """A directory that knows all that is in the database at `path`, which `ledger` keeps open.

    Raises:
        LedgerUnusable: the database cannot be read.
    """
    directory = Directory(ledger, zone, clock)
    await trio.to_thread.run_sync(directory._load, path)
    return directory


def _conflicts(connection: sqlite3.Connection, place: int, key: Subject) -> Iterable[PlacedFault]:
    """What the database has too of a key of the file."""
    if subject_rows.get(connection, KEY, key.id) is not None:
        yield PlacedFault(f"key file: key[{place}]", "is in the database already; delete it there or here")
    elif key.alias is not None and subject_rows.by_alias(connection, key.alias) is not None:
        yield PlacedFault(f"key file: key[{place}].alias", "is that of a key in the database; rename one of them")


def _without_key(connection: sqlite3.Connection) -> set[str]:
    """The hashes that have budgets and no row: keys of the file as it was read by an earlier process."""
    rows = connection.execute(
        "SELECT DISTINCT subject FROM budget WHERE kind = 'key' AND NOT EXISTS "
        "(SELECT 1 FROM subject WHERE subject.kind = 'key' AND subject.id = budget.subject)"
    )
    return {id for (id,) in rows}
