from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from tproxy import errors
from tproxy.errors import Header
from tproxy.flow.admit import admit, check_model, customer, new_id, tags
from tproxy.flow.identify import Caller
from tproxy.flow.route import Passage
from tproxy.protocol.request import RequestFacts, read_request
from tproxy.store.base import Closing, Opening

CALLER = Caller("key:abc", "search", team="t", user="u", tags=("k", "shared"))
FACTS = read_request(b'{"model":"claude-opus-5","max_tokens":1,"messages":[],"stream":true}')
MESSAGES = Passage("POST", b"/anthropic", b"/v1/messages", None)


class Spy:
    """A ledger that remembers what it was told."""

    def __init__(self, writable: bool = True) -> None:
        self.writable = writable
        self.opened: list[Opening] = []

    def open(self, opening: Opening) -> Spy:
        self.opened.append(opening)
        return self

    def note(self, closing: Closing) -> None: ...

    def close(self, closing: Closing) -> None: ...

    async def durable(self) -> None: ...


def let_in(
    ledger: Spy,
    headers: list[Header],
    facts: RequestFacts | None = FACTS,
    caller: Caller = CALLER,
    passage: Passage = MESSAGES,
) -> Opening:
    admit(
        ledger,
        id="id",
        accepted_us=5,
        passage=passage,
        upstream="https://api",
        caller=caller,
        facts=facts,
        headers=headers,
        client_address="127.0.0.1",
    )
    return ledger.opened[-1]


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    now_us = 1_790_000_000_000_000
    ids = [new_id(now_us + step * 1000) for step in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert uuid.UUID(new_id(now_us)).int >> 80 == now_us // 1000


def test_the_row_says_who_and_whose() -> None:
    opening = let_in(
        Spy(),
        [(b"User-Agent", b"sdk/1"), (b"X-Claude-Code-Session-Id", b"s1"), (b"x-tproxy-customer", b"c1")],
    )
    assert opening == Opening(
        id="id",
        accepted_us=5,
        method="POST",
        path="/v1/messages",
        upstream="https://api",
        model_asked="claude-opus-5",
        stream=True,
        caller="key:abc",
        caller_alias="search",
        team="t",
        user="u",
        customer="c1",
        tags=("k", "shared"),
        session="s1",
        client_address="127.0.0.1",
        user_agent="sdk/1",
    )


def test_nothing_is_let_in_while_the_ledger_cannot_be_written() -> None:
    ledger = Spy(writable=False)
    with pytest.raises(errors.LedgerUnavailable):
        let_in(ledger, [])
    assert ledger.opened == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-litellm-end-user-id", b"3"), (b"x-litellm-customer-id", b"2"), (b"x-tproxy-customer", b"1")], "1"),
        ([(b"x-litellm-end-user-id", b"3"), (b"X-LiteLLM-Customer-Id", b"2")], "2"),
        ([(b"x-litellm-end-user-id", b"3")], "3"),
        ([(b"x-tproxy-customer", b" ")], "4"),
        ([], "4"),
    ],
)
def test_the_first_customer_wins(headers: list[Header], expected: str) -> None:
    facts = replace(FACTS, litellm_user="4", user_id="5")
    assert customer(headers, facts) == expected


def test_metadata_user_id_is_the_last_resort() -> None:
    assert customer([], replace(FACTS, litellm_user=None, user_id="5")) == "5"
    assert customer([], FACTS) is None
    assert customer([], None) is None


def test_tags_are_joined_in_order_without_repetition() -> None:
    headers = [(b"x-litellm-tags", b"c, a"), (b"x-tproxy-tags", b"a,,b "), (b"x-tproxy-tags", b"d")]
    facts = replace(FACTS, litellm_tags=("e", "shared", "b"))
    assert tags(headers, facts, CALLER) == ("a", "b", "d", "c", "e", "shared", "k")


def test_tags_are_utf_8() -> None:
    assert tags([(b"x-tproxy-tags", "zürich".encode())], None, replace(CALLER, tags=())) == ("zürich",)


def test_attribution_is_bounded() -> None:
    many = b",".join(b"t%d" % n for n in range(1000))
    found = tags([(b"x-tproxy-tags", many), (b"x-tproxy-tags", b"x" * 9999)], None, CALLER)
    assert len(found) == 64
    assert customer([(b"x-tproxy-customer", b"\xff" * 9999)], None) == "\ufffd" * 256


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "claude-opus-5", True),
        ((), None, True),
        (("claude-opus-5",), "claude-opus-5", True),
        (("claude-haiku-*", "claude-opus-5"), "claude-haiku-4-5", True),
        (("claude-haiku-*",), "claude-opus-5", False),
        (("claude-opus-5",), "claude-opus-5-5", False),
        (("claude-opus-5",), "CLAUDE-OPUS-5", False),
        (("*",), None, False),
        (("claude-opus-4-8[1m]",), "claude-opus-4-8[1m]", True),
        (("claude-opus-4-8[1m]",), "claude-opus-4-8m", False),
        (("claude-*-4-?",), "claude-opus-4-8", False),
        (("claude-*-4-8", "x"), "claude-opus-4-8", True),
    ],
)
def test_the_allow_list(models: tuple[str, ...], model: str | None, allowed: bool) -> None:
    caller = replace(CALLER, models=models)
    if allowed:
        check_model(caller, model)
    else:
        with pytest.raises(errors.ModelNotAllowed):
            check_model(caller, model)


def test_a_key_for_certain_models_must_say_clearly_which() -> None:
    unclear = read_request(b'{"model":"claude-haiku-4-5","model":"claude-opus-5","max_tokens":1,"messages":[]}')
    with pytest.raises(errors.ModelNotAllowed):
        let_in(Spy(), [], unclear, replace(CALLER, models=("claude-haiku-*",)))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", b"/v1/messages", True),
        ("POST", b"/v1/messages/count_tokens", True),
        ("GET", b"/v1/models", True),
        ("POST", b"/v1/files", True),
        ("POST", b"/v1/messages/batches", False),
        ("POST", b"/v1/sessions", False),
    ],
)
def test_a_key_for_certain_models_may_not_run_what_cannot_be_read(method: str, path: bytes, allowed: bool) -> None:
    """A batch names a model in each of its requests; a top-level one says nothing about them."""
    passage = Passage(method, b"", path, None)
    caller = replace(CALLER, models=("claude-opus-5",))
    if allowed:
        let_in(Spy(), [], FACTS, caller, passage)
    else:
        with pytest.raises(errors.ModelNotAllowed):
            let_in(Spy(), [], FACTS, caller, passage)
