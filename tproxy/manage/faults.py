"""What the management API says when it does not do what was asked: in the form of LiteLLM's errors.

    {"error": {"message": …, "type": …, "param": …, "code": "404"}}

What is raised below the routes ends here, in one place: an `ApiFault`, a fault of the proxy, a body that does not
validate, or a bug, of which the answer says nothing. No answer repeats a value that was sent, but for an id or an
alias; and what in those looks like a key is masked, wherever the sentence comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tproxy.errors import Fault
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.subject_rows import AliasTaken, NotThere, SubjectFault
from tproxy.store.subjects import TERMS

# A virtual key: at the beginning of a word, or long. "must not begin with sk-ant-: …" is a sentence about keys.
_KEY: Final = re.compile(r"(?:(?<![0-9A-Za-z])sk-(?!ant-: )\S*|sk-\S{12,})[^\s'\".,:;)]")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")


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


def answer(fault: ApiFault) -> JSONResponse:
    """The answer for a fault. With 422 it has FastAPI's `detail` too, in which clients look for the field."""
    page = content(fault.status, fault.message, fault.type, fault.param)
    if isinstance(fault, Unprocessable):
        page["detail"] = [{"type": "value_error", "loc": ["body", fault.param or ""], "msg": masked(fault.message)}]
    return JSONResponse(page, fault.status)


def internal() -> JSONResponse:
    """The answer for a bug."""
    return JSONResponse(content(500, "A fault of tproxy; its log says more.", "internal_server_error"), 500)


def install(app: FastAPI) -> None:
    """Let an application answer what its routes raise."""
    app.add_exception_handler(ApiFault, _api_fault)
    app.add_exception_handler(SubjectFault, _subject_fault)
    app.add_exception_handler(Fault, _proxy_fault)
    app.add_exception_handler(LedgerUnusable, _ledger_fault)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)


async def _api_fault(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, ApiFault)  # noqa: S101
    return answer(fault)


async def _subject_fault(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, SubjectFault)  # noqa: S101
    message = str(fault).replace(f"{TERMS} ", "budget ", 1) if fault.kind == TERMS else str(fault)
    if isinstance(fault, NotThere):
        return answer(NotFound(message))
    return answer(Invalid(message, param="key_alias" if isinstance(fault, AliasTaken) else None))


async def _proxy_fault(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, Fault)  # noqa: S101
    return JSONResponse(content(fault.status, fault.message, fault.type), fault.status)


async def _ledger_fault(_: Request, fault: Exception) -> JSONResponse:
    return JSONResponse(content(503, "The ledger cannot be read now.", "no_db_connection"), 503)


async def _http(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, HTTPException)  # noqa: S101
    kinds = {404: "not_found_error", 405: "method_not_allowed"}
    kind = kinds.get(fault.status_code, "bad_request_error")
    message = {404: "Nothing is served at this path.", 405: "This path has no such method."}.get(
        fault.status_code, str(fault.detail)
    )
    return JSONResponse(content(fault.status_code, message, kind), fault.status_code, headers=fault.headers)


async def _not_valid(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, RequestValidationError)  # noqa: S101
    detail = [_clean(each) for each in fault.errors()[:20]]
    sentences = "; ".join(f"{place(each['loc'])}: {each['msg']}" for each in detail)
    param = place(detail[0]["loc"]) if detail else None
    return JSONResponse({"detail": detail, **content(422, sentences, "validation_error", param)}, 422)


def _clean(error: Mapping[str, Any]) -> dict[str, Any]:
    """One error of pydantic's, without the value that was sent. The key of a mapping is a value too."""
    loc = [part if isinstance(part, int) or _NAME.fullmatch(part) else "[key]" for part in error["loc"][:6]]
    message = str(error["msg"]).removeprefix("Value error, ")
    if loc == ["body"]:
        message = "must be a JSON object, sent with content-type: application/json"
    return {"type": error["type"], "loc": loc, "msg": masked(message)}


def place(loc: Sequence[int | str]) -> str:
    """Where an error is: `budget_limits.0.max_budget`."""
    return ".".join(str(part) for part in loc if part not in ("body", "query", "path")) or "body"
