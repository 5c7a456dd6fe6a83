"""The looks, over a real ledger's file: what is told once, what a restart tells, and that nothing stops them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.manage.desk import START_US, Office, office
from tproxy import setting_tables
from tproxy.alert import alert, alerts, figures
from tproxy.alert.alert import Alert
from tproxy.alert.alerts import Alerts
from tproxy.export.runner import SinkStatus
from tproxy.store.base import Claim
from tproxy.store.subjects import KEY

NANO = 1_000_000_000
DAY = 86_400.0


class Way:
    """A channel that takes all."""

    def __init__(self) -> None:
        self.took: list[Alert] = []

    async def send(self, sent: Alert) -> None:
        await trio.lowlevel.checkpoint()
        self.took.append(sent)

    @property
    def kinds(self) -> list[str]:
        return [each.kind + (" resolved" if each.resolved_us else "") for each in self.took]

    async def until(self, count: int) -> None:
        with trio.fail_after(5):
            while len(self.took) < count:  # noqa: ASYNC110  # threads are waited for
                await trio.sleep(0.01)


@asynccontextmanager
async def watching(o: Office, **more: Any) -> AsyncIterator[tuple[Alerts, Way]]:
    """Alerts at work, with one channel."""
    made, way = Alerts(setting_tables.Alerts(), o.ledger, **more), Way()
    made.delivery.channels = {"slack": way}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run, o.desk)
        yield made, way
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look all the time: threads are not on trio's clock."""
    for name in ("TICK_SECONDS", "BUDGETS_SECONDS", "FILE_SECONDS"):
        monkeypatch.setattr(alerts, name, 0.02)


async def some_looks(made: Alerts) -> None:
    """A while in which each look is made several times."""
    await trio.sleep(0.3)


