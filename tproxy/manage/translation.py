"""LiteLLM's names for what tproxy holds, both ways, in one table.

    request body ──► changed() ──► Subject          Subject, standings, tally ──► row() ──► response

Some fields of LiteLLM's are kept and given back, and nothing is done with them (`KEPT`). Some promise a limit or a
check that does not exist here (`REFUSED`): they are refused where they hold anything, since a limit that does nothing
is worse than none. All others are ignored, and named in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from tproxy.manage.asked import Asked, TermsAsked
from tproxy.manage.faults import Invalid, Unprocessable
from tproxy.manage.fields import bounded, iso, until_us
from tproxy.money import to_dollars
from tproxy.protocol.keys import masked
from tproxy.store.base import Standing
from tproxy.store.money import Tally
from tproxy.store.subjects import (
    ADMIN,
    CUSTOMER,
    KEY,
    NO_TERMS,
    TAG,
    TEAM,
    TERMS,
    USER,
    VIEWER,
    Budget,
    Subject,
    Terms,
)

# LiteLLM's name: ours in `Terms`.
LIMITS: Final[Mapping[str, str]] = {
    "budget_mode": "mode",
    "cut_at_budget": "cut",
    "budget_wait": "wait",
    "rpm_limit": "rpm",
    "tpm_limit": "tpm",
    "itpm_limit": "itpm",
    "otpm_limit": "otpm",
    "max_parallel_requests": "parallel",
    "model_rpm_limit": "model_rpm",
    "model_tpm_limit": "model_tpm",
}
# These four together are ours `Terms.budgets`: the first three are one budget, the last has the others.
BUDGETS: Final = ("max_budget", "soft_budget", "budget_duration", "budget_limits")

# LiteLLM's name: ours in `Subject`, for each kind.
_SHARED: Final = {"budget_id": "terms_of"}
_GROUP: Final = {**_SHARED, "models": "models", "metadata": "metadata", "blocked": "blocked"}
NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    KEY: {
        "key_alias": "alias",
        "user_id": "user",
        "team_id": "team",
        **_GROUP,
        "allowed_routes": "routes",
        "tags": "tags",
        "role": "role",
        "expires": "expires_us",
    },
    TEAM: {"team_alias": "alias", **_GROUP, "tags": "tags"},
    USER: {"user_alias": "alias", **_GROUP, "allowed_routes": "routes"},
    CUSTOMER: {"alias": "alias", "blocked": "blocked", **_SHARED},
    TAG: {"models": "models", **_SHARED},
    TERMS: {},
}
# LiteLLM's name for the id.
IDS: Final[Mapping[str, str]] = {
    KEY: "token",
    TEAM: "team_id",
    USER: "user_id",
    CUSTOMER: "user_id",
    TAG: "name",
    TERMS: "budget_id",
}
# What LiteLLM always answers with, whether or not anybody asked to keep it.
_ABSENT: Final[Mapping[str, Mapping[str, Any]]] = {
    KEY: {"aliases": {}, "config": {}, "permissions": {}, "organization_id": None},
    TEAM: {"organization_id": None, "model_aliases": None},
    USER: {"user_email": None, "user_role": None},
    CUSTOMER: {"allowed_model_region": None, "default_model": None},
    TAG: {"description": None},
    TERMS: {},
}
# What null does not take back.
_STAYS: Final = frozenset({"metadata", "blocked"})

KEY_TYPES: Final[Mapping[str, tuple[str | None, bool]]] = {
    "default": (None, True),
    "llm_api": (None, True),
    "management": (ADMIN, False),
    "read_only": (VIEWER, False),
}
USER_ROLES: Final[Mapping[str, str | None]] = {"proxy_admin": ADMIN, "proxy_admin_viewer": VIEWER}

log = structlog.get_logger("tproxy.manage")

KEPT: Final = frozenset(
    """
    organization_id project_id agent_id aliases config permissions access_group_ids object_permission
    allowed_cache_controls guardrails disable_global_guardrails policies prompts router_settings
    enable_prompt_caching rpm_limit_type tpm_limit_type default_estimated_output_tokens
    default_estimated_output_tokens_per_model rotation_interval send_invite_email key_type user_email user_role
    sso_user_id organizations model_aliases team_member_permissions default_model description
    """.split()  # noqa: SIM905
)
REFUSED: Final = frozenset(
    """
    model_max_budget end_user_budget_id budget_fallbacks throttle_on_budget_exceeded temp_budget_increase
    temp_budget_expiry max_budget_in_team team_member_budget team_member_budget_duration team_member_rpm_limit
    team_member_tpm_limit team_member_key_duration tpd_limit tag_rpm_limit tag_tpm_limit mcp_rpm_limit
    enforced_params auto_rotate allowed_passthrough_routes denied_passthrough_routes allowed_model_region
    """.split()  # noqa: SIM905
)


def changed(subject: Subject, asked: Asked, now_us: int) -> Subject:
    """The subject with what was asked for.

    Raises:
        Invalid: a field is asked for that cannot be had.
        Unprocessable: a field that is kept cannot be kept.
    """
    check(asked)
    given = asked.model_fields_set
    changes: dict[str, Any] = {}
    for name, ours in NAMES[subject.kind].items():
        if name in given:
            value = getattr(asked, name)
            if value is None:
                if name in _STAYS:
                    continue
                value = () if ours in ("models", "routes", "tags") else None
            changes[ours] = tuple(value) if isinstance(value, list) else value
    kept = _kept(subject, asked)
    if kept != subject.kept:
        changes["kept"] = kept
    if subject.kind == KEY:
        changes |= _of_key(asked, changes, now_us)
    if subject.kind == USER and "user_role" in given:
        changes["role"] = USER_ROLES.get(getattr(asked, "user_role", None) or "")
    if isinstance(asked, TermsAsked):
        terms = changed_terms(subject.terms, asked)
        if terms != subject.terms:
            changes["terms"] = terms
    return msgspec.structs.replace(subject, **changes)


def _of_key(asked: Asked, changes: Mapping[str, Any], now_us: int) -> dict[str, Any]:
    """What a key's `duration` and `key_type` come to beside the `changes` that were asked for by name."""
    more: dict[str, Any] = {}
    lasts = getattr(asked, "duration", None)
    if changes.get("expires_us") is None:
        if lasts is not None:
            more["expires_us"] = until_us(lasts, now_us)
        elif "duration" in asked.model_fields_set:
            more["expires_us"] = None
    if (key_type := getattr(asked, "key_type", None)) is not None:
        role, more["inference"] = KEY_TYPES[key_type]
        more["role"] = changes.get("role") or role
        if key_type == "llm_api" and not changes.get("routes"):
            more["routes"] = ("llm_api_routes",)
    return more


