"""What the management API says when it does not do what was asked: in the form of LiteLLM's errors.

    {"error": {"message": …, "type": …, "param": …, "code": "404"}}

No answer repeats a value that was sent, but for an id or an alias; and what in those looks like a key is masked,
wherever the sentence comes from. What else is raised below the routes is given this form in `handlers.py`.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

# A virtual key: at the beginning of a word, or long. "must not begin with sk-ant-: …" is a sentence about keys.
_KEY: Final = re.compile(r"(?:(?<![0-9A-Za-z])sk-(?!ant-: )\S*|sk-\S{12,})[^\s'\".,:;)]")


class ApiFault(Exception):
    """Base of what is answered as an error.

    Args:
        message: one sentence: what was wrong, and what to do. It holds no value that may be a key.
        param: the field or parameter that is at fault.
    """

    status: ClassVar[int] = 400
    type: str = "bad_request_error"

    def __init__(self, message: str, *, param: str | None = None, type: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if type is not None:
            self.type = type


class Invalid(ApiFault):
    """The request makes sense, and cannot be done: a name is taken, a limit cannot be held, a key stands in a file."""


class Unauthorized(ApiFault):
    """Who asks is not known, or may not come in any more."""

    status = 401
    type = "auth_error"


class Forbidden(ApiFault):
    """Who asks is known, and may not do this."""

    status = 403
    type = "auth_error"


class NotFound(ApiFault):
    """There is no such subject, row or route."""

    status = 404
    type = "not_found_error"


class BodyTooLarge(ApiFault):
    status = 413
    type = "request_too_large"


class BodyTimeout(ApiFault):
    status = 408
    type = "timeout_error"


class Unprocessable(ApiFault):
    """A field has a value that it cannot have."""

    status = 422
    type = "validation_error"


def content(status: int, message: str, type: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error, with keys masked."""
    return {"error": {"message": masked(message), "type": type, "param": param, "code": str(status)}}


def masked(message: str) -> str:
    """A sentence without what looks like a key."""
    return _KEY.sub("sk-...", message)


def page(fault: ApiFault) -> dict[str, Any]:
    """The JSON for a fault. With 422 it has FastAPI's `detail` too, in which clients look for the field."""
    page = content(fault.status, fault.message, fault.type, fault.param)
    if isinstance(fault, Unprocessable):
        page["detail"] = [{"type": "value_error", "loc": ["body", fault.param or ""], "msg": masked(fault.message)}]
    return page


def bug() -> dict[str, Any]:
    """The JSON for a bug, of which it says nothing. Its status is 500."""
    return content(500, "A fault of tproxy; its log says more.", "internal_server_error")
