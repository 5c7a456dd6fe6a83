"""The kinds of values that settings have: what is accepted, and the one sentence that says what is not."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo

from tproxy.money import to_nano
from tproxy.period import parse as parse_period
from tproxy.tomlfile import credential, is_readable


def _absolute(value: Any, info: ValidationInfo) -> Any:
    if value == "":
        raise ValueError("must not be empty")
    return (info.context or Path.cwd()) / value if isinstance(value, str) else value


def _readable(path: Path | None) -> Path | None:
    if path is not None and not is_readable(path):
        raise ValueError(f"is not a file that can be read: {path}")
    return path


def _certificates(path: Path | None) -> Path | None:
    """Looked at here, too: a wrong file must not wait for the server to start."""
    if _readable(path) is not None:
        try:
            ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            raise ValueError(f"holds no certificate in PEM form: {path}") from None
    return path


def _database(value: str, info: ValidationInfo) -> str:
    kind, _, path = value.partition(":")
    if kind in ("postgresql", "postgres"):
        raise ValueError("PostgreSQL is not supported by this version; use sqlite:PATH")
    if kind != "sqlite" or not path or path.startswith(("//", ":")):
        raise ValueError("must be sqlite:PATH")
    file = _absolute(path, info)
    if not os.path.isdir(file.parent):
        raise ValueError(f"is in a directory that does not exist: {file.parent}")
    return f"sqlite:{file}"


def _base_url(value: str) -> str:
    if re.search(r"[^!-~]|[?#@\\]", value):
        raise ValueError("must hold no user name, query, fragment, space or backslash")
    try:
        url = urlsplit(value)
        origin = url.hostname and url.port != 0
    except ValueError:  # a bad port or IPv6 address
        origin = False
    if not origin or url.scheme not in ("http", "https"):
        raise ValueError("must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")
    host = str(url.hostname)
    if ":" not in host and not all(0 < len(label) <= 63 for label in host.removesuffix(".").split(".")):
        raise ValueError("must name a host whose parts between dots have 1 to 63 characters each")
    if re.search(r"//|/\.\.?(/|$)|/%2e", url.path, re.IGNORECASE):
        raise ValueError("must hold no empty, . or .. segment in its path")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def _timezone(value: str) -> str:
    try:
        if value != "UTC":  # which needs no time zone database
            ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin") from None
    return value


def _period(value: str) -> str:
    parse_period(value)
    return value


Secret = Annotated[SecretStr, AfterValidator(credential), Field(title="secret")]
Secrets = Annotated[
    tuple[Secret, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(title="list of secrets"),
]
FilePath = Annotated[Path | None, BeforeValidator(_absolute), Field(title="path")]
ReadableFile = Annotated[FilePath, AfterValidator(_readable)]
Certificates = Annotated[FilePath, AfterValidator(_certificates)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Database = Annotated[str, AfterValidator(_database)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
Period = Annotated[str, AfterValidator(_period)]
Money = Annotated[int, BeforeValidator(to_nano), Field(title="US dollars")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, title="seconds")]
Size = Annotated[int, Field(gt=0, title="bytes")]
Count = Annotated[int, Field(gt=0, title="number")]
Access = Literal["keys", "open", "own"]
