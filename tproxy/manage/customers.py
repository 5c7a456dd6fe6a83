"""The routes of customers, at `/customer` and, as LiteLLM has it too, at `/end_user`."""

from __future__ import annotations

import sqlite3
from typing import Any

from fastapi import APIRouter, Response

from tproxy.manage import asked as bodies
from tproxy.manage import records
from tproxy.manage.answering import told
from tproxy.manage.auth import Asker
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Invalid, Unprocessable
from tproxy.manage.fields import PAGE_MAX, InQuery, PageNumber, PageSize
from tproxy.manage.permit import Who
from tproxy.manage.translation import own_terms
from tproxy.store import subject_rows
from tproxy.store.subjects import CUSTOMER, Subject

PREFIXES = ("/customer", "/end_user")


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["customers"])
    for prefix in PREFIXES:
        _add(routes, desk, prefix)
    return routes


def _add(routes: APIRouter, desk: Desk, prefix: str) -> None:
    @routes.post(f"{prefix}/new")
    async def new(asked: bodies.CustomerAsked, who: Who) -> dict[str, Any]:
        """Make a customer, with a shared budget or one of its own."""
        _one_of(asked)
        subject = records.new(desk, who, CUSTOMER, asked.user_id)
        return await records.show_one(desk, await records.create(desk, subject, asked))

    @routes.post(f"{prefix}/update")
    async def update(asked: bodies.CustomerAsked, who: Who) -> dict[str, Any]:
        """Change a customer; one that was first seen in a request, too."""
        _one_of(asked)
        return await records.show_one(desk, await records.amend(desk, who, CUSTOMER, asked.user_id, asked))

    @routes.post(f"{prefix}/delete")
    async def delete(asked: bodies.UsersNamed) -> dict[str, Any]:
        """Delete customers, all of those that are named or none. What they spent stays in the ledger."""
        ids = list(dict.fromkeys(asked.user_ids))
        await desk.directory.apply(lambda _: (), gone=[(CUSTOMER, id) for id in ids])
        return {"deleted_customers": len(ids), "message": f"Deleted {len(ids)} customers."}

    @routes.get(f"{prefix}/info")
    async def info(end_user_id: InQuery = None) -> Response:
        """A customer."""
        if not end_user_id:
            raise Unprocessable("end_user_id is needed", param="end_user_id")
        return await told(
            desk,
            lambda connection: records.rows(connection, desk, [records.found(connection, CUSTOMER, end_user_id)])[0],
        )

    @routes.get(f"{prefix}/list")
    async def list_customers(page: PageNumber = 1, size: PageSize = PAGE_MAX) -> Response:
        """The customers, newest first: a list, of which `page` and `size` give a part."""
        return await told(desk, lambda connection: records.listed(connection, desk, CUSTOMER, page, size)[0])

    @routes.post(f"{prefix}/block")
    async def block(asked: bodies.UsersNamed, who: Who) -> dict[str, Any]:
        """Serve nothing on behalf of these customers, also where they have never been seen."""
        return {"blocked_users": await _block(desk, who, asked.user_ids, True)}

    @routes.post(f"{prefix}/unblock")
    async def unblock(asked: bodies.UsersNamed, who: Who) -> dict[str, Any]:
        """Serve these customers again."""
        return {"unblocked_users": await _block(desk, who, asked.user_ids, False)}


def _one_of(asked: bodies.CustomerAsked) -> None:
    if asked.budget_id is not None and (own := own_terms(asked)):
        raise Invalid(f"Give budget_id or {own[0]}, not both.", param="budget_id")


async def _block(desk: Desk, who: Asker, ids: list[str], blocked: bool) -> list[dict[str, Any]]:
    named = [bodies.CustomerAsked(user_id=id, blocked=blocked) for id in dict.fromkeys(ids)]

    def steps(connection: sqlite3.Connection) -> list[Subject]:
        return [
            records.amended(
                connection,
                desk,
                subject_rows.get(connection, CUSTOMER, each.user_id) or records.new(desk, who, CUSTOMER, each.user_id),
                each,
            )
            for each in named
        ]

    return await records.show(desk, await desk.directory.apply(steps))
