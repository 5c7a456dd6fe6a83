"""A ledger in memory: the reference that the drivers are compared with, and the one that flow tests use.

It writes at once, unless a test says otherwise: `hold` makes tickets wait, `hold_commits` those that would be durable,
`fail` makes the ledger unwritable.
`rows` has the form of `reading.exchange`. What is held of a budget is not kept: it is the sum of its reservations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import trio
from msgspec.structs import asdict

from tproxy.errors import LedgerUnavailable
from tproxy.period import next_reset
from tproxy.store.base import (
    CLIENT_GONE,
    COUNTED,
    EXACT,
    EXPECTED,
    HARD,
    LOST,
    OPEN,
    SOFT,
    Claim,
    Closing,
    Opening,
    Refusal,
    Standing,
)
from tproxy.store.money import FIGURE_MAX
from tproxy.store.subjects import Subject

NOW_US = 1_795_000_000_000_000

_Budget = tuple[str, str, str | None]  # kind, subject, period


@dataclass(frozen=True)
class Held:
    """What tickets wait for, before they are decided and before they are durable."""

    decision: trio.Event | None = None
    commit: trio.Event | None = None


class MemoryTicket:
    def __init__(
        self,
        fault: str | None,
        held: Held,
        refusal: Refusal | None = None,
        standings: Sequence[Standing] = (),
    ) -> None:
        self.standings = standings
        self._fault = fault
        self._held = held
        self._refusal = refusal

    async def admitted(self) -> Refusal | None:
        await _pass(self._held.decision)
        if self._fault is not None:
            raise LedgerUnavailable(self._fault)
        return self._refusal

    async def durable(self) -> None:
        await _pass(self._held.commit)
        if await self.admitted() is not None:
            raise LedgerUnavailable("it was refused")


async def _pass(held: trio.Event | None) -> None:
    if held is not None:
        await held.wait()
    else:
        await trio.lowlevel.checkpoint()


@dataclass
class MemoryBudget:
    limit: int | None
    soft: int | None
    cut: bool
    started_us: int
    reset_us: int | None
    spent: int = 0


@dataclass
class Reservation:
    mode: str
    amount: int


class MemoryLedger:
    """A `base.Ledger`.

    Attributes:
        faults: what a driver would tell `on_fault`.
        soft: what it would tell `on_soft`.
        now_us: the time; a test may move it.
        budgets: those of a subject stand in the order in which they were set.
        reservations: what each running exchange holds of which budgets.
    """

    def __init__(self, zone: ZoneInfo | None = None) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.soft: list[Standing] = []
        self.overshoots = 0
        self.writable = True
        self._freed: dict[tuple[str, str], trio.Event] = {}
        self.now_us = NOW_US
        self.zone = zone or ZoneInfo("UTC")
        self.budgets: dict[_Budget, MemoryBudget] = {}
        self.reservations: dict[str, dict[_Budget, Reservation]] = {}
        self._held = Held()
        self._running: dict[str, tuple[Opening | None, Sequence[Claim]]] = {}  # None: it could not be recorded
        self._refused: set[str] = set()
        self._kept: list[tuple[Closing, Opening | None, Sequence[Claim]]] = []

    def hold(self) -> None:
        """From now on, tickets wait."""
        self._held = Held(decision=trio.Event())

    def hold_commits(self) -> None:
        """From now on, what is decided is not durable, and who holds something HARD is not let in."""
        self._held = Held(commit=trio.Event())

    def release(self) -> None:
        held, self._held = self._held, Held()
        for event in (held.decision, held.commit):
            if event is not None:
                event.set()

    def fail(self) -> None:
        """From now on, nothing can be written."""
        self.writable = False

    def mend(self) -> None:
        self.writable = True
        kept, self._kept = self._kept, []
        for closing, opening, claims in kept:
            self._end(closing, opening, claims)
        self._set_free(*self._freed)

    def crash(self, now_us: int) -> int:
        """Die and start again; returns how many rows were found open."""
        self._running.clear()
        self._refused.clear()
        self._kept.clear()
        lost = [row for row in self.rows.values() if row["ended"] == OPEN]
        for row in lost:
            row.update(ended=LOST, ended_us=now_us)
            self._settle(Closing(id=row["id"], ended=LOST, cost_nano=row["cost_nano"]))
        self.reservations.clear()
        self.mend()
        return len(lost)

    def set_budgets(self, subject: Subject) -> None:
        """Make the budgets of `subject` those of its terms; none, if it has none."""
        before = list(self._of(subject.kind, subject.id))
        there = {key: self._rolled(key) for key in before}
        after = [(subject.kind, subject.id, wanted.period) for wanted in subject.terms.budgets]
        moved = {new: old for old, new in zip(before, after, strict=False) if old not in after and new not in before}
        for key in before:
            del self.budgets[key]
        for key, wanted in zip(after, subject.terms.budgets, strict=True):
            reset_us = next_reset(wanted.period, self.now_us, self.now_us, self.zone) if wanted.period else None
            spent = there[moved[key]].spent if key in moved else 0
            budget = self.budgets[key] = there.get(key) or MemoryBudget(None, None, False, self.now_us, reset_us, spent)
            budget.limit, budget.soft, budget.cut = wanted.limit_nano, wanted.soft_nano, subject.terms.cut
        for held in self.reservations.values():
            own = {key: held.pop(key) for key in before if key in held}
            for key in after if own else ():
                most = max(own.values(), key=lambda reservation: reservation.amount)
                held[key] = replace(own.get(moved.get(key, key), most))
        self._set_free(*self._freed)

    def freed(self, kind: str, subject: str) -> trio.Event:
        return self._freed.setdefault((kind, subject), trio.Event())

    def standing(self, key: _Budget) -> Standing:
        budget = self._rolled(key)
        return Standing(
            kind=key[0],
            subject=key[1],
            period=key[2],
            limit_nano=budget.limit,
            soft_nano=budget.soft,
            spent_nano=budget.spent,
            held_nano=sum(held[key].amount for held in self.reservations.values() if key in held),
            reset_us=budget.reset_us,
        )

    def standings(self, kind: str, subject: str) -> list[Standing]:
        return [self.standing(key) for key in self._of(kind, subject)]

    def open(self, opening: Opening, claims: Sequence[Claim] = ()) -> MemoryTicket:
        if opening.id in self._running:
            return self._unable(f"{opening.id} is open already")
        self._refused.discard(opening.id)
        self._running[opening.id] = opening, claims
        if not self.writable:
            return MemoryTicket("the ledger cannot be written", self._held)
        wanted = [(claim, key) for claim in _largest(claims) for key in self._of(claim.kind, claim.subject)]
        refusals = [_stale(c) for c in _largest(claims) if c.mode != COUNTED and not [*self._of(c.kind, c.subject)]]
        refusals += [Refusal(self.standing(key), c.amount_nano, c.mode) for c, key in wanted if not self._fits(c, key)]
        if refusals:
            del self._running[opening.id]
            self._refused.add(opening.id)
            standings = [self.standing(key) for _, key in wanted]
            return MemoryTicket(None, self._held, min(refusals, key=lambda r: (not r.stale, r.held_only)), standings)
        if opening.id in self.rows:
            self._running[opening.id] = None, ()
            return self._unable(f"{opening.id} has a row already")
        self._insert(opening)
        if wanted:
            self.reservations[opening.id] = {
                key: Reservation(c.mode, min(c.amount_nano, FIGURE_MAX - self.standing(key).held_nano))
                for c, key in wanted
            }
        held = self._held
        if held.commit is not None and any(claim.mode == HARD for claim in claims):
            held = Held(held.commit, held.commit)
        return MemoryTicket(None, held, None, [self.standing(key) for _, key in wanted])

    def note(self, closing: Closing) -> None:
        if closing.ended != OPEN:
            self.faults.append(f"note of {closing.id} refused")
        elif closing.id in self._running and self.writable:
            self._update(closing)

    def extend(self, id: str, amount_nano: int, on_refused: Callable[[Refusal], None]) -> None:
        if id not in self._running or not self.writable:
            return
        refusals, amount_nano = [], min(amount_nano, FIGURE_MAX)
        for key, held in self.reservations.get(id, {}).items():
            standing, cut = self.standing(key), self.budgets[key].cut
            if held.amount >= amount_nano or not (held.mode == EXPECTED or (held.mode == SOFT and cut)):
                continue
            total = standing.spent_nano + standing.held_nano - held.amount + amount_nano
            if cut and standing.limit_nano is not None and total > standing.limit_nano:
                refusals.append(Refusal(standing, amount_nano, held.mode))
            else:
                held.amount += min(amount_nano - held.amount, FIGURE_MAX - standing.held_nano)
        for refusal in sorted(refusals, key=lambda r: r.held_only)[:1]:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.current_trio_token().run_sync_soon(on_refused, refusal)
            else:
                on_refused(refusal)

    def close(self, closing: Closing) -> None:
        if closing.id in self._refused and closing.ended != OPEN:
            self._refused.discard(closing.id)
            return
        if closing.ended == OPEN or closing.id not in self._running:
            self.faults.append(f"close of {closing.id} refused")
            return
        opening, claims = self._running.pop(closing.id)
        if self.writable:
            self._end(closing, opening, claims)
        else:
            self._kept.append((closing, opening, claims))

    def _end(self, closing: Closing, opening: Opening | None, claims: Sequence[Claim]) -> None:
        whole = opening is not None and opening.id not in self.rows
        if opening is not None and whole:
            self._insert(opening)
        if not self._update(closing):
            self.faults.append(f"close of {closing.id} refused")
        elif whole:
            for claim in _largest(claims):
                for key in self._of(claim.kind, claim.subject):
                    self._book(key, closing.cost_nano or 0)
        else:
            self._settle(closing)

    def _settle(self, closing: Closing) -> None:
        cost, reservations = closing.cost_nano, self.reservations.pop(closing.id, {})
        for key, held in reservations.items():
            as_held = closing.ended == LOST or (
                (held.mode == HARD and (cost is None or closing.certainty != EXACT))
                or (held.mode == EXPECTED and cost is None and closing.ended == CLIENT_GONE)
            )
            self._book(key, max(cost or 0, held.amount) if as_held else cost or 0)
        over = [held for held in reservations.values() if held.mode == HARD and (cost or 0) > held.amount]
        if over:
            self.overshoots += 1
            self.faults.append(f"{closing.id} cost more than it held")
        self._set_free(*(key[:2] for key, held in reservations.items() if held.amount))

    def _book(self, key: _Budget, amount: int) -> None:
        budget = self._rolled(key)
        before = budget.spent
        budget.spent = min(budget.spent + amount, 2**63 - 1)
        if budget.soft is not None and before < budget.soft <= budget.spent:
            self.soft.append(self.standing(key))

    def _of(self, kind: str, subject: str) -> Iterator[_Budget]:
        return iter([key for key in self.budgets if key[:2] == (kind, subject)])

    def _rolled(self, key: _Budget) -> MemoryBudget:
        budget = self.budgets[key]
        if key[2] is not None and budget.reset_us is not None and budget.reset_us <= self.now_us:
            budget.spent, budget.started_us = 0, budget.reset_us
            budget.reset_us = next_reset(key[2], self.now_us, budget.started_us, self.zone)
        return budget

    def _fits(self, claim: Claim, key: _Budget) -> bool:
        standing = self.standing(key)
        if claim.mode == COUNTED or standing.limit_nano is None:
            return True
        if standing.spent_nano >= standing.limit_nano:
            return False
        if claim.mode == EXPECTED and not standing.held_nano:
            return True
        left = standing.limit_nano - standing.spent_nano - standing.held_nano
        return claim.amount_nano <= max(left, 0)

    def _set_free(self, *subjects: tuple[str, str]) -> None:
        for subject in subjects:
            if subject in self._freed:
                self._freed.pop(subject).set()

    def _insert(self, opening: Opening) -> None:
        row = asdict(Closing(id=opening.id, ended=OPEN)) | asdict(opening)
        self.rows[opening.id] = row | {"tags": list(opening.tags)}

    def _update(self, closing: Closing) -> bool:
        row = self.rows.get(closing.id)
        if row is None or row["ended"] != OPEN:
            return False
        row.update(asdict(closing))
        return True

    def _unable(self, message: str) -> MemoryTicket:
        self.faults.append(message)
        return MemoryTicket(message, self._held)


def _stale(claim: Claim) -> Refusal:
    nothing = Standing(
        kind=claim.kind,
        subject=claim.subject,
        period=None,
        limit_nano=0,
        soft_nano=None,
        spent_nano=0,
        held_nano=0,
        reset_us=None,
    )
    return Refusal(nothing, claim.amount_nano, claim.mode, stale=True)


def _largest(claims: Sequence[Claim]) -> list[Claim]:
    """One claim for each subject, in the order in which subjects were named first."""
    found: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        if claim.mode in (SOFT, COUNTED):
            claim = replace(claim, amount_nano=0)
        claim = replace(claim, amount_nano=min(claim.amount_nano, FIGURE_MAX))
        other = found.get((claim.kind, claim.subject))
        strictness = (COUNTED, SOFT, EXPECTED, HARD).index
        if other is None or (claim.amount_nano, strictness(claim.mode)) > (other.amount_nano, strictness(other.mode)):
            found[claim.kind, claim.subject] = claim
    return list(found.values())
