"""Whoever looks on at a proxy in the bench: `receive` takes what it exports, `watch` scrapes it and views its streams.

Both do the least that such a program can do, since they share cores with the load. Ended by a signal.

    python -m bench.onlooker receive            prints `receiving on http://127.0.0.1:PORT`
    python -m bench.onlooker watch URL          prints `watching` once it does; the key is in $TPROXY_MASTER_KEY
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from urllib.parse import urlsplit

import trio

SCRAPE_SECONDS = 5.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: 0\r\n\r\n"
_HEAD_BYTES = 65_536


async def receive() -> None:
    """Answer every POST with 200, whatever is in it."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, _take, 0, host="127.0.0.1"))
        print(f"receiving on http://127.0.0.1:{listener.socket.getsockname()[1]}", flush=True)


async def _take(stream: trio.SocketStream) -> None:
    buffer = b""
    try:
        while True:
            while b"\r\n\r\n" not in buffer:
                if len(buffer) > _HEAD_BYTES or not (piece := await stream.receive_some(65_536)):
                    return
                buffer += piece
            head, _, rest = buffer.partition(b"\r\n\r\n")
            said = _LENGTH.search(head + b"\r\n")
            left = (int(said[1]) if said else 0) - len(rest)
            buffer = rest[left:] if left < 0 else b""
            while left > 0:
                if not (piece := await stream.receive_some(65_536)):
                    return
                left -= len(piece)
            kind = b"application/x-protobuf" if b"x-protobuf" in head else b"application/json"
            await stream.send_all(_ANSWER % kind)
    except trio.BrokenResourceError:
        return


async def watch(url: str) -> None:
    """Scrape `/metrics`, and hold `/live` open."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    async with trio.open_nursery() as nursery:
        viewing = trio.Event()
        nursery.start_soon(_ask, host, port, "/live", viewing)
        await viewing.wait()
        print("watching", flush=True)
        while True:
            await _ask(host, port, "/metrics", trio.Event())
            await trio.sleep(SCRAPE_SECONDS)


async def _ask(host: str, port: int, path: str, begun: trio.Event) -> None:
    """Read an answer to its end; `begun` is set once it has begun."""
    key = os.environ["TPROXY_MASTER_KEY"]
    head = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(head.encode())
        said = await stream.receive_some(65_536)
        if not said.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{path} was answered with {said[:200]!r}")
        begun.set()
        while await stream.receive_some(65_536):
            pass


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive"]:
            trio.run(receive)
        case ["watch", address]:
            trio.run(watch, address)
        case _:
            sys.exit(__doc__)
