from __future__ import annotations

import pytest
import trio

from tproxy.sandbox.books import (
    CLIENT_LEFT,
    COMPLETE,
    CUT,
    ERROR_EVENT,
    REFUSED,
    RUNNING,
    Bill,
    Books,
    Entry,
)


def entry(
    id_: str = "req_1", *, status: int | None = 200, stream: bool = True, events: int = 3, delivered: int = 4
) -> Entry:
    return Entry(
        request_id=id_,
        method="POST",
        path="/v1/messages",
        received_at=1.0,
        stream=stream,
        status=status,
        bills=[Bill(model="a", input_tokens=10, cache_read_tokens=5, output_tokens=40, web_search_requests=1)],
        events_sent=events,
        output_delivered=delivered,
        bytes_sent=100,
    )


@pytest.mark.parametrize(
    ("told", "ended", "output"),
    [
        pytest.param(entry(delivered=40), COMPLETE, 40, id="a whole stream"),
        pytest.param(entry(), CUT, 4, id="a stream that was cut"),
        pytest.param(entry(), CLIENT_LEFT, 4, id="a client that left"),
        pytest.param(entry(), ERROR_EVENT, 4, id="an error event"),
        pytest.param(entry(events=0, delivered=0), CUT, None, id="a head alone"),
        pytest.param(entry(status=None, events=0, delivered=0), CLIENT_LEFT, None, id="no head"),
        pytest.param(entry(stream=False, events=0, delivered=0), CLIENT_LEFT, 40, id="a whole message, head sent"),
        pytest.param(entry(status=529), REFUSED, None, id="an error"),
    ],
)
def test_what_is_billed(told: Entry, ended: str, output: int | None) -> None:
    books = Books()
    books.open(told)
    books.close(told, ended, 2.0)
    assert (told.ended, told.ended_at) == (ended, 2.0)
    assert [bill.output_tokens for bill in told.bills] == ([] if output is None else [output])
    total = books.total()
    assert total["output_tokens"] == (output or 0)
    assert total["input_tokens"] == (0 if output is None else 10)
    assert total["web_search_requests"] == (0 if output is None else 1)


def test_an_entry_is_closed_once() -> None:
    books = Books()
    told = entry()
    books.open(told)
    assert (books.running, told.ended, books.total()["requests"]) == (1, RUNNING, 0)
    books.close(told, COMPLETE, 2.0)
    books.close(told, CUT, 3.0)
    assert (books.running, books.ended, told.ended_at) == (0, {COMPLETE: 1}, 2.0)
    assert books["req_1"] is told
    assert books.total()["requests"] == 1


def test_totals_remember_what_is_no_longer_kept() -> None:
    books = Books(keep=2)
    for number in range(5):
        told = entry(f"req_{number}")
        books.open(told)
        books.close(told, COMPLETE, 2.0)
    assert [kept.request_id for kept in books.entries] == ["req_3", "req_4"]
    assert books.total()["output_tokens"] == 200
    assert len(books) == 2
    with pytest.raises(KeyError):
        books["req_0"]


def test_entries_that_run_are_closed_even_when_they_are_no_longer_kept() -> None:
    books = Books(keep=1)
    first, second = entry("req_1"), entry("req_2")
    books.open(first)
    books.open(second)
    books.close(first, COMPLETE, 2.0)
    books.close(second, COMPLETE, 2.0)
    assert (books.running, books.total()["requests"]) == (0, 2)


def test_a_reset_forgets_what_was_running_too() -> None:
    books = Books()
    told = entry()
    books.open(told)
    books.reset()
    books.close(told, COMPLETE, 2.0)
    assert (books.running, books.total()["requests"], books.ended) == (0, 0, {})


async def test_settled_waits_until_nothing_runs(nursery: trio.Nursery) -> None:
    books = Books()
    await books.settled()
    first, second = entry("req_1"), entry("req_2")
    books.open(first)
    books.open(second)
    seen = []

    async def wait() -> None:
        await books.settled()
        seen.append(books.running)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    books.close(first, COMPLETE, 2.0)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    books.close(second, COMPLETE, 2.0)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [0]


async def test_settled_ends_with_a_reset(nursery: trio.Nursery) -> None:
    books = Books()
    books.open(entry())
    nursery.start_soon(books.settled)
    await trio.testing.wait_all_tasks_blocked()
    books.reset()
    with trio.fail_after(5):
        await books.settled()
