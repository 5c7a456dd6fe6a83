"""What a request can cost at most, in whole nano-dollars: what a `hard` budget holds for it.

    most = runs of a model * (the longest prompt * the dearest class of input + the longest answer) + web searches

Rules:
- The prompt: one token for each byte of text (a token is never shorter than a byte), the most that an image can have,
  and what the upstream adds where there are tools; never more than the context window, for a longer prompt is refused.
  Where the body does not tell the length of something, it is the window. A count by the upstream, with a margin, takes
  the place of all this where it is lower: for the model asked, and for those that share its tokenizer.
- The class: a cache write where the prompt cache is used, for an hour where that is asked for anywhere; else input.
- The answer: `max_tokens`, and the budget for thinking where that is larger than it.
- Runs: one; ten where tools run on the upstream's side, which is where it pauses such a turn by itself. Each fallback
  runs as often again, an advisor as often as it may be used. Later runs read what tools brought: up to the window.
- Region and speed: the dearest that can be served. Who names no region may get any.
- Prices by length of prompt: the dearest that a prompt within the bound can have.
- Each run may be rounded up by half a nano-dollar in each of five parts.

What it reckons with must hold in `pricing.py`, whose prices it takes; so the cost of an answer that keeps within the
demand is never above its bound. What has no price there has no bound, and neither has a model with no known window
where one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from tproxy.protocol.contents import Unbounded
from tproxy.protocol.demand import Demand, read_demand
from tproxy.protocol.prices import Model, canonical
from tproxy.protocol.pricing import Bill, PriceBook, Tokens, Unpriced
from tproxy.protocol.tokens import generation

__all__ = ["Bound", "Unboundable", "at_least", "at_most", "count_tokens_body", "read_demand"]

# Patches of 28 by 28 pixels, of an image scaled down to at most 2,576 pixels on either side: the larger of two sizes.
_IMAGE_TOKENS: Final = (2_576 // 28) ** 2
# What tools, and a form for the answer, add to the system prompt. What is published of it is well below.
_ADDED_TOKENS: Final = 2_000
# The upstream's count is an estimate.
_COUNT_MARGIN: Final = (2, 100)
_COUNT_EXTRA: Final = 500
_MOST_RUNS: Final = 10
_LONG_CONTEXT: Final = 1_000_000
_ROUNDING: Final = 5
_NULL: Final = Raw(b"null")
_BYTES_PER_TOKEN: Final = 8  # more than texts of any language have: only to tell what is not worth counting


@dataclass(frozen=True, slots=True)
class Bound:
    """What an exchange cannot exceed."""

    nano: int


@dataclass(frozen=True, slots=True)
class Unboundable:
    """There is no such bound; `reason` says why, so that it can follow a colon."""

    reason: str


class _Counted(msgspec.Struct):
    """The members of a Messages request that count_tokens takes too (API reference, "Count tokens in a Message")."""

    model: Raw = Raw()
    system: Raw = Raw()
    messages: Raw = Raw()
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    thinking: Raw = Raw()
    cache_control: Raw = Raw()
    context_management: Raw = Raw()
    mcp_servers: Raw = Raw()
    output_config: Raw = Raw()
    output_format: Raw = Raw()
    speed: Raw = Raw()


class _Asked(_Counted):
    thread: Raw = _NULL


def at_most(demand: Demand, prices: PriceBook, at_us: int, input_tokens: int | None = None) -> Bound | Unboundable:
    """The upper bound of what a request costs.

    Args:
        at_us: when the request was accepted, in microseconds since the epoch.
        input_tokens: what the upstream's count_tokens says, where it was asked.
    """
    try:
        if demand.unbounded is not None:
            raise Unbounded(demand.unbounded)
        return Bound(_at_most(demand, prices, at_us, input_tokens))
    except Unbounded as why:
        return Unboundable(str(why))


def at_least(demand: Demand, prices: PriceBook, at_us: int) -> int:
    """The lowest that `at_most` can come to once the upstream has counted the input; 0 where that cannot be told.

    What does not fit even then need not be counted.
    """
    lowest = at_most(demand, prices, at_us, demand.text_bytes // _BYTES_PER_TOKEN)
    return lowest.nano if isinstance(lowest, Bound) else 0


def count_tokens_body(body: bytes) -> bytes | None:
    """The body that asks count_tokens about the input of a Messages request; None where that could not cover it.

    Each value keeps every byte. What else the body holds is passed over, so this costs one pass over its bytes.
    """
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (ValueError, RecursionError):
        return None
    if asked.thread != _NULL or not memoryview(asked.messages):
        return None
    pieces: list[bytes | memoryview] = []
    for name in _Counted.__struct_fields__:
        value = memoryview(getattr(asked, name))
        if value:
            pieces += [b"," if pieces else b"{", b'"%b":' % name.encode(), value]
    return b"".join([*pieces, b"}"])


@dataclass(frozen=True, slots=True)
class _Run:
    """One model that may answer: how often, and at most what each time."""

    model: str
    times: int
    prompt: int
    output: int
    cached: bool
    cached_1h: bool
    fast: bool


def _at_most(demand: Demand, prices: PriceBook, at_us: int, counted: int | None) -> int:
    attempts = [(demand.model, demand.max_tokens, demand.thinking_tokens, demand.fast)]
    for each in demand.fallbacks:
        output = demand.max_tokens if each.max_tokens is None else each.max_tokens
        thinking = max(each.thinking_tokens, demand.thinking_tokens)
        attempts.append((each.model, output, thinking, each.fast or demand.fast))

    runs = []
    for name, max_tokens, thinking, fast in attempts:
        model = _model(name, prices)
        prompt = _prompt(demand, model, counted if _share_tokenizer(name, demand.model) else None)
        output = _output(model, max_tokens)
        output += thinking if thinking > output else 0
        times = _MOST_RUNS if demand.server_tools else 1
        # What tools brought is written to the cache for five minutes, also where nobody asked for that.
        cached = demand.cached or demand.server_tools
        runs.append(_Run(name, times, prompt, output, cached, demand.cached_1h, fast))
    for advisor in demand.advisors:
        model = _model(advisor.model, prices)
        prompt, output = _window(model, demand, "it is asked as an advisor"), _output(model, advisor.max_tokens)
        runs.append(_Run(advisor.model, advisor.uses * len(attempts), prompt, output, True, True, demand.fast))

    total = sum(run.times * _dearest(run, demand.geo, prices, at_us) for run in runs if run.times)
    if demand.searches:
        bill = Bill(demand.model, at_us, Tokens(), web_searches=demand.searches * len(attempts))
        total += _price(bill, prices)
    return total


def _model(name: str, prices: PriceBook) -> Model:
    model = prices.table.models.get(canonical(name))
    if model is None:
        raise Unbounded(f"no price is known for the model {name[:100]!r}")
    return model


def _share_tokenizer(one: str, other: str) -> bool:
    one, other = canonical(one), canonical(other)
    return one == other or (generation(one) is not None and generation(one) == generation(other))


def _window(model: Model, demand: Demand, why: str) -> int:
    if model.context is None:
        raise Unbounded(f"{why}, and the context window of {model.id!r} is not known")
    return max(model.context, _LONG_CONTEXT) if demand.long_context else model.context


def _prompt(demand: Demand, model: Model, counted: int | None) -> int:
    """The longest prompt, in tokens."""
    if demand.server_tools:
        return _window(model, demand, "it lets tools bring in text")
    limits = []
    if counted is not None and demand.countable:
        limits.append(counted + -(-counted * _COUNT_MARGIN[0] // _COUNT_MARGIN[1]) + _COUNT_EXTRA)
    if demand.whole_window is None:
        added = _ADDED_TOKENS if demand.tools else 0
        limits.append(demand.text_bytes + demand.images * _IMAGE_TOKENS + added)
    if not limits or model.context is not None:
        limits.append(_window(model, demand, demand.whole_window or ""))
    return min(limits)


def _output(model: Model, max_tokens: int | None) -> int:
    output = model.max_output if max_tokens is None else max_tokens
    if output is None:
        raise Unbounded(f"nothing says how long an answer of {model.id!r} may be")
    return output


def _dearest(run: _Run, geo: str | None, prices: PriceBook, at_us: int) -> int:
    """What one run costs at most."""
    model = _model(run.model, prices)
    classes = ["input"]
    if run.cached:
        classes += ["cache_read", "cache_write_5m"]
    if run.cached_1h:
        classes.append("cache_write_1h")
    # The dearest prompt is the longest, or the longest one that is still priced as a shorter one.
    prompts = {run.prompt, *(row.over for row in model.price if 0 <= row.over < run.prompt)}
    found: list[int] = []
    fault = ""
    for speed in ("standard", "fast") if run.fast else ("standard",):
        for prompt in prompts:
            for kind in classes:
                tokens = Tokens(**{kind: prompt}, output=run.output)
                bill = Bill(run.model, at_us, tokens, speed=speed, geo=geo or _dearest_geo(model, prices))
                cost = prices.price(bill)
                if isinstance(cost, Unpriced):
                    fault = cost.reason
                else:
                    found.append(cost.total_nano)
    if not found:
        raise Unbounded(fault)
    return max(found) + _ROUNDING


def _dearest_geo(model: Model, prices: PriceBook) -> str | None:
    factors = {**prices.table.geo, **model.geo}
    return max(factors, key=lambda geo: factors[geo], default=None)


def _price(bill: Bill, prices: PriceBook) -> int:
    cost = prices.price(bill)
    if isinstance(cost, Unpriced):
        raise Unbounded(cost.reason)
    return cost.total_nano + _ROUNDING
