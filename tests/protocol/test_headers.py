from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.errors import BadRequest, Header
from tproxy.protocol.headers import (
    CREDENTIALS,
    HOP_BY_HOP,
    UNNOMINABLE,
    Credential,
    Fields,
    anthropic_token,
    deciding_credential,
    downstream_headers,
    get,
    get_all,
    hop_by_hop,
    is_loop,
    joined,
    upstream_headers,
    via,
)

A = (b"a", b"1")
CL = (b"Content-Length", b"7")
TE = (b"Transfer-Encoding", b"chunked")
HOST = (b"Host", b"api.anthropic.com")
VIA = b"1.1 tproxy-1"
OUR_VIA = (b"Via", VIA)
BEARER = Credential("bearer", b"sk-ant-real")
API_KEY = Credential("x-api-key", b"sk-ant-real")


def lines(text: str) -> list[Header]:
    """Header lines, written as `Name: value | Name: value`."""
    pairs = (line.split(": ", 1) for line in text.split(" | ")) if text else ()
    return [(name.encode(), value.encode()) for name, value in pairs]


def up(headers: list[Header], *, credential: Credential | None = None, framing: Header | None = None) -> list[Header]:
    return upstream_headers(headers, host=b"api.anthropic.com", via=VIA, credential=credential, framing=framing)


def test_lookup_ignores_case_and_keeps_order() -> None:
    headers = [(b"A", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert get(headers, b"a") == b"1"
    assert get(headers, b"B") == b"2"
    assert get(headers, b"c") is None
    assert get_all(headers, b"A") == [b"1", b"3"]
    assert get_all(headers, b"c") == []


names = st.sampled_from([b"a", b"A", b"b", b"Connection", b"connection"])


@given(st.lists(st.tuples(names, st.sampled_from([b"", b"1", b"2", b"b"]))))
def test_lookup_in_fields_finds_the_same(headers: list[Header]) -> None:
    fields = Fields(headers)
    assert Fields(fields) is fields
    assert list(fields) == headers
    for name in (b"a", b"A", b"b", b"connection", b"c"):
        assert list(get_all(fields, name)) == get_all(headers, name)
        assert get(fields, name) == get(headers, name)
    assert hop_by_hop(fields) == hop_by_hop(headers)


def test_the_fixed_set_is_always_hop_by_hop() -> None:
    assert hop_by_hop([]) == HOP_BY_HOP
    hop = b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade http2-settings"
    proxy = b"proxy-authenticate proxy-authentication-info proxy-authorization"
    assert {*hop.split(), *proxy.split()} == HOP_BY_HOP


@pytest.mark.parametrize(
    ("values", "nominated"),
    [
        ([b"close"], {b"close"}),
        ([b"X-Foo"], {b"x-foo"}),
        ([b"close, x-foo ,\tx-bar\t"], {b"close", b"x-foo", b"x-bar"}),
        ([b"x-foo", b"keep-alive, x-bar"], {b"x-foo", b"x-bar"}),
        ([b"", b",, ,x-foo,"], {b"x-foo"}),
        ([b"close, x-foo, content-length, host"], {b"close", b"x-foo"}),
    ],
)
def test_every_connection_line_nominates(values: list[bytes], nominated: set[bytes]) -> None:
    assert hop_by_hop([(b"CONNECTION", value) for value in values]) == HOP_BY_HOP | nominated


@pytest.mark.parametrize("name", sorted(UNNOMINABLE))
def test_what_every_recipient_needs_cannot_be_nominated(name: bytes) -> None:
    assert name not in hop_by_hop([(b"Connection", b"close, " + name.upper())])


def test_the_essentials_are_among_what_cannot_be_nominated() -> None:
    essentials = b"host content-length content-type content-encoding via date cache-control authorization x-api-key"
    assert set(essentials.split()) <= UNNOMINABLE


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP - {b"transfer-encoding"}))
def test_hop_by_hop_lines_end_here_both_ways(name: bytes) -> None:
    headers = [A, (name.title(), b"x-secret"), (name, b"x"), (b"X-Kept", b"1")]
    assert up(headers) == [HOST, A, (b"X-Kept", b"1"), OUR_VIA]
    assert downstream_headers(headers, via=VIA, extra=[]) == [A, (b"X-Kept", b"1"), OUR_VIA]


