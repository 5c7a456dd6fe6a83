"""What the flow gets when it opens an exchange in the ledger, and waits on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from tproxy.errors import LedgerUnavailable
from tproxy.store.base import Claim, Opening, Refusal, Standing
from tproxy.store.claims import Decision

DURABLE_SECONDS = 10.0  # how long a ticket is waited for: a disk that hangs must not hold the client for ever


async def answer(event: trio.Event, stalled: Callable[[float], None]) -> None:
    """Wait for what the ledger's thread will say, at most `DURABLE_SECONDS`.

    Args:
        stalled: told for how long it was waited in vain.

    Raises:
        LedgerUnavailable: it was.
    """
    with trio.move_on_after(DURABLE_SECONDS):
        await event.wait()
    if not event.is_set():
        stalled(DURABLE_SECONDS)
        raise LedgerUnavailable("The ledger did not answer in time.")


class SqliteTicket:
    """The receipt for one open, and what is known of the exchange until its close is written.

    Attributes:
        opened: its open was decided, for or against; otherwise the close has to write the row whole. Changed by the
            writer alone.
        refused: there is no row, and none is to be closed. Changed by the writer alone.
    """

    __slots__ = ("_decision", "_fault", "_settled", "_stalled", "_woken", "claims", "opened", "opening", "refused")

    def __init__(self, opening: Opening, claims: Sequence[Claim], stalled: Callable[[float], None]) -> None:
        self._stalled = stalled
        self._settled = False
        self._woken: trio.Event | None = None
        self._fault: str | None = None
        self._decision: Decision | None = None
        self.opening = opening
        self.claims = claims
        self.opened = False
        self.refused = False

    def settle(self, outcome: str | Decision) -> None:
        """Its open could not be written, and why, or was decided."""
        if isinstance(outcome, str):
            self._fault = outcome
        else:
            self._decision = outcome
        self._settled = True
        if self._woken is not None:
            self._woken.set()

    @property
    def standings(self) -> Sequence[Standing]:
        return self._decision.standings if self._decision is not None else ()

    async def admitted(self) -> Refusal | None:
        """See `base.Ticket`. Waits at most `DURABLE_SECONDS`."""
        if self._settled:
            await trio.lowlevel.checkpoint()
        else:
            if self._woken is None:
                self._woken = trio.Event()
            await answer(self._woken, self._stalled)
        if self._fault is not None:
            raise LedgerUnavailable(self._fault)
        return self._decision.refusal if self._decision is not None else None

    async def durable(self) -> None:
        """See `base.Ticket`. Waits at most `DURABLE_SECONDS`."""
        if await self.admitted() is not None:
            raise LedgerUnavailable("The exchange was refused.")
