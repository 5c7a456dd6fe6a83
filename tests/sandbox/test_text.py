from __future__ import annotations

import json

import pytest

from tproxy.sandbox.text import count, fitted, grouped, prose, tokens

TEXTS = [
    "",
    "word",
    " leading and trailing ",
    "extraordinarily long words, numbers 1234567 and signs: ?!…",
    "naïve Łódź 🙂🙂🙂🙂 漢字",
    json.dumps({"command": "ls -la /tmp", "timeout": 1200, "nested": [{"a": None}, True]}),
    "line\n\n  indented\tend\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_join_to_the_text_and_count_the_same_in_pieces(text: str) -> None:
    parts = tokens(text)
    assert "".join(parts) == text
    assert count(text) == len(parts)
    for at in range(len(parts) + 1):
        assert count("".join(parts[:at])) + count("".join(parts[at:])) == len(parts)


@pytest.mark.parametrize("wanted", [0, 1, 2, 39, 40, 1000])
@pytest.mark.parametrize("per", [0, 1, 5])
def test_prose_has_exactly_the_tokens_wanted(wanted: int, per: int) -> None:
    pieces = prose(7, wanted, per)
    assert sum(size for _, size in pieces) == wanted
    assert count("".join(text for text, _ in pieces)) == wanted
    assert all(count(text) == size for text, size in pieces)
    if per:
        assert all(size == per for _, size in pieces[:-1])


def test_the_seed_decides_the_text() -> None:
    assert prose(1, 100) == prose(1, 100)
    assert prose(1, 100) != prose(2, 100)


def test_a_token_has_about_four_letters() -> None:
    text = "".join(piece for piece, _ in prose(3, 2000))
    assert 3.8 < len(text) / 2000 < 4.6


def test_prose_holds_letters_of_two_three_and_four_bytes() -> None:
    text = "".join(piece for piece, _ in prose(3, 2000))
    assert {len(letter.encode()) for letter in text} == {1, 2, 3, 4}


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7, 100])
def test_fitted_keeps_what_there_is_room_for(room: int) -> None:
    pieces = grouped(tokens("one two three four five six seven"), 2)
    kept = fitted(pieces, room)
    assert sum(size for _, size in kept) == min(room, 7)
    assert "one two three four five six seven".startswith("".join(text for text, _ in kept))
