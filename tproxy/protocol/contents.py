"""What the messages and the tools of a request can demand: the part of `demand.py` that goes into their depth.

Blocks and tools are told apart by their `type`. One that is not known here has no bound, because it could stand for
anything; known ones belong to one of a few sorts, and the tables below say to which.

Source: Anthropic's API reference for Messages, and the pages on images, PDFs, server tools and the advisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_MAX_COUNT: Final = 2**40  # above any count that is meant
_MAX_ADVISORS: Final = 16

# Blocks whose words stand in the body.
_WORDS: Final = frozenset(
    {
        *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "tool_removal"),
        *("fallback", "mcp_tool_listing", "web_fetch_tool_result_error"),
    }
)
# Blocks that hold other blocks in their `content`.
_HOLDERS: Final = frozenset(
    {"tool_result", "mcp_tool_result", "web_fetch_tool_result", "web_fetch_result", "search_result"}
)
# Blocks with results that only the upstream can read, at whatever length.
_SEALED: Final = frozenset(
    {
        *("web_search_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result"),
        *("text_editor_code_execution_tool_result", "advisor_tool_result", "compaction"),
    }
)

# Blocks that bring definitions of tools with them, each as often as it is named.
_REFERENCES: Final = frozenset({"tool_reference", "tool_search_tool_result", "tool_addition"})

# Tools by the beginning of their type. The first are described to the model by the upstream, in words we do not see.
_CLIENT_TOOLS: Final = ("bash_", "text_editor_", "memory_", "computer_", "browser_")
_SEARCH, _FETCH, _TOOL_SEARCH, _ADVISOR = "web_search_", "web_fetch_", "tool_search_tool_", "advisor_"
# From this version on they run inside code execution, unless they are told not to.
_IN_CODE: Final = "20260209"


class Unbounded(Exception):
    """There is no bound; the message says why, in words for people."""


@dataclass(frozen=True, slots=True)
class Advisor:
    """A model that another one may ask, up to `uses` times in a request."""

    model: str
    uses: int
    max_tokens: int | None


@dataclass(slots=True)
class Contents:
    """What was met so far in blocks and tools. Most members are those of `demand.Demand`.

    `lengths` is of data that stands in the blocks under a name (`spans.cut`). Every method may raise `Unbounded`.
    """

    lengths: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    image_bytes: int = 0
    tools: bool = False
    whole_window: str | None = None
    searches: int = 0
    server_tools: bool = False
    advisors: list[Advisor] = field(default_factory=list)

    def take_blocks(self, content: Any) -> None:
        """Go through a content: a text, or blocks, and the blocks within them."""
        waiting = [content]
        while waiting:
            block = waiting.pop()
            if isinstance(block, list):
                waiting += block
            elif isinstance(block, dict):
                waiting.append(self._block(kind_of(block), block))
            elif block is not None and not isinstance(block, str):
                raise Unbounded("a content is neither a text nor made of blocks")

    def _block(self, kind: str, block: dict[str, Any]) -> Any:
        """Take a block. Returns the content within it that is to be gone through too, if any."""
        if kind in _WORDS:
            return None
        if block.get("citations"):
            self.whole_window = "it asks for citations, for which documents are cut into numbered pieces"
        if kind in _HOLDERS:
            return block.get("content")
        if kind in ("image", "document"):
            return self._source(kind, block.get("source"))
        if kind in _SEALED:
            self.whole_window = "it holds results that only the upstream can read"
            return None
        if kind in _REFERENCES:
            self.whole_window = "it refers to tools, whose definitions the model may read again each time"
            tool = block.get("tool")
            if isinstance(tool, dict) and tool.get("type") == "tool_definition":
                self.take_tools([tool.get("definition")])
            return None
        if kind == "container_upload":
            raise Unbounded("it gives a file to a container, which is billed by time")
        raise Unbounded("a block in it is of a kind that is not known")

    def _source(self, kind: str, source: Any) -> Any:
        how = source.get("type") if isinstance(source, dict) else None
        if kind == "image" and how in ("base64", "url", "file"):
            self.images += 1
            data = source.get("data")
            if how == "base64" and isinstance(data, str):
                self.image_bytes += self.lengths.get(data, len(data))
        elif how in ("base64", "url", "file"):
            self.whole_window = "it holds a document, whose length shows only when it is read"
        elif how == "content":
            return source.get("content")
        elif how != "text":
            raise Unbounded(f"the source of a block of kind {kind} is not known")
        return None

    def take_tools(self, tools: Any) -> None:
        """Go through definitions of tools."""
        for tool in list_of(tools, "tools"):
            if not isinstance(tool, dict):
                raise Unbounded("a tool in it is not an object")
            self.tools = True
            kind = kind_of(tool, default="custom")
            if kind.startswith(_CLIENT_TOOLS):
                self.whole_window = "the upstream describes one of its tools to the model in words of its own"
            elif kind.startswith((_SEARCH, _FETCH, _TOOL_SEARCH, _ADVISOR)):
                self._server_tool(kind, tool)
            elif kind.startswith("code_execution_"):
                raise Unbounded("it lets code be run in a container, which is billed by time")
            elif kind == "mcp_toolset":
                raise Unbounded("it lets MCP servers be called as often as the model likes")
            elif kind != "custom":
                raise Unbounded("a tool in it is of a kind that is not known")

    def _server_tool(self, kind: str, tool: dict[str, Any]) -> None:
        self.server_tools = True
        name, _, version = kind.rpartition("_")
        uses = count_of(tool.get("max_uses"), "max_uses")
        if kind.startswith((_SEARCH, _FETCH)) and version >= _IN_CODE and tool.get("allowed_callers") != ["direct"]:
            raise Unbounded(f"code may call its tool {name[:20]} as often as it likes; allowed_callers can forbid that")
        if kind.startswith(_SEARCH):
            if uses is None:
                raise Unbounded("its web search has no max_uses")
            self.searches += uses
        elif kind.startswith(_ADVISOR):
            model = tool.get("model")
            if uses is None or not isinstance(model, str):
                raise Unbounded("its advisor has no max_uses, or no model")
            if len(self.advisors) == _MAX_ADVISORS:
                raise Unbounded("it has more advisors than are looked at")
            self.advisors.append(Advisor(model, uses, count_of(tool.get("max_tokens"), "max_tokens")))


def kind_of(block: dict[str, Any], default: str = "") -> str:
    """The `type` of a block or a tool."""
    kind = block.get("type")
    if kind is None:
        return default
    return kind if isinstance(kind, str) else ""


def list_of(value: Any, name: str) -> list[Any]:
    """A list; an empty one for null.

    Raises:
        Unbounded: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unbounded(f"{name} is not a list")
    return value


def count_of(value: Any, name: str) -> int | None:
    """A count of tokens or uses; None for null.

    Raises:
        Unbounded: it is something else.
    """
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise Unbounded(f"{name} is not a count")
    return value
