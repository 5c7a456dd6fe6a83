from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tproxy.settings import SettingsFault
from tproxy.store.keyfile import Key, hash_key, load_keys

Load = Callable[..., dict[str, Key]]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_text(text: str, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> dict[str, Key]:
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
        key = "sk-alice"
        models = ["claude-*", "other", "claude-*"]
        expires = 2027-01-01T01:00:00.25+01:00
        team_id = "research"
        user_id = "alice@example.com"
        tags = ["b", "a", "b"]
        metadata = { room = "2.14", floor = 2 }
        blocked = true
    """
    assert load_text(text) == {
        sha256("sk-alice"): Key(
            hash=sha256("sk-alice"),
            alias="alice",
            models=("claude-*", "other"),
            expires_us=int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 + 250_000,
            team_id="research",
            user_id="alice@example.com",
            tags=("b", "a"),
            metadata={"room": "2.14", "floor": 2},
            blocked=True,
        )
    }


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
    assert list(keys) == [sha256("sk-a"), sha256("sk-bob"), sha256("sk-carol")] == [key.hash for key in keys.values()]
    first = keys[hash_key("sk-a")]
    assert (first.alias, first.tags) == ("env:A", ("env:TAG",))  # only the key is looked up elsewhere
    assert first == Key(hash=sha256("sk-a"), alias="env:A", tags=("env:TAG",))


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
    **{
        name: (GOOD + f"{name} = 1", f"key[0].{name}", "not enforced by this version; remove it")
        for name in ("max_budget", "budget_duration", "soft_budget", "rpm_limit", "tpm_limit", "max_parallel_requests")
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
rpm_limit = 1

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
