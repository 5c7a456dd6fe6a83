"""Hostile and ambiguous openings: each is refused, or served as exactly one request; none ends the server."""

from __future__ import annotations

import json
import logging

import pytest
import trio.testing

from tests.cuts import every_cut
from tests.wire.serving import GET, Message, Receive, Send, answer_with, body_of, ok, serving, settle
from tproxy.wire.inbound import Bounds
from tproxy.wire.opening import Refused, head_end, open_request

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def get(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: x\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(item + b"\r\n" for item in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return get(*lines, line=line) + body


SERVED = 200  # by the application, exactly once
CL4 = b"Content-Length: 4"
TE = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"

OPENINGS: list[tuple[str, bytes, int]] = [
    ("websocket upgrade", UPGRADE, 400),
    ("websocket upgrade and one byte: ends a bare hypercorn", UPGRADE + b"x", 400),
    ("websocket without Connection", get(b"Upgrade: WebSocket"), 400),
    ("websocket among others", get(b"Upgrade: foo/1, websocket/13"), 400),
    ("h2c upgrade", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), 400),
    ("h2c without Connection", get(b"Upgrade: h2c"), 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("another upgrade", get(b"Upgrade: TLS/1.0"), SERVED),
    ("length and coding", post(CL4, TE, body=END), 400),
    ("coding and length", post(TE, CL4, body=END), 400),
    ("length and coding in 1.0", post(CL4, TE, body=END, line=b"POST / HTTP/1.0"), 400),
    ("coding in 1.0", post(TE, body=END, line=b"POST / HTTP/1.0"), 400),
    ("differing lengths", post(CL4, b"Content-Length: 5", body=b"body"), 400),
    ("equal lengths", post(CL4, CL4, body=b"body"), 400),
    ("a list of lengths", post(b"Content-Length: 4, 4", body=b"body"), 400),
    ("signed length", post(b"Content-Length: +4", body=b"body"), 400),
    ("negative length", post(b"Content-Length: -4", body=b"body"), 400),
    ("hexadecimal length", post(b"Content-Length: 0x4", body=b"body"), 400),
    ("empty length", post(b"Content-Length:", body=b"body"), 400),
    ("fractional length", post(b"Content-Length: 4.0", body=b"body"), 400),
    ("length with an underscore", post(b"Content-Length: 1_0", body=b"body"), 400),
    ("length in other digits", post("Content-Length: ٤".encode(), body=b"body"), 400),
    ("impossible length", post(b"Content-Length: " + b"9" * 19), 400),
    ("length of 21 digits", post(b"Content-Length: " + b"0" * 20 + b"4"), 400),
    ("unknown coding", post(b"Transfer-Encoding: gzip, chunked", body=END), 501),
    ("coding twice", post(TE, TE, body=END), 501),
    ("coding listed twice", post(b"Transfer-Encoding: chunked, chunked", body=END), 501),
    ("identity coding", post(b"Transfer-Encoding: identity"), 501),
    ("coding with a parameter", post(b"Transfer-Encoding: chunked;q=1", body=END), 501),
    ("quoted coding", post(b'Transfer-Encoding: "chunked"', body=END), 501),
    ("coding with a control character", post(b"Transfer-Encoding: \x0bchunked", body=END), 400),
    ("coding in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=END), SERVED),
    ("folded header", get(b"X-A: b", b" c"), 400),
    ("folded coding", post(b"Transfer-Encoding:", b" chunked", body=END), 400),
    ("fold by a tab", get(b"X-A: b", b"\tc"), 400),
    ("fold before any header", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ("NUL in a value", get(b"X-A: b\x00c"), 400),
    ("control character in a value", get(b"X-A: b\x01c"), 400),
    ("escape in a value", get(b"X-A: \x1b[2J"), 400),
    ("DEL in a value", get(b"X-A: b\x7f"), 400),
    ("tab in a value", get(b"X-A: b\tc"), SERVED),
    ("bytes above ASCII in a value", get(b"X-A: \xc3\xa9"), SERVED),
    ("bare CR in a value", get(b"X-A: b\rc"), 400),
    ("bare CR for a line end", b"GET / HTTP/1.1\rHost: x\r\r", 400),
    ("bare LF for line ends", b"GET / HTTP/1.1\nHost: x\n\n", 400),
    ("one bare LF", b"GET / HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n", 400),
    ("bare LF for the end", b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
    ("space before a colon", get(b"X-A : b"), 400),
    ("space before the length's colon", post(b"Content-Length : 4", body=b"body"), 400),
    ("no colon", get(b"X-A"), 400),
    ("no name", get(b": b"), 400),
    ("name with a byte above ASCII", get(b"X-\xc3\xa9: b"), 400),
    ("name in parentheses", get(b"(X): b"), 400),
    ("no Host", get(host=b""), 400),
    ("two Hosts", get(b"Host: x"), 400),
    ("two different Hosts", get(b"host: y"), 400),
    ("two Hosts in 1.0", get(b"Host: y", line=b"GET / HTTP/1.0"), 400),
    ("empty Host", get(host=b"Host:\r\n"), 400),
    ("Host with a user", get(host=b"Host: a@b\r\n"), 400),
    ("Host with a path", get(host=b"Host: a/b\r\n"), 400),
    ("Host with a query", get(host=b"Host: a?b\r\n"), 400),
    ("Host with a fragment", get(host=b"Host: localhost/#@x\r\n"), 400),
    ("Host with a space", get(host=b"Host: a b\r\n"), 400),
    ("Host with two ports", get(host=b"Host: a:1:2\r\n"), 400),
    ("Host with a port that is none", get(host=b"Host: a:http\r\n"), 400),
    ("Host that is a list", get(host=b"Host: a, b\r\n"), 400),
    ("Host with a bad escape", get(host=b"Host: a%zz\r\n"), 400),
    ("Host with an open bracket", get(host=b"Host: [::1\r\n"), 400),
    ("Host that is an address", get(host=b"Host: [::1]:4000\r\n"), SERVED),
    ("Host with a port", get(host=b"Host: api.example.com:443\r\n"), SERVED),
    ("no Host in 1.0", get(line=b"GET / HTTP/1.0", host=b""), SERVED),
    ("CONNECT", get(line=b"CONNECT evil.test:443 HTTP/1.1"), 501),
    ("TRACE", get(line=b"TRACE / HTTP/1.1"), 501),
    ("method in lower case", get(line=b"get / HTTP/1.1"), 501),
    ("method that is no token", get(line=b"G@T / HTTP/1.1"), 400),
    ("unknown method", get(line=b"BREW / HTTP/1.1"), SERVED),
    ("OPTIONS *", get(line=b"OPTIONS * HTTP/1.1"), SERVED),
    ("absolute form, for the application to judge", get(line=b"GET http://evil.test/ HTTP/1.1"), SERVED),
    ("no target", get(line=b"GET HTTP/1.1"), 400),
    ("two spaces", get(line=b"GET  / HTTP/1.1"), 400),
    ("tab for a space", get(line=b"GET\t/ HTTP/1.1"), 400),
    ("space in the target", get(line=b"GET /a b HTTP/1.1"), 400),
    ("raw UTF-8 in the target", get(line="GET /é HTTP/1.1".encode()), 400),
    ("control character in the target", get(line=b"GET /\x01 HTTP/1.1"), 400),
    ("space after the version", get(line=b"GET / HTTP/1.1 "), 400),
    ("HTTP/0.9", b"GET /\r\n\r\n", 400),
    ("HTTP/1.2", get(line=b"GET / HTTP/1.2"), 505),
    ("HTTP/3.1", get(line=b"GET / HTTP/3.1"), 505),
    ("HTTP/1.10", get(line=b"GET / HTTP/1.10"), 400),
    ("version in lower case", get(line=b"GET / http/1.1"), 400),
    ("another protocol", get(line=b"GET / HTCPCP/1.0"), 400),
    ("unknown expectation", post(CL4, b"Expect: 200-ok", body=b"body"), 417),
    ("one expectation too many", post(CL4, b"Expect: 100-continue, x", body=b"body"), 417),
    ("a TLS client", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("an SSH client", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    ("a space first", b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an empty line first", b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", SERVED),
    ("a body on GET", get(CL4) + b"body", SERVED),
    ("chunk size that is none", post(TE, body=b"zz\r\n"), 400),
    ("chunk longer than its size", post(TE, body=b"1\r\nxx\r\n0\r\n\r\n"), 400),
    ("chunk size with a sign", post(TE, body=b"+1\r\nx\r\n0\r\n\r\n"), 400),
    ("chunk size of 21 digits", post(TE, body=b"0" * 20 + b"1\r\nx\r\n0\r\n\r\n"), 400),
    ("a trailer that would be a key", post(TE, body=b"0\r\nx-api-key: evil\r\n\r\n"), SERVED),
    ("101 fields", get(*[b"X-A: b"] * 100), 431),
    ("1000 fields in one piece", get(*[b"X-A: b"] * 999), 431),
    ("100 fields", get(*[b"X-A: b"] * 99), SERVED),
    ("a header of 70 kB in one piece", get(b"X-A: " + b"b" * 70_000), 431),
    ("a target of 70 kB in one piece", get(line=b"GET /" + b"a" * 70_000 + b" HTTP/1.1"), 431),
    ("a header of 60 kB in one piece", get(b"X-A: " + b"b" * 60_000), SERVED),
    ("a head without an end", b"GET / HTTP/1.1\r\nX-A: " + b"b" * 70_000, 431),
]


@pytest.mark.parametrize(("name", "opening", "status"), OPENINGS, ids=[row[0] for row in OPENINGS])
async def test_an_opening(
    name: str, opening: bytes, status: int, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    served: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        served.append(scope)
        await body_of(receive)
        await answer_with(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(opening)
        answer = await client.answer()
        assert answer.status == status
        assert len(served) == (status == SERVED)
        if status != SERVED:
            assert answer.headers["connection"] == "close"
            error = json.loads(answer.body)
            assert error["type"] == "error"
            assert error["error"]["type"] == "invalid_request_error"
            assert error["request_id"] == answer.headers["x-tproxy-id"]
            assert await client.rest() == b""
        client.close()
        assert all(header[0] != b"x-api-key" for scope in served for header in scope["headers"])
        assert (await server.get()).body == b"ok"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("name", "opening", "status"), OPENINGS, ids=[row[0] for row in OPENINGS])
def test_an_opening_is_judged_alike_however_it_is_cut(name: str, opening: bytes, status: int) -> None:
    def judge(pieces: list[bytes]) -> tuple[int, str]:
        data = bytearray()
        seen = 0
        try:
            for piece in pieces:
                data += piece
                while data.startswith(b"\r\n"):
                    del data[:2]
                    seen = 0
                if data and (end := head_end(data, seen, 65536)):
                    return 0, open_request(bytes(data[:end]), max_bytes=65536, max_headers=100).method
                seen = len(data)
        except Refused as refused:
            return refused.status, str(refused)
        return 0, ""

    whole, *others = every_cut(opening, random_cuts=5)
    assert all(judge(cut) == judge(whole) for cut in others)


async def test_a_smaller_bound_for_heads() -> None:
    async with serving(ok, Bounds(max_header_bytes=len(GET) - 1)) as server:
        assert (await server.get()).status == 431
    async with serving(ok, Bounds(max_header_bytes=len(GET))) as server:
        assert (await server.get()).status == 200
    async with serving(ok, Bounds(max_headers=0)) as server:
        assert (await server.get()).status == 431


@pytest.mark.parametrize("bad", [get(CL4, TE), UPGRADE], ids=["smuggling", "upgrade"])
async def test_a_bad_request_among_pipelined_ones_ends_the_connection_there(bad: bytes) -> None:
    served: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        served.append(scope["raw_path"])
        await ok(scope, receive, send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" + bad + b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400
        assert await client.rest() == b""
    assert served == [b"/1"]


async def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async with serving(ok) as server:
        client = await server.connect()
        await client.send(post(CL4, TE))
        for _ in range(5):
            await settle()
            await client.send(bytes(65536))
        assert (await client.answer()).status == 400


async def test_a_body_is_never_taken_for_a_request() -> None:
    served: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        served.append(scope["raw_path"])
        await answer_with(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
        await settle()
        await client.send(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        assert await client.rest() == b""
    assert served == [b"/1"]


async def test_a_refusal_repeats_nothing_that_the_client_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(ok) as server:
        for opening in (get(b"x-api-key : sk-canary"), get(b"x-api-key: sk-canary\x01"), get(line=b"sk-canary")):
            client = await server.connect()
            await client.send(opening)
            assert b"canary" not in await client.rest()
    assert "canary" not in caplog.text


async def test_names_that_are_served() -> None:
    async with serving(ok, server_names=["api.test"]) as server:
        assert (await server.get()).status == 421
        client = await server.connect()
        await client.send(get(host=b"Host: api.test\r\n"))
        assert (await client.answer()).status == 200
