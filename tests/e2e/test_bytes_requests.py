"""Law 1, the way there: what a client says reaches the upstream byte for byte.

Looked at is the raw request as a scripted upstream received it: request line, every header line, body.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

import brotli
import pytest
import trio
from backports import zstd

from tests.e2e.house import REAL_KEY, open_house_before
from tests.e2e.raw import Arrived, ask, chunked, get, parse, post, read_answer, request, values
from tests.wire.peer import OK, answers

NOISE = random.Random(3).randbytes(5_000_000)

ODD = (
    b'\t{ "stream" :false,"max_tokens":1.0e1,\r\n"model": "claude-haiku-4-5" , "z":[1.0,-0,1e400],"a":{"b":null},'
    rb'"messages":[{"content":"\ud83d \u00e9 \/ ' + "é🙂".encode() + b'","role":"user"}],"model":"claude-haiku-4-5"}\n '
)
MULTIPART = (
    b'--b0\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\nContent-Type: x/y\r\n\r\n'
    + bytes(range(256)) * 40
    + b"\r\n--b0--\r\n"
)
FORM = ("content-type", "multipart/form-data; boundary=b0")
TE = ("Transfer-Encoding", "chunked")


@dataclass(frozen=True)
class Row:
    """A request body: `wire` as it is sent, `body` as it must arrive (None: the same)."""

    name: str
    wire: bytes
    body: bytes | None = None
    target: str = "/v1/messages"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"


def coded(name: str, body: bytes, coding: str) -> Row:
    return Row(name, body, headers=(("content-encoding", coding),))


def meta(name: str, wire: bytes, body: bytes, *headers: tuple[str, str], target: str = "/v1/messages") -> Row:
    """With a `litellm_metadata` in it."""
    return Row(f"litellm_metadata {name}", wire, body, target, headers)


M = b'"litellm_metadata": {"tags": ["a", {"}": "\\"]"}], "user":\n"u"}'
BODIES = [
    Row("odd JSON", ODD),
    Row("not JSON", b'{"model": "claude-haiku-4-5", } // \xff\x00'),
    Row("UTF-16", json.dumps({"model": "x"}).encode("utf-16")),
    Row("every byte", bytes(range(256))),
    Row("nothing", b"", headers=(("Content-Length", "0"),)),
    Row("nothing, unframed", b""),
    Row("nothing, in chunks", b"0\r\n\r\n", b"", headers=(TE,)),
    Row("large JSON", b'{"model":"claude-haiku-4-5","x":"' + b"a" * 1_000_000 + b'"}'),
    Row("chunks", chunked(ODD, 7), ODD, headers=(TE,)),
    Row("chunks of one byte", chunked(ODD[:200], 1), ODD[:200], headers=(TE,)),
    Row("chunk extensions and trailers", b'2;a="b"\r\nab\r\n00\r\nx-t: 1\r\n\r\n', b"ab", headers=(TE,)),
    Row("chunks that stream", chunked(NOISE[:300_000], 999), NOISE[:300_000], "/v1/files", (TE,)),
    Row("Expect", ODD, headers=(("Expect", "100-continue"),)),
    coded("gzip", gzip.compress(ODD), "gzip"),
    coded("gzip in two members", gzip.compress(ODD[:9]) + gzip.compress(ODD[9:]), "GZIP"),
    coded("broken gzip", gzip.compress(ODD)[:-9], "gzip"),
    coded("deflate", zlib.compress(ODD), "deflate"),
    coded("br", brotli.compress(ODD), "br"),
    coded("zstd", zstd.compress(ODD), "zstd"),
    coded("two codings", gzip.compress(zstd.compress(ODD)), "zstd, gzip"),
    coded("unknown coding", ODD, "x-odd"),
    coded("coding that is none", ODD, "gzip"),
    Row("multipart", MULTIPART, target="/v1/files", headers=(FORM,)),
    Row("multipart in chunks", chunked(MULTIPART, 100), MULTIPART, "/v1/skills", (FORM, TE)),
    Row("batch", b'{"requests": [ {"params":{"litellm_metadata":{}}} ]}', target="/v1/messages/batches"),
    Row("unknown path", ODD, target="/v1/sessions/x/events"),
    Row("DELETE with a body", b'{"a" : 1}', method="DELETE", target="/v1/files/f"),
    Row("GET with a body", b'{"a" : 1}', method="GET", target="/v1/models"),
    Row("PATCH", b'{"a" : 1}', method="PATCH", target="/v1/x"),
    meta("alone", b"{ " + M + b"\n}", b"{ \n}"),
    meta("first", b"{" + M + b' , \n"model":"m"}', b'{ \n"model":"m"}'),
    meta("in the middle", b'{"model":"m" , ' + M + b' ,"a":1.0}', b'{"model":"m"  ,"a":1.0}'),
    meta("last", b' {"model":"m",\n ' + M + b" }\n", b' {"model":"m" }\n'),
    meta("twice", b'{"litellm_metadata":1,"a": 1,' + M + b"}", b'{"a": 1}'),
    meta("escaped", rb'{"a":1 ,"\u006citellm_metadata":{"user":"u"}}', b'{"a":1 }'),
    meta("null", b'{"litellm_metadata" : null,"a":1}', b'{"a":1}'),
    meta("nested", b'{"metadata":{' + M + b'},"x":[{' + M + b"}]}", b'{"metadata":{' + M + b'},"x":[{' + M + b"}]}"),
    meta("as a value", b'{"litellm_metadatas":"litellm_metadata"}', b'{"litellm_metadatas":"litellm_metadata"}'),
    meta("in broken JSON", b'{"a":1,' + M, b'{"a":1,' + M),
    meta("in an array", b"[{" + M + b"}]", b"[{" + M + b"}]"),
    meta("in chunks", chunked(b'{"a":1,' + M + b"}", 5), b'{"a":1}', TE),
    meta("for count_tokens", b'{"a":1,' + M + b"}", b'{"a":1}', target="/v1/messages/count_tokens"),
]


@pytest.mark.parametrize("row", BODIES, ids=lambda row: row.name)
async def test_a_body_arrives_as_it_was_sent(row: Row, tmp_path: Path) -> None:
    headers = [("content-type", "application/json"), ("x-api-key", "sk-any"), *row.headers]
    sent = request(row.method, row.target, headers, row.wire)
    async with open_house_before(tmp_path, answers(OK)) as (house, upstream):
        answer = await ask(house.address, sent)
        ledger = await house.row(answer.id)
        arrived = parse(upstream.lines[0].received)
    body = row.wire if row.body is None else row.body
    assert answer.status == 200
    assert arrived.line == f"{row.method} {row.target} HTTP/1.1".encode()
    assert arrived.body == body
    sizes, codings = values(arrived.headers, "content-length"), values(arrived.headers, "transfer-encoding")
    assert len(sizes) + len(codings) == 1 or not body
    assert sizes in ([], [str(len(body)).encode()])
    assert values(arrived.headers, "content-encoding") == [
        value.encode() for name, value in row.headers if name == "content-encoding"
    ]
    assert ledger["ended"] == "finished"
    if TE not in row.headers:
        assert ledger["bytes_in"] == len(row.wire)


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
async def test_litellm_metadata_comes_out_of_a_coded_body_and_the_coding_with_it(
    coding: str, compress: object, tmp_path: Path
) -> None:
    assert callable(compress)
    wire = compress(b'{"a": 1.0,' + M + b"}")
    sent = post("/v1/messages", wire, ("Content-Encoding", coding), ("x-after", "1"))
    async with open_house_before(tmp_path, answers(OK)) as (house, upstream):
        ledger = await house.row((await ask(house.address, sent)).id)
        arrived = parse(upstream.lines[0].received)
    assert arrived.body == b'{"a": 1.0}'
    assert not values(arrived.headers, "content-encoding")
    assert (ledger["customer"], ledger["tags"]) == ("u", ["a"])


async def test_five_megabytes_stream_through(tmp_path: Path) -> None:
    """The upstream has the first half while the client has not sent the second."""
    for_length = request("POST", "/anthropic/v1/files", [("x-api-key", "k"), ("content-length", str(len(NOISE)))])
    half = len(NOISE) // 2
    async with open_house_before(tmp_path, answers(OK)) as (house, upstream):
        stream = await trio.open_tcp_stream(*house.address)
        async with stream:
            await stream.send_all(for_length + NOISE[:half])
            with trio.fail_after(10):
                while not upstream.lines or len(upstream.lines[0].received) < half:
                    await trio.sleep(0.001)
            await stream.send_all(NOISE[half:])
            answer = await read_answer(stream)
        ledger = await house.row(answer.id)
        arrived = parse(upstream.lines[0].received)
    assert arrived.body == NOISE
    assert (b"content-length", b"5000000") in arrived.headers
    assert ledger["bytes_in"] == len(NOISE)


@pytest.mark.parametrize("target", ["/v1/files", "/v1/messages"])
async def test_an_answer_without_a_length_to_a_large_body_is_finished(target: str, tmp_path: Path) -> None:
    """When it has all of the answer, a client may leave; so it does not matter that the connection then ends."""
    said = b"HTTP/1.1 200 OK\r\ncontent-type: x/y\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(ODD, 20)
    async with open_house_before(tmp_path, answers(said)) as (house, _):
        answer = await ask(house.address, post(target, NOISE[:200_000]))
        row = await house.row(answer.id)
    assert answer.body == ODD
    assert (row["ended"], row["bytes_out"]) == ("finished", len(ODD))


TARGETS = [
    "/v1/messages?beta=true",
    "/v1/models?",
    "/v1/models?a=1&a=2&&=&b&limit=%31&x=%2f%2F%zz",
    "/v1/models?a=b?c=d/../e//f;g|h[]{}^`<>\"'\\@~!$*+,:",
    "/v1/files/file%5F1/content?x=%00",
    "/v1/files/%E2%82%AC%e2%82%ac",
    "/v1/files/a:b,c+d=e!$&'()*~._-",
    "/v1/messages/",
    "/v1/x/" + "y" * 8_000,
]


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
async def test_a_target_arrives_as_it_was_written(prefix: str, tmp_path: Path) -> None:
    async with open_house_before(tmp_path, answers(*[OK] * len(TARGETS))) as (house, upstream):
        for target in TARGETS:
            assert (await ask(house.address, get(prefix + target))).status == 200
        assert [request.target.decode() for request in upstream.lines[0].requests] == TARGETS


async def test_a_target_with_our_own_host_in_it_and_an_upstream_with_a_path(tmp_path: Path) -> None:
    async with open_house_before(tmp_path, answers(OK), path="/base") as (house, upstream):
        assert (await ask(house.address, get("http://proxy.test/anthropic/v1/models?x"))).status == 200
        arrived = parse(upstream.lines[0].received)
        assert arrived.line == b"GET /base/v1/models?x HTTP/1.1"
        assert values(arrived.headers, "host") == [str(upstream.origin).encode()]


async def _arrived(tmp_path: Path, sent: bytes) -> Arrived:
    async with open_house_before(tmp_path, answers(OK)) as (house, upstream):
        assert (await ask(house.address, sent)).status == 200
        return parse(upstream.lines[0].received)


async def test_header_lines_arrive_in_their_order_and_spelling(tmp_path: Path) -> None:
    sent = request(
        "POST",
        "/v1/messages",
        [
            ("User-AGENT", "odd/1.0 (a, b)"),
            ("anthropic-beta", "one,two"),
            ("X_under.score!#$", "\xe9\xff"),
            ("X-API-Key", "sk-any"),
            ("Anthropic-Beta", "three"),
            ("Accept-Encoding", "gzip;q=0.5, br"),
            ("CONTENT-LENGTH", "2"),
            ("Connection", "x-named, keep-alive"),
            ("x-named", "1"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "Basic eA=="),
            ("Via", "1.1 other"),
            ("empty", ""),
            ("x-stainless-retry-count", "0"),
            ("cookie", "a=1"),
            ("anthropic-version", "2023-06-01"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("x-tproxy-tags", "t"),
        ],
        b"{}",
    )
    arrived = await _arrived(tmp_path, sent)
    *found, via = arrived.headers
    assert found == [
        (b"Host", found[0][1]),
        (b"User-AGENT", b"odd/1.0 (a, b)"),
        (b"anthropic-beta", b"one,two"),
        (b"X_under.score!#$", b"\xe9\xff"),
        (b"X-API-Key", REAL_KEY.encode()),
        (b"Anthropic-Beta", b"three"),
        (b"Accept-Encoding", b"gzip;q=0.5, br"),
        (b"CONTENT-LENGTH", b"2"),
        (b"Via", b"1.1 other"),
        (b"empty", b""),
        (b"x-stainless-retry-count", b"0"),
        (b"cookie", b"a=1"),
        (b"anthropic-version", b"2023-06-01"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"x-tproxy-tags", b"t"),
    ]
    assert via[0] == b"Via"
    assert via[1].startswith(b"1.1 tproxy-")


async def test_nothing_is_added_that_the_client_did_not_send(tmp_path: Path) -> None:
    arrived = await _arrived(tmp_path, b"GET /v1/models HTTP/1.1\r\nhost: proxy.test\r\n\r\n")
    assert [name for name, _ in arrived.headers] == [b"host", b"x-api-key", b"Via"]
