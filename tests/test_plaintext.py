from __future__ import annotations

import pytest

from tproxy.plaintext import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ä ü 漢 🙂", "ä ü 漢 🙂"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
        ("\x9b\x7f\r\n\t", "\ufffd" * 5),
        ("\u202eabc\u2066\u200f", "\ufffdabc\ufffd\ufffd"),
        ("\ud800", "\ufffd"),
    ],
)
def test_what_would_steer_a_terminal_is_shown(text: str, shown: str) -> None:
    assert plain(text) == shown