def check(asked: Asked) -> None:
    """Raise Invalid if a body holds a field that promises what does not exist here."""
    for name, value in (asked.model_extra or {}).items():
        if name in REFUSED and value is not None and value is not False and value not in ("", [], {}):
            raise Invalid(
                f"{name} has no effect in tproxy, and a limit that does nothing is worse than none.", param=name
            )
    if unknown := sorted(set(asked.model_extra or ()) - KEPT - REFUSED):
        log.warning("fields that mean nothing here were ignored", fields=[masked(name[:64]) for name in unknown[:16]])


def _kept(subject: Subject, asked: Asked) -> dict[str, Any]:
    known = {name: getattr(asked, name) for name in KEPT & asked.model_fields_set if name in type(asked).model_fields}
    others = {name: value for name, value in (asked.model_extra or {}).items() if name in KEPT}
    kept = {**subject.kept, **others, **known}
    kept = {name: value for name, value in kept.items() if value is not None}
    try:
        return dict(bounded(kept))
    except ValueError as fault:
        raise Unprocessable(f"{', '.join(sorted(others)) or 'the fields together'}: {fault}") from None


def own_terms(asked: TermsAsked) -> list[str]:
    """The limits that a body holds."""
    names = (*BUDGETS, *LIMITS)
    return [name for name in names if name in asked.model_fields_set and getattr(asked, name) not in (None, [], {})]


def changed_terms(terms: Terms, asked: TermsAsked) -> Terms:
    """The terms with what was asked for."""
    given = asked.model_fields_set
    changes: dict[str, Any] = {}
    for name, ours in LIMITS.items():
        if name in given:
            value = getattr(asked, name)
            changes[ours] = getattr(NO_TERMS, ours) if value is None else value
    if given.intersection(BUDGETS):
        changes["budgets"] = _budgets(terms.budgets, asked)
    return msgspec.structs.replace(terms, **changes)


