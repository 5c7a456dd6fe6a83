"""The routes that give a key another text, or its budgets another figure.

The paths can hold a key: they are not logged.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
from fastapi import APIRouter

from tproxy.manage import records
from tproxy.manage.asked import KeyRegenerate, ResetTo, without_nulls
from tproxy.manage.auth import Asker
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Unprocessable
from tproxy.manage.fields import until_us
from tproxy.manage.keys import answer, digest, shown_once, text_and_subject
from tproxy.manage.permit import Who
from tproxy.manage.translation import changed
from tproxy.store import money
from tproxy.store.subjects import KEY, Subject


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["keys"])

    @routes.post("/key/regenerate")
    async def regenerate(asked: KeyRegenerate, who: Who) -> dict[str, Any]:
        """Make a new key in place of the one in `key`, with its name, terms and spend. It is shown this once."""
        if asked.key is None:
            raise Unprocessable("key is needed", param="key")
        return await _regenerate(desk, who, asked.key, asked)

    @routes.post("/key/{key}/regenerate")
    async def regenerate_at(key: str, who: Who, asked: KeyRegenerate | None = None) -> dict[str, Any]:
        """The same, with the key or its hash in the path."""
        return await _regenerate(desk, who, key, asked or KeyRegenerate())

    @routes.post("/key/{key}/reset_spend")
    async def reset_spend(key: str, asked: ResetTo) -> dict[str, Any]:
        """Let the key's budgets count so many dollars as spent in their present periods. The ledger's rows stay."""
        id = digest(key)

        def reset(connection: sqlite3.Connection) -> list[Subject]:
            records.changeable(records.there(connection, desk, KEY, id))
            money.set_spent(connection, KEY, id, asked.reset_to, desk.clock(), desk.zone())
            return []

        await desk.directory.apply(reset)
        return await answer(desk, await desk.look(lambda connection: records.found(connection, KEY, id)))

    return routes


async def _regenerate(desk: Desk, who: Asker, key: str, asked: KeyRegenerate) -> dict[str, Any]:
    old, now_us = digest(key), desk.clock()
    asked = without_nulls(asked)
    text, new = text_and_subject(desk, who, asked.new_key, "new_key")
    grace_us = None if asked.grace_period is None else until_us(asked.grace_period, now_us)
    before = await desk.look(lambda connection: records.there(connection, desk, KEY, old))
    records.changeable(before)
    # The team and the budget that are asked for are looked up before: a regeneration sees the key alone.
    await desk.look(lambda connection: records.warn_of_no_team(connection, before, asked))
    shared = await desk.look(lambda connection: records.shared_terms(connection, before, asked))

    def how(key: Subject) -> Subject:
        terms = key.terms if shared.terms == before.terms else shared.terms
        return msgspec.structs.replace(
            changed(msgspec.structs.replace(key, terms=terms), asked, now_us),
            last4=new.last4,
            updated_us=now_us,
            updated_by=who.name,
        )

    made = await desk.directory.regenerate(old, new.id, how, grace_us)
    if asked.spend is not None:
        spend = asked.spend

        def set_spent(connection: sqlite3.Connection) -> list[Subject]:
            money.set_spent(connection, KEY, new.id, spend, now_us, desk.zone())
            return []

        await desk.directory.apply(set_spent)
    return await shown_once(desk, text, made)
