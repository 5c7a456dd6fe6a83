from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date
from fractions import Fraction
from importlib import resources
from pathlib import Path

import pytest

from tproxy.protocol.prices import Model, Price, PriceFault, Table, canonical, holding

EMPTY = Table({}, {})
BUILT_IN = resources.files("tproxy.protocol").joinpath("prices.toml").read_bytes()
MODEL = '[[model]]\nid = "m"\nprice = [{ input = "1", output = "2" }]\n'


def table(text: str) -> Table:
    return EMPTY.overridden(text.encode(), "base.toml")


def amounts(model: Model, day: date = date(2026, 11, 23), prompt: int = 1) -> tuple[object, object]:
    price = holding(model.price, day, prompt)
    assert price is not None
    return price.input, price.output


def test_the_built_in_file_is_sound_and_dated() -> None:
    built = EMPTY.overridden(BUILT_IN, "prices.toml")
    content = tomllib.loads(BUILT_IN.decode())
    names = {name for model in content["model"] for name in (model["id"], *model.get("aliases", ()))}
    assert built.models.keys() == names
    assert built.version.startswith(f"{content['date']}-")
    for model in content["model"]:
        for alias in model.get("aliases", ()):
            assert built.models[alias] is built.models[model["id"]]


def test_amounts_are_exact_fractions() -> None:
    model = table('[[model]]\nid = "m"\nprice = [{ input = "0.125", output = "0.1" }]').models["m"]
    assert amounts(model) == (Fraction(1, 8), Fraction(1, 10))


@pytest.mark.parametrize(
    ("day", "prompt", "since"),
    [
        pytest.param(date(2026, 1, 1), 10, None, id="before the first"),
        pytest.param(date(2026, 1, 2), 10, "low", id="first day of the first"),
        pytest.param(date(2026, 1, 2), 11, "low over 10", id="a tier begins above its bound"),
        pytest.param(date(2026, 1, 2), 21, "low over 20", id="the highest tier that fits"),
        pytest.param(date(2026, 1, 31), 0, "low", id="an empty prompt, and the last day"),
        pytest.param(date(2026, 2, 1), 99, "later", id="`until` no longer counts"),
        pytest.param(date.max, 0, None, id="the end of days"),
    ],
)
def test_which_row_holds(day: date, prompt: int, since: str | None) -> None:
    rows = {
        "low": Price.model_validate({"from": date(2026, 1, 2), "until": date(2026, 2, 1), "input": "1", "output": "1"}),
        "low over 10": Price.model_validate({"until": date(2026, 2, 1), "over": 10, "input": "2", "output": "2"}),
        "low over 20": Price.model_validate({"until": date(2026, 2, 1), "over": 20, "input": "3", "output": "3"}),
        "later": Price.model_validate({"from": date(2026, 2, 1), "input": "4", "output": "4"}),
    }
    found = holding(list(rows.values()), day, prompt)
    assert found == (rows[since] if since else None)


FAULTS: Mapping[str, tuple[str | bytes, list[str]]] = {
    "not UTF-8": (b"date = \xff", ["'utf-8' codec can't decode"]),
    "not TOML": ("a = [", ["Invalid value"]),
    "unknown key at the top": ("web_serch = '1'", ["web_serch: unknown key; the nearest known one is `web_search`"]),
    "unknown key in a model": (MODEL + "alias = ['x']", ["model 1, alias: unknown key; the nearest known one is `al"]),
    "a key like no other": ("zzz = 1", ["zzz: unknown key"]),
    "float": (MODEL.replace('"1"', "1.0"), ["model 1, price 1, input: must be a decimal number written as text"]),
    "integer": ("batch = 1", ["batch: must be a decimal"]),
    "negative": ("batch = '-1'", ["batch: must be a decimal"]),
    "exponent": ("batch = '1e3'", ["batch: must be a decimal"]),
    "other digits": ("batch = '٣'", ["batch: must be a decimal"]),
    "trailing line": ('batch = "1\\n"', ["batch: must be a decimal"]),
    "too long": (f"batch = '{'9' * 10}'", ["batch: must be a decimal"]),
    "a time for a day": ("date = 2026-01-01T00:00:00", ["date: Input should be a valid date"]),
    "text for a day": ("date = '2026-01-01'", ["date: Input should be a valid date"]),
    "model is no list": ("model = 3", ["model: Input should be a valid list"]),
    "model is no table": ("model = [3]", ["model 1: Input should be"]),
    "no id": ("[[model]]\nprice = [{ input = '1', output = '1' }]", ["model 1, id: Field required"]),
    "empty id": (MODEL.replace('"m"', '""'), ["model 1, id: must be the id of a model"]),
    "id with [1m]": (MODEL.replace('"m"', '"m[1m]"'), ["model 1, id: must be the id of a model, without [1m]"]),
    "alias is no text": (MODEL + "aliases = [3]", ["model 1, aliases 1: Input should be a valid string"]),
    "no price": ("[[model]]\nid = 'm'", ["model 1: 'm' is new and needs a `price`"]),
    "empty price": ("[[model]]\nid = 'm'\nprice = []", ["model 1, price: List should have at least 1 item"]),
    "no output price": (MODEL.replace(', output = "2"', ""), ["model 1, price 1, output: Field required"]),
    "days reversed": (
        MODEL.replace("input", "from = 2026-01-02, until = 2026-01-02, input"),
        ["model 1, price 1: `until` must be later than `from`"],
    ),
    "negative bound": (MODEL.replace("input", "over = -5, input"), ["model 1, price 1, over: Input should be"]),
    "two prices at once": (
        MODEL.replace("[{", "[{ until = 2026-03-01, input = '1', output = '1' }, {"),
        ["model 1, price: two rows hold on the same day"],
    ),
    "two fast factors at once": (
        MODEL + "fast = [{ factor = '2' }, { factor = '3' }]",
        ["model 1, fast: two rows hold on the same day"],
    ),
    "one model twice": (MODEL + MODEL, ["model 'm' stands here 2 times"]),
    "one name twice": (MODEL + MODEL.replace('"m"', '"n"') + 'aliases = ["m"]', ["model 'm' stands here 2 times"]),
    "all at once": (
        "web_search = 0.01\n" + MODEL.replace('"2"', '"x"') + "[[model]]\nid = 'm'\n[geo]\nus = 1",
        [
            "web_search: must be a decimal",
            "geo, us: must be a decimal",
            "model 1, price 1, output: must be a decimal",
            "model 2: 'm' is new and needs a `price`",
            "model 'm' stands here 2 times",
        ],
    ),
}


