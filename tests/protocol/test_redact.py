from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.protocol.redact import MASK, OVERLAP, PIECE, Redactor, _numbered

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
BASE64 = base64.b64encode(PNG).decode()
NOTE = f"[image/png, {len(PNG)} bytes, sha256 {hashlib.sha256(PNG).hexdigest()[:16]}]"
SOURCE = {"type": "base64", "media_type": "image/png", "data": BASE64}
IMAGE = {"type": "image", "source": SOURCE}
NOTED = {"type": "image", "source": SOURCE | {"data": NOTE}}
KEY = "sk-ant-api03-abcDEF_123-xyz"
GITHUB = "ghp_" + "a1B2" * 9
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpM"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA+/=\n-----END RSA PRIVATE KEY-----"

TEXTS: dict[str, tuple[str, str]] = {
    "plain": ("nothing to see: task-12345, risk-free, basically", "nothing to see: task-12345, risk-free, basically"),
    "a key of Anthropic's": (f"use {KEY}.", f"use {MASK}."),
    "a key of this proxy": ("key=sk-" + "aB3" * 16 + "x", f"key={MASK}"),
    "a bearer token": ("Authorization: Bearer abc.def-ghi_jkl~123456==", f"Authorization: {MASK}"),
    "a key right after a word": (f"my{KEY}", f"my{MASK}"),
    "words about bearers": ("bearer tokens and basic auth", "bearer tokens and basic auth"),
    "AWS's id and secret": (
        "AKIAIOSFODNN7EXAMPLE aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        f"{MASK} {MASK}",
    ),
    "GitHub's": (f"git clone https://x:{GITHUB}@github.com/a", f"git clone https://{MASK}@github.com/a"),
    "GitHub's alone": (GITHUB, MASK),
    "Slack's": ("xoxb-123456789012-abcdef", MASK),
    "Google's": ("AIza" + "x" * 35, MASK),
    "a JWT": (f"cookie {JWT}", f"cookie {MASK}"),
    "a private key": (f"a\n{PEM}\nb", f"a\n{MASK}\nb"),
    "a private key that is cut": (PEM[:50] + " and no end", MASK),
    "a password in a URL": ("postgres://user:hunter2@db/x", f"postgres://{MASK}@db/x"),
    "a port is none": ("http://127.0.0.1:4000/x", "http://127.0.0.1:4000/x"),
    "a data URL": (f"see data:image/png;base64,{BASE64} there", f"see {NOTE} there"),
    "bare base64": (f"x {BASE64} y", "x " + NOTE.replace("image/png", "base64") + " y"),
    "base64 that is short": (BASE64[:400], BASE64[:400]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    text, expected = TEXTS[name]
    redactor = Redactor()
    assert redactor.text(text) == expected
    assert (redactor.times > 0) == (text != expected)
    # As JSON it is the same, escapes or not, and as a part of something that is no JSON too.
    for ascii_only in (True, False):
        body = json.dumps({"a": [{"b": text}]}, ensure_ascii=ascii_only).encode()
        assert json.loads(redactor.body(body, most=10**6).text) == {"a": [{"b": expected}]}


VALUES: dict[str, tuple[Any, Any]] = {
    "an image": ({"content": [IMAGE]}, {"content": [NOTED]}),
    "an image within a tool's result within a message": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [IMAGE, {"text": KEY}]}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "content": [NOTED, {"text": MASK}],
                        }
                    ],
                }
            ]
        },
    ),
    "a small image": (
        {"type": "base64", "media_type": "image/gif", "data": "R0lG"},
        {
            "type": "base64",
            "media_type": "image/gif",
            "data": f"[image/gif, 3 bytes, sha256 {hashlib.sha256(b'GIF').hexdigest()[:16]}]",
        },
    ),
    "members named like secrets": (
        {"mcp_servers": [{"url": "https://x", "authorization_token": "abc"}], "Password": "x", "api_key": None},
        {"mcp_servers": [{"url": "https://x", "authorization_token": MASK}], "Password": MASK, "api_key": None},
    ),
    "a schema that speaks of secrets": (
        {"properties": {"password": {"type": "string"}}, "required": ["password"]},
        {"properties": {"password": {"type": "string"}}, "required": ["password"]},
    ),
    "keys as names of members": (
        {KEY: 1, KEY + "2": 2, MASK + " 3": 3, KEY + "4": 4},
        {MASK: 1, MASK + " 2": 2, MASK + " 3": 3, MASK + " 4": 4},
    ),
    "a key as a name, and the name that it was given": (
        {KEY: 1, KEY + "2": 2, MASK + " 2": 3},
        {MASK: 1, MASK + " 2": 2, MASK + " 2 2": 3},
    ),
    "figures and words stay": ({"a": [1, 2.5, True, None, ""]}, {"a": [1, 2.5, True, None, ""]}),
    "matches of a pattern": ({"a": "card 1234 5678"}, {"a": f"card {MASK} {MASK}"}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    value, expected = VALUES[name]
    redacted = Redactor([re.compile(r"\b\d{4}\b")]).body(json.dumps(value).encode(), most=10**6)
    assert (json.loads(redacted.text), redacted.is_json, redacted.cut) == (expected, True, False)
    assert (redacted.times > 0) == (value != expected)


def test_a_key_that_hides_behind_escapes_is_seen() -> None:
    body = b'{"a": "\\u0073k-ant-api03-abcdef"}'
    assert Redactor().body(body, most=1000).text == f'{{"a":"{MASK}"}}'


class Counting(dict[str, Any]):
    """Counts how often it is asked for a name."""

    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_names_that_read_the_same_are_numbered_with_one_look_at_each() -> None:
    kept, numbers = Counting({MASK: 0, f"{MASK} 500": 0}), dict[str, int]()
    for _ in range(4000):
        kept[_numbered(MASK, numbers, kept)] = 0
    assert len(kept) == 4002
    assert kept.asked == 4001  # one was there before


def test_an_object_of_nothing_but_keys_as_names() -> None:
    body = json.dumps({f"{KEY}{number}": number for number in range(20_000)}).encode()
    value = json.loads(Redactor().body(body, most=10**7).text)
    assert list(value.values()) == list(range(20_000))
    assert list(value)[-1] == f"{MASK} 20000"


HOSTILE: dict[str, bytes] = {
    "deep nesting": b'{"a":' * 100_000 + b'"' + KEY.encode() + b'"',
    "nesting that can be read and hardly walked": b'{"a":' * 900 + b'"' + KEY.encode() + b'"' + b"}" * 900,
    "broken UTF-8": b'{"a": "\xff\xfe ' + KEY.encode() + b'"}',
    "a lone surrogate": b'{"a": "\\ud800 ' + KEY.encode() + b'"}',
    "a figure beyond all bounds": b'{"a": 1' + b"0" * 500 + b', "b": "' + KEY.encode() + b'"}',
    "no JSON": b"{" + KEY.encode() + b"\0",
    "a page": b"<html>" + KEY.encode(),
    "a string that is huge": b'{"a": "' + b"x y" * 400_000 + KEY.encode() + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("cut", [False, True])
def test_hostile_bodies_are_redacted_too(name: str, cut: bool) -> None:
    redacted = Redactor().body(HOSTILE[name], most=10**7, cut=cut)
    assert KEY not in redacted.text
    assert redacted.times == 1
    if redacted.is_json:
        json.loads(redacted.text)


def test_a_body_of_which_there_is_the_beginning_only_stays_json() -> None:
    body = json.dumps({"system": KEY, "messages": [{"content": "hello"}, {"content": [IMAGE]}]}).encode()
    redacted = Redactor().body(body[:-700], most=10**6, cut=True)
    value = json.loads(redacted.text)
    assert (redacted.cut, value["system"], value["messages"][0]) == (True, MASK, {"content": "hello"})
    assert value["messages"][1]["content"][0]["source"]["data"].startswith("[image/png, ")


def test_what_is_longer_than_may_be_kept_is_cut_and_stays_json() -> None:
    body = json.dumps({"a": "x" * 100, "b": ["y" * 100, 1]}).encode()
    redacted = Redactor().body(body, most=150)
    assert redacted.cut
    value = json.loads(redacted.text)
    assert value["a"] == "x" * 100
    assert set(value["b"][0]) == {"y"}
    text = Redactor().body(b"z" * 300, most=150)
    assert (text.text, text.cut, text.is_json) == ("z" * 150, True, False)


def test_a_pattern_finds_its_match_wherever_pieces_end() -> None:
    match = "<" + "=" * (OVERLAP - 2) + ">"
    for before in (0, 1, PIECE - OVERLAP - 1, PIECE - OVERLAP, PIECE - 5, PIECE, 2 * PIECE - OVERLAP + 3):
        redactor = Redactor([re.compile("<=*>")])
        assert redactor.text("." * before + match + "." * PIECE) == "." * before + MASK + "." * PIECE
        assert redactor.times == 1


def test_a_pattern_that_matches_nothing_changes_nothing() -> None:
    redactor = Redactor([re.compile("x*")])
    assert (redactor.text("a.c" * 5000), redactor.times) == ("a.c" * 5000, 0)
    assert redactor.text("axxb") == f"a{MASK}b"


@given(text=st.text(st.sampled_from("ab1 \n"), max_size=300).map(lambda text: text * 40))
def test_pieces_are_found_as_in_one(text: str) -> None:
    pattern = re.compile(r"\d[ab]{1,3}\d")
    assert Redactor([pattern]).text(text) == pattern.sub(MASK, text)
