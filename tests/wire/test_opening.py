"""Plain heads are read by a few lines of our own: as the judge reads them, and nothing that the judge refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_inbound_hostile import OPENINGS, SERVED
from tproxy.wire.opening import Opening, Refused, head_end, judge, open_plain, open_request
from tproxy.wire.request_body import CountedBody

SDK = (
    b"POST /anthropic/v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1:4000\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUser-Agent: Anthropic/Python 0.40.0\r\nX-Stainless-Lang: python\r\n"
    b"anthropic-version: 2023-06-01\r\nx-api-key: sk-1\r\ncontent-type: application/json\r\nContent-Length: 120\r\n\r\n"
)
PLAIN = {
    "an SDK's": SDK,
    "no body": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a last request": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n",
    "two Connection fields": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: a\r\nconnection: b\r\n\r\n",
    "an absolute target": b"GET http://x/ HTTP/1.1\r\nhOST:\t[::1]:80 \r\n\r\n",
    "odd values": b"BREW * HTTP/1.1\r\nHost: x\r\nX-A:\r\nX-B:  \t \r\nX-A: \xff:\tb \r\n\r\n",
    "a length with zeros": b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 000000000000004\r\n\r\n",
}


def told(opening: Opening) -> tuple[object, ...]:
    left = opening.body.left if isinstance(opening.body, CountedBody) else None
    return (*(getattr(opening, name) for name in opening.__struct_fields__[:-1]), type(opening.body), left)


def agrees(head: bytes, max_headers: int = 100) -> bool:
    """Whether it was plain; what is plain has to be the same to the judge."""
    plain = open_plain(head, max_headers)
    if plain is None:
        return False
    assert told(plain) == told(judge(head, 65536, max_headers))
    return True


def whole_head(data: bytes) -> bytes | None:
    """The head at the start of `data`, as a connection would find it; None where it never gets that far."""
    data = data.lstrip(b"\r\n")
    try:
        return data[: head_end(bytearray(data), 0, 65536)] or None
    except Refused:
        return None


@pytest.mark.parametrize("name", PLAIN)
def test_plain_heads(name: str) -> None:
    assert agrees(PLAIN[name])
    assert told(open_request(PLAIN[name], max_bytes=65536, max_headers=100)) == told(judge(PLAIN[name], 65536, 100))


def test_the_fields_that_are_allowed() -> None:
    assert agrees(SDK, 9)
    assert not agrees(SDK, 8)


@pytest.mark.parametrize(("name", "data", "status"), OPENINGS, ids=[row[0] for row in OPENINGS])
def test_hostile_heads(name: str, data: bytes, status: int) -> None:
    head = whole_head(data)
    if head is not None and agrees(head):
        assert status == SERVED


LINES = (
    b"GET / HTTP/1.1",
    b"POST /v1/messages?a=b HTTP/1.1",
    b"get / HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"GET / HTTP/1.0",
)
FIELDS = (
    b"Host: x", b"host:y:80", b"HOST: a b", b"Host:",
    b"Content-Length: 4", b"content-length:\t04", b"Content-Length: +4", b"Content-Length: 4,4",
    b"Content-Length: " + b"1" * 16, b"Content-Length : 4", b"Transfer-Encoding: chunked", b"transfer-encoding: x",
    b"Expect: 100-continue", b"Upgrade: h2c", b"Upgrade: x", b"Connection: close", b"connection: Keep-Alive,x",
    b"X-A: b", b" folded", b"\tfolded", b"X-\xe9: a", b"X: \xe9", b"X: \x7f", b"X: \x0b", b": x", b"X", b"",
    b"X: a\rb", b"X: a\nb", b"X: a\0",
)  # fmt: skip

heads = st.builds(
    lambda line, fields: b"\r\n".join([line, *fields]) + b"\r\n\r\n",
    st.sampled_from(LINES) | st.from_regex(rb"[A-Z]{1,8} [!-~]{1,20} HTTP/1\.[01]", fullmatch=True),
    st.lists(st.sampled_from(FIELDS) | st.from_regex(rb"[!-~]{1,9}: ?[\t -\xff]{0,12}", fullmatch=True), max_size=8),
)


@given(heads)
def test_made_up_heads(data: bytes) -> None:
    head = whole_head(data)
    if head is not None:
        agrees(head)


@given(st.sampled_from([*PLAIN.values()]), st.integers(0), st.binary(max_size=2), st.integers(0, 2))
def test_plain_heads_with_a_few_bytes_changed(head: bytes, at: int, put: bytes, instead_of: int) -> None:
    at %= len(head)
    changed = whole_head(head[:at] + put + head[at + instead_of :])
    if changed is not None:
        agrees(changed)
