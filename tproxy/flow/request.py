"""The head of a request as it came."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from tproxy.errors import Header
from tproxy.protocol import headers as header

Scope = dict[str, Any]


@dataclass(slots=True)
class Request:
    """Names are in the client's spelling where the server offers it; `target` is the whole of it, with the query.

    `headers` are `Fields` where the request came in: they are asked for some twenty names.

    `left` is set when the client has left; None where the server does not offer it.
    """

    method: str
    target: bytes
    headers: Sequence[Header]
    http_version: bytes
    client_address: str | None
    server_address: str | None
    scheme: str
    left: trio.Event | None = None

    @classmethod
    def of(cls, scope: Scope) -> Request:
        """Read an ASGI scope, through the extension of our own connection class where it is there."""
        transport = scope.get("extensions", {}).get("tproxy")
        query = scope["query_string"]
        client, server = scope.get("client"), scope.get("server")
        return cls(
            method=scope["method"],
            target=transport.target if transport else scope["raw_path"] + (b"?" + query if query else b""),
            headers=header.Fields(transport.headers if transport else scope["headers"]),
            http_version=scope["http_version"].encode(),
            client_address=client[0] if client else None,
            server_address=server[0] if server and server[1] is not None else None,
            scheme=scope["scheme"],
            left=transport.left if transport else None,
        )

    def let_go(self) -> None:
        """The header lines are not asked for any more: an answer may run for long."""
        self.headers = ()

    @property
    def is_local(self) -> bool:
        """Did it come to an address of this machine alone? None is a Unix socket."""
        return self.server_address is None or _is_loopback(self.server_address)

    def bases(self, upstream: str, prefix: bytes) -> tuple[bytes, bytes] | None:
        """The upstream's base URL, and the one under which the client knows this proxy; None if it did not say.

        A server before us that ends TLS says so in X-Forwarded-Proto. It is believed in that direction only: a client
        that lies about itself gets a link that is safer than it needs.
        """
        host = header.get(self.headers, b"host")
        if host is None:
            return None
        secure = self.scheme == "https" or header.get(self.headers, b"x-forwarded-proto") == b"https"
        return upstream.encode(), (b"https://" if secure else b"http://") + host + prefix


@functools.cache
def _is_loopback(address: str) -> bool:
    # There are only as many as are bound.
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
