"""The one table of settings: name, type, default, unit and help; and the reading of config.toml into it.

One file serves two readers: hypercorn takes the top-level keys, ours stand under `[tproxy]`. hypercorn ignores
what it does not know, so its keys are checked here too.

Rules kept here:
- The models here and in `setting_tables.py` are the table. `describe` lists it; docs/settings.md and config.toml are
  written from that list.
- A secret is a `SecretStr`; only hypercorn's `keyfile_password` is plain text, and `hypercorn` is kept out of the repr.
- Relative paths are relative to the directory of the file that names them, and absolute from here on.

`access` is decided here, since it decides who gets in: see `_access`. What the settings do is not known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import Field

from tproxy import hypercorn_keys
from tproxy.setting_kinds import Access, Count, Database, FilePath, ReadableFile, Secret
from tproxy.setting_tables import (
    DEFAULT_KEY,
    Alerts,
    Budgets,
    Capture,
    Export,
    Limits,
    Log,
    Metrics,
    Timeouts,
    Upstream,
)
from tproxy.tomlfile import Place, PlacedFault, SettingsFault, Table, TomlFile

__all__ = ["PlacedFault", "Settings", "SettingsFault", "load", "load_books"]


ADVICE = "--config names another file, $TPROXY_CONFIG under hypercorn's own command"


class Settings(Table):
    """All settings, checked. `hypercorn` holds the top-level keys, ours as the defaults."""

    master_key: Secret | None = Field(
        default=None,
        title="secret",
        examples=["env:TPROXY_MASTER_KEY"],
        description="opens the management API, and admits like any key",
    )
    database: Database = Field(default="sqlite:tproxy.db", title="sqlite:PATH", description="where the ledger is kept")
    key_file: FilePath = Field(default=None, examples=["keys.toml"], description="virtual keys kept in a file")
    price_file: ReadableFile = Field(
        default=None, examples=["prices.toml"], description="your own prices, added to or in place of the built-in ones"
    )
    retention_days: Count | None = Field(
        default=None,
        title="days",
        examples=[400],
        description="rows of older exchanges are deleted once all exports have them; sums by day stay; unset: none are",
    )
    access: Access = Field(
        default="keys",
        examples=["keys"],
        description="who gets in; where unset, it follows from the keys and the binds",
    )
    upstream: Upstream = Field(default_factory=Upstream)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    limits: Limits = Field(default_factory=Limits)
    budgets: Budgets = Field(default_factory=Budgets)
    log: Log = Field(default_factory=Log)
    metrics: Metrics = Field(default_factory=Metrics)
    # As an empty table, and not made at once: its path is relative to the file.
    capture: Capture = Field(default=cast(Capture, {}))
    export: Export = Field(default_factory=Export)
    alerts: Alerts = Field(default_factory=Alerts)
    hypercorn: Mapping[str, Any] = Field(default_factory=lambda: dict(hypercorn_keys.DEFAULTS), repr=False)

    @property
    def database_path(self) -> Path:
        """The file of the SQLite database."""
        return Path(self.database.removeprefix("sqlite:"))


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `default` and `example` are TOML; a setting has one of the two."""

    place: Place
    kind: str
    default: str | None
    example: str | None
    help: str


