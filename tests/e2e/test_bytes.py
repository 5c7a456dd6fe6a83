"""Law 1, the way back: what an upstream says reaches the client byte for byte, whatever it is.

Each row is a whole response as it is on the wire, and the body that it stands for. The client must get that body,
the status, the reason, and every header line in its place and spelling, but for what RFC 9110 has a gateway change.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import brotli
import pytest
import trio
from backports import zstd

from tests.e2e.house import open_house_before
from tests.e2e.raw import Header, ask, chunked, get, lines, post, read_answer, request, values
from tests.wire.peer import Line, answers

pytestmark = pytest.mark.usefixtures("both_paths")

# RFC 9110 section 7.6.1, and what the rows' Connection lines nominate.
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-nominated",
}
OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"Content-Type: application/json\r\n"
EVENTS = b"Content-Type: text/event-stream; charset=utf-8\r\n"
DATE = b"Date: Mon, 23 Nov 2026 06:40:00 GMT\r\n"

MESSAGE = json.dumps(
    {"id": "msg_01", "type": "message", "model": "claude-haiku-4-5", "usage": {"input_tokens": 9, "output_tokens": 3}}
).encode()
STREAM = b"".join(
    b"event: %b\ndata: %b\n\n" % (json.loads(data)["type"].encode(), data)
    for data in (
        b'{"type":"message_start","message":{"id":"msg_01","model":"claude-haiku-4-5","usage":{"input_tokens":9}}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
        b'{"type": "ping"}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"42 🙂"}}'.encode(),
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}',
        b'{"type":"message_stop"}',
    )
)
NOISE = random.Random(7).randbytes(300_000)
EVERY_BYTE = bytes(range(256)) * 3


@dataclass(frozen=True)
class Row:
    """`pieces` go out one by one; `body` is what they stand for; `lost` are further lines that may not arrive."""

    name: str
    pieces: Sequence[bytes]
    body: bytes
    method: str = "POST"
    target: str = "/v1/messages"
    version: str = "HTTP/1.1"
    lost: frozenset[bytes] = frozenset()
    closes: bool = False


def sized(name: str, body: bytes, head: bytes = OK + JSON) -> Row:
    return Row(name, [head + b"Content-Length: %d\r\n\r\n" % len(body) + body], body)


def streamed(name: str, body: bytes, head: bytes = OK + EVENTS, *, size: int = 700) -> Row:
    """In chunks, each a piece of its own."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    wire = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return Row(name, [head + b"Transfer-Encoding: chunked\r\n\r\n", *wire, b"0\r\n\r\n"], body)


def whole(name: str, wire: bytes, body: bytes, head: bytes = OK + JSON) -> Row:
    """With the framing already in `wire`."""
    return Row(name, [head + wire], body)


def coded(coding: str, data: bytes) -> bytes:
    return b"Content-Encoding: %b\r\n" % coding.encode() + data


def flushed(coding: str) -> bytes:
    """The stream, compressed and flushed after each event, as the API does it."""
    events = [event + b"\n\n" for event in STREAM.split(b"\n\n")[:-1]]
    if coding == "gzip":
        gz = zlib.compressobj(wbits=31)
        return b"".join(gz.compress(event) + gz.flush(zlib.Z_SYNC_FLUSH) for event in events) + gz.flush()
    if coding == "br":
        br = brotli.Compressor()
        return bytes(b"".join(br.process(event) + br.flush() for event in events) + br.finish())
    zs = zstd.ZstdCompressor()
    return b"".join(zs.compress(event, zs.FLUSH_BLOCK) for event in events) + zs.flush(zs.FLUSH_FRAME)


