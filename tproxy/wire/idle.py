"""The waits that end when the server shuts down: those of connections on which no request has begun.

For each of hypercorn's servers one task waits for the end, in the place of all of its connections. It is started in
the nursery in which hypercorn keeps them, so that it ends when they have to.
"""

from __future__ import annotations

import weakref

import trio
from hypercorn.trio.worker_context import WorkerContext

Waits = set[trio.CancelScope]

_waits_of: weakref.WeakKeyDictionary[WorkerContext, Waits] = weakref.WeakKeyDictionary()


def idle_waits(context: WorkerContext) -> Waits:
    """Where a connection of the server with this context puts the scope of its wait, and takes it out again.

    To be called in the task of such a connection. What is in it when the server shuts down is cancelled.
    """
    waits = _waits_of.get(context)
    if waits is None:
        waits = _waits_of[context] = set()
        nursery = trio.lowlevel.current_task().parent_nursery
        if nursery is None:
            raise RuntimeError("a connection is served in a nursery")
        nursery.start_soon(_end, context, waits)
    return waits


async def _end(context: WorkerContext, waits: Waits) -> None:
    await context.terminated.wait()
    for wait in waits:
        wait.cancel()
