"""Each key of a script, seen on the wire."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest
import trio
from trio.testing import MockClock

from tests.sandbox.raw import PATIENCE, Answer, ask, connect, exchange, parsed, read_all, request, until
from tproxy.sandbox.books import CLIENT_LEFT, COMPLETE, CUT, ERROR_EVENT, REFUSED
from tproxy.sandbox.coding import zstd
from tproxy.sandbox.reply import UNASKED
from tproxy.sandbox.server import Sandbox

Check = Callable[[Answer], object]


def events(body: bytes) -> list[dict[str, Any]]:
    """The JSON of plain events."""
    return [json.loads(event.partition(b"\ndata: ")[2]) for event in body.split(b"\n\n") if event]


def kinds(body: bytes) -> list[str]:
    return [event["type"] for event in events(body)]


def text(body: bytes) -> str:
    return "".join(event["delta"].get("text", "") for event in events(body) if event["type"] == "content_block_delta")


def usage(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = next(event for event in events(body) if event["type"] == "message_delta")["usage"]
    return found


def iterations(body: bytes) -> list[str]:
    return [entry["type"] for entry in usage(body)["iterations"]]


# What is answered: a whole stream each, in plain form.
CONTENT: dict[str, Check] = {
    "tokens=3;per=1": lambda a: kinds(a.body).count("content_block_delta") == 3 == usage(a.body)["output_tokens"],
    "tokens=8;per=4": lambda a: kinds(a.body).count("content_block_delta") == 2,
    "tokens=9;seed=5": lambda a: text(a.body) == "On the far side of the bay a dog",
    "tool=weather": lambda a: events(a.body)[1]["content_block"]["name"] == "weather",
    "thinking=7": lambda a: usage(a.body)["output_tokens_details"] == {"thinking_tokens": 7},
    "web_search=2": lambda a: usage(a.body)["server_tool_use"]["web_search_requests"] == 2,
    "refusal=1": lambda a: events(a.body)[-2]["delta"]["stop_reason"] == "refusal" and usage(a.body)["input_tokens"],
    "fallback=claude-opus-4-5": lambda a: iterations(a.body) == ["message", "fallback_message"],
    "advisor=claude-fable-5": lambda a: iterations(a.body) == ["message", "advisor_message"],
    "compaction=9": lambda a: iterations(a.body) == ["compaction", "message"],
    "iterations=1": lambda a: iterations(a.body) == ["message"],
    "nousage=1": lambda a: "usage" not in events(a.body)[-2],
    "nostop=1": lambda a: kinds(a.body)[-1] == "message_delta",
    "error_after=4": lambda a: kinds(a.body)[3:] == ["content_block_delta", "error"],
    "batch_seconds=1": lambda a: kinds(a.body)[-1] == "message_stop",  # of batches only: see test_batches
}


@pytest.mark.parametrize("script", CONTENT)
async def test_content(script: str, sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script=script))
    assert (answer.status, answer.complete) == (200, True)
    assert kinds(answer.body)[0] == "message_start"
    assert CONTENT[script](answer)


def _spoilt(answer: Answer) -> bool:
    unzip = zlib.decompressobj(wbits=31)
    try:
        unzip.decompress(answer.body)
    except zlib.error:
        return True
    return False


# In what form: each differs on the wire, and says the same.
FORMS: dict[str, tuple[Check, Callable[[bytes], bytes]]] = {
    "framing=chunked": (lambda a: a.headers["transfer-encoding"] == "chunked", bytes),
    "framing=length": (lambda a: a.headers["content-length"] == str(len(a.body)), bytes),
    "framing=close": (lambda a: not {"content-length", "transfer-encoding"} & set(a.headers), bytes),
    "http10=1": (lambda a: a.wire.startswith(b"HTTP/1.0 200 OK\r\n") and "transfer-encoding" not in a.headers, bytes),
    "coding=gzip": (lambda a: a.headers["content-encoding"] == "gzip", lambda body: zlib.decompress(body, 31)),
    "coding=deflate": (lambda a: a.headers["content-encoding"] == "deflate", zlib.decompress),
    "coding=br": (lambda a: a.headers["content-encoding"] == "br", brotli.decompress),
    "coding=zstd": (lambda a: a.headers["content-encoding"] == "zstd", zstd.decompress),
    "coding=accept": (lambda a: "content-encoding" not in a.headers, bytes),
    "chunk=7": (lambda a: a.chunks == -(-len(a.body) // 7), bytes),
    "chunk=1;coding=gzip": (lambda a: a.chunks == len(a.body), lambda body: zlib.decompress(body, 31)),
    "eol=crlf": (lambda a: b"\r\n\r\nevent: ping\r\n" in a.body, lambda body: body.replace(b"\r\n", b"\n")),
    "eol=cr": (lambda a: b"\r\revent: ping\r" in a.body, lambda body: body.replace(b"\r", b"\n")),
    "informational=1": (lambda a: a.informational == [100, 103], bytes),
    "trailing=1": (lambda a: a.wire.endswith(b"\n0\r\n\r\n" + UNASKED), bytes),
    "head=20000": (lambda a: sum(map(len, a.headers.values())) > 20_000, bytes),
    "ttft=0.01;tps=2000": (lambda a: a.chunks == len(kinds(a.body)), bytes),
}


@pytest.mark.parametrize("script", FORMS)
async def test_forms(script: str, sandbox: Sandbox) -> None:
    plain = await exchange(sandbox, request(body=ask(stream=True), script="tokens=9"))
    answer = await exchange(sandbox, request(body=ask(stream=True), script="tokens=9;" + script))
    check, decode = FORMS[script]
    assert answer.complete
    assert check(answer)
    assert decode(answer.body) == plain.body


async def test_an_accepted_coding(sandbox: Sandbox) -> None:
    headers = ("x-api-key: key", "Accept-Encoding: identity, br;q=0, zstd, deflate")
    answer = await exchange(sandbox, request(body=ask(), script="coding=accept", headers=headers))
    assert answer.headers["content-encoding"] == "zstd"
    assert json.loads(zstd.decompress(answer.body))["type"] == "message"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_every_event_can_be_decoded_when_it_has_come(coding: str, sandbox: Sandbox) -> None:
    unbrotli: Any = brotli.Decompressor()
    decode: dict[str, Callable[[bytes], bytes]] = {
        "gzip": zlib.decompressobj(wbits=31).decompress,
        "deflate": zlib.decompressobj().decompress,
        "br": unbrotli.process,
        "zstd": zstd.ZstdDecompressor().decompress,
    }
    answer = await exchange(sandbox, request(body=ask(stream=True), script=f"coding={coding};tokens=3"))
    rest, decoded = answer.wire.partition(b"\r\n\r\n")[2], []
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        decoded.append(decode[coding](rest[: int(size, 16)]))
        rest = rest[int(size, 16) + 2 :]
    assert len(decoded) > 5
    assert all(event.startswith(b"event: ") and event.endswith(b"\n\n") for event in decoded)


ODD: dict[str, Check] = {
    "odd=1": lambda a: a.body.startswith(b"\xef\xbb\xbf: a comment\nevent: message_start\n"),
    "junk=1": lambda a: b"\x00" in a.body and b"\xff\xfe" in a.body and b"\\ud83d" in a.body,
    "line=100000": lambda a: b"\ndata: " + b"a" * 100_000 + b"\n\n" in a.body,
    "line=1000000;coding=gzip": lambda a: len(a.body) < 10_000 and len(zlib.decompress(a.body, 31)) > 1_000_000,
    "corrupt=1;coding=gzip": _spoilt,
}


@pytest.mark.parametrize("script", ODD)
async def test_oddities(script: str, sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script=script))
    assert (answer.status, answer.complete) == (200, True)
    assert ODD[script](answer)


# How it goes wrong: the check, whether the end is a reset, and how the books say that it ended.
BROKEN: dict[str, tuple[Check, bool, str]] = {
    "cut_after=0": (lambda a: a.status == 200 and a.body == b"", False, CUT),
    "cut_after=4": (lambda a: kinds(a.body)[-1] == "content_block_delta", False, CUT),
    "cut_after=500b": (lambda a: len(a.body) == 500, False, CUT),
    "cut_after=500b;framing=length": (lambda a: len(a.body) == 500 < int(a.headers["content-length"]), False, CUT),
    "cut_after=4;coding=gzip": (lambda a: len(kinds(zlib.decompressobj(31).decompress(a.body))) == 4, False, CUT),
    "reset_after=4": (lambda a: a.reset, True, CUT),
    "reset_after=100b": (lambda a: a.reset, True, CUT),
    "close_before_head=1": (lambda a: a.wire == b"", False, CUT),
    "reset_before_head=1": (lambda a: a.wire == b"", True, CUT),
}


@pytest.mark.parametrize("script", BROKEN)
async def test_broken_ends(script: str, sandbox: Sandbox) -> None:
    check, reset, ended = BROKEN[script]
    answer = await exchange(sandbox, request(body=ask(stream=True), script=script))
    assert (answer.reset, answer.complete) == (reset, False)
    assert check(answer)
    assert sandbox.books.ended == {ended: 1}


async def test_a_cut_of_a_body_that_ends_with_its_connection_looks_whole(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script="framing=close;cut_after=4"))
    assert answer.complete
    assert sandbox.books.ended == {CUT: 1}


async def test_an_error_event_is_followed_by_a_clean_end(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script="error_after=5;tokens=40;per=1"))
    assert answer.complete
    error = events(answer.body)[-1]
    assert error["error"] == {"details": None, "type": "overloaded_error", "message": "Overloaded"}
    assert error["request_id"] == answer.headers["request-id"]
    entry = sandbox.books[error["request_id"]]
    assert (entry.ended, entry.output_delivered, entry.bills[0].output_tokens) == (ERROR_EVENT, 2, 2)


STATUSES: dict[str, tuple[str, dict[str, str]]] = {
    "status=400": ("invalid_request_error", {}),
    "status=401": ("authentication_error", {}),
    "status=402": ("billing_error", {}),
    "status=403": ("permission_error", {}),
    "status=404": ("not_found_error", {}),
    "status=409": ("conflict_error", {}),
    "status=429;retry_after=7": ("rate_limit_error", {"retry-after": "7", "x-should-retry": "true"}),
    "status=500": ("api_error", {}),
    "status=503": ("api_error", {"x-should-retry": "true"}),
    "status=504": ("timeout_error", {}),
    "status=529": ("overloaded_error", {"x-should-retry": "true"}),
}


@pytest.mark.parametrize("script", STATUSES)
async def test_statuses(script: str, sandbox: Sandbox) -> None:
    type_, headers = STATUSES[script]
    answer = await exchange(sandbox, request(body=ask(stream=True), script=script))
    assert answer.status == int(script[7:10])
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == type_
    assert answer.json()["request_id"] == answer.headers["request-id"]
    assert headers.items() <= answer.headers.items()
    entry = sandbox.books[answer.headers["request-id"]]
    assert (entry.ended, entry.bills, entry.status) == (REFUSED, [], answer.status)


async def test_a_413_is_not_json(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(), script="status=413"))
    assert (answer.status, answer.headers["content-type"]) == (413, "text/html")
    assert answer.body.startswith(b"<html>")


async def test_a_redirect_leads_elsewhere(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(), script="status=302"))
    assert (answer.status, answer.headers["location"]) == (302, "http://127.0.0.1:9/elsewhere")


async def test_the_first_requests_with_an_id_fail(sandbox: Sandbox) -> None:
    async def status(script: str) -> int:
        return (await exchange(sandbox, request(body=ask(), script=script))).status

    assert [await status("fail=2;id=a") for _ in range(3)] == [529, 529, 200]
    assert await status("fail=1;id=b;status=500") == 500
    assert await status("fail=1;id=b;status=500") == 200


async def test_the_script_may_be_in_the_text(sandbox: Sandbox) -> None:
    body = ask(text="Please go on. [sandbox tokens=5 status=529 retry_after=3]")
    assert (await exchange(sandbox, request(body=body))).status == 529
    answer = await exchange(sandbox, request(body=body, script="status=429"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "3"), "the header wins, key by key"


async def test_a_script_at_fault_is_refused(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(), script="tokns=5"))
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "x-sandbox: unknown key 'tokns', did you mean 'tokens'?"


async def test_an_early_answer_leaves_the_body_unread(autojump_clock: MockClock, sandbox: Sandbox) -> None:
    head = request(script="early_answer=429", method="POST").replace(
        b"\r\n\r\n", b"\r\nContent-Length: 9000000\r\n\r\n"
    )
    async with await connect(sandbox) as stream:
        await stream.send_all(head + b"x" * 1000)
        wire = await until(stream, b"rate_limit_error")
        # It takes no more: what it leaves unread fills the buffers between.
        with trio.move_on_after(0.5) as stuck:
            await stream.send_all(b"x" * 8_990_000)
        assert stuck.cancelled_caught
    assert parsed(wire).status == 429
    assert sandbox.books.ended == {REFUSED: 1}
    assert not sandbox.requests[-1].complete


# The client has to leave: what it waits for before it does.
STALLS: dict[str, bytes] = {
    "head_stall=1": b"",
    "ttft=3600": b"",
    "tps=0.001": b"event: message_start",
    "stall_after=4": b"text_delta",
    "stall_after=100b": b"event: message_start",
    "stall_after=1;pings=0.01": b"\r\n24\r\nevent: ping",
    "stall_after=1;pings=0.01;framing=close": b"event: ping",
}


@pytest.mark.parametrize("half", [False, True], ids=["closes", "half-closes"])
@pytest.mark.parametrize("script", STALLS)
async def test_a_client_that_leaves_is_noticed(script: str, half: bool, sandbox: Sandbox) -> None:
    async with await connect(sandbox) as stream:
        await stream.send_all(request(body=ask(stream=True), script=script))
        if mark := STALLS[script]:
            await until(stream, mark)
        else:
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.checkpoint()
                while not sandbox.books.running:
                    await trio.lowlevel.checkpoint()
        assert sandbox.books.running == 1
        if half:
            await stream.send_eof()
            await read_all(stream)
    with trio.fail_after(PATIENCE):
        await sandbox.books.settled()
    (entry,) = sandbox.books.entries
    assert entry.ended == CLIENT_LEFT
    assert entry.ended_at is not None
    assert (entry.status is None) == (not STALLS[script])


async def test_hangup_closes_without_having_said_so(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(), script="hangup=1", close=False))
    assert answer.complete
    assert answer.headers["connection"] == "keep-alive"
    assert sandbox.books.ended == {COMPLETE: 1}


async def test_trailing_bytes_are_a_second_answer(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(), script="trailing=1"))
    assert parsed(answer.trailing).body == b"unasked"


ROWS = [
    *CONTENT,
    *FORMS,
    *ODD,
    *BROKEN,
    *STATUSES,
    *STALLS,
    "fail=2;id=a",
    "early_answer=429",
    "hangup=1",
]
