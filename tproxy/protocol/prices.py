"""The table of prices: what a file such as prices.toml says, and how one file has the first word over another.

A file is checked as a whole: whatever is wrong with it is reported at once. Amounts are exact fractions, written as
text so that no float comes near them. Rows of a model may differ in their days and in the prompt length from which
on they hold, but no two may claim the same case. How a file is written is in docs/prices.md.

What the amounts mean for an answer is in pricing.py. This file does not know where a user's file lies.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from itertools import combinations
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator


class PriceFault(ValueError):
    """A file of prices cannot be used. `faults` has one line for each fault, with its place."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def canonical(name: str) -> str:
    """Without the `[1m]` that some clients write for the long context window; it never changes the price."""
    return name.removesuffix("[1m]")


AMOUNT_DECIMALS: Final = 9  # that an amount may have


def _amount(value: object) -> Fraction:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9]{{1,9}}(\.[0-9]{{1,{AMOUNT_DECIMALS}}})?", value):
        raise ValueError('must be a decimal number written as text, such as "0.125"')
    return Fraction(value)


def _name(value: str) -> str:
    if not value or value != canonical(value):
        raise ValueError("must be the id of a model, without [1m]")
    return value


Amount = Annotated[Fraction, PlainValidator(_amount)]
Name = Annotated[str, AfterValidator(_name)]


class Form(BaseModel):
    """What all tables of a file have in common: exact types, and no key that is not known."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Row(Form):
    """Holds from one day until before another (UTC), for prompts of more than `over` tokens."""

    since: date = Field(date.min, alias="from")
    until: date = date.max
    over: int = Field(-1, ge=0)

    @model_validator(mode="after")
    def _some_days(self) -> Row:
        if self.since >= self.until:
            raise ValueError("`until` must be later than `from`")
        return self


class Price(Row):
    """US dollars per million tokens. A class that is None has no price."""

    input: Amount
    cache_write_5m: Amount | None = None
    cache_write_1h: Amount | None = None
    cache_read: Amount | None = None
    output: Amount


class Fast(Row):
    """What fast mode multiplies all of a model's prices by."""

    factor: Amount


AnyRow = TypeVar("AnyRow", bound=Row)


def holding(rows: Sequence[AnyRow], day: date, prompt: int) -> AnyRow | None:
    """The row for a prompt of so many tokens on that day: of several, the one for the longest prompts."""
    fitting = [row for row in rows if row.since <= day < row.until and row.over < prompt]
    return max(fitting, key=lambda row: row.over, default=None)


def _unambiguous(rows: list[AnyRow]) -> list[AnyRow]:
    for a, b in combinations(rows, 2):
        if a.over == b.over and a.since < b.until and b.since < a.until:
            raise ValueError("two rows hold on the same day")
    return rows


class Model(Form):
    """One model under all its names. `geo` is what `inference_geo` multiplies by, where the model has a say in it.

    `context` is the context window and `max_output` the longest answer, in tokens, where they are known.
    """

    id: Name
    aliases: list[Name] = []
    context: int | None = Field(None, ge=1)
    max_output: int | None = Field(None, ge=1)
    geo: dict[str, Amount] = {}
    fast: Annotated[list[Fast], AfterValidator(_unambiguous)] = []
    price: Annotated[list[Price], Field(min_length=1), AfterValidator(_unambiguous)] = []


class PriceFile(Form):
    """A whole file. What it does not say stays as it was."""

    day: date | None = Field(None, alias="date")
    web_search: Amount | None = None
    batch: Amount | None = None
    geo: dict[str, Amount] = {}
    model: list[Model] = []


_KEYS: Final = sorted(
    {field.alias or name for form in (PriceFile, Model, Price, Fast) for name, field in form.model_fields.items()}
)


@dataclass(frozen=True, slots=True)
class Table:
    """Prices in force. `models` is by name, aliases included. `version` tells tables apart: it is kept with each
    cost."""

    models: Mapping[str, Model]
    geo: Mapping[str, Fraction]
    batch: Fraction = Fraction(1)
    web_search: Fraction = Fraction(0)
    version: str = ""

    def overridden(self, toml_bytes: bytes, place: str) -> Table:
        """The table that results when a file has the first word. See `PriceBook.with_overrides`."""
        file = _read(toml_bytes, place, self.models)
        models = dict(self.models)
        for given in file.model:
            model, names = given, {given.id, *given.aliases}
            known = self.models.get(given.id)
            if known is not None:
                members = given.model_fields_set - {"id", "aliases"}
                model = known.model_copy(update={member: getattr(given, member) for member in members})
                names.update(name for name, old in self.models.items() if old is known)
            models.update(dict.fromkeys(names, model))
        version = hashlib.sha256(toml_bytes).hexdigest()[:8]
        if file.day is not None:
            version = f"{file.day}-{version}"
        return Table(
            models,
            {**self.geo, **file.geo},
            self.batch if file.batch is None else file.batch,
            self.web_search if file.web_search is None else file.web_search,
            f"{self.version}+{version}" if self.version else version,
        )


def _read(toml_bytes: bytes, place: str, known: Mapping[str, Model]) -> PriceFile:
    """Read a file of prices, or raise `PriceFault` with everything that is wrong with it."""
    try:
        content = tomllib.loads(toml_bytes.decode())
    except ValueError as error:  # not UTF-8, or not TOML: the message has the line
        raise PriceFault([f"{place}: {error}"]) from None
    file, faults = None, []
    try:
        file = PriceFile.model_validate(content)
    except ValidationError as error:
        faults = [_sentence(fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]
    faults += _strangers(content.get("model"), known)
    if file is None or faults:
        raise PriceFault([f"{place}: {fault}" for fault in faults])
    return file


def _strangers(entries: object, known: Mapping[str, Model]) -> list[str]:
    """Faults between models, looked for in the raw file so that they show beside all others."""
    faults = []
    seen: Counter[str] = Counter()
    for i, entry in enumerate(entries if isinstance(entries, list) else (), 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue  # found by the form
        if entry["id"] not in known and "price" not in entry:
            faults.append(f"model {i}: {entry['id']!r} is new and needs a `price`")
        aliases = entry.get("aliases")
        names = [entry["id"], *(aliases if isinstance(aliases, list) else ())]
        seen.update({known[name].id if name in known else name for name in names if isinstance(name, str)})
    return faults + [f"model {name!r} stands here {count} times" for name, count in seen.items() if count > 1]


def _sentence(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """A fault of the form in our words, such as `model 3, price 1, input: must be …`."""
    where = "".join(f" {part + 1}" if isinstance(part, int) else f", {part}" for part in loc).removeprefix(", ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _KEYS, n=1)
        message = "unknown key" + (f"; the nearest known one is `{near[0]}`" if near else "")
    return f"{where}: {message.removeprefix('Value error, ')}"
