"""Everything that can end an exchange early, named by who broke it.

A fault is raised where it is found and answered where the request came in (`flow/proxy.py`; once it is admitted,
`flow/exchange.py`). It knows its HTTP status,
its Anthropic error type and its own code, so that an official SDK raises the typed exception that fits, and a
program can tell tproxy's refusals from Anthropic's by `error.details.error_code`.

- `ClientFault`: the request is at fault; the client can mend it.
- `ClientGone`: nobody is left to answer.
- `UpstreamFault`: the upstream broke its side.
- `OurFault`: tproxy cannot do its part.

A message is shown to clients and written to logs: it never holds a secret, and nothing of a body but a model's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

Header = tuple[bytes, bytes]


class Fault(Exception):
    """Base of all faults that are answered with an error envelope.

    Args:
        message: one sentence: what was wrong, where, and what to do.
        headers: extra response headers, such as `retry-after`.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal"
    headers: Sequence[Header] = ()

    def __init__(self, message: str, *, headers: Sequence[Header] | None = None) -> None:
        super().__init__(message)
        self.message = message
        if headers is not None:
            self.headers = headers


class ClientFault(Fault):
    """The request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class BadRequest(ClientFault):
    """Malformed message, unsafe target, unreadable body."""


class RouteUnknown(ClientFault):
    """Nothing is served at this path."""

    status = 404
    type = "not_found_error"
    code = "route_unknown"


class BodyTooLarge(ClientFault):
    status = 413
    type = "request_too_large"
    code = "body_too_large"


class BodyTimeout(ClientFault):
    status = 408
    type = "timeout_error"
    code = "body_timeout"


class AuthenticationFault(ClientFault):
    """Who asks is not known. Claude Code repeats a plain 401 for a minute, hence the header."""

    status = 401
    type = "authentication_error"
    headers = ((b"x-should-retry", b"false"),)


class KeyMissing(AuthenticationFault):
    code = "key_missing"


class KeyUnknown(AuthenticationFault):
    code = "key_unknown"


class KeyExpired(AuthenticationFault):
    code = "key_expired"


class KeyBlocked(AuthenticationFault):
    code = "key_blocked"


class PermissionFault(ClientFault):
    """The caller is known and may not do this."""

    status = 403
    type = "permission_error"


class ModelNotAllowed(PermissionFault):
    code = "model_not_allowed"


class RouteNotAllowed(PermissionFault):
    code = "route_not_allowed"


class CustomerBlocked(PermissionFault):
    code = "customer_blocked"


class BudgetExceeded(ClientFault):
    """The money is spent, or this request alone cannot fit what is left: repeating it is in vain."""

    status = 402
    type = "billing_error"
    code = "budget_exceeded"
    headers = ((b"x-should-retry", b"false"),)


class BudgetReserved(ClientFault):
    """The money is there, but other running exchanges hold it. They will settle."""

    status = 429
    type = "rate_limit_error"
    code = "budget_reserved"
    headers = ((b"retry-after", b"1"),)


class RateLimited(ClientFault):
    """Too many requests or tokens within a minute, or too many requests at a time. `retry-after` says when."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"


class LoopDetected(ClientFault):
    """The request has been through this process before (RFC 9110 section 7.6.3)."""

    status = 508
    type = "api_error"
    code = "loop_detected"


class ClientGone(Exception):
    """The client closed its connection, or took nothing for too long. There is no one to answer."""


class UpstreamFault(Fault):
    """The upstream did not keep its side. Before its head this is answered; after it, the answer is cut."""

    status = 502
    type = "api_error"
    code = "upstream_broken"


class UpstreamUnreachable(UpstreamFault):
    """No connection: name, TCP or TLS failed. Nothing of the request was sent."""

    code = "upstream_unreachable"


class UpstreamBroken(UpstreamFault):
    """The connection ended, or what came was not HTTP, before the answer was whole."""


class UpstreamTimeout(UpstreamFault):
    status = 504
    type = "timeout_error"
    code = "upstream_timeout"


class OurFault(Fault):
    """tproxy cannot do its part now; the request was not at fault."""

    status = 503
    code = "unavailable"


class LedgerUnavailable(OurFault):
    code = "ledger_unavailable"


class Overloaded(OurFault):
    """What the running exchanges hold together has reached its bound."""

    code = "overloaded"
    headers = ((b"retry-after", b"1"),)


class Draining(OurFault):
    code = "draining"
    headers = ((b"retry-after", b"1"),)


class Internal(OurFault):
    """A bug of ours. The log has the traceback; the client gets the exchange's id to quote."""

    status = 500
    code = "internal"


def envelope(fault: Fault, request_id: str) -> bytes:
    """The JSON body for a fault, in the form of Anthropic's errors (API reference, "Errors").

    Args:
        fault: what is answered.
        request_id: the exchange's id, as in `x-tproxy-id`.
    """
    return json.dumps(
        {
            "type": "error",
            "error": {"type": fault.type, "message": fault.message, "details": {"error_code": fault.code}},
            "request_id": request_id,
        },
        separators=(",", ":"),
    ).encode()
