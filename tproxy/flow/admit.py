"""The decision before the upstream is dialled, and the row that it opens.

Everything here is decided synchronously from what is at hand; the one effect is that the row is queued in the
ledger. Whoever is refused here has cost nothing and leaves no row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tproxy.errors import Header, LedgerUnavailable, ModelNotAllowed
from tproxy.flow.identify import Caller
from tproxy.flow.route import Passage
from tproxy.protocol import headers as header
from tproxy.protocol.request import RequestFacts
from tproxy.store.base import Ledger, Opening, Ticket

_CUSTOMER_HEADERS = (b"x-tproxy-customer", b"x-litellm-customer-id", b"x-litellm-end-user-id")
_TAG_HEADERS = (b"x-tproxy-tags", b"x-litellm-tags")
_SESSION_HEADER = b"x-claude-code-session-id"

# Attribution comes from clients: it is bounded before it is kept.
_MAX_TEXT = 256
_MAX_TAGS = 64


def new_id(now_us: int) -> str:
    """A UUID of version 7 (RFC 9562 section 5.7): ids sort by the time of their exchange, to the millisecond."""
    value = (now_us // 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def admit(
    ledger: Ledger,
    *,
    id: str,
    accepted_us: int,
    passage: Passage,
    upstream: str,
    caller: Caller,
    facts: RequestFacts | None,
    headers: Sequence[Header],
    client_address: str | None,
) -> Ticket:
    """Let an exchange in and open its row.

    Args:
        facts: what the body says; None where the body passes unread.

    Raises:
        ModelNotAllowed: the caller's key is for other models, or the body does not say which one clearly.
        LedgerUnavailable: what is not recorded is not served.
    """
    if passage.held or not passage.free:
        # Only the body of a held path says which model it runs; a batch, say, names one in each of its requests.
        check_model(caller, facts.model if facts is not None and passage.held else None)
    if not ledger.writable:
        raise LedgerUnavailable("The ledger cannot be written now, so no request is served. Try again shortly.")
    return ledger.open(
        Opening(
            id=id,
            accepted_us=accepted_us,
            method=passage.method,
            path=passage.path.decode("ascii"),
            upstream=upstream,
            model_asked=facts.model if facts is not None else None,
            stream=facts.stream if facts is not None else None,
            caller=caller.id,
            caller_alias=caller.alias,
            team=caller.team,
            user=caller.user,
            customer=customer(headers, facts),
            tags=tags(headers, facts, caller),
            session=_text(header.get(headers, _SESSION_HEADER)) or (facts.session if facts is not None else None),
            client_address=client_address,
            user_agent=_text(header.get(headers, b"user-agent")),
        )
    )


def check_model(caller: Caller, model: str | None) -> None:
    """Raise ModelNotAllowed if `caller` has an allow-list and `model` is not certainly on it."""
    if not caller.models:
        return
    if model is None:
        raise ModelNotAllowed(
            f"The key {caller.alias!r} is for certain models only, and the request does not say clearly which one "
            "it asks for."
        )
    if not any(_matches(model, pattern) for pattern in caller.models):
        raise ModelNotAllowed(
            f"The key {caller.alias!r} is not for the model {model!r}. It is for: {', '.join(caller.models)}."
        )


def _matches(model: str, pattern: str) -> bool:
    """Only `*` is special, and stands for any text: ids may hold brackets, as in `claude-opus-4-8[1m]`."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), model, re.DOTALL) is not None


def customer(headers: Sequence[Header], facts: RequestFacts | None) -> str | None:
    """On whose behalf: the headers, then `litellm_metadata.user`, then `metadata.user_id`; the first match wins."""
    for name in _CUSTOMER_HEADERS:
        if found := _text(header.get(headers, name)):
            return found
    if facts is None:
        return None
    return facts.litellm_user or facts.user_id


def tags(headers: Sequence[Header], facts: RequestFacts | None, caller: Caller) -> tuple[str, ...]:
    """The tags of headers, body and key, all joined: in this order, without repetition."""
    found: list[str] = []
    for name in _TAG_HEADERS:
        for value in header.get_all(headers, name):
            found += [tag.strip() for tag in value.decode("utf-8", "replace").split(",")]
    found += facts.litellm_tags if facts is not None else ()
    found += caller.tags
    return tuple(dict.fromkeys(tag[:_MAX_TEXT] for tag in found if tag))[:_MAX_TAGS]


def _text(value: bytes | None) -> str | None:
    return value.decode("utf-8", "replace").strip()[:_MAX_TEXT] or None if value is not None else None
