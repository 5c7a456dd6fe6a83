"""From a name to a stream: faults at each step, and what a link says of itself."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tproxy.wire.dial
from tests.wire.peer import (
    CA,
    OK,
    OTHER_CA,
    Line,
    Script,
    answers,
    answers_early,
    deaf,
    full_backlog,
    hang_up,
    peer,
    resolve,
    server_context,
    silence,
)
from tproxy.errors import UpstreamUnreachable
from tproxy.wire.dial import dial, tls_context
from tproxy.wire.link import Link, TlsLink

pytestmark = pytest.mark.usefixtures("either_channel")

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happens for a moment: loopback sockets may need one."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def linked(port: int, ca_file: Path | None = None, *, host: str = "127.0.0.1") -> AsyncIterator[Link]:
    """A link that is closed at the end; with `ca_file`, of TLS."""
    link = await dial(host, port, tls_context(ca_file) if ca_file else None, connect=5, write=30)
    try:
        yield link
    finally:
        link.close()


async def receive(link: Link) -> bytes:
    while (data := link.pull()) is None:
        await link.readable()
    return data


async def refusal(port: int, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> str:
    """The message of a dial that has to fail."""
    with pytest.raises(UpstreamUnreachable) as caught:
        await dial(host, port, tls, connect=3, write=30)
    return caught.value.message


OPTIONS = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 60,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 5,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 30_000,
}


async def test_socket_options() -> None:
    async with peer(silence) as upstream, linked(upstream.origin.port) as link:
        assert {option: link.socket.getsockopt(*option) for option in OPTIONS} == OPTIONS
        assert link.session() is None


async def test_refused() -> None:
    port = free_port()
    assert await refusal(port) == f"127.0.0.1:{port} could not be reached: Connection refused"


@pytest.mark.parametrize("host", ["api.test", "api..test", "...", "a" * 64 + ".test"])
async def test_name_unknown(host: str) -> None:
    resolve()
    why = "Name or service not known" if host == "api.test" else "it has an empty or too long part"
    assert await refusal(443, host=host) == f"the name in {host}:443 could not be resolved: {why}"


async def test_the_first_address_that_answers() -> None:
    async with peer(answers(OK)) as upstream:
        resolve(api=[("127.0.0.1", free_port()), ("127.0.0.1", upstream.origin.port)])
        async with linked(80, host="api.test") as link:
            await link.send(GET)
            assert await receive(link) == OK


async def test_all_reasons_are_named() -> None:
    resolve(api=[("127.0.0.1", free_port()), ("255.255.255.255", 1)])
    assert (await refusal(80, host="api.test")).startswith("api.test:80 could not be reached: Connection refused, ")


@pytest.mark.parametrize("step", ["name", "tcp", "tls"])
@pytest.mark.parametrize("how", ["deadline", "cancelled"])
async def test_an_end_to_waiting(step: str, how: str, ca_file: Path, clock: trio.testing.MockClock) -> None:
    tls = tls_context(ca_file)
    resolve(api=[])
    with full_backlog() as full:
        async with peer(silence) as upstream:
            port = {"name": 443, "tcp": full, "tls": upstream.origin.port}[step]
            host = "api.test" if step == "name" else "127.0.0.1"
            before = trio.current_time()
            if how == "deadline":
                message = await refusal(port, tls, host=host)
                assert message == f"{host}:{port} could not be reached within 3 s (name, TCP and TLS together)"
            else:
                with trio.move_on_after(3):
                    await dial(host, port, tls, connect=5, write=5)
            assert trio.current_time() - before == 3
            assert len(upstream.lines) == (step == "tls")
            for line in upstream.lines:
                await line.gone.wait()


async def test_tls(ca_file: Path) -> None:
    server = server_context("api.test")
    asked: list[str | None] = []
    server.sni_callback = lambda _sock, name, _context: asked.append(name)
    async with peer(answers(OK), tls=server) as upstream:
        resolve(api=[("127.0.0.1", upstream.origin.port)])
        async with linked(443, ca_file, host="api.test") as link:
            assert isinstance(link, TlsLink)
            assert link.tls.selected_alpn_protocol() == "http/1.1"
            await link.send(GET)
            assert await receive(link) == OK
    assert asked == ["api.test"]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        pytest.param({"name": "other.test"}, "certificate of {} was not trusted: IP address mismatch", id="wrong name"),
        pytest.param({"ca": OTHER_CA}, "certificate of {} was not trusted: unable to get local issuer", id="other CA"),
        pytest.param({"not_after": LONG_AGO}, "certificate of {} was not trusted: certificate has exp", id="expired"),
        pytest.param({"self_signed": True}, "certificate of {} was not trusted: self-signed cert", id="self-signed"),
        pytest.param({"version": ssl.TLSVersion.TLSv1_1}, "{} closed the connection during the TLS", id="TLS 1.1"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated:DeprecationWarning")
async def test_distrust(server: dict[str, Any], words: str, ca_file: Path) -> None:
    async with peer(silence, tls=server_context(**server)) as upstream:
        message = await refusal(upstream.origin.port, tls_context(ca_file))
        assert words.format(upstream.origin) in message
        await upstream.lines[0].gone.wait()
        assert upstream.lines[0].received == b"", "no byte of HTTP before the certificate is trusted"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (hang_up, "{} closed the connection during the TLS handshake"),
        (answers_early(b"HTTP/1.1 400 \r\n\r\n"), "the TLS handshake with {} failed: WRONG_VERSION_NUMBER"),
    ],
)
async def test_no_tls_at_all(script: Script, words: str, ca_file: Path) -> None:
    async with peer(script) as upstream:
        assert await refusal(upstream.origin.port, tls_context(ca_file)) == words.format(upstream.origin)
        await upstream.lines[0].gone.wait()


@pytest.mark.parametrize(("named", "trusted"), [("ca.pem", True), ("missing.pem", False), ("", True)])
async def test_system_store(named: str, trusted: bool, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `SSL_CERT_FILE` names, right or wrong; else, where OpenSSL has none, where distributions keep it."""
    empty: dict[str, Any] = {"cafile": None, "capath": None}
    nowhere = ssl.get_default_verify_paths()._replace(**empty)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(tproxy.wire.dial, "_BUNDLES", ["/missing.pem", str(ca_file)])
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if named:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file.with_name(named)))
    async with peer(silence, tls=server_context()) as upstream:
        if trusted:
            (await dial("127.0.0.1", upstream.origin.port, tls_context(None), connect=5, write=5)).close()
        else:
            assert "was not trusted" in await refusal(upstream.origin.port, tls_context(None))


