"""What all kinds of subjects have in common: making, changing and showing them.

A change reads what it changes within its own transaction, so that of two at a time neither is lost. What is shown is
read from the file afterwards, as anybody else would see it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from tproxy.manage.asked import Asked, TermsAsked, without_nulls
from tproxy.manage.auth import Asker
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Invalid
from tproxy.manage.translation import changed, row
from tproxy.protocol.keys import masked
from tproxy.store import money, subject_rows
from tproxy.store.directory import AlreadyThere, InFile, NotThere
from tproxy.store.subjects import KEY, NO_TERMS, TEAM, TERMS, Subject, Terms

log = structlog.get_logger("tproxy.manage")

Step = Callable[[sqlite3.Connection, Subject], Subject]


def new(desk: Desk, who: Asker, kind: str, id: str, **more: Any) -> Subject:
    """A subject that was made now."""
    now_us = desk.clock()
    return Subject(
        kind=kind, id=id, created_us=now_us, created_by=who.name, updated_us=now_us, updated_by=who.name, **more
    )


def made(connection: sqlite3.Connection, desk: Desk, subject: Subject, asked: Asked) -> Subject:
    """Within a change: a new subject as it was asked for.

    Raises:
        AlreadyThere: there is one with its id.
        NotThere, NotFound: there is no such budget or team as it asks for.
        Invalid, Unprocessable: see `translation.changed`.
    """
    if subject_rows.get(connection, subject.kind, subject.id) is not None or (
        subject.kind == KEY and subject.id in desk.directory.file_keys
    ):
        raise AlreadyThere(subject.kind, subject.id)
    return amended(connection, desk, subject, without_nulls(asked))


def amended(connection: sqlite3.Connection, desk: Desk, subject: Subject, asked: Asked) -> Subject:
    """Within a change: a subject with what was asked for, its `spend` too; raises as `made` does."""
    changeable(subject)
    warn_of_no_team(connection, subject, asked)
    now_us = desk.clock()
    subject = changed(shared_terms(connection, subject, asked), asked, now_us)
    if (spend := getattr(asked, "spend", None)) is not None:
        money.set_budgets(connection, subject, now_us, desk.zone())
        money.set_spent(connection, subject.kind, subject.id, spend, now_us, desk.zone())
    return subject


def changeable(subject: Subject) -> None:
    """Raise Invalid for a key in its time of grace: it has no terms of its own any more, nor money."""
    if subject.replaced_by is not None:
        raise Invalid(f"This key was replaced by another one; change that: {subject.replaced_by}")


def warn_of_no_team(connection: sqlite3.Connection, subject: Subject, asked: Asked) -> None:
    """Say so in the log if a key is put into a team that does not exist: no budget holds it there. LiteLLM takes such a
    key too, and programs rely on it: a team may be made after its keys."""
    team: str | None = getattr(asked, "team_id", None)
    if subject.kind != KEY or team is None or team == subject.team:
        return
    if subject_rows.get(connection, TEAM, team) is None:
        log.warning("a key is in a team that does not exist, and so under no budget of a team", team=masked(team))


def shared_terms(connection: sqlite3.Connection, subject: Subject, asked: Asked) -> Subject:
    """The subject with the terms of the budget that is asked for; where null is, without those of the one it had.

    Raises:
        NotThere: there is no such budget.
    """
    if not isinstance(asked, TermsAsked) or "budget_id" not in asked.model_fields_set or subject.kind == TERMS:
        return subject
    wanted: str | None = getattr(asked, "budget_id", None)
    if wanted == subject.terms_of:
        return subject
    if wanted is not None:
        found = subject_rows.get(connection, TERMS, wanted)
        if found is None:
            raise NotThere(TERMS, wanted)
        return msgspec.structs.replace(subject, terms=found.terms)
    before = subject_rows.get(connection, TERMS, subject.terms_of or "")
    return msgspec.structs.replace(subject, terms=_own(subject.terms, before.terms if before else NO_TERMS))


def _own(terms: Terms, shared: Terms) -> Terms:
    """What of some terms differs from the shared ones."""
    names = Terms.__struct_fields__
    return Terms(**{name: getattr(terms, name) for name in names if getattr(terms, name) != getattr(shared, name)})


async def create(desk: Desk, subject: Subject, asked: Asked) -> Subject:
    """Add a subject as it was asked for; raises as `made` does, and AliasTaken, LedgerUnavailable."""
    [subject] = await desk.directory.apply(lambda connection: [made(connection, desk, subject, asked)])
    return subject


async def amend(desk: Desk, who: Asker, kind: str, id: str, asked: Asked) -> Subject:
    """Change a subject as it was asked for; raises as `change` does, and Invalid, Unprocessable."""
    return await change(desk, who, kind, id, lambda connection, before: amended(connection, desk, before, asked))


async def change(desk: Desk, who: Asker, kind: str, id: str, step: Step) -> Subject:
    """Let a subject be what `step` makes of it within a transaction.

    Raises:
        NotThere, InFile, AliasTaken, LedgerUnavailable: see `Directory.change`.
    """

    def changing(connection: sqlite3.Connection) -> list[Subject]:
        after = step(connection, there(connection, desk, kind, id))
        return [msgspec.structs.replace(after, updated_us=desk.clock(), updated_by=who.name)]

    [subject] = await desk.directory.apply(changing)
    return subject


def there(connection: sqlite3.Connection, desk: Desk, kind: str, id: str) -> Subject:
    """A subject that has a row.

    Raises:
        NotThere, InFile: it has none.
    """
    if kind == KEY and id in desk.directory.file_keys:
        raise InFile("The key stands in the key file, and is changed there.", kind, id)
    subject = subject_rows.get(connection, kind, id)
    if subject is None:
        raise NotThere(kind, id)
    return subject


def blocking(blocked: bool) -> Step:
    """The step that blocks or unblocks."""
    return lambda _, subject: msgspec.structs.replace(subject, blocked=blocked)


async def show(desk: Desk, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Subjects in LiteLLM's form with what they have spent; keys with their hash in `token`."""
    return await desk.look(lambda connection: rows(connection, desk, subjects))


