"""Heads of answers: what is let through goes out as it was given, and what would be two heads is an error."""

from __future__ import annotations

import pytest

from tproxy.errors import Header
from tproxy.wire.answer import Answer, State


def head(*fields: Header, status: int = 200, reason: bytes | None = None, method: str = "GET") -> bytes:
    return Answer(method, "1.1", last=False).head(status, reason, [*fields, (b"Date", b"now")])


MALFORMED: dict[str, list[Header]] = {
    "an empty name": [(b"", b"b")],
    "an empty name among others": [(b"x-a", b"b"), (b"", b"b"), (b"x-c", b"d")],
    "an empty name at the end": [(b"x-a", b"b"), (b"", b"b")],
    "a colon in a name": [(b"x-a: b", b"c")],
    "a space in a name": [(b"x a", b"c")],
    "a line end in a name": [(b"x-a\r\nx-b", b"c")],
    "a line feed in a name": [(b"x-a\nx-b", b"c")],
    "a name above ASCII": [(b"x-\xe9", b"c")],
    "a line end in a value": [(b"x-a", b"1\r\nx-b: 2")],
    "a line feed in a value": [(b"x-a", b"1\nx-b: 2")],
    "a line feed in each": [(b"x-a\nx-b", b"1\n2")],
    "a carriage return in a value": [(b"x-a", b"1\rx-b: 2")],
    "NUL in a value": [(b"x-a", b"1\x002")],
    "two lengths": [(b"content-length", b"1"), (b"Content-Length", b"1")],
    "two lengths beside a coding": [(b"transfer-encoding", b"x"), (b"content-length", b"1"), (b"content-length", b"1")],
    "a length that is none": [(b"content-length", b"+1")],
    "an empty length": [(b"content-length", b"")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_field(name: str) -> None:
    answer = Answer("GET", "1.1", last=False)
    for fields in (MALFORMED[name], [(b"connection", b"close"), *MALFORMED[name], (b"x-z", b"z")]):
        with pytest.raises(ValueError, match=r"malformed|not one number"):
            answer.head(200, None, fields)
    assert answer.state is State.WAITING
    assert not answer.last


@pytest.mark.parametrize(("status", "reason"), [(199, None), (1000, None), (200, b"O\r\nK"), (200, b"O\0K")])
def test_a_malformed_status_line(status: int, reason: bytes | None) -> None:
    with pytest.raises(ValueError, match="cannot have status"):
        head(status=status, reason=reason)


def test_fields_go_out_as_they_were_given() -> None:
    given = [(b"X-A", b" \xff:\tb "), (b"!#$%&'*+-.^_`|~09AZ", b""), (b"x-a", b"2")]
    assert head(*given, (b"content-length", b"3")) == (
        b"HTTP/1.1 200 OK\r\nX-A: \xff:\tb\r\n!#$%&'*+-.^_`|~09AZ: \r\nx-a: 2\r\ncontent-length: 3\r\nDate: now\r\n\r\n"
    )


def test_an_answer_without_fields_has_a_date() -> None:
    wire = Answer("HEAD", "1.1", last=False).head(299, None, [])
    assert wire.startswith(b"HTTP/1.1 299 \r\nDate: ")
    assert wire.endswith(b" GMT\r\n\r\n")


def test_fields_that_are_ours_are_dropped() -> None:
    wire = head((b"Connection", b"X-A"), (b"Transfer-Encoding", b"gzip"), (b"content-length", b"3"), (b"x-a", b"1"))
    assert wire == b"HTTP/1.1 200 OK\r\nx-a: 1\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n"
