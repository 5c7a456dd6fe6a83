"""The official SDK, as it comes, against the sandbox."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, TypeVar

import anthropic
import httpx2
import pytest
import trio
from anthropic import Anthropic

from tproxy.sandbox.server import Sandbox

T = TypeVar("T")

HELLO: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "Hello, world"}],
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "examples": ["Zürich"]}},
        "required": ["city"],
    },
}


async def run(sandbox: Sandbox, work: Callable[[Anthropic], T]) -> T:
    """Run synchronous client code beside the sandbox."""

    def with_client() -> T:
        with Anthropic(base_url=sandbox.url, api_key="sk-ant-test", max_retries=0) as client:
            return work(client)

    return await trio.to_thread.run_sync(with_client)


def told(script: str) -> dict[str, str]:
    return {"x-sandbox": script}


async def test_create(sandbox: Sandbox) -> None:
    message = await run(sandbox, lambda client: client.messages.create(**HELLO))
    assert message.model == "claude-haiku-4-5-20251001"
    assert message.stop_reason == "end_turn"
    assert message.content[0].type == "text"
    assert message.usage.output_tokens == 40
    assert message.usage.cache_creation is not None
    (got,) = sandbox.requests
    assert got.get(b"authorization") == b"Bearer sk-ant-test"
    assert sandbox.books.total()["output_tokens"] == 40


@pytest.mark.parametrize("script", ["", "odd=1", "eol=crlf", "coding=gzip", "coding=br;chunk=5", "chunk=1", "junk=1"])
async def test_stream(script: str, sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> tuple[str, Any]:
        with client.messages.stream(**HELLO, extra_headers=told(f"tokens=25;{script}")) as stream:
            return "".join(stream.text_stream), stream.get_final_message()

    if script == "junk=1":
        with pytest.raises(UnicodeDecodeError):
            await run(sandbox, work)
        return
    text, message = await run(sandbox, work)
    assert message.content[0].text == text
    assert (message.usage.output_tokens, message.stop_reason) == (25, "end_turn")
    whole = await run(sandbox, lambda client: client.messages.create(**HELLO, extra_headers=told("tokens=25")))
    assert whole.content[0].type == "text"
    assert whole.content[0].text == text


async def test_tools(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> tuple[Any, Any]:
        messages: list[Any] = [{"role": "user", "content": "How is the weather?"}]
        request = HELLO | {"tools": [WEATHER], "messages": messages}
        with client.messages.stream(**request) as stream:
            call: Any = stream.get_final_message()
        result = {"type": "tool_result", "tool_use_id": call.content[0].id, "content": "rain"}
        messages += [{"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}]
        return call, client.messages.create(**request)

    call, answer = await run(sandbox, work)
    assert call.stop_reason == "tool_use"
    assert (call.content[0].name, call.content[0].input) == ("get_weather", {"city": "Zürich"})
    assert answer.content[0].text.startswith("The tool answered: rain")


async def test_thinking(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> Any:
        with client.messages.stream(**HELLO, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
            return stream.get_final_message()

    message = await run(sandbox, work)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature
    assert message.usage.output_tokens_details.thinking_tokens == 24


async def test_the_cache(sandbox: Sandbox) -> None:
    system: list[Any] = [
        {"type": "text", "text": "Be brief. " * 50, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    ]
    first, second = [
        (await run(sandbox, lambda client: client.messages.create(**HELLO, system=system))).usage for _ in range(2)
    ]
    assert first.cache_creation is not None
    assert first.cache_creation.ephemeral_1h_input_tokens == second.cache_read_input_tokens
    assert second.cache_read_input_tokens is not None
    assert second.cache_read_input_tokens > 100
    assert second.cache_creation_input_tokens == 0
    assert first.input_tokens == second.input_tokens


async def test_beta_messages_with_a_fallback_and_searches(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> Any:
        script = told("fallback=claude-opus-4-8;web_search=1")
        with client.beta.messages.stream(**HELLO, betas=["server-side-fallback-2026-07-01"], extra_headers=script) as s:
            return s.get_final_message()

    message = await run(sandbox, work)
    assert [block.type for block in message.content] == [
        "server_tool_use",
        "web_search_tool_result",
        "fallback",
        "text",
    ]
    assert [entry.type for entry in message.usage.iterations] == ["message", "fallback_message"]
    assert message.usage.server_tool_use.web_search_requests == 1


async def test_count_tokens_and_models(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> tuple[int, list[str], str]:
        counted = client.messages.count_tokens(model=HELLO["model"], messages=HELLO["messages"])
        listed = [model.id for model in client.models.list(limit=3)]
        return counted.input_tokens, listed, client.models.retrieve("claude-opus-4-5").display_name

    tokens, listed, name = await run(sandbox, work)
    assert tokens > 0
    assert len(listed) == len(set(listed)) > 9, "all pages"
    assert name == "Claude Opus 4.5"


async def test_batches(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> tuple[Any, list[Any]]:
        made = client.messages.batches.create(
            requests=[{"custom_id": str(number), "params": HELLO} for number in range(3)]  # type: ignore[typeddict-item]
        )
        shown = client.messages.batches.retrieve(made.id)
        assert [batch.id for batch in client.messages.batches.list()] == [made.id]
        results = list(client.messages.batches.results(made.id))
        client.messages.batches.delete(made.id)
        return shown, results

    shown, results = await run(sandbox, work)
    assert (shown.processing_status, shown.request_counts.succeeded) == ("ended", 3)
    assert sorted(result.custom_id for result in results) == ["0", "1", "2"]
    assert results[0].result.message.usage.service_tier == "batch"


async def test_files(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> tuple[Any, bytes, int]:
        file = client.files.upload(file=("notes.txt", io.BytesIO(b"some notes"), "text/plain"))
        content = client.files.download(file.id).read()
        listed = len(list(client.files.list()))
        client.files.delete(file.id)
        return file, content, listed

    file, content, listed = await run(sandbox, work)
    assert (file.filename, file.size_bytes, file.mime_type) == ("notes.txt", 10, "text/plain")
    assert (content, listed) == (b"some notes", 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (409, anthropic.ConflictError),
        (413, anthropic.APIStatusError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_errors_are_typed(status: int, error: type[anthropic.APIStatusError], sandbox: Sandbox) -> None:
    with pytest.raises(error) as caught:
        await run(sandbox, lambda client: client.messages.create(**HELLO, extra_headers=told(f"status={status}")))
    assert caught.value.status_code == status
    assert caught.value.request_id == sandbox.books.entries[-1].request_id


async def test_an_error_midway_is_raised(sandbox: Sandbox) -> None:
    def work(client: Anthropic) -> None:
        with client.messages.stream(**HELLO, extra_headers=told("error_after=6")) as stream:
            stream.until_done()

    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await run(sandbox, work)


async def test_another_client_in_another_way(sandbox: Sandbox) -> None:
    """A plain HTTP client, with what the reference page's curl lines send: no version, a retired model."""
    body = HELLO | {"model": "claude-3-5-sonnet-20241022", "stream": True}

    def work() -> list[str]:
        headers = {"Authorization": "bearer sk-anything"}
        with httpx2.stream("POST", f"{sandbox.url}/v1/messages", json=body, headers=headers) as response:
            return [json.loads(line[6:])["type"] for line in response.iter_lines() if line.startswith("data: ")]

    kinds = await trio.to_thread.run_sync(work)
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    leaked = body | {"litellm_metadata": {"tags": ["a"]}}
    refused = await trio.to_thread.run_sync(
        lambda: httpx2.post(f"{sandbox.url}/v1/messages", json=leaked, headers={"x-api-key": "k"})
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "litellm_metadata: Extra inputs are not permitted"
