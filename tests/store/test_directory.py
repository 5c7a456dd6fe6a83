from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
import trio
from msgspec.structs import replace

from tests.store.laws import make_closing, make_opening
from tproxy.errors import LedgerUnavailable
from tproxy.store import money, subject_rows
from tproxy.store.base import HARD, Claim, Standing
from tproxy.store.directory import AliasTaken, AlreadyThere, Directory, InFile, NotThere, open_directory
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import (
    CUSTOMER,
    KEY,
    NO_TERMS,
    PROXY,
    TAG,
    TEAM,
    TERMS,
    USER,
    Budget,
    Member,
    Subject,
    Terms,
)
from tproxy.tomlfile import SettingsFault

T = TypeVar("T")
UTC = ZoneInfo("UTC")
NOW = 1_764_000_000_000_000
DAY = 86_400_000_000
DOLLAR = 1_000_000_000


class Stubborn:
    """A ledger that writes, and where it is told to, says that it does not know whether it did."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.vague = self.refusing = False

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        if self.refusing:
            raise LedgerUnavailable("no")
        result = await self.ledger.write(change)
        if self.vague:
            raise LedgerUnavailable("perhaps")
        return result


@dataclass
class Place:
    """A directory over a database of its own."""

    path: Path
    ledger: SqliteLedger
    writer: Stubborn
    directory: Directory
    now: int = NOW

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        return await self.ledger.write(read)

    async def standings(self, kind: str, id: str) -> list[Standing]:
        return (await self.read(lambda c: money.standings(c, kind, [id], self.now, UTC)))[id]

    async def limits(self, kind: str, id: str) -> dict[str | None, tuple[int | None, int, int]]:
        """Of each period of a subject's budgets: the limit, what is spent, what is held."""
        return {
            each.period: (each.limit_nano, each.spent_nano, each.held_nano) for each in await self.standings(kind, id)
        }

    async def stored(self, kind: str, id: str) -> Subject | None:
        return await self.read(lambda c: subject_rows.get(c, kind, id))

    async def spend(self, number: int, kind: str, id: str, nano: int, **opening: Any) -> None:
        """One exchange, from its claim to its end."""
        ticket = self.ledger.open(make_opening(number, **opening), [Claim(kind, id, HARD, nano)])
        assert await ticket.admitted() is None
        self.ledger.close(make_closing(number, cost_nano=nano))

    async def again(self) -> Directory:
        """What a process that starts now would know."""
        return await open_directory(self.path, self.ledger, zone=lambda: UTC, clock=lambda: self.now)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Place]:
    async with open_ledger(path, zone=lambda: UTC, now_us=lambda: NOW) as ledger:
        writer = Stubborn(ledger)
        place = Place(path, ledger, writer, None)  # type: ignore[arg-type]
        place.directory = await open_directory(path, writer, zone=lambda: UTC, clock=lambda: place.now)
        yield place


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path / "t.db") as made:
        yield made


def hash_of(number: int) -> str:
    return f"{number:064x}"


def key(number: int, limit: int | None = None, **more: Any) -> Subject:
    terms = NO_TERMS if limit is None else Terms(budgets=(Budget(limit_nano=limit),))
    return Subject(**{"kind": KEY, "id": hash_of(number), "terms": terms, "created_us": number, **more})


def always(subject: Subject) -> Callable[[Subject], Subject]:
    return lambda _: subject


def file_key(number: int, limit: int | None = None, **more: Any) -> Subject:
    return key(number, limit, in_file=True, **more)


def by_hash(*keys: Subject) -> dict[str, Subject]:
    return {each.id: each for each in keys}


DAILY = Terms(budgets=(Budget("1d", 5 * DOLLAR), Budget(None, 50 * DOLLAR, 40 * DOLLAR)), rpm=10)


