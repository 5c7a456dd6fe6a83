"""The decision before the upstream is dialled, and the row that it opens.

    allowed? ──► within its limits? ──► money enough? ──► row open
        ▲                                    │
        └── others hold it: wait, ask anew ──┘

The first two are decided synchronously from what is at hand, by `allow.py` and `limits.py`; the third is asked of the
ledger, where it is decided together with the row, and may have to wait for others (`spending.py`, `line.py`). After a
wait everything is decided anew: the key may have been blocked, or have other budgets. Who is refused leaves no row and
has used up nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from tproxy.errors import BadRequest, ClientGone, Header, LedgerUnavailable
from tproxy.flow.allow import check_customer, check_model, check_route
from tproxy.flow.attribution import Attribution, attribute, traceparent, user_agent
from tproxy.flow.expect import Expectations, Expected
from tproxy.flow.identify import Caller, Directory, shown
from tproxy.flow.limits import Limiter, Taken
from tproxy.flow.line import Line
from tproxy.flow.route import Passage
from tproxy.flow.spending import Costs, claims_of, may_fit, mode_of, refused, until
from tproxy.money import usd
from tproxy.protocol.bound import at_least, at_most, read_demand
from tproxy.protocol.keys import masked
from tproxy.protocol.pricing import PriceBook
from tproxy.protocol.request import RequestFacts
from tproxy.store import base, subjects
from tproxy.store.base import Claim, Closing, Ledger, Opening, Refusal, Standing, Ticket
from tproxy.store.subjects import Subject

_STALE_SECONDS = 0.05  # until a change that is in the ledger is in the directory too


@dataclass(frozen=True, slots=True)
class Governance:
    """What decides over admission, besides the ledger.

    Args:
        budget_mode: of budgets that do not say (EXPECTED, HARD or SOFT).
        budget_wait: how many seconds an exchange waits for money held by others, where its budgets do not say.
        default_geo: the region whose prices hold for a request that names none.
        customers: take note of who a request is made for at all.
    """

    directory: Directory
    limiter: Limiter
    expectations: Expectations
    line: Line
    prices: PriceBook
    budget_mode: str = base.EXPECTED
    budget_wait: float = 5.0
    default_geo: str = "global"
    customers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request, as far as admission looks at it.

    Args:
        identify: tells who asks, or raises; asked again after each wait.
        facts, body: what the body says, and the plain body; None where it passes unread, or cannot be read.
        left: set when the client has left, where the server tells.
        count_tokens: asks the upstream for the number of input tokens; None where it does not tell.
    """

    id: str
    accepted_us: int
    passage: Passage
    upstream: str
    identify: Callable[[], Caller]
    headers: Sequence[Header]
    facts: RequestFacts | None = None
    body: bytes | None = None
    betas: str = ""
    client_address: str | None = None
    left: trio.Event | None = None
    count_tokens: Callable[[bytes], Awaitable[int | None]] | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """An exchange that was let in: its open row, and what it took of limits and budgets."""

    opening: Opening
    ticket: Ticket
    taken: Taken
    costs: Costs
    claims: Sequence[Claim] = ()
    governors: Sequence[Subject] = ()
    standings: Sequence[Standing] = field(default=())

    def headers(self, now: float) -> list[Header]:
        """What the client is told beside the answer: what is left of its limits, and of its key's budget."""
        told = list(self.taken.headers(now))
        for standing in self.standings:
            if standing.kind == subjects.KEY and standing.limit_nano is not None:
                told.append((b"x-litellm-key-max-budget", usd(standing.limit_nano).encode()))
                told.append((b"x-litellm-key-spend", usd(standing.spent_nano).encode()))
                break
        return told


