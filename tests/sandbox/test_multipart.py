from __future__ import annotations

import hashlib

import pytest

from tests.cuts import every_cut
from tproxy.sandbox.errors import ApiError
from tproxy.sandbox.multipart import MultipartReader

TYPE = b'multipart/form-data; boundary="x-yz"'
# Data that looks like a boundary, almost.
DATA = b"first\r\n--x-y\r\n--x\r\n\r\n--x-y"
BODY = (
    b"preamble\r\n"
    b"--x-yz\r\n"
    b'Content-Disposition: form-data; name="expires_in_seconds"\r\n\r\n'
    b"3600\r\n"
    b"--x-yz\r\n"
    b'content-disposition: form-data; name="file"; filename="caf\xc3\xa9.txt"\r\n'
    b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + DATA + b"\r\n--x-yz\r\n"
    b'Content-Disposition: form-data; name="empty"\r\n\r\n\r\n'
    b"--x-yz--\r\nepilogue"
)


@pytest.mark.parametrize("keep", [0, 3, 1000])
def test_a_form_is_read_however_it_is_cut(keep: int) -> None:
    for pieces in every_cut(BODY):
        reader = MultipartReader(TYPE, keep=keep)
        for piece in pieces:
            reader.feed(piece)
        reader.close()
        assert [(part.name, part.filename, part.size) for part in reader.parts] == [
            ("expires_in_seconds", None, 4),
            ("file", "café.txt", len(DATA)),
            ("empty", None, 0),
        ]
        assert [bytes(part.content) for part in reader.parts] == [b"3600"[:keep], DATA[:keep], b""]
        assert reader.parts[1].sha256 == hashlib.sha256(DATA).hexdigest()
        assert reader.parts[1].mime_type == "text/plain; charset=utf-8"


def test_a_body_may_begin_with_its_boundary() -> None:
    reader = MultipartReader(TYPE, keep=10)
    reader.feed(b'--x-yz\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x-yz--')
    reader.close()
    assert bytes(reader.parts[0].content) == b"b"


@pytest.mark.parametrize("length", [0, 1, len(BODY) - len("--\r\nepilogue")])
def test_an_unfinished_body_is_refused(length: int) -> None:
    reader = MultipartReader(TYPE, keep=10)
    reader.feed(BODY[:length])
    with pytest.raises(ApiError, match="ends before its last boundary"):
        reader.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"--x-yz??\r\n", "Malformed multipart boundary"),
        (b"--x-yz\r\nContent-Type: text/plain\r\n\r\n", "has no name"),
        (b"--x-yz\r\n" + b"x" * 20_000, "too long"),
    ],
)
def test_a_malformed_body_is_refused(body: bytes, message: str) -> None:
    reader = MultipartReader(TYPE, keep=10)
    with pytest.raises(ApiError, match=message):
        reader.feed(body)


@pytest.mark.parametrize("type_", [b"", b"application/json", b"multipart/form-data", b"multipart/mixed; boundary=x"])
def test_another_content_type_is_refused(type_: bytes) -> None:
    with pytest.raises(ApiError, match="Expected multipart/form-data"):
        MultipartReader(type_, keep=10)


def test_a_large_part_is_not_held() -> None:
    reader = MultipartReader(TYPE, keep=10)
    reader.feed(b'--x-yz\r\nContent-Disposition: form-data; name="a"\r\n\r\n')
    for _ in range(100):
        reader.feed(b"z" * 100_000)
        assert len(reader._buffer) < 20
    reader.feed(b"\r\n--x-yz--")
    reader.close()
    assert reader.parts[0].size == 10_000_000
    assert len(reader.parts[0].content) == 10
