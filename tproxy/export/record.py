"""One exchange as a record: a flat JSON object, which files, webhooks and objects all hold.

Its names are those of the ledger's columns (`store/base.py`: `Opening`, `Closing`), each always there, `null` where it
does not apply. Four are added:

    version   1; it grows when a name changes its meaning or goes, not when one is added
    seq       the exchange's number in the ledger, in the order in which exchanges ended; it grows, with gaps perhaps
    cost_usd  `cost_nano` as decimal dollars in text, exactly; null where the cost is not known
    sandbox   true: the built-in sandbox answered, and nobody paid anything

There is no credential in it: callers are named by hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import trio
from msgspec.structs import astuple

from tproxy.money import usd
from tproxy.store.base import Closing, Opening
from tproxy.store.feed import Settled

VERSION: Final = 1
SANDBOX: Final = "sandbox"  # what rows of the built-in sandbox have as their upstream

_AT_ONCE: Final = 25  # records made before the streams on the same loop have their turn

_Record = msgspec.defstruct(
    "_Record",
    [
        (name, Any)
        for name in (
            *("version", "seq"),
            *Opening.__struct_fields__,
            *Closing.__struct_fields__[1:],  # without the id, which the opening has too
            *("cost_usd", "sandbox"),
        )
    ],
    gc=False,
)
_encode = msgspec.json.Encoder().encode


def _record(settled: Settled) -> msgspec.Struct:
    opening, closing = settled.opening, settled.closing
    return _Record(
        VERSION,
        settled.seq,
        *astuple(opening),
        *astuple(closing)[1:],
        None if closing.cost_nano is None else usd(closing.cost_nano),
        opening.upstream == SANDBOX,
    )


async def encoded(settled: Sequence[Settled]) -> list[bytes]:
    """Each as JSON without line ends. Lets others run now and then."""
    found: list[bytes] = []
    for start in range(0, len(settled), _AT_ONCE):
        found += [_encode(_record(one)) for one in settled[start : start + _AT_ONCE]]
        await trio.lowlevel.checkpoint()
    return found
