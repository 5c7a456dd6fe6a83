"""The text of virtual keys: how one is made, and what can be told of one without a look-up.

    sk-  43 characters of 0-9A-Za-z: 256 bits of chance  6 characters of 0-9A-Za-z: CRC-32 of all before

A scanner for leaked keys looks for `\\bsk-[0-9A-Za-z]{49}\\b` and lets `is_misspelt` sort out what only looks so:
of four thousand million such texts, one has a checksum that fits. The checksum keeps nobody out. It tells a typo from
an unknown key, and spares the look-up.

A key that an operator chose may have any other form (`chosen_fault`). A key is known by its SHA-256 alone (`hash_key`).

Not known here: where chance comes from, and which keys there are.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Final

PREFIX: Final = "sk-"
CHANCE_BYTES: Final = 32
CHOSEN_MIN: Final = 16  # characters of a key that somebody chose, with its prefix

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES: Final = {ord(digit): value for value, digit in enumerate(_DIGITS)}
_CHANCE: Final = 43  # characters: 62 ** 43 is just above 2 ** 256
_CHECK: Final = 6
_FORM: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_CHANCE + _CHECK}}}".encode())
_WITHIN: Final = re.compile(rb"(?=(" + _FORM.pattern + rb"))")  # wherever it begins, whatever follows
# Of our form or Anthropic's, it is one also in the middle of a word; else `task-1` would be one.
_LIKE_A_KEY: Final = re.compile(rf"(?:(?<![0-9A-Za-z])sk-|sk-(?=ant-|[0-9A-Za-z]{{{_CHANCE + _CHECK}}}))[!-~]{{4,}}")


def compose(random: bytes) -> str:
    """A new key out of at least 32 bytes from a source that nobody can foretell; the first 32 make it.

    Raises:
        ValueError: there are fewer.
    """
    if len(random) < CHANCE_BYTES:
        raise ValueError(f"a key is made of {CHANCE_BYTES} random bytes, not of {len(random)}")
    body = PREFIX + _base62(int.from_bytes(random[:CHANCE_BYTES]), _CHANCE)
    return body + _checksum(body.encode())


def is_misspelt(key: bytes | str) -> bool:
    """Whether a key has the form of ours and a checksum that does not fit: it was never given out."""
    raw = _raw(key)
    if _FORM.fullmatch(raw) is None:
        return False
    said = 0
    for digit in raw[-_CHECK:]:
        said = said * 62 + _VALUES[digit]
    return said != zlib.crc32(raw[:-_CHECK])


def chosen_fault(key: str, shortest: int = CHOSEN_MIN) -> str | None:
    """Why a key that somebody chose is not accepted, as the end of a sentence about it; None if it is.

    Args:
        shortest: how many characters it must have.
    """
    if not re.fullmatch(r"[!-~]*", key):
        return "must be printable ASCII without spaces"
    if not key.startswith(PREFIX):
        return "must begin with sk-"
    if key.startswith("sk-ant-"):
        return "must not begin with sk-ant-: that is Anthropic's own form"
    if len(key) < shortest:
        return f"must have at least {shortest} characters"
    if is_misspelt(key):
        return "has the form of a generated key (sk- and 49 letters and digits), and its checksum does not fit"
    return None


def hash_key(key: str) -> str:
    """The id of a virtual key: its SHA-256 as lowercase hex, as LiteLLM has it."""
    return hashlib.sha256(_raw(key)).hexdigest()


def last4(key: str) -> str:
    """The last four characters, by which people recognise a key; nothing of one that is too short to show a part of."""
    return key[-4:] if len(key) >= CHOSEN_MIN else ""


def _raw(key: bytes | str) -> bytes:
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key


def _checksum(body: bytes) -> str:
    return _base62(zlib.crc32(body), _CHECK)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def holds_key(text: bytes) -> bool:
    """Whether there is a key of ours in a text: one of our form, whose checksum fits."""
    return any(not is_misspelt(found) for found in _WITHIN.findall(text))


def masked(text: str) -> str:
    """The text without what may be a key: for what is written down of requests, which may hold one where it does not
    belong. Words such as `task-1` are no keys."""
    return _LIKE_A_KEY.sub("sk-…", text) if "sk-" in text else text
