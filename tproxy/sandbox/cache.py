"""The prompt cache, and with it what a prompt's tokens are billed as.

A prompt is a row of blocks: tools, then system, then messages. A block with `cache_control` ends a prefix that is
kept for its ttl. A request reads the longest prefix that is kept already, writes what lies between that and its last
such mark (each stretch at the ttl of the mark that ends it), and pays in full for the rest. Unlike the API, the
sandbox keeps short prefixes too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from tproxy.sandbox.asked import Asked
from tproxy.sandbox.errors import invalid
from tproxy.sandbox.shelf import Shelf
from tproxy.sandbox.text import count

_SECONDS = {"5m": 300.0, "1h": 3600.0}
_IMAGE_TOKENS = 1600
_DOCUMENT_TOKENS = 3000


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt by what they cost: each token is in exactly one of the four."""

    input: int
    write_5m: int = 0
    write_1h: int = 0
    read: int = 0

    @property
    def write(self) -> int:
        return self.write_5m + self.write_1h

    @property
    def total(self) -> int:
        return self.input + self.write + self.read


def weight(block: dict[str, Any]) -> int:
    """Tokens of one block of a prompt."""
    match block.get("type"):
        case "text":
            return count(block["text"])
        case "image":
            return _IMAGE_TOKENS
        case "document":
            return _DOCUMENT_TOKENS
        case "tool_result" if isinstance(block.get("content"), list):
            return 4 + sum(weight(part) for part in block["content"] if isinstance(part, dict))
    return count(msgspec.json.encode(block).decode())


def _prompt(asked: Asked) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The blocks in the order in which the model reads them: where, the block, its tokens."""
    for tool in asked.tools:
        yield "tool", tool, count(msgspec.json.encode(_bare(tool)).decode())
    for block in asked.system:
        yield "system", block, weight(_bare(block))
    for role, blocks in asked.messages:
        for at, block in enumerate(blocks):
            yield role, block, weight(_bare(block)) + (0 if at else 3)


def _bare(block: dict[str, Any]) -> dict[str, Any]:
    if "cache_control" not in block:
        return block
    return {name: value for name, value in block.items() if name != "cache_control"}


def size(asked: Asked) -> int:
    """All tokens of a prompt: what count_tokens answers."""
    return sum(tokens for _, _, tokens in _prompt(asked))


def _ttl(control: object) -> str:
    if not isinstance(control, dict) or control.get("type") != "ephemeral":
        raise invalid("cache_control.type: Input should be 'ephemeral'")
    ttl = control.get("ttl") or "5m"
    if ttl not in _SECONDS:
        raise invalid("cache_control.ttl: Input should be '5m' or '1h'")
    return str(ttl)


class PromptCache:
    """The prefixes that are kept, by digest, with the time at which each goes."""

    def __init__(self, *, count: int = 4096) -> None:
        self._kept: Shelf[bytes, tuple[float, float]] = Shelf(count=count)

    def account(self, asked: Asked, now: float) -> Prompt:
        """Split a prompt's tokens, and keep the prefixes that it marks.

        Args:
            now: seconds on any clock that only goes forward.

        Raises:
            ApiError: 400 for a cache_control that is not one.
        """
        blocks = list(_prompt(asked))
        marks = [block.get("cache_control") for _, block, _ in blocks]
        if asked.cache_control is not None and blocks:
            marks[-1] = asked.cache_control
        total = sum(tokens for _, _, tokens in blocks)
        if not any(marks):
            return Prompt(total)

        digest = hashlib.blake2b(asked.model.encode(), digest_size=16)
        seen = read = 0
        stretches: list[tuple[int, str]] = []  # tokens up to a mark, and its ttl
        last = max(at for at, mark in enumerate(marks) if mark)
        for (where, block, tokens), mark in zip(blocks[: last + 1], marks, strict=False):
            digest.update(where.encode() + b"\0" + msgspec.json.encode(_bare(block)))
            prefix = digest.digest()
            seen += tokens
            if self._alive(prefix, now):
                read = seen
            if mark:
                ttl = _ttl(mark)
                stretches.append((seen, ttl))
                self._kept.put(prefix, (now + _SECONDS[ttl], _SECONDS[ttl]))
        written = {"5m": 0, "1h": 0}
        done = read
        for upto, ttl in stretches:
            written[ttl] += max(upto - done, 0)
            done = max(upto, done)
        return Prompt(total - done, written["5m"], written["1h"], read)

    def _alive(self, prefix: bytes, now: float) -> bool:
        """Whether a prefix is kept; being read, it is kept for its whole ttl again."""
        kept = self._kept.get(prefix)
        if kept is None or kept[0] < now:
            return False
        self._kept.put(prefix, (now + kept[1], kept[1]))
        return True
