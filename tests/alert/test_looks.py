"""When each look is made, on trio's clock: the ledger's file is a real one, but no thread reads or writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.flow.known import Known
from tests.manage.desk import Clock
from tests.store.laws import make_subject
from tproxy import setting_tables
from tproxy.alert import alert, figures
from tproxy.alert.alert import Alert
from tproxy.alert.alerts import BUDGETS_SECONDS, TICK_SECONDS, Alerts
from tproxy.alert.rules import MODELS_TOLD
from tproxy.store.directory import Directory
from tproxy.store.file import LedgerFile
from tproxy.store.money import set_budgets
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.subjects import Budget

T = TypeVar("T")
NANO = 1_000_000_000
DAY = 86_400.0
UTC = ZoneInfo("UTC")


@dataclass
class House:
    """Alerts, and all that they ask: a desk and a ledger in one. `told`: what was, and when."""

    connection: sqlite3.Connection
    clock: Clock = field(default_factory=Clock)
    told: list[tuple[str, float]] = field(default_factory=list)
    writable: bool = True
    behind_us: int = 0
    queued: int = 0
    directory: Directory = field(default_factory=lambda: cast(Directory, _Nobody()))

    def __post_init__(self) -> None:
        self.alerts = Alerts(setting_tables.Alerts(), cast(SqliteLedger, self))
        self.alerts.delivery.channels = {"slack": self}

    def zone(self) -> ZoneInfo:
        return UTC

    async def look(self, read: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        return read(self.connection)

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        return await self.look(change)

    async def send(self, sent: Alert) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((sent.kind, trio.current_time()))

    def spend(self, nano: int) -> None:
        """Let the budget of the team stand at so much."""
        assert self.connection.execute("UPDATE budget SET spent_nano = ?", (nano,)).rowcount == 1

    @property
    def models(self) -> set[str]:
        """Those that are told of."""
        return {each.subject for each in self.alerts.episodes.open if each.kind == alert.UNPRICED}


class _Nobody(Known):
    file_keys: dict[str, Any] = {}  # noqa: RUF012  # none is put in


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """One team with a budget of 10 dollars, of which it is warned at 5."""
    with closing(LedgerFile(tmp_path / "t.db", now_us=1, busy_seconds=0)) as file:
        found = House(file.ready())
        team = make_subject("team", "core", Budget(limit_nano=10 * NANO, soft_nano=5 * NANO))
        set_budgets(found.connection, team, found.clock(), UTC)
        yield found


@asynccontextmanager
async def at_work(house: House) -> AsyncIterator[Alerts]:
    """From 0 on; the first looks have been made."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.alerts.run, house)
        await trio.testing.wait_all_tasks_blocked()
        yield house.alerts
        nursery.cancel_scope.cancel()


async def test_a_budget_is_looked_at_every_minute(autojump_clock: MockClock, house: House) -> None:
    async with at_work(house):
        await trio.sleep(1)
        house.spend(6 * NANO)
        await trio.sleep(2 * BUDGETS_SECONDS)
    assert house.told == [(alert.SOFT_BUDGET, BUDGETS_SECONDS)]


async def test_one_that_passes_its_soft_limit_is_told_at_once(autojump_clock: MockClock, house: House) -> None:
    async with at_work(house) as alerts:
        await trio.sleep(1)
        house.spend(6 * NANO)
        alerts.soft_limit_passed()
        await trio.sleep(0.1)
        assert house.told == [(alert.SOFT_BUDGET, 1.0)]


async def test_also_where_the_budgets_are_just_being_looked_at(
    autojump_clock: MockClock, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = figures.budgets

    def looking(*args: Any) -> Any:
        looks.append(trio.current_time())
        found = look(*args)
        if len(looks) == 1:
            house.spend(6 * NANO)
            house.alerts.soft_limit_passed()
        return found

    monkeypatch.setattr(figures, "budgets", looking)
    async with at_work(house):
        await trio.sleep(0.1)
        assert house.told == [(alert.SOFT_BUDGET, 0.0)]
        await trio.sleep(BUDGETS_SECONDS - 1)
    assert looks == [0.0, 0.0]  # and then every minute again


NEARLY = 95 * NANO // 10  # 95 % of it


@pytest.mark.parametrize(
    ("spent", "of", "told"),
    [
        pytest.param(NEARLY, "core", [alert.BUDGET], id="nearly spent"),
        pytest.param(NEARLY - 1, "core", [], id="a little less"),
        pytest.param(NEARLY, "other", [], id="somebody else was refused"),
    ],
)
async def test_a_refusal_is_looked_at_with_the_next_tick(
    autojump_clock: MockClock, house: House, spent: int, of: str, told: list[str]
) -> None:
    house.connection.execute("UPDATE budget SET soft_nano = NULL")
    async with at_work(house) as alerts:
        await trio.sleep(1)
        house.spend(spent)
        alerts.seen.refused_of.add(("team", of))
        await trio.sleep(TICK_SECONDS)
        assert house.told == [(kind, TICK_SECONDS) for kind in told]
        assert alerts.seen.refused_of == set()


async def test_a_model_that_is_still_used_does_not_fade(autojump_clock: MockClock, house: House) -> None:
    """Also while no other one would be told of."""
    many = {f"claude-{number}" for number in range(MODELS_TOLD)}
    async with at_work(house) as alerts:
        for days, used in ((0, many), (4, {"claude-7", "claude-new"}), (3.5, {"claude-7"})):
            house.clock.pass_seconds(days * DAY)
            alerts.seen.unpriced = set(used)
            await trio.sleep(2 * TICK_SECONDS)
    assert house.models == {"model::claude-7"}
    assert [kind for kind, _ in house.told] == [alert.UNPRICED] * MODELS_TOLD
