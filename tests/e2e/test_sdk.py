"""The official Python SDK: with a changed base URL and nothing else, it works as against the API itself.

Most tests run a call twice, against the sandbox directly and through the proxy, and compare what the SDK gives;
then the ledger's row is compared with the sandbox's books. Errors are in test_sdk_errors.py.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 (what most users of the asynchronous client run it on)
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import pytest
import trio
from anthropic.types import ToolParam

from tests.e2e.agree import agrees
from tests.e2e.house import House, open_house
from tests.e2e.sdk import HELLO, async_client, both, call, client

BASES = pytest.mark.parametrize("base", ["/anthropic", ""], ids=["prefix", "root"])
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


async def books_agree(house: House, id: str) -> dict[str, Any]:
    """Compare the row of an exchange with the sandbox's entry, and give it."""
    assert house.sandbox is not None
    row = await house.row(id)
    agrees(row, house.sandbox.books[row["request_id"]])
    return row


@BASES
async def test_create(base: str, tmp_path: Path) -> None:
    def create(sdk: anthropic.Anthropic) -> Any:
        raw = sdk.messages.with_raw_response.create(model="claude-sonnet-5-5", max_tokens=60, messages=HELLO)
        return raw.headers, raw.parse()

    async with open_house(tmp_path) as house:
        (headers, message), (_, directly) = await both(house, base, create)
        assert message == directly
        assert message.usage.output_tokens == 40
        row = await books_agree(house, headers["x-tproxy-id"])
        assert headers["x-tproxy-id"] == headers["x-litellm-call-id"]
        assert (row["message_id"], row["request_id"]) == (message.id, message._request_id)
        assert row["user_agent"].startswith("Anthropic/Python")
        assert not row["stream"]


@BASES
async def test_stream(base: str, tmp_path: Path) -> None:
    def stream(sdk: anthropic.Anthropic) -> Any:
        with sdk.messages.stream(model="claude-haiku-4-5", max_tokens=60, messages=HELLO) as stream:
            events = list(stream)
            return stream.response.headers, events, stream.get_final_message()

    async with open_house(tmp_path) as house:
        (headers, *told), (_, *directly) = await both(house, base, stream)
        assert told == directly
        assert told[0][-1].type == "message_stop"
        assert told[1].content[0].text == "".join(event.text for event in told[0] if event.type == "text")
        row = await books_agree(house, headers["x-tproxy-id"])
        assert row["stream"]
        assert row["head_us"] <= row["first_content_us"] <= row["last_byte_us"]
        assert row["stop_reason"] == told[1].stop_reason == "end_turn"


