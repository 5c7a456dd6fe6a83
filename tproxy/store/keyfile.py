"""The virtual keys that are kept in a file, beside those in the database (docs/settings.md, "The key file").

A key is known by its SHA-256 alone: where the file holds the key itself, it is hashed here and forgotten, but for its
last four characters. The names of fields are those that LiteLLM's API has for a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from tproxy.protocol.keys import chosen_fault, hash_key, last4
from tproxy.setting_kinds import Money, Period
from tproxy.store.subjects import KEY, Budget, Subject, Terms
from tproxy.tomlfile import Place, Table, TomlFile, credential

__all__ = ["hash_key", "load_keys"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _virtual(value: SecretStr) -> SecretStr:
    # However short: whoever keeps the file answers for it.
    if fault := chosen_fault(value.get_secret_value(), shortest=0):
        raise ValueError(fault)
    return value


def _moment(value: Any) -> Any:
    """Accept a TOML date-time, or RFC 3339 text."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.upper())
        except ValueError:
            value = None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be a date and a time with its offset, such as 2027-01-31T12:00:00Z")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("must be a sha256: 64 hex digits")
    return value.lower()


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The table as the management API can show it: dates and times as text."""

    def text(moment: Any) -> str:
        if isinstance(moment, date | time):
            return moment.isoformat()
        raise TypeError

    try:
        return dict(json.loads(json.dumps(value, default=text, allow_nan=False)))
    except ValueError:
        raise ValueError("must hold no inf and no nan") from None


_AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], _AsTuple, AfterValidator(lambda names: tuple(dict.fromkeys(names)))]
Figure = Annotated[int, Field(ge=0, lt=1 << 53)]


class LimitTable(Table):
    """An entry of `budget_limits`: so much in each such period."""

    budget_duration: Period
    max_budget: Money


class KeyTable(Table):
    """A `[[key]]` table as it is written."""

    alias: Name
    key: Annotated[SecretStr, AfterValidator(credential), AfterValidator(_virtual)] | None = None
    hash: Annotated[str, AfterValidator(_sha256)] | None = None
    models: Names = ()
    allowed_routes: Names = ()
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None
    team_id: Name | None = None
    user_id: Name | None = None
    tags: Names = ()
    metadata: Annotated[dict[str, Any], AfterValidator(_as_json)] = Field(default_factory=dict)
    blocked: bool = False
    max_budget: Money | None = None
    soft_budget: Money | None = None
    budget_duration: Period | None = None
    budget_limits: Annotated[tuple[LimitTable, ...], _AsTuple] = ()
    budget_mode: Literal["expected", "hard", "soft"] | None = None
    budget_wait: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] | None = None
    cut_at_budget: bool = False
    rpm_limit: Figure | None = None
    tpm_limit: Figure | None = None
    itpm_limit: Figure | None = None
    otpm_limit: Figure | None = None
    max_parallel_requests: Figure | None = None
    model_rpm_limit: dict[Name, Figure] = Field(default_factory=dict)
    model_tpm_limit: dict[Name, Figure] = Field(default_factory=dict)


KNOWN: tuple[Place, ...] = (
    ("key",),
    *(("key", name) for name in KeyTable.model_fields),
    *(("key", "budget_limits", name) for name in LimitTable.model_fields),
)


def load_keys(path: Path, environ: Mapping[str, str]) -> dict[str, Subject]:
    """Read a key file.

    Args:
        path: a TOML file of `[[key]]` tables, closed to group and others.
        environ: where `env:` values come from.

    Returns:
        The keys by their hash, in the order of the file.

    Raises:
        SettingsFault: with all that is wrong.
    """
    file = TomlFile(path, environ, private=True)
    for name in file.data:
        if name != "key":
            file.unknown((name,), KNOWN)
    tables = file.data.get("key", [])
    if not isinstance(tables, list):
        file.add(("key",), "must be a list of tables: write [[key]]")
        tables = []
    keys: dict[str, Subject] = {}
    first: dict[tuple[bool, str], int] = {}  # where each alias and each hash stands first
    for i, table in enumerate(tables):
        at = ("key", i)
        if not isinstance(table, dict):
            file.add(at, "must be a table")
            continue
        fields = {name: file.resolve((*at, name), value) if name == "key" else value for name, value in table.items()}
        digest = _digest(file, at, fields)
        for name, value in (("alias", fields.get("alias")), ("key" if "key" in fields else "hash", digest)):
            if isinstance(value, str) and first.setdefault((name == "alias", value), i) != i:
                file.add((*at, name), f"is that of key[{first[name == 'alias', value]}] too")
        checked = file.validate(KeyTable, fields, at, KNOWN)
        for place, message in _budget_faults(fields):
            file.add((*at, *place), message)
        if checked is not None and digest is not None:
            keys[digest] = _subject(digest, checked)
    file.check()
    return keys


def _budget_faults(fields: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """What is wrong with a table's budgets as a whole, wherever each of them is right."""
    if "budget_duration" in fields and not {"max_budget", "soft_budget"} & fields.keys():
        yield ("budget_duration",), "is for max_budget or soft_budget, and neither is set"
    seen = [fields.get("budget_duration")] if {"max_budget", "soft_budget"} & fields.keys() else []
    limits = fields.get("budget_limits")
    for i, limit in enumerate(limits if isinstance(limits, list) else ()):
        duration = limit.get("budget_duration") if isinstance(limit, dict) else None
        if isinstance(duration, str) and duration in seen:
            yield ("budget_limits", i, "budget_duration"), "is that of another budget of this key too"
        seen.append(duration)


def _digest(file: TomlFile, at: Place, fields: Mapping[str, Any]) -> str | None:
    """Return the hash that a table names by `key` or `hash`, or note that it has not exactly one, or none that fits."""
    key, digest = fields.get("key"), fields.get("hash")
    if "key" in fields and "hash" in fields:
        file.add((*at, "hash"), "must not stand beside key: a table has one of the two")
    elif "key" not in fields and "hash" not in fields:
        file.add((*at, "key"), "is missing, and so is hash: a table has one of the two")
    elif isinstance(key, str) and not file.faulty((*at, "key")):
        return hash_key(key)
    elif isinstance(digest, str):
        return digest.lower()
    return None


def _subject(digest: str, table: KeyTable) -> Subject:
    return Subject(
        kind=KEY,
        id=digest,
        alias=table.alias,
        last4=(last4(table.key.get_secret_value()) or None) if table.key is not None else None,
        team=table.team_id,
        user=table.user_id,
        terms=_terms(table),
        models=table.models,
        routes=table.allowed_routes,
        tags=table.tags,
        metadata=table.metadata,
        blocked=table.blocked,
        expires_us=None if table.expires is None else (table.expires - _EPOCH) // timedelta(microseconds=1),
        in_file=True,
    )


def _terms(table: KeyTable) -> Terms:
    budgets = [Budget(limit.budget_duration, limit.max_budget) for limit in table.budget_limits]
    if table.max_budget is not None or table.soft_budget is not None:
        budgets.insert(0, Budget(table.budget_duration, table.max_budget, table.soft_budget))
    elif budgets:
        budgets[0] = msgspec.structs.replace(budgets[0], further=True)
    return Terms(
        budgets=tuple(budgets),
        mode=table.budget_mode,
        cut=table.cut_at_budget,
        wait=table.budget_wait,
        rpm=table.rpm_limit,
        tpm=table.tpm_limit,
        itpm=table.itpm_limit,
        otpm=table.otpm_limit,
        parallel=table.max_parallel_requests,
        model_rpm=table.model_rpm_limit,
        model_tpm=table.model_tpm_limit,
    )
