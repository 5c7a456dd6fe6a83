"""Whatever is asked of a directory, in whatever order: memory is what the file says, and each budget is somebody's."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from zoneinfo import ZoneInfo

import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tproxy.store import money, subject_rows
from tproxy.store.directory import Directory, SubjectFault, open_directory
from tproxy.store.sqlite import open_ledger
from tproxy.store.subjects import KEY, TEAM, USER, Budget, Subject, Terms
from tproxy.tomlfile import SettingsFault

UTC = ZoneInfo("UTC")
NUMBERS = range(5)
numbers = st.sampled_from(NUMBERS)
names = st.sampled_from([None, "a", "b"])

OPERATIONS = st.one_of(
    st.tuples(st.just("create"), numbers, names, names),
    st.tuples(st.just("change"), numbers, names, st.none() | st.integers(1, 9)),
    st.tuples(st.just("delete"), st.sampled_from([KEY, TEAM, USER]), numbers),
    st.tuples(st.just("regenerate"), numbers, numbers, st.none() | st.integers(1, 20)),
    st.tuples(st.just("both"), numbers, numbers),
    st.tuples(st.just("file"), st.lists(numbers, unique=True, max_size=2), names),
)


def key(number: int, alias: str | None = None, team: str | None = None, limit: int | None = 1) -> Subject:
    terms = Terms(budgets=() if limit is None else (Budget("1d", limit),))
    return Subject(kind=KEY, id=f"{number:064x}", alias=alias, team=team, terms=terms)


async def do(directory: Directory, operation: tuple[object, ...], now: int) -> None:
    match operation:
        case ("create", int(number), str() | None as alias, str() | None as team):
            await directory.create(key(number, alias, team))
            if team is not None:
                await directory.create(Subject(kind=TEAM, id=team))
        case ("change", int(number), str() | None as alias, int() | None as limit):
            terms = key(number, limit=limit).terms
            await directory.change(KEY, key(number).id, lambda each: replace(each, alias=alias, terms=terms))
        case ("delete", str(kind), int(number)):
            await directory.delete(kind, key(number).id if kind == KEY else "ab"[number % 2])
        case ("regenerate", int(old), int(new), int() | None as grace):
            until = None if grace is None else now + grace
            await directory.regenerate(key(old).id, key(new).id, lambda each: each, until)
        case ("both", int(gone), int(put)):
            await directory.apply(lambda _: [key(put, team="a")], gone=[(KEY, key(gone).id)])
        case ("file", list(there), str() | None as alias):
            keys = [replace(key(number, alias if i == 0 else None), in_file=True) for i, number in enumerate(there)]
            await directory.set_file_keys({each.id: each for each in keys})


async def run(path: Path, operations: list[tuple[object, ...]]) -> None:
    now = 1
    async with open_ledger(path, zone=lambda: UTC) as ledger:
        directory = await open_directory(path, ledger, zone=lambda: UTC, clock=lambda: now)
        for operation in operations:
            now += 1
            with suppress(SubjectFault, SettingsFault, ValueError):
                await do(directory, operation, now)
        again = await open_directory(path, ledger, zone=lambda: UTC, clock=lambda: now)

        def look(connection: sqlite3.Connection) -> dict[str, list[int | None]]:
            ids = {subject for (subject,) in connection.execute("SELECT subject FROM budget WHERE kind = 'key'")}
            found = money.standings(connection, KEY, sorted(ids | {key(number).id for number in NUMBERS}), now, UTC)
            assert subject_rows.count(connection, KEY) == len(directory._documents[KEY])
            return {id: [each.limit_nano for each in standings] for id, standings in found.items()}

        budgets = await ledger.write(look)
    assert directory._documents == again._documents
    assert {id: set(names) for id, names in directory._earlier.items()} == {
        id: set(names) for id, names in again._earlier.items()
    }
    assert not directory.file_keys.keys() & directory._documents[KEY].keys()
    known = [each for number in NUMBERS if (each := directory.key(key(number).id))]
    aliases = [each.alias for each in known if each.alias is not None]
    assert len(aliases) == len(set(aliases))
    limits: dict[str, list[int | None]] = {key(number).id: [] for number in NUMBERS}
    for each in known:
        holder = directory.holder(each)
        assert holder == each if each.replaced_by is None else holder.id == each.replaced_by
        assert holder.replaced_by is None
        assert not holder.blocked
        if holder is each:
            limits[each.id] = [budget.limit_nano for budget in each.terms.budgets]
    assert budgets == limits


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([("create", 0, "a", None), ("regenerate", 0, 1, 20), ("regenerate", 1, 2, 20), ("delete", KEY, 2)])
@example([("create", 0, None, "a"), ("regenerate", 0, 1, 9), ("delete", TEAM, 0), ("create", 0, None, None)])
@example([("file", [0, 1], "a"), ("create", 2, "a", None), ("file", [1], None), ("create", 0, "a", None)])
@example([("create", 0, None, None), ("regenerate", 0, 1, 20), ("delete", KEY, 0)])
@given(st.lists(OPERATIONS, min_size=1, max_size=14))
def test_memory_is_what_the_file_says(operations: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory) / "t.db", operations)
