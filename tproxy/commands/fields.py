"""What a key can be told from a command line, and the fields of the API that this comes to.

Each option has its type here, since `create` and `update` have the same ones. Amounts and times are checked before
anything is sent, so that a slip is named by its option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from tproxy import period
from tproxy.money import to_dollars, to_nano


class Mode(StrEnum):
    """How much of a budget a running exchange holds."""

    expected = "expected"
    hard = "hard"
    soft = "soft"


class Role(StrEnum):
    """What a key may do with the management API."""

    admin = "admin"
    viewer = "viewer"


Alias = Annotated[str | None, typer.Option(help="A name for people; no two keys have the same.")]
Team = Annotated[str | None, typer.Option(help="The team that the key belongs to.")]
User = Annotated[str | None, typer.Option(help="The user that the key belongs to.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="A model, or a pattern with *, that it may use; can be repeated.")
]
Budget = Annotated[str | None, typer.Option(metavar="USD", help="What it may spend, in all or --every so long.")]
Every = Annotated[str | None, typer.Option(metavar="PERIOD", help="When the budget starts anew: 1d, 7d, 1mo.")]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="PERIOD=USD", help="One more budget, such as 1d=5; can be repeated."),
]
Soft = Annotated[str | None, typer.Option(metavar="USD", help="Warn from here on; refuses nothing.")]
ModeOption = Annotated[Mode | None, typer.Option("--mode", help="How much of its budgets a running exchange holds.")]
Cut = Annotated[bool | None, typer.Option("--cut/--no-cut", help="End running streams where a budget ends.")]
Rpm = Annotated[int | None, typer.Option(min=0, help="Requests in a minute.")]
Tpm = Annotated[int | None, typer.Option(min=0, help="Tokens in a minute, input and output.")]
Itpm = Annotated[int | None, typer.Option(min=0, help="Input tokens in a minute.")]
Otpm = Annotated[int | None, typer.Option(min=0, help="Output tokens in a minute.")]
Parallel = Annotated[int | None, typer.Option(min=0, help="Requests at a time.")]
Expires = Annotated[str | None, typer.Option(metavar="TIME", help="It ends so long from now: 12h, 30d.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag for all its exchanges; can be repeated.")]
Routes = Annotated[list[str] | None, typer.Option("--route", help="A path that it may use; can be repeated.")]
RoleOption = Annotated[Role | None, typer.Option("--role", help="Let it use the management API too.")]

# The names that `--unset` takes, and the fields that lose their value.
UNSET: Final[Mapping[str, str]] = {
    "alias": "key_alias",
    "team": "team_id",
    "user": "user_id",
    "model": "models",
    "budget": "max_budget",
    "every": "budget_duration",
    "limit": "budget_limits",
    "soft": "soft_budget",
    "mode": "budget_mode",
    "rpm": "rpm_limit",
    "tpm": "tpm_limit",
    "itpm": "itpm_limit",
    "otpm": "otpm_limit",
    "parallel": "max_parallel_requests",
    "expires": "duration",
    "tag": "tags",
    "route": "allowed_routes",
    "role": "role",
}
_LISTS: Final = ("models", "budget_limits", "tags", "allowed_routes")


def request(
    *,
    alias: str | None,
    team: str | None,
    user: str | None,
    models: Sequence[str] | None,
    budget: str | None,
    every: str | None,
    limits: Sequence[str] | None,
    soft: str | None,
    mode: Mode | None,
    cut: bool | None,
    rpm: int | None,
    tpm: int | None,
    itpm: int | None,
    otpm: int | None,
    parallel: int | None,
    expires: str | None,
    tags: Sequence[str] | None,
    routes: Sequence[str] | None,
    role: Role | None,
) -> dict[str, Any]:
    """The fields of the API for what was given.

    Raises:
        typer.BadParameter: a value is none that its option can have.
    """
    fields: dict[str, Any] = {
        "key_alias": alias,
        "team_id": team,
        "user_id": user,
        "models": list(models or ()) or None,
        "max_budget": _usd("--budget", budget),
        "budget_duration": lasting("--every", every),
        "budget_limits": [_limit(text) for text in limits or ()] or None,
        "soft_budget": _usd("--soft", soft),
        "budget_mode": mode and mode.value,
        "cut_at_budget": cut,
        "rpm_limit": rpm,
        "tpm_limit": tpm,
        "itpm_limit": itpm,
        "otpm_limit": otpm,
        "max_parallel_requests": parallel,
        "duration": lasting("--expires", expires),
        "tags": list(tags or ()) or None,
        "allowed_routes": list(routes or ()) or None,
        "role": role and role.value,
    }
    return {name: value for name, value in fields.items() if value is not None}


def unset(names: Sequence[str]) -> dict[str, Any]:
    """The fields of the API that take back what was set before.

    Raises:
        typer.BadParameter: there is no such name.
    """
    for name in names:
        if name not in UNSET:
            raise typer.BadParameter(f"{name!r} is none of: {', '.join(UNSET)}", param_hint="--unset")
    return {UNSET[name]: [] if UNSET[name] in _LISTS else None for name in names}


def lasting(option: str, text: str | None) -> str | None:
    """A period as it is, once it is known to be one.

    Raises:
        typer.BadParameter: it is none.
    """
    if text is not None:
        try:
            period.parse(text)
        except ValueError as fault:
            raise typer.BadParameter(f"{text!r} {fault}", param_hint=option) from None
    return text


def _usd(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return to_dollars(to_nano(text))
    except ValueError as fault:
        raise typer.BadParameter(f"{text!r} {fault}", param_hint=option) from None


def _limit(text: str) -> dict[str, Any]:
    window, equals, amount = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} must be a period and an amount, such as 1d=5", param_hint="--limit")
    return {"budget_duration": lasting("--limit", window), "max_budget": _usd("--limit", amount)}
