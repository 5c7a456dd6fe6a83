"""A mapping that forgets its oldest entries, so that nothing the sandbox keeps can grow without end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Shelf(Generic[K, V]):
    """Entries in the order in which they were put; the oldest goes when there are too many or they weigh too much.

    Args:
        count: the most entries kept.
        weight: the most that all entries together may weigh (bytes, as told by `put`); None: any weight.
    """

    def __init__(self, *, count: int, weight: int | None = None) -> None:
        self._most = count
        self._heaviest = weight
        self._weight = 0
        self._entries: dict[K, tuple[V, int]] = {}

    def put(self, key: K, value: V, weight: int = 0) -> None:
        """Keep `value` as the newest entry, in place of one with the same key. The newest stays, whatever it weighs."""
        self.pop(key)
        self._entries[key] = (value, weight)
        self._weight += weight
        while len(self._entries) > 1 and (
            len(self._entries) > self._most or (self._heaviest is not None and self._weight > self._heaviest)
        ):
            self.pop(next(iter(self._entries)))

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def pop(self, key: K) -> V | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._weight -= entry[1]
        return entry[0]

    def values(self) -> list[V]:
        """All that is kept, oldest first."""
        return [value for value, _ in self._entries.values()]

    def clear(self) -> None:
        self._entries.clear()
        self._weight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)
