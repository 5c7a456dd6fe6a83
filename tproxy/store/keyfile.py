"""The virtual keys that are kept in a file, beside those in the database (docs/settings.md, "The key file").

A key is known by its sha256 alone: where the file holds the key itself, it is hashed here and forgotten. What this
version cannot enforce is refused, since a limit that does nothing is worse than none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from tproxy.tomlfile import Place, Table, TomlFile, credential

UNENFORCED = ("max_budget", "soft_budget", "budget_duration", "rpm_limit", "tpm_limit", "max_parallel_requests")


@dataclass(frozen=True, slots=True)
class Key:
    """A virtual key: who holds it, and what it may do.

    `hash` is the sha256 of the key as 64 lowercase hex digits. `models` are names or patterns in which `*` stands
    for any text; none means all. `expires_us` is in microseconds since the epoch.
    """

    hash: str
    alias: str
    models: tuple[str, ...] = ()
    expires_us: int | None = None
    team_id: str | None = None
    user_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    blocked: bool = False


def hash_key(key: str) -> str:
    """Return the id of a virtual key: its sha256 as lowercase hex, as LiteLLM has it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _virtual(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith("sk-"):
        raise ValueError("must begin with sk-")
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


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[
    tuple[Name, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(lambda names: tuple(dict.fromkeys(names))),
]


class KeyTable(Table):
    """A `[[key]]` table as it is written."""

    alias: Name
    key: Annotated[SecretStr, AfterValidator(credential), AfterValidator(_virtual)] | None = None
    hash: Annotated[str, AfterValidator(_sha256)] | None = None
    models: Names = ()
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None
    team_id: Name | None = None
    user_id: Name | None = None
    tags: Names = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    blocked: bool = False


KNOWN: tuple[Place, ...] = (("key",), *(("key", name) for name in KeyTable.model_fields))


def load_keys(path: Path, environ: Mapping[str, str]) -> dict[str, Key]:
    """Read a key file.

    Args:
        path: a TOML file of `[[key]]` tables, closed to group and others.
        environ: where `env:` values come from.

    Returns:
        The keys by their hash.

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
    keys: dict[str, Key] = {}
    first: dict[tuple[bool, str], int] = {}  # where each alias and each hash stands first
    for i, table in enumerate(tables):
        at = ("key", i)
        if not isinstance(table, dict):
            file.add(at, "must be a table")
            continue
        fields = _enforced(file, at, table)
        digest = _digest(file, at, fields)
        for name, value in (("alias", fields.get("alias")), ("key" if "key" in fields else "hash", digest)):
            if isinstance(value, str) and first.setdefault((name == "alias", value), i) != i:
                file.add((*at, name), f"is that of key[{first[name == 'alias', value]}] too")
        checked = file.validate(KeyTable, fields, at, KNOWN)
        if checked is not None and digest is not None:
            keys[digest] = _key(digest, checked)
    file.check()
    return keys


def _enforced(file: TomlFile, at: Place, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with its key resolved, and without the limits, each of which is noted."""
    for name in UNENFORCED:
        if name in table:
            file.add((*at, name), "budgets and limits are not enforced by this version; remove it")
    return {
        name: file.resolve((*at, name), value) if name == "key" else value
        for name, value in table.items()
        if name not in UNENFORCED
    }


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


def _key(digest: str, table: KeyTable) -> Key:
    expires_us = None
    if table.expires is not None:
        expires_us = (table.expires - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return Key(
        hash=digest,
        alias=table.alias,
        models=table.models,
        expires_us=expires_us,
        team_id=table.team_id,
        user_id=table.user_id,
        tags=table.tags,
        metadata=table.metadata,
        blocked=table.blocked,
    )
