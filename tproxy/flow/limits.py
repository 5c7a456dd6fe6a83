"""Limits on requests, tokens and parallel requests: may this request pass now, and if not, when?

**A log of the last 60 seconds.** Each subject that is limited has a log of its admitted requests with their tokens, and
each model pattern that it limits has one more. A request stays in a log for 60 seconds from its admission, and a limit
looks at the sum of what is there. So a limit of N holds over *every* 60 seconds (of tokens: as far as estimates were
right), when a refused request would pass is known, and an estimate is mended where it stands once the truth is known.

Why not the usual ones: a fixed window lets 2N pass at its edge; GCRA with a burst of N lets 2N pass within a minute,
and without one spaces out the requests of a key that has used nothing. The log costs one small entry for a request
and minute, shared by all logs of a request.

Rules kept here:
- All limits of all subjects are looked at first; only if every one lets the request pass, it is entered anywhere.
- A request that is larger than a token limit by itself passes when nothing else is in that window. Otherwise it never
  could, however long it waited.
- Logs belong to subjects, not to figures: a limit that is raised or lowered applies at once, to the past minute too.
- A log without entries and without running requests is dropped in the course of later requests.

Not known here: the clock (every call is told the time), budgets, and how tokens are estimated.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from msgspec import Struct

from tproxy.errors import Header, RateLimited
from tproxy.flow.allow import matches
from tproxy.flow.identify import shown
from tproxy.store.subjects import KEY, Subject

_WINDOW = 60.0  # seconds that a request stays in the logs
# A parallel place comes free when some exchange ends, and nobody knows when that is. A limit of 0 never lets pass.
_PARALLEL_WAIT = 1
_ZERO_WAIT = 60

# Model names come from clients. Only a token of RFC 9110 may be a part of a header's name.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


@dataclass(slots=True, eq=False)
class _Amounts:
    """What limits count, of one request or of all that are in a log; `read` and `written` are tokens."""

    requests: int = 0
    read: int = 0
    written: int = 0
    running: int = 0

    def add(self, requests: int, read: int, written: int) -> None:
        self.requests += requests
        self.read += read
        self.written += written


@dataclass(slots=True, eq=False)
class _Entry(_Amounts):
    """One admitted request. It is in its logs until `leaves`."""

    leaves: float = 0.0


@dataclass(slots=True, eq=False)
class _Log(_Amounts):
    """The entries of the last 60 seconds, in the order in which they leave, and their sums.

    `running` alone is not bound to the entries: it counts the requests that have not ended, however old they are.
    """

    entries: deque[_Entry] = field(default_factory=deque)

    def enter(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self.add(entry.requests, entry.read, entry.written)
        self.running += 1

    def expire(self, now: float) -> None:
        """Take out the entries whose time is over."""
        entries = self.entries
        while entries and entries[0].leaves <= now:
            entry = entries.popleft()
            self.add(-entry.requests, -entry.read, -entry.written)

    def trim(self) -> None:
        """Take out entries at the young end that were given back, so that they hold up no reset."""
        while self.entries and not self.entries[-1].requests:
            self.entries.pop()


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """What a limit is on: `name` in headers, `noun` in messages (without its s), and how to weigh it."""

    name: bytes
    noun: str
    weigh: Callable[[_Amounts], int]


_REQUESTS = _Kind(b"requests", "request", lambda amounts: amounts.requests)
_TOKENS = _Kind(b"tokens", "token", lambda amounts: amounts.read + amounts.written)
_INPUT = _Kind(b"input-tokens", "input token", lambda amounts: amounts.read)
_OUTPUT = _Kind(b"output-tokens", "output token", lambda amounts: amounts.written)
_PARALLEL = _Kind(b"parallel-requests", "request", lambda amounts: amounts.running)
_KINDS = (_REQUESTS, _TOKENS, _INPUT, _OUTPUT, _PARALLEL)
_TOLD = _KINDS[:-1]  # a parallel place that is free now says nothing of the next request
_LITELLM = {_REQUESTS: b"x-litellm-key-rpm-limit", _TOKENS: b"x-litellm-key-tpm-limit"}


class _Limit(Struct, frozen=True, eq=False):
    """One figure that a request is held to. `pattern` names the models that it is for; None: whatever the model."""

    subject: Subject
    kind: _Kind
    figure: int
    pattern: str | None
    log: _Log

    @property
    def remaining(self) -> int:
        return max(0, self.figure - self.kind.weigh(self.log))

    def wait(self, entry: _Entry, now: float) -> int:
        """Whole seconds from `now` until this limit lets `entry` pass, if nothing else happens; 0: it does now."""
        if self.figure <= 0:
            return _ZERO_WAIT
        weigh = self.kind.weigh
        used = weigh(self.log)
        excess = used + weigh(entry) - self.figure
        if excess <= 0 or not used:
            return 0
        if self.kind is _PARALLEL:
            return _PARALLEL_WAIT
        # Entries leave in their order, until enough has left: the excess, or all there is.
        entries = self.log.entries
        enough = min(excess, used)
        left = zip(entries, accumulate(map(weigh, entries)), strict=True)
        return _whole_seconds(now, next(entry.leaves for entry, freed in left if freed >= enough))

    def headers(self, now: float) -> list[Header]:
        name = self.kind.name
        headers = [(b"x-ratelimit-limit-" + name, b"%d" % self.figure)]
        headers.append((b"x-ratelimit-remaining-" + name, b"%d" % self.remaining))
        if self.kind is not _PARALLEL:
            entries = self.log.entries
            reset = _whole_seconds(now, entries[-1].leaves) if entries else 0
            headers.append((b"x-ratelimit-reset-" + name, b"%d" % reset))
        return headers

    def refusal(self, entry: _Entry, now: float) -> RateLimited:
        """What to tell the client. It is this limit that makes it wait the longest."""
        wait = self.wait(entry, now)
        subject, kind, figure = self.subject, self.kind, self.figure
        who = f"the {subject.kind} {shown(subject)!r}" if subject.id else "the whole proxy"
        amount = f"{figure} {kind.noun}{'' if figure == 1 else 's'}"
        per = "at a time" if kind is _PARALLEL else "a minute"
        models = f" for {self.pattern!r}" if self.pattern is not None else ""
        if figure <= 0:
            said = f"The limit of {who} is {amount} {per}{models}, so nothing is let in until that is changed."
        elif kind is _PARALLEL:
            said = f"{who} may run {amount} {per}, and does."
        elif kind is _REQUESTS:
            said = f"{who} may make {amount} {per}{models}, and has."
        else:
            used, asked = kind.weigh(self.log), kind.weigh(entry)
            said = f"{who} may use {amount} {per}{models}. It has used {used}, and this request counts as {asked}."
        return RateLimited(
            f"{said[0].upper()}{said[1:]} Try again in {wait} s.",
            headers=[(b"retry-after", b"%d" % wait), *self.headers(now)],
        )


_Key = tuple[str, str, str | None]


class Limiter:
    """The logs of all subjects, in memory. A time before one that was told earlier is taken for that one."""

    def __init__(self) -> None:
        # The key is a subject's kind, its id, and a model pattern or None. The log used last stands last.
        self._logs: OrderedDict[_Key, _Log] = OrderedDict()
        self._now = -math.inf

    def __len__(self) -> int:
        return len(self._logs)

    def take(
        self, asked: Sequence[Subject], model: str | None, input_tokens: int, output_tokens: int, now: float
    ) -> Taken:
        """Let a request pass all limits of `asked`, and enter it everywhere; or refuse it, and enter it nowhere.

        Args:
            asked: whose limits apply: each subject once, and one key at most. Those without limits cost nothing.
            model: which model the request names; None where it runs none. Limits of models apply where they match.
            input_tokens, output_tokens: what it is expected to use.

        Raises:
            RateLimited: with `retry-after`, the whole seconds until all limits would let this very request pass, if
                nothing else happened; and with what remains of the limit that takes the longest, which it names.
        """
        now = self._at(now)
        entry = _Entry(1, input_tokens, output_tokens, 1, now + _WINDOW)
        logs: dict[_Key, _Log] = {}
        limits = [limit for subject in asked for limit in self._limits(subject, model, logs)]
        for log in logs.values():
            log.expire(now)
        if any(limit.wait(entry, now) for limit in limits):
            # Of equal waits, one that ends goes behind one that does not.
            longest = max(limits, key=lambda limit: (limit.wait(entry, now), limit.figure <= 0))
            raise longest.refusal(entry, now)
        for key, log in logs.items():
            log.enter(entry)
            self._logs[key] = log
            self._logs.move_to_end(key)
        self._drop_idle(len(logs) + 2)
        return Taken(self, entry, tuple(logs.values()), limits, model)

    def move(self, kind: str, old: str, new: str) -> None:
        """A subject has another id from now on: what it has used goes with it."""
        for key in [key for key in self._logs if key[:2] == (kind, old)]:
            self._logs[kind, new, key[2]] = self._logs.pop(key)

    def _limits(self, subject: Subject, model: str | None, logs: dict[_Key, _Log]) -> Sequence[_Limit]:
        """All figures of `subject` that a request for `model` is held to. The logs they look at are put in `logs`."""
        terms = subject.terms
        limits: list[_Limit] = []

        def add(kind: _Kind, figure: int, pattern: str | None = None) -> None:
            key = (subject.kind, subject.id, pattern)
            if (log := logs.get(key)) is None:
                log = logs[key] = self._logs.get(key) or _Log()
            limits.append(_Limit(subject, kind, figure, pattern, log))

        figures = (terms.rpm, terms.tpm, terms.itpm, terms.otpm, terms.parallel)
        for kind, figure in zip(_KINDS, figures, strict=True):
            if figure is not None:
                add(kind, figure)
        for kind, by_pattern in ((_REQUESTS, terms.model_rpm), (_TOKENS, terms.model_tpm)):
            for pattern, most in by_pattern.items():
                if model is not None and matches(model, (pattern,)):
                    add(kind, most, pattern)
        return limits

    def _drop_idle(self, most: int) -> None:
        """Look at the `most` logs that were not used for the longest. More than a request adds, so none pile up."""
        for key in tuple(islice(self._logs, most)):
            log = self._logs[key]
            log.expire(self._now)
            if log.running:
                self._logs.move_to_end(key)
            elif log.entries:
                return
            else:
                del self._logs[key]

    def _at(self, now: float) -> float:
        self._now = max(self._now, now)
        return self._now


@dataclass(slots=True, eq=False, repr=False)
class Taken:
    """A request that was let pass. It ends with `settle` or `give_back`; whatever is called after that does nothing."""

    _limiter: Limiter
    _entry: _Entry
    _logs: Sequence[_Log]
    _limits: Sequence[_Limit]
    _model: str | None

    def settle(self, input_tokens: int | None, output_tokens: int | None, now: float) -> None:
        """The request has ended: its parallel places are free, and its tokens are what it really used.

        Tokens count from the request's admission, so those of one that ran for more than 60 seconds have left already.

        Args:
            input_tokens, output_tokens: None where it is not known, and the estimate stays.
        """
        if not self._end():
            return
        entry = self._entry
        if entry.leaves > self._limiter._at(now):  # else it has left, whether or not the logs were looked at since
            self._correct(
                entry.requests,
                entry.read if input_tokens is None else input_tokens,
                entry.written if output_tokens is None else output_tokens,
            )

    def give_back(self) -> None:
        """The request was not made after all: as if it had never been let pass."""
        if self._end() and self._entry.leaves > self._limiter._now:
            self._correct(0, 0, 0)
            for log in self._logs:
                log.trim()

    def headers(self, now: float) -> list[Header]:
        """What remains, for the answer's head: of each kind, the limit of which the least remains; and LiteLLM's own.

        Resets are the whole seconds until the last request that is in the window will have left it.
        """
        now = self._limiter._at(now)
        for log in self._logs:
            log.expire(now)
        headers: list[Header] = []
        for kind in _TOLD:
            limits = [limit for limit in self._limits if limit.kind is kind]
            if limits:
                headers += min(limits, key=lambda limit: (limit.remaining, limit.figure)).headers(now)
                if kind in _LITELLM:
                    headers += self._litellm(kind, limits)
        return headers

    def _litellm(self, kind: _Kind, limits: Sequence[_Limit]) -> Iterator[Header]:
        """What LiteLLM tells of a key's limits on requests or tokens, which are among `limits`."""
        own = [limit for limit in limits if limit.subject.kind == KEY]
        for limit in own:
            if limit.pattern is None:
                yield _LITELLM[kind], b"%d" % limit.figure
        remaining = [limit.remaining for limit in own if limit.pattern is not None]
        if remaining and self._model is not None and _TOKEN.fullmatch(self._model):
            name = b"x-litellm-key-remaining-" + kind.name + b"-" + self._model.lower().encode("ascii")
            yield name, b"%d" % min(remaining)

    def _end(self) -> bool:
        """Free the parallel places. False if that was done before."""
        if not self._entry.running:
            return False
        self._entry.running = 0
        for log in self._logs:
            log.running -= 1
        return True

    def _correct(self, requests: int, read: int, written: int) -> None:
        entry = self._entry
        for log in self._logs:
            log.add(requests - entry.requests, read - entry.read, written - entry.written)
        entry.requests, entry.read, entry.written = requests, read, written


def _whole_seconds(now: float, until: float) -> int:
    """From `now` to `until`, rounded up: in floats too, `now` plus this reaches `until`, and plus one less does not."""
    seconds = math.ceil(until - now)
    if now + seconds < until:
        return seconds + 1
    return seconds - 1 if now + (seconds - 1) >= until else seconds