def test_context_of_a_file(ca_file: Path, tmp_path: Path) -> None:
    context = tls_context(ca_file)
    assert len(context.get_ca_certs()) == 1, "that file alone is trusted"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    with pytest.raises(FileNotFoundError):
        tls_context(tmp_path / "none.pem")
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ssl.SSLError):
        tls_context(tmp_path / "junk.pem")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_session_is_resumed(version: ssl.TLSVersion, ca_file: Path) -> None:
    client = tls_context(ca_file)
    async with peer(answers(OK), tls=server_context(version=version)) as upstream:
        session = None
        for resumed in (False, True, True):
            link = await dial("127.0.0.1", upstream.origin.port, client, connect=5, write=5, session=session)
            assert isinstance(link, TlsLink)
            assert link.tls.session_reused is resumed
            await link.send(GET)
            assert await receive(link) == OK
            session = link.session()
            link.close()


@pytest.mark.parametrize("polite", [True, False])
async def test_tls_end_without_close_notify_is_no_end(polite: bool, ca_file: Path) -> None:
    async def some(line: Line) -> None:
        await line.send(b"some bytes")
        if not polite:
            line.cut()

    async with peer(some, tls=server_context()) as upstream, linked(upstream.origin.port, ca_file) as link:
        assert await receive(link) == b"some bytes"
        if polite:
            assert await receive(link) == b""
        else:
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                await receive(link)


@pytest.mark.parametrize("size", [1, 100, 16384, 40000])
async def test_one_read_joins_all_records(size: int, ca_file: Path) -> None:
    parts = [b"%d" % i * size for i in range(5)]

    async def records(line: Line) -> None:
        for part in parts:
            await line.stream.send_all(part)
        await line.wait_gone()

    async with peer(records, tls=server_context()) as upstream, linked(upstream.origin.port, ca_file) as link:
        await trio.testing.wait_all_tasks_blocked()
        reads: list[bytes] = []
        while sum(len(read) for read in reads) < 5 * size:
            reads.append(await receive(link))
        assert b"".join(reads) == b"".join(parts)
        assert len(reads) <= 2 + 5 * size // 65536
        assert link.quiet()


