"""What is raised below the routes, as answers: an `ApiFault`, a fault of the proxy or of the ledger, a body that does
not validate, or a bug.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tproxy.errors import Fault
from tproxy.manage.faults import ApiFault, Invalid, NotFound, bug, content, masked, page
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.subject_rows import AliasTaken, NotThere, SubjectFault
from tproxy.store.subjects import TERMS

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")


def answer(fault: ApiFault) -> JSONResponse:
    """The answer for a fault."""
    return JSONResponse(page(fault), fault.status)


def install(app: FastAPI) -> None:
    """Let an application answer what its routes raise."""
    app.add_exception_handler(ApiFault, _api_fault)
    app.add_exception_handler(SubjectFault, _subject_fault)
    app.add_exception_handler(Fault, _proxy_fault)
    app.add_exception_handler(LedgerUnusable, _ledger_fault)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


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


async def _bug(_: Request, fault: Exception) -> JSONResponse:
    return JSONResponse(bug(), 500)  # and the exception goes on, to the gate, which logs it


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
