"""A Messages request, read and checked about as strictly as the API does.

A member that the API does not know is refused by its name: so a proxy that lets a member of its own through is seen.
What is inside messages and tools is checked only where the answer depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from tproxy.sandbox.errors import ApiError, invalid

Block = dict[str, Any]

# Top-level members and their JSON types (API reference, "Create a Message", and the beta form of it).
_MEMBERS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "messages": (list,),
    "max_tokens": (int,),
    "system": (str, list),
    "stream": (bool,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "stop_sequences": (list,),
    "tools": (list,),
    "tool_choice": (dict,),
    "thinking": (dict,),
    "metadata": (dict,),
    "service_tier": (str,),
    "inference_geo": (str,),
    "speed": (str,),
    "cache_control": (dict,),
    "container": (str, dict),
    "context_management": (dict,),
    "mcp_servers": (list,),
    "output_config": (dict,),
    "output_format": (dict,),
    "diagnostics": (dict,),
    "fallbacks": (list, dict, str),
    "fallback_credit_token": (str, dict),
    "billing_policy": (dict,),
    "compaction": (dict,),
    "thread": (dict,),
    "user_profile_id": (str,),
}
_NAMES: dict[type, str] = {
    str: "string",
    list: "list",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
}
_GENERATION_ONLY = frozenset({"max_tokens", "stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the sandbox needs of a Messages request. `content` of each message is a list of blocks, never a string."""

    model: str
    max_tokens: int
    messages: list[tuple[str, list[Block]]]
    system: list[Block]
    tools: list[Block]
    stream: bool
    thinking: dict[str, Any] | None
    stop_sequences: list[str]
    tool_choice: dict[str, Any] | None
    cache_control: dict[str, Any] | None
    inference_geo: str
    speed: str | None
    context_management: bool

    @property
    def last_blocks(self) -> list[Block]:
        """The blocks of the last user message."""
        return next((blocks for role, blocks in reversed(self.messages) if role == "user"), [])

    @property
    def last_text(self) -> str:
        """The last text that the user wrote in the last user message."""
        return next((block["text"] for block in reversed(self.last_blocks) if block["type"] == "text"), "")

    @property
    def tool_result(self) -> str | None:
        """What a tool gave back, if the last message brings its result."""
        for block in reversed(self.last_blocks):
            if block["type"] == "tool_result":
                content = block.get("content") or ""
                if isinstance(content, str):
                    return content
                return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return None


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: 400.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise invalid(f"The request body is not valid JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise invalid("The request body should be a JSON object")
    return value


def read(value: dict[str, Any], *, counting: bool = False) -> Asked:
    """Check a decoded request.

    Args:
        counting: of count_tokens, which takes neither `max_tokens` nor `stream`.

    Raises:
        ApiError: 400 that names the member at fault, 404 for a model that is not there.
    """
    for name, member in value.items():
        if name not in _MEMBERS or (counting and name in _GENERATION_ONLY):
            raise invalid(f"{name}: Extra inputs are not permitted")
        if member is not None or name in {"model", "messages", "max_tokens"}:
            _typed(name, member, _MEMBERS[name])
    for name in ("model", "messages") if counting else ("model", "max_tokens", "messages"):
        if name not in value:
            raise invalid(f"{name}: Field required")
    model: str = value["model"]
    if not model.startswith("claude-"):
        raise ApiError(404, f"model: {model}")
    max_tokens: int = value.get("max_tokens", 0)
    if max_tokens < 0:
        raise invalid("max_tokens: Input should be greater than or equal to 0")
    if not value["messages"]:
        raise invalid("messages: at least one message is required")
    messages = [_message(index, message) for index, message in enumerate(value["messages"])]
    stops = value.get("stop_sequences") or []
    for index, stop in enumerate(stops):
        _typed(f"stop_sequences.{index}", stop, (str,))
    return Asked(
        model=model,
        max_tokens=max_tokens,
        messages=messages,
        system=_blocks("system", value.get("system") or []),
        tools=_tools(value.get("tools") or []),
        stream=bool(value.get("stream")),
        thinking=value.get("thinking"),
        stop_sequences=stops,
        tool_choice=value.get("tool_choice"),
        cache_control=value.get("cache_control"),
        inference_geo=value.get("inference_geo") or "global",
        speed=_choice("speed", value.get("speed"), ("standard", "fast")),
        context_management=value.get("context_management") is not None,
    )


def _typed(name: str, value: object, types: tuple[type, ...]) -> None:
    if type(value) not in types:
        _refuse_type(name, types)


def _refuse_type(name: str, types: Iterable[type]) -> NoReturn:
    raise invalid(f"{name}: Input should be a valid {' or '.join(_NAMES[type_] for type_ in types)}")


def _choice(name: str, value: str | None, words: tuple[str, ...]) -> str | None:
    if value is not None and value not in words:
        raise invalid(f"{name}: Input should be {' or '.join(map(repr, words))}")
    return value


def _message(index: int, message: object) -> tuple[str, list[Block]]:
    place = f"messages.{index}"
    if not isinstance(message, dict):
        _refuse_type(place, (dict,))
    for name in ("role", "content"):
        if name not in message:
            raise invalid(f"{place}.{name}: Field required")
    if message["role"] not in {"user", "assistant", "system"}:
        raise invalid(f"{place}.role: Input should be 'user' or 'assistant'")
    _typed(f"{place}.content", message["content"], (str, list))
    return message["role"], _blocks(f"{place}.content", message["content"])


def _blocks(place: str, content: str | list[Any]) -> list[Block]:
    """Content as a list of blocks: a string is short for one text block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    for index, block in enumerate(content):
        where = f"{place}.{index}"
        if not isinstance(block, dict):
            _refuse_type(where, (dict,))
        if not isinstance(block.get("type"), str):
            raise invalid(f"{where}.type: Field required")
        if block["type"] == "text" and not isinstance(block.get("text"), str):
            raise invalid(f"{where}.text: Field required")
    return content


def _tools(tools: list[Any]) -> list[Block]:
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            _refuse_type(f"tools.{index}", (dict,))
        if not isinstance(tool.get("name"), str) and "type" not in tool:
            raise invalid(f"tools.{index}.name: Field required")
    return tools