async def test_good_records_before_a_forged_one(ca_file: Path) -> None:
    async def forged(line: Line) -> None:
        await line.stream.send_all(b"good")
        await line.socket.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await trio.sleep_forever()

    async with peer(forged, tls=server_context()) as upstream, linked(upstream.origin.port, ca_file) as link:
        await trio.testing.wait_all_tasks_blocked()
        assert await receive(link) == b"good"
        assert not link.quiet()
        with pytest.raises(ConnectionResetError):
            await receive(link)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("what", ["nothing", "bytes", "end", "cut", "reset"])
async def test_quiet(what: str, secure: bool, ca_file: Path) -> None:
    go, gone = trio.Event(), trio.Event()

    async def script(line: Line) -> None:
        await line.send(b"hello")
        await go.wait()
        if what == "bytes":
            await line.send(b"!")
        elif what == "end":
            await line.stream.aclose()
        elif what in ("cut", "reset"):
            getattr(line, what)()
        gone.set()
        await line.wait_gone()

    tls, ca = (server_context(), ca_file) if secure else (None, None)
    async with peer(script, tls=tls) as upstream, linked(upstream.origin.port, ca) as link:
        assert await receive(link) == b"hello"
        assert link.quiet()
        go.set()
        await gone.wait()
        assert link.quiet() is (what == "nothing")


async def test_not_quiet_when_the_end_was_read_with_the_answer(ca_file: Path) -> None:
    """The socket has nothing to read then: the close_notify has gone into TLS."""

    async def script(line: Line) -> None:
        await line.stream.send_all(b"hello")
        assert isinstance(line.stream, trio.SSLStream)
        await line.stream.unwrap()  # waits for an answer that does not come

    async with peer(script, tls=server_context()) as upstream, linked(upstream.origin.port, ca_file) as link:
        await trio.testing.wait_all_tasks_blocked()
        assert await receive(link) == b"hello"
        assert not link.quiet()


@pytest.mark.parametrize("secure", [False, True])
async def test_write_deadline_is_one_of_progress(secure: bool, ca_file: Path, clock: trio.testing.MockClock) -> None:
    """The peer takes a quarter of a MiB each 20 s, of 30 that it may take, and after 2 MiB nothing more."""

    async def slow(line: Line) -> None:
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        for i in range(8):
            await trio.sleep(20)
            while len(line.received) < (i + 1) << 18:
                await line.receive()
        await trio.sleep_forever()

    tls, ca = (server_context(), ca_file) if secure else (None, None)
    async with peer(slow, tls=tls) as upstream, linked(upstream.origin.port, ca) as link:
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        before = trio.current_time()
        await link.send(bytes(16 << 20))
        assert link.deaf == "stalled"
        took = trio.current_time() - before
        await link.send(b"nor this")
        assert 8 * 20 + 30 <= took == trio.current_time() - before
        assert 2 << 20 <= link.sent < 16 << 20, "what the kernel took is counted"


async def test_sent_counts_what_the_kernel_took() -> None:
    async with peer(deaf) as upstream, linked(upstream.origin.port) as link:
        await link.send(b"12345")
        await link.send(b"")
        assert (link.sent, link.deaf) == (5, "")
        link.close()
        await link.send(b"6")
        assert (link.sent, link.deaf) == (5, "broken")


@pytest.mark.parametrize("secure", [False, True])
async def test_closed(secure: bool, ca_file: Path) -> None:
    """Nothing is read or written any more, and who waits is told."""
    tls, ca = (server_context(), ca_file) if secure else (None, None)
    async with peer(silence, tls=tls) as upstream, linked(upstream.origin.port, ca) as link:
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                while link.pull() is None:
                    await link.readable()

            async def told() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await waits()

            nursery.start_soon(told)
            await trio.testing.wait_all_tasks_blocked()
            for politely in (True, True, False):
                link.close(politely=politely)
        with pytest.raises(OSError, match="was closed"):
            link.pull()
        assert link.push(b"x") == 0
        assert link.deaf == "broken"
        assert not link.quiet()
        with trio.fail_after(5):
            await upstream.lines[0].gone.wait()
        assert upstream.lines[0].ending == "end"
