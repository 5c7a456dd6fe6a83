"""When an alert is due: pure functions from figures to a finding, or None where there is no cause.

Each cause has a firm side, on which an episode begins, and most have a softer one, on which it merely goes on; so
what swings about a threshold is one episode. What the figures are taken from is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from tproxy.alert.alert import (
    BUDGET,
    CREDENTIAL,
    ERRORS,
    EXPORT,
    KEY_EXPIRY,
    LEDGER,
    SOFT_BUDGET,
    SPEND,
    UNPRICED,
    Finding,
    Of,
    moment,
)
from tproxy.money import to_dollars, usd
from tproxy.store.base import Standing

EXCHANGES_LEAST: Final = 20
HISTORY_DAYS: Final = 28
HISTORY_LEAST: Final = 5
NEARLY: Final = 95  # percent of a budget: past them it is as good as spent for whom a request was refused
MODEL_CHARACTERS: Final = 200
MODELS_TOLD: Final = 100  # names come from clients: more of them are not told of

_DAY_US: Final = 86_400_000_000


def soft_budget(standing: Standing, name: str) -> Finding | None:
    """A budget has reached its soft limit; until its period ends, it is set back, or the limit is raised."""
    if standing.soft_nano is None or standing.spent_nano < standing.soft_nano:
        return None
    return Finding(
        SOFT_BUDGET,
        _of_budget(standing),
        f"{_whose(standing, name)} has reached its soft limit: {usd(standing.spent_nano, 2)} of "
        f"{usd(standing.soft_nano, 2)} USD {_period(standing)} spent.",
        _figures(standing),
    )


def budget(standing: Standing, name: str, *, refused: bool) -> Finding | None:
    """A budget is spent.

    A hard one is never quite spent, since what does not fit is refused; so one of which less than a twentieth is left
    counts as well, if that refused a request.

    Args:
        refused: a request that is charged to it was refused for want of money since the last look.
    """
    limit, spent = standing.limit_nano, standing.spent_nano
    if limit is None or spent * 100 < limit * NEARLY:
        return None
    return Finding(
        BUDGET,
        _of_budget(standing),
        f"{_whose(standing, name)} is spent: {usd(spent, 2)} of {usd(limit, 2)} USD {_period(standing)}. "
        "Requests are refused.",
        _figures(standing),
        firm=spent >= limit or refused,
    )


def key_expiry(id: str, name: str, expires_us: int, now_us: int, days: float) -> Finding | None:
    """A key expires within so many days, and has not yet."""
    left_us = expires_us - now_us
    if not 0 < left_us <= days * _DAY_US:
        return None
    return Finding(
        KEY_EXPIRY,
        Of("key", id),
        f"The key {name!r} expires at {moment(expires_us)}.",
        {"expires": moment(expires_us), "days_left": round(left_us / _DAY_US, 2)},
    )


def typical_day(days_nano: Iterable[int]) -> int | None:
    """What a day usually costs: the median of the days that cost anything, so that neither a day off nor one dear day
    counts for much. None where there are fewer than `HISTORY_LEAST` of them: too new to have a usual day."""
    spent = [nano for nano in days_nano if nano > 0]
    return int(median(spent)) if len(spent) >= HISTORY_LEAST else None


def spend(caller: str, name: str, days_nano: Sequence[int], factor: float, least_nano: int) -> Finding | None:
    """A caller's day costs `factor` times its usual one, or more.

    Where yesterday did, the episode goes on today: what is dear for days is told once.

    Args:
        days_nano: what each of the last days cost, the oldest first, days without spend as 0: `HISTORY_DAYS` of them,
            yesterday, and today so far.
    """
    *_, yesterday, today = days_nano
    usual = typical_day(days_nano[-1 - HISTORY_DAYS : -1])
    before = typical_day(days_nano[-2 - HISTORY_DAYS : -2])
    firm = _is_unusual(today, usual, factor, least_nano)
    if not firm and not _is_unusual(yesterday, before, factor, least_nano):
        return None
    return Finding(
        SPEND,
        Of("caller", caller),
        f"{name} has spent {usd(today, 2)} USD today (UTC); a usual day of its last four weeks costs "
        f"{usd(usual or 0, 2)}.",
        {"today_usd": to_dollars(today), "usual_usd": to_dollars(usual or 0)},
        firm=firm,
    )


def _is_unusual(day: int, usual: int | None, factor: float, least_nano: int) -> bool:
    return usual is not None and day >= least_nano and day >= usual * factor


def errors(exchanges: int, failures: int, limit: float) -> Finding | None:
    """Of the exchanges with the upstream in the last five minutes, too many failed.

    It has gone once half as many do, of as many exchanges as it takes to begin: a few prove nothing.
    """
    rate = failures / exchanges if exchanges else 1.0
    if exchanges >= EXCHANGES_LEAST and rate <= limit / 2:
        return None
    return Finding(
        ERRORS,
        Of(),
        f"{failures} of {exchanges} exchanges with the upstream failed within five minutes.",
        {"exchanges": exchanges, "failures": failures, "rate": round(rate, 4)},
        firm=exchanges >= EXCHANGES_LEAST and rate >= limit,
    )


def unpriced(model: str) -> Finding:
    """A model was used whose price is not known: what it costs is in no sum and in no budget."""
    model = model[:MODEL_CHARACTERS]
    return Finding(
        UNPRICED,
        Of("model", model),
        f"The model {model!r} has no price: what it costs is not counted. Add it to the price file.",
        {"model": model},
    )


def ledger(*, unwritable_seconds: float, behind_seconds: float, queued: int, limit: float) -> Finding | None:
    """The ledger has not been writable, or what is queued has waited, for `limit` seconds."""
    longest = max(unwritable_seconds, behind_seconds)
    if longest <= limit / 2:
        return None
    what = "cannot be written" if unwritable_seconds >= behind_seconds else "is behind"
    return Finding(
        LEDGER,
        Of(),
        f"The ledger {what}, for {longest:.0f} s by now; {queued} entries wait.",
        {"unwritable_seconds": round(unwritable_seconds, 1), "behind_seconds": round(behind_seconds, 1)}
        | {"queued": queued},
        firm=longest >= limit,
    )


def export(sink: str, failing_seconds: float, behind: int, limit: float) -> Finding:
    """An export fails, and has done so for `limit` seconds. Nothing is lost by that.

    After a restart that has to be seen anew, and until then an episode goes on.
    """
    return Finding(
        EXPORT,
        Of("export", sink),
        f"The export {sink} has failed for {failing_seconds:.0f} s, and is {behind} exchanges behind.",
        {"failing_seconds": round(failing_seconds), "behind": behind},
        firm=failing_seconds >= limit,
    )


def credential(name: str, asked: int, refused: int) -> Finding | None:
    """The upstream refuses one of our keys (401, 403): all that was asked with it within five minutes.

    Where some is refused and some is not, it is the request that may not be made; an episode goes on until nothing is
    refused, and through times at which nothing is asked.
    """
    if asked and not refused:
        return None
    return Finding(
        CREDENTIAL,
        Of("credential", name),
        f"The upstream refuses the credential {name}: {refused} of {asked} requests within five minutes.",
        {"asked": asked, "refused": refused},
        firm=0 < asked == refused,
    )


def _of_budget(standing: Standing) -> Of:
    # With the end of its period: the next one is another episode.
    return Of(standing.kind, standing.subject, f"{standing.period or ''} {standing.reset_us or ''}".strip())


def _whose(standing: Standing, name: str) -> str:
    return f"The budget of the {standing.kind} {name!r}" if standing.subject else "The budget of the whole proxy"


def _period(standing: Standing) -> str:
    return f"per {standing.period}" if standing.period else "in all"


def _figures(standing: Standing) -> dict[str, int | float | str | None]:
    def dollars(nano: int | None) -> float | None:
        return None if nano is None else to_dollars(nano)

    return {
        "spent_usd": to_dollars(standing.spent_nano),
        "soft_usd": dollars(standing.soft_nano),
        "limit_usd": dollars(standing.limit_nano),
        "period": standing.period,
        "resets": None if standing.reset_us is None else moment(standing.reset_us),
    }
