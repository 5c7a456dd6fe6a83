"""Who asks the management API, and what they may do there.

| asker | role |
|---|---|
| the master key | ADMIN |
| a virtual key with a role of its own, or without a list of routes and whose user has one | that role |
| any other virtual key | None: it may ask about itself |

The gate (`gate.py`) finds the asker before a request is routed or its body read. Which role a route needs is decided
for all routes by one dependency of the whole application (`permit.py`): reading (GET) needs VIEWER, everything else
ADMIN, unless the route says otherwise with `@reads` or `@for_any_key`. A route that says nothing is not open.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tproxy.errors import BadRequest, Header
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Forbidden, Invalid, Unauthorized
from tproxy.protocol.headers import deciding_credential
from tproxy.store import subjects
from tproxy.store.subjects import ADMIN, VIEWER, Subject

ASKER: Final = "tproxy.asker"  # where the gate leaves the asker in the ASGI scope

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks.

    `role` is ADMIN, VIEWER or None. `subject` is the virtual key, None for the master key. `name` is what stands in
    `created_by` and `updated_by`: `master`, the id of the key's user, or the key's alias or hash. `presented` is the
    hash of the key that was sent: of one that was regenerated, `subject` is the new one.
    """

    role: str | None
    subject: Subject | None = None
    name: str = "master"
    presented: str | None = None


MASTER: Final = Asker(ADMIN)
NOBODY: Final = Asker(None, name="nobody")  # who looks at a public page


def reads(endpoint: Endpoint) -> Endpoint:
    """A route that only reads, whatever its method: VIEWER may use it. Stands below the router's own decorator."""
    endpoint.__dict__["needs"] = VIEWER
    return endpoint


def for_any_key(endpoint: Endpoint) -> Endpoint:
    """A route that any key may use; it looks at the asker itself, and shows a key only what is its own."""
    endpoint.__dict__["needs"] = None
    return endpoint


def needs(endpoint: Callable[..., Any], method: str) -> str | None:
    """The role that a route needs; None: any key will do."""
    need: str | None = getattr(endpoint, "needs", VIEWER if method in ("GET", "HEAD") else ADMIN)
    return need


def identify(desk: Desk, headers: Sequence[Header]) -> Asker:
    """Tell who asks from the header lines of a request, as on the passthrough.

    Every key takes the same way, known or not: it is hashed, and the hash is compared and looked up.

    Raises:
        Unauthorized: no key, or one that opens nothing.
        Forbidden: there is no master key, and so no management API.
        Invalid: contradicting credentials.
    """
    master = desk.master()
    if master is None:
        raise Forbidden("The management API is off: set master_key in the table [tproxy] of the configuration.")
    try:
        deciding = deciding_credential(headers)
    except BadRequest as fault:
        raise Invalid(fault.message) from None
    if deciding is None or not deciding[1]:
        raise Unauthorized("Authentication Error, No api key passed in.", param="None")
    digest = hashlib.sha256(deciding[1]).hexdigest()
    is_master = hmac.compare_digest(digest, master)
    key = desk.directory.key(digest)
    if is_master:
        return MASTER
    if key is None:
        raise Unauthorized(
            "Authentication Error, Invalid proxy server token passed: this key is not known here.",
            param="key",
            type="token_not_found_in_db",
        )
    return _let_in(desk, key)


def _let_in(desk: Desk, key: Subject) -> Asker:
    find, now_us = desk.directory.find, desk.clock()
    holder = desk.directory.holder(key)
    team = find(subjects.TEAM, holder.team) if holder.team else None
    user = find(subjects.USER, holder.user) if holder.user else None
    for each in (key, holder, team, user):
        if each is not None and each.blocked:
            what = {subjects.KEY: "Key", subjects.TEAM: "Team", subjects.USER: "User"}[each.kind]
            raise Unauthorized(
                f"Authentication Error, {what} is blocked. Update via `/{each.kind}/unblock` if you are an admin.",
                param="None",
            )
    for each in (key, holder):
        if each.expires_us is not None and each.expires_us <= now_us:
            raise Unauthorized("Authentication Error - Expired Key.", param="key", type="expired_key")
    role = holder.role
    if role is None and user is not None and not holder.routes:  # a key that is for certain routes is for no others
        role = user.role
    return Asker(role, holder, holder.user or holder.alias or holder.id, key.id)
