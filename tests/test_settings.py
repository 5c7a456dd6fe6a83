from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from tproxy.settings import Settings, SettingsFault, load, load_books

ENVIRON = {"ANTHROPIC_API_KEY": "sk-ant-real"}

Load = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_text(text: str, environ: Mapping[str, str] = ENVIRON, **kwargs: Any) -> Settings:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load(path, environ, **kwargs)

    return load_text


@pytest.fixture
def faults(load_text: Load) -> Callable[..., dict[str, str]]:
    """The faults of a text: messages by place, without the file's name."""

    def faults(text: str, environ: Mapping[str, str] = ENVIRON, **kwargs: Any) -> dict[str, str]:
        with pytest.raises(SettingsFault) as caught:
            load_text(text, environ, **kwargs)
        return {fault.place.removeprefix("config.toml: "): fault.message for fault in caught.value.faults}

    return faults


Faults = Callable[..., dict[str, str]]


def test_the_defaults(load_text: Load, tmp_path: Path) -> None:
    settings = load_text("")
    assert settings.access == "open"
    assert settings.master_key is None
    assert settings.database_path == tmp_path / "tproxy.db"
    assert settings.upstream.base_url == "https://api.anthropic.com"
    assert [key.get_secret_value() for key in settings.upstream.api_keys] == ["sk-ant-real"]
    assert settings.timeouts.model_dump() == {
        "connect": 10,
        "first_byte": 600,
        "idle": 600,
        "body": 300,
        "write": 60,
        "head": 10,
        "queue": 10,
        "drain": 600,
    }
    assert settings.limits.max_body_bytes == 32 << 20
    assert settings.budgets.mode == "expected"
    assert settings.hypercorn == {
        "bind": ["127.0.0.1:4000"],
        "worker_class": "trio",
        "graceful_timeout": 600,
        "keep_alive_timeout": 75,
        "backlog": 2048,
    }


def test_all_can_be_set(load_text: Load, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "prices.toml").touch()
    (tmp_path / "secret").write_text("sk-ant-filed\n")
    settings = load_text(
        """
        bind = "0.0.0.0:80"
        [tproxy]
        master_key = "env:MASTER"
        database = "env:DATABASE"
        key_file = "sub/keys.toml"
        price_file = "prices.toml"
        access = "keys"
        [tproxy.upstream]
        base_url = "HTTP://[::1]:8080/a/b%20c/"
        api_keys = ["env:KEY", "file:secret", "sk-ant-plain"]
        on_disconnect = "drain"
        ca_file = "ca.pem"
        [tproxy.timeouts]
        idle = 0.5
        write = 3
        [tproxy.budgets]
        wait = 0
        """,
        {"MASTER": "sk-master", "DATABASE": "sqlite:/t.db", "KEY": "sk-ant-env"},
    )
    assert settings.master_key is not None
    assert settings.master_key.get_secret_value() == "sk-master"
    assert settings.database_path == Path("/t.db")
    assert settings.key_file == tmp_path / "sub/keys.toml"
    assert settings.price_file == tmp_path / "prices.toml"
    assert settings.upstream.base_url == "http://[::1]:8080/a/b%20c"
    keys = [key.get_secret_value() for key in settings.upstream.api_keys]
    assert keys == ["sk-ant-env", "sk-ant-filed", "sk-ant-plain"]
    assert settings.upstream.on_disconnect == "drain"
    assert settings.upstream.ca_file == tmp_path / "ca.pem"
    assert (settings.timeouts.idle, settings.timeouts.write) == (0.5, 3.0)
    assert settings.budgets.wait == 0


def test_a_relative_path_to_the_file_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert load(Path("config.toml"), ENVIRON).database_path == tmp_path / "tproxy.db"


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-process")
    assert load(tmp_path / "config.toml").upstream.api_keys[0].get_secret_value() == "sk-ant-process"


