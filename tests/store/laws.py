"""What every ledger does, whatever keeps it. A driver's test class derives from `LedgerLaws` and has a fixture
`book`."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest
import trio
import trio.testing
from msgspec.structs import asdict, replace

from tproxy.errors import LedgerUnavailable
from tproxy.store.base import (
    CLIENT_GONE,
    COUNTED,
    ESTIMATED,
    EXACT,
    EXPECTED,
    FINISHED,
    HARD,
    LOST,
    OPEN,
    PARTIAL,
    SOFT,
    UNPRICED,
    UPSTREAM_BROKEN,
    Claim,
    Closing,
    Ledger,
    Opening,
    Refusal,
    Standing,
    Ticket,
)
from tproxy.store.subjects import Budget, Subject, Terms

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


def make_subject(kind: str, id: str, *budgets: Budget | int, cut: bool = False) -> Subject:
    """A subject with budgets; one that is given as a number has it as its limit, for ever."""
    made = tuple(Budget(limit_nano=b) if isinstance(b, int) else b for b in budgets)
    return Subject(kind=kind, id=id, terms=Terms(budgets=made, cut=cut))


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

    @property
    def soft(self) -> Sequence[Standing]:
        """The warnings so far."""

    async def set_clock(self, now_us: int) -> None:
        """From now on it is that late, for the budgets; at first it is `T0`."""

    async def set_budgets(self, subject: Subject) -> None: ...

    async def standings(self, kind: str, id: str) -> list[Standing]:
        """How the budgets stand, once everything that was queued is written."""

    async def overshoots(self) -> int:
        """How many, once everything that was queued is written."""

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


# spent and held before; the limit; the claim; what is decided: held, or refused, and then whether only what is held
# stands in the way.
_DECISIONS = {
    "expected: there is room": (50, 20, 100, EXPECTED, 30, "held"),
    "expected: not enough room, for now": (50, 20, 100, EXPECTED, 31, "held_only"),
    "expected: it fits if all else comes free": (50, 20, 100, EXPECTED, 50, "held_only"),
    "expected: beside others, until they have ended": (50, 20, 100, EXPECTED, 51, "held_only"),
    "expected: alone, and something is left": (99, 0, 100, EXPECTED, 51, "held"),
    "expected: alone, and nothing is left": (100, 0, 100, EXPECTED, 51, "refused"),
    "expected: nothing is left": (100, 0, 100, EXPECTED, 1, "refused"),
    "expected nothing: some is left": (99, 1, 100, EXPECTED, 0, "held"),
    "expected nothing: nothing is left": (100, 0, 100, EXPECTED, 0, "refused"),
    "hard: there is room": (50, 20, 100, HARD, 30, "held"),
    "hard: not enough room, for now": (50, 20, 100, HARD, 31, "held_only"),
    "hard: it never fits": (50, 0, 100, HARD, 51, "refused"),
    "soft: some is left": (99, 1, 100, SOFT, 0, "held"),
    "soft holds nothing, whatever it says": (99, 1, 100, SOFT, 50, "held"),
    "soft: nothing is left": (100, 0, 100, SOFT, 0, "refused"),
    "soft: more than all is spent": (101, 0, 100, SOFT, 0, "refused"),
    "counted: nothing is left": (100, 0, 100, COUNTED, 0, "held"),
    "counted holds nothing, whatever it says": (100, 0, 100, COUNTED, 7, "held"),
    "no limit": (100, 0, None, HARD, 10**15, "held"),
    "a limit of nothing": (0, 0, 0, SOFT, 0, "refused"),
}

# The claim; how it ended, what it cost and how sure that is; what is booked.
_BOOKED = {
    "expected: less": (EXPECTED, 30, FINISHED, 10, EXACT, 10),
    "expected: more": (EXPECTED, 30, FINISHED, 50, EXACT, 50),
    "expected: not sure": (EXPECTED, 30, FINISHED, 10, PARTIAL, 10),
    "expected: not known": (EXPECTED, 30, UPSTREAM_BROKEN, None, PARTIAL, 0),
    "expected: not known, the client left": (EXPECTED, 30, CLIENT_GONE, None, PARTIAL, 30),
    "expected: known, the client left": (EXPECTED, 30, CLIENT_GONE, 10, PARTIAL, 10),
    "expected: known to be nothing, the client left": (EXPECTED, 30, CLIENT_GONE, 0, PARTIAL, 0),
    "hard: less": (HARD, 30, FINISHED, 10, EXACT, 10),
    "hard: all": (HARD, 30, FINISHED, 30, EXACT, 30),
    "hard: not sure": (HARD, 30, FINISHED, 10, ESTIMATED, 30),
    "hard: not known": (HARD, 30, FINISHED, None, EXACT, 30),
    "hard: not known, the client left": (HARD, 30, CLIENT_GONE, None, PARTIAL, 30),
    "soft": (SOFT, 0, FINISHED, 10, EXACT, 10),
    "soft: not sure": (SOFT, 0, FINISHED, 10, PARTIAL, 10),
    "soft: not known": (SOFT, 0, CLIENT_GONE, None, PARTIAL, 0),
    "counted": (COUNTED, 0, FINISHED, 10, EXACT, 10),
}

# The claim; whether the budget cuts; how much more is asked; what is held then, and whether it was refused.
_EXTENSIONS = {
    "expected": (EXPECTED, 30, False, 80, 80, False),
    "expected: less than it holds": (EXPECTED, 30, False, 20, 30, False),
    "expected: past the limit": (EXPECTED, 30, False, 95, 95, False),
    "expected, cuts: up to the limit": (EXPECTED, 30, True, 90, 90, False),
    "expected, cuts: past the limit": (EXPECTED, 30, True, 91, 30, True),
    "soft": (SOFT, 0, False, 80, 0, False),
    "soft, cuts: up to the limit": (SOFT, 0, True, 90, 90, False),
    "soft, cuts: past the limit": (SOFT, 0, True, 91, 0, True),
    "hard": (HARD, 30, False, 80, 30, False),
    "hard, cuts": (HARD, 30, True, 80, 30, False),
    "counted, cuts": (COUNTED, 0, True, 95, 0, False),
}


# The budgets before, with 10 spent and 20 held of each; those after; what is spent and held then, and once the
# exchange has ended and cost 5.
_BUDGET_CHANGES = {
    "another period": ([Budget("1d", 100)], [Budget("1mo", 50)], [(10, 20)], [(15, 0)]),
    "another period of one of two": (
        [Budget("1d", 100), Budget("1mo", 100)],
        [Budget("2d", 100), Budget("1mo", 100)],
        [(10, 20), (10, 20)],
        [(15, 0), (15, 0)],
    ),
    "another order": (
        [Budget("1d", 100), Budget("1mo", 200)],
        [Budget("1mo", 200), Budget("1d", 100)],
        [(10, 20), (10, 20)],
        [(15, 0), (15, 0)],
    ),
    "one more": ([Budget("1d", 100)], [Budget("1d", 100), Budget(None, 90)], [(10, 20), (0, 20)], [(15, 0), (5, 0)]),
    "one more before it": (
        [Budget("1d", 90)],
        [Budget(None, 9), Budget("1d", 90)],
        [(0, 20), (10, 20)],
        [(5, 0), (15, 0)],
    ),
    "one less": ([Budget("1d", 100), Budget("1mo", 100)], [Budget("1mo", 100)], [(10, 20)], [(15, 0)]),
}


def _rows(table: dict[str, tuple[Any, ...]]) -> Any:
    return [pytest.param(*row, id=name) for name, row in table.items()]


class MoneyLaws:
    """What every ledger does with claims."""

    async def spend(self, book: Book, kind: str, id: str, spent: int, held: int) -> None:
        """Have so much spent, and so much held by the exchange with the number 1."""
        book.ledger.open(make_opening(0), [Claim(kind, id, COUNTED)])
        book.ledger.close(make_closing(0, cost_nano=spent))
        assert await book.ledger.open(make_opening(1), [Claim(kind, id, EXPECTED, held)]).admitted() is None

    async def settled(self, book: Book) -> None:
        """Return when everything that was queued is written; no event of money is set by that."""
        await book.ledger.open(make_opening(77)).durable()
        book.ledger.close(make_closing(77, cost_nano=0))

    async def figures(self, book: Book, kind: str, id: str) -> list[tuple[int, int]]:
        return [(standing.spent_nano, standing.held_nano) for standing in await book.standings(kind, id)]

    @pytest.mark.parametrize(("spent", "held", "limit", "mode", "amount", "decision"), _rows(_DECISIONS))
    async def test_a_claim_is_held_or_refused(
        self, book: Book, spent: int, held: int, limit: int | None, mode: str, amount: int, decision: str
    ) -> None:
        await book.set_budgets(make_subject("team", "core", Budget(limit_nano=None)))
        await self.spend(book, "team", "core", spent, held)
        await book.set_budgets(make_subject("team", "core", Budget(limit_nano=limit)))
        ticket = book.ledger.open(make_opening(2), [Claim("team", "core", mode, amount)])
        refusal = await ticket.admitted()
        more = amount if decision == "held" and mode in (EXPECTED, HARD) else 0
        standing = Standing(
            kind="team",
            subject="core",
            period=None,
            limit_nano=limit,
            soft_nano=None,
            spent_nano=spent,
            held_nano=held + more,
            reset_us=None,
        )
        assert list(ticket.standings) == await book.standings("team", "core") == [standing]
        if decision == "held":
            assert refusal is None
            await ticket.durable()
        else:
            asked = amount if mode in (EXPECTED, HARD) else 0
            assert refusal == Refusal(standing, asked, mode)
            assert refusal.held_only == (decision == "held_only")
            with pytest.raises(LedgerUnavailable):
                await ticket.durable()
        assert (make_opening(2).id in await book.rows()) == (decision == "held")
        assert book.faults == []

    @pytest.mark.parametrize(("mode", "amount", "ended", "cost", "certainty", "booked"), _rows(_BOOKED))
    async def test_the_end_books_the_cost_and_gives_back_what_was_held(
        self, book: Book, mode: str, amount: int, ended: str, cost: int | None, certainty: str, booked: int
    ) -> None:
        await book.set_budgets(make_subject("team", "core", Budget("1mo", 1000), Budget(limit_nano=2000)))
        await self.spend(book, "team", "core", 7, 5)
        freed, of_others = book.ledger.freed("team", "core"), book.ledger.freed("key", "core")
        await book.ledger.open(make_opening(2), [Claim("team", "core", mode, amount)]).admitted()
        assert await self.figures(book, "team", "core") == [(7, 5 + amount)] * 2
        assert not freed.is_set()
        book.ledger.close(make_closing(2, ended, cost_nano=cost, certainty=certainty))
        await self.settled(book)
        assert (freed.is_set(), of_others.is_set()) == (amount > 0, False)
        assert (book.ledger.freed("team", "core") is freed) == (amount == 0)
        assert await self.figures(book, "team", "core") == [(7 + booked, 5)] * 2
        assert book.faults == []
        assert await book.overshoots() == 0

    @pytest.mark.parametrize("certainty", [EXACT, PARTIAL])
    async def test_more_than_a_hard_claim_holds_is_booked_and_told(self, book: Book, certainty: str) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        book.ledger.open(make_opening(1), [Claim("team", "core", HARD, 30)])
        book.ledger.close(make_closing(1, cost_nano=31, certainty=certainty))
        assert await self.figures(book, "team", "core") == [(31, 0)]
        assert await book.overshoots() == 1
        assert len(book.faults) == 1
        assert make_opening(1).id in book.faults[0]

    @pytest.mark.parametrize(("mode", "amount", "cut", "asked", "held", "refused"), _rows(_EXTENSIONS))
    async def test_more_is_held_while_it_runs(
        self, book: Book, mode: str, amount: int, cut: bool, asked: int, held: int, refused: bool
    ) -> None:
        await book.set_budgets(make_subject("team", "core", 100, cut=cut))
        await self.spend(book, "team", "core", 6, 4)
        book.ledger.open(make_opening(2), [Claim("team", "core", mode, amount)])
        refusals: list[Refusal] = []
        book.ledger.extend(make_opening(2).id, asked, refusals.append)
        book.ledger.extend(make_opening(3).id, 1000, refusals.append)
        [standing] = await book.standings("team", "core")
        assert (standing.spent_nano, standing.held_nano) == (6, 4 + held)
        await trio.testing.wait_all_tasks_blocked()
        assert refusals == ([Refusal(standing, asked, mode)] if refused else [])
        book.ledger.close(make_closing(2, cost_nano=9))
        assert await self.figures(book, "team", "core") == [(15, 4)]

    async def test_one_budget_of_many_refuses_for_all(self, book: Book) -> None:
        """And of those that refuse, one that will go on refusing is named."""
        await book.set_budgets(make_subject("key", "a", 1000))
        await book.set_budgets(make_subject("team", "core", Budget("1mo", 40), Budget(limit_nano=25)))
        await book.set_budgets(make_subject("tag", "x", 1000))
        await self.spend(book, "team", "core", 0, 20)
        claims = [Claim("key", "a", HARD, 30), Claim("team", "core", HARD, 30), Claim("tag", "x", HARD, 30)]
        ticket = book.ledger.open(make_opening(2), claims)
        refusal = await ticket.admitted()
        assert refusal is not None
        assert not refusal.held_only
        assert (refusal.standing.subject, refusal.standing.limit_nano, refusal.asked_nano) == ("core", 25, 30)
        assert [(s.subject, s.held_nano) for s in ticket.standings] == [("a", 0), ("core", 20), ("core", 20), ("x", 0)]
        assert await self.figures(book, "key", "a") == await self.figures(book, "tag", "x") == [(0, 0)]
        assert await self.figures(book, "team", "core") == [(0, 20), (0, 20)]
        assert make_opening(2).id not in await book.rows()

    async def test_the_refused_can_try_again(self, book: Book) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        claim = [Claim("team", "core", HARD, 60)]
        assert await book.ledger.open(make_opening(1), claim).admitted() is None
        refusal = await book.ledger.open(make_opening(2), claim).admitted()
        assert refusal is not None
        assert refusal.held_only
        freed = book.ledger.freed("team", "core")
        book.ledger.close(make_closing(1, cost_nano=40))
        with trio.fail_after(10):
            await freed.wait()
        assert await book.ledger.open(make_opening(2), claim).admitted() is None
        book.ledger.close(make_closing(2, cost_nano=60))
        assert await self.figures(book, "team", "core") == [(100, 0)]
        assert book.faults == []
        book.ledger.close(make_closing(2, cost_nano=60))
        assert len(book.faults) == 1

    async def test_a_close_of_the_refused_changes_nothing(self, book: Book) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        claim = [Claim("team", "core", HARD, 101)]
        for n, cancelled in enumerate((True, False)):
            ticket = book.ledger.open(make_opening(n), claim)
            with trio.CancelScope() as scope:
                if cancelled:
                    scope.cancel()
                await ticket.admitted()
            book.ledger.note(make_closing(n, OPEN))
            book.ledger.close(make_closing(n, cost_nano=9))
        assert await book.rows() == {}
        assert await self.figures(book, "team", "core") == [(0, 0)]
        assert book.faults == []

    async def test_an_admitted_one_is_closed_though_nobody_waited(self, book: Book) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        ticket = book.ledger.open(make_opening(1), [Claim("team", "core", HARD, 50)])
        with trio.CancelScope() as scope:
            scope.cancel()
            await ticket.admitted()
        book.ledger.close(make_closing(1, cost_nano=0))
        assert await self.figures(book, "team", "core") == [(0, 0)]
        assert list(await book.rows()) == [make_opening(1).id]

    @pytest.mark.parametrize(
        ("claims", "held"),
        [
            ([Claim("team", "core", EXPECTED, 3), Claim("team", "core", EXPECTED, 5)], 5),
            ([Claim("team", "core", HARD, 5), Claim("team", "core", EXPECTED, 3)], 5),
            ([Claim("team", "core", SOFT, 9), Claim("team", "core", HARD, 5)], 5),
        ],
        ids=["later", "earlier", "what soft says is nothing"],
    )
    async def test_the_larger_of_two_claims_on_one_subject_is_held(
        self, book: Book, claims: list[Claim], held: int
    ) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        assert await book.ledger.open(make_opening(1), claims).admitted() is None
        assert await self.figures(book, "team", "core") == [(0, held)]

    @pytest.mark.parametrize("mode", [EXPECTED, HARD, SOFT])
    async def test_a_claim_on_budgets_that_went_is_stale(self, book: Book, mode: str) -> None:
        """Whoever asked has been deleted, or was given other terms, since it was looked at: nothing is held."""
        await book.set_budgets(make_subject("user", "ada", 0))
        await book.set_budgets(make_subject("key", "a", 100))
        claims = [Claim("user", "ada", SOFT), Claim("key", "a", HARD, 10), Claim("team", "core", mode, 7)]
        ticket = book.ledger.open(make_opening(1), claims)
        refusal = await ticket.admitted()
        assert refusal is not None
        assert (refusal.stale, refusal.held_only, refusal.mode) == (True, True, mode)
        assert refusal.asked_nano == (0 if mode == SOFT else 7)
        assert refusal.standing == Standing(
            kind="team",
            subject="core",
            period=None,
            limit_nano=0,
            soft_nano=None,
            spent_nano=0,
            held_nano=0,
            reset_us=None,
        )
        assert await self.figures(book, "key", "a") == [(0, 0)]
        assert await book.rows() == {}
        assert book.faults == []

    async def test_no_figure_passes_what_can_be_kept(self, book: Book) -> None:
        huge = 2**70
        most = 2**63 - 1
        await book.set_budgets(make_subject("team", "core", most))
        await book.set_budgets(make_subject("user", "ada", Budget(None, None, most)))
        await self.spend(book, "team", "core", 1, 1)
        for mode in (HARD, EXPECTED):
            refusal = await book.ledger.open(make_opening(2), [Claim("team", "core", mode, huge)]).admitted()
            assert refusal is not None
            assert (refusal.asked_nano, refusal.stale) == (most, False)
        for n, mode in enumerate((EXPECTED, HARD), 3):
            assert await book.ledger.open(make_opening(n), [Claim("user", "ada", mode, huge)]).admitted() is None
        book.ledger.extend(make_opening(3).id, huge, lambda refusal: None)
        assert await self.figures(book, "user", "ada") == [(0, most)]
        book.ledger.close(make_closing(3, cost_nano=5))
        book.ledger.close(make_closing(4, cost_nano=0))
        assert await self.figures(book, "user", "ada") == [(5, 0)]
        assert book.faults == []

    async def test_who_is_only_counted_needs_no_budget(self, book: Book) -> None:
        ticket = book.ledger.open(make_opening(1), [Claim("team", "core", COUNTED, 10**15)])
        assert await ticket.admitted() is None
        assert list(ticket.standings) == []
        plain = book.ledger.open(make_opening(2))
        assert await plain.admitted() is None
        assert list(plain.standings) == []
        assert len(await book.rows()) == 2

    async def test_a_soft_limit_warns_once(self, book: Book) -> None:
        await book.set_budgets(make_subject("user", "ada", Budget(None, 100, 20), Budget("1d", None, 18)))
        for n, warned in enumerate(["none", "day", "day and ever", "no more"]):
            book.ledger.open(make_opening(n), [Claim("user", "ada", SOFT)])
            book.ledger.close(make_closing(n, cost_nano=9))
            await book.standings("user", "ada")
            expected = {"none": [], "day": [("1d", 18)]}.get(warned, [("1d", 18), (None, 27)])
            assert [(s.period, s.spent_nano) for s in book.soft] == expected

    async def test_an_ended_period_begins_anew_and_keeps_what_is_held(self, book: Book) -> None:
        day = 86_400_000_000
        midnight = T0 - T0 % day + day
        await book.set_budgets(make_subject("user", "ada", Budget("1d", 100), Budget(limit_nano=1000)))
        await self.spend(book, "user", "ada", 90, 10)
        claim = [Claim("user", "ada", EXPECTED, 40)]
        await book.set_clock(midnight - 1)
        assert await book.ledger.open(make_opening(2), claim).admitted() is not None
        await book.set_clock(midnight)
        assert await self.figures(book, "user", "ada") == [(0, 10), (90, 10)]
        ticket = book.ledger.open(make_opening(2), claim)
        assert await ticket.admitted() is None
        assert [s.reset_us for s in ticket.standings] == [midnight + day, None]
        assert await self.figures(book, "user", "ada") == [(0, 50), (90, 50)]
        book.ledger.close(make_closing(2, cost_nano=50))
        assert await self.figures(book, "user", "ada") == [(50, 10), (140, 10)]
        await book.set_clock(midnight + 3 * day)
        book.ledger.close(make_closing(1, cost_nano=1))
        standings = await book.standings("user", "ada")
        assert [(s.spent_nano, s.reset_us) for s in standings] == [(1, midnight + 4 * day), (141, None)]

    async def test_what_could_not_be_written_is_booked_when_it_can(self, book: Book) -> None:
        await book.set_budgets(make_subject("team", "core", 100))
        claim = [Claim("team", "core", HARD, 50)]
        assert await book.ledger.open(make_opening(1), claim).admitted() is None
        await book.fail()
        book.ledger.close(make_closing(1, cost_nano=20))
        ticket = book.ledger.open(make_opening(2), claim)
        with pytest.raises(LedgerUnavailable):
            await ticket.admitted()
        book.ledger.close(make_closing(2, cost_nano=3))
        freed = [book.ledger.freed("team", "core"), book.ledger.freed("team", "other")]
        await book.mend()
        assert await self.figures(book, "team", "core") == [(23, 0)]
        assert [event.is_set() for event in freed] == [True, True]
        assert len(await book.rows()) == 2

    @pytest.mark.parametrize(("before", "after", "then", "settled"), _rows(_BUDGET_CHANGES))
    async def test_what_is_spent_and_held_stays_when_budgets_change(
        self,
        book: Book,
        before: list[Budget],
        after: list[Budget],
        then: list[tuple[int, int]],
        settled: list[tuple[int, int]],
    ) -> None:
        await book.set_budgets(make_subject("team", "core", *before))
        await self.spend(book, "team", "core", 10, 20)
        await book.set_budgets(make_subject("team", "core", *after))
        assert await self.figures(book, "team", "core") == then
        book.ledger.close(make_closing(1, cost_nano=5))
        assert await self.figures(book, "team", "core") == settled
        assert book.faults == []

    async def test_budgets_that_change_meanwhile(self, book: Book) -> None:
        """What is held of a budget that stays is kept, one that comes is held as well, one that goes is not."""
        await book.set_budgets(make_subject("team", "core", Budget("1d", 100), Budget(limit_nano=100)))
        await self.spend(book, "team", "core", 10, 20)
        await book.set_budgets(make_subject("team", "core", Budget(limit_nano=50), Budget("7d", 200)))
        assert await self.figures(book, "team", "core") == [(10, 20), (0, 20)]
        book.ledger.close(make_closing(1, cost_nano=5))
        assert await self.figures(book, "team", "core") == [(15, 0), (5, 0)]
        assert await book.ledger.open(make_opening(2), [Claim("team", "core", EXPECTED, 7)]).admitted() is None
        await book.set_budgets(make_subject("team", "core"))
        assert await book.standings("team", "core") == []
        await book.set_budgets(make_subject("team", "core", 100))
        book.ledger.close(make_closing(2, cost_nano=5))
        assert await self.figures(book, "team", "core") == [(0, 0)]


def known(connection: sqlite3.Connection) -> set[str]:
    """The customers that are subjects."""
    return {id for (id,) in connection.execute("SELECT id FROM subject WHERE kind = 'customer'")}


def summed(
    rows: Sequence[dict[str, Any]], customers: Collection[str]
) -> tuple[dict[tuple[str, ...], dict[str, int]], ...]:
    """What `tally` and `daily` have to hold for these rows, by their keys, where only these customers are known; made
    row by row and the slow way."""
    tally: dict[tuple[str, ...], dict[str, int]] = {}
    daily: dict[tuple[str, ...], dict[str, int]] = {}
    for row in rows:
        if row["ended"] == OPEN:
            continue
        figures = {
            name: row[name] or 0
            for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cost_nano", "expected_nano")
        }
        written = (row["cache_write_5m_tokens"] or 0) + (row["cache_write_1h_tokens"] or 0)
        expected = row["certainty"] == EXACT and None not in (row["cost_nano"], row["expected_nano"])
        day = datetime.fromtimestamp(row["accepted_us"] // 1_000_000, UTC).date().isoformat()
        model = next((row[name] for name in ("model_served", "model_asked") if row[name] is not None), "")
        ids = [("caller", row["caller"])]
        ids += [(kind, row[kind]) for kind in ("team", "user") if row[kind] is not None]
        if written or any(figures[n] for n in ("input_tokens", "output_tokens", "cache_read_tokens", "cost_nano")):
            ids += [("customer", row["customer"])] if row["customer"] in customers else []
            ids += [("tag", tag) for tag in row["tags"]]
        for key in [*ids, ("proxy", "")]:
            there = tally.setdefault(key, Counter())
            there["exchanges"] += 1
            there["prompt_tokens"] += figures["input_tokens"] + figures["cache_read_tokens"] + written
            there["completion_tokens"] += figures["output_tokens"]
            there["cost_nano"] += figures["cost_nano"]
            there["last_us"] = max(there["last_us"], row["ended_us"] or row["accepted_us"])
            if expected:
                there["expected_exchanges"] += 1
                there["expected_nano"] += figures["expected_nano"]
                there["expected_cost_nano"] += figures["cost_nano"]
                there["expected_error_nano"] += abs(figures["expected_nano"] - figures["cost_nano"])
        for kind, id, caller in [*((kind, id, row["caller"]) for kind, id in ids), ("proxy", "", "")]:
            there = daily.setdefault((kind, day, id, caller, model), Counter())
            there["exchanges"] += 1
            there["failures"] += row["ended"] != FINISHED or (row["status"] or 0) >= 400
            there["cache_write_tokens"] += written
            there["unpriced"] += row["certainty"] == UNPRICED
            for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cost_nano"):
                there[name] += figures[name]
    return tuple({key: {n: v for n, v in there.items() if v} for key, there in d.items()} for d in (tally, daily))


def kept_sums(connection: sqlite3.Connection) -> tuple[dict[tuple[str, ...], dict[str, int]], ...]:
    """What they do hold, without what is 0, in the form of `summed`."""
    found = []
    for table, keys in (("tally", 2), ("daily", 5)):
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        found.append(
            {tuple(row[:keys]): {n: v for n, v in zip(names[keys:], row[keys:], strict=True) if v} for row in cursor}
        )
    return tuple(found)