async def admit(govern: Governance, ledger: Ledger, asking: Asking, abort: Callable[[], Closing]) -> Admission:
    """Let an exchange in and open its row, or refuse it.

    Args:
        abort: gives the row's end, should it be opened and the exchange be cancelled before it is let in.

    Raises:
        ModelNotAllowed, RouteNotAllowed, CustomerBlocked, RateLimited, BudgetExceeded, BudgetReserved: refused.
        AuthenticationFault: the key was blocked, replaced or deleted while the request waited.
        BadRequest: the body cannot be read, and what it asks for is held to budgets or limits.
        LedgerUnavailable: what is not recorded is not served.
        ClientGone: the client left while it waited for money.
    """
    attempt = _Attempt(govern, ledger, asking, abort)
    try:
        outcome = await attempt.decide()
        while isinstance(outcome, Refusal):
            outcome = await _wait_in_line(attempt, outcome)
        return outcome
    except BaseException:
        attempt.give_back()
        raise


async def _wait_in_line(attempt: _Attempt, refusal: Refusal) -> Admission | Refusal:
    """Stand in line for the budget that refused, until it lets the exchange in or another one refuses it.

    Raises:
        BudgetReserved: it took too long; and whatever `decide` raises.
    """
    ledger, left, deadline = attempt.ledger, attempt.asking.left, attempt.deadline
    subject = (refusal.standing.kind, refusal.standing.subject)
    outcome: Admission | Refusal = refusal
    with attempt.govern.line.place(subject) as first:
        await until(first, deadline, left)
        while isinstance(outcome, Refusal) and subject == (outcome.standing.kind, outcome.standing.subject):
            if trio.current_time() >= deadline:
                raise refused(outcome, attempt.governors)
            freed = ledger.freed(*subject)  # before it is tried: what is given back from now on is not missed
            outcome = await attempt.decide()
            if isinstance(outcome, Refusal):
                soon = trio.current_time() + _STALE_SECONDS if outcome.stale else deadline
                await until(freed, min(deadline, soon), left)
    return outcome


class _Attempt:
    """One request on its way in. `decide` may be asked again after each wait."""

    def __init__(self, govern: Governance, ledger: Ledger, asking: Asking, abort: Callable[[], Closing]) -> None:
        self.govern = govern
        self.ledger = ledger
        self.asking = asking
        self.governors: Sequence[Subject] = ()
        self.deadline = 0.0
        self._abort = abort
        self._taken: Taken | None = None
        self._counted: int | None = None
        self._asked_for_count = False

    def give_back(self) -> None:
        """Take nothing of the limits after all."""
        if self._taken is not None:
            self._taken.give_back()

    async def decide(self) -> Admission | Refusal:
        """Let it in; or tell which budget cannot hold it, because others hold its money.

        Raises:
            Fault: it is refused for good.
        """
        govern, asking = self.govern, self.asking
        caller = asking.identify()
        passage, facts = asking.passage, asking.facts
        check_route(caller, passage)
        about = attribute(asking.headers, facts, caller, customers=govern.customers)
        self.governors = governing(govern.directory, caller, about)
        if not caller.is_master:
            check_model(self.governors, passage, facts.model if facts is not None else None)
        for each in self.governors:
            check_customer(each)
        if not caller.is_master:
            _check_readable(asking, self.governors)
        if not self.ledger.writable:
            raise LedgerUnavailable("The ledger cannot be written now, so no request is served. Try again shortly.")
        costs = _costs(govern, asking, caller, self.governors, self._counted)
        if self._taken is None:
            self._taken = _take(govern, asking, caller, self.governors, costs.expected)
            waits = [s.terms.wait for s in self.governors if s.terms.budgets and s.terms.wait is not None]
            self.deadline = trio.current_time() + min(waits, default=govern.budget_wait)
        claims = claims_of(self.governors, caller, passage, costs, govern.budget_mode)
        opening = _opening(asking, caller, about, costs.expected)
        if not claims:
            return Admission(opening, self.ledger.open(opening), self._taken, costs)
        ticket = self.ledger.open(opening, claims)
        try:
            refusal = await ticket.admitted()
        except BaseException:
            self.ledger.close(self._abort())
            raise
        if refusal is None:
            return Admission(opening, ticket, self._taken, costs, claims, self.governors, ticket.standings)
        if may_fit(refusal, costs) and await self._count():
            return await self.decide()
        if not refusal.held_only:
            raise refused(refusal, self.governors)
        return refusal

    async def _count(self) -> bool:
        """Ask the upstream, once, how many tokens the input has. Whether it told."""
        ask, body = self.asking.count_tokens, self.asking.body
        if self._asked_for_count or ask is None or body is None:
            return False
        self._asked_for_count = True
        left = self.asking.left
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                if left is not None:
                    await left.wait()
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            self._counted = await ask(body)  # has a deadline of its own
            nursery.cancel_scope.cancel()
        if left is not None and left.is_set():
            raise ClientGone
        return self._counted is not None


