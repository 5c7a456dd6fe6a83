"""One line of the log for each exchange, with the fields of its row, and one for each request that was refused.

The line of an exchange is gathered and made by the log's own thread (`logs.later`).
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any, Final

import structlog
from msgspec.structs import replace

from tproxy import logs
from tproxy.flow.observer import Observer, Refused, Sight
from tproxy.protocol.keys import masked
from tproxy.store.base import Closing, Opening

log = structlog.get_logger("tproxy.exchange")

# Those of the row, but for what the line says otherwise: its id, the end, and times as durations.
_OPENING: Final = tuple(
    name for name in Opening.__struct_fields__ if name not in ("id", "accepted_us", "tags", "traceparent")
)
_CLOSING: Final = tuple(name for name in Closing.__struct_fields__ if name != "id" and not name.endswith("_us"))


_LONG: Final = 1000  # characters of a path or of all tags, of which the row has more

_opening_values: Final = attrgetter(*_OPENING)
_closing_values: Final = attrgetter(*_CLOSING)


class Lines(Observer):
    """Says them."""

    def ended(self, sight: Sight, closing: Closing) -> None:
        opening = sight.opening
        if len(opening.path) + sum(map(len, opening.tags)) > _LONG:  # thousands of lines may wait
            opening = replace(opening, path=opening.path[:_LONG], tags=(",".join(opening.tags)[:_LONG],))
        logs.later("exchange", partial(_fields, opening, closing))

    def refused(self, refused: Refused) -> None:
        log.info(
            "refused",
            id=refused.id,
            method=refused.method,
            path=refused.path,
            caller=refused.caller.alias or refused.caller.id,
            client=refused.client_address,
            status=refused.fault.status,
            code=refused.fault.code,
            why=masked(refused.fault.message),
        )


def _fields(opening: Opening, closing: Closing) -> dict[str, Any]:
    line: dict[str, Any] = {"id": opening.id}
    for name, value in zip(_OPENING, _opening_values(opening), strict=True):
        if value is not None:
            line[name] = value
    for name, value in zip(_CLOSING, _closing_values(closing), strict=True):
        if value is not None:
            line[name] = value
    if opening.tags:
        line["tags"] = ",".join(opening.tags)
    start = opening.accepted_us
    line["head_ms"] = _ms(start, closing.head_us)
    line["first_content_ms"] = _ms(start, closing.first_content_us)
    line["total_ms"] = _ms(start, closing.ended_us)
    return line


def _ms(start_us: int, end_us: int | None) -> float | None:
    return None if end_us is None else (end_us - start_us) / 1000
