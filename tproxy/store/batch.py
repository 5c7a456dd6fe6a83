"""What each entry of the ledger does to the file, within one transaction.

| entry | what is done, all of it or nothing |
|---|---|
| open | the claims are held, the row is written, a customer who is new is made |
| note | the row says what is known so far |
| extension | more is held |
| close | the row says how it ended; what it cost is booked, what it held given back; it is added to sums and journal |
| change | what an operator changes |

An entry that fails for a reason of its own (`rows.ROW_FAULTS`) does not fail the others. For this the entries are
written apart: then such a one is undone by itself, and of a close, what matters most is written all the same: that the
exchange has ended, with what it held booked. Entries that are written together cost less, and one that fails raises:
the transaction is then to be undone, and all of them written apart.

It does not know threads, tickets or commits (`writer`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TypeVar
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from tproxy.store import claims as claim
from tproxy.store import rows
from tproxy.store.base import CLIENT_GONE, EXACT, Claim, Closing, Opening, Refusal, Standing
from tproxy.store.budgets import Budgets
from tproxy.store.claims import Decision, Settlement
from tproxy.store.customers import Customers
from tproxy.store.journal import Journal
from tproxy.store.sums import Sums

T = TypeVar("T")

_ADMITTED = Decision(None, ())
_TOGETHER = nullcontext()


@dataclass(slots=True)
class Told:
    """What others should hear of a batch: faults in one sentence each, how many exchanges cost more than a HARD claim
    of theirs, budgets that passed their soft limit, and of whom (kind and subject) money came free; `freed_all` where
    it may be anybody's."""

    faults: list[str] = field(default_factory=list)
    overshoots: int = 0
    soft: list[Standing] = field(default_factory=list)
    freed: set[tuple[str, str]] = field(default_factory=set)
    freed_all: bool = False