async def show_one(desk: Desk, subject: Subject) -> dict[str, Any]:
    """The same for one."""
    [page] = await show(desk, [subject])
    return page


def rows(connection: sqlite3.Connection, desk: Desk, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The same on a connection that reads. All are of one kind."""
    if not subjects:
        return []
    kind = subjects[0].kind
    holders = {each.id: _holder(desk, each) for each in subjects}
    ids = list(dict.fromkeys(holders.values()))
    standings = money.standings(connection, kind, ids, desk.clock(), desk.zone())
    tally_ids = {id: money.tally_id(kind, id) for id in ids}
    tally_kind = money.tally_id(kind, "")[0]
    tallies = money.tallies(connection, tally_kind, [id for _, id in tally_ids.values()])
    pages = []
    for each in subjects:
        holder = holders[each.id]
        page = row(each, standings[holder], tallies[tally_ids[holder][1]])
        pages.append({"token": each.id, **page} if kind == KEY else page)
    return pages


def _holder(desk: Desk, subject: Subject) -> str:
    return desk.directory.holder(subject).id if subject.kind == KEY else subject.id


def found(connection: sqlite3.Connection, kind: str, id: str) -> Subject:
    """A subject that is read.

    Raises:
        NotThere: there is none.
    """
    subject = subject_rows.get(connection, kind, id)
    if subject is None:
        raise NotThere(kind, id)
    return subject


def listed(
    connection: sqlite3.Connection, desk: Desk, kind: str, page: int, size: int, id: str | None = None
) -> tuple[list[dict[str, Any]], int]:
    """A page of the subjects of a kind, the newest first, and how many there are in all."""
    subjects = subject_rows.find(connection, kind, id=id, offset=(page - 1) * size, limit=size)
    return rows(connection, desk, subjects), subject_rows.count(connection, kind, id=id)


def paged(name: str, entries: Sequence[Any], total: int, page: int, size: int) -> Mapping[str, Any]:
    """A page as LiteLLM has it for users and teams."""
    return {name: entries, "total": total, "page": page, "page_size": size, "total_pages": -(-total // size)}