@pytest.mark.parametrize("kind", [KEY, TEAM, USER, CUSTOMER, TAG])
async def test_who_is_created_is_known_at_once_and_after_a_restart(place: Place, kind: str) -> None:
    subject = Subject(kind=kind, id="x", alias="a", terms=DAILY, metadata={"room": "2.14"})
    await place.directory.create(subject)
    assert place.directory.find(kind, "x") == subject == await place.stored(kind, "x")
    assert (await place.again()).find(kind, "x") == subject
    assert await place.limits(kind, "x") == {"1d": (5 * DOLLAR, 0, 0), None: (50 * DOLLAR, 0, 0)}
    assert place.directory.key("x") == (subject if kind == KEY else None)
    with pytest.raises(AlreadyThere):
        await place.directory.create(replace(subject, terms=NO_TERMS))
    assert place.directory.find(kind, "x") == subject
    assert len(await place.standings(kind, "x")) == 2


async def test_who_is_not_known(place: Place) -> None:
    for kind in (KEY, TEAM, USER, CUSTOMER, TAG, TERMS, PROXY, "nonsense"):
        assert place.directory.find(kind, "") is None
        for attempt in (place.directory.delete(kind, ""), place.directory.change(kind, "", lambda each: each)):
            with pytest.raises(NotThere) as caught:
                await attempt
            assert (caught.value.kind, caught.value.id) == (kind, "")


async def test_a_change_is_made_of_what_is_in_the_database_and_keeps_what_is_spent(place: Place) -> None:
    await place.directory.create(key(1, 9 * DOLLAR))
    await place.spend(1, KEY, hash_of(1), 2 * DOLLAR)
    changed = await place.directory.change(KEY, hash_of(1), lambda each: replace(each, terms=DAILY, alias="a"))
    assert changed == key(1, alias="a", terms=DAILY) == place.directory.key(hash_of(1))
    assert (await place.again()).key(hash_of(1)) == changed
    assert await place.limits(KEY, hash_of(1)) == {"1d": (5 * DOLLAR, 0, 0), None: (50 * DOLLAR, 2 * DOLLAR, 0)}
    await place.directory.update(replace(changed, blocked=True, terms=NO_TERMS))
    assert place.directory.key(hash_of(1)) == key(1, alias="a", blocked=True)
    assert await place.limits(KEY, hash_of(1)) == {}


async def test_a_budget_cuts_from_when_its_terms_say_so(place: Place) -> None:
    await place.directory.create(key(1, DOLLAR))
    await place.directory.change(KEY, hash_of(1), lambda each: replace(each, terms=replace(each.terms, cut=True)))
    assert await place.read(lambda c: c.execute("SELECT cut FROM budget").fetchall()) == [(1,)]


async def test_concurrent_changes_of_one_subject_lose_none(place: Place) -> None:
    await place.directory.create(key(1))
    async with trio.open_nursery() as together:
        for number in range(30):

            async def add(tag: str = str(number)) -> None:
                await place.directory.change(KEY, hash_of(1), lambda each: replace(each, tags=(*each.tags, tag)))

            together.start_soon(add)
    known = place.directory.key(hash_of(1))
    assert known == await place.stored(KEY, hash_of(1))
    assert known is not None
    assert sorted(known.tags, key=int) == [str(number) for number in range(30)]


async def test_what_a_change_raises_undoes_it(place: Place) -> None:
    await place.directory.create(key(1, DOLLAR))

    def fail(_: Subject) -> Subject:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await place.directory.change(KEY, hash_of(1), fail)
    for other in (key(2), replace(key(1), kind=TEAM), replace(key(1), replaced_by=hash_of(2))):
        with pytest.raises(ValueError, match="another one"):
            await place.directory.change(KEY, hash_of(1), always(other))
    with pytest.raises(ValueError, match="not made this way"):
        await place.directory.apply(lambda _: [key(1, replaced_by=hash_of(2))])
    for odd in (file_key(2), Subject(kind=PROXY, id=""), Subject(kind="x", id=""), key(2, replaced_by=hash_of(1))):
        with pytest.raises(ValueError, match="not made this way"):
            await place.directory.create(odd)
    assert place.directory.key(hash_of(1)) == key(1, DOLLAR) == await place.stored(KEY, hash_of(1))
    assert place.directory.key(hash_of(2)) is None


