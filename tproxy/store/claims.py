"""What running exchanges hold of budgets, and what is booked when they end, as SQL.

    hold ──► reservations, one for each budget of each claim ──► extend* ──► settle ──► spent, and nothing held

Rules:
- The sum of a budget's reservations is its `held_nano`.
- All claims of an exchange are held, or none is, and then nothing has changed but that periods which had ended began
  anew.
- A claim on a subject without budgets was made of somebody who is not there any more: it is refused as stale, for what
  is held of nothing limits nothing.
- No figure passes what a column can hold: of a budget without a limit, less is held then.
- An EXPECTED claim that nobody stands beside is let in as long as anything is left.
- A budget that is only claimed HARD never has more than its limit spent and held together, as long as no exchange
  costs more than it holds. One that does is told (`Settlement.over_nano`): its bound was none.

Reservations are written at once, what becomes of the budgets with the batch (`budgets`). Nothing is begun or ended
here: a caller that wants all or nothing of `settle` gives it a savepoint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tproxy.store.base import COUNTED, EXPECTED, HARD, SOFT, Claim, Refusal, Standing
from tproxy.store.budgets import Budgets
from tproxy.store.money import FIGURE_MAX, Row
from tproxy.store.subjects import KEY

_STRICTNESS: Final = {COUNTED: 0, SOFT: 1, EXPECTED: 2, HARD: 3}
_RESERVE: Final = "INSERT INTO reservation (exchange, budget, mode, amount_nano) VALUES (?, ?, ?, ?)"
_RELEASE: Final = "DELETE FROM reservation WHERE exchange = ? RETURNING budget, mode, amount_nano"


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of some claims. `standings` has every budget of theirs, with the claims in it unless refused."""

    refusal: Refusal | None
    standings: tuple[Standing, ...]


@dataclass(slots=True)
class Settlement:
    """What the end of an exchange did: of whom (kind and subject) something that was held came free, which budgets
    passed their soft limit, and by how much it cost more than a HARD claim of its held."""

    freed: set[tuple[str, str]] = field(default_factory=set)
    soft: list[Standing] = field(default_factory=list)
    over_nano: int = 0


def hold(
    connection: sqlite3.Connection,
    budgets: Budgets,
    exchange: str,
    claims: Sequence[Claim],
    *,
    let_in: bool = False,
) -> Decision:
    """Hold all claims of an exchange, or none; `let_in`: it runs already, so they are held whatever the limits are now.

    Of several refusals, one that is stale is told first, then one of a budget that is spent or too small, then one of a
    budget that others hold.
    """
    found: list[tuple[Claim, Row]] = []
    refusals: list[Refusal] = []
    for claim in _merged(claims):
        rows = _budgets(connection, budgets, claim)
        if not rows and claim.mode != COUNTED:
            refusals.append(_stale(claim))
        found.extend((claim, row) for row in rows)
    refusals.extend(
        Refusal(row.standing(), claim.amount_nano, claim.mode)
        for claim, row in found
        if not _fits(row, claim.mode, claim.amount_nano)
    )
    if refusals and not let_in:
        first = min(refusals, key=lambda refusal: (not refusal.stale, refusal.held_only))
        return Decision(first, tuple(row.standing() for _, row in found))
    standings, reservations = [], []
    for claim, row in found:
        amount = min(claim.amount_nano, FIGURE_MAX - row.held_nano)
        standings.append(row.standing(held=row.held_nano + amount))
        reservations.append((exchange, row.id, claim.mode, amount))
        if amount:
            budgets.set(row, spent=row.spent_nano, held=row.held_nano + amount)
    connection.executemany(_RESERVE, reservations)
    return Decision(None, tuple(standings))


def extend(connection: sqlite3.Connection, budgets: Budgets, exchange: str, amount_nano: int) -> Refusal | None:
    """Hold at least so much of the budgets that were claimed as EXPECTED, or as SOFT where they say to cut.

    Returns:
        The refusal of a budget that says to cut and cannot hold it, or None. All others hold it.
    """
    amount_nano = min(amount_nano, FIGURE_MAX)
    refusals = []
    for id, mode, held in connection.execute(
        "SELECT budget, mode, amount_nano FROM reservation WHERE exchange = ? AND mode IN (?, ?) AND amount_nano < ?",
        (exchange, EXPECTED, SOFT, amount_nano),
    ).fetchall():
        row = budgets.one(id)
        if mode == SOFT and not row.cut:
            continue
        more = amount_nano - held
        if row.cut and row.limit_nano is not None and row.spent_nano + row.held_nano + more > row.limit_nano:
            refusals.append(Refusal(row.standing(), amount_nano, mode))
            continue
        more = min(more, FIGURE_MAX - row.held_nano)
        connection.execute(
            "UPDATE reservation SET amount_nano = ? WHERE exchange = ? AND budget = ?", (held + more, exchange, id)
        )
        budgets.set(row, spent=row.spent_nano, held=row.held_nano + more)
    return min(refusals, key=lambda refusal: refusal.held_only, default=None)