def governing(directory: Directory, caller: Caller, about: Attribution) -> list[Subject]:
    """All whose terms an exchange is held to: the proxy, key, team, user, customer, and its tags."""
    named = [(subjects.PROXY, ""), (subjects.CUSTOMER, about.customer), *((subjects.TAG, tag) for tag in about.tags)]
    found = [directory.find(kind, id) for kind, id in named if id is not None]
    return [*caller.subjects, *(subject for subject in found if subject is not None)]


def _check_readable(asking: Asking, governors: Sequence[Subject]) -> None:
    """What is held to budgets or limits must say clearly what it asks for: the upstream may read it otherwise."""
    if not asking.passage.inference or (asking.facts is not None and asking.facts.model is not None):
        return
    for subject in governors:
        if subject.terms.budgets or subject.terms.limited:
            why = asking.facts.problem if asking.facts is not None else "It cannot be decoded."
            raise BadRequest(
                f"The {subject.kind} {shown(subject)!r} has budgets or limits, so the body must say clearly what it "
                f"asks for. {why or 'It names no model.'}"
            )


def _costs(
    govern: Governance, asking: Asking, caller: Caller, governors: Sequence[Subject], counted: int | None
) -> Costs:
    """What the exchange may come to, as far as somebody wants to know."""
    facts, body, at_us = asking.facts, asking.body, asking.accepted_us
    if facts is None or body is None or not asking.passage.inference or caller.is_master:
        return Costs()
    modes = {mode_of(subject, govern.budget_mode) for subject in governors if subject.terms.budgets}
    expected: Expected | None = None
    if base.EXPECTED in modes or any(subject.terms.limited for subject in governors):
        expected = govern.expectations.expect(
            caller.id, facts.model or "", body, facts.max_tokens, govern.prices, at_us
        )
    if base.HARD not in modes:
        return Costs(expected)
    demand = read_demand(body, asking.betas)
    demand = replace(demand, geo=demand.geo or govern.default_geo)
    most = at_most(demand, govern.prices, at_us, counted)
    return Costs(expected, most, at_least(demand, govern.prices, at_us))


def _take(
    govern: Governance, asking: Asking, caller: Caller, governors: Sequence[Subject], expected: Expected | None
) -> Taken:
    held_to = () if caller.is_master else [s for s in governors if s.terms.limited]
    return govern.limiter.take(
        held_to,
        asking.facts.model if asking.facts is not None else None,
        expected.input_tokens if expected is not None else 0,
        expected.output_tokens if expected is not None else 0,
        trio.current_time(),
    )


def _opening(asking: Asking, caller: Caller, about: Attribution, expected: Expected | None) -> Opening:
    facts = asking.facts
    return Opening(
        id=asking.id,
        accepted_us=asking.accepted_us,
        method=asking.passage.method,
        path=masked(asking.passage.path.decode("ascii")),
        upstream=asking.upstream,
        model_asked=masked(facts.model) if facts is not None and facts.model is not None else None,
        stream=facts.stream if facts is not None else None,
        caller=caller.id,
        caller_alias=caller.alias,
        team=caller.team,
        user=caller.user,
        customer=about.customer,
        tags=about.tags,
        session=about.session,
        agent=about.agent,
        parent_agent=about.parent_agent,
        expected_nano=expected.nano if expected is not None else None,
        client_address=asking.client_address,
        user_agent=user_agent(asking.headers),
        traceparent=traceparent(asking.headers),
    )