SIZED = OK + JSON + b"Content-Length: %d\r\n\r\n" % len(MESSAGE) + MESSAGE
FRAMINGS = [
    sized("content-length", MESSAGE),
    sized("content-length 0", b""),
    Row("head in single bytes", [*(bytes([byte]) for byte in SIZED[:90]), SIZED[90:]], MESSAGE),
    whole("one chunk", b"Transfer-Encoding: chunked\r\n\r\n" + chunked(MESSAGE), MESSAGE),
    whole("chunks of one byte", b"transfer-encoding: Chunked\r\n\r\n" + chunked(MESSAGE, 1), MESSAGE),
    whole("chunks of seven bytes", b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM, 7), STREAM, OK + EVENTS),
    whole(
        "chunk extensions, zeros, capitals",
        b'Transfer-Encoding: chunked\r\n\r\n00A;name=value;q="a b"\r\n0123456789\r\n0a\r\nabcdefghij\r\n000;x\r\n\r\n',
        b"0123456789abcdefghij",
    ),
    whole(
        "trailers",
        b"Trailer: x-digest\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(MESSAGE, 50, trailers=b"x-digest: 1\r\n"),
        MESSAGE,
    ),
    whole("no chunk", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    streamed("each event a piece", STREAM),
    streamed("pieces across UTF-8 and line ends", STREAM, size=3),
    Row("end of connection", [OK + EVENTS + b"\r\n", STREAM[:100], STREAM[100:]], STREAM, closes=True),
    Row("end of connection, nothing", [OK + JSON + b"\r\n"], b"", closes=True),
    Row("HTTP/1.0", [b"HTTP/1.0 200 OK\r\n" + JSON + b"\r\n" + MESSAGE], MESSAGE, closes=True),
    sized("HTTP/1.0 with a length", MESSAGE, b"HTTP/1.0 200 OK\r\n" + JSON),
    Row("to an HTTP/1.0 client", streamed("", STREAM).pieces, STREAM, version="HTTP/1.0"),
    Row("204", [b"HTTP/1.1 204 No Content\r\n" + DATE + b"x-a: 1\r\n\r\n"], b"", method="DELETE"),
    Row(
        "204 with a length",
        [b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"],
        b"",
        method="DELETE",
        lost=frozenset({b"content-length"}),  # RFC 9110 section 8.6
    ),
    Row("304", [b'HTTP/1.1 304 Not Modified\r\nETag: W/"1"\r\nContent-Length: 99\r\n\r\n'], b"", method="GET"),
    Row("HEAD with a length", [OK + JSON + b"Content-Length: 4711\r\n\r\n"], b"", method="HEAD"),
    Row("HEAD, chunked", [OK + EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"], b"", method="HEAD"),
    whole("100 before it", b"Content-Length: 2\r\n\r\n{}", b"{}", b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    whole(
        "103 and 102 before it",
        b"Content-Length: 2\r\n\r\n{}",
        b"{}",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK,
    ),
]

GZIPPED = gzip.compress(MESSAGE)
BROKEN = GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:]
CODINGS = [
    sized("gzip", GZIPPED, OK + JSON + b"Content-Encoding: gzip\r\n"),
    sized("gzip in two members", gzip.compress(b'{"a":') + gzip.compress(b"1}"), OK + JSON + coded("gzip", b"")),
    sized("gzip with a broken checksum", BROKEN, OK + JSON + coded("gzip", b"")),
    sized("gzip cut off", GZIPPED[:-20], OK + JSON + coded("gzip", b"")),
    sized("gzip with a tail", GZIPPED + b"tail", OK + JSON + coded("x-gzip", b"")),
    sized("gzip that does not say so", GZIPPED),
    sized("no gzip that says so", MESSAGE, OK + JSON + coded("gzip", b"")),
    sized("a bomb", gzip.compress(bytes(100_000_000), 1), OK + JSON + coded("gzip", b"")),
    sized("deflate", zlib.compress(MESSAGE), OK + JSON + coded("deflate", b"")),
    sized("deflate, raw", zlib.compress(MESSAGE, wbits=-15), OK + JSON + coded("deflate", b"")),
    sized("br", brotli.compress(MESSAGE), OK + JSON + coded("br", b"")),
    sized("zstd", zstd.compress(MESSAGE), OK + JSON + coded("zstd", b"")),
    sized("zstd in two frames", zstd.compress(b"{") + zstd.compress(b"}"), OK + JSON + coded("ZSTD", b"")),
    sized("two codings", brotli.compress(GZIPPED), OK + JSON + coded("gzip, br", b"")),
    sized("unknown coding", NOISE[:500], OK + JSON + coded("x-odd", b"")),
    sized("identity", MESSAGE, OK + JSON + coded("identity", b"")),
    streamed("gzip, flushed", flushed("gzip"), OK + EVENTS + coded("gzip", b""), size=11),
    streamed("br, flushed", flushed("br"), OK + EVENTS + coded("br", b""), size=11),
    streamed("zstd, flushed", flushed("zstd"), OK + EVENTS + coded("zstd", b""), size=11),
    streamed("gzip, flushed, that does not say so", flushed("gzip"), size=1),
]

LONG = b"event: long\ndata: " + b"0123456789" * 1_048_576 + b"\n\n"
STREAMS = [
    streamed("CRLF", STREAM.replace(b"\n", b"\r\n")),
    streamed("CR", STREAM.replace(b"\n", b"\r")),
    streamed("BOM", b"\xef\xbb\xbf" + STREAM),
    streamed("comments, id, retry, odd fields", b": hi\n:\n\nid: 1\nretry: 5\nfoo\nbar:baz\n\n" + STREAM + b":bye"),
    streamed("odd spaces", STREAM.replace(b'":', b'" :  ').replace(b"data: ", b"data:   ")),
    streamed("unknown events", STREAM.replace(b"event: ping", b"event: weather\ndata: {}\n\nevent: pong")),
    streamed("NUL and broken UTF-8", STREAM.replace(b"42", b"\x00\xff\xfe\xc3\xed\xa0\xbd")),
    streamed("no end", STREAM[:-40]),
    streamed("no blank line at the end", STREAM[:-1]),
    streamed("no line end at all", b"x" * 3000),
    streamed("[DONE]", STREAM + b"data: [DONE]\n\n"),
    streamed("an error event", STREAM[:300] + b'event: error\ndata: {"type":"error","error":{"type":"e"}}\n\n'),
    streamed("a line of 10 MB", STREAM + LONG, size=1_000_000),
    streamed("not events at all", NOISE, size=50_000),
]

DOCUMENTS = [
    sized("JSON, odd spaces and order", b' {\t"b" :1.0,\r\n"a":[ 1 ,2e0 ] , "usage": {"output_tokens":1}}\n\n'),
    sized("JSON, a member twice", b'{"id":1,"id":2,"usage":{},"usage":null}'),
    sized("JSON, escapes", rb'{"\u0069d":"\ud83d\ude42 \u00e9 \/","lone":"\ud83d"}'),
    sized("JSON, huge and odd numbers", b'{"a":1e400,"b":-0,"c":12345678901234567890123456789,"d":NaN}'),
    sized("JSON, deep", b"[" * 50_000 + b"]" * 50_000),
    sized("JSON, BOM", b"\xef\xbb\xbf" + MESSAGE),
    sized("JSON, none", b"<html>\xff\x00</html>"),
    sized("every byte", EVERY_BYTE, OK + b"Content-Type: application/octet-stream\r\n"),
    sized("noise", NOISE, OK),
    streamed("JSON lines", b'{"custom_id":"a"}\n{"custom_id":"b"}\n', OK + b"Content-Type: application/x-jsonl\r\n"),
]

ENVELOPE = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"} }'
HEADS = [
    sized("413 in HTML", b"<html>\r\n<h1>413</h1>\r\n</html>", b"HTTP/1.1 413 Payload Too Large\r\nServer: cf\r\n"),
    sized("529 without a reason", ENVELOPE, b"HTTP/1.1 529 \r\nx-should-retry: true\r\n" + JSON),
    sized("529 without a reason's space", ENVELOPE, b"HTTP/1.1 529\r\n" + JSON),
    sized("429", ENVELOPE, b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nretry-after-ms: 7000\r\n" + JSON),
    sized("500, empty", b"", b"HTTP/1.1 500 Internal Server Error\r\n"),
    sized("401 that is not ours", ENVELOPE, b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\n" + JSON),
    sized("299, a reason of its own", b"{}", b"HTTP/1.1 299 Fine, thank you!\r\n"),
    sized("599", b"{}", b"HTTP/1.1 599 x\r\n"),
    *(
        sized(f"{status} is not followed", b"", b"HTTP/1.1 %d Moved\r\nLocation: http://127.0.0.1:1/x\r\n" % status)
        for status in (301, 302, 303, 307, 308)
    ),
    sized("300 with a relative Location", b"{}", b"HTTP/1.1 300 Multiple Choices\r\nlocation: ../x?y#z\r\n"),
    sized(
        "repetition, order, spelling",
        b"{}",
        OK + b"Set-Cookie: a=1; Path=/\r\nX-b: 1\r\nset-cookie: b=2\r\nx-B: 2\r\nSET-COOKIE: a=1; Path=/\r\nx-b:3\r\n",
    ),
    sized(
        "odd names and values", b"{}", OK + b'X_under.score!#$: \xe9\xff\r\nempty:\r\nq: a,b ;c="\\"d"\r\nDATE: x\r\n'
    ),
    sized("a long line", b"{}", OK + b"x-long: " + b"v" * 20_000 + b"\r\n"),
    sized("sixty lines", b"{}", OK + b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(60))),
    sized(
        "hop by hop",
        b"{}",
        OK + b"Connection: close, X-Nominated\r\nKeep-Alive: timeout=5\r\nX-Nominated: 1\r\nx-kept: 2\r\n"
        b"Proxy-Authenticate: Basic\r\nUpgrade: h3\r\n",
    ),
    sized("Via of others", b"{}", OK + b"via: 1.1 google, 1.0 x (a, b)\r\nVIA: 2 y\r\n"),
]

ROWS = [*FRAMINGS, *CODINGS, *STREAMS, *DOCUMENTS, *HEADS]


def expected_lines(row: Row) -> list[Header]:
    """The upstream's lines of the final head, without those that end at a gateway."""
    final = next(head for head in b"".join(row.pieces).split(b"\r\n\r\n") if head.split(b" ", 2)[1][:1] != b"1")
    dropped = HOP_BY_HOP | row.lost
    return [(name, value.strip(b" ")) for name, value in lines(final) if name.lower() not in dropped]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_an_answer_arrives_as_it_was_said(row: Row, tmp_path: Path) -> None:
    upstream_says = answers(row.pieces, then=Line.cut if row.closes else None)
    async with open_house_before(tmp_path, upstream_says) as (house, upstream):
        asked = request(row.method, row.target, [("x-api-key", "sk-any")], b"{}" if row.method == "POST" else b"")
        answer = await ask(house.address, asked.replace(b"HTTP/1.1", row.version.encode(), 1))
        ledger = await house.row(answer.id)
        requests = upstream.requests

    assert answer.body == row.body
    start = next(piece for piece in b"".join(row.pieces).split(b"\r\n\r\n") if piece.split(b" ", 2)[1][:1] != b"1")
    status, _, reason = start.split(b"\r\n", 1)[0].split(b" ", 1)[1].partition(b" ")
    assert (answer.status, answer.reason) == (int(status), reason)

    theirs = expected_lines(row)
    assert [(name, value.strip(b" ")) for name, value in answer.headers[: len(theirs)]] == theirs
    ours = [(name.lower(), value) for name, value in answer.headers[len(theirs) :]]
    version = start.split(b" ", 1)[0].removeprefix(b"HTTP/")
    via, id, call_id, *rest = ours
    assert via[0] == b"via"
    assert via[1].startswith(version + b" tproxy-")
    assert (id, call_id) == ((b"x-tproxy-id", answer.id.encode()), (b"x-litellm-call-id", answer.id.encode()))
    assert {name for name, _ in rest} <= {b"date", b"transfer-encoding", b"connection"}
    assert len(values(answer.headers, "date")) == 1
    assert not (values(answer.headers, "transfer-encoding") and values(answer.headers, "connection"))

    assert requests == 1
    assert (ledger["status"], ledger["bytes_out"]) == (int(status), len(row.body))
    assert ledger["ended"] in ("finished", "incomplete", "upstream_error") if int(status) < 400 else ("refused",)


async def test_names_of_ours_that_an_upstream_uses_are_replaced(tmp_path: Path) -> None:
    said = OK + b"X-Tproxy-Id: theirs\r\nx-litellm-call-id: theirs\r\nContent-Length: 2\r\n\r\n{}"
    async with open_house_before(tmp_path, answers(said)) as (house, _):
        answer = await ask(house.address, request("GET", "/v1/models"))
        assert answer.get("x-tproxy-id") == answer.get("x-litellm-call-id") != b"theirs"
        await house.row(answer.id)


async def test_answers_on_one_connection_do_not_run_into_each_other(tmp_path: Path) -> None:
    keep = [row for row in ROWS if row.method == "POST" and b"connection: close" not in b"".join(row.pieces).lower()]
    rows = [row for row in keep if not row.closes and b"HTTP/1.0" not in row.pieces[0] and row.version != "HTTP/1.0"]
    async with open_house_before(tmp_path, answers(*(row.pieces for row in rows))) as (house, upstream):
        async with await trio.open_tcp_stream(*house.address) as stream:
            for row in rows:
                await stream.send_all(post("/v1/messages", b"{}"))
                assert (await read_answer(stream)).body == row.body, row.name
        assert [len(line.requests) for line in upstream.lines] == [len(rows)]


BATCH = '{"id" : "b", "results_url":"%s/v1/messages/batches/b/results?\\u0061=1", "n": 1.0}\n'


@pytest.mark.parametrize("coding", [None, "gzip"])
@pytest.mark.parametrize(
    ("target", "ours"), [("/v1/messages/batches/b", ""), ("/anthropic/v1/messages/batches/b", "/anthropic")]
)
async def test_the_one_exception_is_the_host_of_a_results_url(
    target: str, ours: str, coding: str | None, tmp_path: Path
) -> None:
    said: list[bytes] = []

    async def script(line: Line) -> None:
        asked = await line.request()
        assert asked is not None
        [host] = values(asked.headers, "host")
        body = (BATCH % f"http://{host.decode()}").encode()
        head = OK + JSON + (coded(coding, b"") if coding else b"")
        body = gzip.compress(body) if coding else body
        said.append(head + b"x-kept: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await line.send(said[0])

    async with open_house_before(tmp_path, script) as (house, _):
        answer = await ask(house.address, get(target))
        await house.row(answer.id)
    assert answer.body == (BATCH % f"http://proxy.test{ours}").encode()
    assert answer.get("content-length") == str(len(answer.body)).encode()
    assert not values(answer.headers, "content-encoding")
    assert answer.get("x-kept") == b"1"


async def test_a_results_url_that_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    body = gzip.compress((BATCH % "https://api.example.com").encode())
    said = OK + JSON + coded("gzip", b"Content-Length: %d\r\n\r\n" % len(body)) + body
    async with open_house_before(tmp_path, answers(said)) as (house, _):
        answer = await ask(house.address, get("/v1/messages/batches/b"))
    assert answer.body == body
    assert answer.get("content-encoding") == b"gzip"
