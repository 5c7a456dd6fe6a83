"""LiteLLM's page on its Anthropic passthrough, from which the project started: what it shows works here.

Each of its curl lines is the exact request that curl makes of it, each of its Python examples is run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agree import agrees
from tests.e2e.house import House, open_house
from tests.e2e.raw import Answer, ask, request
from tests.e2e.sdk import HELLO, call

MODEL = "claude-3-5-sonnet-20241022"
MESSAGES = "/anthropic/v1/messages"

JSON = [("accept", "application/json"), ("content-type", "application/json")]
BEARER = ("Authorization", "bearer sk-anything")
VERSION = ("anthropic-version", "2023-06-01")
KEY = ("x-api-key", "sk-1234")
CONTENT = ("content-type", "application/json")

HELLO_WORLD = b"""{
        "model": "claude-3-5-sonnet-20241022",
        "max_tokens": 1024,
        "messages": [
            {"role": "user", "content": "Hello, world"}
        ]
    }"""
COUNT = b"""{
        "model": "claude-3-5-sonnet-20241022",
        "messages": [
            {"role": "user", "content": "Hello, world"}
        ]
    }"""
BATCH = b"""{
    "requests": [
        {
            "custom_id": "my-first-request",
            "params": {
                "model": "claude-3-5-sonnet-20241022",
                "max_tokens": 1024,
                "messages": [
                    {"role": "user", "content": "Hello, world"}
                ]
            }
        },
        {
            "custom_id": "my-second-request",
            "params": {
                "model": "claude-3-5-sonnet-20241022",
                "max_tokens": 1024,
                "messages": [
                    {"role": "user", "content": "Hi again, friend"}
                ]
            }
        }
    ]
}"""
# The page has a comment after the user, which no JSON parser takes.
COMMENT = b" # track end-user/customer cost"
METADATA = b"""{
    "model": "claude-3-5-sonnet-20241022",
    "max_tokens": 1024,
    "messages": [
        {"role": "user", "content": "Hello, world"}
    ],
    "litellm_metadata": {
        "tags": ["test-tag-1", "test-tag-2"], \n        "user": "test-user" # track end-user/customer cost
    }
  }"""


def curl(target: str, data: bytes, *headers: tuple[str, str]) -> bytes:
    """What `curl --data` says: its own lines first, then those of `--header`, then the length."""
    names = {name.lower() for name, _ in headers}
    lines = [("Host", "0.0.0.0:4000"), ("User-Agent", "curl/8.5.0")]
    if "accept" not in names:
        lines.append(("Accept", "*/*"))
    lines += [*headers, ("Content-Length", str(len(data)))]
    if "content-type" not in names:
        lines.append(("Content-Type", "application/x-www-form-urlencoded"))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + data


async def served(house: House, said: bytes) -> tuple[Answer, dict[str, Any]]:
    answer = await ask(house.address, said)
    return answer, await house.row(answer.id)


def agree(house: House, row: dict[str, Any]) -> None:
    assert house.sandbox is not None
    agrees(row, house.sandbox.books[row["request_id"]])


@pytest.mark.parametrize(
    "headers",
    [[*JSON, BEARER], [KEY, VERSION, CONTENT], [VERSION, CONTENT]],
    ids=["bearer in lower case", "x-api-key", "$LITELLM_API_KEY is empty, so curl leaves the line out"],
)
async def test_messages(headers: list[tuple[str, str]], tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        answer, row = await served(house, curl(MESSAGES, HELLO_WORLD, *headers))
        agree(house, row)
        assert house.sandbox is not None
        assert house.sandbox.requests[-1].body == HELLO_WORLD
    message = json.loads(answer.body)
    assert (answer.status, message["type"], message["model"]) == (200, "message", MODEL)
    assert (row["user_agent"], row["customer"], row["tags"]) == ("curl/8.5.0", None, [])


async def test_a_stream(tmp_path: Path) -> None:
    body = HELLO_WORLD.replace(b'"max_tokens": 1024', b'"max_tokens": 1024, "stream": true')
    async with open_house(tmp_path) as house:
        answer, row = await served(house, curl(MESSAGES, body, *JSON, BEARER))
        agree(house, row)
    assert answer.get("content-type") == b"text/event-stream; charset=utf-8"
    assert answer.body.startswith(b"event: message_start\n")
    assert answer.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_token_counting(tmp_path: Path) -> None:
    said = curl(
        f"{MESSAGES}/count_tokens", COUNT, KEY, VERSION, ("anthropic-beta", "token-counting-2024-11-01"), CONTENT
    )
    async with open_house(tmp_path) as house:
        answer, row = await served(house, said)
    assert json.loads(answer.body)["input_tokens"] > 0
    assert (row["cost_nano"], row["certainty"], row["model_asked"]) == (0, "exact", MODEL)


async def test_batches(tmp_path: Path) -> None:
    beta = ("anthropic-beta", "message-batches-2024-09-24")
    async with open_house(tmp_path) as house:
        answer, row = await served(house, curl(f"{MESSAGES}/batches", BATCH, KEY, VERSION, beta, CONTENT))
        made = json.loads(answer.body)
        shown = await ask(house.address, curl(f"{MESSAGES}/batches/{made['id']}", b"", KEY).replace(b"POST", b"GET", 1))
        url = json.loads(shown.body)["results_url"]
        assert url == f"http://0.0.0.0:4000{MESSAGES}/batches/{made['id']}/results"
        target = url.removeprefix("http://0.0.0.0:4000")
        results, results_row = await served(house, curl(target, b"", KEY).replace(b"POST", b"GET", 1))
    assert made["request_counts"]["processing"] == 2
    assert row["status"] == results_row["status"] == 200
    ids = {json.loads(line)["custom_id"] for line in results.body.splitlines()}
    assert ids == {"my-first-request", "my-second-request"}


async def test_virtual_keys_command_by_command(tmp_path: Path) -> None:
    """Make one with the master key, use it, and find what it spent."""
    master = ("Authorization", "Bearer sk-1234")
    async with open_house(tmp_path, tproxy='master_key = "sk-1234"') as house:
        made = await ask(house.address, curl("/key/generate", b"{}", master, ("Content-Type", "application/json")))
        assert made.status == 200
        key = json.loads(made.body)["key"]
        answer, row = await served(house, curl(MESSAGES, HELLO_WORLD, *JSON, ("Authorization", f"bearer {key}")))
        agree(house, row)
        refused = await ask(house.address, curl(MESSAGES, HELLO_WORLD, *JSON, BEARER))
        logs = await ask(house.address, request("GET", f"/spend/logs?request_id={answer.id}", [master]))
    assert (answer.status, refused.status) == (200, 401)
    [spent] = json.loads(logs.body)
    usage = json.loads(answer.body)["usage"]
    assert answer.get("x-litellm-call-id").decode() == spent["request_id"]
    assert spent["api_key"] == hashlib.sha256(key.encode()).hexdigest()
    assert (spent["prompt_tokens"], spent["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
    assert spent["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert spent["spend"] == row["cost_nano"] / 1e9 > 0
    assert spent["custom_llm_provider"] == "anthropic"
    assert spent["startTime"] < spent["endTime"]


async def test_litellm_metadata(tmp_path: Path) -> None:
    data = METADATA.replace(COMMENT, b"")
    async with open_house(tmp_path) as house:
        answer, row = await served(house, curl(MESSAGES, data, *JSON, BEARER))
        agree(house, row)
        assert house.sandbox is not None
        assert house.sandbox.requests[-1].body == data[: data.index(b',\n    "litellm')] + b"\n  }"
    assert answer.status == 200
    assert (row["tags"], row["customer"]) == (["test-tag-1", "test-tag-2"], "test-user")


async def test_litellm_metadata_with_the_comment_of_the_page(tmp_path: Path) -> None:
    """It is no JSON: the upstream is sent it as it is, and says so."""
    async with open_house(tmp_path) as house:
        answer, row = await served(house, curl(MESSAGES, METADATA, *JSON, BEARER))
        assert house.sandbox is not None
        assert house.sandbox.requests[-1].body == METADATA
    assert (answer.status, row["ended"], row["cost_nano"]) == (400, "refused", 0)
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


METADATA_OF_THE_PAGE = {"tags": ["test-tag-1", "test-tag-2"], "user": "test-user"}


@pytest.mark.parametrize(
    ("more", "customer", "tags"),
    [
        ({}, None, []),
        ({"extra_body": {"litellm_metadata": METADATA_OF_THE_PAGE}}, "test-user", ["test-tag-1", "test-tag-2"]),
        ({"metadata": {"user_id": "test-user"}}, "test-user", []),
        (
            {"extra_body": {"litellm_metadata": METADATA_OF_THE_PAGE}, "metadata": {"user_id": "other-user"}},
            "test-user",
            ["test-tag-1", "test-tag-2"],
        ),
    ],
    ids=["plain", "litellm_metadata", "metadata", "both"],
)
async def test_the_python_sdk(more: dict[str, Any], customer: str | None, tags: list[str], tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        message = await call(
            f"{house.url}/anthropic",
            lambda sdk: sdk.messages.create(model=MODEL, max_tokens=1024, messages=HELLO, **more),
        )
        [row] = await house.rows(1)
        agree(house, row)
        assert house.sandbox is not None
        kept = json.loads(house.sandbox.requests[-1].body)
    assert message.content[0].type == "text"
    assert (row["customer"], row["tags"]) == (customer, tags)
    assert kept.get("metadata") == more.get("metadata")
