"""`/spend/calculate`: what an exchange would cost, or what an answer did, at the prices of today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import trio
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from tproxy.manage.auth import reads
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Invalid, NotFound, Unprocessable
from tproxy.money import to_dollars
from tproxy.protocol.counts import MergedUsage
from tproxy.protocol.pricing import Bill, IterationTokens, Tokens, Unpriced
from tproxy.protocol.tokens import TokenCounter
from tproxy.protocol.usage import Iteration, Usage

_PORTION: Final = 2_048

Messages = Annotated[list[dict[str, Any]], Field(max_length=10_000)]


class Asked(BaseModel):
    """`model` with `messages`, or `completion_response`: an answer of Anthropic's, or one in OpenAI's form."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(max_length=256)] | None = None
    messages: Messages | None = None
    completion_response: dict[str, Any] | None = None


def add(routes: APIRouter, desk: Desk) -> None:
    """Add the routes of costs."""

    @routes.post("/spend/calculate")
    @reads
    async def calculate(asked: Asked) -> dict[str, Any]:
        """The cost in dollars. Of `messages` it is an estimate of the input alone, from their text."""
        answered = asked.completion_response
        if answered is not None:
            model = answered.get("model") or asked.model
            bill, tokens = _bill_of(answered, _named(model), desk.clock()), None
        elif asked.messages is not None:
            model = _named(asked.model)
            tokens = await trio.to_thread.run_sync(_counted, asked.messages, model)
            bill = Bill(model=model, at_us=desk.clock(), tokens=Tokens(input=tokens))
        else:
            raise Invalid("Give either `messages` with a `model`, or `completion_response`.", param="messages")
        cost = desk.prices().price(bill)
        if isinstance(cost, Unpriced):
            raise NotFound(f"No price is known: {cost.reason}.", param="model")
        result: dict[str, Any] = {"cost": to_dollars(cost.total_nano), "cost_nano": cost.total_nano}
        if tokens is not None:
            result |= {"estimated": True, "prompt_tokens": tokens}
        return result


def _named(model: object) -> str:
    if not isinstance(model, str) or not model:
        raise Invalid("The name of a model is missing.", param="model")
    return model.removeprefix("anthropic/")


def _counted(messages: list[dict[str, Any]], model: str) -> int:
    """The tokens of all texts. They are counted bit by bit, as nothing else runs while one text is searched."""
    counter = TokenCounter()
    for text in _texts(messages):
        for start in range(0, len(text), _PORTION):
            counter.feed("text_delta", text[start : start + _PORTION])
        counter.feed("text_delta", "\n")
    return counter.tokens(model)


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    """All texts of messages: that of a message, and of each block of its content, tool results included."""
    pending: list[Any] = [messages]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(reversed(item))
        elif isinstance(item, Mapping):
            pending.extend(item[name] for name in ("text", "thinking", "content") if name in item)


def _bill_of(answered: Mapping[str, Any], model: str, now_us: int) -> Bill:
    usage = answered.get("usage")
    if not isinstance(usage, Mapping):
        raise Unprocessable("has no usage", param="completion_response")
    merged = MergedUsage()
    merged.merge(msgspec.Raw(msgspec.json.encode(_as_anthropic(usage))))
    found, in_doubt = merged.read(final=True)
    if found is None or in_doubt:
        raise Unprocessable("has a usage that tells too little, or tells it oddly", param="completion_response")
    return Bill(
        model=model,
        at_us=now_us,
        tokens=_tokens(found),
        web_searches=found.web_searches or 0,
        speed=found.speed,
        geo=found.geo,
        batch=found.service_tier == "batch",
        iterations=None
        if found.iterations is None
        else tuple(IterationTokens(each.kind, each.model, _tokens(each)) for each in found.iterations),
    )


def _as_anthropic(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A usage in OpenAI's form in Anthropic's; there, what was read from the cache is a part of the prompt."""
    prompt = usage.get("prompt_tokens")
    if "input_tokens" in usage or not isinstance(prompt, int):
        return usage
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    cached = cached if isinstance(cached, int) and 0 <= cached <= prompt else 0
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens"),
    }


def _tokens(usage: Usage | Iteration) -> Tokens:
    return Tokens(
        input=usage.input_tokens or 0,
        cache_write_5m=usage.cache_write_5m_tokens or 0,
        cache_write_1h=usage.cache_write_1h_tokens or 0,
        cache_read=usage.cache_read_tokens or 0,
        output=usage.output_tokens or 0,
    )
