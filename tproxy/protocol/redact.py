"""Bodies as they may be kept: without keys, without media, without what the operator's patterns match.

A body that is JSON, or the beginning of JSON, stays JSON: its strings are looked at one by one, as they read once their
escapes are gone, and so are the names of its members. What else a body is is looked at as text. Three things go:
- Media: base64 of `LONG` characters or more, wherever it stands. What it was is said: type, size, SHA-256.
- Credentials, by their form (`sk-…`, bearer tokens, AWS, GitHub, Slack and Google keys, JWTs, private keys, passwords
  in URLs), and the text of members that are named like one (`authorization_token`, `password`).
- Matches of the patterns. A match of up to `OVERLAP` characters is always found; longer ones may be found in parts,
  since a pattern never gets more than `PIECE` characters at a time: one that takes quadratic time for a text takes
  milliseconds for each piece then. One that takes cubic or exponential time may take minutes: whoever redacts must be
  able to do without the answer (the process that keeps captures is killed).

Redacting is a net with meshes: a secret that looks like a word goes through.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tproxy.protocol.conversation import mended

MASK = "[redacted]"
LONG = 512
PIECE = 4096
OVERLAP = 1024

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])(?:data:[\w.+/-]{1,100};base64,)?" + rf"[A-Za-z0-9+/_-]{{{LONG},}}+={{0,2}}")
_MEDIA = re.compile(r"[A-Za-z0-9+/_=\s-]*")
_CREDENTIALS = re.compile(
    r"sk-ant-[0-9A-Za-z_-]{8,}|sk-[0-9A-Za-z]{49}"
    r"|(?<![0-9A-Za-z])sk-[^\s\"'`\\,;<>(){}\[\]…]{4,}"
    r"|(?i:\b(?:bearer|basic)\s{1,4}[A-Za-z0-9._~+/-]{20,}=*)"
    r"|\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"
    r"|(?i:aws_?secret_?(?:access_?)?key[\"'\s:=]{1,5}[A-Za-z0-9/+]{40})"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,255}|\bgithub_pat_[A-Za-z0-9_]{22,255}"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,255}"
    r"|\bAIza[0-9A-Za-z_-]{35}"
    r"|\beyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[^-]|-(?!----END))*+(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    r"|(?<=://)[^\s/:@\"']{1,256}:[^\s/@\"']{1,256}(?=@)"
)
# What must be in a text before the expression above is tried.
_TRACES = re.compile(r"sk-|bearer|basic|A[KSBC][ICA]A|secret|gh[pousr]_|github_pat|xox|AIza|eyJ|-----BEGIN|://", re.I)
_SECRET_NAMES = frozenset(
    {
        *("authorization", "authorization_token", "proxy-authorization", "x-api-key", "api_key", "apikey", "api-key"),
        *("access_token", "refresh_token", "id_token", "client_secret", "secret", "secret_access_key", "password"),
        *("passwd", "private_key", "x-litellm-api-key"),
    }
)
_decode = msgspec.json.decode
_encode = msgspec.json.encode

Patterns = Sequence[re.Pattern[str]]


class Redacted(msgspec.Struct, frozen=True):
    """A body as it may be kept.

    Attributes:
        text: JSON where `is_json`.
        times: how many things were taken out.
        cut: it is not the whole of what there was.
    """

    text: str
    is_json: bool
    times: int
    cut: bool


class Redactor:
    """Takes out what must not be kept.

    Args:
        patterns: of the operator.
    """

    def __init__(self, patterns: Patterns = ()) -> None:
        self._patterns = patterns
        self.times = 0

    def body(self, body: bytes, *, most: int, cut: bool = False) -> Redacted:
        """Redact a body.

        Args:
            most: so many characters of it are kept.
            cut: it is the beginning of a body only.
        """
        self.times = 0
        text = body.decode("utf-8", "replace")
        if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
            try:
                value = mended(text) if cut else _decode(body)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict | list) and (value or not cut):
                kept = self.value(value, most=most, cut=cut)
                if kept is not None:
                    return kept
        text = self.text(text)
        return Redacted(text[:most], False, self.times, cut or len(text) > most)

    def value(self, value: Any, *, most: int, cut: bool = False) -> Redacted | None:
        """Redact what was read of JSON; None where it is nested too deeply, or cannot be written."""
        self.times = 0
        try:
            text = _encode(self._walk(value)).decode()
            if len(text) > most:
                cut = True
                # Closing what is open takes some room.
                text = _encode(mended(text[:most])).decode()
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None
        return Redacted(text, True, self.times, cut)

    def text(self, text: str) -> str:
        """One text without what must go."""
        if len(text) >= LONG:
            text = _BASE64.sub(self._note, text)
        if _TRACES.search(text):
            text, times = _CREDENTIALS.subn(MASK, text)
            self.times += times
        for pattern in self._patterns:
            text = self._masked(pattern, text)
        return text

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._walk(each) for each in value]
        if isinstance(value, dict):
            return self._members(value)
        return value

    def _members(self, members: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        numbers: dict[str, int] = {}  # the last one that a name was given, of those that read the same now
        media = members.get("media_type") if members.get("type") == "base64" else None
        for name, value in members.items():
            shown = self.text(name)
            if shown in kept:
                shown = _numbered(shown, numbers, kept)
            if isinstance(value, str) and value and name.lower() in _SECRET_NAMES:
                kept[shown] = MASK
                self.times += 1
            elif name == "data" and isinstance(media, str) and isinstance(value, str) and _MEDIA.fullmatch(value):
                kept[shown] = self._said(self.text(media), value)
            else:
                kept[shown] = self._walk(value)
        return kept

    def _note(self, found: re.Match[str]) -> str:
        head, _, content = found[0].rpartition(";base64,")
        return self._said(head.removeprefix("data:") or "base64", content)

    def _said(self, media: str, content: str) -> str:
        """What stands in the place of media."""
        self.times += 1
        plain = content.translate(_URL_SAFE)
        try:
            data = base64.b64decode(plain + "=" * (-len(plain.rstrip("=")) % 4), validate=False)
        except (binascii.Error, ValueError):
            data = content.encode("utf-8", "replace")
        return f"[{media}, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}]"

    def _masked(self, pattern: re.Pattern[str], text: str) -> str:
        parts: list[str] = []
        at = done = 0
        while at < len(text):
            end = min(at + PIECE, len(text))
            # What begins later is looked for again, with more of what follows it.
            settled = end if end == len(text) else end - OVERLAP
            found = pattern.search(text, at, end)
            if found is None or found.start() >= settled:
                at = settled
            elif found.end() == found.start():
                at = found.end() + 1
            else:
                parts += [text[done : found.start()], MASK]
                at = done = found.end()
                self.times += 1
        return "".join(parts) + text[done:] if parts else text


def _numbered(name: str, numbers: dict[str, int], taken: Mapping[str, Any]) -> str:
    """`name 2`, `name 3`: the first that is free. Every number is tried once, however many names there are."""
    number = numbers.get(name, 1) + 1
    while f"{name} {number}" in taken:
        number += 1
    numbers[name] = number
    return f"{name} {number}"


_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n")
