"""Rows that are old enough are deleted; what they came to stays in the sums by day and in the tallies.

- Only what all sinks have is deleted, so that no export misses a row because it was slow.
- Only the beginning of the journal is: what ended after a row that has to stay, stays too. Of the entries, the newest
  that loses its row is kept: the digest of the next one is made of its.
- It is done in slices of `SLICE` rows, each in a transaction of its own, and at most `ROUND` rows at a time, so that no
  exchange waits for it.

The pages that come free are used again; the file grows no smaller by itself.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import trio

from tproxy.store.sums import DAY_US, day_of

SLICE: Final = 200
ROUND: Final = 100_000
EVERY_SECONDS: Final = 3600.0
SOON_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.05  # between two slices

_log = logging.getLogger(__name__)

T = TypeVar("T")

_OLDEST: Final = """
SELECT settled.seq, settled.id, exchange.accepted_us
  FROM settled LEFT JOIN exchange ON exchange.id = settled.id
 WHERE settled.seq <= ? ORDER BY settled.seq LIMIT ?
"""


class Writing(Protocol):
    """A ledger, of which only this is needed."""

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T: ...


def no_sinks() -> int | None:
    """Nobody is told of what has ended."""
    return None


def drop_oldest(connection: sqlite3.Connection, before_us: int, taken_seq: int | None, limit: int) -> int:
    """Delete at most `limit` of the oldest rows. For the ledger's thread: `SqliteLedger.write`.

    Args:
        before_us: only what was accepted before; the beginning of a day (UTC).
        taken_seq: only up to this number of the journal; None for no such bound.

    Returns:
        How many were deleted.
    """
    found = connection.execute(_OLDEST, ((1 << 63) - 1 if taken_seq is None else taken_seq, limit + 1)).fetchall()
    deleted_before = connection.execute("SELECT 1 FROM retained").fetchone() is not None
    if deleted_before and found and found[0][2] is None:
        del found[0]  # the entry that was kept last time
    gone: list[tuple[int, str, int]] = []
    for seq, id, accepted_us in found[:limit]:
        if accepted_us is None or accepted_us >= before_us:
            break
        gone.append((seq, id, accepted_us))
    if not gone:
        return 0
    connection.executemany("DELETE FROM exchange WHERE id = ?", [(id,) for _, id, _ in gone])
    connection.execute("DELETE FROM settled WHERE seq < ?", (gone[-1][0],))
    since = day_of(max(accepted_us for *_, accepted_us in gone) // DAY_US + 1)
    connection.execute(
        "INSERT INTO retained (only, since_day) VALUES (1, ?) "
        "ON CONFLICT (only) DO UPDATE SET since_day = max(since_day, excluded.since_day)",
        (since,),
    )
    return len(gone)


async def run(
    ledger: Writing,
    days: Callable[[], int | None],
    taken_seq: Callable[[], int | None] = no_sinks,
    *,
    now_us: Callable[[], int],
) -> None:
    """Delete what is old, now and every hour, until cancelled. While the sinks have taken nothing, which so it is also
    until they have begun, it is looked again soon.

    Args:
        days: how many whole days (UTC) before today's are kept; None: all. Asked anew each time.
        taken_seq: the number of the journal up to which all sinks have come; None where there are none.
    """
    while True:
        waits = taken_seq() == 0
        await one_round(ledger, days, taken_seq, now_us=now_us)
        await trio.sleep(SOON_SECONDS if waits else EVERY_SECONDS)


async def one_round(
    ledger: Writing,
    days: Callable[[], int | None],
    taken_seq: Callable[[], int | None] = no_sinks,
    *,
    now_us: Callable[[], int],
) -> int:
    """Delete what is old now, as far as one round goes; see `run`. Returns how many rows went.

    What cannot be deleted now is left for the next round.
    """
    deleted = 0
    try:
        while deleted < ROUND and (kept := days()) is not None:
            before_us, taken = (now_us() // DAY_US - kept) * DAY_US, taken_seq()
            gone = await _write(ledger, before_us, taken)
            deleted += gone
            if gone < SLICE:
                break
            await trio.sleep(PAUSE_SECONDS)
    except Exception as fault:  # nobody waits for it: the server goes on
        _log.warning("old rows could not be deleted, which is tried again in an hour: %s", fault)
    if deleted:
        _log.info("%d rows were older than what is kept, and were deleted", deleted)
    return deleted


def _write(ledger: Writing, before_us: int, taken: int | None) -> Awaitable[int]:
    return ledger.write(lambda connection: drop_oldest(connection, before_us, taken, SLICE))
