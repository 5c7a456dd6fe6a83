"""What the upstream may send, and what becomes of it. Each row runs over a real socket, cut in every way."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import trio

from tests.cuts import every_cut
from tests.wire.peer import CA, OK, Line, Peer, answers, close, hang_up, peer, server_context
from tproxy.errors import BadRequest, UpstreamBroken
from tproxy.wire.dial import dial, tls_context
from tproxy.wire.heads import Head, request_head
from tproxy.wire.outbound import Connection, NothingSent, State

pytestmark = pytest.mark.usefixtures("either_channel")

HOST = (b"Host", b"api.test")


@asynccontextmanager
async def connected(upstream: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
    link = await dial(upstream.origin.host, upstream.origin.port, tls, connect=5, write=5)
    connection = Connection(link, name="api.test:80", max_head_bytes=8192, max_headers=32)
    try:
        yield connection
    finally:
        connection.close()


async def ask(connection: Connection, method: bytes = b"GET") -> tuple[Head, bytes]:
    request = request_head(method, b"/v1/models", [HOST])
    connection.start(request, b"")
    head = await connection.receive_head()
    body = b""
    while data := await connection.receive():
        body += data
    assert await connection.receive() == b"", "the end is lasting"
    return head, body


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


OK_LINE = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK_LINE + b"content-length: 5\r\n\r\nhello"
EVENTS = OK_LINE + b"transfer-encoding: chunked\r\n\r\n"
TO_THE_END = OK_LINE + b"\r\nuntil the end"
HINTS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


@dataclass
class Good:
    """What the peer sends (and whether it then closes), and what the client is to be given."""

    raw: bytes
    body: bytes = b""
    status: int = 200
    reason: bytes = b"OK"
    method: bytes = b"GET"
    closes: bool = False
    reusable: bool = True


GOOD = {
    "content-length": Good(PLAIN, b"hello"),
    "empty": Good(OK_LINE + b"content-length: 0\r\n\r\n"),
    "chunked": Good(EVENTS + chunked(b"data: 1\n\n", b"x" * 300), b"data: 1\n\n" + b"x" * 300),
    "chunk extension": Good(EVENTS + b"3;a=b\r\nabc\r\n0\r\n\r\n", b"abc"),
    "trailers": Good(EVENTS + b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n", b"abc"),
    "close": Good(OK_LINE + b"connection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", reusable=False),
    "close-delimited": Good(TO_THE_END, b"until the end", closes=True, reusable=False),
    "HTTP/1.0": Good(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", reusable=False),
    "HTTP/1.0 keep-alive": Good(
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok", reusable=False
    ),
    "100, 103, 200": Good(HINTS + PLAIN, b"hello"),
    "no reason": Good(b"HTTP/1.1 529 \r\ncontent-length: 2\r\n\r\nno", b"no", 529, b""),
    "no reason, no space": Good(b"HTTP/1.1 529\r\ncontent-length: 2\r\n\r\nno", b"no", 529, b""),
    "odd reason": Good(b"HTTP/1.1 200 Tout va\xa0bien!\r\ncontent-length: 0\r\n\r\n", reason=b"Tout va\xa0bien!"),
    "599": Good(b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n", status=599, reason=b"Odd"),
    "HEAD": Good(OK_LINE + b"content-length: 5000\r\n\r\n", method=b"HEAD"),
    "204": Good(b"HTTP/1.1 204 No\r\n\r\n", status=204, reason=b"No"),
    "304 with a length": Good(b"HTTP/1.1 304 Old\r\ncontent-length: 9\r\n\r\n", status=304, reason=b"Old"),
    "bare line feeds": Good(b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", b"ok"),
    "two answers at once": Good(PLAIN + PLAIN, b"hello", reusable=False),
    "longer than its length": Good(PLAIN + b"!", b"hello", reusable=False),
    "204 with a body": Good(b"HTTP/1.1 204 No\r\n\r\nbody", status=204, reason=b"No", reusable=False),
    "HEAD with a body": Good(PLAIN, method=b"HEAD", reusable=False),
    "answer and end at once": Good(PLAIN, b"hello", closes=True, reusable=False),
}


@pytest.mark.parametrize("name", GOOD)
async def test_answer_at_every_cut(name: str) -> None:
    row = GOOD[name]
    cuts = list(every_cut(row.raw, random_cuts=5))
    scripts = [answers(pieces, then=Line.cut if row.closes else None) for pieces in cuts]
    async with peer(*scripts) as upstream:
        for i, pieces in enumerate(cuts):
            async with connected(upstream) as connection:
                head, got = await ask(connection, row.method)
                assert (head.status, head.reason, got) == (row.status, row.reason, row.body)
                rests = connection.rest()
                await upstream.lines[i].done.wait()
                # What came too much, or the end, may have come after all else: then it is seen only now.
                assert (rests and connection.usable()) is row.reusable
                if len(pieces) == 1 and not row.closes:
                    assert rests is row.reusable


@pytest.mark.parametrize("name", [name for name, row in GOOD.items() if not row.closes])
async def test_answer_over_tls(name: str, tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls, row = tls_context(tmp_path / "ca.pem"), GOOD[name]
    cuts = list(every_cut(row.raw, random_cuts=3))
    async with peer(*map(answers, cuts), tls=server_context()) as upstream:
        for i, _ in enumerate(cuts):
            async with connected(upstream, tls) as connection:
                head, got = await ask(connection, row.method)
                assert (head.status, head.reason, got) == (row.status, row.reason, row.body)
                rests = connection.rest()
                await upstream.lines[i].done.wait()
                assert (rests and connection.usable()) is row.reusable


EARLY = "closed the connection before"
CUT = "cut the connection before"
JUNK = "not valid HTTP"
MEANINGLESS = "status line that means nothing"


@dataclass
class Bad:
    """What the peer sends, what it then does, what the client is given all the same, and the words of the fault."""

    raw: bytes
    then: Literal["close", "reset", "stay"]
    words: str
    before: bytes = b""


BAD = {
    "nothing": Bad(b"", "close", EARLY),
    "nothing, reset": Bad(b"", "reset", CUT),
    "half a head": Bad(OK_LINE + b"content-le", "close", EARLY),
    "only 1xx": Bad(HINTS, "close", EARLY),
    "length short": Bad(OK_LINE + b"content-length: 9\r\n\r\nhello", "close", EARLY, b"hello"),
    "length short, reset": Bad(OK_LINE + b"content-length: 9\r\n\r\nhello", "reset", CUT, b"hello"),
    "chunk cut": Bad(EVENTS + b"9\r\nhello", "close", EARLY, b"hello"),
    "no last chunk": Bad(EVENTS + b"5\r\nhello\r\n", "close", EARLY, b"hello"),
    "last chunk cut": Bad(EVENTS + b"5\r\nhello\r\n0\r\n", "close", EARLY, b"hello"),
    "chunk footer": Bad(EVENTS + b"5\r\nhelloXX3\r\nabc\r\n0\r\n\r\n", "stay", JUNK, b"hello"),
    "chunk size": Bad(EVENTS + b"5\r\nhello\r\nzz\r\n", "stay", JUNK, b"hello"),
    "close-delimited, reset": Bad(OK_LINE + b"\r\nhello", "reset", CUT, b"hello"),
    "101": Bad(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "stay", "switched protocols unasked"),
    "status 099": Bad(b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n", "stay", JUNK),
    "status 20": Bad(b"HTTP/1.1 20 OK\r\n\r\n", "stay", JUNK),
    "status 600": Bad(b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n", "stay", MEANINGLESS),
    "HTTP/2.0": Bad(b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", "stay", MEANINGLESS),
    "not HTTP": Bad(b"SSH-2.0-OpenSSH\r\n\r\n", "stay", JUNK),
    "a TLS alert": Bad(b"\x15\x03\x01\x00\x02\x02\x46", "stay", JUNK),
    "two lengths": Bad(OK_LINE + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok", "stay", JUNK),
    "length and chunked": Bad(
        OK_LINE + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", "stay", "both a transfer-encoding"
    ),
    "gzip framing": Bad(OK_LINE + b"transfer-encoding: gzip, chunked\r\n\r\n", "stay", JUNK),
    "1000 headers": Bad(OK_LINE + b"a: 1\r\n" * 1000 + b"\r\n", "stay", "more than 32 headers"),
    "a 103 of 33 headers": Bad(b"HTTP/1.1 103 Hints\r\n" + b"a: 1\r\n" * 33 + b"\r\n", "stay", "than 32 headers"),
    "huge head": Bad(OK_LINE + b"a: " + b"x" * 9000 + b"\r\n\r\n", "stay", "head of more than 8192 bytes"),
    "endless head": Bad(OK_LINE + b"a: " + b"x" * 9000, "stay", "head of more than 8192 bytes"),
}


@pytest.mark.parametrize("name", BAD)
async def test_broken_answer_at_every_cut(name: str) -> None:
    row = BAD[name]
    then = {"close": Line.cut, "reset": Line.reset, "stay": None}[row.then]
    cuts = [pieces for pieces in every_cut(row.raw, random_cuts=2) if len(pieces) < 1000]
    async with peer(*(answers(pieces, then=then) for pieces in cuts)) as upstream:
        for _ in cuts:
            got = bytearray()
            async with connected(upstream) as connection:
                with pytest.raises(UpstreamBroken) as caught:
                    await ask_collecting(connection, got)
                assert bytes(got) == row.before
                assert row.words in caught.value.message
                assert caught.value.message.startswith("api.test:80 ")
                assert caught.value.__cause__ is None, "h11's words quote the peer"
                assert not connection.rest()


async def ask_collecting(connection: Connection, got: bytearray) -> None:
    connection.start(request_head(b"GET", b"/", [HOST]), b"")
    await connection.receive_head()
    while data := await connection.receive():
        got += data


async def test_headers_keep_spelling_order_and_repetition() -> None:
    raw = (
        b"HTTP/1.1 200 OK\r\nX-b: 2\r\nSet-Cookie: a\r\nx-B: 1\r\nSET-COOKIE: a\r\nContent-LENGTH: 0\r\nempty:\r\n\r\n"
    )
    async with peer(answers(raw)) as upstream, connected(upstream) as connection:
        head, _ = await ask(connection)
    assert head.headers == [
        (b"X-b", b"2"),
        (b"Set-Cookie", b"a"),
        (b"x-B", b"1"),
        (b"SET-COOKIE", b"a"),
        (b"Content-LENGTH", b"0"),
        (b"empty", b""),
    ]
    assert head.http_version == b"1.1"


async def test_request_goes_out_as_given_in_one_write() -> None:
    headers = [(b"hOsT", b"api.test"), (b"X-Api-KEY", b"k"), (b"x-api-key", b"l"), (b"Content-Length", b"3")]
    async with peer(answers(OK)) as upstream, connected(upstream) as connection:
        connection.start(request_head(b"POST", b"/a?b=%2F;c", headers), b"abc")
        await connection.receive_head()
        assert upstream.lines[0].received == (
            b"POST /a?b=%2F;c HTTP/1.1\r\n"
            b"hOsT: api.test\r\nX-Api-KEY: k\r\nx-api-key: l\r\nContent-Length: 3\r\n\r\nabc"
        )


async def test_101_to_an_upgrade() -> None:
    """A proxy does not ask for one; here somebody did."""
    async with peer(answers(BAD["101"].raw)) as upstream, connected(upstream) as connection:
        upgrade = request_head(b"GET", b"/", [HOST, (b"Upgrade", b"x"), (b"Connection", b"upgrade")])
        connection.start(upgrade, b"")
        with pytest.raises(UpstreamBroken, match="switched protocols unasked"):
            await connection.receive_head()


async def test_one_read_gives_all_that_it_brought() -> None:
    async with peer(answers(EVENTS + chunked(*[b"event\n"] * 500))) as upstream, connected(upstream) as connection:
        connection.start(request_head(b"GET", b"/", [HOST]), b"")
        await connection.receive_head()
        assert await connection.receive() == b"event\n" * 500
        assert await connection.receive() == b""


async def test_four_states() -> None:
    async with peer(answers(PLAIN, OK)) as upstream, connected(upstream) as connection:
        seen = [connection.state]
        for body in (b"hello", b"ok"):
            connection.start(request_head(b"GET", b"/", [HOST]), b"")
            seen.append(connection.state)
            assert not connection.usable()
            await connection.receive_head()
            assert await connection.receive() == body
            await connection.receive()
            assert connection.rest()
            seen.append(connection.state)
            assert connection.usable()
            assert not connection.rest(), "it rests already"
        connection.close(politely=True)
        seen.append(connection.state)
        assert not connection.usable()
        assert repr(connection) == "<Connection api.test:80: closed>"
        with trio.fail_after(5):
            await upstream.lines[0].gone.wait()
    assert seen == [State.NEW, State.ACTIVE, State.IDLE, State.ACTIVE, State.IDLE, State.CLOSED]


@pytest.mark.parametrize("age", ["idle", "total"])
async def test_expires_by_either_age(age: str) -> None:
    async with peer(answers(OK)) as upstream, connected(upstream) as connection:
        await ask(connection)
        assert connection.rest()
        born, rested = connection.born, connection.rested
        limits = {"idle": (10, 1000, rested), "total": (1000, 10, born)}[age]
        max_idle, max_age, since = limits
        assert not connection.expired(since + 9.9, max_idle, max_age)
        assert connection.expired(since + 10.1, max_idle, max_age)


@pytest.mark.parametrize("body", [b"ab", b"abcd"])
async def test_body_must_be_as_long_as_promised(body: bytes) -> None:
    async with peer(close) as upstream, connected(upstream) as connection:
        request = request_head(b"POST", b"/", [HOST, (b"content-length", b"3")])
        with pytest.raises(BadRequest, match="content-length"):
            connection.start(request, body)
        assert not connection.rest()


async def test_body_in_pieces_chunked() -> None:
    async with peer(answers(OK)) as upstream, connected(upstream) as connection:
        request = request_head(b"POST", b"/", [HOST, (b"Transfer-Encoding", b"chunked")])
        connection.start(request, None)
        for piece in (b"one", b"two", b""):
            await connection.send(piece)
        assert (await connection.receive_head()).status == 200
        assert upstream.lines[0].received.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert await connection.receive() == b"ok"
        assert await connection.receive() == b""
        assert connection.rest()


async def test_answer_before_the_end_of_the_request_bars_reuse() -> None:
    async def early(line: Line) -> None:
        await line.receive()
        await line.send(OK)
        await line.wait_gone()

    async with peer(early) as upstream, connected(upstream) as connection:
        request = request_head(b"POST", b"/", [HOST, (b"content-length", b"6")])
        connection.start(request, None)
        await connection.send(b"abc")
        assert (await connection.receive_head()).status == 200
        assert await connection.receive() == b"ok"
        assert await connection.receive() == b""
        assert not connection.rest()


async def test_dead_connection_takes_nothing() -> None:
    async with peer(answers(OK, then=Line.reset)) as upstream, connected(upstream) as connection:
        await ask(connection)
        assert connection.rest()
        await upstream.lines[0].done.wait()
        assert not connection.usable()
        with pytest.raises(NothingSent):
            await ask(connection)


async def test_no_rest_for_a_dead_connection() -> None:
    async with peer(answers(OK, then=Line.cut)) as upstream, connected(upstream) as connection:
        await ask(connection)
        await upstream.lines[0].done.wait()
        assert not connection.rest()


async def test_sending_on_when_the_reader_found_tls_broken(tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with peer(hang_up, tls=server_context()) as upstream:
        link = await dial("127.0.0.1", upstream.origin.port, tls_context(tmp_path / "ca.pem"), connect=5, write=5)
        connection = Connection(link, name="api.test:443", max_head_bytes=8192, max_headers=32)
        request = request_head(b"POST", b"/", [HOST, (b"Transfer-Encoding", b"chunked")])
        connection.start(request, None)
        with pytest.raises(UpstreamBroken, match="cut the connection"):
            await connection.receive_head()
        await connection.send(b"piece")
        assert connection.deaf
        connection.close()


async def test_nothing_is_read_from_a_closed_connection() -> None:
    async with peer(answers(OK)) as upstream, connected(upstream) as connection:
        connection.start(request_head(b"GET", b"/", [HOST]), b"")
        await connection.receive_head()
        connection.close()
        connection.close()
        assert await connection.receive() == b"ok", "it had come with the head"
        assert not connection.rest()
