"""Errors as the official SDK raises them: Anthropic's own, which pass untouched, and the proxy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
import trio

from tests.e2e.house import open_house, open_house_before
from tests.e2e.sdk import HELLO, both, call, client
from tests.e2e.test_secrets import LIMITED, SETTINGS, VIRTUAL, write_keys
from tests.wire.peer import Line, close
from tproxy.sandbox.errors import HTML_413

ASKED: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 60, "messages": HELLO}
STATUSES: dict[int, type[anthropic.APIStatusError]] = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    402: anthropic.PaymentRequiredError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    408: anthropic.RequestTimeoutError,
    409: anthropic.ConflictError,
    413: anthropic.APIStatusError,
    422: anthropic.UnprocessableEntityError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    503: anthropic.InternalServerError,
    504: anthropic.InternalServerError,
    529: anthropic.OverloadedError,
}


def raised(sdk: anthropic.Anthropic, script: str = "", **asked: Any) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as caught:
        sdk.messages.create(**(ASKED | asked), extra_headers={"x-sandbox": script})
    return caught.value


def without_ids(error: anthropic.APIStatusError) -> tuple[object, ...]:
    body = error.body
    if isinstance(body, dict):
        body = body | {"request_id": None}
    kept = ("retry-after", "x-should-retry", "content-type")
    return type(error), error.status_code, body, [error.response.headers.get(name) for name in kept]


def code(error: anthropic.APIStatusError) -> str:
    """The proxy's own word for what it refused."""
    body: Any = error.body
    assert body["request_id"] == error.response.headers["x-tproxy-id"]
    return str(body["error"]["details"]["error_code"])


@pytest.mark.parametrize("status", STATUSES)
async def test_the_upstreams_errors_are_the_ones_that_the_sdk_knows(status: int, tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        through, directly = await both(house, "/anthropic", lambda sdk: raised(sdk, f"status={status}"))
        assert isinstance(through, STATUSES[status])
        assert without_ids(through) == without_ids(directly)
        row = await house.row(through.response.headers["x-tproxy-id"])
    assert (row["ended"], row["status"], row["cost_nano"], row["certainty"]) == ("refused", status, 0, "exact")
    assert row["request_id"] == through.response.headers["request-id"]
    if status == 413:
        assert through.response.content == HTML_413
    else:
        body: Any = through.body
        assert row["error_type"] == body["error"]["type"]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"model": "gpt-4"}, anthropic.NotFoundError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"extra_body": {"unheard_of": 1}}, anthropic.BadRequestError),
    ],
    ids=["model", "messages", "member"],
)
async def test_errors_of_the_request(
    asked: dict[str, Any], kind: type[anthropic.APIStatusError], tmp_path: Path
) -> None:
    async with open_house(tmp_path) as house:
        through, directly = await both(house, "", lambda sdk: raised(sdk, **asked))
        assert isinstance(through, kind)
        assert without_ids(through) == without_ids(directly)


async def test_an_unknown_key_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    write_keys(tmp_path)
    seen: list[httpx2.Request] = []
    async with open_house(tmp_path, tproxy=SETTINGS % "keys") as house:
        with client(house.url, "sk-unknown", max_retries=4, request=[seen.append]) as sdk:
            error = await trio.to_thread.run_sync(raised, sdk)
        assert isinstance(error, anthropic.AuthenticationError)
        assert code(error) == "key_unknown"
        assert error.response.headers["x-should-retry"] == "false"
        assert len(seen) == 1
        assert house.sandbox is not None
        assert not house.sandbox.requests
        assert await house.rows(0) == []


