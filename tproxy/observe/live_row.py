"""What the live view shows of one running exchange: its row, reckoned anew only when the exchange has moved.

To look at an exchange that did not move takes a microsecond or two; at one that did, some 40 µs, for the row is
settled as it stands, and 2.5 µs more for each event that the tap then reads, up to half a millisecond. Whoever looks at
many sees to it that others have their turn: `look` says how much work it was.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from tproxy.flow.course import Course
from tproxy.flow.observer import Sight
from tproxy.flow.settle import prompt_tokens
from tproxy.store.base import Closing

WINDOW_SECONDS: Final = 5.0  # over which "now" goes in a rate

# What an exchange is at.
CONNECTING: Final = "connecting"  # nothing of the request has been sent
WAITING_FOR_HEAD: Final = "waiting_for_head"  # it has been, at least in part
WAITING_FOR_CONTENT: Final = "waiting_for_content"  # the head of a stream has come, and no content yet
STREAMING: Final = "streaming"  # the answer passes
PHASES: Final = (CONNECTING, WAITING_FOR_HEAD, WAITING_FOR_CONTENT, STREAMING)

_MAX_TEXT: Final = 128
_MAX_TAGS: Final = 16
_LOOKS: Final = 2  # after each move, for one look need not read all that waits
_LEAST_AVERAGED_US: Final = 200_000

LEAST_WORK: Final = 40  # of a look at an exchange that has moved
_BYTES_PER_WORK: Final = 50
_MOST_READ: Final = 25_000  # about what the tap reads at one look


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One exchange in a snapshot. Names are those of the ledger where they mean the same; texts are cut.

    `prompt_tokens` is all that the model read, cached or not. `tokens_per_second` is that of the last seconds, None
    where it is not known yet; `average_tokens_per_second` goes over all the content so far.
    """

    id: str
    accepted_us: int
    phase: str
    method: str
    path: str
    caller: str
    caller_alias: str | None
    team: str | None
    user: str | None
    customer: str | None
    tags: tuple[str, ...]
    model_asked: str | None
    model_served: str | None
    stream: bool | None
    status: int | None
    input_tokens: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    tokens_per_second: float | None
    average_tokens_per_second: float | None
    head_ms: float | None
    first_content_ms: float | None
    cost_nano: int | None
    certainty: str
    bytes_out: int


class Rate:
    """How fast a count has grown over the last `WINDOW_SECONDS`, or since the count before, if that is longer ago."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # as many as there are looks in the window, and one

    def add(self, at: float, count: int) -> float | None:
        """Take the count of the time `at`, in seconds. Returns growth per second; None where this is the first."""
        counts = self._counts
        counts.append((at, count))
        while len(counts) > 2 and counts[1][0] <= at - WINDOW_SECONDS:
            counts.popleft()
        since, before = counts[0]
        return max(0.0, (count - before) / (at - since)) if at > since else None


class Watched:
    """One running exchange that is shown.

    Args:
        whole: it is watched from its beginning, so that all that it comes to counts as new.

    Attributes:
        json: its row as JSON; b"" until it was looked at.
        phase: what it is at.
        tokens, cost_nano: of its output, and so far, as far as they are known.
    """

    __slots__ = (
        "_bytes", "_closing", "_known", "_looks", "_mark", "_rate", "_shown", "cost_nano", "json", "phase", "sight",
        "tokens",
    )  # fmt: skip

    def __init__(self, sight: Sight, *, whole: bool) -> None:
        self.sight = sight
        self.json = b""
        self.phase = CONNECTING
        self.tokens = self.cost_nano = 0
        self._known = whole
        self._closing: Closing | None = None
        self._mark: object = None
        self._bytes = 0
        self._looks = 0
        self._rate = Rate()
        self._shown: float | None = None

    def look(self, at: float) -> int:
        """See how it stands at `at`, in seconds. Returns how much work that was, in units of about a microsecond."""
        course = self.sight.course
        work = 1
        mark = (course.bytes_out, course.last_byte_us, course.head_us, course.sent)
        if mark != self._mark or self._closing is None:
            self._mark, self._looks = mark, _LOOKS
        moved = self._looks > 0
        if moved or self._closing is None:
            self._looks -= 1
            work = LEAST_WORK + min(course.bytes_out - self._bytes, _MOST_READ) // _BYTES_PER_WORK
            self._bytes = course.bytes_out
            self.sight.tap.look()
            self._closing = self.sight.so_far()
            self.tokens = self._closing.output_tokens or 0
            self.cost_nano = self._closing.cost_nano or 0
        rate = self._rate.add(at, self.tokens)
        if moved or rate != self._shown:
            self._shown = rate
            self.phase = _phase(self.sight, self._closing)
            self.json = _encode(_row(self.sight, self._closing, self.phase, rate))
        return work

    def news(self, tokens: int, cost_nano: int) -> tuple[int, int]:
        """What is new beside the figures that were known before a look or the end; nothing, if none were."""
        if not self._known:
            self._known = True
            return 0, 0
        return self.tokens - tokens, self.cost_nano - cost_nano

    def end(self, closing: Closing) -> tuple[int, int]:
        """What its end adds to what was known."""
        before = self.tokens, self.cost_nano
        if not self._known:
            return 0, 0
        self.tokens, self.cost_nano = closing.output_tokens or 0, closing.cost_nano or 0
        return self.tokens - before[0], self.cost_nano - before[1]


_encode = msgspec.json.Encoder().encode


def _phase(sight: Sight, closing: Closing) -> str:
    course = sight.course
    if course.head_us is None:
        return WAITING_FOR_HEAD if course.sent else CONNECTING
    waits = sight.opening.stream and _success(course) and course.tap_fault is None and closing.error_type is None
    return WAITING_FOR_CONTENT if waits and course.first_content_us is None else STREAMING


def _success(course: Course) -> bool:
    return course.passage.inference and course.upstream_status is not None and course.upstream_status < 300


def _row(sight: Sight, closing: Closing, phase: str, rate: float | None) -> Row:
    opening, course = sight.opening, sight.course
    return Row(
        id=opening.id,
        accepted_us=opening.accepted_us,
        phase=phase,
        method=opening.method,
        path=opening.path[:_MAX_TEXT],
        caller=opening.caller[:_MAX_TEXT],
        caller_alias=_short(opening.caller_alias),
        team=_short(opening.team),
        user=_short(opening.user),
        customer=_short(opening.customer),
        tags=tuple(tag[:_MAX_TEXT] for tag in opening.tags[:_MAX_TAGS]),
        model_asked=_short(opening.model_asked),
        model_served=_short(closing.model_served),
        stream=opening.stream,
        status=closing.status,
        input_tokens=closing.input_tokens,
        prompt_tokens=prompt_tokens(closing),
        output_tokens=closing.output_tokens,
        tokens_per_second=None if rate is None else round(rate, 1),
        average_tokens_per_second=_average(course, closing.output_tokens),
        head_ms=_ms(opening.accepted_us, course.head_us),
        first_content_ms=_ms(opening.accepted_us, course.first_content_us),
        cost_nano=closing.cost_nano,
        certainty=closing.certainty,
        bytes_out=course.bytes_out,
    )


def _average(course: Course, tokens: int | None) -> float | None:
    if tokens is None or course.first_content_us is None or course.last_byte_us is None:
        return None
    took_us = course.last_byte_us - course.first_content_us
    return round(tokens * 1e6 / took_us, 1) if took_us >= _LEAST_AVERAGED_US else None


def _short(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_TEXT]


def _ms(start_us: int, us: int | None) -> float | None:
    return None if us is None else (us - start_us) / 1000