# What the sandbox is told to answer, and what is asked of it beside the usual.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("", {"max_tokens": 5}),
    ("", {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("", {"inference_geo": "us"}),
    ("", {"system": [{"type": "text", "text": "word " * 5000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}),
    ("web_search=2", {}),
    ("fallback=claude-haiku-4-5", {}),
    ("advisor=claude-opus-5-5", {}),
    ("compaction=70", {}),
    ("iterations", {}),
    ("coding=gzip", {}),
    ("coding=deflate", {}),
    ("coding=br chunk=3", {}),
    ("coding=zstd", {}),
    ("framing=close", {}),
    ("http10", {}),
    ("odd tokens=90", {}),
    ("junk line=100000", {}),
    ("eol=crlf", {}),
    ("eol=cr", {}),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("script", "more"), VARIANTS, ids=lambda value: str(value)[:40])
async def test_every_kind_of_answer_is_priced_as_it_was_served(
    script: str, more: dict[str, Any], stream: bool, tmp_path: Path
) -> None:
    asked = {"model": "claude-opus-4-8", "max_tokens": 400, "messages": HELLO, "stream": stream, **more}

    def create(sdk: anthropic.Anthropic) -> str:
        with sdk.messages.with_streaming_response.create(**asked, extra_headers={"x-sandbox": script}) as response:
            for _ in response.iter_bytes():
                pass
            return str(response.headers["x-tproxy-id"])

    async with open_house(tmp_path) as house:
        sdk = client(house.url)
        for _ in range(2):  # the second finds a cache, where one is asked for
            await books_agree(house, await trio.to_thread.run_sync(create, sdk))
        sdk.close()


async def test_a_refusal_before_any_output_costs_nothing(tmp_path: Path) -> None:
    def create(sdk: anthropic.Anthropic) -> Any:
        return sdk.messages.with_raw_response.create(
            model="claude-opus-4-8", max_tokens=9, messages=HELLO, extra_headers={"x-sandbox": "refusal"}
        )

    async with open_house(tmp_path) as house:
        raw = await call(house.url, create)
        row = await house.row(raw.headers["x-tproxy-id"])
    assert raw.parse().stop_reason == "refusal"
    assert (row["cost_nano"], row["certainty"], row["stop_reason"]) == (0, "exact", "refusal")
    assert row["input_tokens"] > 0


@BASES
async def test_tools(base: str, tmp_path: Path) -> None:
    def converse(sdk: anthropic.Anthropic) -> Any:
        asked: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 300, "tools": [WEATHER]}
        messages: list[Any] = [{"role": "user", "content": "Use get_weather for Zürich."}]
        first = sdk.messages.create(**asked, messages=messages)
        [call] = [block for block in first.content if block.type == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "12 °C, rain"}
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        with sdk.messages.stream(**asked, messages=messages) as stream:
            return first, stream.get_final_message()

    async with open_house(tmp_path) as house:
        (first, last), directly = await both(house, base, converse)
        assert (first, last) == directly
        assert first.stop_reason == "tool_use"
        assert "12 °C, rain" in last.content[0].text
        for row in await house.rows(2):
            await books_agree(house, row["id"])


@BASES
async def test_count_tokens_and_models(base: str, tmp_path: Path) -> None:
    def look(sdk: anthropic.Anthropic) -> Any:
        counted = sdk.messages.count_tokens(model="claude-haiku-4-5", messages=HELLO)
        listed = list(sdk.models.list(limit=5))  # in pages
        return counted, listed, sdk.models.retrieve("claude-haiku-4-5")

    async with open_house(tmp_path) as house:
        told, directly = await both(house, base, look)
        assert told == directly
        assert told[0].input_tokens > 0
        assert len(told[1]) > 15
        rows = await house.rows(math.ceil(len(told[1]) / 5) + 2)
        assert {(row["ended"], row["certainty"], row["cost_nano"]) for row in rows} == {("finished", "exact", 0)}
        assert rows[-1]["model_asked"] == "claude-haiku-4-5"


@BASES
async def test_batches(base: str, tmp_path: Path) -> None:
    """Results are fetched by the URL in the batch: it leads through the proxy, and so the real key fits."""
    params: Any = {"model": "claude-haiku-4-5", "max_tokens": 30, "messages": HELLO}

    def batch(sdk: anthropic.Anthropic) -> Any:
        made = sdk.messages.batches.create(requests=[{"custom_id": id, "params": params} for id in ("a", "b")])
        ended = sdk.messages.batches.retrieve(made.id)
        [listed] = sdk.messages.batches.list(limit=1).data
        results = {line.custom_id: line.result for line in sdk.messages.batches.results(made.id)}
        slow = sdk.messages.batches.create(
            requests=[{"custom_id": "c", "params": params}], extra_headers={"x-sandbox": "batch_seconds=900"}
        )
        cancelled = sdk.messages.batches.cancel(slow.id)
        deleted = sdk.messages.batches.delete(made.id)
        return made, ended, listed, results, cancelled, deleted

    async with open_house(tmp_path) as house:
        assert house.sandbox is not None
        made, ended, listed, results, cancelled, deleted = await call(house.url + base, batch)
        assert made.processing_status == "in_progress"
        assert ended.results_url == f"{house.url}{base.rstrip('/')}/v1/messages/batches/{made.id}/results"
        assert listed.results_url == ended.results_url
        assert {id: result.type for id, result in results.items()} == {"a": "succeeded", "b": "succeeded"}
        assert results["a"].message.usage.service_tier == "batch"
        assert cancelled.processing_status == "canceling"
        assert deleted.type == "message_batch_deleted"
        rows = {(row["method"], row["path"]): row for row in await house.rows(8)}
        assert rows["GET", f"/v1/messages/batches/{made.id}/results"]["status"] == 200
        assert rows["POST", "/v1/messages/batches"]["certainty"] == "unpriced"
        assert {row["ended"] for row in rows.values()} == {"finished"}


@BASES
async def test_files(base: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 500

    def files(sdk: anthropic.Anthropic) -> Any:
        made = sdk.beta.files.upload(file=("näme.bin", content, "application/x-odd"))
        back = sdk.beta.files.download(made.id).read()
        listed = [file.id for file in sdk.beta.files.list()]
        shown = sdk.beta.files.retrieve_metadata(made.id)
        return made, back, listed, shown, sdk.beta.files.delete(made.id)

    async with open_house(tmp_path) as house:
        made, back, listed, shown, deleted = await call(house.url + base, files)
        assert back == content
        assert listed == [made.id] == [shown.id] == [deleted.id]
        assert (shown.filename, shown.size_bytes, shown.mime_type) == ("näme.bin", len(content), "application/x-odd")
        rows = await house.rows(5)
        assert {(row["ended"], row["certainty"], row["cost_nano"]) for row in rows} == {("finished", "exact", 0)}
        assert rows[-1]["bytes_in"] > len(content) == rows[-2]["bytes_out"]


async def on_trio(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


async def on_asyncio(call: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await call()

    return await trio.to_thread.run_sync(lambda: asyncio.run(main()))


@pytest.mark.parametrize("run", [on_trio, on_asyncio])
@BASES
async def test_the_asynchronous_client(base: str, run: Callable[..., Awaitable[Any]], tmp_path: Path) -> None:
    """A tour: whole, streamed, tool, count, models, batch results, file, error."""
    asked: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 50}

    async def tour(url: str) -> list[Any]:
        async with async_client(url) as sdk:
            seen: list[Any] = [await sdk.messages.create(**asked, messages=HELLO)]
            async with sdk.messages.stream(**asked, messages=HELLO) as stream:
                seen += [[event.type async for event in stream], await stream.get_final_message()]
            seen.append(
                await sdk.messages.create(**asked, messages=HELLO, tools=[WEATHER], tool_choice={"type": "any"})
            )
            seen.append(await sdk.messages.count_tokens(model="claude-haiku-4-5", messages=HELLO))
            seen.append([model.id async for model in sdk.models.list(limit=7)])
            batch = await sdk.messages.batches.create(
                requests=[{"custom_id": "a", "params": {**asked, "messages": HELLO}}]  # type: ignore[typeddict-item]
            )
            seen.append([line.custom_id async for line in await sdk.messages.batches.results(batch.id)])
            file = await sdk.beta.files.upload(file=("x.bin", b"\0\1\2"))
            seen.append(await (await sdk.beta.files.download(file.id)).read())
            with pytest.raises(anthropic.RateLimitError) as caught:
                await sdk.messages.create(**asked, messages=HELLO, extra_headers={"x-sandbox": "status=429"})
            return [*seen, caught.value.status_code]

    async with open_house(tmp_path) as house:
        whole, events, final, tool, count, models, results, content, status = await run(partial(tour, house.url + base))
        assert whole.content[0].text == final.content[0].text
        assert (events[0], events[-1]) == ("message_start", "message_stop")
        assert tool.stop_reason == "tool_use"
        assert count.input_tokens > 0
        assert len(models) > 15
        assert (results, content, status) == (["a"], b"\0\1\2", 429)
        rows = await house.rows(9)
        for row in [row for row in rows if row["path"] == "/v1/messages" and row["status"] == 200]:
            await books_agree(house, row["id"])
        assert sum(row["cost_nano"] or 0 for row in rows) > 0
