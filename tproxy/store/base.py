"""The rows that last, and what the flow may ask of whoever keeps them.

One exchange is one row. The row is written twice: opened while the request is on its way to the upstream, and
closed when the exchange has ended, however it ended. Between the two it may be noted once or more with what is
known so far, so that a process that is killed loses as little as can be.

    open(Opening) ──► note(Closing, ended=OPEN)* ──► close(Closing)
          │                                             ▲
          └── the process dies ── found at the next start ── ended=LOST

Money is held in the same transactions. `open` may come with claims on budgets: either all of them are held and the row
is there, or neither. `extend` holds more while the exchange runs. `close` books what it cost and gives the rest back.

The field names of `Opening` and `Closing` are the column names of the table `exchange`: a column is added here and
in a migration, nowhere else. Times are whole microseconds since the epoch (UTC), `None` where it did not happen.
Money is whole nano-dollars.

This file knows no database. The drivers (`sqlite`, later `postgres`) are handed to the flow by the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

# How an exchange ended (`Closing.ended`).
OPEN = "open"  # it has not: the exchange runs, or ran when the process died
FINISHED = "finished"  # the whole answer reached the client
REFUSED = "refused"  # the upstream answered with an error status, relayed whole
UPSTREAM_ERROR = "upstream_error"  # a 2xx stream that carried an `error` event
INCOMPLETE = "incomplete"  # a stream that ended cleanly but without its message_stop
CLIENT_GONE = "client_gone"  # the client left, or took nothing for too long
CLIENT_FAULT = "client_fault"  # the request body broke its promise midway: too long, too slow
UPSTREAM_UNREACHABLE = "upstream_unreachable"
UPSTREAM_BROKEN = "upstream_broken"
UPSTREAM_TIMEOUT = "upstream_timeout"
FAILED = "failed"  # a fault of ours, or a shutdown that could wait no longer
CUT_AT_BUDGET = "cut_at_budget"  # a running stream that reached the end of a budget which says to cut
LOST = "lost"  # the process died while the exchange ran

# How sure the figures of a row are (`Closing.certainty`).
EXACT = "exact"  # the upstream's final word
PARTIAL = "partial"  # seen so far: more may have come
ESTIMATED = "estimated"  # output counted from what was delivered
UNPRICED = "unpriced"  # the tokens are known, their price is not

# How much of a budget an exchange holds (`Claim.mode`).
EXPECTED = "expected"  # what it is expected to cost; one that is alone is let in also where less is left
HARD = "hard"  # what it can cost at most
SOFT = "soft"  # nothing: only a budget that is spent refuses
COUNTED = "counted"  # nothing, and nothing refuses: the cost is booked


class Opening(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of an exchange when it is admitted.

    `id` is a UUID of version 7 as text. `caller` is the stable id of who asks (`key:<sha256 hex>`, `master`,
    `own:<hash>`, `anonymous`), `caller_alias` its name for people. `tags` keeps order and holds no repetition.
    `agent` and `parent_agent` are Claude Code's ids of the subagent that asks and of the one that started it.
    `expected_nano` is what the exchange was expected to cost, where that was reckoned. `traceparent` is the trace that
    it is a part of, as W3C has it.
    """

    id: str
    accepted_us: int
    method: str
    path: str
    upstream: str
    model_asked: str | None = None
    stream: bool | None = None
    caller: str
    caller_alias: str | None = None
    team: str | None = None
    user: str | None = None
    customer: str | None = None
    tags: tuple[str, ...] = ()
    session: str | None = None
    agent: str | None = None
    parent_agent: str | None = None
    expected_nano: int | None = None
    client_address: str | None = None
    user_agent: str | None = None
    traceparent: str | None = None