def describe(model: type[Table] = Settings, at: Place = ("tproxy",)) -> Iterator[Setting]:
    """List the settings in the order of the file."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Table):
            yield from describe(kind, (*at, name))
        elif field.description:
            shown = field.examples[0] if field.examples else field.default
            if isinstance(shown, tuple):
                shown = [secret.get_secret_value() for secret in shown]
            text = json.dumps(shown)
            default, example = (None, text) if field.examples else (text, None)
            title = field.title or " | ".join(get_args(kind))
            yield Setting((*at, name), title, default, example, field.description)


def as_toml() -> str:
    """The `[tproxy]` part of config.toml: every setting commented out, at its default or an example."""
    lines: list[str] = []
    table: Place = ()
    for row in describe():
        if row.place[:-1] != table:
            table = row.place[:-1]
            lines += ["", f"[{'.'.join(map(str, table))}]"]
        kind = row.kind if row.default else f"{row.kind}, not set by default"
        lines.append(f"#{row.place[-1]} = {row.default or row.example}  # {kind}: {row.help}")
    return "\n".join(lines[1:]) + "\n"


def as_markdown() -> str:
    """The table of docs/settings.md."""
    lines = ["| setting | type or unit | default | what it is |", "|---|---|---|---|"]
    for row in describe():
        name, kind = ".".join(map(str, row.place)), row.kind.replace("|", "\\|")
        default = f"`{row.default}`" if row.default else f"not set; for example `{row.example}`"
        lines.append(f"| `{name}` | {kind} | {default} | {row.help} |")
    return "\n".join(lines) + "\n"


KNOWN: tuple[Place, ...] = tuple(
    dict.fromkeys(
        [setting.place[:n] for setting in describe() for n in range(1, len(setting.place) + 1)]
        + [(name,) for name in hypercorn_keys.KEYS]
    )
)


def load(path: Path, environ: Mapping[str, str] | None = None, *, sandbox: str | None = None) -> Settings:
    """Read and check config.toml.

    Args:
        path: the file.
        environ: where `env:` values come from; the process's environment if None.
        sandbox: a URL that takes the place of the upstream; no real key is read then.

    Raises:
        SettingsFault: with all that is wrong.
    """
    environ = os.environ if environ is None else environ
    file = TomlFile(path, environ, advice=ADVICE)
    server = hypercorn_keys.read(file, KNOWN)
    at = ("tproxy", "upstream")
    table = file.resolve(("tproxy",), {**file.table(("tproxy",)), "upstream": None})
    upstream = dict(file.table(at))
    api_keys = upstream.pop("api_keys", [DEFAULT_KEY])
    if sandbox is not None:
        upstream["base_url"], api_keys = sandbox, ["sk-ant-sandbox"]

    table["access"] = _access(file, table, server)
    variable = DEFAULT_KEY.removeprefix("env:")
    if api_keys == [DEFAULT_KEY] and not environ.get(variable):
        if table["access"] == "own":
            api_keys = []
        else:
            what = f"the environment variable {variable} is {'empty' if variable in environ else 'not set'}"
            advice = f"export {variable}=…, or try the sandbox, which needs none: make demo, or tproxy serve --sandbox"
            file.add((*at, "api_keys", 0), f"{what}: {advice}")
    elif table["access"] != "own" and api_keys == []:
        file.add((*at, "api_keys"), "must hold a key, unless access is own")
    table["upstream"] = file.resolve(at, upstream | {"api_keys": api_keys})

    if "hypercorn" in table:  # a field of Settings, but no setting
        file.unknown(("tproxy", "hypercorn"), KNOWN)
    table["hypercorn"] = server
    settings = file.validate(Settings, table, ("tproxy",), KNOWN)
    budgets = file.table(("tproxy", "budgets"))
    if "budget_duration" in budgets and "max_budget" not in budgets:
        file.add(("tproxy", "budgets", "budget_duration"), "is for max_budget, which is not set")
    file.check()
    return cast(Settings, settings)


def load_books(path: Path, environ: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """Read what is needed to look at the books: the file of the database, and the time zone of their days.

    Nothing else in the file is judged, and no variable but those that stand for these two is needed.

    Args:
        path: config.toml.
        environ: where `env:` values come from; the process's environment if None.

    Raises:
        SettingsFault: one of the two is at fault, or the file cannot be read.
    """
    file = TomlFile(path, os.environ if environ is None else environ, advice=ADVICE)

    def named(at: Place, name: str) -> dict[str, Any]:
        table = file.table(at)
        return {name: file.resolve((*at, name), table[name])} if name in table else {}

    both = named(("tproxy",), "database") | {"budgets": named(("tproxy", "budgets"), "timezone")}
    settings = cast(Settings, file.validate(Settings, both, ("tproxy",), KNOWN))
    file.check()
    return settings.database_path, settings.budgets.timezone


def _access(file: TomlFile, table: Mapping[str, Any], server: Mapping[str, Any]) -> Any:
    """Who gets in, where the file does not say: never everyone but on loopback addresses."""
    place = ("tproxy", "access")
    binds = [bind for name in hypercorn_keys.BINDS for bind in server.get(name, ())]
    public = next((bind for bind in binds if not hypercorn_keys.is_loopback(bind)), None)
    keyed = "master_key" in table or "key_file" in table
    if "access" in table:
        if table["access"] == "open" and public:
            file.add(place, f"open takes any key, so every bind must be a loopback address; {public} is not")
        elif table["access"] == "keys" and not keyed:
            file.add(place, "keys lets nobody in without a key: set tproxy.master_key or tproxy.key_file")
        return table["access"]
    if keyed:
        return "keys"
    if public:
        file.add(
            place,
            f"is not set, and neither is tproxy.master_key nor tproxy.key_file: set one of them, for {public} is"
            " not a loopback address",
        )
    return "open"
