"""What is told: an alert, which says that an episode has begun or has ended; and its forms for people and programs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

Severity = Literal["warning", "critical"]

SOFT_BUDGET: Final = "soft_budget_reached"
BUDGET: Final = "budget_reached"
KEY_EXPIRY: Final = "key_expires_soon"
SPEND: Final = "spend_unusual"
ERRORS: Final = "upstream_errors"
UNPRICED: Final = "model_unpriced"
LEDGER: Final = "ledger_in_trouble"
EXPORT: Final = "export_in_trouble"
CREDENTIAL: Final = "credential_refused"
TEST: Final = "test"

KINDS: Final = (SOFT_BUDGET, BUDGET, KEY_EXPIRY, SPEND, ERRORS, UNPRICED, LEDGER, EXPORT, CREDENTIAL)

# The end of the others says nothing that somebody waits for: a key has expired or was renewed, a day is over, a model
# was not asked for any more.
END_IS_TOLD: Final = frozenset({SOFT_BUDGET, BUDGET, ERRORS, LEDGER, EXPORT, CREDENTIAL})

_CRITICAL: Final = frozenset({BUDGET, ERRORS, LEDGER, CREDENTIAL})

Figure = int | float | str | None


def severity_of(kind: str) -> Severity:
    """How bad it is: critical where requests fail or may fail."""
    return "critical" if kind in _CRITICAL else "warning"


@dataclass(frozen=True, slots=True)
class Of:
    """Whom an alert is of: `kind` is one of `store/subjects.py`, or `model`, `credential`, `export`, `caller`; the
    proxy itself has the kind `proxy` and no id. `part` tells several of one subject apart, such as its budgets."""

    kind: str = "proxy"
    id: str = ""
    part: str = ""

    def __str__(self) -> str:
        """As it stands in the table `episode`; see `parse`."""
        if self == Of():
            return ""
        return f"{self.kind}:{self.part}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Of:
        """What `str` made. Neither a kind nor a part has a colon in it."""
        if not text:
            return cls()
        kind, _, rest = text.partition(":")
        part, _, id = rest.partition(":")
        return cls(kind, id, part)


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule's word on one cause.

    Attributes:
        firm: it is there. Else it is about to go: an episode that runs goes on, and none begins.
        summary: one sentence.
        figures: what it was decided on.
    """

    kind: str
    of: Of
    summary: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    firm: bool = True


@dataclass(frozen=True, slots=True)
class Alert:
    """That an episode has begun, or (`resolved_us`) has ended; microseconds since the epoch.

    `name` is what people call whom it is of.
    """

    kind: str
    severity: Severity
    of: Of
    name: str
    summary: str
    figures: Mapping[str, Figure]
    began_us: int
    resolved_us: int | None = None

    @property
    def id(self) -> str:
        """The same each time it is sent, and that of no other alert."""
        end = "resolved" if self.resolved_us is not None else "began"
        said = f"{self.kind} {self.of} {self.began_us} {end}"
        return f"alert_{hashlib.sha256(said.encode()).hexdigest()[:32]}"

    @property
    def title(self) -> str:
        """A few words in one line."""
        state = "resolved" if self.resolved_us is not None else self.severity
        return f"[tproxy] {state}: {self.kind.replace('_', ' ')}" + (f": {self.name}" if self.name else "")

    def as_json(self) -> dict[str, Any]:
        """For programs; times as RFC 3339 has them."""
        return {
            "type": "alert.resolved" if self.resolved_us is not None else "alert.began",
            "id": self.id,
            "kind": self.kind,
            "severity": self.severity,
            "subject": {"kind": self.of.kind, "id": self.of.id, "name": self.name},
            "summary": self.summary,
            "figures": dict(self.figures),
            "began": moment(self.began_us),
            "resolved": None if self.resolved_us is None else moment(self.resolved_us),
        }


def moment(us: int) -> str:
    """A time as RFC 3339 has it, in whole seconds."""
    return f"{datetime.fromtimestamp(us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
