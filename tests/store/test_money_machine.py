"""Money under any sequence of entries, failed commits and crashes: the file against the reference, and its own laws."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from tests.store.laws import T0, kept_sums, known, make_closing, make_opening, make_subject, summed
from tests.store.memory import MemoryLedger
from tproxy.store import money
from tproxy.store.base import (
    CLIENT_GONE,
    COUNTED,
    EXACT,
    EXPECTED,
    FINISHED,
    HARD,
    OPEN,
    PARTIAL,
    SOFT,
    UNPRICED,
    Claim,
    Closing,
    Refusal,
)
from tproxy.store.batch import Batch, Told
from tproxy.store.budgets import Budgets
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.journal import Journal
from tproxy.store.migrate import migrate
from tproxy.store.subjects import Budget, Subject
from tproxy.store.ticket import SqliteTicket

UTC = ZoneInfo("UTC")
HOUR = 3_600_000_000

_SUBJECTS = {
    HARD: make_subject("key", "k", Budget(None, 300), Budget("1h", 100)),
    EXPECTED: make_subject("team", "t", Budget("1d", 150, 40), cut=True),
    SOFT: make_subject("user", "u", Budget("2h", 120, 60), Budget(None, None, 200), cut=True),
    COUNTED: make_subject("proxy", "", Budget(None, 100)),
}
_AMOUNTS = st.integers(0, 60)
_CERTAINTIES = st.sampled_from([EXACT, EXACT, PARTIAL, UNPRICED])
# What becomes of the transaction: it is committed; undone, and done again; committed though it seemed to have failed,
# and done again.
_FATES = st.sampled_from(["committed", "committed", "undone", "doubted"])


class Running(NamedTuple):
    """`amount` is what each of its claims names, `life` the process that it belongs to."""

    ticket: SqliteTicket
    amount: int
    life: int


class Money(RuleBasedStateMachine):
    running: Bundle[Running] = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.connection, now_us=1)
        self.model = MemoryLedger()
        self.model.now_us = T0
        self.customers = Customers(3)
        self.budgets = Budgets()
        self.apart = False
        self.told = Told()
        self.life = 0
        self.number = 0
        for subject in _SUBJECTS.values():
            self.set_budgets(subject)

    def teardown(self) -> None:
        self.connection.close()

    def transact(self, act: Any, fate: str = "committed") -> Any:
        result = None
        for attempt in {"committed": ["COMMIT"], "undone": ["ROLLBACK", "COMMIT"], "doubted": ["COMMIT"] * 2}[fate]:
            self.connection.execute("BEGIN IMMEDIATE")
            batch = Batch(
                self.connection, self.model.now_us, UTC, self.customers, self.budgets, Journal(), apart=self.apart
            )
            result = act(batch)
            batch.finish()
            self.connection.execute(attempt)
            if attempt == "ROLLBACK":
                self.customers.recount()
                self.budgets.forget()
                continue
            self.told.faults += batch.told.faults
            self.told.soft += batch.told.soft
            self.told.overshoots += batch.told.overshoots
        return result

    def set_budgets(self, subject: Subject) -> None:
        self.transact(lambda b: b.change(lambda c: money.set_budgets(c, subject, self.model.now_us, UTC)))
        self.model.set_budgets(subject)

    @rule(
        target=running,
        modes=st.sets(st.sampled_from([HARD, EXPECTED, SOFT, COUNTED])),
        amount=_AMOUNTS,
        customer=st.sampled_from([None, "a", "b", "c", "d", "e"]),
        failed=st.sampled_from([False, False, False, True]),
        fate=_FATES,
    )
    def open(self, modes: set[str], amount: int, customer: str | None, failed: bool, fate: str) -> Any:
        """`failed`: the ledger cannot be written. Otherwise what is decided is told before its transaction's `fate`."""
        self.number += 1
        opening = make_opening(
            self.number,
            customer=customer,
            accepted_us=self.model.now_us,
            team=None if amount % 2 else "core",
            expected_nano=amount if EXPECTED in modes else None,
        )
        claims = [Claim(_SUBJECTS[m].kind, _SUBJECTS[m].id, m, amount) for m in sorted(modes)]
        ticket = SqliteTicket(opening, claims, lambda seconds: None)
        if failed:
            self.model.fail()
            self.model.open(opening, claims)
            self.model.mend()
            return Running(ticket, amount, self.life)
        decisions: list[Decision | str] = []

        def act(batch: Batch) -> None:
            if not decisions:
                decisions.append(batch.open(opening, claims))
            elif isinstance(decisions[0], Decision) and decisions[0].refusal is None:
                again = batch.open(opening, claims, let_in=True)
                assert isinstance(again, Decision)
                assert again.refusal is None

        self.transact(act, fate)
        decision = decisions[0]
        expected = self.model.open(opening, claims)
        assert isinstance(decision, Decision)
        assert decision.refusal == expected._refusal
        assert list(decision.standings) == expected.standings
        ticket.opened = True
        return multiple() if decision.refusal else Running(ticket, amount, self.life)

    @rule(exchange=running, amount=st.integers(0, 200) | st.just(2**70))
    def extend(self, exchange: Running, amount: int) -> None:
        if exchange.life != self.life:
            return
        id = exchange.ticket.opening.id
        expected: list[Refusal] = []
        self.model.extend(id, amount, expected.append)
        refusal: Refusal | None = self.transact(lambda batch: batch.extend(id, amount))
        assert (refusal is not None) == bool(expected)
        # Of several, any may be told; but one that will go on refusing before one that may not.
        assert ([refusal.held_only] if refusal else []) == [other.held_only for other in expected]

    @rule(exchange=running, cost=st.none() | _AMOUNTS)
    def note(self, exchange: Running, cost: int | None) -> None:
        if exchange.life != self.life:
            return
        closing = self.closing(exchange, OPEN, cost, PARTIAL)
        self.transact(lambda batch: batch.note(closing))
        self.model.note(closing)

    @rule(
        exchange=consumes(running),
        ended=st.sampled_from([FINISHED, FINISHED, CLIENT_GONE]),
        cost=st.none() | _AMOUNTS,
        certainty=_CERTAINTIES,
        fate=_FATES,
        forgot=st.booleans(),
    )
    def close(self, exchange: Running, ended: str, cost: int | None, certainty: str, fate: str, forgot: bool) -> None:
        """`forgot`: its open seemed to fail, and is in the file all the same."""
        if exchange.life != self.life:
            return
        ticket = exchange.ticket
        closing = self.closing(exchange, ended, cost, certainty)
        opened = ticket.opened and not forgot
        self.transact(lambda batch: batch.close(closing, ticket.opening, ticket.claims, opened=opened), fate)
        self.model.close(closing)

    @rule(
        budgets=st.sampled_from(
            [
                (),
                (Budget("1d", 150, 40),),
                (Budget("1w", 90), Budget("1d", 200)),
                (Budget("2h", 90), Budget("1w", 200), Budget(None, 900)),
            ]
        ),
        cut=st.booleans(),
    )
    def govern(self, budgets: tuple[Budget, ...], cut: bool) -> None:
        self.set_budgets(make_subject("team", "t", *budgets, cut=cut))

    @rule(hours=st.sampled_from([0.5, 1, 5, 24, 700]))
    def wait(self, hours: float) -> None:
        self.model.now_us += int(hours * HOUR)

    @rule(apart=st.booleans())
    def write(self, apart: bool) -> None:
        """How entries are written from now on: apart or together."""
        self.apart = apart

    @rule()
    def crash(self) -> None:
        self.life += 1
        self.customers, self.budgets = Customers(3), Budgets()
        lost = self.transact(lambda batch: batch.recover())
        assert lost == self.model.crash(self.model.now_us)
        assert self.connection.execute("SELECT count(*) FROM reservation").fetchone() == (0,)
        assert self.connection.execute("SELECT total(held_nano) FROM budget").fetchone() == (0,)

    def closing(self, exchange: Running, ended: str, cost: int | None, certainty: str) -> Closing:
        """What it came to: not more than a HARD claim holds, if it has one."""
        if cost is not None and any(claim.mode == HARD for claim in exchange.ticket.claims):
            cost = min(cost, exchange.amount) if exchange.ticket.opened else 0
        return make_closing(
            int(exchange.ticket.opening.id[-12:], 16),
            ended,
            cost_nano=cost,
            certainty=certainty,
            ended_us=None if ended == OPEN else self.model.now_us,
        )

    @invariant()
    def the_rows_are_those_of_the_reference(self) -> None:
        assert {row["id"]: row for row in self.rows()} == self.model.rows

    @invariant()
    def the_budgets_are_those_of_the_reference(self) -> None:
        for subject in _SUBJECTS.values():
            standings = money.standings(self.connection, subject.kind, [subject.id], self.model.now_us, UTC)
            assert standings == {subject.id: self.model.standings(subject.kind, subject.id)}
        assert sorted(map(repr, self.told.soft)) == sorted(map(repr, self.model.soft))
        assert self.told.overshoots == self.model.overshoots == 0

    @invariant()
    def what_is_held_is_the_sum_of_the_reservations(self) -> None:
        query = """
            SELECT budget.held_nano, coalesce(sum(amount_nano), 0) FROM budget
              LEFT JOIN reservation ON reservation.budget = budget.id GROUP BY budget.id
        """
        for held, reserved in self.connection.execute(query):
            assert held == reserved >= 0
        query = "SELECT count(*) FROM reservation WHERE exchange NOT IN (SELECT id FROM exchange WHERE ended = 'open')"
        assert self.connection.execute(query).fetchone() == (0,)

    @invariant()
    def a_hard_budget_is_never_passed(self) -> None:
        for spent, held, limit in self.connection.execute(
            "SELECT spent_nano, held_nano, limit_nano FROM budget WHERE kind = 'key'"
        ):
            assert spent + held <= limit

    @invariant()
    def the_sums_are_those_of_the_rows(self) -> None:
        assert kept_sums(self.connection) == summed(self.rows(), known(self.connection))

    @invariant()
    def customers_are_known_up_to_the_limit(self) -> None:
        query = "SELECT id FROM subject WHERE kind = 'customer'"
        there = {id for (id,) in self.connection.execute(query)}
        named = {row["customer"] for row in self.rows()} - {None}
        assert there <= named
        assert len(there) == min(len(named), 3)
        assert all("customers: no new ones" in fault for fault in self.told.faults)

    def rows(self) -> list[dict[str, Any]]:
        cursor = self.connection.execute("SELECT * FROM exchange")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
        return [row | {"tags": json.loads(row["tags"]), "stream": bool(row["stream"])} for row in rows]


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
