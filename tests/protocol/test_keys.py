from __future__ import annotations

import hashlib
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.protocol.keys import chosen_fault, compose, hash_key, holds_key, is_misspelt, last4, masked

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY = compose(bytes(range(32)))


def number(text: str) -> int:
    value = 0
    for digit in text:
        value = value * 62 + DIGITS.index(digit)
    return value


@given(st.binary(min_size=32, max_size=32))
def test_a_key_holds_all_the_chance_it_was_made_of_and_a_checksum(random: bytes) -> None:
    key = compose(random)
    assert re.fullmatch(r"sk-[0-9A-Za-z]{49}", key)
    assert number(key[3:46]).to_bytes(32) == random
    assert number(key[46:]) == zlib.crc32(key[:46].encode())
    assert not is_misspelt(key)
    assert not is_misspelt(key.encode())
    assert chosen_fault(key) is None


def test_the_form_of_keys_that_were_given_out_stays() -> None:
    assert KEY == "sk-003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf2j7ZOG"


def test_only_the_first_32_bytes_count_and_fewer_are_refused() -> None:
    assert compose(bytes(range(40))) == KEY
    with pytest.raises(ValueError, match="32 random bytes, not of 31"):
        compose(bytes(31))


@given(st.binary(min_size=32, max_size=32), st.integers(3, 51), st.sampled_from(DIGITS))
def test_one_wrong_character_is_a_typo(random: bytes, place: int, character: str) -> None:
    key = compose(random)
    wrong = key[:place] + character + key[place + 1 :]
    assert is_misspelt(wrong) == is_misspelt(wrong.encode()) == (wrong != key)


def test_two_neighbours_exchanged_are_a_typo() -> None:
    for place in range(3, 51):
        wrong = key = KEY[:place] + KEY[place + 1] + KEY[place] + KEY[place + 2 :]
        assert is_misspelt(wrong) == (key != KEY)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sk-",
        "sk-anything",
        KEY[:-1],
        KEY + "x",
        KEY + "\n",
        " " + KEY,
        "pk" + KEY[2:],
        KEY[:20] + "-" + KEY[21:],
        KEY[:20] + "é" + KEY[21:],
        "sk-ant-" + KEY[7:],
        KEY[:20] + "\udc80" + KEY[21:],
    ],
)
def test_what_has_another_form_is_no_typo(key: str) -> None:
    assert not is_misspelt(key)


WRONG_END = KEY[:-1] + ("a" if KEY[-1] != "a" else "b")
CHOSEN = {
    "long enough": ("sk-0123456789abc", None),
    "one too short": ("sk-0123456789ab", "at least 16 characters"),
    "another prefix": ("key-0123456789abcdef", "must begin with sk-"),
    "no prefix": ("0123456789abcdef", "must begin with sk-"),
    "empty": ("", "must begin with sk-"),
    "Anthropic's": ("sk-ant-api03-0123456789", "Anthropic's own form"),
    "a space": ("sk-0123456789 abc", "printable ASCII"),
    "a newline at the end": ("sk-0123456789abc\n", "printable ASCII"),
    "a NUL": ("sk-0123456789\0abc", "printable ASCII"),
    "not ASCII": ("sk-0123456789äbc", "printable ASCII"),
    "punctuation": ("sk-!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~", None),
    "misspelt": (WRONG_END, "its checksum does not fit"),
    "one longer than ours": (WRONG_END + "a", None),
}


@pytest.mark.parametrize(("key", "fault"), CHOSEN.values(), ids=CHOSEN)
def test_which_keys_may_be_chosen(key: str, fault: str | None) -> None:
    found = chosen_fault(key)
    assert (found is None) == (fault is None)
    assert (fault or "") in (found or "")
    assert len(key) < 10 or key not in (found or "")


def test_whoever_keeps_the_file_may_have_shorter_ones() -> None:
    assert chosen_fault("sk-a", shortest=0) is None


def test_the_id_of_a_key_is_its_sha256() -> None:
    assert hash_key("sk-1234") == hashlib.sha256(b"sk-1234").hexdigest()
    assert hash_key("sk-\udcff") == hashlib.sha256(b"sk-\xff").hexdigest()


@pytest.mark.parametrize(("key", "shown"), [(KEY, KEY[-4:]), ("sk-0123456789abc", "9abc"), ("sk-0123456789ab", "")])
def test_what_is_shown_of_a_key(key: str, shown: str) -> None:
    assert last4(key) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("task-1234 risk-free disk-0", "task-1234 risk-free disk-0"),
        ("sk-abcd", "sk-…"),
        ("sk-abc", "sk-abc"),
        (f"c{KEY}", "csk-…"),
        (f"/v1/files/A{KEY}", "/v1/files/Ask-…"),
        ("xsk-ant-api03-abc", "xsk-…"),
        (f"a {KEY}b sk-…", "a sk-… sk-…"),
    ],
)
def test_what_is_written_down_holds_no_key(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("around", ["{}", "a{}", "{}b", "9{}9", "sk-{}", "%00{}&"])
def test_a_key_is_found_wherever_it_begins(around: str) -> None:
    assert holds_key(around.format(KEY).encode())
    assert not holds_key(around.format(KEY[:-1] + ("0" if KEY[-1] != "0" else "1")).encode())