async def test_keys_and_the_models_they_are_for(tmp_path: Path) -> None:
    write_keys(tmp_path)
    async with open_house(tmp_path, tproxy=SETTINGS % "keys") as house:
        served = await call(house.url, lambda sdk: sdk.messages.create(**ASKED), VIRTUAL)
        haiku = await call(house.url, lambda sdk: sdk.messages.create(**ASKED), LIMITED)
        error = await call(house.url, lambda sdk: raised(sdk, model="claude-opus-4-8"), LIMITED)
        assert isinstance(error, anthropic.PermissionDeniedError)
        assert code(error) == "model_not_allowed"
        assert served == haiku
        rows = await house.rows(2)
    assert [row["caller_alias"] for row in rows] == ["limited", "search"]
    assert all(row["caller"].startswith("key:") for row in rows)


async def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    async with open_house(tmp_path, tables="[tproxy.limits]\nmax_body_bytes = 1000") as house:
        error = await call(house.url, lambda sdk: raised(sdk, system="x" * 2000))
        assert isinstance(error, anthropic.RequestTooLargeError | anthropic.ContentTooLargeError)
        assert (error.status_code, code(error)) == (413, "body_too_large")


async def test_an_upstream_that_breaks_before_its_head(tmp_path: Path) -> None:
    async with open_house_before(tmp_path, close) as (house, _):
        error = await call(house.url, raised)
        assert isinstance(error, anthropic.InternalServerError)
        assert (error.status_code, code(error)) == (502, "upstream_broken")
        row = await house.row(error.response.headers["x-tproxy-id"])
    assert (row["ended"], row["status"]) == ("upstream_broken", 502)


async def test_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    async with open_house(tmp_path, upstream_url="http://127.0.0.1:1") as house:
        error = await call(house.url, raised)
        assert isinstance(error, anthropic.InternalServerError)
        assert (error.status_code, code(error)) == (502, "upstream_unreachable")
        row = await house.row(error.response.headers["x-tproxy-id"])
    assert (row["ended"], row["status"]) == ("upstream_unreachable", 502)


def stream(sdk: anthropic.Anthropic, script: str) -> tuple[str, str, BaseException | None]:
    """The exchange's id, the text that came, and what was raised."""
    with sdk.messages.stream(**ASKED, extra_headers={"x-sandbox": script}) as events:
        text, id = "", events.response.headers.get("x-tproxy-id", "")
        try:
            for piece in events.text_stream:
                text += piece
        except (anthropic.AnthropicError, httpx2.HTTPError) as broken:
            return id, text, broken
        return id, text, None


async def test_an_error_event_in_a_stream(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        (id, *told), (_, *directly) = await both(house, "/anthropic", lambda sdk: stream(sdk, "error_after=12"))
        row = await house.row(id)
    assert told[0] == directly[0] != ""
    assert isinstance(told[1], anthropic.APIStatusError)
    assert without_ids(told[1]) == without_ids(directly[1])
    assert (row["ended"], row["error_type"]) == ("upstream_error", "overloaded_error")
    assert row["certainty"] == "estimated"
    assert row["cost_nano"] > 0


async def test_a_client_that_leaves_on_an_error_event_does_not_hide_it(tmp_path: Path) -> None:
    """The SDK does so: it raises at the event, and does not wait for the end of the answer."""
    events = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":1}}}\n\n'
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def without_end(line: Line) -> None:
        await line.request()
        await line.send(head, b"%x\r\n%b\r\n" % (len(events), events))
        await line.wait_gone()

    async with open_house_before(tmp_path, without_end) as (house, _):
        id, _, error = await call(house.url, lambda sdk: stream(sdk, ""))
        row = await house.row(id)
    assert isinstance(error, anthropic.APIStatusError)
    assert (row["ended"], row["error_type"]) == ("upstream_error", "overloaded_error")


@pytest.mark.parametrize("script", ["cut_after=12", "reset_after=12", "reset_after=12 framing=close coding=gzip"])
async def test_a_broken_stream_raises(script: str, tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        id, text, error = await call(house.url, lambda sdk: stream(sdk, script))
        row = await house.row(id)
    assert text
    assert isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | anthropic.APIConnectionError)
    assert (row["ended"], row["certainty"]) == ("upstream_broken", "estimated")
