"""The exchanges that run now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tproxy.errors import Header
from tproxy.flow.observer import Observer, Sight
from tproxy.store.base import Closing


class Running(Observer):
    """All exchanges that were let in and have not ended, the oldest first."""

    def __init__(self) -> None:
        self._sights: dict[str, Sight] = {}

    def __len__(self) -> int:
        return len(self._sights)

    def __iter__(self) -> Iterator[Sight]:
        """Those that run at this moment; who waits between two of them may find that one has ended."""
        return iter(list(self._sights.values()))

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        self._sights[sight.opening.id] = sight

    def ended(self, sight: Sight, closing: Closing) -> None:
        self._sights.pop(sight.opening.id, None)