def test_a_request_as_new_sdks_send_it() -> None:
    client = lines(
        "Host: 127.0.0.1:4000 | Accept-Encoding: gzip, deflate | Connection: keep-alive | User-Agent: Anthropic/Python"
        " | Authorization: Bearer sk-virtual | anthropic-version: 2026-10-21 | Content-Length: 100 | X-Lang: python"
    )
    assert up(client, credential=BEARER, framing=(b"content-length", b"90")) == lines(
        "Host: api.anthropic.com | Accept-Encoding: gzip, deflate | User-Agent: Anthropic/Python"
        " | Authorization: Bearer sk-ant-real | anthropic-version: 2026-10-21 | Content-Length: 90 | X-Lang: python"
        " | Via: 1.1 tproxy-1"
    )


def test_order_repetition_and_spelling_are_kept() -> None:
    assert up(lines("X-B: 2 | x-a:  | HOST: h | X-b: 1 | X-B: 2 | eXpEcT: 100-continue")) == lines(
        "HOST: api.anthropic.com | X-B: 2 | x-a:  | X-b: 1 | X-B: 2 | Via: 1.1 tproxy-1"
    )


def test_nominated_lines_and_no_others_are_left_out() -> None:
    client = lines(
        "Connection: close, x-foo, content-length, host, content-encoding, authorization | X-Foo: 1"
        " | Content-Encoding: gzip | content-length: 5 | authorization: Bearer sk-virtual | host: h"
    )
    assert up(client, credential=BEARER, framing=(b"Content-Length", b"5")) == lines(
        "host: api.anthropic.com | Content-Encoding: gzip | content-length: 5 | authorization: Bearer sk-ant-real"
        " | Via: 1.1 tproxy-1"
    )


@pytest.mark.parametrize(
    ("client", "framing", "sent"),
    [
        ("content-length: 9 | a: 1", CL, "content-length: 7 | a: 1"),
        ("content-length: 9 | content-length: 9 | a: 1", CL, "content-length: 7 | a: 1"),
        ("content-length: 9 | a: 1", TE, "Transfer-Encoding: chunked | a: 1"),
        ("content-length: 9 | a: 1", None, "a: 1"),
        ("transfer-encoding: chunked | a: 1", CL, "Content-Length: 7 | a: 1"),
        ("transfer-encoding: chunked | a: 1", TE, "transfer-encoding: chunked | a: 1"),
        ("transfer-encoding: chunked | a: 1", None, "a: 1"),
        ("transfer-encoding: chunked | a: 1 | content-length: 9", CL, "a: 1 | content-length: 7"),
        ("a: 1", CL, "a: 1 | Content-Length: 7"),
        ("a: 1", TE, "a: 1 | Transfer-Encoding: chunked"),
        ("a: 1", None, "a: 1"),
    ],
)
def test_the_framing_is_ours(client: str, framing: Header | None, sent: str) -> None:
    assert up(lines(client), framing=framing) == [HOST, *lines(sent), OUR_VIA]


