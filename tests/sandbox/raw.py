"""A client that sends bytes and shows what came back, byte for byte: for answers that no library would accept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import h11
import trio

from tproxy.sandbox.server import Sandbox

PATIENCE = 10  # seconds after which a test has failed


@dataclass
class Answer:
    """What came back. `wire` is all of it; `complete`: the answer's framing was honoured to its end."""

    wire: bytes
    reset: bool = False
    informational: list[int] = field(default_factory=list)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: int = 0
    complete: bool = False
    trailing: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def ask(*, stream: bool = False, text: str = "Hello, world", **members: Any) -> dict[str, Any]:
    """The body of a Messages request."""
    return {
        "model": "claude-opus-5-5",
        "max_tokens": 1000,
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
    } | members


def request(
    target: str = "/v1/messages",
    body: bytes | dict[str, Any] | None = None,
    *,
    script: str = "",
    method: str | None = None,
    headers: tuple[str, ...] = ("x-api-key: key",),
    close: bool = True,
) -> bytes:
    """The bytes of a request."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} HTTP/1.1", "Host: sandbox", *headers]
    if script:
        lines.append(f"X-Sandbox: {script}")
    if close:
        lines.append("Connection: close")
    if body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


async def connect(sandbox: Sandbox) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", sandbox.port)


async def read_all(stream: trio.abc.Stream) -> tuple[bytes, bool]:
    """All bytes to the end, and whether the end was a reset."""
    wire = bytearray()
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.checkpoint()
        try:
            while data := await stream.receive_some():
                wire += data
        except trio.BrokenResourceError:
            return bytes(wire), True
    return bytes(wire), False


def parsed(wire: bytes, *, reset: bool = False, method: str = "POST") -> Answer:
    """Read an answer as h11's client does; what breaks the rules ends the reading."""
    answer = Answer(wire, reset)
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1_000_000)
    client.send(h11.Request(method=method, target="/", headers=[("host", "sandbox")]))
    client.send(h11.EndOfMessage())
    client.receive_data(wire)
    client.receive_data(b"")
    try:
        while True:
            event = client.next_event()
            if isinstance(event, h11.InformationalResponse):
                answer.informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
                answer.chunks += event.chunk_start
            elif isinstance(event, h11.EndOfMessage):
                answer.complete = not reset
                answer.trailing = client.trailing_data[0]
                return answer
            else:
                return answer
    except h11.RemoteProtocolError:
        return answer


async def exchange(sandbox: Sandbox, data: bytes) -> Answer:
    """Send bytes on a connection of their own and read to its end."""
    async with await connect(sandbox) as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(data)
        wire, reset = await read_all(stream)
    return parsed(wire, reset=reset, method="HEAD" if data.startswith(b"HEAD ") else "GET")


async def until(stream: trio.abc.Stream, mark: bytes) -> bytes:
    """Read until what came holds `mark`."""
    wire = bytearray()
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.checkpoint()
        while mark not in wire:
            data = await stream.receive_some()
            assert data, f"the connection ended before {mark!r}: {bytes(wire)!r}"
            wire += data
    return bytes(wire)
