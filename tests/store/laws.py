"""What every ledger does, whatever keeps it. A driver's test class derives from `LedgerLaws` and has a fixture
`book`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import pytest
import trio

from tproxy.errors import LedgerUnavailable
from tproxy.store.base import EXACT, FINISHED, LOST, OPEN, PARTIAL, Closing, Ledger, Opening, Ticket

T0 = 1_764_000_000_000_000  # microseconds; in November 2025


def make_opening(number: int, **changes: Any) -> Opening:
    """A complete opening; each number gives another one."""
    opening = Opening(
        id=f"019ab000-0000-7000-8000-{number:012x}",
        accepted_us=T0 + number,
        method="POST",
        path="/v1/messages",
        upstream="https://api.anthropic.com",
        model_asked="claude-sonnet-4-5",
        stream=True,
        caller=f"key:{number % 3:064x}",
        caller_alias="build",
        team="core",
        user="ada",
        customer="acme & sons, gmbh €",
        tags=("a", "ü,\n\"'", "b"),
        session="s-1",
        client_address="127.0.0.1:50000",
        user_agent="curl/8",
    )
    return replace(opening, **changes)


def make_closing(number: int, ended: str = FINISHED, **changes: Any) -> Closing:
    """A complete closing, or with `ended=OPEN` a note, for the opening of the same number."""
    closing = Closing(
        id=make_opening(number).id,
        ended=ended,
        ended_us=None if ended == OPEN else T0 + 900 + number,
        dialled_us=T0 + 1,
        head_us=T0 + 2,
        first_content_us=T0 + 3,
        last_byte_us=T0 + 4,
        status=200,
        model_served="claude-sonnet-4-5-20250929",
        request_id="req_1",
        message_id="msg_1",
        stop_reason="end_turn",
        input_tokens=11 + number,
        output_tokens=22,
        cache_read_tokens=33,
        cache_write_5m_tokens=44,
        cache_write_1h_tokens=55,
        thinking_tokens=66,
        web_searches=7,
        service_tier="standard",
        speed="fast",
        geo="us",
        cost_nano=2**62,
        cost_input_nano=1,
        cost_output_nano=2,
        cost_cache_read_nano=3,
        cost_cache_write_nano=4,
        cost_tools_nano=5,
        price_version="1",
        certainty=PARTIAL if ended == OPEN else EXACT,
        bytes_in=100,
        bytes_out=200,
        error_type="overloaded_error",
        tap_fault="event too large",
    )
    return replace(closing, **changes)


def make_row(opening: Opening, closing: Closing | None = None) -> dict[str, Any]:
    """The row that the two come to, as `reading.exchange` gives it."""
    row = asdict(closing or Closing(id=opening.id, ended=OPEN)) | asdict(opening)
    return row | {"tags": list(opening.tags)}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread will do, for which there is no event."""
    with trio.fail_after(10):
        await trio.lowlevel.checkpoint()
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)


class Book(Protocol):
    """A ledger, with what a test needs to see and to do beside it."""

    @property
    def ledger(self) -> Ledger: ...

    @property
    def faults(self) -> list[str]: ...

    async def rows(self) -> dict[str, dict[str, Any]]:
        """All rows by id, once everything that was queued is written."""

    async def fail(self) -> None:
        """Make the ledger unwritable, and wait until it knows."""

    async def mend(self) -> None:
        """Make it writable again, and wait until it knows."""