@pytest.mark.parametrize(
    ("client", "credential", "sent"),
    [
        ("authorization: bearer v | a: 1", BEARER, "authorization: Bearer sk-ant-real | a: 1"),
        ("X-Api-Key: v | a: 1", API_KEY, "X-Api-Key: sk-ant-real | a: 1"),
        ("X-Api-Key: v | a: 1", BEARER, "Authorization: Bearer sk-ant-real | a: 1"),
        ("Authorization: Bearer v | a: 1", API_KEY, "x-api-key: sk-ant-real | a: 1"),
        ("api-key: v | a: 1", API_KEY, "x-api-key: sk-ant-real | a: 1"),
        ("x-litellm-api-key: v | a: 1", API_KEY, "x-api-key: sk-ant-real | a: 1"),
        ("AUTHORIZATION: v | a: 1 | x-litellm-api-key: v", BEARER, "a: 1 | AUTHORIZATION: Bearer sk-ant-real"),
        ("x-api-key: v | a: 1 | x-api-key: v", API_KEY, "x-api-key: sk-ant-real | a: 1"),
        ("x-api-key: v | a: 1 | x-api-key: w", None, "a: 1"),
        ("x_api_key: v | a: 1", API_KEY, "a: 1 | x-api-key: sk-ant-real"),
        ("a: 1", BEARER, "a: 1 | Authorization: Bearer sk-ant-real"),
        ("a: 1", None, "a: 1"),
    ],
)
def test_the_credential_stands_where_the_deciding_one_stood(
    client: str, credential: Credential | None, sent: str
) -> None:
    assert up(lines(client), credential=credential) == [HOST, *lines(sent), OUR_VIA]


def test_framing_and_credential_without_a_place_come_before_our_via() -> None:
    assert up([A], credential=BEARER, framing=CL) == [HOST, A, CL, BEARER.header, OUR_VIA]


TWINS = [b"x_litellm_api_key", b"X_Api_Key", b"api_key", b"x-api_key", b"x_api-key", b"X_litellm-api_KEY"]


@pytest.mark.parametrize("name", [*sorted(CREDENTIALS), *TWINS, b"X-LITELLM-API-KEY", b"Authorization"])
def test_no_credential_of_the_client_goes_upstream(name: bytes) -> None:
    canary = b"sk-virtual-canary"
    client = [(name, canary), A, (name.upper(), b"Bearer " + canary), (name.lower(), canary)]
    for credential in (None, BEARER, API_KEY):
        assert not [line for line in up(client, credential=credential) if canary in line[1]]


def test_our_via_follows_those_of_others() -> None:
    client = [(b"via", b"1.0 fred"), A, (b"VIA", b"1.1 p.example.net")]
    assert up(client) == [HOST, (b"via", b"1.0 fred"), A, (b"VIA", b"1.1 p.example.net"), OUR_VIA]


names = st.sampled_from(
    [b"A", b"x-b", b"Host", b"Content-Length", b"Transfer-Encoding", b"authorization", b"X-Api-Key", b"TE", b"Via"]
)


@given(
    st.lists(st.tuples(names, st.sampled_from([b"1", b"2", b"x-b"])), max_size=8),
    st.sampled_from([None, BEARER, API_KEY]),
    st.sampled_from([None, CL, TE]),
)
def test_all_other_lines_pass_as_they_came(
    client: list[Header], credential: Credential | None, framing: Header | None
) -> None:
    sent = up(client, credential=credential, framing=framing)
    ours = b"host content-length transfer-encoding authorization x-api-key te".split()
    assert [line for line in sent if line[0].lower() not in ours] == [
        *(line for line in client if line[0].lower() not in ours),
        OUR_VIA,
    ]
    assert sent[0][1] == b"api.anthropic.com"
    for wanted, lower in ((framing, (b"content-length", b"transfer-encoding")), (credential, CREDENTIALS)):
        found = [(name.lower(), value) for name, value in sent if name.lower() in lower]
        line = wanted.header if isinstance(wanted, Credential) else wanted
        assert found == ([] if line is None else [(line[0].lower(), line[1])])


