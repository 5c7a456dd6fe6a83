"""The routes of budgets that others share by their `budget_id`: sets of terms.

A change of one is a change of all who share it; what one of them has set for itself, it keeps. When one is deleted,
those who shared it keep its terms as their own.
"""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any

from fastapi import APIRouter, Response

from tproxy.manage import asked as bodies
from tproxy.manage import records
from tproxy.manage.answering import told
from tproxy.manage.auth import reads
from tproxy.manage.desk import Desk
from tproxy.manage.fields import PAGE_MAX, InQuery, PageNumber, PageSize
from tproxy.manage.permit import Who
from tproxy.manage.translation import BUDGETS, LIMITS
from tproxy.store.subjects import TERMS


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["budgets"])

    @routes.post("/budget/new")
    async def new(asked: bodies.BudgetNew, who: Who) -> dict[str, Any]:
        """Make a budget."""
        subject = records.new(desk, who, TERMS, asked.budget_id or f"budget-{secrets.token_hex(8)}")
        return await records.show_one(desk, await records.create(desk, subject, asked))

    @routes.post("/budget/update")
    async def update(asked: bodies.BudgetUpdate, who: Who) -> dict[str, Any]:
        """Change a budget, and with it all who share it."""
        return await records.show_one(desk, await records.amend(desk, who, TERMS, asked.budget_id, asked))

    @routes.post("/budget/info")
    @reads
    async def info(asked: bodies.BudgetsNamed) -> Response:
        """Some budgets."""

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            return records.rows(
                connection, desk, [records.found(connection, TERMS, id) for id in dict.fromkeys(asked.budgets)]
            )

        return await told(desk, read)

    @routes.get("/budget/list")
    async def list_budgets(page: PageNumber = 1, size: PageSize = PAGE_MAX) -> Response:
        """The budgets, newest first."""
        return await told(desk, lambda connection: records.listed(connection, desk, TERMS, page, size)[0])

    @routes.get("/budget/settings")
    async def settings(budget_id: InQuery = None) -> Response:
        """The fields of a budget with their values, one by one."""

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            [page] = records.rows(connection, desk, [records.found(connection, TERMS, budget_id or "")])
            described = bodies.TermsAsked.model_fields
            return [
                {
                    "field_name": name,
                    "field_value": page[name],
                    "field_description": described[name].description or "",
                    "stored_in_db": page[name] is not None,
                }
                for name in (*BUDGETS, *LIMITS)
            ]

        return await told(desk, read)

    @routes.post("/budget/delete")
    async def delete(asked: bodies.BudgetNamed) -> dict[str, Any]:
        """Delete a budget. Those who shared it keep its terms."""
        await desk.directory.delete(TERMS, asked.id)
        return {"deleted_budget": asked.id}

    return routes
