"""The `usage` objects of one answer, merged into one, and whether its figures can be trusted.

A value that is not null overwrites the one before it; none is added. A value of a wrong type is passed over and
counted as odd, and so is a usage that is larger than any answer's.
Not known here: the events that hold these objects (`usage`), and prices.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

_MAX_COUNT = 2**32  # far above any answer; as money, the sum of a thousand such counts is still 63 bits
_MAX_USAGE_BYTES = 64 * 1024
_MAX_ITERATIONS = 256
_MAX_TEXT = 256
_NULL = Raw(b"null")
_decode = msgspec.json.Decoder(dict[str, Any]).decode

_CACHE_WRITES = "cache_writes"  # of both lifetimes

# Where a value stands in a usage object (the object within it, if any, and the name), and our name for it.
_COUNTS = (
    ("", "input_tokens", "input_tokens"),
    ("", "output_tokens", "output_tokens"),
    ("", "cache_read_input_tokens", "cache_read_tokens"),
    ("", "cache_creation_input_tokens", _CACHE_WRITES),
    ("cache_creation", "ephemeral_5m_input_tokens", "cache_write_5m_tokens"),
    ("cache_creation", "ephemeral_1h_input_tokens", "cache_write_1h_tokens"),
    ("output_tokens_details", "thinking_tokens", "thinking_tokens"),
    ("server_tool_use", "web_search_requests", "web_searches"),
    ("server_tool_use", "web_fetch_requests", "web_fetches"),
)
_TEXTS = (("service_tier", "service_tier"), ("speed", "speed"), ("inference_geo", "geo"))


class Counts(Struct, frozen=True, kw_only=True):
    """Tokens by class. `input_tokens` is the uncached part; `thinking_tokens` are a part of `output_tokens`.

    A cache write whose lifetime is not told is one of five minutes.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    thinking_tokens: int | None = None
    web_searches: int | None = None
    web_fetches: int | None = None


class Iteration(Counts, frozen=True, kw_only=True):
    """One run of a model within an answer. `kind` is `message`, `fallback_message`, `compaction` or
    `advisor_message`; `model` is `None` where the answer does not name it: it is then the model asked for."""

    kind: str
    model: str | None = None


class Usage(Counts, frozen=True, kw_only=True):
    """The `usage` of one answer (API reference, "Messages").

    The top level is the sum of the `message` iterations or, after a fallback, the attempt that served, and leaves out
    compaction and advisors. Where there are `iterations`, they are what is billed; given only once they are final.
    """

    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None
    iterations: tuple[Iteration, ...] | None = None


class MergedUsage:
    """What the usage objects of one answer have said so far. `odd` counts what was passed over."""

    __slots__ = ("_iterations", "_values", "odd")

    def __init__(self) -> None:
        self.odd = 0
        self._values: dict[str, Any] = {}
        self._iterations: tuple[Iteration, ...] = ()

    def merge(self, raw: Raw) -> bool:
        """Take a usage object; one that is absent or null says nothing. Returns whether it tells `output_tokens`."""
        if not len(memoryview(raw)) or raw == _NULL:
            return False
        usage = self._decoded(raw)
        self._merge_counts(usage, self._values)
        for name, field in _TEXTS:
            value = usage.get(name)
            if isinstance(value, str):
                self._values[field] = value[:_MAX_TEXT]
            elif value is not None:
                self.odd += 1
        iterations = usage.get("iterations")
        if isinstance(iterations, list) and len(iterations) <= _MAX_ITERATIONS:
            self._iterations = tuple(found for item in iterations if (found := self._iteration(item)))
        elif iterations is not None:
            self.odd += 1
        return _count(usage.get("output_tokens")) is not None

    def read(self, *, final: bool) -> tuple[Usage | None, bool]:
        """The usage as merged, with its iterations if it is `final`; and whether its figures are in doubt: some of it
        was odd, or a figure that every run of a model has, if only as 0, was never told."""
        if not self._values:
            return None, self.odd > 0
        iterations = self._iterations if final else ()
        usage = Usage(iterations=iterations or None, **_split(self._values))
        for each in (usage, *iterations):
            if each.input_tokens is None or each.output_tokens is None:
                return usage, True
        return usage, self.odd > 0

    def _decoded(self, raw: Raw) -> dict[str, Any]:
        try:
            if len(memoryview(raw)) <= _MAX_USAGE_BYTES:
                return _decode(raw)
        except (ValueError, RecursionError):
            pass
        self.odd += 1
        return {}

    def _merge_counts(self, usage: dict[str, Any], into: dict[str, Any]) -> None:
        for group, name, field in _COUNTS:
            holder = usage.get(group) if group else usage
            value = holder.get(name) if isinstance(holder, dict) else holder
            if value is None:
                continue
            count = _count(value) if isinstance(holder, dict) else None
            if count is None:
                self.odd += 1
            else:
                into[field] = count

    def _iteration(self, item: object) -> Iteration | None:
        if not isinstance(item, dict) or not isinstance(kind := item.get("type"), str):
            self.odd += 1
            return None
        model, counts = item.get("model"), dict[str, Any]()
        self._merge_counts(item, counts)
        if model is not None and not isinstance(model, str):
            self.odd, model = self.odd + 1, None
        return Iteration(kind=kind, model=model, **_split(counts))


def _count(value: object) -> int | None:
    """A count, which JSON may also spell `5.0`."""
    if type(value) is int:
        return value if 0 <= value <= _MAX_COUNT else None
    return _count(int(value)) if type(value) is float and value.is_integer() else None


def _split(values: dict[str, Any]) -> dict[str, Any]:
    """The values with their cache writes by lifetime. The total is a later word than the split: what is above the
    split goes to the five minutes, as does all of it where there is no split."""
    total = values.get(_CACHE_WRITES)
    if total is None:
        return values
    told = values.copy()
    del told[_CACHE_WRITES]
    told["cache_write_1h_tokens"] = long = min(values.get("cache_write_1h_tokens", 0), total)
    told["cache_write_5m_tokens"] = total - long
    return told
