"""The routes of tags that have budgets or lists of models. A tag needs no row to be used and billed."""

from __future__ import annotations

import sqlite3
from typing import Any

from fastapi import APIRouter, Response

from tproxy.manage import asked as bodies
from tproxy.manage import records
from tproxy.manage.answering import told
from tproxy.manage.auth import reads
from tproxy.manage.desk import Desk
from tproxy.manage.fields import PAGE_MAX, PageNumber, PageSize
from tproxy.manage.permit import Who
from tproxy.store.subjects import TAG


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["tags"])

    @routes.post("/tag/new")
    async def new(asked: bodies.TagAsked, who: Who) -> dict[str, Any]:
        """Give a tag a row."""
        made = await records.create(desk, records.new(desk, who, TAG, asked.name), asked)
        return {"message": "Tag created.", "tag": await records.show_one(desk, made)}

    @routes.post("/tag/update")
    async def update(asked: bodies.TagAsked, who: Who) -> dict[str, Any]:
        """Change a tag."""
        changed = await records.amend(desk, who, TAG, asked.name, asked)
        return {"message": "Tag updated.", "tag": await records.show_one(desk, changed)}

    @routes.post("/tag/info")
    @reads
    async def info(asked: bodies.TagsNamed) -> Response:
        """Some tags by their names."""

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            found = [records.found(connection, TAG, name) for name in dict.fromkeys(asked.names)]
            return {page["name"]: page for page in records.rows(connection, desk, found)}

        return await told(desk, read)

    @routes.get("/tag/list")
    async def list_tags(page: PageNumber = 1, size: PageSize = PAGE_MAX) -> Response:
        """The tags that have rows, newest first."""
        return await told(desk, lambda connection: records.listed(connection, desk, TAG, page, size)[0])

    @routes.post("/tag/delete")
    async def delete(asked: bodies.TagNamed) -> dict[str, Any]:
        """Take a tag's row away; what was spent under it stays in the ledger."""
        await desk.directory.delete(TAG, asked.name)
        return {"message": "Tag deleted."}

    return routes
