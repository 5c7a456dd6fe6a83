from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sandbox.test_faults import ROWS
from tproxy.sandbox.script import KEYS, TAG, Place, Script

DOCS = Path(__file__).parents[2] / "docs" / "sandbox.md"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        pytest.param("", Script(), id="nothing"),
        pytest.param("tokens=200; tps=50", Script(tokens=200, tps=50), id="semicolons"),
        pytest.param("tokens=200 tps=0.5", Script(tokens=200, tps=0.5), id="blanks"),
        pytest.param(";; tokens=1;", Script(tokens=1), id="empty parts"),
        pytest.param("head_stall", Script(head_stall=True), id="a bare key is 1"),
        pytest.param("cut_after=3", Script(cut_after=Place(3, "events")), id="events"),
        pytest.param("cut_after=700b", Script(cut_after=Place(700, "bytes")), id="bytes"),
        pytest.param("cut_after=67108864b", Script(cut_after=Place(67108864, "bytes")), id="the most bytes"),
        pytest.param("tokens=1;tokens=2", Script(tokens=2), id="the last wins"),
    ],
)
def test_a_script_is_read(text: str, script: Script) -> None:
    assert Script().with_(text) == script


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("token=1", "unknown key 'token', did you mean 'tokens'?"),
        ("zzzzzz=1", "unknown key 'zzzzzz'"),
        ("tokens=abc", "tokens=abc: not a whole number between 0 and 200000"),
        ("tokens=-1", "tokens=-1: not a whole number between 0 and 200000"),
        ("tokens=1.5", "tokens=1.5: not a whole number between 0 and 200000"),
        ("tokens=200001", "tokens=200001: not a whole number between 0 and 200000"),
        ("tokens=", "tokens=: not a whole number between 0 and 200000"),
        ("odd=2", "odd=2: neither 0 nor 1"),
        ("eol=nl", "eol=nl: none of lf, crlf, cr"),
        ("status=200", "status=200: neither 0 nor a status between 300 and 599"),
        ("status=bad", "status=bad: neither 0 nor a status between 300 and 599"),
        ("cut_after=b", "cut_after=b: neither events, as in 7 (at most 1000000), nor bytes, as in 700b (at most"),
        ("cut_after=7kb", "cut_after=7kb: neither events"),
        ("cut_after=1000001", "cut_after=1000001: neither events"),
        ("cut_after=67108865b", "cut_after=67108865b: neither events"),
        ("tps=nan", "tps=nan: not a number between 0 and 86400"),
        ("tps=fast", "tps=fast: not a number between 0 and 86400"),
    ],
)
def test_a_fault_names_its_key(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        Script().with_(text)


def test_what_is_not_said_stays() -> None:
    assert Script(tps=30).with_("tokens=2") == Script(tps=30, tokens=2)


def test_the_tag_is_found_in_a_text() -> None:
    found = TAG.search("Please. [sandbox tps=50 tokens=200] And [sandbox x]")
    assert found is not None
    assert found[1] == "tps=50 tokens=200"


def test_the_documentation_has_the_same_keys() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    assert {(name, about) for name, _, about in documented} == {
        (name, key.metadata["about"]) for name, key in KEYS.items()
    }
    defaults = {name: default for name, default, _ in documented}
    for name, key in KEYS.items():
        text = defaults[name].strip("`")
        assert Script().with_("" if text == "none" else f"{name}={text}") == Script(), name
        assert (text == "none") == (key.default is None or key.default == ""), name


def test_every_key_is_tried_on_a_socket() -> None:
    tried = {part.partition("=")[0] for row in ROWS for part in row.split(";")}
    assert tried == set(KEYS)
