"""What the body of a Messages request can demand of the upstream: what `bound.py` reckons from.

The rule is: never less than the upstream may read in it. So

- every byte of the body counts as text that the model may read, save white space between values, the base64 data of
  images, and the few members that only the API reads;
- what the body only refers to (a URL, a file, a document that is rendered page by page, a thread, text that is sealed)
  may fill the whole context window;
- what lets the upstream go on for as long as it likes, or choose another model by itself, has no bound;
- neither has what is in doubt: a member that occurs twice, whose value is another for another reader; a member, a tool
  or a block that is not known here; a body of more text, values or escapes than are looked at.

`Demand.unbounded` then says why, in words for people. Reading never raises. A prompt cache is looked for in the raw
bytes, because a mark may stand at any depth: a spelling that could hide one counts as one.

Not known here: models and prices; messages and tools in their depth (`contents`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tproxy.protocol.contents import Advisor, Contents, Unbounded, count_of, kind_of, list_of
from tproxy.protocol.spans import count_values, cut

# Members that cost nothing by themselves, or that are read below.
_KNOWN: Final = frozenset(
    {
        *("model", "messages", "max_tokens", "system", "stream", "temperature", "top_k", "top_p", "stop_sequences"),
        *("tools", "tool_choice", "thinking", "metadata", "service_tier", "inference_geo", "speed"),
        *("cache_control", "container", "context_management", "mcp_servers", "output_config", "output_format"),
        *("diagnostics", "fallbacks", "fallback_credit_token", "billing_policy", "compaction", "thread"),
        *("user_profile_id", "workspace_id", "litellm_metadata"),
    }
)
# Of these, the model sees nothing.
_UNSEEN: Final = frozenset(
    {
        *("model", "max_tokens", "stream", "temperature", "top_k", "top_p", "stop_sequences", "metadata"),
        *("service_tier", "inference_geo", "speed", "litellm_metadata"),
    }
)
_OF_FALLBACKS: Final = frozenset({"model", "max_tokens", "output_config", "speed", "thinking"})
# Edits that only take something out of the prompt.
_CLEARING: Final = ("clear_tool_uses_", "clear_thinking_")

# These keep the time that a body takes below 0.3 s and its memory near 100 MB, whatever it holds. They are well above
# what a request with a million tokens has: its text may even be spelled in escapes, letter by letter.
_MAX_BYTES: Final = 16 * 1024 * 1024  # without data
_MAX_VALUES: Final = 100_000
_MAX_ESCAPES: Final = 3_000_000
_MAX_FALLBACKS: Final = 16
_MAX_DIGITS: Final = 32

# A letter, a digit or an underscore spelled as an escape: no encoder does that, but it could hide a name.
_DISGUISED: Final = re.compile(rb"\\u00(?:3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])")
_TTL: Final = re.compile(rb'"ttl"\s*:\s*("5m")?')


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that is tried when those before it have declined. `max_tokens` None: as the request says."""

    model: str
    max_tokens: int | None
    thinking_tokens: int
    fast: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request can demand.

    Attributes:
        unbounded: why there is no bound to it, or None.
        model, max_tokens, geo: as asked.
        thinking_tokens: the budget for thinking; usually a part of `max_tokens`.
        text_bytes: of the body, without the data of images.
        images: how many there are, of whatever size.
        tools: whether there are any, or a form for the answer: the upstream then adds to the system prompt.
        whole_window: why the input may fill the context window, or None.
        countable: whether the upstream's count of tokens covers all of the input.
        cached, cached_1h: whether something may be written to the prompt cache, and for an hour.
        searches: how many web searches there may be.
        server_tools: whether tools may run on the upstream's side, with the model asked anew after each.
        fast: whether fast mode is asked for.
        long_context: whether the beta for a window of a million tokens is asked for.
    """

    unbounded: str | None = None
    model: str = ""
    max_tokens: int | None = None
    thinking_tokens: int = 0
    text_bytes: int = 0
    images: int = 0
    tools: bool = False
    whole_window: str | None = None
    countable: bool = True
    cached: bool = False
    cached_1h: bool = False
    searches: int = 0
    server_tools: bool = False
    advisors: tuple[Advisor, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    fast: bool = False
    geo: str | None = None
    long_context: bool = False


def read_demand(body: bytes, betas: str = "") -> Demand:
    """Read what a request can demand. Never raises.

    Args:
        body: the whole body, without its content coding.
        betas: the values of the `anthropic-beta` headers, joined by commas.
    """
    try:
        lean, lengths = cut(body)
        _refuse_excess(lean)
        return _demand(_decoded(lean), lean, len(body), lengths, betas)
    except Unbounded as why:
        return Demand(unbounded=str(why))


def _refuse_excess(lean: bytes) -> None:
    """
    Raises:
        Unbounded: it takes too long to read.
    """
    if len(lean) > _MAX_BYTES:
        raise Unbounded("it holds more text than is looked at")
    if lean.count(b"\\") > _MAX_ESCAPES:
        raise Unbounded("it holds more escapes than are looked at")
    if count_values(lean, _MAX_VALUES) > _MAX_VALUES:
        raise Unbounded("it holds more values than are looked at")


def _text_bytes(value: dict[str, Any], lean: bytes) -> int:
    """How many bytes the model may see of a body without its spans of data, in the shortest spelling of its JSON."""
    try:
        return len(msgspec.json.encode({name: each for name, each in value.items() if name not in _UNSEEN}))
    except (ValueError, OverflowError, RecursionError):  # half a surrogate pair, or a number that has no short spelling
        return len(lean)


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(body.decode())
    except RecursionError:
        raise Unbounded("the body is nested too deeply to be read") from None
    except ValueError:
        raise Unbounded("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise Unbounded("the body is not a JSON object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unbounded("a member of the body occurs more than once")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _integer(digits: str) -> int | str:
    """A number; as it is spelled where that is long, which is no count either."""
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    value = float(digits) if len(digits) <= _MAX_DIGITS else math.inf
    return value if math.isfinite(value) else digits


# The only decoder at hand that tells of members that occur twice, at any depth, in one pass.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
)


def _demand(value: dict[str, Any], lean: bytes, size: int, lengths: Mapping[str, int], betas: str) -> Demand:
    """
    Args:
        value, lean: the body, decoded and not, without its spans of data.
        size: of the whole body.
        lengths: of what was cut out.

    Raises:
        Unbounded: it has no bound.
    """
    for name in value:
        if name not in _KNOWN:
            raise Unbounded(f"the member {name[:40]!r} is not known")
    _refuse_open_ends(value)
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise Unbounded("the body names no model")

    seen = Contents(lengths)
    seen.take_tools(value.get("tools"))
    seen.take_blocks(value.get("system"))
    for message in list_of(value.get("messages"), "messages"):
        if not isinstance(message, dict):
            raise Unbounded("a message is not an object")
        seen.take_blocks(message.get("content"))

    thread = value.get("thread")
    goes_on = thread is not None and thread != {"type": "create"}
    disguised = b"\\u00" in lean and _DISGUISED.search(lean) is not None
    cached = b'"cache_control"' in lean or b'"caching"' in lean or disguised or goes_on
    return Demand(
        model=model,
        max_tokens=count_of(value.get("max_tokens"), "max_tokens"),
        thinking_tokens=_thinking(value.get("thinking")),
        text_bytes=_text_bytes(value, lean) + size - len(lean) - seen.image_bytes,
        images=seen.images,
        tools=seen.tools or bool(value.get("output_config")) or bool(value.get("output_format")),
        whole_window="it goes on with a thread that the upstream holds" if goes_on else seen.whole_window,
        countable=not goes_on,
        cached=cached,
        cached_1h=cached and (disguised or goes_on or b"" in _TTL.findall(lean)),
        searches=seen.searches,
        server_tools=seen.server_tools,
        advisors=tuple(seen.advisors),
        fallbacks=tuple(_fallbacks(value.get("fallbacks"))),
        fast=_fast(value.get("speed")),
        geo=_text(value.get("inference_geo"), "inference_geo"),
        long_context="context-1m-" in betas,
    )


def _refuse_open_ends(value: dict[str, Any]) -> None:
    """
    Raises:
        Unbounded: a member lets the upstream go on for as long as it likes.
    """
    if value.get("mcp_servers"):
        raise Unbounded("it lets MCP servers be called, as often as the model likes")
    if value.get("container") is not None:
        raise Unbounded("it runs code in a container, which is billed by time")
    if value.get("compaction") is not None:
        raise Unbounded("it asks for a compaction, whose length nothing limits")
    management = value.get("context_management")
    if management is None:
        return
    for edit in list_of(management.get("edits") if isinstance(management, dict) else 0, "context_management"):
        if not isinstance(edit, dict) or not kind_of(edit).startswith(_CLEARING):
            raise Unbounded("its context_management may ask for compactions, whose number and length nothing limits")


def _fallbacks(value: Any) -> Iterator[Fallback]:
    if isinstance(value, str):
        raise Unbounded("it leaves to the upstream which model to fall back to")
    entries = list_of(value, "fallbacks")
    if len(entries) > _MAX_FALLBACKS:
        raise Unbounded("it names more fallbacks than are looked at")
    for entry in entries:
        model = entry.get("model") if isinstance(entry, dict) else None
        if not isinstance(model, str) or not entry.keys() <= _OF_FALLBACKS:
            raise Unbounded("a fallback has a form that is not known")
        max_tokens = count_of(entry.get("max_tokens"), "max_tokens")
        yield Fallback(model, max_tokens, _thinking(entry.get("thinking")), _fast(entry.get("speed")))


def _thinking(value: Any) -> int:
    """The budget for thinking, if it has one."""
    return count_of(value.get("budget_tokens"), "budget_tokens") or 0 if isinstance(value, dict) else 0


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Unbounded(f"{name} is not a text")
    return value


def _fast(value: Any) -> bool:
    if value not in (None, "standard", "fast"):
        raise Unbounded("its speed is not known")
    return bool(value == "fast")