def _budgets(budgets: Sequence[Budget], asked: TermsAsked) -> tuple[Budget, ...]:
    """The primary budget, of which `max_budget`, `soft_budget` and `budget_duration` speak, then `budget_limits`.

    Each of the two stays as it is when the other changes.

    Raises:
        Unprocessable: both would have a budget for one period.
    """
    given = asked.model_fields_set
    before, others = _primary(budgets)
    first = Budget(
        period=asked.budget_duration if "budget_duration" in given else before.period,
        limit_nano=asked.max_budget if "max_budget" in given else before.limit_nano,
        soft_nano=asked.soft_budget if "soft_budget" in given else before.soft_nano,
    )
    figures = (first.limit_nano, first.soft_nano, asked.budget_duration)
    if given.intersection(("max_budget", "soft_budget")) and all(each is None for each in figures):
        # Once its last figure is taken back it goes, and its period with it, unless that is asked for.
        first = Budget()
    if "budget_limits" in given:
        others = [Budget(each.budget_duration, each.max_budget) for each in asked.budget_limits or ()]
    if first == Budget():
        return tuple(msgspec.structs.replace(each, further=not at) for at, each in enumerate(others))
    if first.period in [each.period for each in others]:
        param = "budget_limits" if "budget_limits" in given else "budget_duration"
        raise Unprocessable(f"{param}: max_budget and budget_limits must not both have this period", param=param)
    return first, *others


def _primary(budgets: Sequence[Budget]) -> tuple[Budget, Sequence[Budget]]:
    """The primary budget, empty if there is none, and the others."""
    if not budgets or budgets[0].further:
        return Budget(), [msgspec.structs.replace(each, further=False) for each in budgets]
    return budgets[0], budgets[1:]


def row(subject: Subject, standings: Sequence[Standing] = (), tally: Tally | None = None) -> dict[str, Any]:
    """A subject in LiteLLM's form, without a key's hash.

    `spend` is what its first budget counts as spent in the present period; without a budget, what all its exchanges
    came to.
    """
    tally = tally or Tally()
    spent = standings[0].spent_nano if standings else tally.visible_nano
    page: dict[str, Any] = {**_ABSENT[subject.kind], **subject.kept}
    for name, ours in NAMES[subject.kind].items():
        value = getattr(subject, ours)
        page[name] = list(value) if isinstance(value, tuple) else value
    page |= terms_row(subject.terms)
    page["budget_reset_at"] = iso(standings[0].reset_us) if standings else None
    page["created_at"], page["created_by"] = iso(subject.created_us), subject.created_by
    page["updated_at"], page["updated_by"] = iso(subject.updated_us), subject.updated_by
    if subject.kind == TERMS:
        return {"budget_id": subject.id, **page}
    page["spend"] = to_dollars(spent)
    page["budgets"] = [_standing(each) for each in standings]
    page["litellm_budget_table"] = _budget_table(subject)
    if subject.kind == KEY:
        return _key_row(page, subject, tally)
    return {IDS[subject.kind]: subject.id, **page}


def terms_row(terms: Terms) -> dict[str, Any]:
    """Terms in LiteLLM's form."""
    first, others = _primary(terms.budgets)
    page: dict[str, Any] = {
        "max_budget": _dollars(first.limit_nano),
        "soft_budget": _dollars(first.soft_nano),
        "budget_duration": first.period,
        "budget_limits": [{"budget_duration": each.period, "max_budget": _dollars(each.limit_nano)} for each in others],
    }
    return page | {name: getattr(terms, ours) for name, ours in LIMITS.items()}


def _budget_table(subject: Subject) -> dict[str, Any] | None:
    """The terms where LiteLLM has them for customers, and for whoever shares a budget."""
    if subject.terms_of is None and (subject.kind != CUSTOMER or subject.terms == NO_TERMS):
        return None
    return {"budget_id": subject.terms_of, **terms_row(subject.terms)}


def _key_row(page: dict[str, Any], subject: Subject, tally: Tally) -> dict[str, Any]:
    page["key_name"] = f"sk-...{subject.last4}" if subject.last4 else None
    page["expires"] = iso(subject.expires_us)
    page["budget_estimate"] = _estimate(tally)
    page["last_active"] = iso(tally.last_us) if tally.last_us else None
    page["replaced_by"] = subject.replaced_by
    page["in_key_file"] = subject.in_file
    return page


def _estimate(tally: Tally) -> dict[str, Any] | None:
    """How well the cost of this key's exchanges is foretold: sums in dollars, and the mean error of one."""
    count = tally.expected_exchanges
    if not count:
        return None
    return {
        "exchanges": count,
        "expected": to_dollars(tally.expected_nano),
        "actual": to_dollars(tally.expected_cost_nano),
        "mean_error": to_dollars(tally.expected_error_nano // count),
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "budget_duration": standing.period,
        "max_budget": _dollars(standing.limit_nano),
        "soft_budget": _dollars(standing.soft_nano),
        "spent": to_dollars(standing.spent_nano),
        "held": to_dollars(standing.held_nano),
        "reset_at": iso(standing.reset_us),
    }


def _dollars(nano: int | None) -> float | None:
    return None if nano is None else to_dollars(nano)
