"""One client's connection: requests in through h11, answers out as the script wants them.

h11 reads. It does not write, since half of the scripts ask for what h11 refuses to write: an answer that breaks off,
two answers, HTTP/1.0. When an answer has gone out, h11 is told of an empty one, so that its states go on.

While an answer is waited for or sent, `_watch` reads on: so a client that leaves is noticed at once, also one that
leaves by closing only its sending side. What it reads of a next request is kept for later.

Whatever is wrong with a connection ends that connection and nothing else.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial

import h11
import trio

from tproxy.sandbox.api import Api
from tproxy.sandbox.books import CLIENT_LEFT, CUT, Books
from tproxy.sandbox.errors import ApiError
from tproxy.sandbox.events import PING
from tproxy.sandbox.pace import Pacer
from tproxy.sandbox.received import Head, Intake, Received
from tproxy.sandbox.reply import End, Reply
from tproxy.sandbox.sending import Sending

_READ_BYTES = 64 * 1024
_MOST_AHEAD = 64 * 1024
_HANDSHAKE_SECONDS = 10
_BODY_SECONDS = 300
_WRITE_SECONDS = 120
_LINGER_SECONDS = 1

_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nServer: cloudflare\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    """Serves one accepted socket.

    Args:
        sock: non-blocking and connected; the connection closes it.
        number: of this connection, from 1.
        tls: makes it a TLS server.
        idle_seconds: how long the client may take for the next request.
        record: is given each request, once it has been read.
    """

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        *,
        api: Api,
        books: Books,
        pacer: Pacer,
        tls: ssl.SSLContext | None,
        idle_seconds: float,
        record: Callable[[Received], None],
    ) -> None:
        self._sock = sock
        self._number = number
        self._api = api
        self._books = books
        self._pacer = pacer
        self._idle_seconds = idle_seconds
        self._record = record
        self._transport = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._stream: trio.abc.Stream = self._transport
        if tls is not None:
            self._stream = trio.SSLStream(self._transport, tls, server_side=True)
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
        self._left = False

    async def serve(self) -> None:
        """Serve requests until either side ends the connection."""
        await trio.lowlevel.checkpoint()
        try:
            if isinstance(self._stream, trio.SSLStream):
                with trio.fail_after(_HANDSHAKE_SECONDS):
                    await self._stream.do_handshake()
            while await self._exchange():
                self._h11.start_next_cycle()
            with trio.move_on_after(_LINGER_SECONDS):
                await self._stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self._transport.socket.close()

    # Requests

    async def _exchange(self) -> bool:
        """Serve one request; whether another may follow."""
        await trio.lowlevel.checkpoint()
        request: object = None
        try:
            with trio.move_on_after(self._idle_seconds):
                request = await self._event()
            if type(request) is not h11.Request:
                return False
            head = Head(
                request.method.decode("ascii"),
                request.target,
                request.http_version,
                tuple(request.headers.raw_items()),
            )
            reply = self._api.early(head, time.time())
            if reply is not None:
                self._note(head, self._api.intake(head), complete=False)
            else:
                reply = await self._read(head)
        except h11.RemoteProtocolError:
            await self._write(_BAD_REQUEST)
            return False
        read = self._h11.their_state is not h11.SEND_BODY
        again = await self._deliver(reply, watched=read)
        if not read:  # an answer that is closed upon unread bytes would be lost to a reset
            await trio.sleep(_LINGER_SECONDS)
        return again

    async def _event(self) -> object:
        """The next h11 event."""
        await trio.lowlevel.checkpoint()
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                self._h11.send(h11.InformationalResponse(status_code=100, headers=[]))
                await self._write(_CONTINUE)
            self._h11.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))
        return event

    async def _read(self, head: Head) -> Reply:
        """Take the body, and decide what is answered."""
        await trio.lowlevel.checkpoint()
        intake = self._api.intake(head)
        complete = False
        try:
            with trio.fail_after(_BODY_SECONDS):
                while type(event := await self._event()) is h11.Data:
                    intake.feed(event.data)
            if type(event) is h11.EndOfMessage:
                complete = True
                intake.trailers = tuple(event.headers.raw_items())
        except ApiError as fault:
            return self._api.refuse(head, fault, now=time.time())
        finally:
            self._note(head, intake, complete=complete)
        return self._api.answer(head, intake, now=time.time(), clock=trio.current_time())

    def _note(self, head: Head, intake: Intake, *, complete: bool) -> None:
        self._record(
            Received(
                method=head.method,
                target=head.target,
                version=head.version,
                headers=head.headers,
                trailers=intake.trailers,
                body=intake.body,
                size=intake.size,
                sha256=intake.sha256,
                complete=complete,
                connection=self._number,
            )
        )

    # Answers

    async def _deliver(self, reply: Reply, *, watched: bool) -> bool:
        """Send an answer and close its entry in the books; whether the connection can go on.

        `watched`: read on meanwhile, to see the client leave. An answer that goes out in one write need not be.
        """
        outcome = None
        last = reply.framing == "close" or reply.http10 or self._h11.their_state is not h11.DONE
        try:
            if reply.immediate or not watched:
                outcome = await self._play(reply, last)
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, nursery.cancel_scope)
                    outcome = await self._play(reply, last)
                    nursery.cancel_scope.cancel()
        finally:
            self._settle(reply, CLIENT_LEFT if self._left else CUT)
        if last or reply.script.hangup or outcome in {None, CUT, CLIENT_LEFT}:
            return False
        self._h11.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        self._h11.send(h11.EndOfMessage())
        return True

    def _settle(self, reply: Reply, ended: str) -> None:
        """Close an answer's entry in the books, if that has not been done."""
        reply.entry.output_delivered = reply.body.delivered(reply.entry.events_sent)
        self._books.close(reply.entry, ended, time.time())

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Read until the client leaves, then end `scope`. One that sends too much ahead is let go as well."""
        await trio.lowlevel.checkpoint()
        ahead = 0
        try:
            while data := await self._stream.receive_some(_READ_BYTES):
                self._h11.receive_data(bytes(data))
                ahead += len(data)
                if ahead > _MOST_AHEAD:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._left = True
        scope.cancel()

    async def _play(self, reply: Reply, last: bool) -> str:
        """Write an answer on time. Returns how it ended, in the words of the books."""
        script = reply.script
        start = trio.current_time() + script.ttft
        ended = reply.outcome
        await trio.sleep_until(start)
        try:
            if script.head_stall:
                await trio.sleep_forever()
            if script.close_before_head or script.reset_before_head:
                self._abort(reset=script.reset_before_head)
                ended = CUT
            else:
                complete = partial(self._settle, reply, reply.outcome)
                await self._send(reply, Sending(reply, last=last, offer=self._offer, complete=complete), start)
                if reply.end is End.STALL:
                    await self._stall(reply)
                elif reply.end is not End.CLEAN:
                    self._abort(reset=reply.end is End.RESET)
                    ended = CUT
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            ended = CLIENT_LEFT
        self._settle(reply, ended)
        return ended

    async def _send(self, reply: Reply, sending: Sending, start: float) -> None:
        """Send it all: on its schedule, which began at `start`, or as fast as it goes."""
        await trio.lowlevel.checkpoint()
        interval = 1 / reply.script.tps if reply.script.tps else 0.0
        while not sending.finished:
            if interval:
                await self._pacer.turns(start + sending.at * interval, interval, sending.step)
            elif sending.step():
                await trio.lowlevel.checkpoint()
            if sending.rest:
                await self._push(sending.rest)
                sending.gone()

    async def _stall(self, reply: Reply) -> None:
        """Send nothing more, or pings only, until the client leaves."""
        while reply.script.pings:
            await trio.sleep(reply.script.pings)
            if reply.framing == "chunked":
                await self._write(b"%x\r\n%b\r\n" % (len(PING), PING))
            else:
                await self._write(PING)
        await trio.sleep_forever()

    def _abort(self, *, reset: bool) -> None:
        """Close the socket at once: without TLS's close_notify, and with a TCP reset if that is wanted."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.socket.close()

    async def _write(self, data: bytes) -> None:
        """Hand all of `data` to the socket. Errors: as of `_push`."""
        await trio.lowlevel.checkpoint()
        if rest := self._offer(data):
            await self._push(rest)

    def _offer(self, data: bytes) -> bytes:
        """Give the socket what it takes at once, without waiting; returns the rest."""
        if self._stream is not self._transport:
            return data  # TLS
        try:
            return data[self._sock.send(data) :]
        except BlockingIOError:
            return data
        except OSError as fault:
            raise trio.BrokenResourceError("the client is gone") from fault

    async def _push(self, data: bytes) -> None:
        """Send what the socket did not take at once.

        Raises:
            trio.BrokenResourceError: the client is gone.
            trio.TooSlowError: it has taken nothing for too long.
        """
        with trio.fail_after(_WRITE_SECONDS):
            await self._stream.send_all(data)
