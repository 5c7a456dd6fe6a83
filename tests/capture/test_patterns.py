"""What is accepted as a pattern: nothing that plainly may take for ever."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tproxy.setting_tables import Capture


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b\d{16}\b",
        r"[\w.+-]+@[\w-]+(?:\.[\w-]{1,63}){1,8}",
        r"(?:[a-z]++-)*x",
        r"(?:(?>[a-z]+)-)+x",
        r"a*b*c*",
        r"(?:ab?){2,40}",
        r"(?<=key: )\S+",
        r"(a|b)+",
        r"",
    ],
)
def test_patterns_that_end(pattern: str) -> None:
    assert Capture(patterns=(pattern,)).patterns == (pattern,)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(?:a*?)*b",
        r"(?:x|(?:y\w*z){2,})+",
        r"(?=(?:a+)+)b",
        r"(?:(?:a{3,})b)*",
        r"(?P<n>(?:\s+\S)+)*?x",
        r"(?>(?:a+)+)b",
    ],
)
def test_patterns_that_may_not(pattern: str) -> None:
    with pytest.raises(ValidationError, match="repeats without end"):
        Capture(patterns=(pattern,))


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{99999999999999}"])
def test_what_is_none(pattern: str) -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        Capture(patterns=(pattern,))
