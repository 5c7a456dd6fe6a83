"""Of which exchanges the bodies are kept.

| setting | which |
|---|---|
| `keys` | all of these callers: a key's alias or hash, or `master`, `anonymous` |
| `sample_rate` | a share of all, by the hash of the exchange's id: the same ones whenever it is asked |
| `errors` | those that did not end well: known at their end only, so they are held until then |

Nobody's bodies are kept against their will. Where message logging is turned off, none of these settings counts: for a
key by its own metadata, its team's or its user's; for one request by a header. There is no header that turns it on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from tproxy.errors import Header
from tproxy.flow.identify import Caller
from tproxy.setting_tables import Capture

KEYS = "keys"
SAMPLE = "sample"
ERRORS = "errors"

# The first is ours, the others are LiteLLM's: its name now, and the one from before.
OPT_OUT_HEADERS = frozenset(
    {
        b"x-tproxy-turn-off-message-logging",
        b"x-litellm-enable-message-redaction",
        b"litellm-enable-message-redaction",
    }
)
TURN_OFF = "turn_off_message_logging"
_NO = frozenset({"", "false", "0", "no", "off"})


class Choice(Struct, frozen=True):
    """The settings, ready to be asked."""

    errors: bool
    below: int  # a hash of 64 bits that is below is in the sample
    keys: frozenset[str]

    @classmethod
    def of(cls, settings: Capture) -> Choice:
        """Read them."""
        return cls(settings.errors, int(settings.sample_rate * 2**64), frozenset(settings.keys))

    @property
    def any(self) -> bool:
        """Is anything kept at all?"""
        return self.errors or self.below > 0 or bool(self.keys)

    def why(self, id: str, caller: Caller) -> str | None:
        """By which setting an exchange is kept, the surest first; ERRORS: if it does not end well."""
        if self.keys and not self.keys.isdisjoint((caller.alias, caller.id, caller.id.removeprefix("key:"))):
            return KEYS
        if self.below and int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) < self.below:
            return SAMPLE
        return ERRORS if self.errors else None


def turned_off(caller: Caller, headers: Sequence[Header]) -> bool:
    """Whether message logging is turned off for who asks, or for this request.

    A header counts unless it says no: whoever sends it wants it.
    """
    if any(_of_metadata(subject.metadata) for subject in caller.subjects):
        return True
    return any(name.lower() in OPT_OUT_HEADERS and _yes(value.decode("latin-1")) for name, value in headers)


def _of_metadata(metadata: Mapping[str, Any]) -> bool:
    """Ours is `turn_off_message_logging`; LiteLLM has it in the variables of a callback, for keys and for teams."""
    if not metadata:
        return False
    logging, settings = metadata.get("logging"), metadata.get("callback_settings")
    places = [metadata, *(logging if isinstance(logging, list) else ()), settings]
    for place in places:
        if isinstance(place, dict):
            variables = place.get("callback_vars")
            inner = variables.get(TURN_OFF) if isinstance(variables, dict) else None
            if _yes(place.get(TURN_OFF)) or _yes(inner):
                return True
    return False


def _yes(value: object) -> bool:
    return value.strip().lower() not in _NO if isinstance(value, str) else bool(value)
