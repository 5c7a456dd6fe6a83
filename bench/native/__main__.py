"""`python -m bench.native PLAN`: become the load that is written in C.

Python reads the plan and writes the request; then this process runs the other program, so that its id and its cores
stay. The request goes along in a file in memory.
"""

from __future__ import annotations

import os
import socket
import sys

from bench.load import SECOND, Plan
from bench.native import program
from bench.workloads import CLOSED, HELD, PACED, SLACK_SECONDS

SHAPES = (HELD, PACED, CLOSED)  # in the order of `enum shape`


def arguments(plan: Plan, request: int, before: int) -> list[str]:
    """What load.c is started with.

    Args:
        request: the descriptor of the request.
        before: how much of it stands before the marker, in bytes.
    """
    workload = plan.workload
    values = {
        "host": socket.gethostbyname(plan.host),
        "port": plan.port,
        "shape": SHAPES.index(workload.shape),
        "connections": workload.connections,
        "stream": int(workload.stream),
        "interval_us": workload.interval_us,
        "events": workload.events,
        "period": workload.period_ms * SECOND // 1000,
        "fresh": int(workload.fresh),
        "slow_each": workload.slow_each,
        "stall": workload.stall_ms * SECOND // 1000,
        "exact": int(plan.exact),
        "opening": int(workload.opening_seconds * SECOND),
        "settle": int(plan.settle_seconds * SECOND),
        "seconds": int(workload.seconds * SECOND),
        "slack": int(SLACK_SECONDS * SECOND),
        "request": request,
        "before": before,
    }
    return [f"{name}={value}" for name, value in values.items()]


def main() -> None:
    """Run what the argument says."""
    binary = program("load")
    if binary is None:
        sys.exit("load.c does not compile here; use bench.load")
    plan = Plan.read(sys.argv[1])
    request = plan.request()
    descriptor = os.memfd_create("request", 0)
    os.write(descriptor, request.before + request.after)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.execv(binary, [str(binary), *arguments(plan, descriptor, len(request.before))])


if __name__ == "__main__":
    main()
