"""Admission: the order of its decisions, and the row that it opens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.known import Known, key
from tests.store.memory import MemoryLedger
from tproxy import errors
from tproxy.errors import Header
from tproxy.flow.admit import Admission, Asking, Governance, admit
from tproxy.flow.expect import Expectations
from tproxy.flow.identify import Caller
from tproxy.flow.limits import Limiter
from tproxy.flow.line import Line
from tproxy.flow.route import Passage
from tproxy.protocol.pricing import built_in
from tproxy.protocol.request import read_request
from tproxy.store.base import FAILED, Closing, Opening
from tproxy.store.subjects import CUSTOMER, TAG, Subject, Terms

BODY = b'{"model":"claude-opus-5","max_tokens":1,"messages":[],"stream":true}'
CALLER = Caller("key:abc", "search", team="t", user="u", tags=("k", "shared"))
MESSAGES = Passage("POST", b"/anthropic", b"/v1/messages", None)


class Door:
    """What admits in these tests."""

    def __init__(self, *known: Subject) -> None:
        self.ledger = MemoryLedger()
        self.govern = Governance(Known(known), Limiter(), Expectations(), Line(), built_in())
        for subject in known:
            self.ledger.set_budgets(subject)

    async def let_in(
        self, headers: list[Header], caller: Caller = CALLER, passage: Passage = MESSAGES, **more: Any
    ) -> Admission:
        asking = Asking(
            **{
                "id": "id",
                "accepted_us": 1_795_000_000_000_000,
                "passage": passage,
                "upstream": "https://api",
                "identify": lambda: caller,
                "headers": headers,
                "facts": read_request(BODY),
                "body": BODY,
                "client_address": "127.0.0.1",
                **more,
            }
        )
        return await admit(self.govern, self.ledger, asking, lambda: Closing(id="id", ended=FAILED))


async def test_the_row_says_who_and_whose() -> None:
    door = Door()
    await door.let_in(
        [
            (b"User-Agent", b"sdk/1"),
            (b"X-Claude-Code-Session-Id", b"s1"),
            (b"X-Claude-Code-Agent-Id", b"a1"),
            (b"X-Claude-Code-Parent-Agent-Id", b"a0"),
            (b"x-tproxy-customer", b"c1"),
        ],
    )
    expected = Opening(
        id="id",
        accepted_us=1_795_000_000_000_000,
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
        agent="a1",
        parent_agent="a0",
        client_address="127.0.0.1",
        user_agent="sdk/1",
    )
    row = door.ledger.rows["id"]
    assert {name: row[name] for name in Opening.__struct_fields__} == {
        name: getattr(expected, name) if name != "tags" else ["k", "shared"] for name in Opening.__struct_fields__
    }


async def test_nothing_is_let_in_while_the_ledger_cannot_be_written() -> None:
    door = Door()
    door.ledger.fail()
    with pytest.raises(errors.LedgerUnavailable):
        await door.let_in([])
    assert door.ledger.rows == {}


async def test_a_key_for_certain_models_must_say_clearly_which() -> None:
    unclear = b'{"model":"claude-haiku-4-5","model":"claude-opus-5","max_tokens":1,"messages":[]}'
    caller = Caller("key:abc", subjects=(key("sk-a", "a", models=("claude-haiku-*",)),))
    with pytest.raises(errors.ModelNotAllowed):
        await Door().let_in([], caller, facts=read_request(unclear), body=unclear)


async def test_a_route_that_is_not_on_the_list_is_refused() -> None:
    caller = Caller("key:abc", subjects=(key("sk-a", "a", routes=("/v1/models",)),))
    with pytest.raises(errors.RouteNotAllowed):
        await Door().let_in([], caller)


async def test_who_asks_on_behalf_of_a_blocked_customer_is_refused() -> None:
    door = Door(Subject(kind=CUSTOMER, id="c", blocked=True))
    await door.let_in([(b"x-tproxy-customer", b"d")])
    with pytest.raises(errors.CustomerBlocked):
        await door.let_in([(b"x-tproxy-customer", b"c")], id="other")
    assert list(door.ledger.rows) == ["id"]


@pytest.mark.parametrize(
    ("limited", "headers"),
    [
        (Subject(kind=CUSTOMER, id="c", terms=Terms(rpm=1)), [(b"x-tproxy-customer", b"c")]),
        (Subject(kind=TAG, id="x", terms=Terms(rpm=1)), [(b"x-tproxy-tags", b"x")]),
    ],
    ids=["customer", "tag"],
)
async def test_limits_are_those_of_customers_and_tags_too(
    limited: Subject, headers: list[Header], autojump_clock: object
) -> None:
    door = Door(limited)
    await door.let_in(headers)
    with pytest.raises(errors.RateLimited) as caught:
        await door.let_in(headers, id="second")
    assert repr(limited.id) in caught.value.message
    await door.let_in([], id="third")
    await door.let_in(headers, Caller("master"), id="fourth")
    assert list(door.ledger.rows) == ["id", "third", "fourth"]
