"""The load: asks over many connections, checks every byte of the answers, and takes the times of complete events.

A process of its own, started with one JSON argument, a `Plan`. It prints `measuring` and `measured` at the ends of the
time that counts, and then one line of JSON, a `Tally`. `native/load.c` does the same with less of the machine.

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
import select
import socket
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count

from bench import http1, talk
from bench.timing import phase_us, sharp_timers, wait
from bench.workloads import CLOSED, HELD, PACED, SETTLE_SECONDS, SHARES, SLACK_SECONDS, Workload

READ = 262_144
SECOND = 1_000_000_000
# A slow reader: what it reads at a time, its receive buffer, and its segments, the least that Linux takes. With larger
# ones, the sender's kernel would hold megabytes, and nobody on the way would notice.
SLOW_READ, SLOW_WINDOW, SLOW_SEGMENT = 4_096, 4_096, 88
CURVES = ("event", "first_byte")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def quantiles(ranked: Sequence[int], shares: Iterable[float]) -> list[float]:
    """The nearest-rank quantiles, in µs, of times in ns that are in order."""
    return [ranked[max(0, math.ceil(share * len(ranked)) - 1)] / 1000 for share in shares]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the load is started with.

    Attributes:
        exact: false for subjects that write plain answers anew: only the status and the words of these are checked.
        headers: to be sent beside the usual ones, or in their stead.
        settle_seconds: between the last connection that opens and the time that is measured.
    """

    workload: Workload
    host: str
    port: int
    path: str
    exact: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    settle_seconds: float = SETTLE_SECONDS

    @classmethod
    def read(cls, text: str) -> Plan:
        """From JSON."""
        given = json.loads(text)
        return cls(workload=Workload(**given.pop("workload")), **given)

    def request(self) -> talk.Request:
        """What the load sends, all but the marker."""
        more = dict(self.headers)
        if self.workload.gzip:
            more["accept-encoding"] = "gzip"
        host, asks = f"{self.host}:{self.port}", self.workload
        return talk.Request.make(host, self.path, stream=asks.stream, body_bytes=asks.body_bytes, more=more)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of a run.

    Attributes:
        exchanges: requests sent, at any time of the run.
        asked: events of their answers.
        dropped: exchanges that did not end as they should; `failures` counts them by reason.
        events, reads, bytes, answers: that arrived while it was measured; reads: of sockets, that brought something.
        cpu_seconds, seconds: of the load itself, and of the clock, while it was measured.
        times: quantiles in µs, by what was timed: `event` and `lag` (sent after it was due: the upstream's own delay),
            of events that have an interval; `first_byte`, `first_event`, `answer`; in HELD workloads `open` in their
            stead, the first byte of every stream.
        cdf: times in µs at the shares `workloads.SHARES`, of those in CURVES.
    """

    exchanges: int = 0
    asked: int = 0
    dropped: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    events: int = 0
    reads: int = 0
    bytes: int = 0
    answers: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    cdf: dict[str, list[float]] = field(default_factory=dict)


class Caller:
    """One connection, kept open from answer to answer, and what runs on it."""

    __slots__ = ("answer", "begun", "check", "due_ns", "number", "seen", "slow", "sock", "unsent")

    def __init__(self, number: int, *, slow: bool) -> None:
        self.number = number
        self.slow = slow
        self.sock: socket.socket | None = None
        self.due_ns = 0  # when the request was to be sent
        self.unsent = b""
        self.answer = http1.Answer()
        self.check: talk.Check | None = None  # None: nothing runs
        self.begun = self.seen = False  # a byte, an event of this answer


class Load:
    """One run of a workload against one address."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._workload = plan.workload
        self._request = plan.request()
        self._ready = select.epoll()
        self._callers: dict[int, Caller] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._number = count()
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
        from_ns = start + int((workload.opening_seconds + self._plan.settle_seconds) * SECOND)
        self._until_ns = from_ns + int(workload.seconds * SECOND)
        for number in range(workload.connections):
            opens = start + int(workload.opening_seconds * SECOND * number / workload.connections)
            self._at(opens, self._opener(number, opens))
        self._at(from_ns, self._measure)
        self._at(self._until_ns, self._measured)
        deadline = self._until_ns + int(SLACK_SECONDS * SECOND)
        while (self._timers or self._running) and time.monotonic_ns() < deadline:
            for descriptor, events in wait(self._ready, self._timers[0][0] if self._timers else deadline):
                caller = self._callers[descriptor]
                if caller.unsent and events & select.EPOLLOUT:
                    self._send(caller)
                else:
                    self._read(caller)
            while self._timers and self._timers[0][0] <= time.monotonic_ns():
                heapq.heappop(self._timers)[2]()
        self._tally.dropped += self._running
        self._failures["not ended in time"] += self._running
        self._tally.failures = dict((+self._failures).most_common(10))
        for name, samples in self._samples.items():
            ranked = sorted(samples)
            values = quantiles(ranked, QUANTILES.values())
            self._tally.times[name] = dict(zip(QUANTILES, values, strict=True))
            if name in CURVES:
                self._tally.cdf[name] = quantiles(ranked, SHARES)
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

    def _opener(self, number: int, due_ns: int) -> Callable[[], None]:
        each = self._workload.slow_each
        caller = Caller(number, slow=each > 0 and number % each == 0)
        return lambda: self._ask(caller, due_ns)

    def _ask(self, caller: Caller, due_ns: int) -> None:
        """Send a request that is due, over the caller's connection or a new one."""
        workload = self._workload
        events, phase = workload.events, 0
        if workload.shape == HELD:
            phase = phase_us(caller.number, workload.interval_us)
            events = max(0, self._until_ns - time.monotonic_ns()) // (workload.interval_us * 1000) + 1
        asked = talk.Asked(workload.stream, events, workload.interval_us, phase)
        self._tally.exchanges += 1
        self._tally.asked += events
        self._running += 1
        caller.due_ns = due_ns
        caller.answer = http1.Answer()
        caller.check = talk.Check(asked, exact=self._plan.exact)
        caller.begun = caller.seen = False
        caller.unsent = self._request.asking(asked)
        if caller.sock is None:
            caller.sock = socket.socket()
            caller.sock.setblocking(False)
            caller.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if caller.slow:
                caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_WINDOW)
                caller.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SLOW_SEGMENT)
            caller.sock.connect_ex((self._plan.host, self._plan.port))  # what becomes of it, the first send tells
            self._callers[caller.sock.fileno()] = caller
            self._ready.register(caller.sock, select.EPOLLIN)
        self._send(caller)

    def _send(self, caller: Caller) -> None:
        """Send what the socket takes of the request, the rest when it has room."""
        assert caller.sock is not None
        try:
            sent = caller.sock.send(caller.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(caller, f"asking: {error}")
            return
        caller.unsent = caller.unsent[sent:]
        self._ready.modify(caller.sock, select.EPOLLIN | (select.EPOLLOUT if caller.unsent else 0))

    def _stall(self, caller: Caller, sock: socket.socket) -> None:
        """Read nothing for a while."""

        def go_on() -> None:
            if caller.sock is sock:
                self._ready.modify(sock, select.EPOLLIN)

        now = time.monotonic_ns()
        if now < self._until_ns:
            self._ready.modify(sock, 0)
            self._at(min(now + self._workload.stall_ms * SECOND // 1000, self._until_ns), go_on)

    def _read(self, caller: Caller) -> None:
        if caller.sock is None:
            return
        try:
            data = caller.sock.recv(SLOW_READ if caller.slow and time.monotonic_ns() < self._until_ns else READ)
        except BlockingIOError:
            return
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
                if caller.slow and caller.sock is not None:
                    self._stall(caller, caller.sock)
            except (http1.Malformed, talk.Mismatch, ValueError) as error:
                self._fail(caller, f"{type(error).__name__}: {str(error)[:300]}")

    def _take(self, caller: Caller, check: talk.Check, data: bytes, now: int) -> None:
        if self._measuring:
            self._tally.reads += 1
            self._tally.bytes += len(data)
        if not caller.begun:
            caller.begun = True
            if self._workload.shape == HELD:
                self._samples["open"].append(now - caller.due_ns)
            else:
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
        if self._measuring and self._workload.interval_us and not caller.slow:
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
        if shape == HELD or self._workload.fresh or due_ns >= self._until_ns:
            self._hang_up(caller)
        if shape == HELD or due_ns >= self._until_ns:
            return
        if shape == CLOSED or due_ns <= now:
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
    load = Load(Plan.read(sys.argv[1]))
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(load.run())), flush=True)


if __name__ == "__main__":
    main()
