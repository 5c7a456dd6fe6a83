"""What takes exchanges out of the house, as `exports.py` sees it.

    ledger ──► exports: one task for each sink, which reads after the sink's cursor ──► Sink.send ──► the cursor moves

The rules between the two:

- At least once and in order. A batch is given again, the same or with more in it, until `send` returns; after a kill
  also one that had been taken. So what is sent carries the ids and the numbers of its exchanges.
- `send` returns when the batch is safe with whoever takes it, and not before. One call at a time for each sink.
- `send` is cancelled after `SEND_SECONDS`, and when the sink is stopped: then the batch counts as not taken.
- `send` runs on the loop that all streams share. A sink that makes something of every exchange does so a few at a time,
  with a checkpoint in between, and lets a thread do what is long (see `record.encoded`).
- What a receiver refuses for good is not thrown away: it is tried again with the longest back-off, and the sink says
  so (`Exports.status`), until the receiver takes it or the sink is taken out of the settings.

A kind of sink is a module of its own with one class that is made from its table of settings, such as
`JsonlSink(settings.export.jsonl)`; `exports.py` names them all.

No `why` holds a secret, a URL or a body: it goes to the log, `/health` and people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from tproxy.store.feed import Settled

BATCH: Final = 500  # exchanges in a batch, where the sink has no reason for another number
LINGER_SECONDS: Final = 0.0  # beside the second after which the ledger is looked at again, which gathers enough
SEND_SECONDS: Final = 60.0


class NotTaken(Exception):
    """A batch is not safe; it is given again.

    Attributes:
        why: a few words for people, without secrets.
        retry_after: the receiver's own word on when, in seconds; None: it said nothing.
        final: the receiver refuses it for what it is, and would again: the longest back-off is used at once.
        too_large: it may be taken in smaller batches; these are tried at once.
    """

    def __init__(
        self, why: str, *, retry_after: float | None = None, final: bool = False, too_large: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after
        self.final = final
        self.too_large = too_large


class Sink(Protocol):
    """Who is given exchanges. Made when its settings appear or change, and closed when they go.

    Making one does no I/O and imports no heavy library: that is for `open`, before the first `send`.

    Attributes:
        name: the key of its cursor, such as `jsonl`; it stays the same when settings change.
        batch: how many exchanges one `send` takes at most.
        linger: how many seconds the first of a batch waits until it is sent, unless the batch is full before.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def linger(self) -> float: ...

    async def open(self) -> None:
        """Load what it needs; called once, and again if it raised. It raises what `send` does."""

    async def send(self, settled: Sequence[Settled]) -> None:
        """Return once all of these are safely taken. There is at least one, in the order of `seq`.

        Raises:
            NotTaken: they are not; anything else that is raised counts as such, too, and is logged as a fault of ours.
        """

    async def aclose(self) -> None:
        """Let go of connections and files. It has 2 seconds."""
