"""The table of settings, config.toml and docs/settings.md say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import trustme

from tproxy.hypercorn_keys import KEYS
from tproxy.settings import Settings, as_markdown, as_toml, describe, load

ROOT = Path(__file__).parent.parent
ENVIRON = {"ANTHROPIC_API_KEY": "sk-ant-real"}


def test_the_shipped_file_holds_the_table() -> None:
    shipped = (ROOT / "config.toml").read_text()
    assert shipped.endswith("\n" + as_toml())


def test_the_shipped_file_loads_and_sets_hypercorns_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text((ROOT / "config.toml").read_text())
    shipped = load(path, ENVIRON)
    assert tomllib.loads(path.read_text()).keys() - {"tproxy"} == shipped.hypercorn.keys()
    path.write_text("")
    assert shipped == load(path, ENVIRON)


def test_uncommenting_the_defaults_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    shipped = (ROOT / "config.toml").read_text()
    path.write_text(shipped)
    before = load(path, ENVIRON)
    text, count = re.subn(r"(?m)^#(\w+ = (?!.*not set by default))", r"\1", shipped)
    assert count == sum(row.default is not None for row in describe())
    path.write_text(text)
    assert load(path, ENVIRON) == before


def test_the_examples_are_good(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "prices.toml").touch()
    path = tmp_path / "config.toml"
    text = re.sub(r"(?m)^#(\w+ = )", r"\1", (ROOT / "config.toml").read_text())
    path.write_text(text)
    settings = load(path, {name: f"https://{name}" for name in re.findall(r"env:(\w+)", text)} | ENVIRON)
    assert settings.key_file == tmp_path / "keys.toml"


def test_the_documents_hold_the_table() -> None:
    assert as_markdown() in (ROOT / "docs/settings.md").read_text()


def test_the_documents_say_what_each_of_hypercorns_keys_does() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    assert [name for name in KEYS if f"`{name}`" not in text and f"`{name} = " not in text] == []


def test_every_setting_is_described() -> None:
    def leaves(value: Any, at: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not isinstance(value, dict):
            return [at]
        return [leaf for name, each in value.items() for leaf in leaves(each, (*at, name))]

    dumped = Settings().model_dump(exclude={"hypercorn"})
    assert [row.place for row in describe()] == leaves(dumped, ("tproxy",))
    assert all(row.help and row.kind and (row.default is None) != (row.example is None) for row in describe())
