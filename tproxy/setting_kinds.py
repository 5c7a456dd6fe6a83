"""The kinds of values that settings have: what is accepted, and the one sentence that says what is not."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit
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


def _directory(path: Path | None) -> Path | None:
    """It may be made later."""
    there = path
    while there is not None and not os.path.lexists(there):
        there = there.parent
    if there is not None and not os.path.isdir(there):
        raise ValueError(f"is no directory and cannot be made one: {there} is a file")
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
    url = _split(value)
    if re.search(r"//|/\.\.?(/|$)|/%2e", url.path, re.IGNORECASE):
        raise ValueError("must hold no empty, . or .. segment in its path")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def _split(value: str) -> SplitResult:
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
    return url


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


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _web_url(value: str | None) -> str | None:
    if value is not None:
        if re.search(r"[^!-~]", value):
            raise ValueError("must hold no space, and ASCII only")
        if _split(value).username is not None:
            raise ValueError("must hold no user name: a secret has a setting of its own")
    return value


def _pattern(value: str) -> str:
    """One that `re` plainly may take exponential time for is refused. What else is slow costs captures, which are lost
    where their process takes too long, and never a stream."""
    try:
        re.compile(value)
        nests = _nests(_parser.parse(value))
    except (re.error, RecursionError, OverflowError) as fault:
        raise ValueError(f"is no regular expression: {getattr(fault, 'msg', fault)}") from None
    if nests:
        raise ValueError(
            "repeats without end what repeats without end itself, which may take for ever: "
            "make the inner one possessive, ++ or *+"
        )
    return value


def _nests(part: Any, within: bool = False) -> bool:
    """Whether there is an unbounded repetition within another one. Nothing goes back into a possessive or atomic one,
    so what is in them counts by itself."""
    if isinstance(part, _parser.SubPattern):
        return any(_nests(step, within) for step in part)
    match part:
        case (_constants.MAX_REPEAT | _constants.MIN_REPEAT, (_, most, inner)):
            endless = most == _constants.MAXREPEAT
            return (endless and within) or _nests(inner, within or endless)
        case (_constants.POSSESSIVE_REPEAT, (_, _, inner)) | (_constants.ATOMIC_GROUP, inner):
            return _nests(inner)
    return isinstance(part, list | tuple) and any(_nests(each, within) for each in part)


def label_of_tag(pattern: str) -> str:
    """The name of a metrics label for tags that match a pattern, in LiteLLM's spelling: `prod-*` -> `tag_prod__`."""
    return "tag_" + re.sub(r"[^a-zA-Z0-9_]", "_", pattern)


def label_of_metadata(name: str) -> str:
    """The name of a metrics label for a field of metadata, in LiteLLM's spelling: `metadata.foo` -> `metadata_foo`."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _labels_of_tags(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not all(pattern.strip(" *") for pattern in patterns):
        raise ValueError("must hold patterns with more in them than *")
    return _distinct(patterns, [label_of_tag(pattern) for pattern in patterns])


def _labels_of_metadata(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"metadata(\.[^.]+)+", name) for name in names):
        raise ValueError("must hold names such as metadata.department")
    return _distinct(names, [label_of_metadata(name) for name in names])


def _distinct(texts: tuple[str, ...], labels: list[str]) -> tuple[str, ...]:
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"holds two that make the same label, {twice}: only letters, digits and _ stay as they are")
    return texts


# What a request cannot do without, or what frames it: not for settings to say.
_OWN_HEADERS = {"connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"}


def _header_line(value: SecretStr) -> SecretStr:
    """A header field as `name=value` (RFC 9110 sections 5.1 and 5.5); the value may hold spaces, and further `=`."""
    found = re.fullmatch(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*([!-~](?:[ -~]*[!-~])?)\s*", value.get_secret_value())
    if found is None:
        raise ValueError("must be name=value, a header field of printable ASCII")
    if found[1].lower() in _OWN_HEADERS:
        raise ValueError(f"must not be {found[1].lower()}, which requests have by themselves")
    return value


def _secret_url(value: SecretStr) -> SecretStr:
    """A URL that is a secret, such as Slack's: no fault tells it."""
    try:
        _web_url(value.get_secret_value())
    except ValueError:
        raise ValueError("must be a URL of http or https, without a user name") from None
    return value


def _smtp_url(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        right = parts.scheme in ("smtp", "smtps") and bool(parts.hostname) and parts.port != 0
        right = right and parts.path in ("", "/") and not (parts.query or parts.fragment)
    except ValueError:
        right = False
    if not right:
        raise ValueError("must be smtp://[USER:PASSWORD@]HOST[:PORT] or smtps://…; encode what is special with %")
    return value


def _address(value: str) -> str:
    atom = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"  # RFC 5322 section 3.2.3
    if not re.fullmatch(rf"{atom}(\.{atom})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", value):
        raise ValueError("must be an e-mail address, such as ops@example.com")
    return value


Secret = Annotated[SecretStr, AfterValidator(credential), Field(title="secret")]
Secrets = Annotated[
    tuple[Secret, ...],
    BeforeValidator(_listed),
    Field(title="list of secrets"),
]
HeaderLines = Annotated[tuple[Annotated[SecretStr, AfterValidator(_header_line)], ...], BeforeValidator(_listed)]
FilePath = Annotated[Path | None, BeforeValidator(_absolute), Field(title="path")]
Directory = Annotated[FilePath, AfterValidator(_directory)]
ReadableFile = Annotated[FilePath, AfterValidator(_readable)]
Certificates = Annotated[FilePath, AfterValidator(_certificates)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
TagPatterns = Annotated[Texts, AfterValidator(_labels_of_tags)]
MetadataNames = Annotated[Texts, AfterValidator(_labels_of_metadata)]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], BeforeValidator(_listed)]
SecretUrl = Annotated[Secret, AfterValidator(_secret_url)]
SmtpUrl = Annotated[Secret, AfterValidator(_smtp_url)]
Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_listed)]
WebUrl = Annotated[str | None, AfterValidator(_web_url), Field(title="URL")]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Database = Annotated[str, AfterValidator(_database)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
Period = Annotated[str, AfterValidator(_period)]
Money = Annotated[int, BeforeValidator(to_nano), Field(title="US dollars")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, title="seconds")]
Size = Annotated[int, Field(gt=0, title="bytes")]
Count = Annotated[int, Field(gt=0, title="number")]
Access = Literal["keys", "open", "own"]
