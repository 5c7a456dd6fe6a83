"""The sandbox as a server on a loopback address, run in a nursery of the caller's.

async with trio.open_nursery() as nursery:
    sandbox = await nursery.start(serve_sandbox, "127.0.0.1:0")
    ...                                # requests to sandbox.url, a look at sandbox.books
    nursery.cancel_scope.cancel()
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Never

import trio

from tproxy.sandbox.api import Api
from tproxy.sandbox.books import Books
from tproxy.sandbox.connection import Connection
from tproxy.sandbox.pace import Pacer
from tproxy.sandbox.received import Received, Requests
from tproxy.sandbox.script import Script

_BACKLOG = 4096
_AT_ONCE = 256
_FULL_SECONDS = 0.1
_CLIENT_GONE = {errno.ECONNABORTED, errno.EPERM, errno.EPROTO}
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

PACED = Script(tps=30, ttft=0.2)


@dataclass(slots=True)
class Sandbox:
    """A running sandbox.

    `books` says what was served, `requests` what was received, byte for byte (the newest 1,000). `accepted` counts
    connections, `open` those that are not closed.
    """

    url: str
    port: int
    books: Books = field(default_factory=Books)
    accepted: int = 0
    open: int = 0
    _requests: Requests = field(default_factory=Requests)

    @property
    def requests(self) -> deque[Received]:
        return self._requests.kept


async def serve_sandbox(
    bind: str = "127.0.0.1:0",
    *,
    keys: Collection[str] | None = None,
    paced: bool = False,
    tls: ssl.SSLContext | None = None,
    idle_seconds: float = 120.0,
    task_status: trio.TaskStatus[Sandbox] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Serve until cancelled.

    Args:
        bind: `HOST:PORT` or `[IPv6]:PORT`; port 0 takes a free one.
        keys: the credentials that are accepted; None: any.
        paced: where a request brings no script, its answer comes at a pace that is pleasant to read.
        tls: a server context; the sandbox then speaks TLS.
        idle_seconds: how long a connection may lie idle.

    Raises:
        ValueError: `bind` is no such address.
        OSError: the address cannot be bound.
    """
    host, port = _address(bind)
    listener = socket.create_server(
        (host.strip("[]"), port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=_BACKLOG,
    )
    with listener:
        listener.setblocking(False)
        actual = listener.getsockname()[1]
        sandbox = Sandbox(f"{'http' if tls is None else 'https'}://{host}:{actual}", actual)
        api = Api(
            origin=sandbox.url,
            books=sandbox.books,
            keys=None if keys is None else frozenset(keys),
            default=PACED if paced else Script(),
        )

        pacer = Pacer()

        async def serve(sock: socket.socket, number: int) -> None:
            try:
                await Connection(
                    sock,
                    number,
                    api=api,
                    books=sandbox.books,
                    pacer=pacer,
                    tls=tls,
                    idle_seconds=idle_seconds,
                    record=sandbox._requests.add,
                ).serve()
            finally:
                sandbox.open -= 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pacer.run)
            task_status.started(sandbox)
            while True:
                await trio.lowlevel.wait_readable(listener)
                accepted, full = accept(listener)
                for sock in accepted:
                    sandbox.accepted += 1
                    sandbox.open += 1
                    nursery.start_soon(serve, sock, sandbox.accepted)
                if full:
                    await trio.sleep(_FULL_SECONDS)
    raise AssertionError("the loop above only ends by an exception")


def _address(bind: str) -> tuple[str, int]:
    """Host, with the brackets of IPv6, and port."""
    match = re.fullmatch(r"(\[[^\[\]\s]+\]|[^\[\]:\s]+):([0-9]{1,5})", bind)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"the address to listen on must be HOST:PORT, for example 127.0.0.1:4010, not {bind!r}")
    return match[1], int(match[2])


def accept(listener: socket.socket) -> tuple[list[socket.socket], bool]:
    """The connections that wait, and whether there are too few descriptors for the rest."""
    accepted: list[socket.socket] = []
    while len(accepted) < _AT_ONCE:
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:
            break
        except OSError as fault:
            if fault.errno in _OUT_OF_DESCRIPTORS:
                return accepted, True
            if fault.errno not in _CLIENT_GONE:
                raise
    return accepted, False
