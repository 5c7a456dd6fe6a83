from __future__ import annotations

from typing import Any

import pytest

from tproxy.capture.choice import ERRORS, KEYS, SAMPLE, Choice, turned_off
from tproxy.flow.identify import ANONYMOUS, MASTER, Caller
from tproxy.setting_tables import Capture
from tproxy.store.subjects import KEY, TEAM, USER, Subject

ALICE = Caller("key:" + "a" * 64, alias="alice")


@pytest.mark.parametrize(
    ("settings", "caller", "why"),
    [
        ({}, ALICE, None),
        ({"errors": True}, ALICE, ERRORS),
        ({"sample_rate": 1}, ALICE, SAMPLE),
        ({"sample_rate": 1, "errors": True}, ALICE, SAMPLE),
        ({"keys": ("alice",), "sample_rate": 1, "errors": True}, ALICE, KEYS),
        ({"keys": ("a" * 64,)}, ALICE, KEYS),
        ({"keys": ("key:" + "a" * 64,)}, ALICE, KEYS),
        ({"keys": ("bob",)}, ALICE, None),
        ({"keys": ("bob",), "errors": True}, ALICE, ERRORS),
        ({"keys": ("master",)}, MASTER, KEYS),
        ({"keys": ("anonymous",)}, ANONYMOUS, KEYS),
        ({"keys": ("alice",)}, ANONYMOUS, None),
    ],
    ids=str,
)
def test_which_are_kept_and_why(settings: dict[str, Any], caller: Caller, why: str | None) -> None:
    choice = Choice.of(Capture(**settings))
    assert choice.any is bool(settings)
    assert choice.why("id", caller) == why


def test_a_sample_is_the_same_each_time_and_of_its_size() -> None:
    ids = [f"0198c0de-0000-7000-8000-{number:012x}" for number in range(4000)]
    for rate in (0.01, 0.25, 0.5):
        choice = Choice.of(Capture(sample_rate=rate))
        sample = {id for id in ids if choice.why(id, ALICE)}
        assert sample == {id for id in ids if choice.why(id, MASTER)}
        assert 0.7 * rate < len(sample) / len(ids) < 1.3 * rate
        smaller = Choice.of(Capture(sample_rate=rate / 2))
        assert {id for id in ids if smaller.why(id, ALICE)} < sample


@pytest.mark.parametrize(
    ("metadata", "off"),
    [
        ({}, False),
        ({"turn_off_message_logging": True}, True),
        ({"turn_off_message_logging": "true"}, True),
        ({"turn_off_message_logging": "True "}, True),
        ({"turn_off_message_logging": 1}, True),
        ({"turn_off_message_logging": False}, False),
        ({"turn_off_message_logging": "false"}, False),
        ({"turn_off_message_logging": None}, False),
        ({"turn_off_message_logging": ""}, False),
        ({"logging": [{"callback_name": "langfuse", "callback_vars": {"turn_off_message_logging": "true"}}]}, True),
        ({"logging": [{"callback_vars": {}}, {"callback_vars": {"turn_off_message_logging": True}}]}, True),
        ({"logging": [{"callback_vars": {"turn_off_message_logging": "False"}}]}, False),
        ({"callback_settings": {"callback_vars": {"turn_off_message_logging": "true"}}}, True),
        ({"logging": "odd", "callback_settings": 1}, False),
        ({"logging": [1, {"callback_vars": 2}, None]}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [KEY, TEAM, USER])
def test_metadata_turns_it_off(metadata: dict[str, Any], off: bool, kind: str) -> None:
    others = [Subject(kind=each, id="x") for each in (KEY, TEAM, USER) if each != kind]
    caller = Caller("key:x", subjects=(*others, Subject(kind=kind, id="x", metadata=metadata)))
    assert turned_off(caller, []) is off


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        (b"x-tproxy-turn-off-message-logging", b"true", True),
        (b"X-Tproxy-Turn-Off-Message-Logging", b"1", True),
        (b"x-litellm-enable-message-redaction", b"true", True),
        (b"litellm-enable-message-redaction", b"True", True),
        (b"x-litellm-enable-message-redaction", b"\xff", True),
        (b"x-litellm-enable-message-redaction", b"false", False),
        (b"x-litellm-enable-message-redaction", b" 0 ", False),
        (b"x-litellm-enable-message-redaction", b"", False),
        (b"litellm-disable-message-redaction", b"true", False),
        (b"x-other", b"true", False),
    ],
)
def test_a_header_turns_it_off(name: bytes, value: bytes, off: bool) -> None:
    assert turned_off(ANONYMOUS, [(b"host", b"x"), (name, value)]) is off


def test_no_header_turns_it_on_again() -> None:
    caller = Caller("key:x", subjects=(Subject(kind=KEY, id="x", metadata={"turn_off_message_logging": True}),))
    headers = [(b"litellm-disable-message-redaction", b"true"), (b"x-tproxy-turn-off-message-logging", b"false")]
    assert turned_off(caller, headers)
