"""What an answer cost: token counts in, whole nano-dollars out, or a reason why no price is known.

    part  = sum of tokens * price * fast * geo * batch, over the attempts that are billed
    total = input + output + cache read + cache write + tools

Rules:
- Exact whole-number arithmetic, never a float: in a unit so small that every product of four amounts is a whole number
  of it. Each of the five parts is rounded once, to the nearest nano-dollar, a tie to the even neighbour (so that many
  small rows do not drift one way); the total is the sum of the rounded parts.
- Never a guess: an unknown model, region, speed, kind of iteration or day is `Unpriced` with a reason, not 0.
- `iterations` are billed one by one, each at its own model and by the length of its own prompt; the counts of the
  whole answer only where there are none. An executor's attempt that was declined before any output is not billed.
- A price has days of validity; what counts is the UTC day of `Bill.at_us`.
- Every cost names the `version` of the prices it was made with: their date and a hash, those of overrides included.

Source: Anthropic's pages on pricing, prompt caching, fast mode, data residency, batches, compaction, the advisor
tool, and refusals and fallback. What cannot be computed from usage is in docs/prices.md.

This file does not know the JSON of usage, the clock, or how prices are written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Final

from msgspec import Struct

from tproxy.protocol.prices import AMOUNT_DECIMALS, Model, PriceFault, Table, canonical, holding

__all__ = ["Bill", "Cost", "IterationTokens", "PriceBook", "PriceFault", "Tokens", "Unpriced", "built_in"]

_CLASSES: Final = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
_ATTEMPTS: Final = frozenset({"message", "fallback_message"})  # by the executor; only these can be declined
_AT_ASKED_MODEL: Final = frozenset({"message", "compaction"})  # where the entry names none
_AT_OWN_MODEL: Final = frozenset({"fallback_message", "advisor_message"})

_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_NANO_PER_TOKEN: Final = 1_000  # at one dollar per million tokens
_NANO_PER_DOLLAR: Final = 1_000_000_000
_UNITS: Final[int] = 10 ** (4 * AMOUNT_DECIMALS)  # in a nano-dollar: a price and three factors multiply
_MAX_RATES: Final = 1_024


class Tokens(Struct, frozen=True, gc=False):
    """Counts as the upstream reports them. `input` is the uncached part only; thinking is in `output`."""

    input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0

    @property
    def prompt(self) -> int:
        """All that the model read: what a tier by prompt length goes by."""
        return self.input + self.cache_write_5m + self.cache_write_1h + self.cache_read


class IterationTokens(Struct, frozen=True):
    """One entry of `usage.iterations`: `kind` is its `type`, `model` is None where it names none."""

    kind: str
    model: str | None
    tokens: Tokens


class Bill(Struct, frozen=True):
    """What is to be priced.

    Attributes:
        model: the one that served, as the answer names it.
        at_us: when the request was accepted, in microseconds since the epoch.
        tokens: counts of the whole answer; looked at only where there are no `iterations`.
        web_searches: `usage.server_tool_use.web_search_requests` of the whole answer.
        speed: `usage.speed`.
        geo: `usage.inference_geo`.
        batch: whether it is a line of a batch's results.
        iterations: `usage.iterations`, in their order.
        refused_unbilled: whether the answer is a refusal that came before any output.
        asked_model: the model asked for, where a fallback made it differ from `model`; iterations that name no
            model are priced at it.
    """

    model: str
    at_us: int
    tokens: Tokens
    web_searches: int = 0
    speed: str | None = None
    geo: str | None = None
    batch: bool = False
    iterations: tuple[IterationTokens, ...] | None = None
    refused_unbilled: bool = False
    asked_model: str | None = None


class Cost(Struct, frozen=True, gc=False):
    """Whole nano-dollars at list price. `total_nano` is the sum of the parts."""

    total_nano: int
    input_nano: int
    output_nano: int
    cache_read_nano: int
    cache_write_nano: int
    tools_nano: int
    version: str


class Unpriced(Struct, frozen=True, gc=False):
    """No price is known; `reason` says of what."""

    reason: str


class _NoPrice(Exception):
    """Why a bill has no price, on its way to `PriceBook.price`."""


def _billed(bill: Bill) -> Iterable[tuple[str, Tokens]]:
    """Model and counts of each attempt that is billed."""
    if bill.iterations:
        return _billed_iterations(bill, bill.iterations)
    return () if bill.refused_unbilled else ((bill.model, bill.tokens),)


def _billed_iterations(bill: Bill, iterations: Sequence[IterationTokens]) -> Iterable[tuple[str, Tokens]]:
    """Yield what is billed of `iterations`.

    An attempt without output was declined if another one served after it (its entry is the `fallback_message`) or
    if the whole answer is such a refusal. Else it is the pre-warming of a cache (`max_tokens: 0`), which is billed.
    """
    declined = bill.refused_unbilled
    for entry in reversed(iterations):
        model = entry.model
        if entry.kind in _AT_ASKED_MODEL:
            model = model or bill.asked_model or bill.model
        elif entry.kind not in _AT_OWN_MODEL:
            raise _NoPrice(f"unknown kind of iteration {entry.kind[:100]!r}")
        if not model:
            raise _NoPrice(f"an iteration of kind {entry.kind!r} names no model")
        if not (declined and entry.kind in _ATTEMPTS and entry.tokens.output == 0):
            yield model, entry.tokens
        declined = declined or entry.kind == "fallback_message"


# What a token of each of `_CLASSES` costs, in units; None where the model has no price for it.
_Rates = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices to reckon with. Made by `built_in` and `with_overrides`."""

    table: Table
    # Found once for a model, its day and its circumstances: from how many tokens of prompt on, which rates; the
    # longest prompts first.
    _rates: dict[tuple[str, int, str | None, str | None, bool], Sequence[tuple[int, _Rates]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def version(self) -> str:
        """Date and hash of the built-in prices, and of each file that overrides them."""
        return self.table.version

    def price(self, bill: Bill) -> Cost | Unpriced:
        """The cost of `bill`, or why none is known."""
        units = [0, 0, 0, 0, 0]  # by class
        searches = 0 if bill.refused_unbilled and not bill.iterations else bill.web_searches
        try:
            if searches < 0:
                raise _NoPrice("the count of web searches is negative")
            for name, tokens in _billed(bill):
                self._add(units, name, tokens, bill)
        except _NoPrice as reason:
            return Unpriced(str(reason))
        uncached, write_5m, write_1h, read, output = units
        nano_input, nano_output, nano_read = _nearest(uncached), _nearest(output), _nearest(read)
        nano_write = _nearest(write_5m + write_1h)
        tools = round(searches * self.table.web_search * _NANO_PER_DOLLAR) if searches else 0
        return Cost(
            total_nano=nano_input + nano_output + nano_read + nano_write + tools,
            input_nano=nano_input,
            output_nano=nano_output,
            cache_read_nano=nano_read,
            cache_write_nano=nano_write,
            tools_nano=tools,
            version=self.table.version,
        )

    def _add(self, units: list[int], name: str, tokens: Tokens, bill: Bill) -> None:
        """Add what one attempt costs to `units`."""
        counts = (tokens.input, tokens.cache_write_5m, tokens.cache_write_1h, tokens.cache_read, tokens.output)
        rates = self._rates_of(name, sum(counts) - tokens.output, bill)
        for i, count in enumerate(counts):
            if count:
                rate = rates[i]
                if count < 0:
                    raise _NoPrice(f"the count of {_CLASSES[i]} tokens is negative")
                if rate is None:
                    raise _NoPrice(f"model {name[:100]!r} has no price for {_CLASSES[i]} tokens")
                units[i] += count * rate

    def _rates_of(self, name: str, prompt: int, bill: Bill) -> _Rates:
        """What a token costs of an attempt with a prompt of that length."""
        key = name, bill.at_us // _DAY_US, bill.speed, bill.geo, bill.batch
        for over, rates in self._rates.get(key, ()):
            if prompt > over:
                return rates
        found = self._resolved(name, prompt, bill)  # raises where there is no price: only what has one is kept
        model = self.table.models[canonical(name)]
        # A row holds for every prompt that is longer than its bound. So the prices change at bounds alone, and below
        # the first bound without a price there is none.
        tiers = []
        for over in sorted({row.over for row in (*model.price, *model.fast)}, reverse=True):
            try:
                tiers.append((over, self._resolved(name, over + 1, bill)))
            except _NoPrice:
                break
        if len(self._rates) >= _MAX_RATES:
            self._rates.clear()
        self._rates[key] = tiers
        return found

    def _resolved(self, name: str, prompt: int, bill: Bill) -> _Rates:
        """The rates as the table says them."""
        model = self.table.models.get(canonical(name))
        if model is None:
            raise _NoPrice(f"unknown model {name[:100]!r}")
        day = date.fromordinal(_EPOCH + bill.at_us // _DAY_US)
        price = holding(model.price, day, prompt)
        if price is None:
            raise _NoPrice(f"no price of model {name[:100]!r} holds on {day}")
        factor = _NANO_PER_TOKEN * _UNITS * self._factor(model, day, prompt, bill)
        per_million = [getattr(price, kind) for kind in _CLASSES]
        return tuple(None if each is None else int(each * factor) for each in per_million)

    def _factor(self, model: Model, day: date, prompt: int, bill: Bill) -> Fraction:
        """Fast mode, region and batch together. They multiply; only fast mode and batches exclude each other."""
        factor = self.table.batch if bill.batch else Fraction(1)
        if bill.speed == "fast":
            fast = holding(model.fast, day, prompt)
            if fast is None or bill.batch:
                raise _NoPrice(f"model {model.id!r} has no fast mode {'in batches' if bill.batch else f'on {day}'}")
            factor *= fast.factor
        elif bill.speed not in (None, "", "standard"):
            raise _NoPrice(f"unknown speed {bill.speed[:100]!r}")
        if bill.geo:
            region = model.geo.get(bill.geo, self.table.geo.get(bill.geo))
            if region is None:
                raise _NoPrice(f"no price is known for inference_geo {bill.geo[:100]!r}")
            factor *= region
        return factor

    def with_overrides(self, toml_bytes: bytes, place: str) -> PriceBook:
        """A book in which a user's file has the first word.

        A `[[model]]` whose id is known, be it as an alias, changes that model under all its names: the members that
        it gives take the place of the known ones, the others stay. Any other id is a new model.

        Args:
            toml_bytes: a file in the form of prices.toml (docs/prices.md).
            place: what to call the file in faults.

        Raises:
            PriceFault: with all faults of the file.
        """
        return PriceBook(self.table.overridden(toml_bytes, place))


def _nearest(units: int) -> int:
    """So many units as whole nano-dollars."""
    if not units:
        return 0
    whole, rest = divmod(units, _UNITS)
    return whole + (2 * rest + (whole & 1) > _UNITS)  # a half goes up from an odd number


@cache
def built_in() -> PriceBook:
    """The prices that tproxy comes with. Reads its own file, once; nothing else here reads any."""
    content = resources.files(__package__).joinpath("prices.toml").read_bytes()
    return PriceBook(Table({}, {}).overridden(content, "prices.toml"))
