"""The upstream of a bench run: answers with deltas that carry their send time, each at its due time.

Open loop: an event is sent when it is due, whether or not the earlier ones were taken. What the socket does not take
waits here with the times it was given, so that a slow proxy finds its delay in the figures. Events go out one at a
time, each as one chunk and one write, as Anthropic sends them.

A process of its own: one epoll set, no framework. It is not the sandbox, because the send time must be in the event
and its own cost must stay far below that of any subject. Prints `upstream listening on http://HOST:PORT`.
"""

from __future__ import annotations

import gc
import heapq
import select
import socket
import time
from itertools import count

from bench import http1, talk
from bench.timing import sharp_timers, wait

BACKLOG = 4096
READ = 65_536

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nrequest-id: req_bench\r\n%s\r\n\r\n"
_STREAM_HEAD = _HEAD % (b"text/event-stream; charset=utf-8", b"cache-control: no-cache\r\ntransfer-encoding: chunked")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection:
    """One connection: at most one answer at a time."""

    __slots__ = ("asked", "due_ns", "held", "open", "place", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.held = b""
        self.unsent = b""
        self.asked: talk.Asked | None = None
        self.place = 0
        self.due_ns = 0
        self.open = True


class Upstream:
    """The connections, and when the next event of each is due."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._ready = select.epoll()
        self._ready.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[int, int, Connection]] = []
        self._number = count()
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until the process is ended."""
        while True:
            while self._due and self._due[0][0] <= time.monotonic_ns():
                self._event(heapq.heappop(self._due)[2])
            for descriptor, events in wait(self._ready, self._due[0][0] if self._due else None):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif events & select.EPOLLOUT:
                    self._send(self._connections[descriptor], b"")
                else:
                    self._read(self._connections[descriptor])

    def _accept(self) -> None:
        try:
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock)
                self._ready.register(sock, select.EPOLLIN)
        except BlockingIOError:
            pass

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(READ)
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.held += data
        head, end, body = connection.held.partition(b"\r\n\r\n")
        if end and len(body) >= int(http1.headers(head).get(b"content-length", b"0")):
            connection.held = b""
            self._answer(connection, talk.Asked.read(body))

    def _answer(self, connection: Connection, asked: talk.Asked | None) -> None:
        if asked is None:
            self._send(connection, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        elif asked.stream:
            now = time.monotonic_ns()
            connection.asked = asked
            connection.place = 0
            connection.due_ns = now
            if asked.phase_us:
                connection.due_ns += (asked.phase_us * 1000 - now) % (asked.interval_us * 1000)
            self._send(connection, _STREAM_HEAD + chunk(talk.PROLOGUE))
            self._plan(connection)
        else:
            body = talk.plain(asked.events)
            self._send(connection, _HEAD % (b"application/json", b"content-length: %d" % len(body)) + body)

    def _plan(self, connection: Connection) -> None:
        heapq.heappush(self._due, (connection.due_ns, next(self._number), connection))

    def _event(self, connection: Connection) -> None:
        """Send the event that is due, and plan the next; after the last delta, one interval later, the end."""
        asked = connection.asked
        if asked is None or not connection.open:
            return
        if connection.place == asked.events:
            connection.asked = None
            self._send(connection, chunk(talk.epilogue(asked.events)) + chunk(b""))
            return
        self._send(connection, chunk(talk.delta(connection.place, time.monotonic_ns(), connection.due_ns)))
        connection.place += 1
        connection.due_ns += asked.interval_us * 1000
        self._plan(connection)

    def _send(self, connection: Connection, data: bytes) -> None:
        data = connection.unsent + data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if bool(connection.unsent) != (sent < len(data)):
            waits = select.EPOLLOUT if sent < len(data) else 0
            self._ready.modify(connection.sock, select.EPOLLIN | waits)
        connection.unsent = data[sent:]

    def _close(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            del self._connections[connection.sock.fileno()]
            connection.sock.close()


def main() -> None:
    """Serve on a free port of the loopback address."""
    sharp_timers()
    upstream = Upstream()
    print(f"upstream listening on http://127.0.0.1:{upstream.port}", flush=True)
    gc.freeze()
    gc.disable()
    upstream.serve()


if __name__ == "__main__":
    main()
