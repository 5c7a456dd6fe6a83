"""What the flow gets when it opens an exchange in the ledger, and waits on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from tproxy.errors import LedgerUnavailable
from tproxy.store.base import Claim, Opening, Refusal, Standing
from tproxy.store.claims import Decision

DURABLE_SECONDS = 10.0  # how long a ticket is waited for: a disk that hangs must not hold the client for ever
NOT_WRITABLE = "The ledger cannot be written now."


async def answer(event: trio.Event, stalled: Callable[[float], None]) -> None:
    """Wait for what the ledger's thread will say, at most `DURABLE_SECONDS`.

    Args:
        stalled: told for how long it was waited in vain.

    Raises:
        LedgerUnavailable: it was.
    """
    with trio.CancelScope(relative_deadline=DURABLE_SECONDS):
        await event.wait()
    if not event.is_set():
        stalled(DURABLE_SECONDS)
        raise LedgerUnavailable("The ledger did not answer in time.")


class SqliteTicket:
    """The receipt for one open, and what is known of the exchange until its close is written.

    Its claims are decided before the commit, it is settled after it. The ledger's thread says both, the loop wakes who
    waits. Whoever would wait says so before looking whether it is said, and it is said before it is looked whether
    anybody waits: so the loop need not hear of one for which nobody does.

    Attributes:
        decision: what was told of its claims; never taken back.
        opened: its open was written, or was refused for good; otherwise the close has to write the row whole. Changed
            by the writer alone.
        refused: there is no row, and none is to be closed. Changed by the writer alone.
    """

    __slots__ = (
        "_deciding",
        "_fault",
        "_settled",
        "_settling",
        "_stalled",
        "claims",
        "decision",
        "opened",
        "opening",
        "refused",
    )

    def __init__(self, opening: Opening, claims: Sequence[Claim], stalled: Callable[[float], None]) -> None:
        self._stalled = stalled
        self._fault: str | None = None
        self._settled = False
        self._deciding: trio.Event | None = None  # there while somebody waits, and after that
        self._settling: trio.Event | None = None
        self.opening = opening
        self.claims = claims
        self.decision: Decision | None = None
        self.opened = False
        self.refused = False

    def decide(self, decision: Decision) -> bool:
        """Its claims are decided, if they were not before. In the ledger's thread; returns whether the loop has to hear
        of it."""
        if self.decision is not None:
            return False
        self.decision = decision
        return self._deciding is not None or decision.refusal is not None

    def settle(self, fault: str | None) -> bool:
        """It is durable, or could not be written, and why. From any thread; returns whether somebody waits for that.

        One that was let in and could not be written may be later: then it is settled anew.
        """
        self._fault = fault
        self._settled = True
        return self._settling is not None or (self.decision is None and self._deciding is not None)

    def wake(self) -> None:
        """It has been decided or settled. On the loop."""
        if self._deciding is not None:
            self._deciding.set()
        if self._settling is not None and self._settled:
            self._settling.set()

    @property
    def turned_away(self) -> bool:
        """It was told that it is refused."""
        return self.decision is not None and self.decision.refusal is not None

    @property
    def standings(self) -> Sequence[Standing]:
        return self.decision.standings if self.decision is not None else ()

    async def admitted(self) -> Refusal | None:
        """See `base.Ticket`. Waits at most `DURABLE_SECONDS`."""
        if self.decision is None and not self._settled:
            if self._deciding is None:
                self._deciding = trio.Event()
            if self.decision is None and not self._settled:
                await answer(self._deciding, self._stalled)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self.decision is not None and self.decision.refusal is not None:
            return self.decision.refusal
        if self._fault is not None:
            raise LedgerUnavailable(self._fault)
        return None

    async def durable(self) -> None:
        """See `base.Ticket`. Waits at most `DURABLE_SECONDS`."""
        if not self._settled:
            if self._settling is None:
                self._settling = trio.Event()
            if not self._settled:
                await answer(self._settling, self._stalled)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._fault is not None:
            raise LedgerUnavailable(self._fault)
        if self.turned_away:
            raise LedgerUnavailable("The exchange was refused.")
