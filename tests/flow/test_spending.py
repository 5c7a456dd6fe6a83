"""Budgets as an exchange meets them: what it claims, what it is refused, what it waits for, and how it is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from tests.flow.asgi import POST, Asked, Stage, stage
from tests.flow.known import digest, key
from tests.flow.test_exchange import EVENTS, HEAD, WHOLE, chunk, error_code
from tests.wire.peer import Line, answers
from tproxy.store.subjects import CUSTOMER, PROXY, TAG, TEAM, USER, Budget, Subject, Terms

USD = 1_000_000_000
# What WHOLE costs: 100 tokens in at 4, 9 tokens out at 20 dollars a million.
COST = 100 * 4_000 + 9 * 20_000
BODY = (
    b'{"model":"claude-opus-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"'
    + b"Hello " * 20
    + b'"}]}'
)


def budget(limit_nano: int, **terms: Any) -> Terms:
    return Terms(budgets=(Budget(limit_nano=limit_nano),), **terms)


def spender(limit_nano: int, **terms: Any) -> Subject:
    return key("sk-spender", "spender", terms=budget(limit_nano, **terms))


def asking(**more: Any) -> Asked:
    headers = [h for h in POST if h[0] not in (b"content-length", b"x-api-key")]
    headers += [(b"x-api-key", b"sk-spender"), (b"content-length", str(len(BODY)).encode())]
    return Asked(headers=headers + more.pop("headers", []), body=[BODY], **more)


def spent(s: Stage, kind: str = "key", id: str = digest("sk-spender")) -> tuple[int, int]:
    [standing] = s.ledger.standings(kind, id)
    return standing.spent_nano, standing.held_nano


@pytest.mark.parametrize("mode", ["expected", "hard", "soft"])
async def test_what_it_costs_is_booked_and_the_rest_is_given_back(mode: str) -> None:
    async with stage(answers(WHOLE), access="keys", known=[spender(USD, mode=mode)]) as s:
        asked = await s.ask(asking())
        assert asked.whole
        assert s.row["cost_nano"] == COST
        assert spent(s) == (COST, 0)
        assert dict(asked.sent[0]["headers"])[b"x-litellm-key-max-budget"] == b"1.0"
        assert s.at_rest


@pytest.mark.parametrize("mode", ["expected", "hard", "soft"])
async def test_a_budget_that_is_spent_refuses_and_says_all_about_it(mode: str) -> None:
    async with stage(answers(WHOLE), access="keys", known=[spender(COST, mode="soft")]) as s:
        assert (await s.ask(asking())).whole
        assert spent(s) == (COST, 0)
        s.proxy.services = replace(s.proxy.services, govern=replace(s.proxy.services.govern, budget_mode=mode))
        s.directory.put(spender(COST, mode=mode))
        asked = await s.ask(asking())
        assert (asked.status, error_code(asked)) == (402, "budget_exceeded")
        assert json.loads(asked.answer)["error"]["type"] == "billing_error"
        assert (b"x-should-retry", b"false") in asked.sent[0]["headers"]
        message = json.loads(asked.answer)["error"]["message"]
        assert all(said in message for said in ("key 'spender'", "0.00058 USD", "0.00058 spent", "never starts anew"))
        assert s.upstream.requests == 1
        assert len(s.ledger.rows) == 1


@pytest.mark.parametrize(
    ("governor", "headers"),
    [
        (Subject(kind=TEAM, id="t", terms=budget(1, mode="hard")), []),
        (Subject(kind=USER, id="u", terms=budget(1, mode="hard")), []),
        (Subject(kind=CUSTOMER, id="c", terms=budget(1, mode="hard")), [(b"x-tproxy-customer", b"c")]),
        (Subject(kind=TAG, id="x", terms=budget(1, mode="hard")), [(b"x-tproxy-tags", b"w,x")]),
        (Subject(kind=PROXY, id="", terms=budget(1, mode="hard")), []),
    ],
    ids=lambda value: value.kind if isinstance(value, Subject) else "",
)
async def test_every_budget_has_a_say(governor: Subject, headers: list[Any]) -> None:
    who = key("sk-spender", "spender", team="t", user="u", terms=budget(USD))
    async with stage(answers(WHOLE), access="keys", known=[who, governor]) as s:
        asked = await s.ask(asking(headers=headers))
        assert (asked.status, error_code(asked)) == (402, "budget_exceeded")
        name = "whole proxy" if governor.kind == PROXY else f"{governor.kind} {governor.id!r}"
        assert name in json.loads(asked.answer)["error"]["message"]
        assert spent(s) == (0, 0), "the other budgets hold nothing of it"


async def test_calls_that_are_free_pass_a_spent_budget() -> None:
    free = [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]
    async with stage(answers(free), access="keys", known=[spender(0, mode="hard")]) as s:
        assert (await s.ask(asking(path=b"/v1/messages/count_tokens"))).status == 200
        assert (await s.ask(asking(path=b"/v1/messages"))).status == 402


async def test_what_cannot_be_bounded_is_refused_by_a_hard_budget_alone() -> None:
    batch = [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]
    for mode, status in (("hard", 402), ("expected", 200), ("soft", 200)):
        async with stage(answers(batch), access="keys", known=[spender(USD, mode=mode)]) as s:
            assert (await s.ask(asking(path=b"/v1/messages/batches"))).status == status


async def test_the_master_key_is_never_refused_and_its_spend_is_booked() -> None:
    whole = Subject(kind=PROXY, id="", terms=budget(1, mode="hard", rpm=0))
    async with stage(answers(WHOLE), access="keys", master=digest("sk-spender"), known=[whole]) as s:
        assert (await s.ask(asking())).whole
        assert s.row["caller"] == "master"
        assert spent(s, PROXY, "") == (COST, 0)


async def run(line: Line) -> None:
    """An upstream that answers only when it is told to."""
    await line.request()
    await line.done.wait()
    for piece in WHOLE:
        await line.send(piece)


async def running(s: Stage, count: int) -> None:
    while len(s.upstream.lines) < count or not s.upstream.lines[count - 1].requests:
        await trio.testing.wait_all_tasks_blocked(0.001)


async def test_who_cannot_fit_now_waits_for_the_others_to_settle() -> None:
    async with stage(run, run, access="keys", known=[spender(1_000_000, mode="hard", wait=60)]) as s:
        first, second = asking(), asking()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, first)
            await running(s, 1)
            assert spent(s)[1] > 500_000, "two do not fit"
            nursery.start_soon(s.ask, second)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(s.upstream.lines) == 1
            s.upstream.lines[0].done.set()
            await running(s, 1)
            while not second.sent:
                for line in s.upstream.lines:
                    line.done.set()
                await trio.testing.wait_all_tasks_blocked(0.001)
        # The first cost less than it held, but what is left does not hold a second.
        assert first.whole
        assert (second.status, error_code(second)) == (402, "budget_exceeded")
        assert spent(s) == (COST, 0)


async def test_who_has_waited_too_long_is_told_to_come_again(autojump_clock: object) -> None:
    async with stage(run, access="keys", known=[spender(1_000_000, mode="hard", wait=0)]) as s:
        first = asking()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, first)
            await running(s, 1)
            second = await s.ask(asking())
            assert (second.status, error_code(second)) == (429, "budget_reserved")
            assert b"retry-after" in dict(second.sent[0]["headers"])
            assert "held by other running requests" in json.loads(second.answer)["error"]["message"]
            s.upstream.lines[0].done.set()
        assert first.whole


async def test_a_client_that_leaves_while_it_waits_leaves_nothing() -> None:
    async with stage(run, access="keys", known=[spender(1_000_000, mode="hard", wait=600)]) as s:
        first, second = asking(), asking(ours=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, first)
            await running(s, 1)
            nursery.start_soon(s.ask, second)
            await trio.testing.wait_all_tasks_blocked(0.01)
            second.leave()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(s.ledger.rows) == 1
            s.upstream.lines[0].done.set()
        assert second.sent == []
        assert s.at_rest


@pytest.mark.parametrize(("mode", "requests"), [("expected", 1), ("soft", 1), ("hard", 0)])
async def test_who_is_let_in_is_answered_when_the_row_is_durable_but_sent_before(mode: str, requests: int) -> None:
    """But not where a hard budget is held, which a process that dies meanwhile would pass."""
    async with stage(answers(WHOLE), access="keys", known=[spender(USD, mode=mode)]) as s:
        s.ledger.hold_commits()
        asked = asking()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert s.upstream.requests == requests
            assert asked.sent == []
            s.ledger.release()
        assert asked.whole


async def test_an_exchange_that_is_cancelled_while_it_is_let_in_closes_its_row() -> None:
    async with stage(answers(WHOLE), access="keys", known=[spender(USD, mode="hard")]) as s:
        s.ledger.hold()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(s.ask, asking())
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        s.ledger.release()
        assert (s.row["ended"], s.row["cost_nano"], s.row["certainty"]) == ("failed", 0, "exact")
        assert spent(s) == (0, 0)
        assert s.upstream.lines == []


async def test_a_budget_that_refuses_gives_back_what_the_limits_took() -> None:
    who = key("sk-spender", "spender", terms=budget(1, mode="hard", rpm=1, parallel=1))
    async with stage(answers(WHOLE), access="keys", known=[who]) as s:
        for _ in range(3):
            assert (await s.ask(asking())).status == 402


async def test_limits_refuse_before_a_row_is_opened() -> None:
    async with stage(answers(WHOLE), access="keys", known=[key("sk-spender", "spender", terms=Terms(rpm=1))]) as s:
        first = await s.ask(asking())
        assert dict(first.sent[0]["headers"])[b"x-ratelimit-remaining-requests"] == b"0"
        second = await s.ask(asking())
        assert (second.status, error_code(second)) == (429, "rate_limited")
        assert dict(second.sent[0]["headers"])[b"retry-after"] == b"60"
        assert len(s.ledger.rows) == 1


async def test_tokens_are_counted_as_they_were() -> None:
    who = key("sk-spender", "spender", terms=Terms(tpm=1000))
    async with stage(answers(WHOLE, WHOLE), access="keys", known=[who]) as s:
        await s.ask(asking())
        second = await s.ask(asking())
        # 109 of the first; the second is expected to take as much in, and out all of its max_tokens
        assert dict(second.sent[0]["headers"])[b"x-ratelimit-remaining-tokens"] == b"781"


class Endless:
    """An upstream that streams words until it is cut."""

    def __init__(self) -> None:
        self.cut = False

    async def __call__(self, line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(EVENTS[0]), chunk(EVENTS[1]))
        delta = EVENTS[2].replace(b"Hello there", b"word " * 200)
        try:
            for _ in range(100):
                await line.send(chunk(delta))
                await trio.sleep(1)
        except trio.BrokenResourceError:
            self.cut = True


@pytest.mark.parametrize("mode", ["expected", "soft"])
async def test_a_stream_is_cut_at_its_budget_between_two_events(mode: str, autojump_clock: object) -> None:
    upstream = Endless()
    limit = 30_000_000  # some 1,500 tokens of output
    body = BODY.replace(b'"max_tokens":10,', b'"max_tokens":100000,')
    async with stage(upstream, access="keys", known=[spender(limit, mode=mode, cut=True)]) as s:
        asked = asking()
        asked.body = [body]
        asked.headers = [h for h in asked.headers if h[0] != b"content-length"] + [
            (b"content-length", str(len(body)).encode())
        ]
        await s.ask(asked)
        assert asked.whole, "the answer has its proper end"
        head, _, last = asked.answer.rpartition(b"event: error\ndata: ")
        assert head.endswith(b"\n\n")
        error = json.loads(last)
        assert (error["type"], error["error"]["type"]) == ("error", "billing_error")
        assert error["error"]["details"]["error_code"] == "budget_exceeded"
        assert (s.row["ended"], s.row["status"], s.row["certainty"]) == ("cut_at_budget", 200, "estimated")
        assert s.row["error_type"] == "budget_exceeded"
        assert limit <= s.row["cost_nano"] < 2 * limit
        assert s.at_rest


async def test_a_stream_without_the_wish_to_be_cut_holds_more(autojump_clock: object) -> None:
    held: list[int] = []

    async def long(line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(EVENTS[0]), chunk(EVENTS[1]))
        for _ in range(10):
            await line.send(chunk(EVENTS[2].replace(b"Hello there", b"word " * 400)))
            await trio.sleep(1)
            held.append(spent(s)[1])
        await line.send(chunk(EVENTS[3]), chunk(EVENTS[4]), b"0\r\n\r\n")

    async with stage(long, access="keys", known=[spender(5_000_000)]) as s:
        asked = await s.ask(asking())
        assert asked.whole
        assert held == sorted(held)
        assert held[-1] > 50_000_000, "past the limit, but known"
        assert spent(s) == (COST, 0)
