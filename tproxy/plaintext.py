"""Text that others chose, on its way to a terminal."""

from __future__ import annotations

import re

# Control characters of terminals, those that turn the direction of text, and halves of pairs, which have no encoding.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with each character that would steer a terminal shown as `\ufffd`."""
    return _UNSAFE.sub("\ufffd", text)
