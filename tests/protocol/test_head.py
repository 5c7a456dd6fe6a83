"""Header fields of the plain kind, beside h11's judgement."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.protocol.head import plain_fields

FIELDS = {
    "none": (b"", []),
    "one": (b"Host: h\r\n", [(b"Host", b"h")]),
    "spelling, order and repetition": (b"b: 1\r\nA: 2\r\nb: 3\r\n", [(b"b", b"1"), (b"A", b"2"), (b"b", b"3")]),
    "whitespace around the value": (b"a:  \t x y\t \r\n", [(b"a", b"x y")]),
    "empty": (b"a:\r\nb: \r\n", [(b"a", b""), (b"b", b"")]),
    "colons and bytes above 127": (b"a: b:c\xff\r\n", [(b"a", b"b:c\xff")]),
    "space before the colon": (b"a : b\r\n", None),
    "space before the name": (b" a: b\r\n", None),
    "folded": (b"a: b\r\n c\r\n", None),
    "no colon": (b"a\r\n", None),
    "no name": (b": b\r\n", None),
    "bare LF": (b"a: b\nc: d\r\n", None),
    "bare CR": (b"a: b\rc: d\r\n", None),
    "NUL": (b"a: \0\r\n", None),
    "control character": (b"a: \x01\r\n", None),
    "DEL": (b"a: \x7f\r\n", None),
    "no line end": (b"a: b", None),
    "an empty line": (b"a: b\r\n\r\n", None),
    "not a token": (b"a(b): c\r\n", None),
}


@pytest.mark.parametrize(("block", "fields"), FIELDS.values(), ids=FIELDS)
def test_plain_fields(block: bytes, fields: list[tuple[bytes, bytes]] | None) -> None:
    assert plain_fields(block) == fields


@given(st.lists(st.sampled_from([b"a", b"B-c", b":", b" ", b"\t", b"x", b"\r\n", b"\n", b"\r", b"\0", b"\xe4", b"("])))
def test_accepts_nothing_that_h11_refuses_and_reads_it_alike(parts: list[bytes]) -> None:
    block = b"".join(parts)
    fields = plain_fields(block)
    if fields is None:
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"GET / HTTP/1.1\r\nHost: h\r\n" + block + b"\r\n")
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    assert request.headers.raw_items()[1:] == fields