@pytest.mark.parametrize(("content", "starts"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_reported_at_once_with_their_place(content: str | bytes, starts: list[str]) -> None:
    with pytest.raises(PriceFault) as caught:
        EMPTY.overridden(content if isinstance(content, bytes) else content.encode(), "mine.toml")
    assert len(caught.value.faults) == len(starts)
    for fault, start in zip(caught.value.faults, starts, strict=True):
        assert fault.startswith(f"mine.toml: {start}")
    assert str(caught.value) == "\n".join(caught.value.faults)


def test_one_known_model_under_two_names_is_a_fault() -> None:
    base = table(MODEL + 'aliases = ["m-1"]')
    with pytest.raises(PriceFault, match="model 'm' stands here 2 times"):
        base.overridden((MODEL + MODEL.replace('"m"', '"m-1"')).encode(), "mine.toml")


BASE = (
    'web_search = "1"\nbatch = "0.5"\n[geo]\nglobal = "1"\nus = "1"\n'
    + MODEL
    + 'aliases = ["m-1"]\ngeo = { us = "1.1" }\nfast = [{ factor = "2" }]\n'
    + '[[model]]\nid = "other"\nprice = [{ input = "5", output = "6" }]\n'
)


@pytest.mark.parametrize("name", ["m", "m-1"])
def test_an_override_changes_what_it_names_under_all_names(name: str) -> None:
    mine = f'[[model]]\nid = "{name}"\naliases = ["m-2"]\nprice = [{{ input = "7", output = "8" }}]\n[geo]\neu = "3"'
    base = table(BASE)
    changed = base.overridden(mine.encode(), "mine.toml")
    for known in ("m", "m-1", "m-2"):
        model = changed.models[known]
        assert amounts(model) == (7, 8)
        assert model.id == "m"
        assert model.geo == {"us": Fraction(11, 10)}
        assert [row.factor for row in model.fast] == [2]
    assert changed.geo == {"global": 1, "us": 1, "eu": 3}
    assert changed.web_search == 1
    assert changed.batch == Fraction(1, 2)
    assert amounts(changed.models["other"]) == (5, 6)
    assert amounts(base.models["m"]) == (1, 2), "the base stays as it was"


def test_an_override_may_leave_prices_and_change_the_rest() -> None:
    mine = 'web_search = "2"\nbatch = "0.25"\n[[model]]\nid = "m"\ngeo = {}\nfast = []'
    changed = table(BASE).overridden(mine.encode(), "mine.toml")
    assert amounts(changed.models["m-1"]) == (1, 2)
    assert changed.models["m-1"].geo == {}
    assert changed.models["m-1"].fast == []
    assert changed.web_search == 2
    assert changed.batch == Fraction(1, 4)


def test_a_new_model_may_take_over_an_alias() -> None:
    mine = MODEL.replace('"m"', '"n"').replace('"1"', '"9"') + 'aliases = ["m-1"]'
    changed = table(BASE).overridden(mine.encode(), "mine.toml")
    assert amounts(changed.models["m"]) == (1, 2)
    assert amounts(changed.models["m-1"]) == amounts(changed.models["n"]) == (9, 2)


def test_versions_tell_contents_apart() -> None:
    dated = table("date = 2026-01-02\n" + MODEL)
    assert dated.version.startswith("2026-01-02-")
    assert len(dated.version) == len("2026-01-02-") + 8
    assert len(table(MODEL).version) == 8
    assert dated.version != table("date = 2026-01-02\n" + MODEL.replace('"1"', '"2"')).version
    both = dated.overridden(b"date = 2026-02-03", "mine.toml").version
    assert both.startswith(f"{dated.version}+2026-02-03-")


@pytest.mark.parametrize(
    ("name", "plain"),
    [("claude-x[1m]", "claude-x"), ("claude-x", "claude-x"), ("[1m]claude", "[1m]claude"), ("x[2m]", "x[2m]")],
)
def test_the_client_side_suffix_goes(name: str, plain: str) -> None:
    assert canonical(name) == plain


def test_the_documented_example_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prices.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    changed = EMPTY.overridden(BUILT_IN, "prices.toml").overridden(example.encode(), "docs/prices.md")
    assert amounts(changed.models["claude-opus-6-20261201"], date(2026, 12, 1)) == (6, 30)
    assert amounts(changed.models["claude-opus-5-5"], date(2026, 11, 30)) == (4, 20)
    assert amounts(changed.models["claude-opus-5-5"], date(2026, 12, 1)) == (3, 15)
    assert changed.models["claude-opus-5-5"].geo == {"us": Fraction(11, 10)}
    assert changed.geo["eu"] == Fraction(11, 10)
