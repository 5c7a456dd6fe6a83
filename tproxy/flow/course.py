"""How one exchange goes: the facts that its steps leave behind, and from which its row is settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tproxy.flow.route import Passage


@dataclass(slots=True)
class Course:
    """Filled in as the exchange goes; read when its row is noted and closed.

    Times are wall-clock microseconds since the epoch. `bytes_in` and `bytes_out` count body bytes as they were on the
    wire of the client's side. `sent`: some of the request may have reached the upstream. `status` is the one that the
    client got, which may be ours. Of the ending, four things are noted: `broken`, the word (of `store/base.py`) for
    the fault that ended it; `client_gone`, that the client was seen to leave; `whole`, that every byte of the answer
    had gone out; `missed`, that some of it came when the client was no longer there.
    """

    id: str
    passage: Passage
    accepted_us: int
    clock: Callable[[], int]
    model_asked: str | None = None
    dialled_us: int | None = None
    sent: bool = False
    head_us: int | None = None
    first_content_us: int | None = None
    last_byte_us: int | None = None
    upstream_status: int | None = None
    status: int | None = None
    request_id: str | None = None
    remains: tuple[int | None, ...] = ()
    error_type: str | None = None
    tap_fault: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    broken: str | None = None
    client_gone: bool = False
    whole: bool = False
    missed: bool = False

    def sending(self) -> None:
        """Note that the request is on its way."""
        self.sent = True
