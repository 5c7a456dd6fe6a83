from __future__ import annotations

import hashlib

import pytest

from tproxy.sandbox.errors import ApiError
from tproxy.sandbox.received import MIB, Head, Intake, Received, Requests


def received(body: bytes) -> Received:
    return Received(
        method="POST",
        target=b"/",
        version=b"1.1",
        headers=(),
        trailers=(),
        body=body,
        size=len(body),
        sha256="",
        complete=True,
        connection=1,
    )


def test_the_newest_requests_are_kept_up_to_a_weight() -> None:
    requests = Requests()
    for number in range(4):
        requests.add(received(bytes([number]) * 20 * MIB))
    assert [got.body[0] for got in requests.kept] == [1, 2, 3]
    requests.add(received(b"x" * 100 * MIB))
    assert len(requests.kept) == 1, "the newest stays, whatever it weighs"
    assert requests.weight == 100 * MIB


def test_a_head_is_asked_in_lower_case() -> None:
    head = Head("GET", b"/a%20b?x=1&x=2&y", b"1.1", ((b"X-Key", b"1"), (b"x-key", b"2")))
    assert (head.get(b"x-key"), head.get(b"gone")) == (b"1", None)
    assert (head.path, head.query) == ("/a%20b", {"x": ["1", "2"], "y": [""]})


@pytest.mark.parametrize(("keep", "held"), [(10, b"0123456789"), (9, b""), (0, b"")])
def test_an_intake_hashes_all_and_holds_what_is_small(keep: int, held: bytes) -> None:
    intake = Intake(most=10, keep=keep)
    intake.feed(b"01234")
    intake.feed(bytearray(b"56789"))
    assert (intake.size, intake.body) == (10, held)
    assert intake.sha256 == hashlib.sha256(b"0123456789").hexdigest()


def test_an_intake_refuses_what_is_too_large() -> None:
    intake = Intake(most=10, keep=10)
    intake.feed(b"0123456789")
    with pytest.raises(ApiError) as caught:
        intake.feed(b"0")
    assert (caught.value.status, intake.body) == (413, b"")
