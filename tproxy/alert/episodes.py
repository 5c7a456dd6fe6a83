"""Episodes: what makes of many looks at the same cause one alert, and one more when it has gone.

A *look* gives all findings of one kind at a time; what was open and is in none of them has ended. Where the ends
cannot be looked at, since what was seen is only heard of (a model without a price), an episode *fades*.

What is open is kept in memory and, so that a restart tells nothing twice, written to the ledger's file; `unwritten`
says what has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tproxy.alert.alert import END_IS_TOLD, Alert, Finding, Of, severity_of
from tproxy.store.episodes import Episode

OPEN_MAX: Final = 10_000  # of all kinds together; past it, nothing new is told

_SEEN_US: Final = 3_600_000_000  # the time at which a cause was last seen is written as often


class Episodes:
    """Those that are open.

    Args:
        rows: those that an earlier process left open.
        name: what people call whom an alert is of.

    Attributes:
        left_out: how many were not told, since too many are open.
    """

    def __init__(self, rows: Iterable[Episode], name: Callable[[Of], str]) -> None:
        self.left_out = 0
        self._open = {(row.kind, row.subject): row for row in rows}
        self._name = name
        self._put: set[tuple[str, str]] = set()
        self._gone: set[tuple[str, str]] = set()

    @property
    def open(self) -> Sequence[Episode]:
        """Those that are open now."""
        return tuple(self._open.values())

    def subjects(self, kind: str) -> set[str]:
        """Whom the open ones of a kind are of."""
        return {subject for each, subject in self._open if each == kind}

    def look(self, kind: str, findings: Iterable[Finding], now_us: int, *, whole: bool = True) -> list[Alert]:
        """Take all findings of one kind; returns what is to be told.

        Args:
            whole: these are all. Else what is not among them may be there all the same, and nothing ends.
        """
        told, there = [], set()
        for finding in findings:
            there.add(str(finding.of))
            told += self.hear(finding, now_us)
        return (
            told if not whole else told + [self._end(kind, subject, now_us) for subject in self.subjects(kind) - there]
        )

    def hear(self, finding: Finding, now_us: int) -> list[Alert]:
        """Take one finding alone; returns what is to be told."""
        at = finding.kind, str(finding.of)
        before = self._open.get(at)
        if before is not None:
            if now_us - before.last_us >= _SEEN_US:
                self._set(Episode(*at, before.began_us, now_us))
            return []
        if not finding.firm:
            return []
        if len(self._open) >= OPEN_MAX:
            self.left_out += 1
            return []
        self._set(Episode(*at, now_us, now_us))
        severity, name = severity_of(finding.kind), self._name(finding.of)
        return [Alert(finding.kind, severity, finding.of, name, finding.summary, finding.figures, now_us)]

    def fade(self, kind: str, after_us: int, now_us: int) -> None:
        """End those of a kind whose cause was not seen for so long; nobody is told."""
        for each in self.open:
            if each.kind == kind and now_us - each.last_us > after_us:
                self._end(kind, each.subject, now_us)

    def unwritten(self) -> tuple[list[Episode], list[tuple[str, str]]]:
        """What has to be written: those to put, and those to delete."""
        return [self._open[at] for at in self._put], list(self._gone)

    def written(self, put: Iterable[Episode], gone: Iterable[tuple[str, str]]) -> None:
        """So much of it has been."""
        self._put -= {(each.kind, each.subject) for each in put if self._open.get((each.kind, each.subject)) == each}
        self._gone -= set(gone)

    def _set(self, episode: Episode) -> None:
        at = episode.kind, episode.subject
        self._open[at] = episode
        self._put.add(at)
        self._gone.discard(at)

    def _end(self, kind: str, subject: str, now_us: int) -> Alert:
        at = kind, subject
        episode = self._open.pop(at)
        self._put.discard(at)
        self._gone.add(at)
        of = Of.parse(subject)
        name = self._name(of)
        what = f"{kind.replace('_', ' ')}{f' ({name})' if name else ''}"
        return Alert(kind, severity_of(kind), of, name, f"Resolved: {what}.", {}, episode.began_us, now_us)


def is_told(alert: Alert) -> bool:
    """Whether anybody but the log hears of it: of some kinds the end says nothing."""
    return alert.resolved_us is None or alert.kind in END_IS_TOLD