async def test_an_alias_is_given_once(place: Place) -> None:
    await place.directory.create(key(1, alias="a"))
    await place.directory.create(key(2, alias="b"))
    with pytest.raises(AliasTaken):
        await place.directory.create(key(3, alias="a"))
    with pytest.raises(AliasTaken):
        await place.directory.update(key(2, alias="a"))
    assert place.directory.key(hash_of(3)) is None
    assert place.directory.key(hash_of(2)) == key(2, alias="b")
    await place.directory.delete(KEY, hash_of(1))
    await place.directory.update(key(2, alias="a"))


async def test_a_ledger_that_cannot_write_leaves_memory_as_it_was(place: Place) -> None:
    await place.directory.create(key(1, DOLLAR))
    await place.directory.set_file_keys(by_hash(file_key(5)))
    place.writer.refusing = True
    directory = place.directory
    for attempt in (
        directory.create(key(2)),
        directory.update(key(1, blocked=True)),
        directory.delete(KEY, hash_of(1)),
        directory.regenerate(hash_of(1), hash_of(3), lambda each: each),
        directory.apply(lambda _: [key(4)]),
        directory.set_file_keys({}),
        directory.set_proxy(DAILY),
    ):
        with pytest.raises(LedgerUnavailable):
            await attempt
    known = [number for number in range(1, 6) if directory.key(hash_of(number))]
    assert known == [1, 5]
    assert directory.key(hash_of(1)) == key(1, DOLLAR)
    assert directory.find(PROXY, "") is None


async def test_what_may_have_been_written_is_read_with_the_next_change(place: Place) -> None:
    for number in (1, 2, 6):
        await place.directory.create(key(number))
    place.writer.vague = True
    for attempt in (
        place.directory.update(key(1, blocked=True)),
        place.directory.delete(KEY, hash_of(2)),
        place.directory.create(key(3)),
        place.directory.regenerate(hash_of(6), hash_of(7), lambda each: each, NOW + DAY),
    ):
        with pytest.raises(LedgerUnavailable):
            await attempt
    assert place.directory.key(hash_of(1)) == key(1)  # memory never runs ahead
    place.writer.vague = False
    await place.directory.create(key(4))
    again = await place.again()
    for number in range(1, 8):
        assert place.directory.key(hash_of(number)) == again.key(hash_of(number))
    assert place.directory.key(hash_of(1)) == key(1, blocked=True)
    await place.directory.delete(KEY, hash_of(7))
    assert place.directory.key(hash_of(6)) is None


async def test_a_change_that_was_refused_for_itself_is_not_read_again(place: Place) -> None:
    place.writer.refusing = True
    with pytest.raises(LedgerUnavailable):
        await place.directory.create(key(1))
    place.writer.refusing = False
    await place.directory.create(key(1, DOLLAR))
    assert place.directory.key(hash_of(1)) == key(1, DOLLAR)


async def test_a_change_that_has_begun_is_made_though_nobody_waits_for_it(place: Place) -> None:
    await place.directory.create(key(1))
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as leaving:

        def leave(subject: Subject) -> Subject:
            trio.from_thread.run_sync(leaving.cancel, trio_token=token)
            return replace(subject, blocked=True)

        await place.directory.change(KEY, hash_of(1), leave)
        await trio.sleep_forever()
    assert leaving.cancelled_caught
    assert place.directory.key(hash_of(1)) == key(1, blocked=True) == await place.stored(KEY, hash_of(1))


async def test_a_change_waits_its_turn_and_not_for_ever(place: Place, autojump_clock: trio.testing.MockClock) -> None:
    entered = trio.Event()

    class Hanging:
        async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
            entered.set()
            await trio.sleep(1000)
            raise LedgerUnavailable("at last")

    directory = Directory(Hanging(), lambda: UTC, lambda: NOW)
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(LedgerUnavailable, match="at last"):
                await directory.create(key(1))

        nursery.start_soon(first)
        await entered.wait()
        started = trio.current_time()
        with pytest.raises(LedgerUnavailable, match="in time"):
            await directory.create(key(2))
        assert trio.current_time() - started == 10


