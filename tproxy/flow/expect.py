"""What an exchange will probably cost, going by what exchanges like it recently came to.

    exchange has ended ──► learn: tokens by class, beside the size of its body
    exchange begins    ──► expect: the dearer of the recent ones, scaled to the size of this body, at today's prices

- "The dearer" is the 90th percentile of a caller's last 32 exchanges with a model; of fewer than ten, the dearest. The
  input, which mostly comes from the prompt cache or mostly does not, and the output are looked at apart.
- A caller that is new to a model has little to go by. Then the tokens per byte are those that all callers of the model
  had of late, and so is the output, where that is more than 1,024 tokens. The class of the input is the one that is
  paid at a first time: a cache write where the body uses the cache, else plain input. It is never less than what the
  caller has had so far.
- Nobody has asked this model yet: 2.5 bytes a token (the newer tokenizers make more of code, hardly of anything else),
  and 1,024 tokens of output.
- Tokens are kept, not money: a new price holds at once for what was learnt before.
- The base64 data of images and PDFs is no text: a span of it counts as a fixed number of bytes, or a share of them.

What is kept is bounded: so many pairs of caller and model, those used last. It does not outlive the process.

Not looked at: what advisors and compactions cost, which stands in no total of tokens; an exchange that has them comes
to more than is expected here, and is held more for while it runs.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from msgspec import Struct

from tproxy.protocol.prices import canonical
from tproxy.protocol.pricing import Bill, Cost, PriceBook, Tokens
from tproxy.protocol.spans import cut, data_spans
from tproxy.store.base import Closing

_RECENT: Final = 32
_RECENT_OF_ALL: Final = 128
_ENOUGH: Final = 4  # exchanges of a caller from which on it is judged by itself
_ENOUGH_OF_ALL: Final = 8
_MAX_PAIRS: Final = 10_000
_MAX_MODELS: Final = 256

_FIRST_OUTPUT: Final = 1_024
_TOKENS_PER_MILLION_BYTES: Final = 400_000
_WINDOW: Final = 1_000_000  # of a model whose own is not known

# What a token of each class weighs, roughly: only to tell which of several inputs is the dearer one.
_WEIGHTS: Final = (100, 125, 200, 10)
_INPUT, _WRITE_5M, _WRITE_1H = 0, 1, 2

_BASE64: Final = re.compile(rb"[A-Za-z0-9+/=\\]+")
_LOOKED_AT: Final = 256  # bytes of data, to tell base64 from a text
_PDF: Final = b"JVBERi"  # "%PDF" in base64
_BYTES_OF_IMAGE: Final = 4_000
_BYTES_OF_PDF: Final = 16  # of base64 data for one of text
_FAST: Final = re.compile(rb'"speed"\s*:\s*"fast"')
_HOUR: Final = re.compile(rb'"ttl"\s*:\s*"1h"')

Classes = tuple[int, int, int, int]  # tokens uncached, written for 5 minutes, written for an hour, and read


@dataclass(frozen=True, slots=True)
class Expected:
    """What an exchange is expected to come to. `nano` is None, and `output_nano` 0, where no price is known. `size` is
    that of its body, in bytes of text."""

    input_tokens: int
    output_tokens: int
    nano: int | None
    output_nano: int = 0
    size: int = field(default=0, compare=False)


class _Past(Struct, frozen=True, gc=False):
    """An exchange that has ended, or one that is thought of. `size` is in bytes of text, `prompt` is the sum of `input`
    and `heft` what it weighs: reckoned once, for they are asked for with each request."""

    size: int
    input: Classes
    output: int
    prompt: int
    heft: int
    searches: int = 0
    speed: str | None = None
    geo: str | None = None

    def tokens(self, prompt: int, output: int) -> Tokens:
        """The tokens by class, were the prompt of another length."""
        was = self.prompt or 1
        uncached, write_5m, write_1h, read = [-(-count * prompt // was) for count in self.input]
        return Tokens(uncached, write_5m, write_1h, read, output)


def _past(
    size: int, tokens: Classes, output: int, searches: int = 0, speed: str | None = None, geo: str | None = None
) -> _Past:
    heft = sum(count * weight for count, weight in zip(tokens, _WEIGHTS, strict=True))
    return _Past(size, tokens, output, sum(tokens), heft, searches, speed, geo)


Key = TypeVar("Key")


class _Recent(Generic[Key]):
    """The last exchanges under each of so many keys, those used last."""

    def __init__(self, keys: int, each: int) -> None:
        self._keys, self._each = keys, each
        self._kept: OrderedDict[Key, deque[_Past]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: Key, past: _Past) -> None:
        if key not in self._kept:
            self._kept[key] = deque(maxlen=self._each)
            if len(self._kept) > self._keys:
                self._kept.popitem(last=False)
        self._kept[key].append(past)
        self._kept.move_to_end(key)

    def of(self, key: Key) -> Sequence[_Past]:
        kept = self._kept.get(key)
        if kept is None:
            return ()
        self._kept.move_to_end(key)
        return kept


class Expectations:
    """What callers' exchanges recently came to. Nothing here waits."""

    def __init__(self, *, pairs: int = _MAX_PAIRS) -> None:
        self._own: _Recent[tuple[str, str]] = _Recent(pairs, _RECENT)
        self._all: _Recent[str] = _Recent(_MAX_MODELS, _RECENT_OF_ALL)

    def __len__(self) -> int:
        """How many pairs of caller and model are known."""
        return len(self._own)

    def expect(
        self, caller: str, model: str, body: bytes, max_tokens: int | None, prices: PriceBook, at_us: int
    ) -> Expected:
        """What an exchange is expected to come to.

        Args:
            caller: the stable id of who asks.
            model: as asked; empty where that is not known.
            body: the plain body of the request.
            max_tokens: as asked.
            at_us: when the request was accepted, in microseconds since the epoch.
        """
        model = canonical(model)
        known = prices.table.models.get(model)
        window = _WINDOW if known is None or known.context is None else known.context
        size = text_bytes(body)
        own = self._own.of((caller, model))
        if len(own) < _ENOUGH:
            own = [*own, self._first(model, body, size)]
        # Of fewer than ten, `_high` is the highest: the guess at a first one only holds where the others are below.
        output = _high([past.output for past in own])
        if max_tokens is not None:
            output = min(output, max_tokens)
        prompts, weights = _scaled(own, size, window)
        at = weights.index(_high(weights))
        cost = _price(own[at], prompts[at], output, model, prices, at_us)
        if cost is None:
            return Expected(_high(prompts), output, None, size=size)
        return Expected(_high(prompts), output, cost.total_nano, cost.output_nano, size)

    def learn(self, caller: str, model: str, size: int, closing: Closing) -> None:
        """Take what an exchange came to. To be called for those whose figures are exact.

        Args:
            caller, model: as `expect` was asked.
            size: as it told.
        """
        if closing.input_tokens is None or closing.output_tokens is None or closing.cost_nano == 0:
            return  # a refusal that is not billed says nothing of those that are
        past = _past(
            size,
            (
                closing.input_tokens,
                closing.cache_write_5m_tokens or 0,
                closing.cache_write_1h_tokens or 0,
                closing.cache_read_tokens or 0,
            ),
            closing.output_tokens,
            closing.web_searches or 0,
            closing.speed,
            closing.geo,
        )
        model = canonical(model)
        self._own.add((caller, model), past)
        self._all.add(model, past)

    def _first(self, model: str, body: bytes, size: int) -> _Past:
        """An exchange of a caller who is new to the model."""
        per_million, output = _TOKENS_PER_MILLION_BYTES, _FIRST_OUTPUT
        shared = self._all.of(model)
        if len(shared) >= _ENOUGH_OF_ALL:
            per_million = _high([min(past.prompt, past.size) * 1_000_000 // max(past.size, 1) for past in shared])
            output = max(output, _high([past.output for past in shared]))
        kind = _INPUT
        lean, _ = cut(body)
        if b'"cache_control"' in lean:
            kind = _WRITE_1H if _HOUR.search(lean) else _WRITE_5M
        input_ = [0, 0, 0, 0]
        input_[kind] = -(-size * per_million // 1_000_000)
        fast = b'"fast"' in lean and _FAST.search(lean) is not None
        return _past(size, (input_[0], input_[1], input_[2], input_[3]), output, speed="fast" if fast else None)


def _scaled(pasts: Iterable[_Past], size: int, window: int) -> tuple[list[int], list[int]]:
    """How many tokens the prompts would have, were their bodies of another size, and what they would weigh.

    More tokens than bytes cannot come from the text of the body, but from what it refers to: those do not grow with it.
    """
    prompts, weights = [], []
    for past in pasts:
        was = prompt = past.prompt
        if was <= past.size:
            prompt = -(-was * size // (past.size or 1))
        if prompt > window:
            prompt = window
        prompts.append(prompt)
        weights.append(past.heft * prompt // (was or 1))
    return prompts, weights


def text_bytes(body: bytes) -> int:
    """The bytes of a body that are text, or stand for as many tokens as so much text: no base64 data."""
    size = len(body)
    for start, end in data_spans(body):
        length = end - start
        if _BASE64.fullmatch(body, start, start + _LOOKED_AT):
            text = length // _BYTES_OF_PDF if body.startswith(_PDF, start) else min(length, _BYTES_OF_IMAGE)
            size += text - length
    return size


def _high(values: Sequence[int]) -> int:
    """The 90th percentile: the smallest of the values that is not below nine tenths of them."""
    return sorted(values)[-(-9 * len(values) // 10) - 1]


def _price(past: _Past, prompt: int, output: int, model: str, prices: PriceBook, at_us: int) -> Cost | None:
    """What such an exchange costs at the prices of its day; as plain input where it has no price as it was."""
    as_it_was = Bill(
        model, at_us, past.tokens(prompt, output), web_searches=past.searches, speed=past.speed, geo=past.geo
    )
    plain = Bill(model, at_us, Tokens(input=prompt, output=output), web_searches=past.searches)
    for bill in (as_it_was, plain):
        cost = prices.price(bill)
        if isinstance(cost, Cost):
            return cost
    return None