class LedgerLaws:
    async def test_an_opened_row_is_open(self, book: Book) -> None:
        opening = make_opening(1)
        await book.ledger.open(opening).durable()
        assert await book.rows() == {opening.id: make_row(opening)}

    async def test_a_bare_opening_is_enough(self, book: Book) -> None:
        opening = Opening(
            id="019ab000-0", accepted_us=1, method="GET", path="/", upstream="https://u", caller="anonymous"
        )
        await book.ledger.open(opening).durable()
        assert await book.rows() == {opening.id: make_row(opening)}

    async def test_a_note_is_kept_and_the_row_stays_open(self, book: Book) -> None:
        opening, note = make_opening(1), make_closing(1, OPEN)
        book.ledger.open(opening)
        book.ledger.note(make_closing(1, OPEN, output_tokens=1))
        book.ledger.note(note)
        assert await book.rows() == {opening.id: make_row(opening, note)}

    async def test_a_closed_row_is_all_that_was_said(self, book: Book) -> None:
        pairs = [(make_opening(n), make_closing(n)) for n in range(5)]
        for opening, closing in pairs:
            book.ledger.open(opening)
            book.ledger.note(make_closing(4, OPEN))
            book.ledger.close(closing)
        assert await book.rows() == {opening.id: make_row(opening, closing) for opening, closing in pairs}
        assert book.faults == []

    async def test_a_second_close_is_refused_and_told(self, book: Book) -> None:
        book.ledger.open(make_opening(1))
        book.ledger.close(make_closing(1))
        book.ledger.close(make_closing(1, LOST))
        assert (await book.rows())[make_opening(1).id]["ended"] == FINISHED
        assert len(book.faults) == 1

    async def test_a_close_of_nothing_is_refused_and_told(self, book: Book) -> None:
        book.ledger.close(make_closing(1))
        assert await book.rows() == {}
        assert len(book.faults) == 1

    async def test_a_note_of_nothing_or_of_what_has_ended_changes_nothing(self, book: Book) -> None:
        book.ledger.note(make_closing(2, OPEN))
        book.ledger.open(make_opening(1))
        book.ledger.close(make_closing(1))
        book.ledger.note(make_closing(1, OPEN))
        assert await book.rows() == {make_opening(1).id: make_row(make_opening(1), make_closing(1))}
        assert book.faults == []

    async def test_a_note_does_not_end_and_a_close_does(self, book: Book) -> None:
        book.ledger.open(make_opening(1))
        book.ledger.note(make_closing(1, FINISHED))
        book.ledger.close(make_closing(1, OPEN))
        assert await book.rows() == {make_opening(1).id: make_row(make_opening(1))}
        assert len(book.faults) == 2
        book.ledger.close(make_closing(1))
        assert await book.rows() == {make_opening(1).id: make_row(make_opening(1), make_closing(1))}

    async def test_an_id_is_opened_once(self, book: Book) -> None:
        first = book.ledger.open(make_opening(1))
        second = book.ledger.open(make_opening(1, method="PUT"))
        await first.durable()
        with pytest.raises(LedgerUnavailable):
            await second.durable()
        book.ledger.close(make_closing(1))
        await book.rows()
        third = book.ledger.open(make_opening(1, method="PUT"))
        with pytest.raises(LedgerUnavailable):
            await third.durable()
        book.ledger.close(make_closing(1, LOST))
        assert await book.rows() == {make_opening(1).id: make_row(make_opening(1), make_closing(1))}
        assert len(book.faults) == 3

    async def test_a_ticket_can_be_asked_by_many_and_again(self, book: Book) -> None:
        ticket = book.ledger.open(make_opening(1))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ticket.durable)
        await ticket.durable()

    async def test_a_cancelled_wait_takes_nothing_back(self, book: Book) -> None:
        tickets = [book.ledger.open(make_opening(n)) for n in range(3)]
        for ticket in tickets:
            with trio.CancelScope() as scope:
                scope.cancel()
                await ticket.durable()
            assert scope.cancelled_caught
        for n, ticket in enumerate(tickets):
            await ticket.durable()
            book.ledger.close(make_closing(n))
        assert [row["ended"] for row in (await book.rows()).values()] == [FINISHED] * 3

    async def test_an_unwritable_ledger_refuses_opens_and_keeps_closes(self, book: Book) -> None:
        for n in (1, 2):
            await book.ledger.open(make_opening(n)).durable()
        await book.fail()
        assert not book.ledger.writable
        book.ledger.close(make_closing(1))
        book.ledger.note(make_closing(2, OPEN))  # may be dropped
        refused: Ticket = book.ledger.open(make_opening(3))
        with pytest.raises(LedgerUnavailable):
            await refused.durable()
        book.ledger.close(make_closing(3, status=503))
        book.ledger.close(make_closing(2))
        await book.mend()
        assert book.ledger.writable
        assert await book.rows() == {
            make_opening(1).id: make_row(make_opening(1), make_closing(1)),
            make_opening(2).id: make_row(make_opening(2), make_closing(2)),
            make_opening(3).id: make_row(make_opening(3), make_closing(3, status=503)),
        }
