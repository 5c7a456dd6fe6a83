"""On whose behalf a request is made: the customer, the tags, the session, the agents.

All of it comes from clients: it is bounded before it is kept, and what looks like a key in it is left out. It is
believed, as LiteLLM believes it: whoever holds a key says on whose behalf it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tproxy.errors import Header
from tproxy.flow.identify import Caller
from tproxy.protocol import headers as header
from tproxy.protocol.keys import masked
from tproxy.protocol.request import RequestFacts

_CUSTOMER_HEADERS = (b"x-tproxy-customer", b"x-litellm-customer-id", b"x-litellm-end-user-id")
_TAG_HEADERS = (b"x-tproxy-tags", b"x-litellm-tags")
# Claude Code's, with every request.
_SESSION_HEADER = b"x-claude-code-session-id"
_AGENT_HEADER = b"x-claude-code-agent-id"
_PARENT_AGENT_HEADER = b"x-claude-code-parent-agent-id"

_MAX_TEXT = 256
_MAX_TAGS = 64


@dataclass(frozen=True, slots=True)
class Attribution:
    """Each None where the request does not say. `tags` has an order and no repetition."""

    customer: str | None
    tags: tuple[str, ...]
    session: str | None
    agent: str | None
    parent_agent: str | None


def attribute(headers: Sequence[Header], facts: RequestFacts | None, caller: Caller) -> Attribution:
    """Read who a request is for.

    Args:
        facts: what the body says; None where the body passes unread.
    """
    return Attribution(
        customer=_customer(headers, facts),
        tags=_tags(headers, facts, caller),
        session=_text(header.get(headers, _SESSION_HEADER)) or (facts.session if facts is not None else None),
        agent=_text(header.get(headers, _AGENT_HEADER)),
        parent_agent=_text(header.get(headers, _PARENT_AGENT_HEADER)),
    )


def user_agent(headers: Sequence[Header]) -> str | None:
    """What the client calls itself."""
    return _text(header.get(headers, b"user-agent"))


def new_id(now_us: int) -> str:
    """A UUID of version 7 (RFC 9562 section 5.7): ids sort by the time of their exchange, to the millisecond."""
    value = (now_us // 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _customer(headers: Sequence[Header], facts: RequestFacts | None) -> str | None:
    """The headers, then `litellm_metadata.user`, then `metadata.user_id`; the first match wins."""
    for name in _CUSTOMER_HEADERS:
        if found := _text(header.get(headers, name)):
            return found
    if facts is None:
        return None
    found = facts.litellm_user or facts.user_id
    return masked(found) if found else None


def _tags(headers: Sequence[Header], facts: RequestFacts | None, caller: Caller) -> tuple[str, ...]:
    """The tags of headers, body and key, all joined, in this order. Of too many, those of the key stay."""
    found: list[str] = []
    for name in _TAG_HEADERS:
        for value in header.get_all(headers, name):
            found += [tag.strip() for tag in value.decode("utf-8", "replace").split(",")]
    found += facts.litellm_tags if facts is not None else ()
    said = tuple(dict.fromkeys(masked(tag[:_MAX_TEXT]) for tag in found if tag))
    return tuple(dict.fromkeys((*said[: max(_MAX_TAGS - len(caller.tags), 0)], *caller.tags)))


def _text(value: bytes | None) -> str | None:
    return masked(value.decode("utf-8", "replace").strip()[:_MAX_TEXT]) or None if value is not None else None