def test_a_response_keeps_what_is_end_to_end() -> None:
    upstream = lines(
        "Date: Mon, 23 Nov 2026 06:40:00 GMT | Content-Length: 12 | Connection: keep-alive, x-secret | X-Secret: 1"
        " | set-cookie: a | set-cookie: b | X-Tproxy-Id: forged | via: 1.1 google | request-id: req_1"
    )
    extra = lines("x-tproxy-id: id | x-litellm-call-id: id")
    assert downstream_headers(upstream, via=VIA, extra=extra) == lines(
        "Date: Mon, 23 Nov 2026 06:40:00 GMT | Content-Length: 12 | set-cookie: a | set-cookie: b | via: 1.1 google"
        " | request-id: req_1 | Via: 1.1 tproxy-1 | x-tproxy-id: id | x-litellm-call-id: id"
    )


def test_a_length_beside_a_transfer_encoding_does_not_count() -> None:
    upstream = lines("Content-Length: 12 | transfer-Encoding: chunked | a: 1")
    assert downstream_headers(upstream, via=VIA, extra=[]) == [A, OUR_VIA]


@pytest.mark.parametrize(
    ("headers", "decided"),
    [
        ("", None),
        ("a: 1 | cookie: sk-x", None),
        ("X-LiteLLM-API-Key: sk-1", (b"x-litellm-api-key", b"sk-1")),
        ("x-litellm-api-key: Bearer sk-1", (b"x-litellm-api-key", b"sk-1")),
        ("x-litellm-api-key: bearer   sk-1 ", (b"x-litellm-api-key", b"sk-1")),
        ("x-litellm-api-key: Bearersk-1", (b"x-litellm-api-key", b"Bearersk-1")),
        ("Authorization: Bearer sk-1", (b"authorization", b"sk-1")),
        ("authorization:  bEARER \t sk-1  ", (b"authorization", b"sk-1")),
        ("authorization: Bearer", (b"authorization", b"")),
        ("authorization: Bearer  ", (b"authorization", b"")),
        ("authorization: ", (b"authorization", b"")),
        ("authorization: Basic c2stMTo=", (b"authorization", b"")),
        ("authorization: sk-1", (b"authorization", b"")),
        ("x-api-key: sk-1", (b"x-api-key", b"sk-1")),
        ("x-api-key: Bearer sk-1", (b"x-api-key", b"Bearer sk-1")),
        ("API-Key: sk-1", (b"api-key", b"sk-1")),
        ("x_api_key: sk-1", None),
        ("x-api-key: sk-1 | X-Api-Key: sk-1 ", (b"x-api-key", b"sk-1")),
    ],
)
def test_the_key_in_each_form(headers: str, decided: tuple[bytes, bytes] | None) -> None:
    assert deciding_credential(lines(headers)) == decided


ALL = lines("x-litellm-api-key: 1 | authorization: Bearer 2 | x-api-key: 3 | api-key: 4")


@pytest.mark.parametrize("first", range(4))
def test_the_first_that_is_present_decides_wherever_it_stands(first: int) -> None:
    present = ALL[first:]
    expected = (ALL[first][0], b"%d" % (first + 1))
    assert deciding_credential(present) == expected
    assert deciding_credential(present[::-1]) == expected


def test_an_empty_or_foreign_credential_decides_too() -> None:
    assert deciding_credential(lines("x-api-key: k | x-litellm-api-key: ")) == (b"x-litellm-api-key", b"")
    assert deciding_credential(lines("x-api-key: k | Authorization: Basic x")) == (b"authorization", b"")


