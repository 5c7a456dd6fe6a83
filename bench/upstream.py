"""The upstream of a bench run: answers with deltas that carry their send time, each at its due time.

Open loop: an event is sent when it is due, whether or not the earlier ones were taken. What the socket does not take
waits here with the times it was given, so that a slow proxy finds its delay in the figures. Events go out one at a
time, each as one chunk and one write, as Anthropic sends them. Events without an interval go out as fast as they are
taken, many in a write.

A process of its own: one epoll set, no framework. It is not the sandbox, because the send time must be in the event
and its own cost must stay far below that of any subject. Prints `upstream listening on http://HOST:PORT`. With
`--tls FILE` it speaks TLS too, on the same port, to those that begin with it; the certificate of its authority is then
in the file. With `--gzip`, streams are gzipped for those that accept it.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import select
import socket
import ssl
import sys
import time
import zlib
from itertools import count
from pathlib import Path

from bench import http1, talk
from bench.timing import sharp_timers, wait

BACKLOG = 4096
READ = 65_536
FLOOD_EVENTS = 64  # in one write, when there is no interval: about 16 kB
TLS_HANDSHAKE = b"\x16"  # the first byte of a connection that speaks TLS (RFC 8446, section 5.1)
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
)
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_bench\r\ncontent-length: %d\r\n\r\n"
NOTHING_HERE = b'{"type":"error","error":{"type":"not_found_error","message":"nothing here"}}'
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
    NOTHING_HERE
)
UNKNOWN = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection:
    """One connection: at most one answer at a time."""

    __slots__ = (
        "asked",
        "begins",
        "body",
        "due_ns",
        "head",
        "held",
        "open",
        "pack",
        "place",
        "sock",
        "taken",
        "unsent",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.begins = True  # nothing has been read
        self.held = b""  # not looked at yet
        self.head = b""
        self.body: http1.Body | None = None  # of the request that is being read
        self.taken: list[bytes] = []
        self.unsent = b""
        self.asked: talk.Asked | None = None  # None: no stream runs
        self.pack: zlib._Compress | None = None
        self.place = 0
        self.due_ns = 0
        self.open = True


class Upstream:
    """The connections, and when the next event of each is due."""

    def __init__(self, *, gzip: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self._gzip = gzip
        self._tls = tls
        self._ready = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[int, int, Connection]] = []
        self._number = count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._ready.register(self._listener, select.EPOLLIN)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until the process is ended."""
        while True:
            now = time.monotonic_ns()
            while self._due and self._due[0][0] <= now:
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
        """Take what there is; of TLS all, since the epoll set does not see what is already decrypted."""
        while connection.open:
            try:
                if self._tls and connection.begins:
                    connection.begins = False
                    if connection.sock.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                        sock = connection.sock
                        connection.sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                data = connection.sock.recv(READ)
            except NOT_NOW:
                return
            except OSError:
                data = b""
            if not data:
                self._close(connection)
                return
            self._feed(connection, data)
            if not isinstance(connection.sock, ssl.SSLSocket):
                return

    def _feed(self, connection: Connection, data: bytes) -> None:
        try:
            self._take(connection, data)
        except (http1.Malformed, ValueError):
            self._close(connection)

    def _take(self, connection: Connection, data: bytes) -> None:
        """Read requests, and answer each that is whole; one that comes early waits for the end of the stream before."""
        connection.held += data
        while connection.open and connection.asked is None and connection.held:
            if connection.body is None:
                connection.head, end, rest = connection.held.partition(b"\r\n\r\n")
                if not end:
                    return
                connection.body = http1.Body(http1.headers(connection.head), rest)
            else:
                connection.body.held += connection.held
            connection.taken.append(connection.body.take())
            connection.held = connection.body.held if connection.body.ended else b""
            if connection.body.ended:
                body = b"".join(connection.taken)
                connection.body, connection.taken = None, []
                self._answer(connection, body)

    def _answer(self, connection: Connection, body: bytes) -> None:
        method, target, *_ = connection.head.split(b" ", 2)
        if not target.partition(b"?")[0].endswith(b"/messages"):
            print(f"not served: {method!r} {target!r}", file=sys.stderr, flush=True)
            self._send(connection, NOT_FOUND + (b"" if method == b"HEAD" else NOTHING_HERE))
            return
        asked = talk.Asked.read(body)
        if asked is None:
            self._send(connection, UNKNOWN)
        elif asked.stream:
            now = time.monotonic_ns()
            connection.asked = asked
            connection.place = 0
            connection.due_ns = now
            if asked.phase_us:
                connection.due_ns += (asked.phase_us * 1000 - now) % (asked.interval_us * 1000)
            coding = b""
            if self._gzip and b"gzip" in http1.headers(connection.head).get(b"accept-encoding", b""):
                connection.pack = zlib.compressobj(wbits=http1.GZIP)
                coding = b"content-encoding: gzip\r\n"
            self._send(connection, STREAM_HEAD + coding + b"\r\n" + self._chunk(connection, talk.PROLOGUE))
            self._plan(connection)
        else:
            answer = talk.plain(asked.events)
            self._send(connection, PLAIN_HEAD % len(answer) + answer)

    def _plan(self, connection: Connection) -> None:
        heapq.heappush(self._due, (connection.due_ns, next(self._number), connection))

    def _event(self, connection: Connection) -> None:
        """Send what is due, and plan the next; after the last delta, one interval later, the end."""
        asked = connection.asked
        if asked is None or not connection.open:
            return
        if connection.place == asked.events:
            connection.asked = None
            self._send(connection, self._chunk(connection, talk.epilogue(asked.events), last=True) + chunk(b""))
            connection.pack = None
            self._feed(connection, b"")
        elif asked.interval_us:
            self._send(connection, self._delta(connection, connection.due_ns))
            connection.due_ns += asked.interval_us * 1000
            self._plan(connection)
        else:
            due_ns = time.monotonic_ns()
            many = min(FLOOD_EVENTS, asked.events - connection.place)
            self._send(connection, b"".join(self._delta(connection, due_ns) for _ in range(many)))
            if not connection.unsent:  # else when all of this is taken
                self._plan(connection)

    def _delta(self, connection: Connection, due_ns: int) -> bytes:
        event = talk.delta(connection.place, time.monotonic_ns(), due_ns)
        connection.place += 1
        return self._chunk(connection, event)

    def _chunk(self, connection: Connection, data: bytes, *, last: bool = False) -> bytes:
        """A chunk of a stream, ready for the reader to unpack at once where it is gzipped."""
        if connection.pack is None:
            return chunk(data)
        return chunk(
            connection.pack.compress(data) + connection.pack.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
        )

    def _send(self, connection: Connection, data: bytes) -> None:
        """Send, behind what is still unsent; what is not taken waits until the socket has room."""
        if not connection.open:
            return
        waited = bool(connection.unsent)
        data = connection.unsent + data
        try:
            sent = connection.sock.send(data) if data else 0
        except NOT_NOW:
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.unsent = data[sent:]
        if waited != bool(connection.unsent):
            waits = select.EPOLLOUT if connection.unsent else 0
            self._ready.modify(connection.sock, select.EPOLLIN | waits)
        if waited and not connection.unsent and connection.asked and not connection.asked.interval_us:
            self._plan(connection)

    def _close(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            del self._connections[connection.sock.fileno()]
            connection.sock.close()


def certified(authority_file: Path) -> ssl.SSLContext:
    """A context with a certificate for 127.0.0.1, whose authority's certificate is written to a file."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(authority_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def main() -> None:
    """Serve on a free port of the loopback address."""
    options = argparse.ArgumentParser(prog="bench.upstream")
    options.add_argument("--gzip", action="store_true")
    options.add_argument("--tls", type=Path, metavar="FILE")
    chosen = options.parse_args()
    sharp_timers()
    upstream = Upstream(gzip=chosen.gzip, tls=certified(chosen.tls) if chosen.tls else None)
    print(f"upstream listening on http://127.0.0.1:{upstream.port}", flush=True)
    gc.freeze()
    gc.disable()
    upstream.serve()


if __name__ == "__main__":
    main()
