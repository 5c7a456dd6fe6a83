from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tproxy.protocol.keys import compose
from tproxy.settings import SettingsFault
from tproxy.store.keyfile import KeyTable, hash_key, load_keys
from tproxy.store.subjects import KEY, NO_TERMS, Budget, Subject, Terms

Load = Callable[..., dict[str, Subject]]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_text(text: str, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> dict[str, Subject]:
        path = tmp_path / "keys.toml"
        path.write_text(text)
        path.chmod(mode)
        return load_keys(path, environ or {})

    return load_text


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_empty_file_holds_no_keys(load_text: Load) -> None:
    assert load_text("") == {}


def test_a_key_with_everything(load_text: Load) -> None:
    text = """
        [[key]]
        alias = "alice"
        key = "sk-alice-in-wonderland"
        models = ["claude-*", "other", "claude-*"]
        allowed_routes = ["/v1/messages*", "/v1/models"]
        expires = 2027-01-01T01:00:00.25+01:00
        team_id = "research"
        user_id = "alice@example.com"
        tags = ["b", "a", "b"]
        metadata = { room = "2.14", floor = 2, moved = [2025-01-31, 07:30:00] }
        blocked = true
        max_budget = 25
        soft_budget = "20.000000001"
        budget_duration = "1mo"
        budget_limits = [
            { budget_duration = "1d", max_budget = 0.1 },
            { max_budget = 1e-9, budget_duration = "30s" },
        ]
        budget_mode = "hard"
        budget_wait = 0
        cut_at_budget = true
        rpm_limit = 1
        tpm_limit = 2
        itpm_limit = 3
        otpm_limit = 4
        max_parallel_requests = 0
        model_rpm_limit = { "claude-opus-*" = 5 }
        model_tpm_limit = { "claude-haiku-4-5" = 6, other = 7 }
    """
    assert load_text(text) == {
        sha256("sk-alice-in-wonderland"): Subject(
            kind=KEY,
            id=sha256("sk-alice-in-wonderland"),
            alias="alice",
            last4="land",
            models=("claude-*", "other"),
            routes=("/v1/messages*", "/v1/models"),
            expires_us=int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 + 250_000,
            team="research",
            user="alice@example.com",
            tags=("b", "a"),
            metadata={"room": "2.14", "floor": 2, "moved": ["2025-01-31", "07:30:00"]},
            blocked=True,
            terms=Terms(
                budgets=(
                    Budget("1mo", 25_000_000_000, 20_000_000_001),
                    Budget("1d", 100_000_000),
                    Budget("30s", 1),
                ),
                mode="hard",
                cut=True,
                wait=0.0,
                rpm=1,
                tpm=2,
                itpm=3,
                otpm=4,
                parallel=0,
                model_rpm={"claude-opus-*": 5},
                model_tpm={"claude-haiku-4-5": 6, "other": 7},
            ),
            in_file=True,
        )
    }


BUDGETS = {
    "for ever": ("max_budget = 1.5", (Budget(None, 1_500_000_000),)),
    "only a warning": ("soft_budget = 3\nbudget_duration = '7d'", (Budget("7d", None, 3_000_000_000),)),
    "nothing at all": ("max_budget = 0", (Budget(None, 0),)),
    "windows alone": (
        "budget_limits = [{max_budget = 2, budget_duration = '1h'}]",
        (Budget("1h", 2_000_000_000, further=True),),
    ),
    "a window beside one for ever": (
        "max_budget = 9\nbudget_limits = [{max_budget = 2, budget_duration = '1h'}]",
        (Budget(None, 9_000_000_000), Budget("1h", 2_000_000_000)),
    ),
    "no windows": ("budget_limits = []", ()),
}


@pytest.mark.parametrize(("text", "budgets"), BUDGETS.values(), ids=BUDGETS)
def test_budgets(load_text: Load, text: str, budgets: tuple[Budget, ...]) -> None:
    (key,) = load_text(GOOD + text).values()
    assert key.terms == Terms(budgets=budgets)


def test_where_a_key_comes_from(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "bob").write_text("sk-bob\n")
    keys = load_text(
        f"""
        [[key]]
        alias = "env:A"
        key = "env:A"
        tags = ["env:TAG"]
        [[key]]
        alias = "bob"
        key = "file:bob"
        [[key]]
        alias = "carol"
        hash = "{sha256("sk-carol").upper()}"
        """,
        {"A": "sk-a"},
    )
    assert list(keys) == [sha256("sk-a"), sha256("sk-bob"), sha256("sk-carol")] == [key.id for key in keys.values()]
    first = keys[hash_key("sk-a")]
    assert (first.alias, first.tags) == ("env:A", ("env:TAG",))  # only the key is looked up elsewhere
    assert first == Subject(kind=KEY, id=sha256("sk-a"), alias="env:A", tags=("env:TAG",), in_file=True)
    assert first.terms == NO_TERMS


@pytest.mark.parametrize(
    ("expires", "second"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01 00:00:01Z", 1),
        ('"1970-01-01T00:00:01Z"', 1),
        ('"1970-01-01t00:00:01z"', 1),
        ('"1970-01-01T02:00:01+02:00"', 1),
        ("1969-12-31T23:59:59Z", -1),
        ('"0001-01-01T00:00:00+23:59"', -62135683140),
    ],
)
def test_when_a_key_expires(load_text: Load, expires: str, second: int) -> None:
    (key,) = load_text(f"[[key]]\nalias = 'a'\nkey = 'sk-a'\nexpires = {expires}").values()
    assert key.expires_us == second * 1_000_000


HASH = sha256("sk-x")
MISSPELT = compose(bytes(32)).replace("sk-0", "sk-1")
GOOD = "[[key]]\nalias = 'x'\nkey = 'sk-x'\n"
ONE_FAULT = {
    "at the top": ("kees = 1", "kees", "the nearest known one is key"),
    "no list": ("[key]\nalias = 'a'", "key", "write [[key]]"),
    "no tables": ("key = [1]", "key[0]", "must be a table"),
    "misspelt": (GOOD + "aliass = 'b'", "key[0].aliass", "the nearest known one is key.alias"),
    "no alias": ("[[key]]\nkey = 'sk-x'", "key[0].alias", "is missing"),
    "empty alias": ("[[key]]\nalias = ''\nkey = 'sk-x'", "key[0].alias", "must not be empty"),
    "neither": ("[[key]]\nalias = 'a'", "key[0].key", "is missing, and so is hash"),
    "both": (GOOD + f"hash = '{HASH}'", "key[0].hash", "must not stand beside key"),
    "no prefix": ("[[key]]\nalias = 'a'\nkey = 'x'", "key[0].key", "must begin with sk-"),
    "with a space": ("[[key]]\nalias = 'a'\nkey = 'sk-x y'", "key[0].key", "without spaces"),
    "number for a key": ("[[key]]\nalias = 'a'\nkey = 1", "key[0].key", "must be a string"),
    "short hash": ("[[key]]\nalias = 'a'\nhash = 'ab'", "key[0].hash", "64 hex digits"),
    "number for a hash": ("[[key]]\nalias = 'a'\nhash = 1", "key[0].hash", "must be a string"),
    "unset": ("[[key]]\nalias = 'a'\nkey = 'env:NOPE'", "key[0].key", "environment variable NOPE is not set"),
    "no file": ("[[key]]\nalias = 'a'\nkey = 'file:nope'", "key[0].key", "No such file"),
    "same alias": (GOOD + "[[key]]\nalias = 'x'\nkey = 'sk-y'", "key[1].alias", "is that of key[0] too"),
    "same key": (GOOD + "[[key]]\nalias = 'y'\nkey = 'sk-x'", "key[1].key", "is that of key[0] too"),
    "same hash": (GOOD + f"[[key]]\nalias = 'y'\nhash = '{HASH.upper()}'", "key[1].hash", "is that of key[0] too"),
    "models no list": (GOOD + "models = 'm'", "key[0].models", "must be a list"),
    "empty model": (GOOD + "models = ['m', '']", "key[0].models[1]", "must not be empty"),
    "tag of a wrong type": (GOOD + "tags = ['m', ['n']]", "key[0].tags[1]", "must be a string"),
    "metadata no table": (GOOD + "metadata = 1", "key[0].metadata", "must be a table"),
    "blocked no truth": (GOOD + "blocked = 1", "key[0].blocked", "must be true or false"),
    "a date": (GOOD + "expires = 2027-01-01", "key[0].expires", "with its offset"),
    "no offset": (GOOD + "expires = 2027-01-01T00:00:00", "key[0].expires", "with its offset"),
    "no offset, as text": (GOOD + "expires = '2027-01-01T00:00:00'", "key[0].expires", "with its offset"),
    "no moment": (GOOD + "expires = 'tomorrow'", "key[0].expires", "with its offset"),
    "duration": (GOOD + "expires = 30", "key[0].expires", "with its offset"),
    "Anthropic's": ("[[key]]\nalias = 'a'\nkey = 'sk-ant-api03-x'", "key[0].key", "Anthropic's own form"),
    "misspelt key": (f"[[key]]\nalias = 'a'\nkey = '{MISSPELT}'", "key[0].key", "its checksum does not fit"),
    "metadata with inf": (GOOD + "metadata = { a = [inf] }", "key[0].metadata", "no inf and no nan"),
    "negative dollars": (GOOD + "max_budget = -1", "key[0].max_budget", "from 0 to 1000000000 dollars"),
    "nan dollars": (GOOD + "soft_budget = nan", "key[0].soft_budget", "from 0 to 1000000000 dollars"),
    "too many dollars": (GOOD + "max_budget = 1000000001", "key[0].max_budget", "from 0 to 1000000000 dollars"),
    "too fine": (GOOD + "max_budget = 0.1234567891", "key[0].max_budget", "more than 9 decimals"),
    "no dollars": (GOOD + "max_budget = 'ten'", "key[0].max_budget", "an amount of dollars"),
    "true dollars": (GOOD + "max_budget = true", "key[0].max_budget", "an amount of dollars"),
    "no period": (GOOD + "max_budget = 1\nbudget_duration = 'monthly'", "key[0].budget_duration", "such as 30d"),
    "period of a number": (GOOD + "max_budget = 1\nbudget_duration = 30", "key[0].budget_duration", "a string"),
    "endless period": (GOOD + "max_budget = 1\nbudget_duration = '9999w'", "key[0].budget_duration", "a century"),
    "a period for nothing": (GOOD + "budget_duration = '1d'", "key[0].budget_duration", "neither is set"),
    "windows no list": (GOOD + "budget_limits = 1", "key[0].budget_limits", "must be a list"),
    "window no table": (GOOD + "budget_limits = [1]", "key[0].budget_limits[0]", "must be a table"),
    "window without period": (
        GOOD + "budget_limits = [{max_budget=1}]",
        "key[0].budget_limits[0].budget_duration",
        "is missing",
    ),
    "window without end": (
        GOOD + "budget_limits = [{max_budget=1,budget_duration='1d'},{budget_duration='1h'}]",
        "key[0].budget_limits[1].max_budget",
        "is missing",
    ),
    "misspelt in a window": (
        GOOD + "budget_limits = [{max_budget=1,budget_duration='1d',max_budgt=1}]",
        "key[0].budget_limits[0].max_budgt",
        "the nearest known one is key.budget_limits.max_budget",
    ),
    "two windows of a period": (
        GOOD + "budget_limits = [{max_budget=1,budget_duration='1d'},{max_budget=2,budget_duration='1d'}]",
        "key[0].budget_limits[1].budget_duration",
        "is that of another budget",
    ),
    "a window beside its like": (
        GOOD + "soft_budget = 1\nbudget_duration = '1d'\nbudget_limits = [{max_budget=1,budget_duration='1d'}]",
        "key[0].budget_limits[0].budget_duration",
        "is that of another budget",
    ),
    "no mode": (GOOD + "budget_mode = 'strict'", "key[0].budget_mode", "'expected', 'hard' or 'soft'"),
    "long wait": (GOOD + "budget_wait = 601", "key[0].budget_wait", "less than or equal to 600"),
    "cut no truth": (GOOD + "cut_at_budget = 'yes'", "key[0].cut_at_budget", "must be true or false"),
    **{
        f"{name}, {what}": (GOOD + f"{name} = {value}", f"key[0].{name}", message)
        for name in ("rpm_limit", "tpm_limit", "itpm_limit", "otpm_limit", "max_parallel_requests")
        for what, value, message in (
            ("negative", -1, "greater than or equal to 0"),
            ("broken", 1.5, "must be a whole number"),
            ("true", "true", "must be a whole number"),
            ("huge", 1 << 53, "must be less than"),
        )
    },
    **{
        f"{name}, {what}": (GOOD + f"{name} = {value}", f"key[0].{name}{place}", message)
        for name in ("model_rpm_limit", "model_tpm_limit")
        for what, value, place, message in (
            ("no table", 5, "", "must be a table"),
            ("negative", "{ a = -1 }", ".a", "greater than or equal to 0"),
            ("no number", "{ 'claude-*' = 'x' }", '."claude-*"', "must be a whole number"),
        )
    },
}


@pytest.mark.parametrize(("text", "place", "message"), ONE_FAULT.values(), ids=ONE_FAULT)
def test_one_fault(load_text: Load, text: str, place: str, message: str) -> None:
    with pytest.raises(SettingsFault) as caught:
        load_text(text)
    (fault,) = caught.value.faults
    assert fault.place == f"keys.toml: {place}"
    assert message in fault.message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(load_text: Load, mode: int) -> None:
    with pytest.raises(SettingsFault, match="chmod 600 /"):
        load_text(GOOD, mode=mode)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match=r"^keys\.toml: cannot be read: No such file"):
        load_keys(tmp_path / "keys.toml", {})


