"""Series of numbers, counted on the loop and read by a scrape: what a family of metrics is, and a table of label sets
that cannot grow past its bound.

Nothing here knows Prometheus' own library, which is loaded when somebody scrapes (`exposition.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from tproxy.histogram import Histogram
from tproxy.protocol.keys import masked

OTHER: Final = "other"  # what is not told apart

_MAX_VALUE: Final = 128

S = TypeVar("S")

Labels = tuple[str, ...]
Sample = tuple[Labels, float | Histogram]


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one metric.

    Args:
        name: of a counter, without its `_total`.
        samples: the values of `labels`, in their order, with a number; in a histogram, with one.
        unit: what one of a histogram's numbers is, in the metric's own unit: 1e-6 for microseconds told as seconds.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    samples: Iterable[Sample] = field(default=())
    unit: float = 1.0


def single(name: str, kind: Literal["counter", "gauge"], about: str, value: float) -> Family:
    """A metric without labels."""
    return Family(name, kind, about, (), [((), value)])


def by(name: str, about: str, label: str, counts: dict[str, int]) -> Family:
    """A counter with one label."""
    return Family(name, "counter", about, (label,), [((word,), count) for word, count in list(counts.items())])


Key = tuple[Labels, Labels]


class LabelSets(Generic[S]):
    """What is counted for each set of labels: who asked, and what about.

    At most `most` sets are told apart. What comes later is counted for OTHER, with what `fold` leaves of the rest;
    and where even those are many, all of it for OTHER. So there are never more than 2 x `most` + 1.

    Values come from clients and operators: they are cut, and what looks like a key in them is masked. Two that look the
    same then are one.
    """

    def __init__(self, most: int, make: Callable[[], S], fold: Callable[[Labels], Labels]) -> None:
        self._most = most
        self._make = make
        self._fold = fold
        self._known: dict[Key, S] = {}  # as they came
        self._shown: dict[Labels, S] = {}  # as they are told

    def __len__(self) -> int:
        return len(self._shown)

    def at(self, key: Key) -> S:
        """What is counted for (who, what)."""
        found = self._known.get(key)
        return self._new(key) if found is None else found

    def items(self) -> list[tuple[Labels, S]]:
        """All sets as they are now; may be called by another thread."""
        return list(self._shown.items())

    def known(self) -> list[Key]:
        """Those that are told apart, as they came."""
        return list(self._known)

    def _new(self, key: Key) -> S:
        who, what = key
        if len(self._known) < self._most:
            found = self._known[key] = self._show(tuple(map(shown, who + what)))
            return found
        labels = (OTHER,) * len(who) + self._fold(what)
        if labels not in self._shown and len(self._shown) >= 2 * self._most:
            labels = (OTHER,) * len(labels)
        return self._show(labels)

    def _show(self, labels: Labels) -> S:
        found = self._shown.get(labels)
        if found is None:
            found = self._shown[labels] = self._make()
        return found


def shown(value: str) -> str:
    """A text as the value of a label."""
    return masked(value[:_MAX_VALUE].encode("utf-8", "replace").decode())


def histograms(
    name: str,
    about: str,
    labels: Labels,
    items: Sequence[tuple[Labels, Histogram]],
) -> Family:
    """A histogram of microseconds, told as seconds; series in which nothing was observed are left out."""
    return Family(name, "histogram", about, labels, [(values, each) for values, each in items if each.count], 1e-6)