async def test_budgets_are_told_once_also_after_a_restart_and_end_with_their_period(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        _, digest = await o.make(key_alias="anna", max_budget=10, soft_budget=4, budget_duration="1d")
        async with watching(o) as (made, way):
            await o.spend(5 * NANO, key=digest)
            await way.until(1)
            await o.spend(6 * NANO, key=digest, claims=[Claim(KEY, digest, "counted")])
            await way.until(2)
            await some_looks(made)
            assert way.kinds == [alert.SOFT_BUDGET, alert.BUDGET]
            assert [each.name for each in way.took] == ["anna", "anna"]
        async with watching(o) as (made, way):
            await some_looks(made)
            assert way.kinds == []
            o.clock.pass_seconds(DAY)
            await way.until(2)
            await some_looks(made)
            assert set(way.kinds) == {f"{alert.SOFT_BUDGET} resolved", f"{alert.BUDGET} resolved"}
            assert made.episodes.open == ()


async def test_more_than_can_be_told_do_not_begin_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FOUND_MAX", 2)
    async with office(tmp_path) as o, watching(o) as (made, way):
        digests = [(await o.make(max_budget=1))[1] for _ in range(4)]
        for times in range(2):  # so that another two of them are those that have spent most
            for digest in digests[2 * times :]:
                await o.spend(2 * NANO, key=digest)
            await way.until(2 + 2 * times)
            await some_looks(made)
        assert way.kinds == [alert.BUDGET] * 4


async def test_a_key_that_expires(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for alias, duration in (("soon", "2d"), ("later", "9d")):
            await o.make(key_alias=alias, duration=duration)
        async with watching(o) as (made, way):
            await way.until(1)
            await some_looks(made)
            assert [(each.kind, each.name) for each in way.took] == [(alert.KEY_EXPIRY, "soon")]
            o.clock.pass_seconds(7 * DAY)
            await way.until(2)
            await some_looks(made)
            assert way.took[1].name == "later"  # and of the end of the first nobody was told


async def test_unusual_spend(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        digests = {alias: (await o.make(key_alias=alias))[1] for alias in ("anna", "new", "steady")}
        for _ in range(10):
            for alias in ("anna", "steady"):
                await o.spend(10 * NANO, key=digests[alias])
            o.clock.pass_seconds(DAY)
        async with watching(o) as (made, way):
            await o.spend(15 * NANO, key=digests["steady"])
            await o.spend(99 * NANO, key=digests["new"])
            await o.spend(30 * NANO, key=digests["anna"])
            await way.until(1)
            await some_looks(made)
            assert [(each.kind, each.name) for each in way.took] == [(alert.SPEND, "anna")]
            assert way.took[0].figures == {"today_usd": 30.0, "usual_usd": 10.0}
            o.clock.pass_seconds(3 * DAY)
            await some_looks(made)
            assert made.episodes.open == ()


async def test_what_exchanges_tell(tmp_path: Path) -> None:
    async with office(tmp_path) as o, watching(o) as (made, way):
        for _ in range(20):
            made.seen.upstream.add(o.clock(), bad=True)
            made.seen._note("api_keys[0]", 401, o.clock())
        made.seen.unpriced.update({"claude-next", "claude-other"})
        await way.until(4)
        made.seen.unpriced.add("claude-next")
        await some_looks(made)
        assert way.kinds == [alert.ERRORS, alert.CREDENTIAL, alert.UNPRICED, alert.UNPRICED]
        o.clock.pass_seconds(301)
        await some_looks(made)
        assert len(way.took) == 4  # nothing was asked since
        made.seen.upstream.add(o.clock(), bad=False)
        await some_looks(made)
        assert len(way.took) == 4  # one that went well proves nothing
        for _ in range(19):
            made.seen.upstream.add(o.clock(), bad=False)
        made.seen._note("api_keys[0]", 200, o.clock())
        await way.until(6)
        assert set(way.kinds[4:]) == {f"{alert.ERRORS} resolved", f"{alert.CREDENTIAL} resolved"}
        assert {each.kind for each in made.episodes.open} == {alert.UNPRICED}


async def test_names_that_clients_make_up_are_told_in_bounds(tmp_path: Path) -> None:
    async with office(tmp_path) as o, watching(o) as (made, way):
        for batch in range(3):
            made.seen.unpriced.update(f"made-up-{batch}-{number}" for number in range(100))
            await some_looks(made)
        assert len(way.took) == 100


async def test_the_ledger_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "EXPORT_SECONDS", 0.05)
    statuses = [SinkStatus("otlp", 7, START_US, 3, "no connection")]
    async with office(tmp_path) as o, watching(o, sinks=lambda: statuses) as (made, way):
        await way.until(1)
        assert [(each.kind, each.name) for each in way.took] == [(alert.EXPORT, "otlp")]
        while made.episodes.unwritten() != ([], []):  # noqa: ASYNC110  # a write that ends says: writable
            await trio.sleep(0.01)
        made.take(setting_tables.Alerts(ledger_seconds=0.05))
        made.delivery.channels = {"slack": way}
        o.ledger._writable = False
        await way.until(2)
        assert way.kinds[1] == alert.LEDGER
        o.ledger._writable = True
        statuses.clear()
        await way.until(4)
        assert set(way.kinds[2:]) == {f"{alert.LEDGER} resolved", f"{alert.EXPORT} resolved"}


async def test_a_fault_of_a_look_stops_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with office(tmp_path) as o:
        look: Callable[..., Any] = figures.budgets
        faults = [RuntimeError("a bug"), RuntimeError("a bug")]

        def failing(*args: Any) -> Any:
            if faults:
                raise faults.pop()
            return look(*args)

        monkeypatch.setattr(figures, "budgets", failing)
        _, digest = await o.make(max_budget=1)
        async with watching(o) as (_, way):
            await o.spend(2 * NANO, key=digest)
            await way.until(1)
        assert (way.kinds, faults) == ([alert.BUDGET], [])
