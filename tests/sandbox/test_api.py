"""Endpoints, credentials and refusals, on raw sockets."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import partial
from typing import Any

import pytest
import trio

from tests.sandbox.raw import Answer, ask, exchange, request
from tproxy.sandbox.books import COMPLETE
from tproxy.sandbox.catalogue import MODELS
from tproxy.sandbox.server import Sandbox, serve_sandbox


def error(answer: Answer) -> tuple[int, str, str]:
    told = answer.json()["error"]
    assert answer.headers["request-id"] == answer.json()["request_id"]
    return answer.status, told["type"], told["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 401),
        (("x-api-key: sk-ant-real",), 200),
        (("X-Api-Key: sk-ant-real",), 200),
        (("Authorization: Bearer sk-ant-real",), 200),
        (("authorization: bearer sk-ant-real",), 200),
        (("Authorization: Basic sk-ant-real",), 401),
        (("x-api-key: sk-proxy",), 401),
        (("x-api-key: sk-ant-real", "Authorization: Bearer sk-proxy"), 401),
        (("x-api-key:", "Authorization: Bearer sk-ant-real"), 401),
        (("x-api-key: sk-ant-real", "anthropic-version: 2023-06-01"), 200),
        (("x-api-key: sk-ant-real", "anthropic-version: 2026-10-21"), 200),
        (("x-api-key: sk-ant-real", "anthropic-version: latest"), 400),
    ],
)
async def test_credentials_and_version(headers: tuple[str, ...], status: int, nursery: trio.Nursery) -> None:
    sandbox: Sandbox = await nursery.start(partial(serve_sandbox, keys=["sk-ant-real"]))
    answer = await exchange(sandbox, request(body=ask(), headers=headers))
    assert answer.status == status
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("headers", [("x-api-key: any",), ("Authorization: Bearer thing",)])
async def test_without_a_list_any_credential_will_do(headers: tuple[str, ...], sandbox: Sandbox) -> None:
    assert (await exchange(sandbox, request(body=ask(), headers=headers))).status == 200
    assert (await exchange(sandbox, request(body=ask(), headers=()))).status == 401


@pytest.mark.parametrize(
    ("method", "target", "status", "type_"),
    [
        ("GET", "/", 404, "not_found_error"),
        ("GET", "/v1/sessions", 404, "not_found_error"),
        ("GET", "/v1/models/gone", 404, "not_found_error"),
        ("GET", "/v1/messages", 404, "not_found_error"),
        ("GET", "/v1/messages/batches/gone", 404, "not_found_error"),
        ("GET", "/v1/files/gone", 404, "not_found_error"),
        ("GET", "/v1/models?limit=0", 400, "invalid_request_error"),
        ("GET", "/v1/models?after_id=gone", 400, "invalid_request_error"),
        ("GET", "/v1/files?page=gone", 400, "invalid_request_error"),
        ("PATCH", "/v1/models", 405, "invalid_request_error"),
        ("OPTIONS", "/v1/models", 405, "invalid_request_error"),
        ("POST", "/v1/files", 400, "invalid_request_error"),
        ("POST", "/v1/complete", 400, "invalid_request_error"),
    ],
)
async def test_refusals(method: str, target: str, status: int, type_: str, sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(target, b"{}" if method == "POST" else None, method=method))
    assert error(answer)[:2] == (status, type_)


async def test_the_answer_of_the_api_as_it_is(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request("/v1/messages?beta=true", ask(), close=False, script="hangup"))
    lines = answer.wire.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    names = [line.partition(b":")[0].decode() for line in lines[1:]]
    for name in ("Date", "Content-Type", "Content-Length", "Connection", "Server", "CF-RAY", "via", "request-id"):
        assert name in names
    for name in ("anthropic-organization-id", "anthropic-ratelimit-requests-limit", "strict-transport-security"):
        assert name in names
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["request-id"].startswith("req_011C")
    stream = await exchange(sandbox, request(body=ask(stream=True)))
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache"


async def test_the_same_request_gets_the_same_bytes(sandbox: Sandbox) -> None:
    bodies = {(await exchange(sandbox, request(body=ask(stream=True)))).body for _ in range(3)}
    assert len(bodies) == 1
    assert (await exchange(sandbox, request(body=ask(stream=True), script="seed=4"))).body not in bodies


@pytest.mark.parametrize("target", ["/", "/v1/models", "/v1/models/claude-opus-5-5", "/v1/messages", "/gone"])
async def test_head_is_get_without_a_body(target: str, sandbox: Sandbox) -> None:
    head = await exchange(sandbox, request(target, method="HEAD"))
    assert head.wire.endswith(b"\r\n\r\n")
    assert head.complete
    if target == "/":
        assert head.status == 200
        assert (await exchange(sandbox, request(target, method="HEAD", headers=()))).status == 200
    else:
        get = await exchange(sandbox, request(target))
        assert (head.status, head.headers["content-length"]) == (get.status, get.headers["content-length"])


async def test_models(sandbox: Sandbox) -> None:
    everything = (
        await exchange(sandbox, request("/v1/models?limit=1000&lifecycle[]=retired&lifecycle[]=active"))
    ).json()
    assert {model["id"] for model in everything["data"]} == {m.id for m in MODELS if m.lifecycle != "deprecated"}
    first = (await exchange(sandbox, request("/v1/models?limit=2"))).json()
    assert [first["first_id"], first["last_id"]] == [model["id"] for model in first["data"]]
    assert first["has_more"]
    following = (await exchange(sandbox, request(f"/v1/models?limit=2&after_id={first['last_id']}"))).json()
    before = (await exchange(sandbox, request(f"/v1/models?limit=2&before_id={following['first_id']}"))).json()
    assert before["data"] == first["data"]
    assert not before["has_more"]
    alias = (await exchange(sandbox, request("/v1/models/claude-haiku-4-5"))).json()
    assert (alias["id"], alias["line"]) == ("claude-haiku-4-5-20251001", "haiku")


async def test_counting_says_what_the_answer_will(sandbox: Sandbox) -> None:
    body = ask(text="How many? " * 20, system="Count.")
    counted = {name: value for name, value in body.items() if name not in {"max_tokens", "stream"}}
    tokens = (await exchange(sandbox, request("/v1/messages/count_tokens", counted))).json()
    assert tokens == {"input_tokens": (await exchange(sandbox, request(body=body))).json()["usage"]["input_tokens"]}
    managed = counted | {"context_management": {"edits": []}}
    both = (await exchange(sandbox, request("/v1/messages/count_tokens", managed))).json()
    assert both["context_management"] == {"original_input_tokens": both["input_tokens"]}


async def test_a_coded_request_body_is_understood(sandbox: Sandbox) -> None:
    coded = gzip.compress(json.dumps(ask()).encode())
    headers = ("x-api-key: key", "Content-Encoding: gzip")
    assert (await exchange(sandbox, request(body=coded, headers=headers))).status == 200
    assert sandbox.requests[-1].body == coded
    broken = await exchange(sandbox, request(body=coded[:-9], headers=headers))
    assert broken.json()["error"]["details"] == {"error_code": "request_body_encoding_invalid"}


async def test_the_old_completions(sandbox: Sandbox) -> None:
    body = {"model": "claude-2.1", "prompt": "\n\nHuman: Hello\n\nAssistant:", "max_tokens_to_sample": 5}
    answer = (await exchange(sandbox, request("/v1/complete", body))).json()
    assert (answer["type"], answer["stop_reason"], answer["model"]) == ("completion", "max_tokens", "claude-2.1")
    assert answer["completion"].startswith(" ")


async def test_batches(sandbox: Sandbox) -> None:
    params = ask()
    wrong: dict[str, Any] = {"model": "claude-opus-5-5", "messages": params["messages"]}
    requests = [
        {"custom_id": "right", "params": params},
        {"custom_id": "wrong", "params": wrong},
        {"custom_id": "streamed", "params": params | {"stream": True}},
    ]
    made = (await exchange(sandbox, request("/v1/messages/batches", {"requests": requests}, script="tokens=5"))).json()
    assert (made["processing_status"], made["results_url"]) == ("in_progress", None)
    assert made["request_counts"]["processing"] == 3
    assert sandbox.books.total()["output_tokens"] == 0

    shown = (await exchange(sandbox, request(f"/v1/messages/batches/{made['id']}"))).json()
    assert shown["processing_status"] == "ended"
    assert shown["request_counts"] == {"processing": 0, "succeeded": 1, "errored": 2, "canceled": 0, "expired": 0}
    assert shown["results_url"] == f"{sandbox.url}/v1/messages/batches/{made['id']}/results"

    results = await exchange(sandbox, request(f"/v1/messages/batches/{made['id']}/results"))
    assert results.headers["content-type"] == "application/x-jsonl"
    lines = [json.loads(line) for line in results.body.splitlines()]
    assert [line["custom_id"] for line in lines] == ["streamed", "wrong", "right"], "not in the order of the requests"
    assert lines[1]["result"]["error"] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "max_tokens: Field required"},
        "request_id": None,
    }
    usage = lines[2]["result"]["message"]["usage"]
    assert (usage["service_tier"], usage["output_tokens"]) == ("batch", 5)
    entry = sandbox.books[f"{made['id']}/right"]
    assert (entry.ended, entry.bills[0].service_tier, entry.bills[0].output_tokens) == (COMPLETE, "batch", 5)
    assert sandbox.books.total()["output_tokens"] == 5, "booked once"

    assert (await exchange(sandbox, request(f"/v1/messages/batches/{made['id']}", method="DELETE"))).json() == {
        "id": made["id"],
        "type": "message_batch_deleted",
    }
    assert (await exchange(sandbox, request("/v1/messages/batches"))).json()["data"] == []


async def test_a_batch_takes_its_time_and_can_be_cancelled(sandbox: Sandbox) -> None:
    body = {"requests": [{"custom_id": "a", "params": ask()}]}
    made = (await exchange(sandbox, request("/v1/messages/batches", body, script="batch_seconds=3600"))).json()
    path = f"/v1/messages/batches/{made['id']}"
    assert (await exchange(sandbox, request(path))).json()["processing_status"] == "in_progress"
    assert (await exchange(sandbox, request(path + "/results"))).status == 404
    assert (await exchange(sandbox, request(path, method="DELETE"))).status == 400
    cancelled = (await exchange(sandbox, request(path + "/cancel", b""))).json()
    assert (cancelled["processing_status"], cancelled["results_url"]) == ("canceling", None)
    shown = (await exchange(sandbox, request(path))).json()
    assert (shown["processing_status"], shown["request_counts"]["canceled"]) == ("ended", 1)
    assert shown["cancel_initiated_at"] == shown["ended_at"]
    results = await exchange(sandbox, request(path + "/results"))
    assert json.loads(results.body) == {"custom_id": "a", "result": {"type": "canceled"}}
    assert (await exchange(sandbox, request(path + "/cancel", b""))).status == 400
    assert sandbox.books.total()["output_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "requests: Input should be a list"),
        ({"requests": []}, "requests: Input should be a list"),
        ({"requests": [1]}, "requests.0: Input should be"),
        ({"requests": [{"custom_id": "", "params": {}}]}, "requests.0.custom_id: Input should be"),
        ({"requests": [{"custom_id": "a"}]}, "requests.0.params: Input should be"),
        ({"requests": [{"custom_id": "a", "params": {}, "x": 1}]}, "requests.0.x: Extra inputs"),
        ({"requests": [{"custom_id": "a", "params": {}}] * 2}, "requests.1.custom_id: 'a' is there twice"),
        ({"requests": [{"custom_id": "a", "params": {}}], "litellm_metadata": {}}, "litellm_metadata: Extra inputs"),
    ],
)
async def test_a_batch_that_is_wrong_is_refused(body: dict[str, Any], message: str, sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request("/v1/messages/batches", body))
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith(message)


def upload(content: bytes, *fields: tuple[str, str]) -> bytes:
    form = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields
    )
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="up/notes.txt"\r\n'
    head += b"Content-Type: text/plain\r\n\r\n"
    headers = ("x-api-key: key", "Content-Type: multipart/form-data; boundary=b")
    return request("/v1/files", form + head + content + b"\r\n--b--\r\n", headers=headers)


async def test_files(sandbox: Sandbox) -> None:
    made = (await exchange(sandbox, upload(b"some notes", ("expires_in_seconds", "3600")))).json()
    assert (made["type"], made["filename"], made["size_bytes"]) == ("file", "notes.txt", 10)
    assert made["expires_at"] > made["created_at"]
    assert (await exchange(sandbox, request(f"/v1/files/{made['id']}"))).json() == made
    content = await exchange(sandbox, request(f"/v1/files/{made['id']}/content"))
    assert (content.headers["content-type"], content.body) == ("text/plain", b"some notes")
    other = (await exchange(sandbox, upload(b"other"))).json()
    assert other["expires_at"] is None
    first = (await exchange(sandbox, request("/v1/files?limit=1"))).json()
    assert [file["id"] for file in first["data"]] == [other["id"]], "newest first"
    second = (await exchange(sandbox, request(f"/v1/files?limit=1&page={first['next_page']}"))).json()
    assert ([file["id"] for file in second["data"]], second["next_page"]) == ([made["id"]], None)
    some = (await exchange(sandbox, request(f"/v1/files?ids[]={made['id']}&ids[]=gone"))).json()
    assert [file["id"] for file in some["data"]] == [made["id"]]
    deleted = (await exchange(sandbox, request(f"/v1/files/{made['id']}", method="DELETE"))).json()
    assert deleted == {"type": "file_deleted", "id": made["id"]}
    assert (await exchange(sandbox, request(f"/v1/files/{made['id']}"))).status == 404
    assert (await exchange(sandbox, upload(b"x", ("expires_in_seconds", "1")))).status == 400


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'name="file"', b'name="document"', "file: Field required"),
        (b"\r\n--b--", b"", "The multipart body ends before its last boundary"),
        (b"\r\n--b--", b"\r\n--b??", "Malformed multipart boundary"),
        (b"boundary=b", b"boundary=", "Expected multipart/form-data with a boundary"),
        (b"multipart/form-data", b"multipart/mixed", "Expected multipart/form-data with a boundary"),
    ],
)
async def test_an_upload_that_is_wrong_is_refused(old: bytes, new: bytes, message: str, sandbox: Sandbox) -> None:
    data = upload(b"notes")
    head, _, form = data.replace(old, new).partition(b"\r\n\r\n")
    length = b"Content-Length: %d" % len(data.partition(b"\r\n\r\n")[2])
    head = head.replace(length, b"Content-Length: %d" % len(form))
    assert error(await exchange(sandbox, head + b"\r\n\r\n" + form)) == (400, "invalid_request_error", message)


async def test_an_empty_file_has_no_chunk_but_the_last(sandbox: Sandbox) -> None:
    made = (await exchange(sandbox, upload(b""))).json()
    content = await exchange(sandbox, request(f"/v1/files/{made['id']}/content", script="framing=chunked"))
    assert content.wire.endswith(b"\r\n\r\n0\r\n\r\n")
    assert (content.complete, content.trailing) == (True, b"")


async def test_a_large_upload_is_hashed_and_not_held(sandbox: Sandbox) -> None:
    sent = upload(b"z" * 3_000_000)
    made = (await exchange(sandbox, sent)).json()
    assert (made["size_bytes"], made["downloadable"]) == (3_000_000, False)
    refused = await exchange(sandbox, request(f"/v1/files/{made['id']}/content"))
    assert refused.json()["error"]["details"] == {"error_code": "file_not_downloadable"}
    got = next(kept for kept in sandbox.requests if kept.target == b"/v1/files")
    body = sent.partition(b"\r\n\r\n")[2]
    assert (got.body, got.size, got.sha256) == (b"", len(body), hashlib.sha256(body).hexdigest())


async def test_the_books_can_be_read_and_forgotten(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script="tokens=7;cut_after=5;per=1"))
    books = (await exchange(sandbox, request("/sandbox/books", headers=()))).json()
    assert (books["running"], books["ended"]) == (0, {"cut": 1})
    (entry,) = books["entries"]
    assert entry["request_id"] == answer.headers["request-id"]
    assert (entry["output_delivered"], entry["events_sent"], entry["bytes_sent"]) == (2, 5, len(answer.body))
    assert books["total"]["output_tokens"] == entry["bills"][0]["output_tokens"] == 2
    assert (await exchange(sandbox, request("/sandbox/books", method="DELETE", headers=()))).json() == {}
    assert (await exchange(sandbox, request("/sandbox/books", headers=()))).json()["entries"] == []
