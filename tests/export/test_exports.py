"""What holds for every sink, over a real ledger and real receivers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.export.places import KINDS, Hook, open_place
from tests.export.receiver import receiving
from tests.export.stock import DOWN, Scripted, books, id_of, settle, with_export
from tests.store.laws import make_closing, make_opening
from tproxy.errors import LedgerUnavailable
from tproxy.export.exports import LOOK_SECONDS, Exports, Plan, _Source, by_settings
from tproxy.export.sink import NotTaken, Sink
from tproxy.protocol import signature
from tproxy.settings import Settings
from tproxy.store import feed
from tproxy.store.feed import Reader
from tproxy.store.sqlite import SqliteLedger


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Jumps only when nothing has happened for a while: threads and sockets are at work here."""
    autojump_clock.autojump_threshold = 0.05
    return autojump_clock


@contextmanager
def still() -> Iterator[MockClock]:
    """Time stands still, as long as a thread may need for something that has a deadline; but not if it hangs."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    before, clock.autojump_threshold = clock.autojump_threshold, 10.0
    try:
        yield clock
    finally:
        clock.autojump_threshold = before


@asynccontextmanager
async def running(
    settings: Settings, ledger: SqliteLedger, plans: Callable[[Settings], Mapping[str, Plan]] = by_settings
) -> AsyncIterator[Exports]:
    made = Exports(settings, ledger, chance=lambda: 1.0, plans=plans)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(600):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.5)  # files, sockets and threads tell nobody


async def begun(exports: Exports) -> None:
    await until(lambda: bool(exports.status()) and exports.position() is not None)


def ids(*numbers: int) -> list[str]:
    return [id_of(number) for number in range(*numbers)]


@dataclass(frozen=True)
class Given:
    """A plan for a sink that is there: the same plan for the same sink."""

    sink: Scripted

    def __call__(self) -> Sink:
        return self.sink


def scripted(*sinks: Scripted) -> Callable[[Settings], Mapping[str, Plan]]:
    return lambda settings: {sink.name: Given(sink) for sink in sinks}


async def position(ledger: SqliteLedger, name: str) -> int | None:
    with still():
        found = await ledger.write(feed.cursors)
    return found[name][0] if name in found else None


@pytest.mark.parametrize("kind", KINDS)
async def test_down_for_a_while_then_back_loses_and_repeats_nothing(
    kind: str, tmp_path: Path, clock: MockClock
) -> None:
    async with open_place(kind, tmp_path) as place, books(tmp_path) as ledger:
        async with running(with_export(tmp_path, place.tables), ledger) as exports:
            await begun(exports)
            settle(ledger, range(20))
            await until(lambda: len(place.ids()) == 20)
            place.down()
            for start in range(20, 1220, 100):
                settle(ledger, range(start, start + 100))
                await trio.sleep(2)
            await until(lambda: exports.status()[0].behind == 1200)
            (status,) = exports.status()
            assert (status.name, status.fault is not None) == (kind, True)
            assert status.failures >= 2
            assert exports.position() == 20
            place.up()
            await until(lambda: len(place.ids()) >= 1220)
            await until(lambda: exports.position() == 1220)
            (status,) = exports.status()
            assert (status.behind, status.fault) == (0, None)
            assert status.last_us is not None
        assert place.ids() == ids(1220)


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_before_the_cursor_was_kept_they_come_again_with_their_ids(
    kind: str, tmp_path: Path, clock: MockClock
) -> None:
    async with open_place(kind, tmp_path) as place, books(tmp_path) as ledger:
        settings = with_export(tmp_path, place.tables)
        async with running(settings, ledger) as exports:
            await begun(exports)
            settle(ledger, range(10))
            await until(lambda: len(place.ids()) == 10)
        # As a kill leaves it between the two.
        with still():
            await ledger.write(lambda connection: feed.set_cursor(connection, kind, 4, 0))
        async with running(settings, ledger) as exports:
            await until(lambda: len(place.ids()) == 16)
            settle(ledger, range(10, 15))
            await until(lambda: len(place.ids()) == 21)
        assert place.ids() == ids(10) + ids(4, 15)
        assert await position(ledger, kind) == 15


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reload_loses_and_repeats_nothing(kind: str, tmp_path: Path, clock: MockClock) -> None:
    async with open_place(kind, tmp_path) as place, books(tmp_path) as ledger:
        async with running(with_export(tmp_path, place.tables), ledger) as exports:
            await begun(exports)
            for start, tables in [(0, place.other), (50, place.tables), (100, place.tables)]:
                settle(ledger, range(start, start + 50))
                await until(lambda start=start: len(place.ids()) >= start + 25)  # type: ignore[misc]
                exports.take(with_export(tmp_path, tables))
            await until(lambda: len(place.ids()) >= 150)
        assert place.ids() == ids(150)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_ended_last_is_sent_at_the_shutdown(kind: str, tmp_path: Path, clock: MockClock) -> None:
    async with open_place(kind, tmp_path) as place, books(tmp_path) as ledger:
        async with running(with_export(tmp_path, place.tables), ledger) as exports:
            await begun(exports)
            settle(ledger, range(7))  # not even written yet
            clock.autojump_threshold = 10  # it may have to load what it sends with
        assert place.ids() == ids(7)
        assert await position(ledger, kind) == 7


async def test_a_new_sink_begins_with_what_comes_after(tmp_path: Path, clock: MockClock) -> None:
    async with books(tmp_path) as ledger:
        settle(ledger, range(5))
    first, second = Scripted("first"), Scripted("second")
    async with books(tmp_path) as ledger:
        settle(ledger, range(5, 6))  # in this process: a sink that is there from the start has it
        await until(lambda: ledger.settlements == 1)
        async with running(with_export(tmp_path), ledger, scripted(first)) as exports:
            await begun(exports)
            settle(ledger, range(6, 10))
            await until(lambda: first.taken == [6, 7, 8, 9, 10])
            exports._plans = scripted(first, second)
            exports.take(with_export(tmp_path))
            await until(lambda: len(exports.status()) == 2)
            settle(ledger, range(10, 12))
            await until(lambda: len(first.taken) == 7)
        assert first.taken == [6, 7, 8, 9, 10, 11, 12]
        assert second.taken == [11, 12]
        assert (first.closed, second.closed) == (1, 1)


async def test_a_new_sink_that_never_took_any_goes_on_after_a_restart_where_it_began(
    tmp_path: Path, clock: MockClock
) -> None:
    down, up = Scripted(), Scripted()
    down.down = DOWN
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(down)) as exports:
        await begun(exports)
        settle(ledger, range(3))
        await until(lambda: exports.status()[0].behind == 3)
        assert await position(ledger, "scripted") == 0
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(up)):
        await until(lambda: up.taken == [1, 2, 3])


async def test_with_a_sink_that_has_not_begun_the_position_is_not_known(tmp_path: Path, clock: MockClock) -> None:
    first, second = Scripted("first"), Scripted("second")
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(first)) as exports:
        await begun(exports)
        settle(ledger, range(3))
        await until(lambda: exports.position() == 3)
        exports._plans = scripted(first, second)
        exports.take(with_export(tmp_path))
        assert exports.position() == 0
        await until(lambda: exports.position() == 3)  # it begins after them, and the ledger knows it


async def test_what_was_taken_and_not_kept_does_not_count_for_the_position(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Reader, "close", _noting(closed, "close", Reader.close))

    async def out(self: _Source, sink: str, seq: int) -> None:
        await trio.lowlevel.checkpoint()
        raise LedgerUnavailable("out")

    monkeypatch.setattr(_Source, "keep", out)
    sink = Scripted()
    async with books(tmp_path) as ledger:
        async with running(with_export(tmp_path), ledger, scripted(sink)) as exports:
            await begun(exports)
            settle(ledger, range(3))
            await until(lambda: sink.taken == [1, 2, 3])
            assert exports.position() == 0
            assert closed == []
        assert (closed, exports.status()) == (["close"], [])  # of the file that was read


async def test_one_that_is_taken_out_and_put_in_again_goes_on(tmp_path: Path, clock: MockClock) -> None:
    sink = Scripted()
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(sink)) as exports:
        await begun(exports)
        settle(ledger, range(3))
        await until(lambda: len(sink.taken) == 3)
        exports._plans = scripted()
        exports.take(with_export(tmp_path))
        await until(lambda: sink.closed == 1)
        assert (exports.status(), exports.position()) == ([], None)
        settle(ledger, range(3, 6))
        await trio.sleep(5)
        exports._plans = scripted(sink)
        exports.take(with_export(tmp_path))
        assert exports.position() == 0  # until it is known
        await until(lambda: sink.taken == [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("fault", [DOWN, NotTaken("it answered 401", final=True), ZeroDivisionError(), None])
async def test_a_sink_that_fails_or_hangs_delays_no_other(
    fault: Exception | None, tmp_path: Path, clock: MockClock
) -> None:
    bad, good = Scripted("bad"), Scripted("good")
    bad.down, bad.hangs = fault, fault is None
    async with books(tmp_path) as ledger:
        async with running(with_export(tmp_path), ledger, scripted(bad, good)) as exports:
            await begun(exports)
            for number in range(20):
                settle(ledger, [number])
                began = trio.current_time()
                await until(lambda number=number: len(good.taken) > number)  # type: ignore[misc]
                assert trio.current_time() - began < 30  # less than a send may take, and than the longest back-off
            assert exports.position() == 0
            by_name = {status.name: status.behind for status in exports.status()}
            assert by_name == {"bad": 20, "good": 0}
        assert (good.taken, bad.taken) == (list(range(1, 21)), [])


async def test_a_receiver_that_hangs_delays_no_other(tmp_path: Path, clock: MockClock) -> None:
    async with (
        receiving() as hanging,
        open_place("jsonl", tmp_path) as place,
        books(tmp_path) as ledger,
        running(
            with_export(tmp_path, f'{place.tables}\n[tproxy.export.webhook]\nurl = "{hanging.url}"'), ledger
        ) as exports,
    ):
        hanging.status = 0
        await begun(exports)
        for number in range(5):
            settle(ledger, [number])
            await until(lambda number=number: len(place.ids()) > number)  # type: ignore[misc]
        assert hanging.taken == []
        assert {status.name: status.behind for status in exports.status()} == {"jsonl": 0, "webhook": 5}


async def test_sinks_at_the_same_place_share_a_read(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    after = Reader.after

    def counted(self: Reader, seq: int, limit: int) -> Any:
        reads.append(seq)
        return after(self, seq, limit)

    monkeypatch.setattr(Reader, "after", counted)
    sinks = [Scripted(name) for name in ("a", "b", "c")]
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(*sinks)) as exports:
        await begun(exports)
        settle(ledger, range(2000))
        await until(lambda: all(len(sink.taken) == 2000 for sink in sinks))
    assert all(sink.taken == list(range(1, 2001)) for sink in sinks)
    assert len(reads) == len(set(reads)) <= 2000 // 100 + 10


@dataclass(frozen=True)
class Asked:
    """Two that ask for what comes after the same number, of 600 exchanges, and how often the file is read."""

    row: str
    first: int
    second: int
    reads: int
    later: float = 0.0


ASKED = [
    Asked("as many", 500, 500, 1),
    Asked("fewer", 500, 100, 1),
    Asked("more than were asked for", 500, 600, 2),
    Asked("of a larger batch nothing is held", 600, 500, 2),
    Asked("of a smaller one, too", 100, 500, 2),
    Asked("too late", 500, 500, 2, later=LOOK_SECONDS),
]


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row.row)
async def test_the_last_batch_is_shared(
    row: Asked, tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Reader, "after", _noting(asked, "after", Reader.after))
    monkeypatch.setattr("tproxy.export.exports._PAGE", 1000)
    async with books(tmp_path) as ledger:
        settle(ledger, range(600))
        source = _Source(tmp_path / "books.db", ledger, lambda: 0)
        with still():
            await source.look()
            first = await source.after(0, row.first)
            clock.jump(row.later)
            second = await source.after(0, row.second)
        source.close()
    assert [[one.seq for one in found] for found in (first, second)] == [
        list(range(1, row.first + 1)),
        list(range(1, row.second + 1)),
    ]
    assert len(asked) == row.reads


async def test_a_batch_that_is_short_is_shared_with_who_asks_for_more(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Reader, "after", _noting(asked, "after", Reader.after))
    async with books(tmp_path) as ledger:
        settle(ledger, range(3))
        source = _Source(tmp_path / "books.db", ledger, lambda: 0)
        with still():
            await source.look()
            assert len(await source.after(0, 500)) == len(await source.after(0, 5000)) == 3
            assert len(await source.after(1, 500)) == 2  # at another place
        source.close()
    assert len(asked) == 2


async def test_the_ledger_is_looked_at_once_a_second_while_it_grows(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Reader, "newest", _noting(asked, "newest", Reader.newest))
    sink = Scripted()
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(sink)) as exports:
        await begun(exports)
        await trio.sleep(3)
        asked.clear()
        began = trio.current_time()
        for number in range(20):
            settle(ledger, [number])
            await trio.sleep(0.25)
        await until(lambda: len(sink.taken) == 20)
        passed = trio.current_time() - began
        assert 1 <= len(asked) <= passed / LOOK_SECONDS + 1


async def test_without_exchanges_nothing_is_asked_and_without_sinks_nothing_is_opened(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("newest", "after", "cursors"):
        monkeypatch.setattr(Reader, name, _noting(asked, name, getattr(Reader, name)))
    sink = Scripted()
    async with books(tmp_path) as ledger:
        async with running(with_export(tmp_path), ledger) as exports:
            settle(ledger, range(3))
            await trio.sleep(10)
            assert (asked, exports.status(), exports.position()) == ([], [], None)
        async with running(with_export(tmp_path), ledger, scripted(sink)) as exports:
            await begun(exports)
            await until(lambda: len(sink.taken) == 3)
            await trio.sleep(3)
            before = len(asked)
            await trio.sleep(60)
            assert len(asked) == before


async def test_where_a_sink_cannot_be_made_it_can_be_run_again(tmp_path: Path, clock: MockClock) -> None:
    sink, failing = Scripted(), True

    def made() -> Sink:
        if failing:
            raise ZeroDivisionError
        return sink

    async with books(tmp_path) as ledger:
        other = Scripted("other")
        plans: dict[str, Plan] = {"other": Given(other), "scripted": made}
        exports = Exports(with_export(tmp_path), ledger, plans=lambda settings: plans)
        with pytest.RaisesGroup(ZeroDivisionError):
            with trio.fail_after(60):
                await exports.run()
        assert (exports.status(), exports.position(), other.closed) == ([], 0, 1)
        failing = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exports.run)
            await begun(exports)
            settle(ledger, range(3))
            await until(lambda: len(sink.taken) == len(other.taken) == 3)
            nursery.cancel_scope.cancel()
        assert (sink.taken, other.taken) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("long", [{"path": "/" + "x" * 1000}, {"tags": ("x" * 500, "y" * 500)}], ids=["path", "tags"])
async def test_a_batch_of_long_rows_is_shorter(
    long: dict[str, Any], tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.export.exports.TEXT_MAX", 100_000)
    sink = Scripted()
    async with books(tmp_path) as ledger, running(with_export(tmp_path), ledger, scripted(sink)) as exports:
        await begun(exports)
        sink.down = DOWN
        for number in range(1000):
            ledger.open(make_opening(number, **long))
            ledger.close(make_closing(number))
        await until(lambda: exports.status()[0].behind == 1000)
        sink.down = None
        await until(lambda: len(sink.taken) == 1000)
    assert sink.taken == list(range(1, 1001))
    assert 100 <= max(len(numbers) for _, numbers in sink.tries) <= 200


def _noting(asked: list[str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        asked.append(name)
        return method(*arguments, **named)

    return noted


async def test_a_batch_that_came_and_was_not_confirmed_comes_again_with_its_id_signed_anew(
    tmp_path: Path, clock: MockClock
) -> None:
    async with receiving() as receiver, books(tmp_path) as ledger:
        hook = Hook(receiver)
        receiver.status = -1
        async with running(with_export(tmp_path, hook.tables), ledger) as exports:
            await begun(exports)
            settle(ledger, range(3))
            await until(lambda: receiver.asked >= 3)
            receiver.status = 200
            await until(lambda: bool(hook.ids()))
        key = signature.key("whsec_c2VjcmV0")
        for came in receiver.came:
            said = came.headers
            sent = said["webhook-timestamp"]
            assert signature.verify(key, said["webhook-id"], sent, came.body, said["webhook-signature"], int(sent))
            assert json.loads(came.body)["type"] == "exchanges"
            assert said["content-type"] == "application/json"
        first, *others = receiver.came
        assert len(others) >= 3
        assert (hook.ids()[0], first.headers["webhook-id"][:10]) == (id_of(0), "webhook-1-")
        again = [came for came in others if came.headers["webhook-id"] == first.headers["webhook-id"]]
        assert len(again) >= 3
        assert {came.body for came in again} == {first.body}


def test_without_sinks_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys, tproxy.assembly, tproxy.export.webhook, tproxy.export.jsonl, tproxy.export.s3;"
        "sys.exit(','.join({'httpx2', 'httpcore2', 'obstore', 'opentelemetry'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
