"""The API's refusals: a status, a type and a message in Anthropic's envelope (API reference, "Errors")."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Header = tuple[bytes, bytes]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_MESSAGES = {
    401: "invalid x-api-key",
    402: "Your credit balance is too low to access the Anthropic API.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not Found",
    413: "Request exceeds the maximum size",
    429: "This request would exceed the rate limit for your organization of 50 requests per minute.",
    504: "The request timed out.",
    529: "Overloaded",
}

# Cloudflare answers this one before the API sees the request, and in its own words.
HTML_413 = (
    b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n"
    b"<center><h1>413 Request Entity Too Large</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
    b"</body>\r\n</html>\r\n"
)


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status; it decides the error's type.
        message: what `error.message` says; by default the usual words for that status.
        code: `error.details.error_code`, where the API names one.
        headers: further response headers.
    """

    def __init__(
        self, status: int, message: str | None = None, *, code: str | None = None, headers: Sequence[Header] = ()
    ) -> None:
        self.status = status
        self.message = message or _MESSAGES.get(status, "Internal server error")
        super().__init__(self.message)
        self.type = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        self.code = code
        self.headers = tuple(headers)

    def envelope(self, request_id: str | None) -> dict[str, object]:
        """The error as the API's JSON holds it."""
        error: dict[str, object] = {"type": self.type, "message": self.message}
        if self.code is not None:
            error["details"] = {"error_code": self.code}
        return {"type": "error", "error": error, "request_id": request_id}

    def body(self, request_id: str) -> bytes:
        """The bytes of the answer: the envelope, or Cloudflare's page for a 413 that names no code."""
        if self.status == 413 and self.code is None:
            return HTML_413
        return msgspec.json.encode(self.envelope(request_id))

    @property
    def content_type(self) -> bytes:
        return b"text/html" if self.status == 413 and self.code is None else b"application/json"


def invalid(message: str) -> ApiError:
    """A 400 with the usual type."""
    return ApiError(400, message)


def scripted(status: int, retry_after: int) -> ApiError:
    """The refusal that a script asks for by its status, with the headers that the API sends along."""
    headers: list[Header] = []
    if status in {429, 503, 529}:
        headers.append((b"x-should-retry", b"true"))
    if status == 429:
        headers.append((b"retry-after", b"%d" % retry_after))
    if 300 <= status < 400:
        headers.append((b"location", b"http://127.0.0.1:9/elsewhere"))
    return ApiError(status, headers=headers)
