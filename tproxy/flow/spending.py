"""The money of one exchange: what it claims of which budgets, the wait for it, and more of it while a stream runs on.

| the budget's mode | claimed at admission | while it runs |
|---|---|---|
| `expected` | what the exchange is expected to cost | more, once it costs more |
| `hard` | what it can cost at most; what cannot be bounded is refused | nothing |
| `soft` | nothing | nothing, unless the budget cuts |
| whatever it is, for the master key | nothing, and nothing refuses | nothing |

Calls that cost nothing claim nothing. A call that costs something which its own answer does not tell (a batch, a path
unknown to us) is let in by budgets that are not spent, and by none that is `hard`.

How a claim is decided and settled is the ledger's (`store/base.py`), who may try when is that of `line.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from tproxy.errors import BudgetExceeded, BudgetReserved, ClientGone
from tproxy.flow.expect import Expected
from tproxy.flow.identify import Caller, shown
from tproxy.flow.route import Passage
from tproxy.money import usd
from tproxy.protocol.bound import Bound, Unboundable
from tproxy.store import base
from tproxy.store.base import Claim, Closing, Ledger, Refusal, Standing
from tproxy.store.subjects import Subject

# Of the output so far: how much is asked for when a stream has passed what was expected, and when it is asked again.
_HELD_BEYOND = 5 / 4
_HELD_AT_LEAST = 9 / 8


@dataclass(frozen=True, slots=True)
class Costs:
    """What the exchange may come to, as far as the modes of its budgets want to know.

    `floor_nano` is the lowest that `most` could come to if the upstream counted the tokens of the input.
    """

    expected: Expected | None = None
    most: Bound | Unboundable | None = None
    floor_nano: int = 0


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


def may_fit(refusal: Refusal, costs: Costs) -> bool:
    """Is it worth asking the upstream for a count? It is where the upper bound does not fit, but the truth might."""
    standing = refusal.standing
    left = (standing.limit_nano or 0) - standing.spent_nano
    return refusal.mode == base.HARD and not refusal.held_only and costs.floor_nano <= left


async def until(event: trio.Event, deadline: float, left: trio.Event | None) -> None:
    """Wait for an event, at most until a time of trio's clock.

    Raises:
        ClientGone: `left` was set.
    """
    if left is None:
        with trio.move_on_at(deadline):
            await event.wait()
        return
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = deadline

        async def either(which: trio.Event) -> None:
            await which.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(either, event)
        nursery.start_soon(either, left)
    if left.is_set():
        raise ClientGone


def refused(refusal: Refusal, governors: Sequence[Subject]) -> BudgetExceeded | BudgetReserved:
    """What the client is told."""
    if refusal.stale:
        return BudgetReserved("The budgets of this request were changed while it was let in. Send it again.")
    standing = refusal.standing
    subject = next(s for s in governors if (s.kind, s.id) == (standing.kind, standing.subject))
    return (BudgetReserved if refusal.held_only else BudgetExceeded)(_explain(refusal, _name(subject)))


def cut(refusal: Refusal) -> BudgetExceeded:
    """What a client is told whose stream has reached the end of a budget."""
    standing = refusal.standing
    whose = f"a {standing.kind}'s budget" if standing.subject else "the budget of the whole proxy"
    limit = usd(standing.limit_nano or 0, 2)
    return BudgetExceeded(
        f"The stream has reached the end of {whose}, {limit} USD {_period(standing)}, and is cut; {_reset(standing)}."
    )


def _explain(refusal: Refusal, name: str) -> str:
    """One sentence with the budget, what is spent and held of it, when it starts anew, and what was asked."""
    standing = refusal.standing
    if refusal.held_only:
        why = "is held by other running requests; try again when they have ended"
    elif standing.spent_nano >= (standing.limit_nano or 0):
        why = "is spent"
    else:
        why = "has too little left for this request"
        why += " (a lower max_tokens needs less)" if refusal.mode == base.HARD else ""
    needs = f", this request needs up to {usd(refusal.asked_nano, 2)}" if refusal.asked_nano else ""
    return (
        f"The budget of the {name}, {usd(standing.limit_nano or 0, 2)} USD {_period(standing)}, {why}: "
        f"{usd(standing.spent_nano, 2)} spent, {usd(standing.held_nano, 2)} held by running requests"
        f"{needs}; {_reset(standing)}."
    )


def _period(standing: Standing) -> str:
    return f"per {standing.period}" if standing.period else "in all"


def _reset(standing: Standing) -> str:
    if standing.reset_us is None:
        return "it never starts anew"
    return f"it starts anew at {datetime.fromtimestamp(standing.reset_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


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
        self._seen: Closing | None = None

    def see(self, so_far: Closing) -> None:
        """Take what the exchange has cost so far (a note), and hold more if that is more than is held."""
        cost, output = so_far.cost_nano, so_far.cost_output_nano or 0
        if cost is None:
            return
        self._seen = so_far

        # The input is known by now. The output may still come to what was expected, or go on.
        def needed(beyond: float) -> int:
            return cost if self._tight else cost - output + max(self._output_nano, math.ceil(output * beyond))

        if needed(_HELD_AT_LEAST) > self._held_nano:
            self._held_nano = needed(_HELD_BEYOND)
            self._ledger.extend(self._id, self._held_nano, self._refused)

    def _refused(self, refusal: Refusal) -> None:
        if self._tight:
            self._on_refused(refusal)
        else:
            self._tight, self._held_nano = True, 0
            if self._seen is not None:
                self.see(self._seen)


def following(
    ledger: Ledger,
    id: str,
    claims: Sequence[Claim],
    subjects: Sequence[Subject],
    costs: Costs,
    on_end: Callable[[Refusal], None],
) -> Following | None:
    """What looks after the budgets of a stream, if any of them wants it."""
    cutting = {(s.kind, s.id) for s in subjects if s.terms.cut}
    modes = {claim.mode for claim in claims} | {
        "cut" for claim in claims if claim.mode == base.SOFT and (claim.kind, claim.subject) in cutting
    }
    if base.EXPECTED in modes:
        return Following(ledger, id, costs.expected, on_end)
    return Following(ledger, id, None, on_end) if "cut" in modes else None
