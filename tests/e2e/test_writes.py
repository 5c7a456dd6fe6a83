"""What one read from the upstream brought goes to the client in one write: counted at the sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from tests.e2e.house import House, open_house_before
from tests.e2e.raw import get, post, read_answer, request
from tests.wire.peer import Script, answers, close

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'1d\r\nevent: ping\ndata: {"a": "b"}\n\r\n'
END = b"0\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
POST = post("/v1/messages", b'{"model":"m","max_tokens":1,"messages":[]}')
HEAD = request("HEAD", "/v1/files/f", [("x-api-key", "k")])

# what is asked, what comes in a read of its own, and how many writes that makes
WRITES: dict[str, tuple[bytes, Script, int]] = {
    "a whole answer": (POST, answers([LENGTH + b"{}"]), 1),
    "a whole stream": (POST, answers([CHUNKED + EVENT + EVENT + END]), 1),
    "the head with an event": (POST, answers([CHUNKED + EVENT, EVENT + END]), 2),
    "the head alone": (POST, answers([CHUNKED, EVENT + END]), 2),
    "the end alone": (POST, answers([CHUNKED + EVENT, END]), 2),
    "an empty body": (POST, answers([EMPTY]), 1),
    "an answer to HEAD": (HEAD, answers([LENGTH]), 1),
    "a batch": (get("/v1/messages/batches/b"), answers([LENGTH + b"{}"]), 1),
    "a fault": (POST, close, 1),
}


def count_sends(monkeypatch: pytest.MonkeyPatch, house: House) -> list[bytes]:
    """What is sent by the sockets that the house's clients are connected to, send by send."""
    write = os.write
    sent: list[bytes] = []

    def counting(fd: int, data: bytes) -> int:
        taken = write(fd, data)
        if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            with socket.socket(fileno=os.dup(fd)) as written:
                if written.getsockname() == house.address:
                    sent.append(bytes(data[:taken]))
        return taken

    monkeypatch.setattr(os, "write", counting)
    return sent


@pytest.mark.parametrize("name", WRITES)
async def test_one_read_is_one_write(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, script, writes = WRITES[name]
    async with open_house_before(tmp_path, script) as (house, _):
        sent = count_sends(monkeypatch, house)
        async with await trio.open_tcp_stream(*house.address) as client:
            await client.send_all(asked)
            with trio.fail_after(5):
                answer = await read_answer(client, asked.split(b" ", 1)[0])
        assert answer.status == (502 if script is close else 200)
        assert len(sent) == writes
        assert all(sent)
