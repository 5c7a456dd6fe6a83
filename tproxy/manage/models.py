"""Which models there are and what they cost, in the shapes of OpenAI and LiteLLM; and how the proxy is.

The models are those that have a price: the upstream may serve others, which then go through unpriced. `/v1/models` is
not here: it is the passthrough's, and the upstream answers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query

from tproxy.flow.allow import matches
from tproxy.manage.auth import Asker, for_any_key
from tproxy.manage.desk import Desk
from tproxy.manage.faults import NotFound
from tproxy.manage.permit import asker
from tproxy.manage.span import today
from tproxy.protocol.prices import Model, holding
from tproxy.store.subjects import TEAM, USER

# LiteLLM's names for a price of one token.
_COSTS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
}
_TEAM_S: Final = "all-team-models"  # on a key's list: what its team may use

Who = Annotated[Asker, Depends(asker)]


def router(desk: Desk) -> APIRouter:
    """The routes of models and of health."""
    routes = APIRouter(tags=["models"])

    @routes.get("/models")
    @for_any_key
    async def listed(who: Who) -> dict[str, Any]:
        """The models that the key may use."""
        table = desk.prices().table.models
        return {
            "data": [
                {"id": id, "object": "model", "created": _created(table.get(id)), "owned_by": "anthropic"}
                for id in _allowed(desk, who)
            ],
            "object": "list",
        }

    @routes.get("/model/info")
    @routes.get("/v2/model/info")
    @for_any_key
    async def info(who: Who, litellm_model_id: Annotated[str | None, Query(max_length=256)] = None) -> dict[str, Any]:
        """The models that the key may use, with their prices; or one of them."""
        ids = [id for id in _allowed(desk, who) if litellm_model_id in (None, id)]
        if litellm_model_id is not None and not ids:
            raise NotFound("There is no such model, or the key may not use it.", param="litellm_model_id")
        return {"data": [_info(desk, id) for id in ids]}

    @routes.get("/model_group/info")
    @for_any_key
    async def groups(who: Who) -> dict[str, Any]:
        """The same by group; each model is a group of its own."""
        return {
            "data": [
                {"model_group": id, "providers": ["anthropic"], "mode": "chat"} | _facts(desk, id)
                for id in _allowed(desk, who)
            ]
        }

    @routes.get("/health", tags=["health"])
    async def health() -> dict[str, Any]:
        """Whether exchanges are served now. No model is called to find out."""
        endpoint, why = {"model": "anthropic/*", "custom_llm_provider": "anthropic"}, desk.unready()
        healthy = [endpoint] if why is None else []
        unhealthy = [] if why is None else [endpoint | {"error": why}]
        return {
            "healthy_endpoints": healthy,
            "unhealthy_endpoints": unhealthy,
            "healthy_count": len(healthy),
            "unhealthy_count": len(unhealthy),
        }

    @routes.get("/health/backlog", tags=["health"])
    async def backlog() -> dict[str, int]:
        """How many exchanges run now."""
        return {"in_flight_requests": desk.running()}

    return routes


def _allowed(desk: Desk, who: Asker) -> Sequence[str]:
    """The models that are on every list that has a say: the key's, its team's and its user's."""
    ids = list(desk.models())
    key = who.subject
    if key is None:
        return ids
    find = desk.directory.find
    team = find(TEAM, key.team) if key.team is not None else None
    user = find(USER, key.user) if key.user is not None else None
    lists = [() if _TEAM_S in key.models else key.models]
    lists += [subject.models for subject in (team, user) if subject is not None]
    return [id for id in ids if all(not names or matches(id, names) for names in lists)]


def _info(desk: Desk, id: str) -> dict[str, Any]:
    about = {"id": id, "db_model": False, "litellm_provider": "anthropic", "mode": "chat"} | _facts(desk, id)
    return {"model_name": id, "litellm_params": {"model": f"anthropic/{id}"}, "model_info": about}


def _facts(desk: Desk, id: str) -> dict[str, Any]:
    """Prices of today in dollars a token, for short prompts where long ones cost more, and sizes; None if unknown."""
    model = desk.prices().table.models.get(id)
    price = None if model is None else holding(model.price, today(desk.clock()), 0)
    facts: dict[str, Any] = {
        name: _per_token(getattr(price, of)) if price is not None else None for name, of in _COSTS.items()
    }
    facts["max_input_tokens"] = None if model is None else model.context
    facts["max_output_tokens"] = None if model is None else model.max_output
    return facts


def _per_token(per_million: Fraction | None) -> float | None:
    return None if per_million is None else float(per_million / 1_000_000)


def _created(model: Model | None) -> int:
    """The day from which its first price holds, in seconds since the epoch; 0 where that is not told."""
    first = min((price.since for price in model.price), default=date.min) if model is not None else date.min
    return 0 if first == date.min else int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())