ONE_FAULT = {
    "misspelt": ("[tproxy.upstream]\nbase_urll = 'x'", "tproxy.upstream.base_urll", "tproxy.upstream.base_url"),
    "misspelt table": ("[tproxy.timeout]\nidle = 1", "tproxy.timeout", "tproxy.timeouts"),
    "in another table": ("[tproxy.upstream]\nconnect = 1", "tproxy.upstream.connect", "tproxy.timeouts.connect"),
    "ours at the top": ("master_key = 'x'", "master_key", "tproxy.master_key"),
    "hypercorn's among ours": ("[tproxy]\nbind = 'x'", "tproxy.bind", "bind at the top"),
    "like nothing": ("[tproxy.log]\nzzz = 1", "tproxy.log.zzz", "nearest known one is tproxy.log."),
    "no setting": ("[tproxy]\nhypercorn = {}", "tproxy.hypercorn", "unknown key"),
    "table for a value": ("[tproxy.database]", "tproxy.database", "must be a string"),
    "value for a table": ("[tproxy]\nlog = 1", "tproxy.log", "must be a table"),
    "value for the upstream": ("[tproxy]\nupstream = 1", "tproxy.upstream", "must be a table"),
    "value for tproxy": ("tproxy = 1", "tproxy", "must be a table"),
    "list for tproxy": ("[[tproxy]]", "tproxy", "must be a table"),
    "text for a number": ("[tproxy.timeouts]\nidle = '1'", "tproxy.timeouts.idle", "must be a number"),
    "truth for a number": ("[tproxy.timeouts]\nidle = true", "tproxy.timeouts.idle", "must be a number"),
    "fraction for a whole number": ("[tproxy.limits]\nmax_headers = 1.5", "tproxy.limits.max_headers", "whole number"),
    "zero seconds": ("[tproxy.timeouts]\nidle = 0", "tproxy.timeouts.idle", "must be greater than 0"),
    "no deadline": ("[tproxy.timeouts]\nidle = inf", "tproxy.timeouts.idle", "must be finite"),
    "not a number": ("[tproxy.timeouts]\nidle = nan", "tproxy.timeouts.idle", "must be"),
    "no budget": ("[tproxy.budgets]\nbudget_duration = '1d'", "tproxy.budgets.budget_duration", "is for max_budget"),
    "bad period": ("[tproxy.budgets]\nmax_budget = 1\nbudget_duration = '1x'", "tproxy.budgets.budget_duration", "30d"),
    "negative money": ("[tproxy.budgets]\nmax_budget = -1", "tproxy.budgets.max_budget", "dollars"),
    "negative wait": ("[tproxy.budgets]\nwait = -1", "tproxy.budgets.wait", "greater than or equal to 0"),
    "zero bytes": ("[tproxy.limits]\nmax_body_bytes = 0", "tproxy.limits.max_body_bytes", "must be greater than 0"),
    "unknown word": ("[tproxy.log]\nlevel = 'loud'", "tproxy.log.level", "'debug', 'info', 'warning' or 'error'"),
    "unknown access": ("[tproxy]\naccess = 'all'", "tproxy.access", "must be 'keys', 'open' or 'own'"),
    "unknown zone": ("[tproxy.budgets]\ntimezone = 'Mars/Base'", "tproxy.budgets.timezone", "IANA"),
    "zone outside": ("[tproxy.budgets]\ntimezone = '../x'", "tproxy.budgets.timezone", "IANA"),
    "postgres": ("[tproxy]\ndatabase = 'postgresql://h/d'", "tproxy.database", "not supported by this version"),
    "other database": ("[tproxy]\ndatabase = 'tproxy.db'", "tproxy.database", "must be sqlite:PATH"),
    "memory": ("[tproxy]\ndatabase = 'sqlite::memory:'", "tproxy.database", "must be sqlite:PATH"),
    "empty path": ("[tproxy]\nkey_file = ''", "tproxy.key_file", "must not be empty"),
    "number for a path": ("[tproxy]\nkey_file = 1", "tproxy.key_file", "must be a string that holds a path"),
    "no directory": ("[tproxy]\ndatabase = 'sqlite:no/t.db'", "tproxy.database", "a directory that does not exist: /"),
    "file for a directory": ("[tproxy]\ndatabase = 'sqlite:config.toml/t.db'", "tproxy.database", "does not exist: /"),
    "no such prices": ("[tproxy]\nprice_file = 'p.toml'", "tproxy.price_file", "not a file that can be read: /"),
    "directory of prices": ("[tproxy]\nprice_file = '.'", "tproxy.price_file", "not a file that can be read: /"),
    "no path": ('[tproxy]\nprice_file = "a\\u0000"', "tproxy.price_file", "not a file that can be read"),
    "path too long": (f"[tproxy]\nprice_file = '{'p' * 300}'", "tproxy.price_file", "not a file that can be read"),
    "no such certificate": ("certfile = 'c.pem'", "certfile", "must name a file that can be read"),
    "no such ca": ("[tproxy.upstream]\nca_file = 'x.pem'", "tproxy.upstream.ca_file", "not a file that can be read"),
    "no certificate": ("[tproxy.upstream]\nca_file = 'config.toml'", "tproxy.upstream.ca_file", "holds no certificate"),
    "key not in a list": ("[tproxy.upstream]\napi_keys = 'k'", "tproxy.upstream.api_keys", "must be a list"),
    "no keys": ("[tproxy.upstream]\napi_keys = []", "tproxy.upstream.api_keys", "must hold a key"),
    "key with a space": ("[tproxy.upstream]\napi_keys = ['a', 'b c']", "tproxy.upstream.api_keys[1]", "without spaces"),
    "empty master key": ("[tproxy]\nmaster_key = ''", "tproxy.master_key", "not empty"),
    "unset variable": ("[tproxy]\nmaster_key = 'env:M'", "tproxy.master_key", "environment variable M is not set"),
    "empty variable": ("[tproxy]\nmaster_key = 'env:E'", "tproxy.master_key", "environment variable E is empty"),
    "no variable": ("[tproxy]\nmaster_key = 'env:'", "tproxy.master_key", "must be followed by the name"),
    "variable in a word": ("[tproxy.log]\nlevel = 'env:L'", "tproxy.log.level", "variable L is not set"),
    "variable in a list": ("[tproxy.upstream]\napi_keys = ['env:K']", "tproxy.upstream.api_keys[0]", "K is not set"),
    "no such file": ("[tproxy]\nmaster_key = 'file:nope'", "tproxy.master_key", "No such file"),
    "file is a directory": ("[tproxy]\nmaster_key = 'file:.'", "tproxy.master_key", "Is a directory"),
    "file name with NUL": ("[tproxy]\nmaster_key = 'file:a\\u0000'".replace("'", '"'), "tproxy.master_key", "cannot"),
    "unset address": ("bind = 'env:NOPE'", "bind", "NOPE is not set"),
    "open to all": ("bind = '0.0.0.0:1'\n[tproxy]\naccess = 'open'", "tproxy.access", "0.0.0.0:1 is not"),
    "nobody gets in": (
        "[tproxy]\naccess = 'keys'",
        "tproxy.access",
        "lets nobody in without a key: set tproxy.master_key or tproxy.key_file",
    ),
    "nothing says who": ("bind = '0.0.0.0:1'", "tproxy.access", "neither is tproxy.master_key nor tproxy.key_file"),
}


