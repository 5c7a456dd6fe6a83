"""What a caller may ask for: which models, which routes; and which customers are served.

Every list that has entries has a say: the key's, its team's and its user's, and of models those of the tags too. A name
on a list may hold `*`, which stands for any text; nothing else in it is special, for ids may hold brackets, as in
`claude-opus-4-8[1m]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tproxy.errors import CustomerBlocked, ModelNotAllowed, RouteNotAllowed
from tproxy.flow.identify import Caller, shown
from tproxy.flow.route import PREFIX, Passage
from tproxy.store.subjects import CUSTOMER, KEY, Subject

# LiteLLM's names. The first group is what the passthrough is; a key with only the others opens none of it.
_ALL_OF_THE_PASSTHROUGH = frozenset({"llm_api_routes", "anthropic_routes", "*"})
_WHATEVER_THE_TEAM_MAY = "all-team-models"


def check_route(caller: Caller, passage: Passage) -> None:
    """Raise RouteNotAllowed unless each list of routes has this path, as the upstream knows it or below /anthropic."""
    path = passage.path.decode("ascii")
    for subject in caller.subjects:
        if subject.routes and not _ALL_OF_THE_PASSTHROUGH.intersection(subject.routes):
            spellings = (path, PREFIX.decode() + path)
            if not any(matches(spelling, subject.routes) for spelling in spellings):
                raise RouteNotAllowed(f"The {subject.kind} {shown(subject)!r} may not use {path[:200]!r}.")


def check_model(subjects: Iterable[Subject], passage: Passage, model: str | None) -> None:
    """Raise ModelNotAllowed if there is a list of models and `model` is not certainly on each.

    Only the body of a held path says which model it runs: a batch, say, names one in each of its requests. A path that
    is free and not held runs none.
    """
    if passage.free and not passage.held:
        return
    for subject in subjects:
        allowed = _models(subject)
        by_model = allowed or subject.terms.model_rpm or subject.terms.model_tpm
        who = f"The {subject.kind} {shown(subject)!r}"
        if by_model and (model is None or not passage.held):
            raise ModelNotAllowed(
                f"{who} is held to certain models, or to limits for them, and the request does not say clearly which "
                "one it asks for."
            )
        if allowed and not matches(model or "", allowed):
            raise ModelNotAllowed(f"{who} is not for the model {model!r}. It is for: {', '.join(allowed)}.")


def check_customer(customer: Subject | None) -> None:
    """Raise CustomerBlocked if the one on whose behalf is asked is blocked."""
    if customer is not None and customer.kind == CUSTOMER and customer.blocked:
        raise CustomerBlocked(f"The customer {shown(customer)!r} is blocked. Ask whoever runs this proxy.")


def _models(subject: Subject) -> Sequence[str]:
    if subject.kind == KEY and _WHATEVER_THE_TEAM_MAY in subject.models:
        return ()  # the team's own list is looked at as well
    return subject.models


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Does a name fit one of the patterns?"""
    return any(name == pattern or ("*" in pattern and _fits(name, pattern)) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    """Piece by piece, each at its first place after the one before: no search backs up, however many `*` there are."""
    first, *middle, last = pattern.split("*")
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for piece in middle:
        found = name.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
