"""An alert to send, and a receiver of POSTs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.wire.peer import Line, Request, peer
from tproxy.alert.alert import BUDGET, Alert, Figure, Of

NOW_US = 1_795_000_000_000_000
OF = Of("key", "abc", "1d 17")


def alert(
    summary: str = "It is spent.", *, name: str = "anna", of: Of = OF, resolved: bool = False, **figures: Figure
) -> Alert:
    end_us = NOW_US + 60_000_000 if resolved else None
    return Alert(BUDGET, "critical", of, name, summary, figures, NOW_US, end_us)


@dataclass
class Receiver:
    """Attributes:
    url: where it listens.
    requests: what came.
    statuses: what is answered, in this order; then 200.
    hangs: nothing is answered.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hangs: bool = False


@asynccontextmanager
async def receiver(path: str = "/hook/T00/secret-part", **fields: Any) -> AsyncIterator[Receiver]:
    """Open one."""
    found = Receiver(**fields)

    async def script(line: Line) -> None:
        while (request := await line.request()) is not None:
            found.requests.append(request)
            if found.hangs:
                await line.wait_gone()
                return
            status = found.statuses.pop(0) if found.statuses else 200
            await line.send(b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n\r\nok" % status)

    async with peer(script) as upstream:
        found.url = f"http://{upstream.origin}{path}"
        yield found


def fields(request: Request) -> Mapping[str, str]:
    return {name.decode().lower(): value.decode() for name, value in request.headers}