@pytest.mark.parametrize(("text", "place", "message"), ONE_FAULT.values(), ids=ONE_FAULT)
def test_one_fault(faults: Faults, text: str, place: str, message: str) -> None:
    told = faults(text, {**ENVIRON, "E": ""})
    assert list(told) == [place]
    assert message in told[place]


URLS = {
    "ftp://host": "http://HOST",
    "api.anthropic.com": "http://HOST",
    "https://": "http://HOST",
    "https://:443": "http://HOST",
    "https://host:port": "http://HOST",
    "https://host:70000": "http://HOST",
    "https://[::1": "http://HOST",
    "https://api..test": "1 to 63 characters",
    "https://.api.test": "1 to 63 characters",
    "https://.": "1 to 63 characters",
    f"https://api.{'a' * 64}.test": "1 to 63 characters",
    "https://user:canary@host": "no user name",
    "https://host?canary": "query",
    "https://host/?": "query",
    "https://host#canary": "fragment",
    "https://host/a b": "space",
    "https://host/a\\\\b": "backslash",
    "https://hóst": "space",
    "https://host/a//b": "segment",
    "https://host/../b": "segment",
    "https://host/a/%2e%2e": "segment",
    "https://host/a/%2E": "segment",
}


@pytest.mark.parametrize(("url", "message"), URLS.items())
def test_a_base_url_is_an_origin_and_a_path(faults: Faults, url: str, message: str) -> None:
    told = faults(f'[tproxy.upstream]\nbase_url = "{url}"')
    assert message in told["tproxy.upstream.base_url"]
    assert "canary" not in str(told)


@pytest.mark.parametrize("host", ["api", "api.test.", "127.0.0.1", "[::ffff:127.0.0.1]", "a" * 63 + ".test"])
def test_hosts(load_text: Load, host: str) -> None:
    settings = load_text(f'[tproxy.upstream]\nbase_url = "https://{host}"', ENVIRON)
    assert settings.upstream.base_url == f"https://{host}"


@pytest.mark.parametrize(
    ("text", "access"),
    [
        ("", "open"),
        ("bind = ['localhost:1', '[::1]:2', 'unix:/tmp/s']", "open"),
        ("[tproxy]\nmaster_key = 'sk-m'", "keys"),
        ("[tproxy]\nkey_file = 'k'", "keys"),
        ("bind = '0.0.0.0:1'\n[tproxy]\nkey_file = 'k'", "keys"),
        ("bind = '0.0.0.0:1'\n[tproxy]\naccess = 'own'", "own"),
        ("bind = '0.0.0.0:1'\n[tproxy]\naccess = 'keys'\nkey_file = 'k'", "keys"),
        ("bind = '0.0.0.0:1'\n[tproxy]\naccess = 'keys'\nmaster_key = 'sk-m'", "keys"),
        ("[tproxy]\nmaster_key = 'sk-m'\naccess = 'open'", "open"),
    ],
)
def test_who_gets_in(load_text: Load, text: str, access: str) -> None:
    assert load_text(text).access == access


