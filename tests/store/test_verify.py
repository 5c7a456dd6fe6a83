from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.crashes import mixed_claims, mixed_closing, mixed_opening
from tests.store.laws import T0, kept_sums, known, make_closing, make_opening, make_subject, summed
from tproxy.store.base import COUNTED, EXPECTED, FINISHED, OPEN, REFUSED, Claim, Closing, Opening
from tproxy.store.batch import Batch
from tproxy.store.budgets import Budgets
from tproxy.store.customers import Customers
from tproxy.store.directory import open_directory
from tproxy.store.file import LedgerFile
from tproxy.store.journal import Journal
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.money import FIGURE_MAX, set_budgets
from tproxy.store.reading import recent
from tproxy.store.retention import drop_oldest
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import KEY
from tproxy.store.sums import Sums
from tproxy.store.verify import Verdict, verify

DAY = 86_400_000_000
UTC = ZoneInfo("UTC")
IDS = [make_opening(number).id for number in range(12)]
CORE = [Claim("team", "core", EXPECTED, 60)]


async def _fill(path: Path, retained: int | None = None) -> None:
    """Exchanges of four days; 9 runs and holds something. Before day `retained`, rows are deleted."""
    async with open_ledger(path, now_us=lambda: T0, zone=lambda: UTC) as ledger:
        await ledger.write(lambda connection: set_budgets(connection, make_subject("team", "core", 10**9), T0, UTC))
        for number in range(9):
            await _end(ledger, number)
        await ledger.open(make_opening(9), CORE).durable()
        if retained is not None:
            before_us = T0 // DAY * DAY + retained * DAY
            await ledger.write(lambda connection: drop_oldest(connection, before_us, None, 500))
        # As a process that was killed leaves it.
        await trio.to_thread.run_sync(shutil.copy, path, path.with_suffix(".copy"))
        await trio.to_thread.run_sync(shutil.copy, f"{path}-wal", path.with_suffix(".copy-wal"))
    path.with_suffix(".copy").replace(path)
    path.with_suffix(".copy-wal").replace(f"{path}-wal")


