"""What a subject is, and what starting one has in common: a free port, and waiting until somebody listens there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench.load import Tally
from bench.process import READY_SECONDS, BenchFault, Running

Address = tuple[str, int]
LOOPBACK = "127.0.0.1"
TLS_NAME = "localhost"  # for those that do not check addresses in certificates


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a subject is to pass everything on to.

    Attributes:
        ca_file: it speaks TLS, with a certificate of this authority for TLS_NAME and for its address. None: it
            speaks plain HTTP.
    """

    host: str
    port: int
    ca_file: Path | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{'https' if self.ca_file else 'http'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Served:
    """A subject that is ready.

    Attributes:
        process: None where there is none.
        headers: to be sent with each request, beside those of the subject: they depend on the run.
    """

    address: Address
    process: Running | None
    headers: Mapping[str, str] = field(default_factory=dict)


Start = Callable[[Path, Upstream, frozenset[int]], AbstractAsyncContextManager[Served]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something to measure.

    Attributes:
        version: what it is, in full; None: it is not installed here.
        start: gets a directory of its own, the upstream, and its cores.
        audit: looks at what it left in its directory when it has ended; returns what is wrong with it.
        path: the path of a request.
        headers: to be sent with each request, beside the usual ones or in their place.
        tls: it can be started with an upstream that speaks TLS.
        peer: another product of this kind: it runs the core workloads only.
        exact: it passes plain answers on as they are, and does not write their JSON anew.
        only: the names of the workloads that it runs; None: all those of its kind.
    """

    name: str
    version: Callable[[], str | None]
    start: Start
    audit: Callable[[Path, Tally], list[str]] = lambda home, tally: []
    path: str = "/v1/messages"
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: bool = False
    peer: bool = False
    exact: bool = True
    only: frozenset[str] | None = None


def address_in(line: str) -> Address:
    """The address at the end of a line that says where somebody listens."""
    host, _, port = line.rpartition("://")[2].rpartition(":")
    return host, int(port)


def free_address() -> Address:
    """An address that was free just now, for programs that cannot say which one they took."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return LOOPBACK, port


async def accepting(address: Address, process: Running, seconds: float = READY_SECONDS) -> None:
    """Wait until a process accepts connections.

    Raises:
        BenchFault: it has ended, or does not accept within `seconds`.
    """
    with trio.move_on_after(seconds):
        while not _ended(process.pid):
            try:
                stream = await trio.open_tcp_stream(*address)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return
    raise BenchFault(f"{process.name} does not accept: {process.tail()}")


def _ended(pid: int) -> bool:
    """Whether a process that this one started has ended; it stays to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it has been waited for
        return True
