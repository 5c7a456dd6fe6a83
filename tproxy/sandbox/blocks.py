"""The content blocks of an answer: what a model would have put out, each in its whole and its streamed form.

    thinking?   web searches*   fallback?   tool call | text

Blocks are filled in that order from one budget of output tokens, the request's `max_tokens`.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from tproxy.sandbox.asked import Asked
from tproxy.sandbox.catalogue import resolved
from tproxy.sandbox.schema import example
from tproxy.sandbox.script import Script
from tproxy.sandbox.text import Piece, count, fitted, grouped, prose, tokens

_RUN = re.compile(r"run: *(\S.*)")
_THINKING_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Block:
    """One content block.

    `start` is its `content_block_start` form; `deltas` what follows, as (delta type, text, tokens); `whole` what a
    message holds of it.
    """

    start: dict[str, Any]
    deltas: tuple[tuple[str, str, int], ...]
    whole: dict[str, Any]

    @property
    def tokens(self) -> int:
        return sum(size for _, _, size in self.deltas)


@dataclass(frozen=True, slots=True)
class Content:
    """All blocks, and why they end."""

    blocks: list[Block]
    stop_reason: str
    stop_sequence: str | None = None


def compose(asked: Asked, script: Script, name: str) -> Content:
    """What is answered.

    Args:
        name: letters that no other answer has, for the ids of tool calls.
    """
    room = asked.max_tokens
    if room == 0:  # warms the cache, and no more
        return Content([], "max_tokens")
    blocks: list[Block] = []
    if thinking := script.thinking or (_THINKING_TOKENS if _thinks(asked) else 0):
        blocks.append(_thinking(asked, script, min(thinking, room)))
        room -= blocks[-1].tokens
    for number in range(script.web_search):
        blocks += _search(f"srvtoolu_{name}{number}", room)
        room -= blocks[-2].tokens
    if script.fallback is not None:
        blocks.append(_fallback(asked.model, script.fallback))
    tool = _called(asked, script)
    if tool is not None:
        given = msgspec.json.encode(tool[1]).decode()
        block = _tool_use(f"toolu_{name}", tool[0], tool[1], fitted(grouped(tokens(given), script.per), room))
        blocks.append(block)
        return Content(blocks, "tool_use" if count(given) <= room else "max_tokens")
    pieces, stop = _text(asked, script)
    kept = fitted(pieces, room)
    if kept:
        blocks.append(_said(kept))
    if sum(size for _, size in pieces) > room:
        return Content(blocks, "max_tokens")
    return Content(blocks, "end_turn" if stop is None else "stop_sequence", stop)


def _seed(asked: Asked, script: Script) -> int:
    return zlib.crc32(asked.last_text.encode()) if script.seed is None else script.seed


def _thinks(asked: Asked) -> bool:
    return asked.thinking is not None and asked.thinking.get("type") in {"enabled", "adaptive"}


def _text(asked: Asked, script: Script) -> tuple[tuple[Piece, ...], str | None]:
    """The text in pieces, and the stop sequence that ended it."""
    pieces = prose(_seed(asked, script), script.tokens, script.per)
    if (result := asked.tool_result) is not None:
        said = f"The tool answered: {' '.join(result.split())[:200]}"
        pieces = (*grouped(tokens(said), script.per), *grouped(tokens(" " + "".join(t for t, _ in pieces)), script.per))
    if asked.stop_sequences:
        text = "".join(piece for piece, _ in pieces)
        found = [(text.index(stop), stop) for stop in asked.stop_sequences if stop and stop in text]
        if found:
            at, stop = min(found)
            return grouped(tokens(text[:at]), script.per), stop
    return pieces, None


def _called(asked: Asked, script: Script) -> tuple[str, dict[str, Any]] | None:
    """The tool that the answer calls, and its input; None where it calls none."""
    if asked.tool_result is not None:
        return None
    tools = {tool["name"]: tool for tool in asked.tools if "name" in tool}
    if script.tool is not None:
        return script.tool, _input(tools.get(script.tool, {}))
    choice = asked.tool_choice or {}
    if choice.get("type") == "none":
        return None
    command = _RUN.search(asked.last_text)
    if command is not None and "Bash" in tools:
        return "Bash", {"command": command[1].strip(), "description": "Run the command that was asked for"}
    named: Iterator[str] = (tool for tool in tools if _named(tool, asked.last_text))
    if choice.get("type") == "tool":
        named = iter((choice.get("name", ""),))
    elif choice.get("type") == "any":
        named = iter((*named, *tools))
    for tool in named:
        if tool in tools and "input_schema" in tools[tool]:
            return tool, _input(tools[tool])
    return None


def _named(tool: str, text: str) -> bool:
    """Whether a text speaks of a tool: by its whole name, or by a part (four letters or more) of a name of several."""
    if re.search(rf"\b{re.escape(tool)}\b", text):
        return True
    parts = re.split(r"[_\-.]+", tool.lower())
    return len(parts) > 1 and any(len(part) >= 4 and re.search(rf"\b{re.escape(part)}", text.lower()) for part in parts)


def _input(tool: dict[str, Any]) -> dict[str, Any]:
    given = example(tool.get("input_schema"))
    return given if isinstance(given, dict) else {}


def _thinking(asked: Asked, script: Script, size: int) -> Block:
    pieces = prose(_seed(asked, script) ^ 1, size, script.per)
    thought = "".join(text for text, _ in pieces)
    signature = base64.b64encode(zlib.compress(thought.encode())).decode()
    if asked.thinking is not None and asked.thinking.get("display") == "omitted":
        deltas: tuple[tuple[str, str, int], ...] = (("signature_delta", signature, size),)
        thought = ""
    else:
        deltas = (*(("thinking_delta", text, worth) for text, worth in pieces), ("signature_delta", signature, 0))
    return Block(
        {"type": "thinking", "thinking": "", "signature": ""},
        deltas,
        {"type": "thinking", "thinking": thought, "signature": signature},
    )


def _tool_use(id_: str, name: str, given: dict[str, Any], pieces: tuple[Piece, ...]) -> Block:
    block = {"type": "tool_use", "id": id_, "name": name, "input": {}, "caller": {"type": "direct"}}
    # The API opens each tool call with an empty delta.
    deltas = (("input_json_delta", "", 0), *(("input_json_delta", text, size) for text, size in pieces))
    whole = "".join(text for text, _ in pieces) == msgspec.json.encode(given).decode()
    return Block(block, deltas, block | {"input": given if whole else {}})


def _said(pieces: tuple[Piece, ...]) -> Block:
    return Block(
        {"type": "text", "text": ""},
        tuple(("text_delta", text, size) for text, size in pieces),
        {"type": "text", "text": "".join(text for text, _ in pieces)},
    )


def _search(id_: str, room: int) -> Iterator[Block]:
    """A web search and what it found."""
    query = {"query": "harbour weather"}
    pieces = fitted(grouped(tokens(msgspec.json.encode(query).decode())), room)
    use = {"type": "server_tool_use", "id": id_, "name": "web_search", "input": {}}
    yield Block(use, tuple(("input_json_delta", text, size) for text, size in pieces), use | {"input": query})
    found = {
        "type": "web_search_tool_result",
        "tool_use_id": id_,
        "content": [
            {
                "type": "web_search_result",
                "title": "Harbour weather",
                "url": "https://example.com/weather",
                "encrypted_content": base64.b64encode(id_.encode()).decode(),
                "page_age": "November 23, 2026",
            }
        ],
    }
    yield Block(found, (), found)


def _fallback(declined: str, served: str) -> Block:
    """Where one model's output gives way to the next; it comes whole, without deltas."""
    block = {
        "type": "fallback",
        "from": {"model": declined},
        "to": {"model": resolved(served)},
        "trigger": {"type": "refusal", "category": "cyber"},
    }
    return Block(block, (), block)
