"""A receiver on a real socket: it takes what is posted or put, or does what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h11
import trio


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """
    Attributes:
        port: where it listens.
        status: what it answers. 0: it takes the request and hangs. -1: it takes it and breaks off.
        refuse_next: so many requests are answered with 503 first.
        extra: more headers of its answers.
        answer: the body of its answers.
        asked: how many requests came.
        came: these.
        taken: those of them that were answered with 2xx.
    """

    port: int
    status: int = 200
    refuse_next: int = 0
    extra: list[tuple[str, str]] = field(default_factory=list)
    answer: bytes = b"ok"
    asked: int = 0
    came: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def decide(self) -> int:
        self.asked += 1
        if self.refuse_next:
            self.refuse_next -= 1
            return 503
        return self.status


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        receiver = Receiver(listeners[0].socket.getsockname()[1])

        async def serve(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):  # a client that leaves
                await _serve(stream, receiver)

        await nursery.start(trio.serve_listeners, serve, listeners)
        yield receiver
        nursery.cancel_scope.cancel()


async def _serve(stream: trio.SocketStream, receiver: Receiver) -> None:
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            received = Received(head.method.decode(), head.target.decode(), headers, body)
            receiver.came.append(received)
            status = receiver.decide()
            if status == 0:
                await trio.sleep_forever()
            if status == -1:
                return
            if 200 <= status < 300:
                receiver.taken.append(received)
            said = [("content-length", str(len(receiver.answer))), ("etag", '"1"'), *receiver.extra]
            out = connection.send(h11.Response(status_code=status, headers=said)) or b""
            out += connection.send(h11.Data(receiver.answer)) or b""
            out += connection.send(h11.EndOfMessage()) or b""
            await stream.send_all(out)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
        else:
            return
