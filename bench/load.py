"""The load: asks over many connections, checks every byte of the answers, and takes the times of complete events.

A process of its own, started with one JSON argument {"workload", "host", "port", "path"}. It prints `measuring` and
`measured` at the ends of the time that counts, and then one line of JSON, a `Tally`.

The latency of an event is the time from its sending, which it carries, until all of it has been read here. That of an
answer begins when its request was due, so that a late answer which delays the next request is not forgotten (open
loop); in a CLOSED workload a request is due when it is sent. What goes wrong with an exchange is counted, and the
others go on.
"""

from __future__ import annotations

import gc
import heapq
import json
import math
import random
import select
import socket
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count

from bench import http1, talk
from bench.timing import sharp_timers, wait
from bench.workloads import CLOSED, HELD, PACED, SETTLE_SECONDS, SLACK_SECONDS, Workload

READ = 262_144
CONNECT_SECONDS = 5.0
SECOND = 1_000_000_000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def quantiles(samples: array[int]) -> dict[str, float]:
    """The nearest-rank quantiles of times in ns, in µs."""
    ranked = sorted(samples)
    return {name: ranked[max(0, math.ceil(share * len(ranked)) - 1)] / 1000 for name, share in QUANTILES.items()}


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of a run.

    Attributes:
        exchanges: requests sent, at any time of the run.
        asked: events of their answers.
        dropped: exchanges that did not end as they should; `failures` counts them by reason.
        events, reads, answers: that arrived while it was measured; reads: of sockets, that brought something.
        cpu_seconds, seconds: of the load itself, and of the clock, while it was measured.
        times: quantiles in µs, by what was timed: `event`, `lag` (sent after it was due: the upstream's own delay),
            `first_byte`, `first_event`, `answer`.
    """

    exchanges: int = 0
    asked: int = 0
    dropped: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    events: int = 0
    reads: int = 0
    answers: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    times: dict[str, dict[str, float]] = field(default_factory=dict)


class Caller:
    """One connection, kept open from answer to answer, and what runs on it."""

    __slots__ = ("answer", "check", "due_ns", "request", "seen", "sock")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.due_ns = 0  # when the request was to be sent
        self.request = b""
        self.answer = http1.Answer()
        self.check: talk.Check | None = None  # None: nothing runs
        self.seen = False  # an event of this answer


class Load:
    """One run of a workload against one address."""

    def __init__(self, workload: Workload, host: str, port: int, path: str) -> None:
        self._workload = workload
        self._address = (host, port)
        self._path = path
        self._ready = select.epoll()
        self._callers: dict[int, Caller] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._number = count()
        self._dice = random.Random(workload.connections)
        self._samples: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._failures: Counter[str] = Counter()
        self._tally = Tally()
        self._running = 0
        self._measuring = False
        self._cpu = 0.0

    def run(self) -> Tally:
        """Run to the end."""
        workload = self._workload
        start = time.monotonic_ns()
        from_ns = start + int((workload.opening_seconds + SETTLE_SECONDS) * SECOND)
        self._until_ns = from_ns + int(workload.seconds * SECOND)
        for number in range(workload.connections):
            opens = start + int(workload.opening_seconds * SECOND * number / workload.connections)
            self._at(opens, self._opener(opens))
        self._at(from_ns, self._measure)
        self._at(self._until_ns, self._measured)
        deadline = self._until_ns + int(SLACK_SECONDS * SECOND)
        while (self._timers or self._running) and time.monotonic_ns() < deadline:
            for descriptor, _ in wait(self._ready, self._timers[0][0] if self._timers else deadline):
                self._read(self._callers[descriptor])
            while self._timers and self._timers[0][0] <= time.monotonic_ns():
                heapq.heappop(self._timers)[2]()
        self._tally.dropped += self._running
        self._failures["not ended in time"] += self._running
        self._tally.failures = dict((+self._failures).most_common(10))
        self._tally.times = {name: quantiles(samples) for name, samples in self._samples.items()}
        return self._tally

    def _at(self, at_ns: int, do: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (at_ns, next(self._number), do))

    def _measure(self) -> None:
        if self._workload.shape == HELD:
            opened = sum(caller.answer.status == 200 for caller in self._callers.values())
            self._failures["not open in time"] += self._workload.connections - opened
        print("measuring", flush=True)
        self._measuring = True
        self._cpu = time.process_time()
        self._tally.seconds = -time.monotonic_ns() / SECOND

    def _measured(self) -> None:
        self._measuring = False
        self._tally.cpu_seconds = time.process_time() - self._cpu
        self._tally.seconds += time.monotonic_ns() / SECOND
        print("measured", flush=True)

    def _opener(self, due_ns: int) -> Callable[[], None]:
        caller = Caller()
        return lambda: self._ask(caller, due_ns)

    def _ask(self, caller: Caller, due_ns: int) -> None:
        """Send a request that is due, over the caller's connection or a new one."""
        workload = self._workload
        events, phase_us = workload.events, 0
        if workload.shape == HELD:
            phase_us = self._dice.randint(1, workload.interval_us)
            events = (self._until_ns - time.monotonic_ns()) // (workload.interval_us * 1000) + 1
        asked = talk.Asked(workload.stream, events, workload.interval_us, phase_us)
        self._tally.exchanges += 1
        self._tally.asked += events
        self._running += 1
        caller.due_ns = due_ns
        caller.answer = http1.Answer()
        caller.check = talk.Check(asked)
        caller.seen = False
        host, port = self._address
        try:
            if caller.sock is None:
                caller.sock = socket.create_connection(self._address, timeout=CONNECT_SECONDS)
                caller.sock.setblocking(False)
                caller.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._callers[caller.sock.fileno()] = caller
                self._ready.register(caller.sock, select.EPOLLIN)
            request = asked.request(f"{host}:{port}", self._path)
            if caller.sock.send(request) < len(request):
                raise OSError("a request was not taken in one write")
        except OSError as error:
            self._fail(caller, f"asking: {error}")

    def _read(self, caller: Caller) -> None:
        if caller.sock is None:
            return
        try:
            data = caller.sock.recv(READ)
        except OSError as error:
            self._fail(caller, f"reading: {error}")
            return
        now = time.monotonic_ns()
        if caller.check is None:  # the other side has closed a connection that was not used
            self._hang_up(caller)
        elif not data:
            self._fail(caller, "the answer broke off")
        else:
            try:
                self._take(caller, caller.check, data, now)
            except (http1.Malformed, talk.Mismatch, ValueError) as error:
                self._fail(caller, f"{type(error).__name__}: {str(error)[:300]}")

    def _take(self, caller: Caller, check: talk.Check, data: bytes, now: int) -> None:
        if self._measuring:
            self._tally.reads += 1
        if not caller.answer.status and self._workload.shape != HELD:
            self._sample("first_byte", now - caller.due_ns)
        body = caller.answer.feed(data)
        if caller.answer.status not in (0, 200):
            raise talk.Mismatch(f"status {caller.answer.status}: {body!r}")
        stamps = check.feed(body)
        if stamps and not caller.seen:
            caller.seen = True
            if self._workload.shape != HELD:
                self._sample("first_event", now - caller.due_ns)
        if self._measuring:
            self._tally.events += len(stamps)
            for sent_ns, due_ns in stamps:
                self._samples["event"].append(now - sent_ns)
                self._samples["lag"].append(sent_ns - due_ns)
        if caller.answer.ended:
            check.end()
            self._ended(caller, now)

    def _sample(self, name: str, took_ns: int) -> None:
        if self._measuring:
            self._samples[name].append(took_ns)

    def _ended(self, caller: Caller, now: int) -> None:
        """An answer is whole: what comes next on this connection?"""
        self._running -= 1
        caller.check = None
        shape = self._workload.shape
        if shape != HELD and self._measuring:
            self._tally.answers += 1
            self._sample("answer", now - caller.due_ns)
        due_ns = caller.due_ns + self._workload.period_ms * SECOND // 1000 if shape == PACED else now
        if shape == HELD or due_ns >= self._until_ns:
            self._hang_up(caller)
        elif shape == CLOSED or due_ns <= now:
            self._ask(caller, due_ns)
        else:
            self._at(due_ns, lambda: self._ask(caller, due_ns))

    def _fail(self, caller: Caller, why: str) -> None:
        self._failures[why] += 1
        self._tally.dropped += 1
        self._running -= 1
        caller.check = None
        self._hang_up(caller)

    def _hang_up(self, caller: Caller) -> None:
        if caller.sock is not None:
            self._callers.pop(caller.sock.fileno(), None)
            caller.sock.close()
            caller.sock = None


def main() -> None:
    """Run what the argument says."""
    sharp_timers()
    plan = json.loads(sys.argv[1])
    load = Load(Workload(**plan["workload"]), plan["host"], plan["port"], plan["path"])
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(load.run())), flush=True)


if __name__ == "__main__":
    main()
