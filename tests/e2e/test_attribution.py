"""Whose: customer, tags and session, from wherever a client can say them, in the order of the contract."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import open_house, open_house_before
from tests.e2e.raw import ask, chunked, request
from tests.wire.peer import OK, answers

SESSION = "6f9f1f64-6f1c-4c3a-9d7e-0a1b2c3d4e5f"
CLAUDE_CODE = json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION})
OLD_CLAUDE_CODE = f"user_0a1b_account_c2_session_{SESSION}"

ALL = [
    ("X-LiteLLM-End-User-Id", "end-user"),
    ("x-litellm-customer-id", "litellm"),
    ("X-Tproxy-Customer", "tproxy"),
]
BODY: dict[str, Any] = {"litellm_metadata": {"user": "meta"}, "metadata": {"user_id": "native"}}


@dataclass(frozen=True)
class Row:
    """What a request brings, and what its row must say."""

    name: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    customer: str | None = None
    tags: list[str] = field(default_factory=list)
    session: str | None = None


def tagged(value: Any) -> dict[str, Any]:
    return {"litellm_metadata": {"tags": value}}


ROWS = [
    Row("nothing"),
    # customer: each place wins over all that come after it
    Row("x-tproxy-customer", ALL, BODY, customer="tproxy"),
    Row("x-litellm-customer-id", ALL[:2], BODY, customer="litellm"),
    Row("x-litellm-end-user-id", ALL[:1], BODY, customer="end-user"),
    Row("litellm_metadata.user", [], BODY, customer="meta"),
    Row("metadata.user_id", [], {"metadata": {"user_id": "native"}}, customer="native"),
    Row("an empty header says nothing", [("x-tproxy-customer", ""), *ALL[:1]], BODY, customer="end-user"),
    Row("an empty user says nothing", [], BODY | {"litellm_metadata": {"user": ""}}, customer="native"),
    Row("a user that is no text", [], BODY | {"litellm_metadata": {"user": 7}}, customer="native"),
    Row("litellm_metadata that is no object", [], BODY | {"litellm_metadata": ["user"]}, customer="native"),
    Row("metadata that is no object", [], {"metadata": "native"}),
    Row("UTF-8", [("x-tproxy-customer", "Zo\u00c3\u00ab")], customer="Zoë"),
    Row("no UTF-8", [("x-tproxy-customer", "Zo\u00eb")], customer="Zo\ufffd"),
    Row("bounded in a header", [("x-tproxy-customer", "c" * 1000)], customer="c" * 256),
    Row("bounded in a body", [], {"metadata": {"user_id": "é" * 1000}}, customer="é" * 256),
    Row(
        "quotes",
        [],
        {"metadata": {"user_id": "a'; DROP TABLE exchange; --\"\n"}},
        customer="a'; DROP TABLE exchange; --\"\n",
    ),
    # tags: all places together, each tag once
    Row("x-tproxy-tags", [("x-tproxy-tags", "a, b ,,c,a")], tags=["a", "b", "c"]),
    Row("repeated lines", [("x-tproxy-tags", "a"), ("X-TPROXY-TAGS", "b")], tags=["a", "b"]),
    Row(
        "all joined",
        [("x-litellm-tags", "b,c"), ("x-tproxy-tags", "a,b")],
        tagged(["c", "d, e", "a"]),
        tags=["a", "b", "c", "d, e"],
    ),
    Row("tags that are no texts", [], tagged([1, None, "x", {"y": 1}, ""]), tags=["x"]),
    Row("tags that are no list", [], tagged("x,y")),
    Row("64 tags at most", [("x-tproxy-tags", ",".join(map(str, range(99))))], tags=[str(n) for n in range(64)]),
    # session
    Row("x-claude-code-session-id", [("X-Claude-Code-Session-Id", SESSION)], session=SESSION),
    Row("metadata.user_id as JSON", [], {"metadata": {"user_id": CLAUDE_CODE}}, customer=CLAUDE_CODE, session=SESSION),
    Row("the old form", [], {"metadata": {"user_id": OLD_CLAUDE_CODE}}, customer=OLD_CLAUDE_CODE, session=SESSION),
    Row(
        "the header wins",
        [("x-claude-code-session-id", "header")],
        {"metadata": {"user_id": CLAUDE_CODE}},
        customer=CLAUDE_CODE,
        session="header",
    ),
    Row("JSON without a session", [], {"metadata": {"user_id": '{"a": 1}'}}, customer='{"a": 1}'),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_customer_tags_and_session(row: Row, tmp_path: Path) -> None:
    asked = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], **row.body}
    body = json.dumps(asked).encode()
    sent = request("POST", "/anthropic/v1/messages", [("x-api-key", "sk-any"), *row.headers], body)
    async with open_house_before(tmp_path, answers(OK)) as (house, upstream):
        ledger = await house.row((await ask(house.address, sent)).id)
        [got] = upstream.lines[0].requests
    assert (ledger["customer"], ledger["tags"], ledger["session"]) == (row.customer, row.tags, row.session)
    assert json.loads(got.body) == {name: value for name, value in asked.items() if name != "litellm_metadata"}
    names = {name.lower() for name, _ in got.headers}
    assert {name.lower().encode() for name, _ in row.headers} <= names


KEYS = """
[[key]]
alias = "team-key"
key = "sk-team"
team_id = "team-1"
user_id = "user-1"
tags = ["from-key", "a"]
"""


async def test_what_the_key_says_of_its_holder(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.touch(mode=0o600)
    file.write_text(KEYS)
    headers = [("authorization", "Bearer sk-team"), ("x-tproxy-tags", "a,b"), ("x-tproxy-customer", "c")]
    async with open_house(tmp_path, tproxy='key_file = "keys.toml"') as house:
        row = await house.row((await ask(house.address, request("GET", "/v1/models", headers))).id)
    assert (row["caller_alias"], row["team"], row["user"], row["customer"]) == ("team-key", "team-1", "user-1", "c")
    assert row["tags"] == ["a", "b", "from-key"]


@pytest.mark.parametrize("form", ["gzip", "chunked"])
async def test_however_the_body_comes(form: str, tmp_path: Path) -> None:
    body = json.dumps(BODY | {"model": "claude-haiku-4-5", "stream": True}).encode()
    how = ("content-encoding", "gzip") if form == "gzip" else ("transfer-encoding", "chunked")
    wire = gzip.compress(body) if form == "gzip" else chunked(body, 9)
    async with open_house_before(tmp_path, answers(OK)) as (house, _):
        answer = await ask(house.address, request("POST", "/v1/messages", [("x-api-key", "k"), how], wire))
        row = await house.row(answer.id)
    assert (row["customer"], row["model_asked"], row["stream"]) == ("meta", "claude-haiku-4-5", True)


async def test_headers_are_heard_on_every_path(tmp_path: Path) -> None:
    headers = [*ALL, ("x-tproxy-tags", "t"), ("x-claude-code-session-id", "s")]
    async with open_house_before(tmp_path, answers(OK)) as (house, _):
        answer = await ask(house.address, request("PUT", "/anthropic/v1/anything?x", headers))
        row = await house.row(answer.id)
    assert (row["customer"], row["tags"], row["session"], row["path"]) == ("tproxy", ["t"], "s", "/v1/anything")
