from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.errors import BadRequest
from tproxy.protocol.target import MAX_TARGET_BYTES, Target, parse_target

HOST = b"127.0.0.1:4000"

KEPT = {
    "plain": b"/v1/messages",
    "root": b"/",
    "trailing slash": b"/anthropic/",
    "beta query": b"/v1/messages?beta=true",
    "empty query": b"/v1/messages?",
    "duplicate and odd query parts": b"/v1/x?a=1&a=2&&=&b&%zz=%&q=a?b/../c//d\\e;f@g|{}\"'<>[]",
    "colon": b"/v1/models/a:b",
    "harmless escapes": b"/v1/models/claude%2Dopus%2e5%7e%41",
    "escaped at, hash, question mark, semicolon": b"/v1/a%40b%23c%3fd%3Be",
    "escaped UTF-8": b"/v1/files/%C3%A9%e2%82%ac%F0%9F%99%82",
    "bytes that are no UTF-8": b"/v1/files/%ff%fe",
    "escaped space": b"/v1/files/a%20b",
    "escaped percent": b"/v1/files/100%25",
    "twice escaped letter": b"/v1/%2541",
    "four times escaped letter": b"/v1/%25252541",
    "percent in an escape that is none": b"/v1/%25zz",
    "dots that are no dot segment": b"/v1/.../.a/a./..a/a..b/%2e%2e%2e",
    "sub-delims": b"/v1/a!$&'()*+,=~_-",
    "braces, pipe, quotes": b'/v1/{a|b}^`"<>[]',
    "longest": b"/" + b"a" * (MAX_TARGET_BYTES - 1),
}


@pytest.mark.parametrize("raw", KEPT.values(), ids=KEPT.keys())
def test_a_legal_target_is_kept_byte_for_byte(raw: bytes) -> None:
    target = parse_target(raw, HOST)
    assert target.raw == raw
    path, mark, query = raw.partition(b"?")
    assert target == Target(path, query if mark else None)


