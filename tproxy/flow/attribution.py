"""On whose behalf a request is made: the customer, the tags, the session, the agents.

All of it comes from clients: it is bounded before it is kept, and what looks like a key in it is left out. It is
believed, as LiteLLM believes it: whoever holds a key says on whose behalf it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

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

# Version, trace, parent span, flags. Neither id is all zeros, and there is no version ff.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_MAX_TEXT = 256
_MAX_TAGS = 64


class Attribution(Struct, frozen=True):
    """Each None where the request does not say. `tags` has an order and no repetition."""

    customer: str | None
    tags: tuple[str, ...]
    session: str | None
    agent: str | None
    parent_agent: str | None


def attribute(
    headers: Sequence[Header], facts: RequestFacts | None, caller: Caller, *, customers: bool = True
) -> Attribution:
    """Read who a request is for.

    Args:
        facts: what the body says; None where the body passes unread.
        customers: else no customer is taken note of, whoever is named.
    """
    return Attribution(
        customer=_customer(headers, facts) if customers else None,
        tags=_tags(headers, facts, caller),
        session=_text(header.get(headers, _SESSION_HEADER)) or _session(facts),
        agent=_text(header.get(headers, _AGENT_HEADER)),
        parent_agent=_text(header.get(headers, _PARENT_AGENT_HEADER)),
    )


def user_agent(headers: Sequence[Header]) -> str | None:
    """What the client calls itself."""
    return _text(header.get(headers, b"user-agent"))


def traceparent(headers: Sequence[Header]) -> str | None:
    """The trace that the request is a part of (W3C Trace Context, section 3.2); None without one, or with a bad one."""
    value = header.get(headers, b"traceparent")
    if value is None or not _TRACEPARENT.fullmatch(value):
        return None
    return value.decode("ascii")


def new_id(now_us: int) -> str:
    """A UUID of version 7 (RFC 9562 section 5.7): ids sort by the time of their exchange, to the millisecond."""
    time, chance = f"{now_us // 1000:012x}", next(_chances)
    return f"{time[:8]}-{time[8:12]}-7{chance[:3]}-{chance[3:7]}-{chance[7:]}"


def _chance() -> Iterator[str]:
    """What is random in an id: 76 bits in hex, of which the fourth digit holds the variant, two bits that are not.

    It is drawn for many ids at a time: at each draw all other threads may take their turn first.
    """
    while True:
        drawn = os.urandom(10 * _DRAWN)
        for i in range(0, len(drawn), 10):
            text = drawn[i : i + 10].hex()
            yield f"{text[:3]}{_VARIANTS[drawn[i + 9] & 3]}{text[3:18]}"


def _draw_anew() -> None:
    global _chances
    _chances = _chance()


_DRAWN = 256
_VARIANTS = "89ab"
_chances = _chance()
os.register_at_fork(after_in_child=_draw_anew)  # or both would give the same ids


def _customer(headers: Sequence[Header], facts: RequestFacts | None) -> str | None:
    """The headers, then `litellm_metadata.user`, then `metadata.user_id`; the first match wins."""
    for name in _CUSTOMER_HEADERS:
        if found := _text(header.get(headers, name)):
            return found
    if facts is None:
        return None
    found = facts.litellm_user or facts.user_id
    return masked(found) if found else None


def _session(facts: RequestFacts | None) -> str | None:
    return masked(facts.session) if facts is not None and facts.session is not None else None


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
