"""Message batches (API reference, "Message Batches").

A batch is worked off when it is created, and shown as in progress until its time has come. Its `results_url` is
absolute and names the sandbox's own origin, as the API's names its own: a client that follows it passes by whatever
stands between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tproxy.sandbox.body import Body
from tproxy.sandbox.books import COMPLETE, Bill, Books, Entry
from tproxy.sandbox.errors import ApiError, invalid
from tproxy.sandbox.files import rfc3339
from tproxy.sandbox.shelf import Shelf

_DAY = 86_400.0
_MOST_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class Line:
    """One result: its request's id, its outcome as JSON, and what it is billed."""

    custom_id: str
    kind: Literal["succeeded", "errored"]
    result: bytes
    bills: list[Bill] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch and its results, which are there from the start and shown at `ends_at`."""

    id: str
    created_at: float
    ends_at: float
    lines: list[Line]
    cancelled_at: float | None = None
    booked: bool = False

    def status(self, now: float) -> str:
        return "ended" if now >= self.ends_at else "in_progress"

    def as_json(self, now: float, origin: str, *, status: str | None = None) -> dict[str, Any]:
        """A MessageBatch. `status`: what is shown instead of the status now."""
        status = status or self.status(now)
        ended = status == "ended"
        kinds = [line.kind for line in self.lines] if ended and self.cancelled_at is None else []
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                "processing": 0 if ended else len(self.lines),
                "succeeded": kinds.count("succeeded"),
                "errored": kinds.count("errored"),
                "canceled": len(self.lines) if ended and self.cancelled_at is not None else 0,
                "expired": 0,
            },
            "created_at": rfc3339(self.created_at),
            "expires_at": rfc3339(self.created_at + _DAY),
            "ended_at": rfc3339(self.ends_at) if ended else None,
            "cancel_initiated_at": None if self.cancelled_at is None else rfc3339(self.cancelled_at),
            "archived_at": None,
            "results_url": f"{origin}/v1/messages/batches/{self.id}/results" if ended else None,
        }

    def results(self) -> Body:
        """The results as lines of JSON, in another order than the requests."""
        lines = self.lines[::-1]
        if self.cancelled_at is not None:
            return Body.of((_line(line.custom_id, b'{"type":"canceled"}'), 0) for line in lines)
        return Body.of((_line(line.custom_id, line.result), 0) for line in lines)


def _line(custom_id: str, result: bytes) -> bytes:
    return b'{"custom_id":%b,"result":%b}\n' % (msgspec.json.encode(custom_id), result)


def requests_of(value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The requests of a batch that is to be made, as (custom_id, params); params are not checked yet.

    Raises:
        ApiError: 400.
    """
    for name in value:
        if name != "requests":
            raise invalid(f"{name}: Extra inputs are not permitted")
    requests = value.get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= _MOST_REQUESTS:
        raise invalid(f"requests: Input should be a list of 1 to {_MOST_REQUESTS} requests")
    listed: dict[str, dict[str, Any]] = {}
    for index, request in enumerate(requests):
        place = f"requests.{index}"
        if not isinstance(request, dict):
            raise invalid(f"{place}: Input should be a valid object")
        for name in request:
            if name not in {"custom_id", "params"}:
                raise invalid(f"{place}.{name}: Extra inputs are not permitted")
        custom_id, params = request.get("custom_id"), request.get("params")
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 64:
            raise invalid(f"{place}.custom_id: Input should be a string of 1 to 64 letters")
        if not isinstance(params, dict):
            raise invalid(f"{place}.params: Input should be a valid object")
        if custom_id in listed:
            raise invalid(f"{place}.custom_id: {custom_id!r} is there twice")
        listed[custom_id] = params
    return list(listed.items())


class Batches:
    """All batches, newest first: at most 1,000, of whose results at most 64 MiB.

    Args:
        origin: the sandbox's own, for `results_url`.
        books: get an entry for each line, once its batch has been seen to have ended.
    """

    def __init__(self, origin: str, books: Books) -> None:
        self._origin = origin
        self._books = books
        self._batches: Shelf[str, Batch] = Shelf(count=1000, weight=64 * 1024 * 1024)

    def add(self, batch: Batch) -> dict[str, Any]:
        """Take a new batch; it is shown as in progress, as every new one is."""
        self._batches.put(batch.id, batch, sum(len(line.result) for line in batch.lines))
        return batch.as_json(batch.created_at, self._origin, status="in_progress")

    def get(self, id_: str) -> Batch:
        batch = self._batches.get(id_)
        if batch is None:
            raise ApiError(404, f"Message batch not found: {id_}")
        return batch

    def show(self, id_: str, now: float) -> dict[str, Any]:
        batch = self.get(id_)
        self._book(batch, now)
        return batch.as_json(now, self._origin)

    def cancel(self, id_: str, now: float) -> dict[str, Any]:
        """End a batch that runs: it is shown as canceling, and from then on as ended."""
        batch = self.get(id_)
        if batch.status(now) == "ended":
            raise invalid(f"Message batch {id_} has ended already")
        batch.cancelled_at = batch.ends_at = now
        return batch.as_json(now, self._origin, status="canceling")

    def delete(self, id_: str, now: float) -> dict[str, Any]:
        if self.get(id_).status(now) != "ended":
            raise invalid(f"Message batch {id_} is still in progress")
        self._batches.pop(id_)
        return {"id": id_, "type": "message_batch_deleted"}

    def results(self, id_: str, now: float) -> Body:
        batch = self.get(id_)
        if batch.status(now) != "ended":
            raise ApiError(404, f"Message batch {id_} has no results yet")
        self._book(batch, now)
        return batch.results()

    def newest(self, now: float) -> list[dict[str, Any]]:
        return [self.show(id_, now) for id_ in reversed(list(self._batches))]

    def _book(self, batch: Batch, now: float) -> None:
        if batch.booked or batch.status(now) != "ended":
            return
        batch.booked = True
        for line in batch.lines if batch.cancelled_at is None else ():
            entry = Entry(
                request_id=f"{batch.id}/{line.custom_id}",
                method="POST",
                path=f"/v1/messages/batches/{batch.id}",
                received_at=batch.created_at,
                model=line.bills[0].model if line.bills else None,
                status=200,
                bills=line.bills,
                output_delivered=sum(bill.output_tokens for bill in line.bills),
            )
            self._books.open(entry)
            self._books.close(entry, COMPLETE, now)