async def test_a_customer_without_a_say_is_in_the_database_only(place: Place) -> None:
    quiet = Subject(kind=CUSTOMER, id="c", metadata={"a": 1})
    await place.directory.create(quiet)
    assert place.directory.find(CUSTOMER, "c") is None
    assert await place.stored(CUSTOMER, "c") == quiet
    blocked = await place.directory.change(CUSTOMER, "c", lambda each: replace(each, blocked=True))
    assert place.directory.find(CUSTOMER, "c") == blocked == (await place.again()).find(CUSTOMER, "c")
    await place.directory.update(quiet)
    assert place.directory.find(CUSTOMER, "c") is None
    assert (await place.again()).find(CUSTOMER, "c") is None


async def test_a_customer_whom_the_ledger_met_can_be_given_terms(place: Place) -> None:
    await place.ledger.open(make_opening(1, customer="met")).durable()
    place.ledger.close(make_closing(1))
    assert place.directory.find(CUSTOMER, "met") is None
    await place.directory.change(CUSTOMER, "met", lambda each: replace(each, terms=DAILY))
    found = place.directory.find(CUSTOMER, "met")
    assert found is not None
    assert found.terms == DAILY


async def test_a_deleted_key_leaves_nothing(place: Place) -> None:
    await place.directory.create(key(1, DOLLAR, alias="a"))
    await place.spend(1, KEY, hash_of(1), DOLLAR)
    assert await place.directory.delete(KEY, hash_of(1)) == key(1, DOLLAR, alias="a")
    assert place.directory.key(hash_of(1)) is None
    assert await place.stored(KEY, hash_of(1)) is None
    await place.directory.create(key(1, DOLLAR, alias="a"))
    assert await place.limits(KEY, hash_of(1)) == {None: (DOLLAR, 0, 0)}


@pytest.mark.parametrize("kind", [TEAM, USER])
async def test_the_keys_of_a_team_or_user_go_with_it(place: Place, kind: str) -> None:
    field = "team" if kind == TEAM else "user"
    other = "user" if kind == TEAM else "team"
    await place.directory.create(Subject(kind=kind, id="x", terms=DAILY))
    for number, place_of, name in ((1, field, "x"), (2, field, "y"), (3, other, "x")):
        await place.directory.create(replace(key(number, DOLLAR), **{place_of: name}))
    await place.directory.regenerate(hash_of(1), hash_of(4), lambda each: each, NOW + DAY)
    await place.directory.delete(kind, "x")
    for directory in (place.directory, await place.again()):
        assert directory.find(kind, "x") is None
        assert [number for number in range(1, 5) if directory.key(hash_of(number))] == [2, 3]
    assert await place.standings(kind, "x") == []
    assert await place.standings(KEY, hash_of(4)) == []


async def test_a_deleted_user_leaves_the_teams(place: Place) -> None:
    for team, members in (("s", ("u", "v")), ("t", ("v",))):
        await place.directory.create(Subject(kind=TEAM, id=team, members=tuple(map(Member, members))))
    await place.directory.create(Subject(kind=USER, id="u"))
    await place.directory.delete(USER, "u")
    for directory in (place.directory, await place.again()):
        for team in ("s", "t"):
            assert directory.find(TEAM, team) == Subject(kind=TEAM, id=team, members=(Member("v"),))


