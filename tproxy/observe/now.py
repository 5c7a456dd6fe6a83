"""What is so at the moment of a scrape, and was not counted by anybody: what runs, what waits, what is left.

Gathered on the loop, in some milliseconds at most. What stands in the ledger's file is in `standing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from tproxy import __version__
from tproxy.flow.observer import Observers
from tproxy.flow.pulse import Pulse
from tproxy.flow.remaining import remaining
from tproxy.flow.services import Services
from tproxy.observe.metrics import Metrics
from tproxy.observe.running import Running
from tproxy.observe.series import OTHER, Family, Labels, shown, single
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.subjects import KEY
from tproxy.wire.pool import Pool

_AT_ONCE: Final = 100  # limits that are looked at before others may run


@dataclass(frozen=True, slots=True)
class Now:
    """Looks at what is so now.

    Args:
        services: what new exchanges work with.
        dropped_lines: how many lines of the log were dropped.
    """

    metrics: Metrics
    running: Running
    pulse: Pulse
    observers: Observers
    ledger: SqliteLedger
    services: Callable[[], Services]
    dropped_lines: Callable[[], int]

    async def families(self) -> list[Family]:
        """All of it."""
        limits = await self._limits()
        return [*self._traffic(), *_pool(self.services().upstream.pool), *_ledger(self.ledger), *limits]

    def _traffic(self) -> Iterator[Family]:
        running = list(self.running)
        streams = sum(1 for sight in running if sight.opening.stream)
        received = self.metrics.bytes_in + sum(sight.course.bytes_in for sight in running)
        sent = self.metrics.bytes_out + sum(sight.course.bytes_out for sight in running)
        yield single("litellm_in_flight_requests", "gauge", "Exchanges that run now.", len(running))
        yield single("tproxy_streams_open", "gauge", "Of those that run, the streams.", streams)
        yield Family(
            "tproxy_relayed_bytes",
            "counter",
            "Bytes of bodies, those of running exchanges too.",
            ("direction",),
            [(("request",), received), (("answer",), sent)],
        )
        yield single("tproxy_stream_events", "counter", "Events of streams that have been read.", self.pulse.events)
        for name, about, seen in (
            ("tproxy_stream_gap_seconds", "Between two arrivals of one stream.", self.pulse.gaps),
            ("tproxy_tap_lag_seconds", "How long the oldest of what the tap read had waited.", self.pulse.lag),
        ):
            yield Family(name, "histogram", about, (), [((), seen)], 1e-6)
        failures = self.observers.failures
        yield single("tproxy_observer_failures", "counter", "Failures of those who look on.", failures)
        yield single("tproxy_log_lines_dropped", "counter", "Lines of the log that were dropped.", self.dropped_lines())
        yield Family("tproxy_build_info", "gauge", "The version that runs.", ("version",), [((__version__,), 1)])

    async def _limits(self) -> list[Family]:
        """What is left to keys that have limits and have been seen, by model."""
        services = self.services()
        limiter, directory = services.govern.limiter, services.ring.directory
        left: dict[Labels, tuple[int | None, int | None]] = {}
        asked = {(who[0], what[0]) for who, what in self.metrics.requests.known()}
        for number, (digest, model) in enumerate(sorted(asked)):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            key = directory.find(KEY, digest)
            if key is not None and key.terms.limited:
                of = None if model in ("", OTHER) else model
                left[digest, shown(key.alias or ""), model] = remaining(limiter, key, of, trio.current_time())
        return [
            Family(
                f"litellm_remaining_api_key_{what}_for_model",
                "gauge",
                f"How many {what} of this key for this model would be let pass now.",
                ("hashed_api_key", "api_key_alias", "model"),
                [(labels, figure) for labels, figures in left.items() if (figure := figures[place]) is not None],
            )
            for place, what in enumerate(("requests", "tokens"))
        ]


def _pool(pool: Pool) -> Iterator[Family]:
    idle, active, waiting = pool.load
    yield Family(
        "tproxy_upstream_connections",
        "gauge",
        "Connections to the upstream.",
        ("state",),
        [(("idle",), idle), (("active",), active)],
    )
    yield single("tproxy_upstream_waiting", "gauge", "Exchanges that wait for a connection.", waiting)
    yield Family(
        "tproxy_upstream_requests",
        "counter",
        "Requests sent, on a connection that was dialled for them or on one that had rested.",
        ("connection",),
        [(("dialled",), pool.dials), (("reused",), pool.reuses)],
    )


def _ledger(ledger: SqliteLedger) -> Iterator[Family]:
    yield single("tproxy_ledger_writable", "gauge", "1: it can be written, and requests are let in.", ledger.writable)
    yield single("tproxy_ledger_queued", "gauge", "Entries that wait for the ledger's thread.", ledger.queued)
    yield Family(
        "tproxy_ledger_commit_seconds",
        "histogram",
        "How long the ledger's commits took.",
        (),
        [((), ledger.commits)],
        1e-6,
    )
    yield single("tproxy_ledger_faults", "counter", "What went wrong with the ledger.", ledger.faults)
    yield single("tproxy_budget_overshoots", "counter", "Exchanges that cost more than they held.", ledger.overshoots)
