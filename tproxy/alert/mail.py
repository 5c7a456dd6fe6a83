"""Alerts as e-mail, by SMTP (RFC 5321), with the standard library's client in a thread.

smtps:// is TLS from the first byte (RFC 8314). smtp:// begins plainly and goes on in TLS where that is offered
(STARTTLS, RFC 3207). A password is never sent without TLS but to this machine itself.

Everything that came from outside is one line, and goes through `EmailMessage`, which encodes it: no text can add a
header or a recipient.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from tproxy.alert.alert import Alert, moment
from tproxy.alert.channel import TEXT_MAX, TITLE_MAX, one_line
from tproxy.export.sink import NotTaken

STEP_SECONDS: Final = 10.0  # each read and write of the client

_PORTS: Final = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> MailServer:
        """From `smtps://user:password@mail.example.com`; user and password may be percent-encoded.

        Raises:
            ValueError: it is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError("must be smtp://[USER:PASSWORD@]HOST[:PORT] or smtps://…")
        user = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        return cls(parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme == "smtps", user, password)

    @property
    def is_local(self) -> bool:
        """Is it this machine?"""
        with suppress(ValueError):
            return ip_address(self.host).is_loopback
        return self.host == "localhost"


class Mail:
    """E-mail to fixed recipients.

    Args:
        tls: verifies the server; None: by the system's certificates.
    """

    def __init__(self, server: MailServer, sender: str, to: Sequence[str], tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._sender = sender
        self._to = tuple(to)
        self._tls = tls
        # A thread that hangs holds up the next mail, and nobody else's thread.
        self._turn = trio.CapacityLimiter(1)

    async def send(self, alert: Alert) -> None:
        """See `Channel`."""
        message = letter(alert, self._sender, self._to)
        await trio.to_thread.run_sync(self._hand_in, message, abandon_on_cancel=True, limiter=self._turn)

    def _hand_in(self, message: EmailMessage) -> None:
        server = self._server
        try:
            context = self._tls or ssl.create_default_context()
            client: smtplib.SMTP
            if server.tls:
                client = smtplib.SMTP_SSL(server.host, server.port, timeout=STEP_SECONDS, context=context)
            else:
                client = smtplib.SMTP(server.host, server.port, timeout=STEP_SECONDS)
            with client:
                client.ehlo()
                safe = server.tls
                if not safe and client.has_extn("starttls"):
                    client.starttls(context=context)
                    client.ehlo()
                    safe = True
                if server.user is not None:
                    if not safe and not server.is_local:
                        raise NotTaken("the mail server offers no TLS, and a password is not sent without", final=True)
                    client.login(server.user, server.password or "")
                client.send_message(message, self._sender, self._to)
        except smtplib.SMTPResponseException as fault:  # its text may hold what we sent
            permanent = 500 <= fault.smtp_code < 600
            raise NotTaken(f"the mail server answered with {fault.smtp_code}", final=permanent) from None
        except smtplib.SMTPRecipientsRefused:
            raise NotTaken("the mail server refuses the recipients", final=True) from None
        except (smtplib.SMTPException, OSError) as fault:
            raise NotTaken(f"no mail server: {type(fault).__name__}") from None


def letter(alert: Alert, sender: str, to: Sequence[str]) -> EmailMessage:
    """The message (RFC 5322)."""
    message = EmailMessage()
    message["Subject"] = one_line(alert.title)[:TITLE_MAX]
    message["From"] = Address("tproxy", addr_spec=sender)
    message["To"] = [Address(addr_spec=each) for each in to]
    end_us = alert.resolved_us or alert.began_us
    message["Date"] = format_datetime(datetime.fromtimestamp(end_us / 1_000_000, UTC))
    message["Message-ID"] = f"<{alert.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence notice answers it
    lines = [one_line(alert.summary)[:TEXT_MAX], "", f"Began: {moment(alert.began_us)}"]
    if alert.resolved_us is not None:
        lines.append(f"Resolved: {moment(alert.resolved_us)}")
    lines += [
        f"{name}: {one_line(str(value))[:TEXT_MAX]}" for name, value in alert.figures.items() if value is not None
    ]
    message.set_content("\n".join(lines) + "\n")
    return message
