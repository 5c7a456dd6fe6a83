"""One request and its response, as ASGI has it: `scope`, `receive`, `send` (ASGI 3.0, HTTP specification 2.4).

- The head is one write, each body message another, sent at once (`answer.py` makes the bytes). A head that says
  `held` beside `status` goes out with the first body message, in one write.
- One reader at a time: while the body is wanted, `receive`, so that nothing is read that was not asked for; then
  the watch, which keeps what comes (a pipelined request) up to READ_AHEAD. Where the watch may not read, it asks
  the kernel every POLL_SECONDS. So a client that leaves is noticed within a second in every phase: `receive` gives
  `http.disconnect`, `send` raises ClientDisconnected, and `Transport.left` is set, for whoever does neither.
- `100 Continue` goes out when the application first waits for the body: a refusal comes first.
- A response that cannot be finished is cut, never ended: no last chunk, no byte in place of a missing one; where
  only the end of the connection would tell, the connection is reset.
- Until the body has come whole, one task at a time calls `receive`; one task at a time calls `send` throughout.

This file does not know when the next request comes, or who else is connected.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import h11
import trio
from hypercorn.typing import AppWrapper

from tproxy import errors
from tproxy.wire.answer import Answer, State, error_answer
from tproxy.wire.channel import Channel, ClientDisconnected
from tproxy.wire.opening import Opening, Refused

READ_AHEAD = 65536
POLL_SECONDS = 0.5
_MAX_PARTS = 64  # chunks that one body message joins, so that tiny ones do not hold up everyone else

_log = logging.getLogger("tproxy.wire")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Transport:
    """What ASGI's scope loses of a request: `scope["extensions"]["tproxy"]`.

    Attributes:
        target: the request target as it came, query included.
        headers: in the client's spelling, order and repetition.
        http_version: "1.0" or "1.1".
        left: set when the client has left, whether or not the body was asked for; never by the end of the answer.
    """

    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: str
    left: trio.Event = field(default_factory=trio.Event, compare=False)


def http_scope(opening: Opening, connection: Message, state: Message) -> Message:
    """The ASGI scope of a request.

    Args:
        opening: its head.
        connection: `scheme`, `root_path`, `client` and `server`.
        state: the application's lifespan state, of which each request gets its own shallow copy.
    """
    path, _, query = opening.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": opening.http_version,
        "method": opening.method,
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": [(name.lower(), value) for name, value in opening.headers],
        "state": state.copy(),
        "extensions": {"tproxy": Transport(opening.target, opening.headers, opening.http_version)},
        **connection,
    }


class Cycle:
    """One request and its response.

    Args:
        channel: the client; its `pending` bytes begin with the request's body.
        opening: the request's head.
        scope: what `http_scope` made of it.
        closing: whether the connection takes no further request; asked when the answer begins and when it ends.

    Raises:
        Refused: what has come of the body is malformed.
    """

    __slots__ = (
        "_answer", "_body_read", "_channel", "_closing", "_expects", "_fault", "_held", "_interim", "_left", "_over",
        "_parser", "_reading", "_ready", "_scope",
    )  # fmt: skip

    def __init__(self, channel: Channel, opening: Opening, scope: Message, closing: Callable[[], bool]) -> None:
        self._channel = channel
        self._scope = scope
        self._closing = closing
        self._answer = Answer(opening.method, opening.http_version, last=opening.last)
        self._held = b""  # a head that waits for the first of its body
        self._left: trio.Event = scope["extensions"]["tproxy"].left
        self._over = trio.Event()  # the response is whole, or nobody is left to take it
        self._fault: Refused | None = None  # what was wrong with the body
        self._body_read = trio.Event()
        self._parser: h11.Connection | None = opening.parser  # until the body is read
        self._reading: trio.CancelScope | None = None  # `receive`, waiting for the client
        self._expects = opening.expects_continue and not channel.pending
        self._interim: trio.Event | None = None  # set when the 100 is out
        if channel.pending:
            opening.parser.receive_data(bytes(channel.pending))
            channel.pending.clear()
        self._ready = self._parse()

    async def run(self, app: AppWrapper) -> bool:
        """Have the application answer. Whether the connection can serve another request; if not, it is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self._call(app)
                nursery.cancel_scope.cancel()
            return await self._settle()
        except BaseException:
            self._cut()
            raise

    async def receive(self) -> Message:
        """ASGI: the next part of the body, READ_AHEAD bytes at most; `http.disconnect` when all is over."""
        await trio.lowlevel.checkpoint()
        while not self._over.is_set() and not self._channel.gone:
            if self._body_read.is_set() and self._ready is None:
                await self._over.wait()
                break
            try:
                message, self._ready = self._ready or self._parse(), None
            except Refused as fault:
                self._fault = fault
                self._end()
                break
            if message is not None:
                return message
            await self._read()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: the response's head (`reason` and `held` may be given beside `status`), then its body.

        Raises:
            ClientDisconnected: nobody takes it any more.
            ValueError: a head that is no head; nothing was written.
            RuntimeError: not this message's turn, or a body of another length than was announced.
        """
        if self._channel.gone or self._fault:
            raise ClientDisconnected("the client has left")
        turn = (message["type"], self._answer.state)
        if turn == ("http.response.start", State.WAITING):
            self._answer.last |= self._closing() or not self._body_read.is_set()
            head = self._answer.head(message["status"], message.get("reason"), message.get("headers", ()))
            if self._interim is not None:
                await self._interim.wait()
            if message.get("held", False):
                self._held = head
                await trio.lowlevel.checkpoint()
            else:
                await self._channel.write(head)
        elif turn == ("http.response.body", State.OPEN):
            more = message.get("more_body", False)
            data = self._held + self._answer.body(message.get("body", b""), more=more)
            self._held = b""
            if data:
                await self._channel.write(data)
            else:
                await trio.lowlevel.checkpoint()
            if not more:
                self._end()
        else:
            raise RuntimeError(f"{message['type']} was sent, but the response {self._answer.state.value}")

    async def _call(self, app: AppWrapper) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await app(
                self._scope,  # type: ignore[arg-type]  # hypercorn's own names for these dicts
                self.receive,  # type: ignore[arg-type]
                self.send,  # type: ignore[arg-type]
                trio.to_thread.run_sync,
                trio.from_thread.run,
            )
        except* ClientDisconnected:
            pass  # how an application may end whose client has left
        except* Exception as group:
            _log.error("the application failed", exc_info=group)
        else:
            if self._answer.state is State.WAITING and not self._over.is_set():
                _log.error("the application returned without an answer")

    async def _watch(self) -> None:
        """See the client leave, whatever the application does meanwhile."""
        channel = self._channel
        await trio.lowlevel.checkpoint_if_cancelled()
        while not channel.gone:
            room = READ_AHEAD - len(channel.pending)
            if not self._body_read.is_set():
                with trio.move_on_after(POLL_SECONDS):
                    await self._body_read.wait()
            elif room > 0:
                channel.pending.extend(await channel.read(room))
                continue
            else:
                await trio.sleep(POLL_SECONDS)
            if channel.left():
                channel.leave()
        self._end()

    def _end(self) -> None:
        self._over.set()
        if self._channel.gone:
            self._left.set()
        if self._reading is not None:
            self._reading.cancel()

    def _parse(self) -> Message | None:
        """The next body message out of what has come, if that suffices for one."""
        if self._parser is None:
            return None
        parts: list[bytes] = []
        more = True
        try:
            while more and len(parts) < _MAX_PARTS:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    parts.append(event.data)
                elif isinstance(event, h11.EndOfMessage):  # its trailers are dropped
                    more = False
                else:
                    break
        except h11.RemoteProtocolError:
            raise Refused(400, "The request body is not framed as its head says.") from None
        if not more:
            self._channel.pending.extend(self._parser.trailing_data[0])
            self._parser = None
            self._body_read.set()
        return {"type": "http.request", "body": b"".join(parts), "more_body": more} if parts or not more else None

    async def _read(self) -> None:
        """Wait for more of the body."""
        with trio.CancelScope() as self._reading:
            if self._expects and self._answer.state is State.WAITING:
                await self._ask_for_body()
            data = await self._channel.read(READ_AHEAD)
            if data and self._parser is not None:
                self._parser.receive_data(data)
        self._reading = None
        if self._channel.gone:
            self._end()

    async def _ask_for_body(self) -> None:
        self._expects = False
        self._interim = trio.Event()
        try:
            await self._channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ClientDisconnected:
            await trio.lowlevel.checkpoint_if_cancelled()  # the read that follows says so
        finally:
            self._interim.set()

    async def _settle(self) -> bool:
        """What becomes of the connection, now that the application has returned."""
        await trio.lowlevel.checkpoint_if_cancelled()
        state = self._answer.state
        if self._channel.gone or self._answer.cut_looks_whole:
            self._cut()
            return False
        self._answer.last |= self._closing() or not self._body_read.is_set()
        if state is State.COMPLETE and not self._answer.last:
            return True
        if state is State.WAITING:
            await self._fail()
        await self._channel.finish(linger=not self._body_read.is_set() or bool(self._channel.pending))
        return False

    async def _fail(self) -> None:
        """Answer in the place of an application that has not."""
        fault: errors.Fault = errors.Internal("An internal error ended this request.")
        status = fault.status
        if self._fault is not None:
            status, fault = self._fault.status, self._fault.fault
        await trio.lowlevel.checkpoint_if_cancelled()
        with contextlib.suppress(ClientDisconnected):
            await self._channel.write(error_answer(status, fault, body=self._scope["method"] != "HEAD"))

    def _cut(self) -> None:
        """End the connection at once, in a way that no client takes for the end of the response."""
        if self._answer.cut_looks_whole:
            self._channel.reset()
        else:
            self._channel.close()
