"""From a name to a link that is ready for HTTP: DNS, TCP (happy eyeballs, RFC 8305) and TLS, under one deadline.

TLS rules: the peer is verified against the system's store or the one given file, always by name; no byte of HTTP is
written before that.

This file knows nothing of HTTP beyond the name of its ALPN protocol.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path

import trio

from tproxy.errors import UpstreamUnreachable
from tproxy.wire.link import Link, TlsLink

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


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context for `dial` that trusts the system's store, or `ca_file` (PEM) alone.

    The store is the file or folder that `SSL_CERT_FILE` or `SSL_CERT_DIR` names, or else is found where OpenSSL looks,
    or where systems keep their bundles; on Windows it is the system's own. It is read once, here.

    Raises:
        OSError: `ca_file` cannot be read (`ssl.SSLError`, a kind of OSError: it holds no certificate).
    """
    context = ssl.create_default_context(cafile=ca_file)
    paths = ssl.get_default_verify_paths()
    named = os.environ.keys() & {paths.openssl_cafile_env, paths.openssl_capath_env}
    if not (ca_file or named or paths.cafile or paths.capath):
        for bundle in filter(os.path.isfile, _BUNDLES):
            context.load_verify_locations(bundle)
    context.options |= ssl.OP_NO_RENEGOTIATION  # so that reading never waits to write, nor writing to read
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
            connected = (await trio.open_tcp_stream(host, port)).socket
        except (OSError, UnicodeError) as exc:
            raise UpstreamUnreachable(_tcp_failure(name, exc)) from exc
        sock = socket.socket(fileno=connected.detach())
        try:
            sock.setblocking(False)
            _set_options(sock, write)
            if tls is None:
                return Link(sock, write)
            sock = secured = await _secure(sock, host, tls, session, name)
            return TlsLink(secured, write)
        except BaseException:
            sock.close()
            raise
    raise UpstreamUnreachable(f"{name} could not be reached within {connect:g} s (name, TCP and TLS together)")


async def _secure(
    sock: socket.socket, host: str, tls: ssl.SSLContext, session: ssl.SSLSession | None, name: str
) -> ssl.SSLSocket:
    """Agree on TLS. The socket is the one that is returned, from the beginning on."""
    try:
        secured = tls.wrap_socket(
            sock, server_hostname=host, session=session, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
    except OSError as exc:  # the peer has gone already
        raise UpstreamUnreachable(_tls_failure(name, exc)) from exc
    try:
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secured)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secured)
    except OSError as exc:
        secured.close()
        raise UpstreamUnreachable(_tls_failure(name, exc)) from exc
    except BaseException:
        secured.close()
        raise


def _set_options(sock: socket.socket, write: float) -> None:
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


def _tls_failure(name: str, cause: OSError) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {name} was not trusted: {getattr(cause, 'verify_message', '') or cause}"
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return f"{name} closed the connection during the TLS handshake"
    return f"the TLS handshake with {name} failed: {cause.reason or cause}"