async def test_terms_change_those_who_have_them_and_leave_what_is_their_own(place: Place) -> None:
    gold = Terms(budgets=(Budget("1d", DOLLAR),), rpm=10, mode="hard")
    await place.directory.create(Subject(kind=TERMS, id="gold", terms=gold))
    own = replace(gold, rpm=3, parallel=1)
    for each in (
        key(1, terms=gold, terms_of="gold"),
        Subject(kind=CUSTOMER, id="c", terms=gold, terms_of="gold"),
        Subject(kind=TEAM, id="t", terms=own, terms_of="gold"),
        key(2, terms=gold),
    ):
        await place.directory.create(each)
    await place.spend(1, KEY, hash_of(1), DOLLAR)
    better = Terms(budgets=(Budget("1d", 2 * DOLLAR), Budget("1mo", 9 * DOLLAR)), rpm=20)
    await place.directory.change(TERMS, "gold", lambda each: replace(each, terms=better))
    for directory in (place.directory, await place.again()):
        assert directory.find(KEY, hash_of(1)) == key(1, terms=better, terms_of="gold")
        assert directory.find(CUSTOMER, "c") == Subject(kind=CUSTOMER, id="c", terms=better, terms_of="gold")
        team = directory.find(TEAM, "t")
        assert team is not None
        assert team.terms == replace(better, rpm=3, parallel=1)
        assert directory.find(KEY, hash_of(2)) == key(2, terms=gold)
    assert await place.limits(KEY, hash_of(1)) == {"1d": (2 * DOLLAR, DOLLAR, 0), "1mo": (9 * DOLLAR, 0, 0)}
    assert await place.limits(KEY, hash_of(2)) == {"1d": (DOLLAR, 0, 0)}
    assert await place.standings(TERMS, "gold") == []


async def test_deleted_terms_are_kept_by_those_who_had_them(place: Place) -> None:
    await place.directory.create(Subject(kind=TERMS, id="gold", terms=DAILY))
    await place.directory.create(key(1, terms=DAILY, terms_of="gold"))
    await place.directory.delete(TERMS, "gold")
    assert place.directory.key(hash_of(1)) == key(1, terms=DAILY) == await place.stored(KEY, hash_of(1))
    assert len(await place.standings(KEY, hash_of(1))) == 2
    with pytest.raises(NotThere, match="terms 'gold'"):
        await place.directory.create(key(2, terms_of="gold"))
    with pytest.raises(NotThere, match="terms 'gold'"):
        await place.directory.update(key(1, terms=DAILY, terms_of="gold"))


async def test_several_at_once_are_all_changed_or_none(place: Place) -> None:
    for number in (1, 2, 3):
        await place.directory.create(key(number, DOLLAR))

    def block(connection: sqlite3.Connection) -> Sequence[Subject]:
        found = subject_rows.find(connection, KEY, newest_first=False)
        return [*(replace(each, blocked=True) for each in found), key(9, DOLLAR)]

    with pytest.raises(NotThere):
        await place.directory.apply(block, gone=[(KEY, hash_of(1)), (KEY, hash_of(7))])
    assert [place.directory.key(hash_of(number)) for number in (1, 2, 9)] == [key(1, DOLLAR), key(2, DOLLAR), None]
    changed = await place.directory.apply(block, gone=[(KEY, hash_of(1))])
    assert changed == [key(2, DOLLAR, blocked=True), key(3, DOLLAR, blocked=True), key(9, DOLLAR)]
    for directory in (place.directory, await place.again()):
        assert [directory.key(hash_of(number)) for number in (1, 2, 3, 9)] == [None, *changed]
    assert await place.limits(KEY, hash_of(9)) == {None: (DOLLAR, 0, 0)}
    assert await place.standings(KEY, hash_of(1)) == []


async def test_what_goes_with_another_is_not_missed(place: Place) -> None:
    await place.directory.create(Subject(kind=TEAM, id="t"))
    await place.directory.create(key(1, team="t"))
    await place.directory.apply(lambda _: (), gone=[(TEAM, "t"), (KEY, hash_of(1))])
    assert place.directory.key(hash_of(1)) is None


