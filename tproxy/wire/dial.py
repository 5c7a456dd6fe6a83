"""From a name to a stream that is ready for HTTP: DNS, TCP (happy eyeballs, RFC 8305) and TLS, under one deadline.

What comes back is a `Link`. Its `stream` is an ordinary trio stream; around it the link answers three questions that
trio's own streams do not:

- How much has the kernel taken (`tcp.sent`)? A request may be sent again only if the answer is: nothing.
- Is it quiet? An idle connection on which anything at all can be read (an end, a reset, bytes that nobody asked for,
  a TLS alert that is already in a buffer) must not carry another request.
- Which TLS session may the next dial resume?

TLS rules: the peer is verified against the system's store or the one given file, always by name; no byte of HTTP is
written before that; an end without close_notify is an error and never looks like a clean end (RFC 8446 section 6.1).

OpenSSL gives out one record a read, and trio.SSLStream hands on what OpenSSL gives. An upstream that writes each
event as a record of its own would then cost us a write for each event, however many came together. `_Records` stands
between the two and joins all records that have arrived.

This file knows nothing of HTTP beyond the name of its ALPN protocol.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import trio
import truststore

from tproxy.errors import UpstreamUnreachable

READ_BYTES = 65536

# (level, option, value): found dead in 60 s + 60 s, as Anthropic's own SDK asks of its sockets; also keeps NATs open.
_KEEPALIVE = [
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE" if sys.platform != "darwin" else "TCP_KEEPALIVE", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 5),
]

# Where distributions keep their bundle, for a Python whose OpenSSL was built to look elsewhere.
_BUNDLES = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
]


class Tcp(trio.abc.Stream):
    """A connected socket as a trio stream, different from trio.SocketStream in how it sends.

    - It counts what the kernel took.
    - The deadline is one of progress: a slow peer may take as long as it likes for a large piece, one that takes
      nothing for `write` seconds is done with.
    - A write that fails is not raised but noted in `deaf`, and all later ones do nothing. The peer may have left an
      answer before it stopped reading, and an SSLStream whose transport raised once does not read any more.
    """

    def __init__(self, sock: trio.socket.SocketType, write: float) -> None:
        self.socket = sock
        self.sent = 0
        self.deaf: Literal["", "broken", "stalled"] = ""
        self._write = write

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)
        while not self.deaf:
            try:
                with trio.fail_after(self._write):
                    taken = await self.socket.send(rest)
            except OSError:
                self.deaf = "broken"
                return
            except trio.TooSlowError:
                self.deaf = "stalled"
                return
            self.sent += taken
            rest = rest[taken:]
            if not rest:
                return

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self.socket.recv(max_bytes or READ_BYTES)
        except OSError as exc:
            raise trio.BrokenResourceError(f"socket connection broken: {exc}") from exc

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


class _Records:
    """What trio.SSLStream takes for its context, and then for the SSLObject which that context made.

    All is passed through to the real ones, but for `read`, which joins the records that have arrived.
    """

    def __init__(self, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self._context = context
        self._session = session
        self._failure: ssl.SSLError | None = None
        self._ended = False

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **names: Any) -> _Records:
        self._incoming = incoming
        self._object = self._context.wrap_bio(incoming, outgoing, session=self._session, **names)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object, name)

    def read(self, size: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        data = self._object.read(size)
        if not self._incoming.pending:
            return data  # by far the most common case: one record was all there was
        parts = [data]
        while data and (size := size - len(data)) and (self._incoming.pending or self._object.pending()):
            try:
                data = self._object.read(size)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as exc:
                self._failure = exc  # what came before it is good, and goes out first
                break
            parts.append(data)
        self._ended = not data
        return b"".join(parts)

    def quiet(self) -> bool:
        return not (self._ended or self._failure is not None or self._incoming.pending or self._object.pending())


@dataclass(frozen=True, slots=True)
class Link:
    """A connection that is ready for use: `stream` for its bytes, `tcp` beneath it."""

    stream: trio.abc.Stream
    tcp: Tcp
    records: _Records | None = None

    def quiet(self) -> bool:
        """Whether nothing can be read: the state in which a sane idle connection is. Never waits."""
        if self.records is not None and not self.records.quiet():
            return False
        poll = select.poll()
        poll.register(self.tcp.socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def session(self) -> ssl.SSLSession | None:
        """The TLS session that a later `dial` may resume. TLS 1.3 has one only after the first answer was read."""
        if self.records is None:
            return None
        session = cast("ssl.SSLSession | None", self.records.session)
        return session if session is not None and (session.has_ticket or session.id) else None

    def close(self) -> None:
        """Close the socket at once: the peer sees it now, whatever was under way."""
        self.tcp.socket.close()


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context for `dial` that trusts the system's store, or `ca_file` (PEM) alone.

    On Linux the store is a file, named by `SSL_CERT_FILE` or found where OpenSSL looks, and is read once, here:
    truststore would read it anew for each connection, 35 ms in which no stream moves. Elsewhere truststore asks
    the system itself.

    Raises:
        OSError: `ca_file` cannot be read (`ssl.SSLError`, a kind of OSError: it holds no certificate).
    """
    context: ssl.SSLContext
    if ca_file is None and sys.platform != "linux":
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = ssl.create_default_context(cafile=ca_file)
        paths = ssl.get_default_verify_paths()
        named = os.environ.keys() & {paths.openssl_cafile_env, paths.openssl_capath_env}
        if not (ca_file or named or paths.cafile or paths.capath):
            for bundle in filter(os.path.isfile, _BUNDLES):
                context.load_verify_locations(bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    connect: float,
    write: float,
    session: ssl.SSLSession | None = None,
) -> Link:
    """Connect to the first address of `host` that answers and, with `tls`, agree on a verified TLS connection.

    Args:
        connect: seconds for name, TCP and TLS together.
        write: seconds within which each later write must make progress.
        session: a TLS session of an earlier link to the same host, made with the same context.

    Raises:
        UpstreamUnreachable: it failed; the message says at what. Nothing but a TLS handshake was sent.
    """
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with trio.move_on_after(connect):
        try:
            sock = (await trio.open_tcp_stream(host, port)).socket
        except (OSError, UnicodeError) as exc:
            raise UpstreamUnreachable(_tcp_failure(name, exc)) from exc
        tcp = Tcp(sock, write)
        try:
            _set_options(sock, write)
            if tls is None:
                return Link(tcp, tcp)
            # Where truststore asks the system, it asks with the chain that the peer sent; a resumed session has none.
            records = _Records(tls, None if isinstance(tls, truststore.SSLContext) else session)
            stream = trio.SSLStream(tcp, cast(ssl.SSLContext, records), server_hostname=host)
            await stream.do_handshake()
            return Link(stream, tcp, records)
        except trio.BrokenResourceError as exc:
            sock.close()
            raise UpstreamUnreachable(_tls_failure(name, exc.__cause__)) from exc
        except BaseException:
            sock.close()
            raise
    raise UpstreamUnreachable(f"{name} could not be reached within {connect:g} s (name, TCP and TLS together)")