@pytest.mark.parametrize("name", [line[0] for line in ALL])
def test_two_different_values_are_refused_without_showing_them(name: bytes) -> None:
    headers = [(name, b"canary-1"), (b"x-litellm-api-key", b"sk-1"), (name.upper(), b"canary-2")]
    for read in (deciding_credential, anthropic_token):
        with pytest.raises(BadRequest, match=name.decode()) as refusal:
            read(headers)
        assert "canary" not in refusal.value.message


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ("", None),
        ("Authorization: Bearer sk-ant-oat01-x", Credential("bearer", b"sk-ant-oat01-x")),
        ("authorization: bearer  sk-ant-x", Credential("bearer", b"sk-ant-x")),
        ("X-Api-Key: sk-ant-api03-x", Credential("x-api-key", b"sk-ant-api03-x")),
        ("api-key: sk-ant-api03-x", Credential("x-api-key", b"sk-ant-api03-x")),
        ("x-api-key: sk-ant-k | authorization: Bearer sk-ant-t", Credential("bearer", b"sk-ant-t")),
        ("x-api-key: sk-ant-k | authorization: Bearer sk-t", Credential("x-api-key", b"sk-ant-k")),
        ("x-api-key: sk-ant-k | authorization: Basic sk-ant-t", Credential("x-api-key", b"sk-ant-k")),
        ("x-litellm-api-key: v | authorization: Bearer sk-ant-t", Credential("bearer", b"sk-ant-t")),
        ("x-litellm-api-key: v | x-api-key: sk-ant-k", Credential("x-api-key", b"sk-ant-k")),
        ("x-litellm-api-key: sk-ant-v", None),
        ("authorization: Bearer Bearer sk-ant-x", None),
        ("authorization: Bearer sk-ant-x sk-y", None),
        ("authorization: Bearer sk-virtual", None),
        ("x-api-key: ", None),
        ("authorization: Bearer", None),
    ],
)
def test_the_clients_own_token(headers: str, token: Credential | None) -> None:
    assert anthropic_token(lines(headers)) == token


def test_a_list_field_is_joined() -> None:
    assert joined(lines("Content-Encoding: gzip | content-encoding: br"), b"content-encoding") == b"gzip, br"
    assert joined([], b"content-encoding") is None


def test_a_credential_never_shows_itself() -> None:
    for form in (BEARER, API_KEY):
        assert "sk-ant" not in f"{form!r} {form} {[form]}"
    assert BEARER.header == (b"Authorization", b"Bearer sk-ant-real")
    assert API_KEY.header == (b"x-api-key", b"sk-ant-real")


def test_our_via_is_found_again() -> None:
    entry = via(b"1.1", b"tproxy-7f3a")
    assert entry == b"1.1 tproxy-7f3a"
    once = upstream_headers([A], host=b"h", via=entry, credential=None, framing=None)
    assert is_loop(once, b"tproxy-7f3a")
    assert not is_loop(once, b"tproxy-7f3b")
    assert not is_loop([A], b"tproxy-7f3a")


@pytest.mark.parametrize(
    ("values", "loop"),
    [
        ([b"1.1 me"], True),
        ([b"HTTP/1.1 me"], True),
        ([b"2 me (tproxy)"], True),
        ([b"1.1 me(tproxy)"], True),
        ([b"1.0 fred, 1.1 ME"], True),
        ([b"1.0 fred", b"1.1 p.example.net", b"1.1\t me ,1.0 x"], True),
        ([b"1.0 fred (a, 1.1 b), 1.1 me"], True),
        ([b"1.0 fred (a (b, c) \\) d), 1.1 me"], True),
        ([b"1.1 x ((a) (b)), 1.1 me (c)"], True),
        ([b"1.0 fred (open", b"1.1 me"], True),
        ([b"1.0 x ) , 1.1 me"], True),
        ([b"1.0 fred (1.1 me)"], False),
        ([b"1.0 fred (a, 1.1 me, b)"], False),
        ([b"1.0 fred (a (b), 1.1 me)"], False),
        ([b"1.0 fred (a \\), 1.1 me )"], False),
        ([b"1.1 me-too"], False),
        ([b"1.1 me:4000"], False),
        ([b"me"], False),
        ([b"me 1.1"], False),
        ([b"1.1 fred me"], False),
        ([b"", b",", b" , "], False),
    ],
)
def test_a_loop_is_told_by_a_received_by_and_nothing_else(values: list[bytes], loop: bool) -> None:
    assert is_loop([(b"VIA", value) for value in values], b"me") is loop