class TestRegenerate:
    async def test_all_that_a_key_has_is_the_new_hashs(self, place: Place) -> None:
        old = key(1, 9 * DOLLAR, alias="a", team="t", tags=("x",), models=("m",), last4="aaaa")
        await place.directory.create(old)
        await place.spend(1, KEY, old.id, 2 * DOLLAR, caller=f"key:{old.id}")
        held = place.ledger.open(make_opening(2, caller=f"key:{old.id}"), [Claim(KEY, old.id, HARD, 3 * DOLLAR)])
        assert await held.admitted() is None
        told: list[tuple[str, str, bool]] = []
        place.directory.on_rotated = lambda *ids: told.append((*ids, place.directory.key(ids[1]) is not None))
        new = await place.directory.regenerate(old.id, hash_of(2), lambda each: replace(each, last4="bbbb"))
        assert told == [(old.id, new.id, True)]
        assert new == replace(old, id=hash_of(2), last4="bbbb")
        for directory in (place.directory, await place.again()):
            assert directory.key(old.id) is None
            assert directory.key(new.id) == new == directory.holder(new)
        assert await place.limits(KEY, new.id) == {None: (9 * DOLLAR, 2 * DOLLAR, 3 * DOLLAR)}
        assert await place.standings(KEY, old.id) == []
        tallies = await place.read(lambda c: money.tallies(c, "caller", [f"key:{old.id}", f"key:{new.id}"]))
        assert tallies[f"key:{old.id}"] == money.Tally()
        assert (tallies[f"key:{new.id}"].exchanges, tallies[f"key:{new.id}"].cost_nano) == (1, 2 * DOLLAR)
        place.ledger.close(make_closing(2, cost_nano=DOLLAR))  # it ran all the while
        assert await place.limits(KEY, new.id) == {None: (9 * DOLLAR, 3 * DOLLAR, 0)}
        tallies = await place.read(lambda c: money.tallies(c, "caller", [f"key:{old.id}", f"key:{new.id}"]))
        assert [tally.cost_nano for tally in tallies.values()] == [0, 3 * DOLLAR]
        late = place.ledger.open(make_opening(3), [Claim(KEY, old.id, HARD, 1)])  # by somebody who looked before
        refusal = await late.admitted()
        assert refusal is not None
        assert refusal.stale
        with pytest.raises(NotThere):
            await place.directory.regenerate(old.id, hash_of(3), lambda each: each)
        assert len(told) == 1

    async def test_the_old_hash_goes_on_for_a_time_as_the_same_key(self, place: Place) -> None:
        old = key(1, DOLLAR, alias="a", team="t", models=("m",), last4="aaaa", terms=DAILY)
        await place.directory.create(old)
        new = await place.directory.regenerate(old.id, hash_of(2), lambda each: each, NOW + DAY)
        for directory in (place.directory, await place.again()):
            name = directory.key(old.id)
            assert name is not None
            assert (name.replaced_by, name.expires_us, name.last4) == (new.id, NOW + DAY, "aaaa")
            assert (name.models, name.terms, name.team, name.alias) == (("m",), NO_TERMS, None, None)
            assert directory.holder(name) == new
        assert await place.standings(KEY, old.id) == []
        await place.directory.change(KEY, old.id, lambda each: replace(each, terms=DAILY, blocked=True))
        assert await place.standings(KEY, old.id) == []  # whatever is said of it
        with pytest.raises(NotThere):
            await place.directory.regenerate(old.id, hash_of(3), lambda each: each)

    async def test_new_terms_count_on_from_what_is_spent(self, place: Place) -> None:
        await place.directory.create(key(1, 9 * DOLLAR))
        await place.spend(1, KEY, hash_of(1), 2 * DOLLAR)
        await place.directory.regenerate(hash_of(1), hash_of(2), lambda each: replace(each, terms=DAILY))
        assert await place.limits(KEY, hash_of(2)) == {"1d": (5 * DOLLAR, 0, 0), None: (50 * DOLLAR, 2 * DOLLAR, 0)}

    async def test_again_and_again(self, place: Place) -> None:
        await place.directory.create(key(1, 9 * DOLLAR, alias="a"))
        for number in range(1, 6):
            await place.spend(number, KEY, hash_of(number), DOLLAR)
            grace = NOW + number * DAY
            await place.directory.regenerate(hash_of(number), hash_of(number + 1), lambda each: each, grace)
        for directory in (place.directory, await place.again()):
            last = directory.key(hash_of(6))
            assert last == key(6, 9 * DOLLAR, alias="a", created_us=1)
            for number in range(1, 6):
                name = directory.key(hash_of(number))
                assert name is not None
                assert name.expires_us == NOW + number * DAY
                assert directory.holder(name) == last  # one step, however long the way was
        assert await place.limits(KEY, hash_of(6)) == {None: (9 * DOLLAR, 5 * DOLLAR, 0)}

        place.now += 2 * DAY  # the first two are over
        await place.directory.regenerate(hash_of(6), hash_of(7), lambda each: each, place.now + DAY)
        assert [n for n in range(1, 8) if place.directory.key(hash_of(n))] == [3, 4, 5, 6, 7]
        await place.directory.delete(KEY, hash_of(4))
        await place.directory.regenerate(hash_of(7), hash_of(8), lambda each: each)  # without grace: all of them end
        for directory in (place.directory, await place.again()):
            assert [n for n in range(1, 9) if directory.key(hash_of(n))] == [8]

    async def test_no_grace_outlives_the_key(self, place: Place) -> None:
        await place.directory.create(key(1, expires_us=NOW + 5))
        await place.directory.regenerate(hash_of(1), hash_of(2), lambda each: replace(each, expires_us=None), NOW + DAY)
        name = place.directory.key(hash_of(1))
        assert name is not None
        assert name.expires_us == NOW + 5
        await place.directory.regenerate(hash_of(2), hash_of(3), lambda each: each, NOW)  # a grace that is over
        assert place.directory.key(hash_of(2)) is None

    async def test_the_old_hash_ends_with_the_new_one(self, place: Place) -> None:
        await place.directory.create(key(1))
        await place.directory.regenerate(hash_of(1), hash_of(2), lambda each: each, NOW + DAY)
        await place.directory.delete(KEY, hash_of(2))
        for directory in (place.directory, await place.again()):
            assert directory.key(hash_of(1)) is None
        assert await place.read(lambda c: subject_rows.count(c, KEY)) == 0

    async def test_a_name_of_nothing_opens_nothing(self, place: Place) -> None:
        lost = key(1, replaced_by=hash_of(2))
        assert place.directory.holder(lost).blocked

    async def test_what_it_cannot_become(self, place: Place) -> None:
        await place.directory.create(key(1, DOLLAR, alias="a"))
        await place.directory.create(key(2, alias="b"))
        await place.directory.set_file_keys(by_hash(file_key(5, alias="f")))
        for new in (hash_of(1), hash_of(2), hash_of(5)):
            with pytest.raises(AlreadyThere):
                await place.directory.regenerate(hash_of(1), new, lambda each: each)
        for alias in ("b", "f"):
            with pytest.raises(AliasTaken):
                await place.directory.regenerate(hash_of(1), hash_of(3), always(key(1, alias=alias)))
        with pytest.raises(InFile):
            await place.directory.regenerate(hash_of(5), hash_of(3), lambda each: each)
        with pytest.raises(NotThere):
            await place.directory.regenerate(hash_of(7), hash_of(3), lambda each: each)
        assert place.directory.key(hash_of(1)) == key(1, DOLLAR, alias="a") == await place.stored(KEY, hash_of(1))
        assert await place.limits(KEY, hash_of(1)) == {None: (DOLLAR, 0, 0)}

    async def test_two_tallies_become_one(self, place: Place) -> None:
        await place.directory.create(key(1))
        for number in (1, 2):
            place.ledger.open(make_opening(number, caller=f"key:{hash_of(number)}"))
            place.ledger.close(make_closing(number, cost_nano=DOLLAR))
        await place.directory.regenerate(hash_of(1), hash_of(2), lambda each: each)
        tally = (await place.read(lambda c: money.tallies(c, "caller", [f"key:{hash_of(2)}"])))[f"key:{hash_of(2)}"]
        assert (tally.exchanges, tally.cost_nano) == (2, 2 * DOLLAR)


