"""What programs send to the management API: one model for each kind of subject, with LiteLLM's names.

Every field may be missing or null. In `…/new`, `…/generate` and `…/regenerate` null is as good as missing. In
`…/update` what is missing stays as it is, and null takes back what was set: a limit, an alias, a list, an expiry.
(`blocked`, `metadata` and `spend` stay as they are with null.)

A field that is not named here is ignored, unless the table in `translation.py` names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from tproxy.manage.fields import (
    Count,
    Counts,
    Dollars,
    Ids,
    Lasting,
    MaybeText,
    Metadata,
    Moment,
    Seconds,
    Spent,
    Text,
    Texts,
)


class Asked(BaseModel):
    """A request body. What is not a field is kept aside in `model_extra`, for the table."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True, strict=False)


AskedT = TypeVar("AskedT", bound=Asked)


def without_nulls(asked: AskedT) -> AskedT:
    """The same body, with null as good as missing."""
    given = asked.model_copy()
    given.__pydantic_fields_set__ = {name for name in asked.model_fields_set if getattr(asked, name) is not None}
    return given


class Window(BaseModel):
    """One of several budgets."""

    budget_duration: Lasting
    max_budget: Dollars


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


MaybeLasting = Annotated[Lasting | None, BeforeValidator(_empty_is_none)]


class TermsAsked(Asked):
    """What a subject is held to. Amounts are dollars, limits are for 60 seconds."""

    max_budget: Dollars | None = Field(
        default=None, description="how much may be spent in each budget_duration, in dollars"
    )
    soft_budget: Dollars | None = Field(
        default=None, description="is written to the log when it is passed, refuses nothing"
    )
    budget_duration: MaybeLasting = Field(default=None, description="when the budget starts anew; without it, never")
    budget_limits: Annotated[list[Window], Field(max_length=20)] | None = Field(
        default=None, description="further budgets, each for a period of its own; they are set and taken back together"
    )
    budget_mode: Literal["expected", "hard", "soft"] | None = Field(
        default=None, description="how much an exchange holds"
    )
    cut_at_budget: bool | None = Field(default=None, description="end running streams at the budget's end")
    budget_wait: Seconds | None = Field(
        default=None, description="seconds that an exchange waits for money held by others"
    )
    rpm_limit: Count | None = Field(default=None, description="requests")
    tpm_limit: Count | None = Field(default=None, description="input and output tokens")
    itpm_limit: Count | None = Field(default=None, description="input tokens")
    otpm_limit: Count | None = Field(default=None, description="output tokens")
    max_parallel_requests: Count | None = None
    model_rpm_limit: Counts | None = Field(default=None, description="requests by model")
    model_tpm_limit: Counts | None = Field(default=None, description="tokens by model")

    @field_validator("budget_limits")
    @classmethod
    def _each_period_once(cls, windows: list[Window] | None, info: ValidationInfo) -> list[Window] | None:
        periods = [window.budget_duration for window in windows or ()]
        if info.data.get("max_budget") is not None or info.data.get("soft_budget") is not None:
            periods.append(info.data.get("budget_duration") or "")
        if len(periods) != len(set(periods)):
            raise ValueError("must name each period once, and not that of max_budget")
        return windows


class SharedTerms(TermsAsked):
    """Terms of its own, or those of a budget that others have too."""

    budget_id: MaybeText = Field(default=None, description="the budget that it shares; in place of limits of its own")


class KeyAsked(SharedTerms):
    """The fields of a key."""

    key_alias: MaybeText = None
    user_id: MaybeText = Field(
        default=None, description="whose it is: any id, also one of elsewhere; limits of a user need one of /user/new"
    )
    team_id: MaybeText = Field(default=None, description="a team that exists, whose limits hold for the key too")
    models: Texts | None = Field(default=None, description="names, with * for any text; none means all")
    allowed_routes: Texts | None = None
    tags: Texts | None = None
    metadata: Metadata | None = None
    blocked: bool | None = None
    duration: MaybeLasting = Field(default=None, description="how long it opens anything")
    expires: Moment | None = Field(default=None, description="from when on it opens nothing")
    role: Literal["admin", "viewer"] | None = Field(default=None, description="what it may do with the management API")
    key_type: Literal["default", "llm_api", "management", "read_only"] | None = None
    spend: Spent | None = Field(default=None, description="what the budgets count as spent")