REFUSED = {
    "empty": b"",
    "no slash": b"v1/messages",
    "userinfo trick": b"@evil.test/",
    "authority form": b"evil.test:443",
    "asterisk": b"*",
    "query only": b"?a=b",
    "other scheme": b"ftp://127.0.0.1:4000/x",
    "one slash scheme": b"http:/127.0.0.1:4000/x",
    "network path": b"//evil.test/x",
    "double slash inside": b"/v1//messages",
    "double slash at the end": b"/v1/messages//",
    "dot segment": b"/v1/../admin",
    "dot segment at the end": b"/v1/..",
    "dot segment before query": b"/v1/..?x=1",
    "single dot": b"/v1/./messages",
    "single dot at the end": b"/v1/.",
    "dot segment first": b"/../x",
    "encoded dots": b"/v1/%2e%2e/admin",
    "encoded dots, mixed case": b"/v1/%2E%2e/admin",
    "half encoded": b"/v1/.%2e/admin",
    "other half encoded": b"/v1/%2E./admin",
    "encoded single dot": b"/v1/%2e/messages",
    "double encoded dots": b"/v1/%252e%252E/admin",
    "triple encoded dots": b"/v1/%25252e%25252e/admin",
    "encoded digits of the escape": b"/v1/%2%32e/admin",
    "piecewise double encoded": b"/v1/%25%32%65%25%32%65/admin",
    "over-encoded": b"/v1/%252525252541",
    "over-encoded far": b"/v1/%" + b"25" * 5000 + b"41",
    "dots with a raw tail": b"/v1/..;x=1/admin",
    "dots with an encoded tail": b"/v1/..%3bx=1/admin",
    "dots with a double encoded tail": b"/v1/%2e%2e%253bx/admin",
    "dots with an encoded query": b"/v1/..%3fx/admin",
    "dots with an encoded fragment": b"/v1/..%23",
    "overlong dot": b"/v1/%c0%ae%c0%ae/admin",
    "overlong slash": b"/v1/..%C0%AFadmin",
    "overlong in three bytes": b"/v1/%e0%80%ae/x",
    "overlong in four bytes": b"/v1/%f0%80%80%ae/x",
    "semicolon": b"/v1/messages;x",
    "backslash": b"/v1\\..\\admin",
    "encoded backslash": b"/v1/%5cadmin",
    "double encoded backslash": b"/v1/%255Cadmin",
    "encoded slash": b"/v1/%2fadmin",
    "encoded slash, upper case": b"/v1%2Fadmin",
    "double encoded slash": b"/v1/a%252fb",
    "encoded NUL": b"/v1/messages%00",
    "encoded CRLF": b"/v1/messages%0d%0aX:1",
    "double encoded CR": b"/v1/messages%250d",
    "encoded DEL": b"/v1/%7f",
    "raw NUL": b"/v1/\x00",
    "raw control": b"/v1/\x01x",
    "raw CRLF": b"/v1/x\r\nHost: evil",
    "raw DEL": b"/v1/\x7f",
    "space": b"/v1/a b",
    "raw UTF-8": "/v1/é".encode(),
    "raw high byte": b"/v1/\xff",
    "fragment": b"/v1/messages#x",
    "at": b"/v1/@evil.test",
    "lone percent": b"/v1/100%",
    "short escape": b"/v1/%4",
    "escape with other letters": b"/v1/%zz",
    "percent percent": b"/v1/%%32e",
    "control in query": b"/v1/x?a=\x02",
    "CR in query": b"/v1/x?a=\r",
    "NUL in query": b"/v1/x?\x00",
    "DEL in query": b"/v1/x?\x7f",
    "space in query": b"/v1/x?a b",
    "fragment in query": b"/v1/x?a#b",
    "UTF-8 in query": "/v1/x?q=é".encode(),
    "too long": b"/" + b"a" * MAX_TARGET_BYTES,
    "too long by its query": b"/?" + b"a" * MAX_TARGET_BYTES,
    "absolute-form to elsewhere": b"http://evil.test/v1/messages",
    "absolute-form, other port": b"http://127.0.0.1:4001/v1/messages",
    "absolute-form, no port": b"http://127.0.0.1/v1/messages",
    "absolute-form with userinfo": b"http://127.0.0.1:4000@evil.test/v1/messages",
    "absolute-form, userinfo before host": b"http://a:b@127.0.0.1:4000/v1/messages",
    "absolute-form, host as prefix": b"http://127.0.0.1:4000.evil.test/",
    "absolute-form, backslash": b"http://127.0.0.1:4000\\@evil.test/",
    "absolute-form, no authority": b"http:///v1/messages",
    "absolute-form with an unsafe path": b"http://127.0.0.1:4000/v1/%2e%2e/admin",
    "absolute-form with a fragment": b"http://127.0.0.1:4000#x",
    "absolute-form, double slash": b"http://127.0.0.1:4000//evil.test",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_an_unsafe_target_is_refused_in_plain_words(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_target(raw, HOST)
    message = refusal.value.message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 450


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"/v1/../x", "dot segment"),
        (b"/v1/%2f", "encoded slash"),
        (b"/v1/%00", "b'\\x00' when decoded"),
        (b"/v1/\x1b[2J", "the byte b'\\x1b'"),
        (b"/v1\\x", "the byte b'\\\\'"),
        (b"/v1/%zz", "malformed percent-escape b'%zz'"),
        (b"//x", "empty segment"),
        (b"/%2525252525", "5 times"),
        (b"x", 'start with "/"'),
        (b"http://evil.test/", "authority"),
        (b"/?a b", "query"),
        (b"/" + b"a" * MAX_TARGET_BYTES, "longer than 16384 bytes"),
    ],
)
def test_a_refusal_says_what_was_wrong(raw: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_target(raw, HOST)
    assert words in refusal.value.message


@pytest.mark.parametrize(
    "raw",
    [b"/v1/../x?key=canary", b"/x?canary\x00", b"http://u:canary@evil.test/", b"u:canary@evil.test:443"],
)
def test_a_refusal_shows_neither_query_nor_authority(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_target(raw, HOST)
    assert "canary" not in refusal.value.message


@pytest.mark.parametrize(
    ("raw", "host", "origin"),
    [
        (b"http://127.0.0.1:4000/v1/messages?a=b", HOST, b"/v1/messages?a=b"),
        (b"HTTPS://Proxy.Test/v1/x", b"proxy.test", b"/v1/x"),
        (b"http://proxy.test/x", b"PROXY.test", b"/x"),
        (b"http://[::1]:4000/x?", b"[::1]:4000", b"/x?"),
        (b"http://proxy.test", b"proxy.test", b"/"),
        (b"http://proxy.test?a=b", b"proxy.test", b"/?a=b"),
    ],
)
def test_absolute_form_to_our_own_host_is_read_as_origin_form(raw: bytes, host: bytes, origin: bytes) -> None:
    assert parse_target(raw, host).raw == origin


def test_absolute_form_needs_a_host_header() -> None:
    with pytest.raises(BadRequest):
        parse_target(b"http://127.0.0.1:4000/x", None)
    with pytest.raises(BadRequest):
        parse_target(b"http:///x", b"")
    assert parse_target(b"/x", None).raw == b"/x"


@pytest.mark.parametrize(
    "host",
    [b"localhost/#@x", b"a@b/c?d", b"a b", b'a"b', b"a,b", b"a\\b", b"a:b", b"[::1", b"[x]", b"a:1:2", b"\xff", b"a\n"],
)
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    with pytest.raises(BadRequest, match="Host header"):
        parse_target(b"/v1/messages", host)


@pytest.mark.parametrize("host", [b"", b"localhost", b"my_host-1.test:8080", b"127.0.0.1:0", b"[::1]", b"[::1]:4000"])
def test_a_host_that_is_one_passes(host: bytes) -> None:
    assert parse_target(b"/v1/messages", host).path == b"/v1/messages"


@pytest.mark.parametrize(
    ("path", "prefix", "below"),
    [
        (b"/anthropic/v1/x", b"/anthropic", b"/v1/x"),
        (b"/anthropic", b"/anthropic", b""),
        (b"/anthropic/", b"/anthropic", b"/"),
        (b"/anthropics/v1", b"/anthropic", None),
        (b"/anthropi", b"/anthropic", None),
        (b"/Anthropic/v1", b"/anthropic", None),
        (b"/%61nthropic/v1", b"/anthropic", None),
        (b"/v1/anthropic", b"/anthropic", None),
        (b"/v1/x", b"", b"/v1/x"),
    ],
)
def test_under_counts_whole_segments(path: bytes, prefix: bytes, below: bytes | None) -> None:
    assert Target(path, b"q").under(prefix) == below


def _spelled(byte: int, depth: int, upper: bool) -> bytes:
    escape = b"%%%02x" % byte
    escape = escape.upper() if upper else escape
    return bytes([byte]) if depth == 0 else b"%" + b"25" * (depth - 1) + escape[1:]


spellings = st.tuples(st.integers(0, 4), st.booleans())


@given(st.lists(spellings, min_size=1, max_size=2), st.booleans())
def test_no_spelling_of_a_dot_segment_passes(dots: list[tuple[int, bool]], last: bool) -> None:
    segment = b"".join(_spelled(ord("."), depth, upper) for depth, upper in dots)
    with pytest.raises(BadRequest):
        parse_target(b"/v1/" + segment + (b"" if last else b"/admin"), HOST)


@given(st.integers(0, 4), st.booleans(), st.sampled_from(b"/\\\x00\r\n\x1f\x7f"))
def test_no_spelling_of_an_unsafe_byte_passes(depth: int, upper: bool, byte: int) -> None:
    if (byte, depth) != (ord("/"), 0):
        with pytest.raises(BadRequest):
            parse_target(b"/v1/a" + _spelled(byte, depth, upper) + b"b", HOST)


segments = st.text(alphabet=st.sampled_from("ab.%25eEfF3;c/0-A~?#@ \\é\x00"), max_size=12)


@given(st.one_of(segments.map(str.encode), st.binary(max_size=24)))
def test_what_passes_is_kept_and_has_no_second_reading(rest: bytes) -> None:
    raw = b"/" + rest
    try:
        target = parse_target(raw, HOST)
    except BadRequest:
        return
    assert target.raw == raw
    path = target.path
    for _ in range(6):
        assert len(path.split(b"/")) == len(target.path.split(b"/"))
        assert not {b".", b".."} & {piece.partition(b";")[0] for piece in path.split(b"/")}
        assert not any(byte < 0x20 or byte in b"\x7f\\" for byte in path)
        path = unquote_to_bytes(path)


@given(
    st.lists(st.text(alphabet="abcXYZ019-_~!$&'()*+,=:", min_size=1, max_size=8), min_size=1, max_size=5),
    st.one_of(st.none(), st.text(alphabet=[chr(c) for c in range(0x21, 0x7F) if chr(c) != "#"], max_size=20)),
)
def test_every_legal_path_and_query_is_kept(path: list[str], query: str | None) -> None:
    raw = "/" + "/".join(path) + ("" if query is None else "?" + query)
    assert parse_target(raw.encode(), HOST).raw == raw.encode()
