"""What is left of a subject's limits now, for who looks on: nothing is taken, and no log begun."""

from __future__ import annotations

from tproxy.flow.limits import _REQUESTS, _TOKENS, Limiter
from tproxy.store.subjects import Subject


def remaining(limiter: Limiter, subject: Subject, model: str | None, now: float) -> tuple[int | None, int | None]:
    """How many requests and how many tokens for `model` would be let pass now; None where nothing limits them.

    Args:
        now: on trio's clock.
    """
    now = limiter._at(now)
    limits = limiter._limits(subject, model, {})
    for limit in limits:
        limit.log.expire(now)
    requests, tokens = (
        min((limit.remaining for limit in limits if limit.kind is kind), default=None) for kind in (_REQUESTS, _TOKENS)
    )
    return requests, tokens
