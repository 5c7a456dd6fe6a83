"""The money of one exchange: what it claims of which budgets, the wait for it, and more of it while a stream runs on.

| the budget's mode | claimed at admission | while it runs |
|---|---|---|
| `expected` | what the exchange is expected to cost | more, once it costs more |
| `hard` | what it can cost at most; what cannot be bounded is refused | nothing |
| `soft` | nothing | nothing, unless the budget cuts |
| whatever it is, for the master key | nothing, and nothing refuses | nothing |

Calls that cost nothing claim nothing. A call that costs something which its own answer does not tell (a batch, a path
unknown to us) is let in by budgets that are not spent, and by none that is `hard`.

How a claim is decided and settled is the ledger's (`store/base.py`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import trio

from tproxy.errors import BudgetExceeded, BudgetReserved, ClientGone
from tproxy.flow.expect import Expected
from tproxy.flow.identify import Caller, shown
from tproxy.flow.route import Passage
from tproxy.money import usd
from tproxy.protocol.bound import Bound, Unboundable
from tproxy.store import base
from tproxy.store.base import Claim, Closing, Ledger, Opening, Refusal, Ticket
from tproxy.store.subjects import Subject

_HELD_BEYOND = 5 / 4  # of the output so far: how much is held when a stream has passed what was expected


@dataclass(frozen=True, slots=True)
class Costs:
    """What the exchange may come to, as far as the modes of its budgets want to know.

    `floor_nano` is what it will cost at least. `count` asks the upstream how many tokens the input has and gives a
    lower upper bound, or the same.
    """

    expected: Expected | None = None
    most: Bound | Unboundable | None = None
    floor_nano: int = 0
    count: Callable[[], Awaitable[Bound | Unboundable]] | None = None


def mode_of(subject: Subject, default: str) -> str:
    """How much of its budgets an exchange holds."""
    return subject.terms.mode or default


def claims_of(
    subjects: Sequence[Subject], caller: Caller, passage: Passage, costs: Costs, default_mode: str
) -> list[Claim]:
    """What the budgets of `subjects` are asked for.

    Raises:
        BudgetExceeded: a hard budget, and what the exchange can cost at most is not known.
    """
    if passage.free:
        return []
    claims = []
    for subject in subjects:
        if not subject.terms.budgets:
            continue
        mode, amount = mode_of(subject, default_mode), 0
        if caller.is_master:
            mode = base.COUNTED
        elif mode == base.EXPECTED and costs.expected is not None:
            amount = costs.expected.nano or 0
        elif mode == base.HARD:
            if not isinstance(costs.most, Bound):
                why = costs.most.reason if costs.most is not None else "its answer does not tell what it costs"
                raise BudgetExceeded(
                    f"The budget of the {_name(subject)} is never overshot (budget_mode = hard), and what this request "
                    f"can cost at most is not known: {why}."
                )
            amount = costs.most.nano
        claims.append(Claim(subject.kind, subject.id, mode, amount))
    return claims


async def reserve(
    ledger: Ledger,
    opening: Opening,
    claims: list[Claim],
    subjects: Sequence[Subject],
    costs: Costs,
    *,
    wait: float,
    left: trio.Event | None,
    check: Callable[[], None],
    abort: Callable[[], Closing],
) -> tuple[Ticket, list[Claim]]:
    """Open the row with its claims held, waiting up to `wait` seconds for money that other exchanges hold.

    Returns:
        The ticket, and what is held: less than was asked, where the upstream was asked to count.

    Raises:
        BudgetExceeded: the money is spent, or this exchange alone cannot fit.
        BudgetReserved: others held the money for too long.
        LedgerUnavailable: see `Ticket.admitted`; the row is closed by what `abort` gives.
        ClientGone: it left while it waited.
        Fault: what `check` raises after a wait.
    """
    deadline = trio.current_time() + wait
    while True:
        freed = ledger.freed  # before the row is tried: what is given back from now on is not missed
        ticket = ledger.open(opening, claims)
        try:
            refusal = await ticket.admitted()
        except BaseException:
            ledger.close(abort())
            raise
        if refusal is None:
            return ticket, claims
        if lower := await _counted(refusal, claims, costs):
            claims, costs = lower, replace(costs, count=None)
            continue
        name = _name(next(s for s in subjects if (s.kind, s.id) == (refusal.standing.kind, refusal.standing.subject)))
        if not refusal.held_only:
            raise BudgetExceeded(explain(refusal, name))
        if trio.current_time() >= deadline:
            raise BudgetReserved(explain(refusal, name))
        with trio.move_on_at(deadline):
            await _either(freed, left)
        if left is not None and left.is_set():
            raise ClientGone
        check()


async def _counted(refusal: Refusal, claims: list[Claim], costs: Costs) -> list[Claim] | None:
    """Lower claims, if the upper bound does not fit, but the truth might, and the upstream counts fewer tokens."""
    standing = refusal.standing
    hard = any(
        claim.mode == base.HARD and (claim.kind, claim.subject) == (standing.kind, standing.subject) for claim in claims
    )
    room = (standing.limit_nano or 0) - standing.spent_nano - standing.held_nano
    if not hard or costs.count is None or costs.floor_nano > room:
        return None
    bound = await costs.count()
    if not isinstance(bound, Bound) or bound.nano >= refusal.asked_nano:
        return None
    return [replace(claim, amount_nano=bound.nano) if claim.mode == base.HARD else claim for claim in claims]


async def _either(freed: trio.Event, left: trio.Event | None) -> None:
    if left is None:
        await freed.wait()
        return
    async with trio.open_nursery() as nursery:

        async def until(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(until, freed)
        nursery.start_soon(until, left)


def explain(refusal: Refusal, name: str) -> str:
    """One sentence with the budget, what is spent and held of it, when it starts anew, and what was asked."""
    standing = refusal.standing
    period = f"per {standing.period}" if standing.period else "in all"
    figures = [f"{usd(standing.spent_nano, 2)} spent", f"{usd(standing.held_nano, 2)} held by running requests"]
    asked = f"this request needs up to {usd(refusal.asked_nano, 2)}"
    reset = "it never starts anew"
    if standing.reset_us is not None:
        reset = f"it starts anew at {datetime.fromtimestamp(standing.reset_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if refusal.held_only:
        why = "is held by other running requests; try again when they have ended"
    elif standing.spent_nano >= (standing.limit_nano or 0):
        why = "is spent"
    else:
        why = "has too little left for this request"
    return (
        f"The budget of the {name}, {usd(standing.limit_nano or 0, 2)} USD {period}, {why}: {', '.join(figures)}, "
        f"{asked}; {reset}."
    )


def _name(subject: Subject) -> str:
    return f"{subject.kind} {shown(subject)!r}" if subject.id else "whole proxy"


class Following:
    """Holds more of the budgets while a stream costs more than was expected.

    It asks for somewhat more than is needed yet, so that it does not ask for each event. Once a budget that cuts has
    refused that, it asks for what is needed; when that is refused, the stream is at the end of that budget.

    Args:
        expected: what was claimed as EXPECTED; None where only SOFT budgets that cut are to be looked after.
        on_refused: a budget that cuts cannot hold what the exchange has cost already.
    """

    def __init__(
        self, ledger: Ledger, id: str, expected: Expected | None, on_refused: Callable[[Refusal], None]
    ) -> None:
        self._ledger = ledger
        self._id = id
        self._output_nano = expected.output_nano if expected is not None else 0
        self._held_nano = (expected.nano or 0) if expected is not None else 0
        self._on_refused = on_refused
        self._tight = False

    def see(self, so_far: Closing) -> None:
        """Take what the exchange has cost so far (a note), and hold more if that is more than is held."""
        cost, output = so_far.cost_nano, so_far.cost_output_nano or 0
        if cost is None:
            return
        # The input is known by now. The output may still come to what was expected, or go on.
        wanted = cost if self._tight else cost - output + max(self._output_nano, math.ceil(output * _HELD_BEYOND))
        if wanted > self._held_nano:
            self._held_nano = wanted
            self._ledger.extend(self._id, wanted, self._refused)

    def _refused(self, refusal: Refusal) -> None:
        if self._tight:
            self._on_refused(refusal)
        else:
            self._tight, self._held_nano = True, 0


def following(
    ledger: Ledger,
    id: str,
    claims: Sequence[Claim],
    subjects: Sequence[Subject],
    costs: Costs,
    cut: Callable[..., None],
) -> Following | None:
    """What looks after the budgets of a stream, if any of them wants it."""
    cutting = {(s.kind, s.id) for s in subjects if s.terms.cut}
    modes = {claim.mode for claim in claims} | {
        "cut" for claim in claims if claim.mode == base.SOFT and (claim.kind, claim.subject) in cutting
    }
    if base.EXPECTED in modes:
        return Following(ledger, id, costs.expected, cut)
    return Following(ledger, id, None, cut) if "cut" in modes else None
