"""Bodies captured in the whole house: as the official SDK sees them, and by the routes that operators ask."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anthropic
import pytest
import trio

from tests.e2e.api import MASTER, WITH_MASTER, call, made
from tests.e2e.house import House, open_house
from tests.e2e.raw import ask, request
from tests.e2e.sdk import call as sdk_call

ALL = 'sample_rate = 1\ndatabase = "sqlite:captures.db"'
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "The weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
SECRET = "sk-ant-api03-ABCDEFGH12345678"
CANARY = "canary-of-the-capture"


def capture(settings: str) -> dict[str, str]:
    """The configuration of a house that captures."""
    return {"tproxy": WITH_MASTER, "tables": f"[tproxy.capture]\n{settings}\n"}


async def captured(house: House, id: str) -> dict[str, Any]:
    """A capture, once it is kept."""
    with trio.fail_after(30):
        while True:
            status, page = await call(house, "GET", "/capture/info", id=id)
            if status == 200:
                assert isinstance(page, dict)
                return page
            assert status == 404
            await trio.sleep(0.01)


def kept_in(folder: Path) -> bytes:
    """All that is in the files of the captures, of which there are some."""
    kept = b"".join(file.read_bytes() for file in folder.glob("captures.db*"))
    assert kept
    return kept


async def post(house: House, content: str, *headers: tuple[str, str], **fields: Any) -> Any:
    """One request to Messages."""
    body = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": content}],
    } | fields
    lines = [("x-api-key", MASTER), ("content-type", "application/json"), *headers]
    return await ask(house.address, request("POST", "/v1/messages", lines, json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("", {}),
        ("web_search=2", {}),
        ("tool=get_weather", {"tools": TOOLS}),
        ("thinking=40 coding=gzip", {}),
        ("coding=br chunk=700 odd=1", {}),
        ("eol=crlf", {}),
    ],
    ids=str,
)
async def test_a_stream_is_kept_as_the_message_that_the_sdk_makes_of_it(
    script: str, more: dict[str, Any], tmp_path: Path
) -> None:
    def stream(sdk: anthropic.Anthropic) -> Any:
        messages: list[Any] = [{"role": "user", "content": f"Hello [sandbox tokens=60 {script}]"}]
        with sdk.messages.stream(model="claude-sonnet-5-5", max_tokens=200, messages=messages, **more) as events:
            return events.response.headers["x-tproxy-id"], events.get_final_message()

    async with open_house(tmp_path, **capture(ALL)) as house:
        id, message = await sdk_call(house.url, stream, MASTER)
        page = await captured(house, id)
        assert (page["answer_kind"], page["answer_whole"], page["answer_cut"]) == ("message", True, False)
        assert _bare(page["answer"]) == _bare(message.to_dict(mode="json"))
        assert page["request"]["messages"][0]["content"].startswith("Hello")
        assert (page["caller"], page["model"], page["why"]) == ("master", message.model, "sample")
    assert (tmp_path / "captures.db").stat().st_mode & 0o777 == 0o600


def _bare(value: Any) -> Any:
    """Without what is null or was parsed by the SDK, and what the oddities of the sandbox add."""
    if isinstance(value, dict):
        dropped = ("parsed_output", "x_unknown")
        return {name: _bare(each) for name, each in value.items() if each is not None and name not in dropped}
    return [_bare(each) for each in value] if isinstance(value, list) else value


async def test_of_errors_alone_the_bodies_are_kept(tmp_path: Path) -> None:
    async with open_house(tmp_path, **capture("errors = true")) as house:
        good = await post(house, "Hello")
        cut = await post(house, "Hello [sandbox error_after=6]", stream=True)
        refused = await post(house, "Hello [sandbox status=529]")
        page = await captured(house, cut.id)
        assert (page["ended"], page["answer_whole"]) == ("upstream_error", False)
        assert page["answer_error"]["type"]
        assert page["answer"]["content"][0]["text"]
        page = await captured(house, refused.id)
        assert (page["ended"], page["status"], page["answer"]["type"]) == ("refused", 529, "error")
        _, listed = await call(house, "GET", "/capture/list")
        assert [row["id"] for row in listed["captures"]] == [refused.id, cut.id]
        assert (good.status, refused.status) == (200, 529)
        assert (await call(house, "POST", "/capture/delete", {"id": cut.id}))[0] == 200
        assert (await call(house, "GET", "/capture/info", id=cut.id))[0] == 404


async def test_nothing_is_kept_of_whoever_turned_it_off(tmp_path: Path) -> None:
    async with open_house(tmp_path, **capture(ALL)) as house:
        shy = await made(house, "/key/generate", key_alias="shy", metadata={"turn_off_message_logging": True})
        team = await made(
            house,
            "/team/new",
            team_id="quiet",
            metadata={"logging": [{"callback_vars": {"turn_off_message_logging": "true"}}]},
        )
        member = await made(house, "/key/generate", team_id=team["team_id"])
        for headers in (
            [("x-litellm-api-key", shy["key"])],
            [("x-litellm-api-key", member["key"])],
            [("x-tproxy-turn-off-message-logging", "true")],
            [("x-litellm-enable-message-redaction", "true")],
        ):
            assert (await post(house, CANARY, *headers)).status == 200
        last = await post(house, "Hello")
        await captured(house, last.id)
        _, listed = await call(house, "GET", "/capture/list")
        assert [row["id"] for row in listed["captures"]] == [last.id]
    assert CANARY.encode() not in kept_in(tmp_path)


async def test_no_secret_is_kept(tmp_path: Path) -> None:
    async with open_house(tmp_path, **capture(ALL + '\npatterns = ["canary-[a-z-]+"]')) as house:
        answer = await post(house, f"my key is {SECRET}, my name {CANARY}")
        page = await captured(house, answer.id)
        assert page["request"]["messages"][0]["content"] == "my key is [redacted], my name [redacted]"
        assert page["redacted"] >= 2
    kept = kept_in(tmp_path)
    assert all(secret.encode() not in kept for secret in (SECRET, CANARY, MASTER, "the-real-one"))


async def test_off_there_is_no_file(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        answer = await post(house, "Hello")
        assert (await house.row(answer.id))["ended"] == "finished"
        assert (await call(house, "GET", "/capture/list"))[1] == {"captures": [], "next": None}
    assert not [name for name in os.listdir(tmp_path) if name.startswith("captures")]
