"""hypercorn's half of config.toml: its top-level keys, which hypercorn itself does not check.

A misspelt key is ignored by hypercorn, a wrong type shows up as a crash at start or later, and a key named like a
method replaces the method. So the keys are compared with what can be set on hypercorn's Config, and the values
with the types of its defaults.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from hypercorn.config import Config

from tproxy.tomlfile import Place, TomlFile, is_readable

# Where our defaults are not hypercorn's: its deadlines are too short for streams, its queue for bursts.
DEFAULTS: Mapping[str, Any] = {
    "bind": ["127.0.0.1:4000"],
    "worker_class": "trio",
    "graceful_timeout": 600,
    "keep_alive_timeout": 75,
    "backlog": 2048,
}
BINDS = ("bind", "insecure_bind")
PATHS = ("certfile", "keyfile", "ca_certs")

# hypercorn gives an address without a port its own, 8000, and takes ::1 for the port 1 of a host named ":".
_BIND = re.compile(r"unix:[^\0]+|fd://[0-9]+|(?:\[[^\[\]\s/]+\]|[^\[\]:\s/]*):(?P<port>[0-9]{1,5})")
_BIND_FORMS = '"HOST:PORT", "[IPv6]:PORT", "unix:PATH" or "fd://NUMBER"'


def _settable() -> dict[str, Any]:
    """All that can be set on a Config but its methods: each with a value of its type, or None if that is open."""
    config = Config()
    by_annotation = {"str | None": "", "logging.Logger | str | None": "", "int | None": 0, "float | None": 0.0}
    keys = {}
    for name in dir(Config):
        attribute = getattr(Config, name)
        read_only = isinstance(attribute, property) and attribute.fset is None
        if not (name.startswith("_") or callable(attribute) or read_only):
            value = getattr(config, name, None)
            keys[name] = by_annotation.get(Config.__annotations__.get(name, "")) if value is None else value
    return keys


KEYS: Mapping[str, Any] = _settable()


def read(file: TomlFile, known: Collection[Place]) -> dict[str, Any]:
    """Check the top-level keys of config.toml; tables named `tproxy` are not looked at.

    Returns:
        What to set on hypercorn's Config: the keys of the file, paths made absolute and binds as lists, and our
        defaults for those that are not set or at fault.
    """
    keys = dict(DEFAULTS)
    for name, given in file.data.items():
        if name == "tproxy":
            continue
        if name not in KEYS:
            kind = "table: settings stand under [tproxy]" if isinstance(given, dict) else "key"
            file.unknown((name,), known, f"unknown {kind}")
            continue
        value: Any = given if isinstance(given, dict) else file.resolve((name,), given)
        if rule := _broken_rule(name, value):
            file.add((name,), f"must be {rule}")
        elif name in BINDS:
            value = _binds(file, name, value)
        elif name in PATHS:
            value = str(file.directory / value)
            if not is_readable(value):  # which is not shown: it may be a private key itself, by "file:key.pem"
                file.add((name,), f"must name a file that can be read; relative paths start at {file.directory}")
        if not file.faulty((name,)):
            keys[name] = value
    return keys


def _binds(file: TomlFile, name: str, value: str | list[Any]) -> list[str]:
    """Return the addresses as hypercorn takes them, the paths of sockets absolute. The wrong ones are noted."""
    binds = []
    for i, bind in enumerate([value] if isinstance(value, str) else value):
        place = (name,) if isinstance(value, str) else (name, i)
        match = _BIND.fullmatch(bind) if isinstance(bind, str) else None
        if match is None or int(match["port"] or 0) > 65535:
            file.add(place, f"must be {_BIND_FORMS}")
        elif bind.startswith("unix:"):
            binds.append(f"unix:{file.directory / bind.removeprefix('unix:')}")
        else:
            binds.append(bind)
    return binds


def _broken_rule(name: str, value: Any) -> str | None:
    """Return what `value` must be and is not, or None."""
    like = KEYS[name]
    if name == "logconfig_dict":
        return None if isinstance(value, dict) else "a table"
    elif isinstance(value, dict):
        return "a value, not a table"
    elif name == "worker_class":
        return None if value == "trio" else '"trio": tproxy runs on nothing else'
    elif name == "workers":
        return None if type(value) is int and value in (0, 1) else "0 or 1: one process keeps the ledger"
    elif name == "quic_bind":  # its listener would pass by our connection class, and all the limits in it
        return None if value == [] else "left out: tproxy speaks HTTP/1.1 only"
    elif name in BINDS:
        return None if isinstance(value, (str, list)) and value else f"{_BIND_FORMS}, or a list of them"
    elif isinstance(like, bool):
        return None if isinstance(value, bool) else "true or false"
    elif isinstance(like, int):
        return None if type(value) is int and value >= 0 else "a whole number, 0 or more"
    elif isinstance(like, float):
        return None if type(value) in (int, float) and 0 <= value < math.inf else "a finite number, 0 or more"
    elif isinstance(like, str):
        return None if isinstance(value, str) else "a string"
    elif isinstance(like, list):
        strings = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return None if strings else "a list of strings"
    return None


def is_loopback(bind: str) -> bool:
    """Whether an address in hypercorn's form can be reached from this machine only.

    A name other than `localhost` counts as public, since it may be looked up otherwise at the next start; so does
    an open socket (`fd://`), of which nothing is known.
    """
    if bind.startswith(("unix:", "fd://")):
        return bind.startswith("unix:")
    host, _, port = bind.replace("[", "").replace("]", "").rpartition(":")
    host = host if port.isdecimal() else bind
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