@pytest.mark.parametrize("key", ["bind", "insecure_bind"])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:0", "fd://3", "example.com:1"])
def test_every_bind_counts(faults: Faults, key: str, address: str) -> None:
    assert address in faults(f"{key} = ['127.0.0.1:1', '{address}']")["tproxy.access"]


def test_own_access_needs_no_key_of_ours(load_text: Load, faults: Faults) -> None:
    own = "[tproxy]\naccess = 'own'\n[tproxy.upstream]\n"
    assert load_text(own, {}).upstream.api_keys == ()
    assert load_text(own + "api_keys = ['env:ANTHROPIC_API_KEY']", {}).upstream.api_keys == ()
    assert load_text(own + "api_keys = []", {}).upstream.api_keys == ()
    assert len(load_text(own, ENVIRON).upstream.api_keys) == 1
    assert list(faults(own + "api_keys = ['env:OTHER']", {})) == ["tproxy.upstream.api_keys[0]"]


@pytest.mark.parametrize(("environ", "how"), [({}, "not set"), ({"ANTHROPIC_API_KEY": ""}, "empty")])
@pytest.mark.parametrize("text", ["", "[tproxy.upstream]\napi_keys = ['env:ANTHROPIC_API_KEY']"])
def test_who_has_no_key_is_told_what_to_do(faults: Faults, text: str, environ: Mapping[str, str], how: str) -> None:
    assert faults(text, environ) == {
        "tproxy.upstream.api_keys[0]": f"the environment variable ANTHROPIC_API_KEY is {how}: export"
        " ANTHROPIC_API_KEY=…, or try the sandbox, which needs none: make demo, or tproxy serve --sandbox"
    }


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (load, load_books):
        with pytest.raises(SettingsFault) as caught:
            read(Path("config.toml"), {})
        (line,) = str(caught.value).splitlines()
        assert line.startswith(
            f"config.toml: cannot be read: No such file or directory: {tmp_path}/config.toml; --config "
        )


def test_the_sandbox_takes_the_place_of_the_upstream(load_text: Load, faults: Faults) -> None:
    text = "[tproxy.upstream]\nbase_url = 'https://real'\napi_keys = ['env:K']\nmax_connections = 7"
    upstream = load_text(text, {}, sandbox="http://127.0.0.1:1").upstream
    assert upstream.base_url == "http://127.0.0.1:1"
    assert upstream.max_connections == 7
    assert len(upstream.api_keys) == 1
    assert load_text("", {}, sandbox="http://127.0.0.1:1").upstream.base_url == "http://127.0.0.1:1"


def test_all_faults_are_told_at_once_with_their_lines(load_text: Load) -> None:
    text = """\
graceful_timeoutt = 1
worker_class = "asyncio"

[tproxy]
master_key = "env:NOPE"

[tproxy.timeouts]
idle = "long"
connect = -1

[logs]
level = 1
"""
    with pytest.raises(SettingsFault) as caught:
        load_text(text, {})
    assert [(fault.place, fault.line) for fault in caught.value.faults] == [
        ("config.toml: graceful_timeoutt", 1),
        ("config.toml: worker_class", 2),
        ("config.toml: tproxy.upstream.api_keys[0]", 4),  # of its default: the table that it would stand in
        ("config.toml: tproxy.master_key", 5),
        ("config.toml: tproxy.timeouts.idle", 8),
        ("config.toml: tproxy.timeouts.connect", 9),
        ("config.toml: logs", 11),
    ]
    lines = str(caught.value).splitlines()
    assert len(lines) == 7
    assert lines[4] == "config.toml: tproxy.timeouts.idle (line 8): must be a number"
    assert "tproxy.log" in lines[6]


def test_settings_are_frozen(load_text: Load) -> None:
    settings = load_text("")
    with pytest.raises(ValueError, match="frozen"):
        settings.timeouts.idle = 1


@pytest.mark.parametrize(
    ("directory", "said"),
    [("exports", None), ("a/b/c", None), ("config.toml", "config.toml is a file"), ("config.toml/x", "is a file")],
)
def test_where_files_are_made_can_be_made(
    directory: str, said: str | None, load_text: Load, faults: Faults, tmp_path: Path
) -> None:
    text = f'[tproxy.export.jsonl]\ndirectory = "{directory}"'
    if said is None:
        assert load_text(text).export.jsonl.directory == tmp_path / directory
    else:
        assert said in faults(text)["tproxy.export.jsonl.directory"]
