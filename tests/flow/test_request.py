from __future__ import annotations

import pytest

from tproxy.errors import Header
from tproxy.flow.request import Request


def request(headers: list[Header], scheme: str = "http") -> Request:
    return Request("GET", b"/", headers, b"1.1", None, None, scheme)


@pytest.mark.parametrize(
    ("headers", "scheme", "ours"),
    [
        ([(b"Host", b"proxy:4000")], "http", b"http://proxy:4000/anthropic"),
        ([(b"host", b"proxy")], "https", b"https://proxy/anthropic"),
        ([(b"host", b"proxy"), (b"X-Forwarded-Proto", b"https")], "http", b"https://proxy/anthropic"),
        ([(b"host", b"proxy"), (b"x-forwarded-proto", b"http")], "https", b"https://proxy/anthropic"),
        ([(b"host", b"proxy"), (b"x-forwarded-proto", b"javascript")], "http", b"http://proxy/anthropic"),
    ],
)
def test_where_the_client_finds_us(headers: list[Header], scheme: str, ours: bytes) -> None:
    assert request(headers, scheme).bases("https://up", b"/anthropic") == (b"https://up", ours)


def test_a_client_that_does_not_say() -> None:
    assert request([]).bases("https://up", b"") is None