class Closing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an exchange came to. With `ended=OPEN`: what is known of it so far.

    Token counts are as the upstream reports them; `input_tokens` is the uncached part only. `status` is the one
    that the client saw, tproxy's own faults included. `tap_fault` says why the tap gave up on the content, if it did.
    """

    id: str
    ended: str
    ended_us: int | None = None
    dialled_us: int | None = None
    head_us: int | None = None
    first_content_us: int | None = None
    last_byte_us: int | None = None
    status: int | None = None
    model_served: str | None = None
    request_id: str | None = None
    message_id: str | None = None
    stop_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    thinking_tokens: int | None = None
    web_searches: int | None = None
    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None
    cost_nano: int | None = None
    cost_input_nano: int | None = None
    cost_output_nano: int | None = None
    cost_cache_read_nano: int | None = None
    cost_cache_write_nano: int | None = None
    cost_tools_nano: int | None = None
    price_version: str | None = None
    certainty: str = PARTIAL
    bytes_in: int = 0
    bytes_out: int = 0
    error_type: str | None = None
    tap_fault: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What an exchange asks of all budgets of one subject: `amount_nano` is held until it ends; 0 for SOFT and COUNTED.

    `kind` and `subject` are those of a `subjects.Subject` that has budgets. If it has none when the claim is decided,
    the claim is refused as stale; only a COUNTED one is let in then.
    """

    kind: str
    subject: str
    mode: str
    amount_nano: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one budget stands: a subject has one for each of its periods.

    `period` is as in `period.py`; None is for ever, and then `reset_us` is None too.
    """

    kind: str
    subject: str
    period: str | None
    limit_nano: int | None
    soft_nano: int | None
    spent_nano: int
    held_nano: int
    reset_us: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The budget that cannot hold what was asked, and how it was asked.

    `stale`: the subject has no such budgets any more, because it went, has another id now or was given other terms: ask
    anew who it is. The figures of `standing` are 0 then, and those of no budget.

    `held_only`: it would be let in, were it not for what other running exchanges hold, or it may be once it is known
    anew who asks.
    """

    standing: Standing
    asked_nano: int
    mode: str
    stale: bool = False

    @property
    def held_only(self) -> bool:
        if self.stale:
            return True
        limit, spent = self.standing.limit_nano or 0, self.standing.spent_nano
        return spent < limit and (self.mode == EXPECTED or spent + self.asked_nano <= limit)


class Ticket(Protocol):
    """The receipt for an opened row."""

    @property
    def standings(self) -> Sequence[Standing]:
        """The budgets that were claimed, as they stand with the claim in them; known once `admitted` has returned."""

    async def admitted(self) -> Refusal | None:
        """Return once it is decided whether the claims are held. That stands, but need not be durable yet; only what is
        held HARD is.

        Returns:
            None: they are, and the row is open. A refusal: nothing is held, there is no row and none is to be closed.

        Raises:
            LedgerUnavailable: it could not be written.
        """

    async def durable(self) -> None:
        """Return when the row would survive a kill -9 and a power cut: before that, no byte of an answer goes out.

        Raises:
            LedgerUnavailable: it could not be written.
        """


class Ledger(Protocol):
    """The durable record of exchanges, as the flow sees it. None of the sync methods waits or raises."""

    @property
    def writable(self) -> bool:
        """False after a write failed and until one succeeds: no exchange should be admitted."""

    def freed(self, kind: str, subject: str) -> trio.Event:
        """The event of the next time that a claim on this subject which was refused may be let in: what was held of one
        of its budgets has been given back, budgets or figures were changed, or writes succeed again. It is set once;
        ask for another one then."""

    def open(self, opening: Opening, claims: Sequence[Claim] = ()) -> Ticket:
        """Queue a new row, which is written only if all claims can be held.

        Whoever opened a row closes it, also when its ticket said that it could not be written (the exchange is then
        written whole as soon as that can be done), or when `admitted` was cancelled. Only a refused one is not closed;
        closing it all the same changes nothing."""

    def note(self, closing: Closing) -> None:
        """Queue what is known so far (`ended=OPEN`) of an opened row. May be dropped if the ledger lags."""

    def extend(self, id: str, amount_nano: int, on_refused: Callable[[Refusal], None]) -> None:
        """Queue that an exchange holds at least so much of the budgets that it claimed as EXPECTED, or as SOFT where
        the budget says to cut. It is held even past the limit; of a budget that says to cut, it is not, and
        `on_refused` is called on the loop."""

    def close(self, closing: Closing) -> None:
        """Queue the end of an opened row. It is kept and tried again until it is written; a second close of the
        same row is a bug and is refused.

        What is booked on each claimed budget is `closing.cost_nano`, with three exceptions. A HARD claim of an exchange
        whose figures are not EXACT is booked as it was held: money that may have been spent counts as spent. So is an
        EXPECTED one where the client left before any cost was known, for the upstream has read the prompt. The row of
        a process that died is booked at what was held, or at what was noted of it if that is more."""