class TestKeysOfTheFile:
    async def test_they_are_known_and_have_budgets(self, place: Place) -> None:
        there = file_key(1, DOLLAR, alias="a")
        await place.directory.set_file_keys(by_hash(there))
        assert place.directory.key(hash_of(1)) == place.directory.find(KEY, hash_of(1)) == there
        assert dict(place.directory.file_keys) == {hash_of(1): there}
        assert await place.stored(KEY, hash_of(1)) is None
        await place.spend(1, KEY, hash_of(1), 400)
        await place.directory.set_file_keys(by_hash(file_key(1, 2 * DOLLAR), file_key(2, DOLLAR)))
        assert await place.limits(KEY, hash_of(1)) == {None: (2 * DOLLAR, 400, 0)}
        assert await place.limits(KEY, hash_of(2)) == {None: (DOLLAR, 0, 0)}
        await place.directory.set_file_keys(by_hash(file_key(2)))
        assert place.directory.key(hash_of(1)) is None
        for number in (1, 2):
            assert await place.standings(KEY, hash_of(number)) == []

    async def test_budgets_last_over_a_restart_unless_the_key_has_gone_meanwhile(self, place: Place) -> None:
        await place.directory.create(key(3, DOLLAR))
        await place.directory.set_file_keys(by_hash(file_key(1, DOLLAR), file_key(2, DOLLAR)))
        for number in (1, 2, 3):
            await place.spend(number, KEY, hash_of(number), 500)
        again = await place.again()
        await again.set_file_keys(by_hash(file_key(1, DOLLAR)))
        spent = {
            number: [each.spent_nano for each in await place.standings(KEY, hash_of(number))] for number in (1, 2, 3)
        }
        assert spent == {1: [500], 2: [], 3: [500]}

    async def test_they_are_changed_in_the_file_only(self, place: Place) -> None:
        there = file_key(1, alias="a", team="t", user="u")
        await place.directory.set_file_keys(by_hash(there))
        for each in (Subject(kind=TEAM, id="t"), Subject(kind=USER, id="u")):
            await place.directory.create(each)
        for attempt in (
            place.directory.change(KEY, hash_of(1), lambda each: replace(each, blocked=True)),
            place.directory.update(key(1)),
            place.directory.delete(KEY, hash_of(1)),
            place.directory.apply(lambda _: [key(1)]),
            place.directory.apply(lambda _: [], gone=[(KEY, hash_of(1))]),
            place.directory.delete(TEAM, "t"),
            place.directory.delete(USER, "u"),
        ):
            with pytest.raises(InFile):
                await attempt
        with pytest.raises(AlreadyThere):
            await place.directory.create(key(1))
        for alias_taken in (
            place.directory.create(key(2, alias="a")),
            place.directory.apply(lambda _: [key(2, alias="a")]),
        ):
            with pytest.raises(AliasTaken):
                await alias_taken
        assert place.directory.key(hash_of(1)) == there
        assert place.directory.find(TEAM, "t") is not None
        assert await place.read(lambda c: subject_rows.count(c, KEY)) == 0

    async def test_a_file_at_odds_with_the_database_is_refused_whole(self, place: Place) -> None:
        await place.directory.set_file_keys(by_hash(file_key(9, DOLLAR)))
        await place.directory.create(key(1, alias="a", terms=DAILY))
        with pytest.raises(SettingsFault) as caught:
            await place.directory.set_file_keys(by_hash(file_key(3), file_key(2, alias="a"), file_key(1, alias="z")))
        assert [fault.place for fault in caught.value.faults] == ["key file: key[1].alias", "key file: key[2]"]
        assert hash_of(1) not in str(caught.value)
        assert dict(place.directory.file_keys) == {hash_of(9): file_key(9, DOLLAR)}
        assert len(await place.standings(KEY, hash_of(9))) == 1
        assert await place.standings(KEY, hash_of(3)) == []
        await place.directory.delete(KEY, hash_of(1))
        await place.directory.set_file_keys(by_hash(file_key(1, alias="a")))
        assert place.directory.key(hash_of(1)) == file_key(1, alias="a")


async def test_the_whole_proxy_has_budgets_too(place: Place) -> None:
    await place.directory.set_proxy(DAILY)
    assert place.directory.find(PROXY, "") == Subject(kind=PROXY, id="", terms=DAILY)
    await place.spend(1, PROXY, "", DOLLAR)
    assert await place.limits(PROXY, "") == {"1d": (5 * DOLLAR, DOLLAR, 0), None: (50 * DOLLAR, DOLLAR, 0)}
    await place.directory.set_proxy(NO_TERMS)
    assert place.directory.find(PROXY, "") is None
    assert await place.standings(PROXY, "") == []
