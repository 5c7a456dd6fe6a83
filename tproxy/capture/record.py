"""One exchange's bodies: as they were taken, and as they are kept.

What is taken is bytes. What is kept is the conversation: the request's JSON, and the message that the answer was,
whether it came as a stream or not; both redacted. A stream is joined first: a key that comes in two deltas is a key in
the message only. This takes some milliseconds for each hundred kilobytes and is done by another process (`keeper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tproxy.protocol.conversation import is_stream, join
from tproxy.protocol.redact import Redacted, Redactor

# How a text is to be read.
MESSAGE = "message"  # the message that a stream was joined to
JSON = "json"
TEXT = "text"

# More than is kept is held, for media shrink to a line.
HELD_PER_KEPT = 4


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The bodies as they came. A body is None where none was read: a streamed upload, an answer that is no inference.

    `request_bytes` and `answer_bytes` say how long they were; what is missing was past the bound.
    """

    id: str
    at_us: int
    caller: str
    caller_alias: str | None
    model: str | None
    path: str
    status: int | None
    ended: str
    error_type: str | None
    why: str
    request: bytes | None
    request_bytes: int
    answer: Sequence[bytes] | None  # in pieces
    answer_bytes: int
    answer_lost: bool  # the tap gave up before its end

    @property
    def weight(self) -> int:
        """Bytes that are held."""
        return len(self.request or b"") + sum(map(len, self.answer or ()))


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A row. The field names are the column names. `whole` is None where that cannot be told."""

    id: str
    at_us: int
    caller: str
    caller_alias: str | None
    model: str | None
    path: str
    status: int | None
    ended: str
    error_type: str | None
    why: str
    request: str | None
    request_kind: str | None
    request_bytes: int
    request_cut: bool
    answer: str | None
    answer_kind: str | None
    answer_bytes: int
    answer_cut: bool
    answer_whole: bool | None
    answer_error: str | None
    redacted: int
    size: int


def develop(taken: Taken, redactor: Redactor, max_bytes: int) -> Kept:
    """Make of what was taken what is kept: at most `max_bytes` characters of each body."""
    request: Redacted | None = None
    answer: Redacted | None = None
    whole: bool | None = None
    kind = error = None
    redacted = 0
    if taken.request is not None:
        cut = len(taken.request) < taken.request_bytes
        request = redactor.body(taken.request, most=max_bytes, cut=cut)
        redacted += request.times
    if taken.answer is not None:
        body = b"".join(taken.answer)
        cut = taken.answer_lost or len(body) < taken.answer_bytes
        if is_stream(body):
            joined = join(body)
            whole = joined.complete
            if joined.message is not None:
                answer = redactor.value(joined.message, most=max_bytes, cut=cut)
                kind = MESSAGE
            redacted += 0 if answer is None else answer.times
            said = None if joined.error is None else redactor.value(joined.error, most=max_bytes)
            if said is not None:
                error, redacted = said.text, redacted + said.times
        if answer is None:
            answer = redactor.body(body, most=max_bytes, cut=cut)
            kind, redacted = _kind(answer), redacted + answer.times
    return Kept(
        id=taken.id,
        at_us=taken.at_us,
        caller=taken.caller,
        caller_alias=taken.caller_alias,
        model=taken.model,
        path=taken.path,
        status=taken.status,
        ended=taken.ended,
        error_type=taken.error_type,
        why=taken.why,
        request=None if request is None else request.text,
        request_kind=None if request is None else _kind(request),
        request_bytes=taken.request_bytes,
        request_cut=request is not None and request.cut,
        answer=None if answer is None else answer.text,
        answer_kind=kind,
        answer_bytes=taken.answer_bytes,
        answer_cut=taken.answer_lost or (answer is not None and answer.cut),
        answer_whole=whole,
        answer_error=error,
        redacted=redacted,
        size=sum(len(each.text) for each in (request, answer) if each is not None) + len(error or ""),
    )


def shown(text: str | None, kind: str | None) -> Any:
    """What is kept as a value: JSON is read."""
    return text if text is None or kind == TEXT else msgspec.json.decode(text)


def _kind(redacted: Redacted) -> str:
    return JSON if redacted.is_json else TEXT