async def _end(ledger: SqliteLedger, number: int) -> None:
    opening = make_opening(number, accepted_us=T0 + number % 4 * DAY, customer="acme", expected_nano=100)
    await ledger.open(opening, CORE).durable()
    ledger.close(make_closing(number, (FINISHED, REFUSED)[number % 2], cost_nano=7 + number))
    await ledger.write(lambda connection: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ledgers")
    trio.run(_fill, directory / "whole.db")
    trio.run(_fill, directory / "retained.db", 1)
    return directory


def _copy(files: Path, to: Path, name: str = "whole.db") -> Path:
    for file in files.glob(f"{name}*"):
        shutil.copy(file, to / file.name)
    return to / name


def _spoil(path: Path, *statements: str) -> Verdict:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
    return verify(path)


@pytest.mark.parametrize("name", ["whole.db", "retained.db"])
def test_all_holds(files: Path, tmp_path: Path, name: str) -> None:
    verdict = verify(_copy(files, tmp_path, name))
    assert verdict.faults == []
    assert verdict.holds
    assert (verdict.ended, verdict.running, verdict.entries) == ((9, 1, 9) if name == "whole.db" else (8, 1, 9))
    assert (verdict.budgets, verdict.reservations, verdict.newest) == (1, 1, 9)
    assert verdict.since_day == (None if name == "whole.db" else "2025-11-25")
    assert verdict.days == (4 if name == "whole.db" else 3)  # the 24th to the 27th, or since the 25th
    with closing(sqlite3.connect(tmp_path / name)) as connection:
        [daily] = connection.execute("SELECT count(*) FROM daily WHERE day >= ?", (verdict.since_day or "",)).fetchone()
    assert verdict.daily == daily


def _set(value: str, number: int = 4) -> str:
    return f"UPDATE exchange SET {value} WHERE id = '{IDS[number]}'"


_ROWS = {
    "cost": "cost_nano = cost_nano + 1",
    "cost gone": "cost_nano = NULL",
    "caller": "caller = 'key:other'",
    "team": "team = NULL",
    "tags": "tags = '[]'",
    "tags that are none": "tags = 'x'",
    "tags of another kind": "tags = '5'",
    "accepted": "accepted_us = accepted_us + 1",
    "ended": "ended = 'failed'",
    "ended at": "ended_us = NULL",
    "traceparent": "traceparent = 'x'",
    "tap fault": "tap_fault = NULL",
    "stream": "stream = 0",
    "tokens": "thinking_tokens = 1",
    "address": "client_address = ''",
    "running again": "ended = 'open'",
    "another id": "id = 'other'",
}


@pytest.mark.parametrize("value", _ROWS.values(), ids=_ROWS.keys())
def test_a_row_that_was_changed_is_found(files: Path, tmp_path: Path, value: str) -> None:
    verdict = _spoil(_copy(files, tmp_path), _set(value))
    assert any(fault.part == "journal" and IDS[4] in fault.place for fault in verdict.faults)


def test_only_the_changed_row_is_told(files: Path, tmp_path: Path) -> None:
    verdict = _spoil(_copy(files, tmp_path), _set("user_agent = 'x'"), _set("user_agent = 'x'", 8))
    assert [fault.place for fault in verdict.faults] == [f"entry 5, row {IDS[4]}", f"entry 9, row {IDS[8]}"]


_PLAIN = (
    "INSERT INTO exchange (id, accepted_us, method, path, upstream, caller, tags, ended) "
    "VALUES ('new', 1764000000000000, 'GET', '/', 'u', 'c', '[]', 'finished')"
)

# What is done to the file; the parts in which that is found, and a place that is named.
_SPOILT: dict[str, tuple[list[str], set[str], str]] = {
    "a row is gone": ([f"DELETE FROM exchange WHERE id = '{IDS[4]}'"], {"journal", "daily", "tally"}, IDS[4]),
    "a row and its entry are gone": (
        [f"DELETE FROM {table} WHERE id = '{IDS[4]}'" for table in ("exchange", "settled")],
        {"journal", "daily", "tally"},
        "entry 5",
    ),
    "the first row and its entry are gone": (
        [f"DELETE FROM {table} WHERE id = '{IDS[0]}'" for table in ("exchange", "settled")],
        {"journal", "daily", "tally"},
        "entry 1",
    ),
    "the last row and its entry are gone": (
        [f"DELETE FROM {table} WHERE id = '{IDS[8]}'" for table in ("exchange", "settled")],
        {"daily", "tally"},
        "day '2025-11-24'",
    ),
    "an entry is gone": ([f"DELETE FROM settled WHERE id = '{IDS[4]}'"], {"journal", "daily", "tally"}, IDS[4]),
    "a row was put in": ([_PLAIN], {"journal"}, "row new"),
    "a row was put in with an entry": (
        [_PLAIN, "INSERT INTO settled VALUES (10, 'new', x'00')"],
        {"journal", "daily", "tally"},
        "entry 10, row new",
    ),
    "an entry has a double": (
        [f"INSERT INTO settled SELECT 10, id, digest FROM settled WHERE id = '{IDS[4]}'"],
        {"journal", "daily", "tally"},
        f"row {IDS[4]}",
    ),
    "an entry without a row": (["INSERT INTO settled VALUES (10, 'new', x'00')"], {"journal"}, "entry 10, row new"),
    "two entries changed places": (
        [
            "UPDATE settled SET seq = 99 WHERE seq = 3",
            "UPDATE settled SET seq = 3 WHERE seq = 4",
            "UPDATE settled SET seq = 4 WHERE seq = 99",
        ],
        {"journal"},
        "entry 3",
    ),
    "a digest": (["UPDATE settled SET digest = x'00' WHERE seq = 3"], {"journal"}, "entry 3"),
    "a sum of a team": (
        ["UPDATE daily SET cost_nano = cost_nano - 1 WHERE kind = 'team' AND day = '2025-11-25'"],
        {"daily", "tally"},
        "kind 'team', day '2025-11-25', id 'core'",
    ),
    "a sum moved between two days": (
        [
            "UPDATE daily SET output_tokens = output_tokens - 1 WHERE kind = 'proxy' AND day = '2025-11-25'",
            "UPDATE daily SET output_tokens = output_tokens + 1 WHERE kind = 'proxy' AND day = '2025-11-26'",
        ],
        {"daily"},
        "kind 'proxy', day '2025-11-26', id ''",
    ),
    "a sum is gone": (
        ["DELETE FROM daily WHERE kind = 'tag' AND id = 'a' AND day = '2025-11-25'"],
        {"daily", "tally"},
        "kind 'tag', day '2025-11-25', id 'a'",
    ),
    "a sum of nobody": (
        ["INSERT INTO daily (kind, day, id, caller, model, exchanges) VALUES ('user', '2025-11-25', 'x', 'c', 'm', 1)"],
        {"daily", "tally"},
        "id 'x', caller 'c', model 'm'",
    ),
    "the failures of a day": (["UPDATE daily SET failures = failures + 1 WHERE kind = 'caller'"], {"daily"}, "caller"),
    "the sum of a customer is more": (
        ["UPDATE daily SET cost_nano = cost_nano + 1 WHERE kind = 'customer' AND day = '2025-11-24'"],
        {"daily", "tally"},
        "kind 'customer', day '2025-11-24', id 'acme'",
    ),
    "the sum of a customer who was known is less": (
        [
            "UPDATE daily SET cost_nano = cost_nano - 1 WHERE kind = 'customer' AND day = '2025-11-27'",
            "UPDATE tally SET cost_nano = cost_nano - 2 WHERE kind = 'customer'",
        ],
        {"daily"},
        "kind 'customer', day '2025-11-27', id 'acme'",
    ),
    "a tally": (
        ["UPDATE tally SET cost_nano = cost_nano + 1 WHERE kind = 'user'"],
        {"tally"},
        "kind 'user', id 'ada'",
    ),
    "tokens of a tally": (["UPDATE tally SET prompt_tokens = 1 WHERE kind = 'tag'"], {"tally"}, "kind 'tag', id 'a'"),
    "a tally is gone": (["DELETE FROM tally WHERE kind = 'proxy'"], {"tally"}, "kind 'proxy', id ''"),
    "a tally of nobody": (
        ["INSERT INTO tally (kind, id, cost_nano) VALUES ('team', 'x', 1)"],
        {"tally"},
        "kind 'team', id 'x'",
    ),
    "what was expected": (
        ["UPDATE tally SET expected_nano = expected_nano + 1 WHERE kind = 'team'"],
        {"tally"},
        "kind 'team', id 'core'",
    ),
    "what is held": (["UPDATE budget SET held_nano = held_nano + 1"], {"held"}, "budget 1 of team 'core'"),
    "a reservation of a row that has ended": (
        [f"INSERT INTO reservation VALUES ('{IDS[1]}', 1, 'expected', 0)"],
        {"held"},
        f"reservation of {IDS[1]} on budget 1",
    ),
    "a reservation without a row": (
        ["INSERT INTO reservation VALUES ('new', 1, 'expected', 0)"],
        {"held"},
        "reservation of new on budget 1",
    ),
    "a reservation without a budget": (
        [f"INSERT INTO reservation VALUES ('{IDS[9]}', 7, 'expected', 0)"],
        {"held"},
        f"reservation of {IDS[9]} on budget 7",
    ),
}


@pytest.mark.parametrize(("statements", "parts", "place"), _SPOILT.values(), ids=_SPOILT.keys())
def test_what_was_tampered_with_is_found(
    files: Path, tmp_path: Path, statements: list[str], parts: set[str], place: str
) -> None:
    verdict = _spoil(_copy(files, tmp_path), *statements)
    assert not verdict.holds
    assert {part for part, number in verdict.number.items() if number} <= parts
    assert any(place in fault.place for fault in verdict.faults), verdict.faults
    assert all(fault.there != fault.expected for fault in verdict.faults)


# What is done to the file, and one fault: where, what is there, what should be.
_SAID: dict[str, tuple[str, tuple[str, str, str]]] = {
    "a row runs again": (
        _set("ended = 'open'"),
        (f"entry 5, row {IDS[4]}", "a row that is open", "one that has ended"),
    ),
    "a row cannot be read": (
        _set("tags = 5"),
        (f"entry 5, row {IDS[4]}", "a row that cannot be read: ", "what it said when it ended"),
    ),
    "a row is gone": (
        f"DELETE FROM exchange WHERE id = '{IDS[4]}'",
        (f"entry 5, row {IDS[4]}", "no such row", "the row of the entry"),
    ),
    "an entry is gone": (
        f"DELETE FROM settled WHERE id = '{IDS[4]}'",
        (f"row {IDS[4]}", "no entry", "the entry of a row that has ended"),
    ),
    "the number of an entry is gone": (
        f"DELETE FROM settled WHERE id = '{IDS[4]}'",
        ("entry 5", "the next one is 6", "an entry"),
    ),
    "two entries": (
        f"INSERT INTO settled SELECT 10, id, digest FROM settled WHERE id = '{IDS[4]}'",
        (f"row {IDS[4]}", "2 entries", "one"),
    ),
    "a digest": (
        "UPDATE settled SET digest = x'0a' WHERE seq = 5",
        (f"entry 5, row {IDS[4]}", "the digest 0a", ": the row, or the entry before, is another"),
    ),
    "a reservation of a row that has ended": (
        f"INSERT INTO reservation VALUES ('{IDS[1]}', 1, 'expected', 0)",
        (f"reservation of {IDS[1]} on budget 1", "a row that is refused", "one that runs"),
    ),
    "a reservation without a row": (
        "INSERT INTO reservation VALUES ('new', 1, 'expected', 0)",
        ("reservation of new on budget 1", "no such row", "one that runs"),
    ),
    "a reservation without a budget": (
        f"INSERT INTO reservation VALUES ('{IDS[9]}', 7, 'expected', 0)",
        (f"reservation of {IDS[9]} on budget 7", "no such budget", "its budget"),
    ),
}


@pytest.mark.parametrize(("statement", "said"), _SAID.values(), ids=_SAID.keys())
def test_what_is_said_of_a_fault(files: Path, tmp_path: Path, statement: str, said: tuple[str, str, str]) -> None:
    place, there, expected = said
    faults = _spoil(_copy(files, tmp_path), statement).faults
    found = [fault for fault in faults if fault.place == place and fault.there.startswith(there)]
    assert [fault.expected.endswith(expected) for fault in found] == [True], faults


_SPOILT_RETAINED: dict[str, tuple[list[str], bool]] = {
    "a sum of a day before": (["UPDATE daily SET failures = 9 WHERE kind = 'team' AND day = '2025-11-24'"], False),
    "a cost of a day before": (["UPDATE daily SET cost_nano = 9 WHERE kind = 'team' AND day = '2025-11-24'"], True),
    "a sum of a day since": (["UPDATE daily SET failures = 9 WHERE kind = 'team' AND day = '2025-11-25'"], True),
    "the entry that was kept": (["DELETE FROM settled WHERE seq = 1"], True),
    "its digest": (["UPDATE settled SET digest = x'00' WHERE seq = 1"], True),
    "that rows were deleted": (["DELETE FROM retained"], True),
    "one more row": ([f"DELETE FROM exchange WHERE id = '{IDS[1]}'"], True),
}


@pytest.mark.parametrize(("statements", "found"), _SPOILT_RETAINED.values(), ids=_SPOILT_RETAINED.keys())
def test_what_is_found_where_rows_were_deleted(files: Path, tmp_path: Path, statements: list[str], found: bool) -> None:
    assert _spoil(_copy(files, tmp_path, "retained.db"), *statements).holds is not found


def test_what_is_told_has_a_bound(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tproxy.store.verify.FAULTS_MAX", 2)
    verdict = _spoil(_copy(files, tmp_path), "UPDATE exchange SET method = 'X' WHERE ended != 'open'")
    assert verdict.number["journal"] == 9
    assert len(verdict.faults) == 2


def test_the_sums_are_written_now_and_then(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, progress = [0], list[int]()

    class Counting(Sums):
        def add(self, opening: Opening, closing: Closing) -> None:
            super().add(opening, closing)
            gathered[-1] += 1

        def flush(self, connection: sqlite3.Connection) -> None:
            super().flush(connection)
            gathered.append(0)

    monkeypatch.setattr("tproxy.store.verify.SLICE", 4)
    monkeypatch.setattr("tproxy.store.verify.Sums", Counting)
    path = _copy(files, tmp_path)
    assert verify(path, progress.append).faults == []
    assert (gathered, progress) == ([4, 4, 1, 0], [4, 8])
    parts = {fault.part for fault in _spoil(path, "UPDATE daily SET cost_nano = cost_nano + 1").faults}
    assert parts == {"daily", "tally"}


@pytest.mark.parametrize(
    ("day", "found"),
    [
        pytest.param("2025-11-24", False, id="the day on which it was made"),
        pytest.param("2025-11-25", False, id="the day after"),
        pytest.param("2025-11-26", True, id="two days after"),
    ],
)
def test_since_when_a_customer_is_known_for_sure(files: Path, tmp_path: Path, day: str, found: bool) -> None:
    """A sum of one that is less than its rows come to."""
    spoilt = _spoil(
        _copy(files, tmp_path),
        f"UPDATE daily SET cost_nano = cost_nano - 1 WHERE kind = 'customer' AND day = '{day}'",
        "UPDATE tally SET cost_nano = (SELECT sum(cost_nano) FROM daily WHERE kind = 'customer') "
        "WHERE kind = 'customer'",
    )
    assert {fault.part for fault in spoilt.faults} == ({"daily"} if found else set())


def test_what_should_be_there_is_told(files: Path, tmp_path: Path) -> None:
    (fault,) = _spoil(_copy(files, tmp_path), "UPDATE budget SET held_nano = 61").faults
    assert (fault.part, fault.there, fault.expected) == ("held", "held_nano 61", "60")
    other = "UPDATE budget SET held_nano = 60", "UPDATE tally SET cost_nano = 5, prompt_tokens = 6 WHERE kind = 'team'"
    (fault,) = _spoil(tmp_path / "whole.db", *other).faults
    assert fault.there == "prompt_tokens 6, cost_nano 5"
    prompt, cost = sum(11 + n + 33 + 44 + 55 for n in range(9)), sum(7 + n for n in range(9))
    assert fault.expected == f"prompt_tokens {prompt}, cost_nano {cost}"


def test_what_is_no_ledger_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match="no such file"):
        verify(tmp_path / "t.db")
    (tmp_path / "t.db").write_bytes(b"something else that is long enough to be looked at")
    with pytest.raises(LedgerUnusable, match="not a database"):
        verify(tmp_path / "t.db")


async def test_it_works_while_the_ledger_is_written_and_sees_one_state(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    verdicts: list[Verdict] = []

    async def look() -> None:
        while len(verdicts) < 5:
            verdicts.append(await trio.to_thread.run_sync(verify, path))
        nursery.cancel_scope.cancel()

    async with open_ledger(path) as ledger, trio.open_nursery() as nursery:
        nursery.start_soon(look)
        number = 0
        while True:
            await ledger.open(make_opening(number), [Claim("team", "core", COUNTED)]).durable()
            ledger.close(make_closing(number, cost_nano=1))
            number += 1
    assert [verdict.faults for verdict in verdicts] == [[]] * 5


async def test_sums_that_are_as_much_as_a_column_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    async with open_ledger(path) as ledger:
        for number in range(3):
            await ledger.open(make_opening(number)).durable()
            ledger.close(
                make_closing(number, cost_nano=FIGURE_MAX - 1, input_tokens=FIGURE_MAX, cache_read_tokens=FIGURE_MAX)
            )
    assert verify(path).faults == []


async def test_keys_that_were_rotated_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    one, two, three = (f"{number:064x}" for number in (1, 2, 3))
    async with open_ledger(path) as ledger:
        directory = await open_directory(path, ledger, zone=lambda: UTC, clock=lambda: T0)

        async def end(number: int, key: str) -> None:
            await ledger.open(make_opening(number, caller=f"key:{key}")).durable()
            ledger.close(make_closing(number, cost_nano=5))
            await ledger.write(lambda connection: None)

        await directory.create(make_subject(KEY, one))
        await end(1, one)
        await directory.regenerate(one, two, lambda key: key)
        await end(2, two)
        await end(3, one)  # it ran then, and its row could not be written before
        await directory.create(make_subject(KEY, one))  # a new key of the same text
        await end(4, one)
        assert await trio.to_thread.run_sync(lambda: verify(path).faults) == []
        await directory.regenerate(two, three, lambda key: key)
        await end(5, three)
        await directory.regenerate(three, two, lambda key: key)
        await end(6, two)
    verdict = verify(path)
    assert verdict.faults == []
    assert verdict.tallies > 2
    spoilt = _spoil(path, f"UPDATE tally SET cost_nano = cost_nano + 1 WHERE id = 'key:{two}'")
    assert [fault.part for fault in spoilt.faults] == ["tally"]


async def test_a_customer_that_was_not_known_has_no_sums(tmp_path: Path) -> None:
    path = tmp_path / "t.db"

    async def end(ledger: SqliteLedger, number: int, customer: str, day: int = 0) -> None:
        await ledger.open(make_opening(number, customer=customer, accepted_us=T0 + day * DAY)).durable()
        ledger.close(make_closing(number, cost_nano=5))
        await ledger.write(lambda connection: None)

    async with open_ledger(path, max_customers=1, on_fault=lambda fault: None) as ledger:
        await end(ledger, 1, "first")
        await end(ledger, 2, "second")
        await ledger.write(lambda connection: connection.execute("DELETE FROM subject WHERE id = 'first'").rowcount)
    async with open_ledger(path, max_customers=1, on_fault=lambda fault: None) as ledger:  # which counts them anew
        await end(ledger, 3, "second")
        await end(ledger, 4, "second", 3)
        await end(ledger, 5, "first", 3)
    verdict = verify(path)
    assert verdict.faults == []
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT day, id, exchanges FROM daily WHERE kind = 'customer' ORDER BY day, id")
        days = ("2025-11-24", "2025-11-27")
        assert found.fetchall() == [(days[0], "first", 1), (days[0], "second", 1), (days[1], "second", 1)]


async def test_a_customer_that_an_exchange_of_the_day_before_names_first(tmp_path: Path) -> None:
    """It ended after one of the next day, which has no sum, for the customer was not known then."""
    path = tmp_path / "t.db"

    async def end(ledger: SqliteLedger, number: int, customer: str, day: int) -> None:
        await ledger.open(make_opening(number, customer=customer, accepted_us=T0 + day * DAY)).durable()
        ledger.close(make_closing(number, cost_nano=5))
        await ledger.write(lambda connection: None)

    async with open_ledger(path, max_customers=0, on_fault=lambda fault: None) as ledger:
        await end(ledger, 1, "late", 1)
    async with open_ledger(path) as ledger:
        await end(ledger, 2, "late", 0)
        await end(ledger, 3, "late", 1)
    assert verify(path).faults == []
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT day, sum(exchanges) FROM daily WHERE kind = 'customer' GROUP BY day")
        assert found.fetchall() == [("2025-11-24", 1), ("2025-11-25", 1)]  # and not 2


# Sums of whatever comes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), apart=st.booleans(), size=st.integers(1, 20))
def test_sums_are_what_the_rows_come_to(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, apart: bool, size: int
) -> None:
    dice = random.Random(seed)
    path = tmp_path_factory.mktemp("mix") / "t.db"
    file = LedgerFile(path, now_us=1, busy_seconds=0)
    with closing(file):
        connection = file.ready()
        budgets, journal, customers = Budgets(), Journal(), Customers(1000)
        for kind, id in (("team", "core"), ("user", "ada")):
            set_budgets(connection, make_subject(kind, id, 10**9), T0, UTC)
        numbers = list(range(count))
        while numbers:
            some, numbers = numbers[:size], numbers[size:]
            connection.execute("BEGIN IMMEDIATE")
            batch = Batch(connection, T0, UTC, customers, budgets, journal, apart=apart)
            for number in some:
                opening = mixed_opening(dice, number, ["1", "2"])
                claims = mixed_claims(dice, opening)
                opened = dice.random() < 0.8
                if opened and batch.open(opening, claims) and dice.random() < 0.3:
                    batch.note(mixed_closing(dice, number, OPEN))
                if dice.random() < 0.9:
                    ended = None if apart else FINISHED  # of those together, none may fail
                    batch.close(mixed_closing(dice, number, ended), opening, claims, opened=opened)
            batch.finish()
            connection.execute("COMMIT")
        assert kept_sums(connection) == summed(recent(path, 1000), known(connection))
    verdict = verify(path)
    assert verdict.faults == []
    assert verdict.ended == verdict.entries <= count