def test_all_faults_are_told_at_once_and_none_shows_a_key(load_text: Load) -> None:
    text = """\
[[key]]
alias = "a"
key = "sk-canary one"
rpm_limit = -1

[[key]]
alias = "a"
key = "canary-two"
tag = []

[[key]]
alias = "c"
key = ["sk-canary-three"]

[[key]]
key = "sk-canary-four"
hash = "canary-five"
"""
    with pytest.raises(SettingsFault) as caught:
        load_text(text, mode=0o644)
    assert [(fault.place.removeprefix("keys.toml: "), fault.line) for fault in caught.value.faults] == [
        ("keys.toml", None),
        ("key[0].key", 3),
        ("key[0].rpm_limit", 4),
        ("key[1].alias", 7),
        ("key[1].key", 8),
        ("key[1].tag", 9),
        ("key[2].key", 13),
        ("key[3].alias", 15),
        ("key[3].hash", 17),
    ]
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.faults)
    assert "canary" not in shown + repr(caught.value.__context__) + repr(caught.value.__cause__)


def test_no_repr_shows_a_key(load_text: Load) -> None:
    assert "sk-x" not in repr(load_text(GOOD))


def test_the_documentation_names_every_field_and_its_example_is_accepted(load_text: Load) -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    section = text.partition("\n## The key file\n")[2].partition("\n## ")[0]
    example = section.partition("```toml\n")[2].partition("```")[0]
    keys = load_text(example, {"ALICE_KEY": "sk-alice"})
    assert [key.alias for key in keys.values()] == ["alice", "ci"]
    assert keys[sha256("sk-alice")].terms.budgets == (
        Budget("1mo", 25_000_000_000, 20_000_000_000),
        Budget("1d", 5_000_000_000),
    )
    assert [name for name in KeyTable.model_fields if name not in section] == []
