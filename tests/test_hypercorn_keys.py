from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypercorn.config import Config

from tproxy.hypercorn_keys import DEFAULTS, KEYS, PATHS, is_loopback, read
from tproxy.tomlfile import SettingsFault, TomlFile


def read_text(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    file = TomlFile(path, {"ADDRESS": "127.0.0.1:7", "PASSWORD": "secret"})
    keys = read(file, [(name,) for name in KEYS])
    file.check()
    return keys


def test_what_may_be_set_is_what_can_be_set() -> None:
    assert {"bind", "insecure_bind", "quic_bind", "root_path", "cert_reqs", "workers", "accesslog"} <= KEYS.keys()
    assert not {"log", "create_sockets", "from_toml", "logger_class", "ssl_enabled", "_bind"} & KEYS.keys()
    for name, value in DEFAULTS.items():
        config = Config()
        setattr(config, name, value)
        assert getattr(config, name) == value


GOOD = {
    "nothing": ("", {}),
    "one bind": ('bind = "0.0.0.0:1"', {"bind": ["0.0.0.0:1"]}),
    "binds": (
        'bind = ["[::1]:1", "unix:/a:b", "fd://3", "host:0", ":65535"]',
        {"bind": ["[::1]:1", "unix:/a:b", "fd://3", "host:0", ":65535"]},
    ),
    "from the environment": ('bind = ["env:ADDRESS"]', {"bind": ["127.0.0.1:7"]}),
    "numbers": (
        "graceful_timeout = 1.5\nread_timeout = 3\nwebsocket_ping_interval = 2",
        {"graceful_timeout": 1.5, "read_timeout": 3, "websocket_ping_interval": 2},
    ),
    "words": (
        'loglevel = "info"\nerrorlog = "-"\nuse_reloader = false',
        {"loglevel": "info", "errorlog": "-", "use_reloader": False},
    ),
    "list": ('server_names = ["a"]', {"server_names": ["a"]}),
    "table": ("[logconfig_dict]\nversion = 1", {"logconfig_dict": {"version": 1}}),
    "ours": ("[tproxy]\nnot_looked_at = 1", {}),
    "one process": ("workers = 0", {"workers": 0}),
    "without a type": ("verify_mode = 2", {"verify_mode": 2}),
}


@pytest.mark.parametrize(("text", "expected"), GOOD.values(), ids=GOOD)
def test_good_keys(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert read_text(tmp_path, text) == {**DEFAULTS, **expected}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).touch()
    text = f"""
        certfile = "c.pem"
        keyfile = "{tmp_path}/k.pem"
        keyfile_password = "env:PASSWORD"
        bind = "unix:a.sock"
        insecure_bind = ["unix:b/c.sock", "unix:/d.sock", "h:1"]
    """
    keys = read_text(tmp_path, text)
    assert keys["certfile"] == str(tmp_path / "c.pem")
    assert keys["keyfile"] == str(tmp_path / "k.pem")
    assert keys["keyfile_password"] == "secret"
    assert keys["bind"] == [f"unix:{tmp_path}/a.sock"]
    assert keys["insecure_bind"] == [f"unix:{tmp_path}/b/c.sock", "unix:/d.sock", "h:1"]


BAD = {
    "http/3": ('quic_bind = ["127.0.0.1:1"]', "HTTP/1.1 only"),
    "misspelt": ("backlock = 1", "unknown key; the nearest known one is backlog"),
    "a method": ("create_sockets = 1", "unknown key"),
    "read only": ("ssl_enabled = true", "unknown key"),
    "private": ("_bind = []", "unknown key"),
    "unknown table": ("[hypercorn]\nbind = 'x'", "unknown table: settings stand under [tproxy]"),
    "table for a value": ("[backlog]\na = 1", "must be a value, not a table"),
    "value for a table": ("logconfig_dict = 1", "must be a table"),
    "asyncio": ("worker_class = 'asyncio'", 'must be "trio"'),
    "uvloop": ("worker_class = 'uvloop'", 'must be "trio"'),
    "two processes": ("workers = 2", "0 or 1"),
    "no addresses": ("bind = []", 'must be "HOST:PORT"'),
    "empty address": ("bind = ''", 'must be "HOST:PORT"'),
    "address of a wrong type": ("bind = 1", 'must be "HOST:PORT"'),
    **{f"no {name} there": (f"{name} = 'x.pem'", "must name a file that can be read; relative") for name in PATHS},
    "a directory": ("ca_certs = '.'", "must name a file that can be read"),
    "text for a number": ("backlog = '1'", "whole number"),
    "truth for a number": ("backlog = true", "whole number"),
    "fraction for a whole number": ("max_requests = 1.5", "whole number"),
    "negative": ("graceful_timeout = -1", "finite number"),
    "endless": ("graceful_timeout = inf", "finite number"),
    "number for truth": ("use_reloader = 1", "true or false"),
    "number for text": ("certfile = 1", "must be a string"),
    "text for a list": ("server_names = 'a'", "list of strings"),
    "wrong item": ("alpn_protocols = [1]", "list of strings"),
    "unset": ("bind = 'env:NOPE'", "environment variable NOPE is not set"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_keys(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsFault) as caught:
        read_text(tmp_path, text)
    (fault,) = caught.value.faults
    assert message in fault.message


NO_ADDRESSES = [
    "",
    "127.0.0.1",
    "4000",
    "127.0.0.1:",
    "127.0.0.1:http",
    "h:65536",
    "h:-1",
    "h:٣",
    "h :1",
    "::1",
    "::1:4000",
    "[::1]",
    "http://127.0.0.1:4000",
    "127.0.0.1:4000/",
    "unix:",
    "unix",
    "fd://",
    "fd://x",
    1,
    ["h:1"],
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
@pytest.mark.parametrize("key", ["bind", "insecure_bind"])
def test_each_wrong_address_is_told_with_its_place(tmp_path: Path, key: str, address: object) -> None:
    wrong = json.dumps(address)
    with pytest.raises(SettingsFault) as caught:
        read_text(tmp_path, f"{key} = ['h:1', {wrong}, 'h:2', {wrong}]")
    assert [fault.place for fault in caught.value.faults] == [f"config.toml: {key}[{i}]" for i in (1, 3)]
    rule = 'must be "HOST:PORT", "[IPv6]:PORT", "unix:PATH" or "fd://NUMBER"'
    assert {fault.message for fault in caught.value.faults} == {rule}
    if isinstance(address, str):
        with pytest.raises(SettingsFault, match=f"^config.toml: {key} "):
            read_text(tmp_path, f"{key} = {wrong}")


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1:4000", True),
        ("127.8.9.10:0", True),
        ("127.0.0.1", True),
        ("localhost:4000", True),
        ("localhost", True),
        ("[::1]:4000", True),
        ("unix:/run/tproxy.sock", True),
        ("fd://3", False),
        ("0.0.0.0:4000", False),
        ("[::]:4000", False),
        (":4000", False),
        ("localhost.example.com:4000", False),
        ("127.0.0.1.example.com:4000", False),
        ("192.168.0.1:4000", False),
        ("127.0.0.1:http", False),
        ("::1", False),  # hypercorn reads it as host ":", port 1
    ],
)
def test_loopback(bind: str, expected: bool) -> None:
    assert is_loopback(bind) is expected