def _set_options(sock: trio.socket.SocketType, write: float) -> None:
    """Keepalive, and no patience with lost packets beyond `write`. trio has already set TCP_NODELAY."""
    for level, option, value in [*_KEEPALIVE, (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", round(write * 1000))]:
        with suppress(AttributeError, OSError):  # where the platform has it
            sock.setsockopt(level, getattr(socket, option), value)


def _tcp_failure(name: str, exc: OSError | UnicodeError) -> str:
    if isinstance(exc, UnicodeError):  # Python's resolver encodes it first (RFC 3490), and cannot
        return f"the name in {name} could not be resolved: it has an empty or too long part"
    if isinstance(exc, socket.gaierror):
        return f"the name in {name} could not be resolved: {exc.strerror or exc}"
    # trio says only that all attempts failed; why each did is in the group that caused it.
    attempts = exc.__cause__.exceptions if isinstance(exc.__cause__, ExceptionGroup) else (exc,)
    reasons = {os.strerror(a.errno) if isinstance(a, OSError) and a.errno else str(a) for a in attempts}
    return f"{name} could not be reached: {', '.join(sorted(reasons))}"


def _tls_failure(name: str, cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {name} was not trusted: {getattr(cause, 'verify_message', '') or cause}"
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return f"{name} closed the connection during the TLS handshake"
    return f"the TLS handshake with {name} failed: {cause.reason or cause}"
