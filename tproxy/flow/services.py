"""What exchanges work with: everything that outlives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tproxy.flow.admit import Governance
from tproxy.flow.body import Held
from tproxy.flow.identify import KeyRing
from tproxy.flow.observer import Observers
from tproxy.flow.outgoing import Upstream
from tproxy.flow.pulse import Pulse
from tproxy.store.base import Ledger


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with. Replaced as a whole on a reload; a running exchange keeps what it began with.

    Args:
        upstream_name: what the ledger calls the upstream: its base URL, or `sandbox`.
        base_url: without a trailing slash.
        clock: wall-clock microseconds since the epoch.
        draining: true once the process has been told to stop.
        drain_on_disconnect: read the upstream's answer on when the client has left?
        drain_seconds, body_seconds: bounds on that, and on a request body.
        held: the request bodies that all exchanges hold together.
        observers: who looks on.
        pulse: what all taps count.
    """

    ring: KeyRing
    upstream: Upstream
    upstream_name: str
    base_url: str
    ledger: Ledger
    govern: Governance
    clock: Callable[[], int]
    draining: Callable[[], bool]
    drain_on_disconnect: bool
    drain_seconds: float
    body_seconds: float
    max_body_bytes: int
    max_upload_bytes: int
    held: Held
    observers: Observers
    pulse: Pulse