class Batch:
    """The entries of one transaction, which the caller has begun; `finish` before it is committed. Where it is undone,
    `customers`, `budgets` and `journal` are to be told.

    Attributes:
        settled: how many rows have ended in it.

    Args:
        now_us: the time for all of them.
        zone: where the calendar's periods begin and end.
        apart: each entry can fail by itself. Otherwise every method may raise `ROW_FAULTS`, and the batch has failed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        now_us: int,
        zone: ZoneInfo,
        customers: Customers,
        budgets: Budgets,
        journal: Journal,
        *,
        apart: bool,
    ) -> None:
        self.told = Told()
        self._connection = connection
        self._now_us = now_us
        self._customers = customers
        self._budgets = budgets
        self._journal = journal
        self._apart = apart
        self._refused_for = rows.ROW_FAULTS if apart else ()
        self._sums = Sums()
        self.settled = 0
        budgets.begin(connection, now_us, zone)

    def open(self, opening: Opening, claims: Sequence[Claim], *, let_in: bool = False) -> Decision | str:
        """A new row, if all claims can be held. Returns what was decided of them, or why it cannot be recorded.

        Args:
            let_in: that was decided and told before, and then its commit failed, or seemed to: it has a row now.
        """
        try:
            with self._whole():
                if let_in and rows.is_there(self._connection, opening.id):
                    return _ADMITTED
                decision = _ADMITTED
                if claims:
                    decision = claim.hold(self._connection, self._budgets, opening.id, claims, let_in=let_in)
                if decision.refusal is None:
                    rows.insert(self._connection, opening)
                    self._customers.meet(self._connection, opening, self.told.faults)
                return decision
        except self._refused_for as fault:
            self.told.faults.append(f"open of {opening.id} refused: {fault}")
            return "The exchange cannot be recorded."

    def note(self, closing: Closing) -> None:
        try:
            rows.note(self._connection, closing)
        except self._refused_for as fault:
            self.told.faults.append(f"note of {closing.id} refused: {fault}")

    def extend(self, exchange: str, amount_nano: int) -> Refusal | None:
        """Hold more, where that can be; see `claims.extend`."""
        try:
            with self._whole():
                return claim.extend(self._connection, self._budgets, exchange, amount_nano)
        except self._refused_for as fault:
            self.told.faults.append(f"extension of {exchange} refused: {fault}")
            return None

    def close(self, closing: Closing, opening: Opening, claims: Sequence[Claim], *, opened: bool) -> None:
        """The end of a row.

        Args:
            opening, claims: what it was opened with.
            opened: its open was decided, for or against. Otherwise the row is written whole, and its cost is booked
                on what it would have claimed.
        """
        try:
            with self._whole():
                caller, refusal = rows.close(self._connection, closing, None if opened else opening)
                if caller is not None:
                    self._settle(closing, () if opened else claims)
                    if not opened:
                        self._customers.meet(self._connection, opening, self.told.faults)
                    # Its key may have another hash since it was opened.
                    opening = opening if caller == opening.caller else replace(opening, caller=caller)
            if caller is not None:
                self._count(opening, closing)
            elif refusal is not rows.ALREADY:
                self.told.faults.append(f"close of {closing.id} refused: {refusal}")
        except self._refused_for as fault:
            self.told.faults.append(f"close of {closing.id} written without its figures: {fault}")
            with suppress(*rows.ROW_FAULTS):
                with self._whole():
                    ended = self._close_bare(closing, None if opened else opening)
                if ended is not None:
                    self._count(*ended)

    def change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Let `change` do what it does; what it raises undoes it. After `finish`, so that it sees what came before."""
        try:
            with self._savepoint():
                result = change(self._connection)
        finally:
            self._budgets.forget()
        self.told.freed_all = True  # a limit may be higher now, or a figure lower
        return result

    def recover(self) -> int:
        """Close what an earlier process left open, and give back all that is held. Returns how many rows there were."""
        self._journal.adopt(self._connection)
        lost = rows.lose(self._connection, self._now_us)
        for opening, closing in lost:
            self._settle(closing, (), lost=True)
            self._count(opening, closing)
        claim.release_all(self._connection, self._budgets)
        return len(lost)

    def finish(self) -> None:
        """Write what was gathered so far."""
        self._budgets.flush()
        self._sums.flush(self._connection)
        self._journal.flush(self._connection)

    def _close_bare(self, closing: Closing, opening: Opening | None) -> tuple[Opening, Closing] | None:
        """Returns what the row says then; None where it was not open."""
        if opening is not None:
            with suppress(sqlite3.IntegrityError):  # it is there: its open was committed after all
                rows.insert(self._connection, opening)
        if not rows.close_bare(self._connection, closing):
            return None
        there, ended = rows.read(self._connection, closing.id)
        self._settle(ended, (), lost=True)
        return there, ended

    def _count(self, opening: Opening, closing: Closing) -> None:
        """A row has ended, and says this now."""
        self._sums.add(opening, closing)
        self._journal.add(self._connection, opening, closing)
        self.settled += 1

    def _settle(self, closing: Closing, unheld: Sequence[Claim], *, lost: bool = False) -> None:
        """Settle what it holds. `unheld` may never have been held: if nothing is, its cost is booked on them."""
        settlement = claim.settle(
            self._connection,
            self._budgets,
            closing.id,
            closing.cost_nano,
            exact=closing.certainty == EXACT,
            lost=lost,
            client_gone=closing.ended == CLIENT_GONE,
        )
        if settlement is None and unheld:
            settlement = claim.book(self._connection, self._budgets, unheld, closing.cost_nano)
        if settlement is not None:
            self._tell(closing, settlement)

    def _tell(self, closing: Closing, settlement: Settlement) -> None:
        self.told.freed |= settlement.freed
        self.told.soft.extend(settlement.soft)
        if settlement.over_nano > 0:
            self.told.overshoots += 1
            self.told.faults.append(
                f"{closing.id} cost {settlement.over_nano} nano-dollars more than it held of a hard budget"
            )

    def _whole(self) -> AbstractContextManager[None]:
        """All that is done within, or nothing; where entries are written together, or nothing of the batch."""
        return self._savepoint() if self._apart else _TOGETHER

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """
        Raises:
            RuntimeError: the transaction is gone.
        """
        self._connection.execute("SAVEPOINT entry")
        try:
            yield
            self._budgets.flush()
        except Exception as fault:
            self._budgets.forget()
            if not self._connection.in_transaction:
                if isinstance(fault, rows.ROW_FAULTS):
                    raise RuntimeError(f"the transaction is gone: {fault}") from fault
                raise
            self._connection.execute("ROLLBACK TO entry")
            self._connection.execute("RELEASE entry")
            raise
        if not self._connection.in_transaction:
            raise RuntimeError("the transaction was ended within")
        self._connection.execute("RELEASE entry")
