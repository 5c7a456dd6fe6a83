"""The management API as one application: its routes, and the pages that describe them.

The gate (`gate.py`) stands before it, and lets nobody in whose key is not known. Here one dependency of the whole
application decides by role (`auth.py`). So a route that is added is closed until it says otherwise.

To import this file and to `build` takes half a second and 18 MB, so the server does both with
the first request (`gate.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer

from tproxy import __version__
from tproxy.manage import (
    activity,
    auth,
    budgets,
    captures,
    customers,
    docs_page,
    handlers,
    keys,
    models,
    permit,
    rotate,
    spend,
    spend_reports,
    tags,
    teams,
    users,
)
from tproxy.manage.desk import Desk

_DESCRIPTION: Final = """\
Keys, teams, users, customers, budgets, tags and what they spend, in the shapes of LiteLLM's proxy. Every path but these
two pages needs a key: Authorization: Bearer, with the master key or a key with a role.\
"""
# Decides nothing: it says in the OpenAPI document how a key is given.
_BEARER: Final = HTTPBearer(auto_error=False, description="the master key, or a key with a role")


def routers(desk: Desk) -> Sequence[APIRouter]:
    """All routes, each part's in a router of its own."""
    parts = (keys, rotate, teams, users, customers, budgets, tags, spend, spend_reports, activity, models, captures)
    return [part.router(desk) for part in parts]


def build(desk: Desk) -> FastAPI:
    """The management API. `app.state.sections` has the first segments of its paths."""
    app = FastAPI(
        title="tproxy",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_BEARER), Depends(permit.permitted)],
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    handlers.install(app)

    paths = {"/docs", "/openapi.json"}
    for router in routers(desk):
        app.include_router(router)
        paths |= {str(getattr(route, "path", "/")) for route in router.routes}
    page = docs_page.page(app.openapi())  # made once: it takes a fifth of a second

    @app.get("/docs", include_in_schema=False)
    @auth.for_any_key
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page)

    app.state.sections = frozenset(path.split("/")[1] for path in paths)
    return app
