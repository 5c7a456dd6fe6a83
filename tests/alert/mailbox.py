"""A mail server on loopback that takes all (RFC 5321): in the clear, by STARTTLS, or in TLS from the start."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial

import trio

from tests.wire.peer import CA


@dataclass
class Mailbox:
    """Attributes:
    port: where it listens.
    said: the lines of commands, in the order in which they came; those after STARTTLS begin with "tls ".
    mails: what was handed in.
    answer: to the end of a mail.
    hangs: it takes connections and says nothing.
    """

    port: int = 0
    said: list[str] = field(default_factory=list)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answer: str = "250 taken"
    hangs: bool = False
    connections: int = 0

    @property
    def passwords(self) -> list[str]:
        """User and password of each AUTH PLAIN."""
        plain = [line.split("AUTH PLAIN ")[1] for line in self.said if "AUTH PLAIN " in line]
        return [base64.b64decode(each).decode() for each in plain]


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


@asynccontextmanager
async def mailbox(*, tls: bool = False, starttls: bool = False) -> AsyncIterator[Mailbox]:
    """Open one."""
    box = Mailbox()

    async def serve(plain: trio.SocketStream) -> None:
        box.connections += 1
        if box.hangs:
            await trio.sleep_forever()
        stream: trio.abc.Stream = plain
        if tls:
            stream = trio.SSLStream(plain, server_context(), server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await _talk(box, stream, starttls)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        box.port = listener.socket.getsockname()[1]
        yield box
        nursery.cancel_scope.cancel()


async def _talk(box: Mailbox, stream: trio.abc.Stream, starttls: bool) -> None:
    kept, secure, data = bytearray(), "", bytearray()

    async def line() -> bytes:
        while b"\r\n" not in kept:
            more = await stream.receive_some()
            if not more:
                raise trio.BrokenResourceError
            kept.extend(more)
        found, _, rest = bytes(kept).partition(b"\r\n")
        kept[:] = rest
        return found

    async def say(*lines: str) -> None:
        await stream.send_all("".join(f"{each}\r\n" for each in lines).encode())

    await say("220 mailbox ESMTP")
    while True:
        command = (await line()).decode()
        box.said.append(secure + command)
        match command.upper().split(" ")[0]:
            case "EHLO":
                more = ["250-STARTTLS"] if starttls and not secure else []
                await say("250-mailbox", *more, "250-AUTH PLAIN", "250 8BITMIME")
            case "STARTTLS":
                await say("220 go ahead")
                stream = trio.SSLStream(stream, server_context(), server_side=True, https_compatible=True)
                secure = "tls "
            case "AUTH":
                await say("235 welcome")
            case "RCPT":
                box.recipients.append(command[len("RCPT TO:<") :].split(">")[0])
                await say("250 ok")
            case "DATA":
                await say("354 go ahead")
                data = bytearray()
                while (one := await line()) != b".":
                    data += one.removeprefix(b".") + b"\r\n"
                if box.answer.startswith("2"):
                    mail = message_from_bytes(bytes(data), policy=default)
                    assert isinstance(mail, EmailMessage)
                    box.mails.append(mail)
                await say(box.answer)
            case "QUIT":
                await say("221 bye")
                return
            case _:
                await say("250 ok")