def settle(
    connection: sqlite3.Connection,
    budgets: Budgets,
    exchange: str,
    cost_nano: int | None,
    *,
    exact: bool,
    lost: bool = False,
    client_gone: bool = False,
) -> Settlement | None:
    """Book what an exchange cost on all that it has reservations of, and give the rest back.

    Args:
        exact: the cost is the upstream's final word; otherwise a HARD claim is booked as it was held.
        lost: nobody will know the cost; every claim is booked as it was held, or at the cost so far if that is more.
        client_gone: it ended because the client left; where no cost is known, an EXPECTED claim is booked as it was
            held, for the upstream has read the prompt and may have begun to answer.

    Returns:
        None if it has no reservation.
    """
    reservations = connection.execute(_RELEASE, (exchange,)).fetchall()
    if not reservations:
        return None
    settlement, cost = Settlement(), cost_nano or 0
    for id, mode, amount in reservations:
        as_held = lost or (mode == HARD and not (exact and cost_nano is not None))
        as_held = as_held or (mode == EXPECTED and client_gone and cost_nano is None)
        row = budgets.one(id)
        _book(budgets, row, max(cost, amount) if as_held else cost, amount, settlement)
        if amount:
            settlement.freed.add((row.kind, row.subject))
        if mode == HARD:
            settlement.over_nano = max(settlement.over_nano, cost - amount)
    return settlement


def book(
    connection: sqlite3.Connection, budgets: Budgets, claims: Sequence[Claim], cost_nano: int | None
) -> Settlement:
    """Book what an exchange cost whose claims could not be held, because the ledger could not be written then."""
    settlement = Settlement()
    for claim in _merged(claims):
        for row in _budgets(connection, budgets, claim):
            _book(budgets, row, cost_nano or 0, 0, settlement)
    return settlement


def release_all(connection: sqlite3.Connection, budgets: Budgets) -> None:
    """No exchange runs: what is held now is held by none."""
    budgets.flush()
    connection.execute("DELETE FROM reservation")
    connection.execute("UPDATE budget SET held_nano = 0 WHERE held_nano != 0")
    budgets.forget()


def _merged(claims: Sequence[Claim]) -> Iterable[Claim]:
    """Each subject once, with its largest claim; of equal ones the strictest. Only what is to be held has an amount."""
    largest: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        if claim.amount_nano and claim.mode in (SOFT, COUNTED):
            claim = Claim(claim.kind, claim.subject, claim.mode)
        elif claim.amount_nano > FIGURE_MAX:
            claim = Claim(claim.kind, claim.subject, claim.mode, FIGURE_MAX)
        there = largest.setdefault((claim.kind, claim.subject), claim)
        if (claim.amount_nano, _STRICTNESS[claim.mode]) > (there.amount_nano, _STRICTNESS[there.mode]):
            largest[claim.kind, claim.subject] = claim
    return largest.values()


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


def _budgets(connection: sqlite3.Connection, budgets: Budgets, claim: Claim) -> Sequence[Row]:
    """What is claimed. The budgets of a key that was replaced a moment ago have gone to its successor."""
    rows = budgets.of(claim.kind, claim.subject)
    if rows or claim.kind != KEY:
        return rows
    replaced = connection.execute(
        "SELECT document ->> '$.replaced_by' FROM subject WHERE kind = ? AND id = ?", (KEY, claim.subject)
    ).fetchone()
    if replaced is None or replaced[0] is None:
        return rows
    return budgets.of(KEY, str(replaced[0]))


def _fits(row: Row, mode: str, amount: int) -> bool:
    if mode == COUNTED or row.limit_nano is None:
        return True
    if row.spent_nano >= row.limit_nano:
        return False
    if mode == EXPECTED and row.held_nano == 0:
        return True  # a guess is no reason to leave money unspent for ever: the budget is passed once, by one exchange
    return amount == 0 or row.spent_nano + row.held_nano + amount <= row.limit_nano


def _book(budgets: Budgets, row: Row, booked: int, held: int, settlement: Settlement) -> None:
    spent, held = min(row.spent_nano + booked, FIGURE_MAX), row.held_nano - held
    budgets.set(row, spent=spent, held=held)
    if row.soft_nano is not None and row.spent_nano < row.soft_nano <= spent:
        settlement.soft.append(row.standing(spent=spent, held=held))
