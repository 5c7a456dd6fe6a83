"""The dependencies of the routes: who asks, and whether they may. The rules are in `auth.py`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from tproxy.manage.auth import ASKER, Asker, needs
from tproxy.manage.faults import Forbidden, Unauthorized
from tproxy.store.subjects import ADMIN, VIEWER


async def asker(request: Request) -> Asker:
    """Dependency: who asks.

    Raises:
        Unauthorized: nobody has let them in.
    """
    found = request.scope.get(ASKER)
    if not isinstance(found, Asker):
        raise Unauthorized("Authentication Error, No api key passed in.", param="None")
    return found


Who = Annotated[Asker, Depends(asker)]


async def permitted(request: Request) -> None:
    """The dependency of every route: the asker has the role that the route needs.

    Raises:
        Unauthorized, Forbidden: not let in.
    """
    who = await asker(request)
    need = needs(request.scope["endpoint"], request.method)
    if need is None or who.role == ADMIN or (need == VIEWER and who.role == VIEWER):
        return
    held = "a key without a role" if who.role is None else "a key that may only read"
    raise Forbidden(f"This route needs the master key or a key with the role for it, and was asked with {held}.")
