"""One request and its response, as ASGI has it: `receive`, `send` (ASGI 3.0, HTTP specification 2.4).

- The head is one write, each body message another, sent at once (`answer.py` makes the bytes). A head that says
  `held` beside `status` goes out with the first body message, in one write.
- A client that leaves is noticed within a second in every phase: `receive` gives `http.disconnect`, `send` raises
  ClientDisconnected, and `Transport.left` is set, for whoever does neither. On most connections the channel tells.
  Where it does not, a task watches: while the body is wanted, `receive` alone reads, so that nothing is read that was
  not asked for, and the watch asks the kernel every POLL_SECONDS; then the watch reads, and keeps what comes (a
  pipelined request) up to READ_AHEAD.
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

import trio
from hypercorn.typing import AppWrapper

from tproxy import errors
from tproxy.wire.answer import Answer, State, error_answer
from tproxy.wire.channel import Channel, ClientDisconnected
from tproxy.wire.opening import Opening, Refused
from tproxy.wire.request_body import Body
from tproxy.wire.scope import Message
from tproxy.wire.transport import Transport

__all__ = ["POLL_SECONDS", "READ_AHEAD", "Cycle", "Transport"]

READ_AHEAD = 65536
POLL_SECONDS = 0.5

_log = logging.getLogger("tproxy.wire")


class Cycle:
    """One request and its response.

    Args:
        channel: the client; its `pending` bytes begin with the request's body.
        opening: the request's head.
        transport: the extension in its scope.
        closing: whether the connection takes no further request; asked when the answer begins and when it ends.

    Raises:
        Refused: what has come of the body is malformed.
    """

    __slots__ = (
        "_answer", "_body", "_body_read", "_channel", "_closing", "_ended", "_expects", "_fault", "_held", "_interim",
        "_method", "_over", "_reading", "_ready", "_transport",
    )  # fmt: skip

    def __init__(self, channel: Channel, opening: Opening, transport: Transport, closing: Callable[[], bool]) -> None:
        self._channel = channel
        self._transport = transport
        self._closing = closing
        self._method = opening.method
        self._answer = Answer(opening.method, opening.http_version, last=opening.last)
        self._held = b""  # a head that waits for the first of its body
        self._over = False  # the response is whole, or nobody is left to take it
        self._ended: trio.Event | None = None  # set when it is over, for who waits for that
        self._fault: Refused | None = None  # what was wrong with the body
        self._body: Body | None = opening.body  # until it is read
        self._body_read: trio.Event | None = None  # set when it is, for the watch
        self._reading: trio.CancelScope | None = None  # `receive`, waiting for the client
        self._expects = opening.expects_continue and not channel.pending
        self._interim: trio.Event | None = None  # set when the 100 is out
        if channel.pending:
            opening.body.feed(bytes(channel.pending))
            channel.pending.clear()
        self._ready = self._parse()

    async def run(self, app: AppWrapper, scope: Message) -> bool:
        """Have the application answer. Whether the connection can serve another request; if not, it is closed."""
        self._transport.attach(self)
        try:
            if self._channel.attend(self._leave):
                await self._call(app, scope)
            else:
                self._body_read = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, self._body_read)
                    await self._call(app, scope)
                    nursery.cancel_scope.cancel()
            return await self._settle()
        except BaseException:
            self._channel.attend(None)
            self._cut()
            raise
        finally:
            self._transport.attach(None)

    async def receive(self) -> Message:
        """ASGI: the next part of the body, READ_AHEAD bytes at most; `http.disconnect` when all is over."""
        if self._ready is not None:  # it had come with the head
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        while not self._over and not self._channel.gone:
            if self._body is None and self._ready is None:
                self._ended = self._ended or trio.Event()
                await self._ended.wait()
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
            self._answer.last |= self._closing() or self._body is not None
            head = self._answer.head(message["status"], message.get("reason"), message.get("headers", ()))
            if self._interim is not None:
                await self._interim.wait()
            if message.get("held", False):
                self._held = head
                await trio.lowlevel.checkpoint_if_cancelled()
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

    @property
    def ready(self) -> bool:
        """See `Transport.ready`."""
        return self._ready is not None

    def sink(self) -> int | None:
        """See `Transport.sink`."""
        return self._channel.descriptor() if self._answer.in_chunks and not self._held else None

    async def rest(self, data: bytes) -> None:
        """See `Transport.rest`."""
        await self._channel.write(data)

    async def _call(self, app: AppWrapper, scope: Message) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await app(
                scope,  # type: ignore[arg-type]  # hypercorn's own names for these dicts
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
            if self._answer.state is State.WAITING and not self._over:
                _log.error("the application returned without an answer")

    async def _watch(self, body_read: trio.Event) -> None:
        """See the client leave, whatever the application does meanwhile, where the channel does not tell."""
        channel = self._channel
        await trio.lowlevel.checkpoint_if_cancelled()
        while not channel.gone:
            room = READ_AHEAD - len(channel.pending)
            if self._body is not None:
                with trio.move_on_after(POLL_SECONDS):
                    await body_read.wait()
            elif room > 0:
                channel.pending.extend(await channel.read(room))
                continue
            else:
                await trio.sleep(POLL_SECONDS)
            if channel.left():
                channel.leave()

    def _leave(self) -> None:
        """Nothing more can be sent, for the client has left, or the application has cancelled its own `send`."""
        self._end()
        if not self._channel.aborted:
            self._transport.leave()

    def _end(self) -> None:
        self._over = True
        if self._ended is not None:
            self._ended.set()
        if self._reading is not None:
            self._reading.cancel()

    def _parse(self) -> Message | None:
        """The next body message out of what has come, if that suffices for one."""
        if self._body is None:
            return None
        try:
            found = self._body.read()
        except ValueError:
            raise Refused(400, "The request body is not framed as its head says.") from None
        if found is None:
            return None
        part, more = found
        if not more:
            self._channel.pending += self._body.rest
            self._body = None
            if self._body_read is not None:
                self._body_read.set()
        return {"type": "http.request", "body": part, "more_body": more}

    async def _read(self) -> None:
        """Wait for more of the body."""
        data = self._channel.take(READ_AHEAD)
        if data is None:
            with trio.CancelScope() as self._reading:
                if self._expects and self._answer.state is State.WAITING:
                    await self._ask_for_body()
                data = await self._channel.read(READ_AHEAD)
            self._reading = None
        if data and self._body is not None:
            self._body.feed(data)

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
        self._channel.attend(None)
        state = self._answer.state
        if self._channel.gone or self._answer.cut_looks_whole:
            self._cut()
            return False
        self._answer.last |= self._closing() or self._body is not None
        if state is State.COMPLETE and not self._answer.last:
            return True
        if state is State.WAITING:
            await self._fail()
        await self._channel.finish(linger=self._body is not None or self._channel.unread)
        return False

    async def _fail(self) -> None:
        """Answer in the place of an application that has not."""
        fault: errors.Fault = errors.Internal("An internal error ended this request.")
        status = fault.status
        if self._fault is not None:
            status, fault = self._fault.status, self._fault.fault
        await trio.lowlevel.checkpoint_if_cancelled()
        with contextlib.suppress(ClientDisconnected):
            await self._channel.write(error_answer(status, fault, body=self._method != "HEAD"))

    def _cut(self) -> None:
        """End the connection at once, in a way that no client takes for the end of the response."""
        if self._answer.cut_looks_whole:
            self._channel.reset()
        else:
            self._channel.close()
