"""What the exchanges tell the alerts, in numbers that stay small however many there are and whatever they name."""

from __future__ import annotations

from typing import Final

from tproxy.errors import BudgetExceeded
from tproxy.flow.observer import Observer, Refused, Sight
from tproxy.store import base
from tproxy.store.base import Closing

WINDOW_US: Final = 300_000_000
BUCKET_US: Final = 5_000_000

MODELS_MAX: Final = 100  # names come from clients
REFUSED_MAX: Final = 1_000
CREDENTIALS_MAX: Final = 100  # those of the settings; a reload may bring others

_FAILED: Final = frozenset(
    {base.UPSTREAM_ERROR, base.INCOMPLETE, base.UPSTREAM_UNREACHABLE, base.UPSTREAM_BROKEN, base.UPSTREAM_TIMEOUT}
)
_REFUSES: Final = (401, 403)


class Window:
    """How many there were in the last five minutes, and how many of them were bad."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}

    def add(self, at_us: int, *, bad: bool) -> None:
        """One more."""
        bucket = self._buckets.setdefault(at_us // BUCKET_US, [0, 0])
        bucket[0] += 1
        bucket[1] += bad

    def sums(self, now_us: int) -> tuple[int, int]:
        """All, and the bad ones. What is older is forgotten."""
        first = (now_us - WINDOW_US) // BUCKET_US
        self._buckets = {at: bucket for at, bucket in self._buckets.items() if at > first}
        return sum(each[0] for each in self._buckets.values()), sum(each[1] for each in self._buckets.values())


class Credential:
    """What the upstream last said to one of our keys: status and microseconds since the epoch."""

    __slots__ = ("at_us", "status", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.status = 0
        self.at_us = 0


class Seen(Observer):
    """Takes note.

    Attributes:
        upstream: exchanges that the upstream answered or failed. One whose client left before says nothing of it.
        credentials: by their names; the client's own are not among them.
        unpriced: models without a price that were used since this was last emptied.
        refused_of: subjects (kind, id) of whose requests one was refused for want of money since this was last emptied.
    """

    def __init__(self) -> None:
        self.upstream = Window()
        self.credentials: dict[str, Credential] = {}
        self.unpriced: set[str] = set()
        self.refused_of: set[tuple[str, str]] = set()

    def ended(self, sight: Sight, closing: Closing) -> None:
        """See `Observer`."""
        status, now_us = sight.course.upstream_status, closing.ended_us or 0
        failed = closing.ended in _FAILED or (status is not None and status >= 500)
        if failed or status is not None:
            self.upstream.add(now_us, bad=failed)
        if status is not None and sight.credential != "own":
            self._note(sight.credential, status, now_us)
        if closing.certainty == base.UNPRICED and len(self.unpriced) < MODELS_MAX:
            model = closing.model_served or sight.opening.model_asked
            if model:
                self.unpriced.add(model)

    def refused(self, refused: Refused) -> None:
        """See `Observer`."""
        if isinstance(refused.fault, BudgetExceeded) and len(self.refused_of) < REFUSED_MAX:
            self.refused_of.add(("proxy", ""))
            self.refused_of.update((each.kind, each.id) for each in refused.caller.subjects)

    def _note(self, name: str, status: int, now_us: int) -> None:
        seen = self.credentials.get(name)
        if seen is None:
            if len(self.credentials) >= CREDENTIALS_MAX:
                return
            seen = self.credentials[name] = Credential()
        seen.status, seen.at_us = status, now_us
        seen.window.add(now_us, bad=status in _REFUSES)
