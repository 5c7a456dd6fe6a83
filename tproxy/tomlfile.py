"""A TOML file under judgement: config.toml and the key file are read through this.

Rules kept here:
- All that is wrong is told at once, each fault with its place, and an unknown key with the nearest known one.
- One mistake is told once: a fault inside a place that has a fault already is dropped.
- `"env:NAME"` and `"file:PATH"` are resolved before a value is judged.
- No message and no chained exception holds a value, for it may be a secret: messages speak of places and rules.

This file knows no setting, and nothing of what the values are for.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

# Where a value stands: ("tproxy", "upstream", "api_keys", 0) for the first of tproxy.upstream.api_keys.
Place = tuple[str | int, ...]

Model = TypeVar("Model", bound=BaseModel)


class Table(BaseModel):
    """Base of the models that a TOML table is read into: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )


@dataclass(frozen=True, slots=True)
class PlacedFault:
    """One thing that is wrong, and where: `config.toml: tproxy.timeouts.idle`, and the line if it is known."""

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        return f"{self.place}{line}: {self.message}"


class SettingsFault(Exception):
    """Everything that is wrong with a file. As text: one line for each fault."""

    def __init__(self, faults: Collection[PlacedFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


class TomlFile:
    """Reads a file and gathers what is wrong with it, for `check` to raise at once.

    Args:
        path: the file. Its name stands in the places; relative paths in it are relative to its directory.
        environ: where `env:` values come from.
        private: whether the file must be closed to group and others.
        advice: what to do where the file cannot be read.

    Raises:
        SettingsFault: the file cannot be read, or is not TOML.
    """

    def __init__(self, path: Path, environ: Mapping[str, str], *, private: bool = False, advice: str = "") -> None:
        path = path.absolute()
        self.directory = path.parent
        self.data: dict[str, Any] = {}
        self._name = path.name
        self._environ = environ
        self._lines: dict[Place, int] = {}
        self._told: set[Place] = set()
        self._faults: list[PlacedFault] = []
        unreadable = None
        try:
            if private and path.stat().st_mode & 0o077:
                self.add((), f"group or others can use this file; run: chmod 600 {path}")
            text = path.read_bytes().decode()
            self.data = tomllib.loads(text)
            self._lines = _line_numbers(text)
        except OSError as error:
            unreadable = f"cannot be read: {error.strerror}: {path}" + (f"; {advice}" if advice else "")
        except UnicodeDecodeError as error:
            unreadable = f"is not UTF-8 text, at byte {error.start}"
        except tomllib.TOMLDecodeError as error:
            unreadable = f"is not TOML: {error}"
        if unreadable is not None:
            self.add((), unreadable)
            self.check()

    def add(self, place: Place, message: str) -> None:
        """Note a fault at `place`; () is the file as a whole."""
        around = [place[:n] for n in range(len(place), 0, -1)]
        if self._told.intersection(around):
            return
        self._told.add(place)
        line = next((self._lines[each] for each in around if each in self._lines), None)
        where = f"{self._name}: {_dotted(place)}" if place else self._name
        self._faults.append(PlacedFault(where, message, line))

    def table(self, place: Place) -> Mapping[str, Any]:
        """Return the table at `place`, empty if there is none. That it is something else is noted."""
        value: Any = self.data
        for part in place:
            value = value.get(part, {})
            if not isinstance(value, dict):
                self.add(place, "must be a table")
                return {}
        return value  # type: ignore[no-any-return]

    def faulty(self, place: Place) -> bool:
        """Whether anything at or below `place` is at fault."""
        return any(told[: len(place)] == place for told in self._told)

    def unknown(self, place: Place, known: Collection[Place], what: str = "unknown key") -> None:
        """Note an unknown key, with the nearest of the `known` places (which hold no list positions)."""
        plain = tuple(part for part in place if isinstance(part, str))
        beside = [each for each in known if each[:-1] == plain[:-1]]
        for pool, likeness in ((known, 1.0), (beside, 0.6), (known, 0.6), (beside, 0.0)):
            named = {str(each[-1]): each for each in pool}
            if match := difflib.get_close_matches(plain[-1], named, 1, likeness):
                nearest = named[match[0]]
                top = " at the top of the file" if len(nearest) == 1 < len(plain) else ""
                what += f"; the nearest known one is {_dotted(nearest)}{top}"
                break
        self.add(place, what)

    def resolve(self, place: Place, value: Any) -> Any:
        """Return `value` with each `env:NAME` and `file:PATH` in it replaced by the text that it names.

        What cannot be resolved is noted and stays as it is. Texts from files lose the white space around them.
        """
        if isinstance(value, dict):
            return {key: self.resolve((*place, key), each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.resolve((*place, i), each) for i, each in enumerate(value)]
        if isinstance(value, str) and value.startswith("env:"):
            return self._variable(place, value.removeprefix("env:")) or value
        if isinstance(value, str) and value.startswith("file:"):
            return self._text(place, value.removeprefix("file:")) or value
        return value

    def _variable(self, place: Place, name: str) -> str | None:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):  # perhaps a secret, put in the wrong place
            self.add(place, "env: must be followed by the name of an environment variable")
        elif name not in self._environ:
            self.add(place, f"the environment variable {name} is not set")
        elif not self._environ[name]:
            self.add(place, f"the environment variable {name} is empty")
        else:
            return self._environ[name]
        return None

    def _text(self, place: Place, name: str) -> str | None:
        path = self.directory / name
        try:
            text = path.read_text("utf-8").strip()
        except OSError as error:
            self.add(place, f"the file cannot be read: {error.strerror}: {path}")
        except ValueError:  # a NUL in the name, or bytes that are no text
            self.add(place, "the file cannot be read: it is not UTF-8 text")
        else:
            if text:
                return text
            self.add(place, f"the file is empty: {path}")
        return None

    def validate(self, model: type[Model], data: Any, at: Place, known: Collection[Place]) -> Model | None:
        """Return `data` as a `model`, whose validators get the directory as context.

        What is wrong is noted at its place below `at`; then None is returned.
        """
        try:
            return model.model_validate(data, context=self.directory)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
        for each in details:
            place = (*at, *each["loc"])
            if each["type"] == "extra_forbidden":
                self.unknown(place, known)
            else:
                said = each["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
                self.add(place, _SAID.get(each["type"], said))
        return None

    def check(self) -> None:
        """Raise what was noted, in the order of the file.

        Raises:
            SettingsFault: something was.
        """
        if self._faults:
            raise SettingsFault(sorted(self._faults, key=lambda fault: fault.line or 0))


def is_readable(path: str | Path) -> bool:
    """Whether `path` is a file that this process can read; also False for what can be no path."""
    return os.path.isfile(path) and os.access(path, os.R_OK)  # unlike Path.is_file, raises nothing


def credential(value: SecretStr) -> SecretStr:
    """A pydantic validator: return `value` if it can stand in a header field as it is (RFC 9110 section 5.5)."""
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces, and not empty")
    return value


# pydantic speaks of Python where TOML's user expects TOML.
_SAID = {
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "finite_number": "must be finite",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "is_instance_of": "must be a string that holds a path",
    "missing": "is missing",
    "model_type": "must be a table",
    "path_type": "must be a string that holds a path",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
}


def _dotted(place: Place) -> str:
    """A place as TOML would write it: `tproxy.upstream.api_keys[0]`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[\w-]+", part) else json.dumps(part))
    return text


def _line_numbers(text: str) -> dict[Place, int]:
    """The lines of tables and keys, by their look: a hint for people, nothing is decided by it."""
    lines: dict[Place, int] = {}
    seen: Counter[Place] = Counter()
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"""\s*(?:(?P<open>\[\[?)(?P<table>[\w\s."'-]+)\]|(?P<key>[\w\s."'-]+)=)""", line)
        if match is None:
            continue
        place: Place = tuple(part.strip(" \t\"'") for part in (match["table"] or match["key"]).split("."))
        if match["key"]:
            lines.setdefault((*table, *place), number)
            continue
        table = place
        if match["open"] == "[[":
            table = (*place, seen[place])
            seen[place] += 1
        lines.setdefault(table, number)
    return lines
