"""Who looks on while exchanges run: metrics, the log, the live view, captures, alerts.

An observer is told of an exchange when it is let in, and once more when its row is closed; or, once, that a request was
refused. It is told synchronously, on the loop that all streams share: it takes note and returns, and what takes longer
is done elsewhere. What one raises is logged and counted; the exchange goes on.

What observers do is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tproxy.errors import Fault, Header
from tproxy.flow.course import Course
from tproxy.flow.identify import Caller
from tproxy.flow.limits import Taken
from tproxy.flow.tap import Tap
from tproxy.store.base import Closing, Opening

log = logging.getLogger("tproxy.observer")


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """One exchange that was let in, for as long as it runs.

    Args:
        credential: a name for the upstream's credential that it uses, which tells nothing of it.
        taken: what it took of its limits.
        so_far: what is known of it now, as a row that is not closed (`ended` = OPEN). Takes some 30 µs.
    """

    opening: Opening
    course: Course
    tap: Tap
    caller: Caller
    credential: str
    taken: Taken
    so_far: Callable[[], Closing]


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """A request that was not let in. `caller` is ANONYMOUS, and `model` None, where it was refused before either was
    known."""

    id: str
    method: str
    path: str
    fault: Fault
    caller: Caller
    model: str | None
    client_address: str | None


class Observer:
    """Base of all observers: each overrides what it wants to be told."""

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        """An exchange was let in and is about to be sent.

        Args:
            headers: those of the request.
            body: the plain body, where it was read whole; nobody else keeps it.
        """

    def ended(self, sight: Sight, closing: Closing) -> None:
        """Its row is closed; it is told once of every exchange that was let in."""

    def refused(self, refused: Refused) -> None:
        """A request was not let in."""


class Observers:
    """All that look on, as one.

    Attributes:
        failures: how often one of them raised.
    """

    def __init__(self, each: Sequence[Observer] = ()) -> None:
        self.failures = 0
        self._admitted = [o.admitted for o in each if type(o).admitted is not Observer.admitted]
        self._ended = [o.ended for o in each if type(o).ended is not Observer.ended]
        self._refused = [o.refused for o in each if type(o).refused is not Observer.refused]

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        """Tell all of an exchange that was let in."""
        for tell in self._admitted:
            try:
                tell(sight, headers, body)
            except Exception:
                self._failed()

    def ended(self, sight: Sight, closing: Closing) -> None:
        """Tell all of its end."""
        for tell in self._ended:
            try:
                tell(sight, closing)
            except Exception:
                self._failed()

    def refused(self, refused: Refused) -> None:
        """Tell all of a request that was not let in."""
        for tell in self._refused:
            try:
                tell(refused)
            except Exception:
                self._failed()

    def _failed(self) -> None:
        self.failures += 1
        log.exception("who looks on failed; the exchange goes on")
