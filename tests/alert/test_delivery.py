"""One that hangs delays no other; what is not taken is tried again, for a while."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.alert.told import alert
from tproxy.alert import delivery
from tproxy.alert.alert import Alert
from tproxy.alert.delivery import Delivery
from tproxy.export.sink import NotTaken


class Way:
    """A channel that fails as often as it is told, and notes what it took."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.took: list[str] = []
        self.tries: list[float] = []

    async def send(self, sent: Alert) -> None:
        await trio.lowlevel.checkpoint()
        self.tries.append(trio.current_time())
        if self.faults:
            raise self.faults.pop(0)
        self.took.append(sent.summary)


class Deaf(Way):
    """Hangs."""

    async def send(self, sent: Alert) -> None:
        self.tries.append(trio.current_time())
        await trio.sleep_forever()


async def running(way: Delivery, nursery: trio.Nursery) -> None:
    nursery.start_soon(way.run)
    await trio.testing.wait_all_tasks_blocked()


async def test_all_channels_get_each_in_order(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    slack, email = Way(), Way()
    to = Delivery({"slack": slack, "email": email})
    await running(to, nursery)
    for text in "abc":
        to.put(alert(text))
    await trio.sleep(1)
    assert slack.took == email.took == ["a", "b", "c"]
    assert (to.delivered, to.lost) == (6, 0)


async def test_one_that_hangs_delays_no_other(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    deaf, email = Deaf(), Way()
    to = Delivery({"slack": deaf, "email": email})
    await running(to, nursery)
    to.put(alert("a"))
    to.put(alert("b"))
    await trio.sleep(0.1)
    assert email.took == ["a", "b"]
    await trio.sleep(5000)
    assert (to.delivered, to.lost) == (2, 2)


async def test_what_is_not_taken_is_sent_again_later(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    way = Way(NotTaken("busy"), NotTaken("busy", retry_after=100), RuntimeError("a bug"))
    to = Delivery({"slack": way})
    await running(to, nursery)
    to.put(alert("a"))
    await trio.sleep(500)
    assert way.took == ["a"]
    assert [round(after - before) for before, after in zip(way.tries, way.tries[1:], strict=False)] == [1, 100, 5]


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        pytest.param(lambda: NotTaken("no", final=True), 1, id="refused for good"),
        pytest.param(lambda: NotTaken("busy"), 21, id="given up after a quarter of an hour"),
    ],
)
async def test_it_is_given_up(
    autojump_clock: MockClock,
    fault: Callable[[], NotTaken],
    tries: int,
    nursery: trio.Nursery,
    capsys: pytest.CaptureFixture[str],
) -> None:
    way = Way(*(fault() for _ in range(tries)))
    to = Delivery({"webhook": way})
    await running(to, nursery)
    to.put(alert("a"))
    to.put(alert("b"))
    await trio.sleep(3000)
    assert (to.lost, way.took, len(way.tries)) == (1, ["b"], tries + 1)
    assert "an alert is not delivered" in capsys.readouterr().out


async def test_a_full_queue_loses_its_oldest(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "QUEUED_MAX", 3)
    way = Way()
    to = Delivery({"slack": way})
    for text in "abcde":
        to.put(alert(text))
    await running(to, nursery)
    await trio.sleep(1)
    assert way.took == ["c", "d", "e"]
    assert to.lost == 2


class Slow(Way):
    """Takes a second for each."""

    async def send(self, sent: Alert) -> None:
        await trio.sleep(1)
        await super().send(sent)


@pytest.mark.parametrize(
    ("faults", "took"),
    [
        pytest.param([], ["a", "b", "c"], id="taken"),
        pytest.param([NotTaken("no", final=True)], ["b", "c"], id="refused for good"),
        pytest.param([NotTaken("busy")], ["b", "c"], id="to be sent again"),
    ],
)
async def test_one_that_is_lost_while_it_is_sent_takes_no_other_with_it(
    autojump_clock: MockClock,
    faults: list[Exception],
    took: list[str],
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "QUEUED_MAX", 2)
    way = Slow(*faults)
    to = Delivery({"slack": way})
    await running(to, nursery)
    to.put(alert("a"))
    to.put(alert("b"))
    await trio.sleep(0.5)
    to.put(alert("c"))
    await trio.sleep(100)
    assert (way.took, to.lost) == (took, 1)


async def test_a_receiver_cannot_put_off_for_long(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    way = Way(NotTaken("busy", retry_after=1e9))
    to = Delivery({"slack": way})
    await running(to, nursery)
    to.put(alert("a"))
    await trio.sleep(10_000)
    assert (way.tries, way.took) == ([0.0, delivery.GIVE_UP_SECONDS], ["a"])


async def test_other_channels_hold_at_once(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    before, after = Way(*(NotTaken("busy") for _ in range(3))), Way()
    to = Delivery({"slack": before})
    await running(to, nursery)
    to.put(alert("a"))
    await trio.sleep(0.5)
    to.channels = {"slack": after}
    await trio.sleep(100)
    assert (before.took, after.took) == ([], ["a"])
    to.channels = {}
    to.put(alert("b"))
    await trio.sleep(100)
    assert after.took == ["a"]


async def test_a_try_says_what_came_of_it(autojump_clock: MockClock) -> None:
    to = Delivery({"slack": Way(RuntimeError("http://secret.example.com/x")), "email": Deaf()})
    for name, why in (("webhook", "not set"), ("slack", "RuntimeError"), ("email", "no answer within 30 s")):
        with pytest.raises(NotTaken) as fault:
            await to.try_now(name, alert())
        assert fault.value.why == why


async def test_what_waits_at_the_end_is_said(autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    to = Delivery({"slack": Deaf()})
    async with trio.open_nursery() as nursery:
        await running(to, nursery)
        to.put(alert("a"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert "alerts are not delivered, the process ends" in capsys.readouterr().out
