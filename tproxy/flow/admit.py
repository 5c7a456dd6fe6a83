"""The decision before the upstream is dialled, and the row that it opens.

    allowed? ──► within its limits? ──► money enough? ──► row open

The first two are decided synchronously from what is at hand, by `allow.py` and `limits.py`; the third is asked of the
ledger, where it is decided together with the row, and may have to wait for others (`spending.py`). Who is refused
leaves no row and has used up nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from tproxy.errors import Header, LedgerUnavailable
from tproxy.flow.allow import check_customer, check_model, check_route
from tproxy.flow.attribution import Attribution, attribute, user_agent
from tproxy.flow.expect import Expectations, Expected
from tproxy.flow.identify import Caller, Directory
from tproxy.flow.limits import Limiter, Taken
from tproxy.flow.route import Passage
from tproxy.flow.spending import Costs, claims_of, mode_of, reserve
from tproxy.protocol.bound import Bound, Unboundable, at_least, at_most, read_demand
from tproxy.protocol.pricing import PriceBook
from tproxy.protocol.request import RequestFacts
from tproxy.store import base, subjects
from tproxy.store.base import Claim, Closing, Ledger, Opening, Standing, Ticket
from tproxy.store.subjects import Subject


@dataclass(frozen=True, slots=True)
class Governance:
    """What decides over admission, besides the ledger.

    Args:
        budget_mode: of budgets that do not say (EXPECTED, HARD or SOFT).
        budget_wait: how many seconds an exchange waits for money held by others, where its budgets do not say.
        default_geo: the region whose prices hold for a request that names none.
    """

    directory: Directory
    limiter: Limiter
    expectations: Expectations
    prices: PriceBook
    budget_mode: str = base.EXPECTED
    budget_wait: float = 5.0
    default_geo: str = "global"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request, as far as admission looks at it.

    Args:
        facts, body: what the body says, and the plain body; None where it passes unread.
        left: set when the client has left, where the server tells.
        check: raises unless the caller still is who it was; asked again after each wait.
        count_tokens: asks the upstream for the number of input tokens; None where it does not tell.
    """

    id: str
    accepted_us: int
    passage: Passage
    upstream: str
    caller: Caller
    headers: Sequence[Header]
    facts: RequestFacts | None = None
    body: bytes | None = None
    betas: str = ""
    client_address: str | None = None
    left: trio.Event | None = None
    count_tokens: Callable[[bytes], Awaitable[int | None]] | None = None
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Admission:
    """An exchange that was let in: its open row, and what it took of limits and budgets."""

    ticket: Ticket
    taken: Taken
    costs: Costs
    claims: Sequence[Claim] = ()
    governors: Sequence[Subject] = ()
    standings: Sequence[Standing] = field(default=())


async def admit(govern: Governance, ledger: Ledger, asking: Asking, abort: Callable[[], Closing]) -> Admission:
    """Let an exchange in and open its row, or refuse it.

    Args:
        abort: gives the row's end, should it be opened and the exchange be cancelled before it is let in.

    Raises:
        ModelNotAllowed, RouteNotAllowed, CustomerBlocked, RateLimited, BudgetExceeded, BudgetReserved: refused.
        LedgerUnavailable: what is not recorded is not served.
        ClientGone: the client left while it waited for money.
    """
    caller, passage, facts = asking.caller, asking.passage, asking.facts
    check_route(caller, passage)
    check_model(caller, passage, facts.model if facts is not None else None)
    about = attribute(asking.headers, facts, caller)
    governors = governing(govern.directory, caller, about)
    for each in governors:
        check_customer(each)
    if not ledger.writable:
        raise LedgerUnavailable("The ledger cannot be written now, so no request is served. Try again shortly.")
    costs = _costs(govern, asking, governors)
    taken = _take(govern, asking, governors, costs.expected)
    try:
        claims = claims_of(governors, caller, passage, costs, govern.budget_mode)
        opening = _opening(asking, about, costs.expected)
        if not claims:
            return Admission(ledger.open(opening), taken, costs)
        waits = [s.terms.wait for s in governors if s.terms.budgets and s.terms.wait is not None]
        ticket, claims = await reserve(
            ledger,
            opening,
            claims,
            governors,
            costs,
            wait=min(waits, default=govern.budget_wait),
            left=asking.left,
            check=asking.check,
            abort=abort,
        )
    except BaseException:
        taken.give_back()
        raise
    return Admission(ticket, taken, costs, claims, governors, ticket.standings)


def governing(directory: Directory, caller: Caller, about: Attribution) -> list[Subject]:
    """All whose terms an exchange is held to: the proxy, key, team, user, customer, and its tags."""
    named = [(subjects.PROXY, ""), (subjects.CUSTOMER, about.customer), *((subjects.TAG, tag) for tag in about.tags)]
    found = [directory.find(kind, id) for kind, id in named if id is not None]
    return [*caller.subjects, *(subject for subject in found if subject is not None)]


def _costs(govern: Governance, asking: Asking, governors: Sequence[Subject]) -> Costs:
    """What the exchange may come to, as far as somebody wants to know."""
    facts, body = asking.facts, asking.body
    if facts is None or body is None or not asking.passage.inference or asking.caller.is_master:
        return Costs()
    modes = {mode_of(subject, govern.budget_mode) for subject in governors if subject.terms.budgets}
    expected: Expected | None = None
    if base.EXPECTED in modes or any(subject.terms.limited for subject in governors):
        expected = govern.expectations.expect(
            asking.caller.id, facts.model or "", body, facts.max_tokens, govern.prices, asking.accepted_us
        )
    if base.HARD not in modes:
        return Costs(expected)
    demand = read_demand(body, asking.betas)
    demand = replace(demand, geo=demand.geo or govern.default_geo)
    most = at_most(demand, govern.prices, asking.accepted_us)

    async def count() -> Bound | Unboundable:
        tokens = await asking.count_tokens(body) if asking.count_tokens is not None else None
        return most if tokens is None else at_most(demand, govern.prices, asking.accepted_us, tokens)

    return Costs(expected, most, at_least(demand, govern.prices, asking.accepted_us), count)


def _take(govern: Governance, asking: Asking, governors: Sequence[Subject], expected: Expected | None) -> Taken:
    held_to = () if asking.caller.is_master else [s for s in governors if s.terms.limited]
    return govern.limiter.take(
        held_to,
        asking.facts.model if asking.facts is not None else None,
        expected.input_tokens if expected is not None else 0,
        expected.output_tokens if expected is not None else 0,
        trio.current_time(),
    )


def _opening(asking: Asking, about: Attribution, expected: Expected | None) -> Opening:
    facts, caller = asking.facts, asking.caller
    return Opening(
        id=asking.id,
        accepted_us=asking.accepted_us,
        method=asking.passage.method,
        path=asking.passage.path.decode("ascii"),
        upstream=asking.upstream,
        model_asked=facts.model if facts is not None else None,
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
    )