class KeyNew(KeyAsked):
    key: MaybeText = Field(default=None, description="a key of your own choice, beginning with sk-")


class KeyUpdate(KeyAsked):
    key: MaybeText = Field(default=None, description="the key or its hash; or key_alias alone, which then says which")


class KeyRegenerate(KeyAsked):
    key: MaybeText = Field(default=None, description="the key or its hash")
    new_key: MaybeText = Field(default=None, description="a key of your own choice, beginning with sk-")
    grace_period: MaybeLasting = Field(default=None, description="how long the old key goes on")


class KeyNamed(Asked):
    key: Text


class KeysNamed(Asked):
    """Keys or their hashes, and aliases; either may be null."""

    keys: Ids | None = None
    key_aliases: Ids | None = None


class ResetTo(Asked):
    reset_to: Spent


class Member(Asked):
    """Somebody in a team, by id or by address."""

    role: Literal["admin", "user"] = "user"
    user_id: MaybeText = None
    user_email: MaybeText = None


class TeamFields(SharedTerms):
    team_alias: MaybeText = None
    models: Texts | None = None
    tags: Texts | None = None
    metadata: Metadata | None = None
    blocked: bool | None = None
    spend: Spent | None = None


class TeamNew(TeamFields):
    team_id: MaybeText = None
    members_with_roles: Annotated[list[Member], Field(max_length=1000)] | None = None


class TeamUpdate(TeamFields):
    team_id: Text


class TeamNamed(Asked):
    team_id: Text


class TeamsNamed(Asked):
    team_ids: Annotated[Ids, Field(min_length=1)]


class MemberAdd(Asked):
    team_id: Text
    member: Member | Annotated[list[Member], Field(min_length=1, max_length=1000)]


class MemberDelete(Asked):
    team_id: Text
    user_id: MaybeText = None
    user_email: MaybeText = None


class InTeam(Asked):
    team_id: Text
    user_role: Literal["admin", "user"] = "user"


class UserFields(SharedTerms):
    user_alias: MaybeText = None
    user_email: MaybeText = None
    user_role: (
        Literal["proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer", "customer", "team"] | None
    ) = None
    models: Texts | None = None
    allowed_routes: Texts | None = None
    metadata: Metadata | None = None
    blocked: bool | None = None
    spend: Spent | None = None


class UserNew(UserFields):
    user_id: MaybeText = None
    teams: Annotated[list[Text | InTeam], Field(max_length=100)] | None = None
    auto_create_key: bool | None = Field(default=True, description="make a key for the user too")
    key_alias: MaybeText = None
    duration: MaybeLasting = None
    tags: Texts | None = None


class UserUpdate(UserFields):
    user_id: MaybeText = None


class UsersNamed(Asked):
    user_ids: Annotated[Ids, Field(min_length=1)]


class CustomerAsked(SharedTerms):
    """A customer: budget_id, or limits of its own."""

    user_id: Text
    alias: MaybeText = None
    blocked: bool | None = None
    spend: Spent | None = None


class BudgetNew(TermsAsked):
    budget_id: MaybeText = None


class BudgetUpdate(TermsAsked):
    budget_id: Text


class BudgetsNamed(Asked):
    budgets: Ids


class BudgetNamed(Asked):
    id: Text


class TagAsked(SharedTerms):
    name: Text
    description: Annotated[str, Field(max_length=4096)] | None = None
    models: Texts | None = None


class TagNamed(Asked):
    name: Text


class TagsNamed(Asked):
    names: Ids
