"""The values of labels, each out of a set that is bounded: models, routes, status codes, errors, and who asked.

| label | its values |
|---|---|
| models | the ids in the price book; every other name is `other`, and no model is the empty text |
| `route` | the known beginnings of paths, and `other` |
| `status_code` | the registered codes with Anthropic's 529; every other is `other` |
| `exception_class` | Anthropic's types, our own codes and words for an end, and `other` |
| who asked | whatever it is: bounded by the number of sets (`series.py`) |

A key goes by the SHA-256 of its text, as in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

from tproxy.errors import Fault
from tproxy.flow.allow import matches
from tproxy.flow.identify import Caller
from tproxy.observe.series import OTHER, Labels
from tproxy.protocol.prices import canonical
from tproxy.protocol.pricing import PriceBook
from tproxy.setting_kinds import label_of_metadata, label_of_tag
from tproxy.setting_tables import Metrics
from tproxy.store import base
from tproxy.store.base import Opening
from tproxy.store.subjects import KEY, TEAM

_REMEMBERED: Final = 256  # lists of tags for which it is known what they match

CALLER: Final = ("hashed_api_key", "api_key_alias", "team", "team_alias", "user", "end_user")

ENDS: Final = (
    base.FINISHED,
    base.REFUSED,
    base.UPSTREAM_ERROR,
    base.INCOMPLETE,
    base.CLIENT_GONE,
    base.CLIENT_FAULT,
    base.UPSTREAM_UNREACHABLE,
    base.UPSTREAM_BROKEN,
    base.UPSTREAM_TIMEOUT,
    base.FAILED,
    base.CUT_AT_BUDGET,
)
CERTAINTIES: Final = (base.EXACT, base.PARTIAL, base.ESTIMATED, base.UNPRICED)

# The longest first.
_ROUTES: Final = (
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/messages",
    "/v1/complete",
    "/v1/models",
    "/v1/files",
    "/v1/skills",
    "/v1/organizations",
    "/v1/oauth",
)
_STATUSES: Final = {int(status): str(int(status)) for status in HTTPStatus} | {499: "499", 529: "529"}
# API reference, "Errors".
_TYPES: Final = (
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "conflict_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
)


def fault_codes(kind: type[Fault] = Fault) -> dict[str, None]:
    """The codes of all faults that tproxy answers with."""
    codes = {kind.code: None}
    for each in kind.__subclasses__():
        codes |= fault_codes(each)
    return codes


_CLASSES: Final = frozenset((*_TYPES, *fault_codes(), *ENDS, "shutdown"))


def route(path: str) -> str:
    """The family of a path, which may begin with `/anthropic`."""
    path = path.removeprefix("/anthropic")
    for known in _ROUTES:
        if path.startswith(known) and path[len(known) : len(known) + 1] in ("", "/"):
            return known
    return OTHER


def status(code: int | None) -> str:
    """A status code; that of a client which left before there was one is 499."""
    return "499" if code is None else _STATUSES.get(code, OTHER)


def error(word: str) -> str:
    """What kind of error it was."""
    return word if word in _CLASSES else OTHER


def model(name: str | None, prices: PriceBook) -> str:
    """A model by its id in the price book."""
    if name is None:
        return ""
    name = canonical(name)
    return name if name in prices.table.models else OTHER


class Who:
    """Who asked, by the labels that the settings name.

    Attributes:
        names: of the labels.
    """

    def __init__(self, settings: Metrics) -> None:
        never = settings.disable_end_user_cost_tracking or settings.disable_end_user_cost_tracking_prometheus_only
        self._end_users = settings.enable_end_user_cost_tracking_prometheus_only and not never
        self._metadata = [tuple(name.split(".")[1:]) for name in settings.metadata_labels]
        self._tags = [(pattern,) for pattern in settings.tags]
        self._marked = lru_cache(_REMEMBERED)(self._marks)
        metadata = [label_of_metadata(name) for name in settings.metadata_labels]
        self.names: Labels = (*CALLER, *metadata, *(label_of_tag(pattern) for pattern in settings.tags))

    def of(self, caller: Caller, opening: Opening | None) -> Labels:
        """The values for a request; `opening` is None where it was refused."""
        team = next((each.alias for each in caller.subjects if each.kind == TEAM), None)
        customer = opening.customer if self._end_users and opening is not None else None
        known = (
            caller.id.partition(":")[2] or caller.id,
            caller.alias or "",
            caller.team or "",
            team or "",
            caller.user or "",
            customer or "",
        )
        if not self._metadata and not self._tags:
            return known
        told = [_told(caller, path) for path in self._metadata]
        tags, agent = (caller.tags, None) if opening is None else (opening.tags, opening.user_agent)
        return (*known, *told, *(self._marked(tags, agent) if self._tags else ()))

    def _marks(self, tags: Labels, agent: str | None) -> Labels:
        """For each pattern whether a tag matches; LiteLLM makes two more of who the client says it is."""
        if agent is not None:
            tags = (*tags, f"User-Agent: {agent.partition('/')[0]}", f"User-Agent: {agent}")
        return tuple("true" if any(matches(tag, pattern) for tag in tags) else "false" for pattern in self._tags)


def _told(caller: Caller, path: Labels) -> str:
    """What the metadata of a key says, or else that of its team."""
    for kind in (KEY, TEAM):
        for subject in caller.subjects:
            value: Any = subject.metadata if subject.kind == kind else None
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, bool):
                return "true" if value else "false"
            if isinstance(value, str | int | float):
                return str(value)
    return ""


Prices = Callable[[], PriceBook]
