from __future__ import annotations

import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.protocol.batch import is_batch_object, rewrite_results_url

UPSTREAM = b"https://api.anthropic.com"
OURS = b"http://127.0.0.1:4000/anthropic"
PATH = "/v1/messages/batches/msgbatch_01/results"


def rewritten(body: bytes) -> bytes:
    return rewrite_results_url(body, UPSTREAM, OURS)


@pytest.mark.parametrize(
    ("method", "path", "holds"),
    [
        ("POST", b"/v1/messages/batches", True),
        ("GET", b"/v1/messages/batches", True),
        ("GET", b"/v1/messages/batches/", True),
        ("GET", b"/v1/messages/batches/msgbatch_01", True),
        ("GET", b"/v1/messages/%62atches/msgbatch_01", True),
        ("POST", b"/v1/messages/batches/msgbatch_01/cancel", True),
        ("GET", b"/v1/messages/batches/msgbatch_01/results", False),
        ("DELETE", b"/v1/messages/batches/msgbatch_01", False),
        ("POST", b"/v1/messages/batches/msgbatch_01", False),
        ("GET", b"/v1/messages/batches/msgbatch_01/cancel", False),
        ("HEAD", b"/v1/messages/batches", False),
        ("POST", b"/v1/messages", False),
        ("GET", b"/v1/messages/batches2", False),
        ("GET", b"/anthropic/v1/messages/batches", False),
        ("GET", b"/v1/messages/batches/a/b/cancel", False),
    ],
)
def test_which_answers_hold_batch_objects(method: str, path: bytes, holds: bool) -> None:
    assert is_batch_object(method, path) is holds


BATCH = (
    b'{\n  "id": "msgbatch_01",\n  "type":"message_batch" , "processing_status": "ended",\n'
    b'  "request_counts": {"processing": 0, "succeeded": 1e2},\n'
    b'  "results_url" :\t"%s/v1/messages/batches/msgbatch_01/results"\n, "z": "\xc3\xa9\\u00e9"}\n'
)


def test_a_batch_object_points_back_to_us_and_is_else_unchanged() -> None:
    assert rewritten(BATCH % UPSTREAM) == BATCH % OURS


def test_each_batch_of_a_list_points_back_to_us() -> None:
    page = b'{"data":[%s , %s,%s], "has_more" : false}'
    other = b'{"results_url":null}'
    assert rewritten(page % (BATCH % UPSTREAM, other, BATCH % UPSTREAM)) == page % (
        BATCH % OURS,
        other,
        BATCH % OURS,
    )


REPLACED = {
    "escaped slashes": (rb'"https:\/\/api.anthropic.com\/v1\/x"', OURS + rb"\/v1\/x"),
    "escaped letters": (rb'"\u0068ttps\u003A//\u0061pi.anthropic.com/x"', OURS + b"/x"),
    "escaped slash after the origin": (rb'"https://api.anthropic.com\u002fx"', OURS + rb"\u002fx"),
    "upper case": (b'"HTTPS://API.Anthropic.com/x"', OURS + b"/x"),
    "the port of the scheme": (b'"https://api.anthropic.com:443/x"', OURS + b"/x"),
    "a tail of any kind": (rb'"https://api.anthropic.com/\"\\\ud83d\ude42?a#b"', OURS + rb"/\"\\\ud83d\ude42?a#b"),
    "nothing after the slash": (b'"https://api.anthropic.com/"', OURS + b"/"),
}


@pytest.mark.parametrize(("value", "new"), REPLACED.values(), ids=REPLACED.keys())
def test_an_origin_is_known_in_any_spelling(value: bytes, new: bytes) -> None:
    for name in (b'"results_url"', rb'"results\u005furl"'):
        assert rewritten(b"{%s:%s}" % (name, value)) == b'{%s:"%s"}' % (name, new)


UNTOUCHED = {
    "no such member": b'{"id": "x"}',
    "null": b'{"results_url": null}',
    "number": b'{"results_url": 1}',
    "array": b'{"results_url": ["https://api.anthropic.com/x"]}',
    "object": b'{"results_url": {"results_url": "https://api.anthropic.com/x"}}',
    "another host": b'{"results_url": "https://evil.test/x"}',
    "another scheme": b'{"results_url": "http://api.anthropic.com/x"}',
    "another port": b'{"results_url": "https://api.anthropic.com:444/x"}',
    "the other scheme's port": b'{"results_url": "https://api.anthropic.com:80/x"}',
    "host as prefix": b'{"results_url": "https://api.anthropic.com.evil.test/x"}',
    "host as userinfo": b'{"results_url": "https://api.anthropic.com@evil.test/x"}',
    "no slash after it": b'{"results_url": "https://api.anthropic.com"}',
    "query after it": b'{"results_url": "https://api.anthropic.com?x"}',
    "backslash after it": b'{"results_url": "https://api.anthropic.com\\\\x/"}',
    "in the middle": b'{"results_url": "see https://api.anthropic.com/x"}',
    "relative": b'{"results_url": "/v1/x"}',
    "in another member": b'{"custom": "https://api.anthropic.com/x"}',
    "in a text that looks like one": rb'{"custom": "\"results_url\": \"https://api.anthropic.com/x\""}',
    "as a member name": b'{"https://api.anthropic.com/x": "results_url"}',
    "deeper": b'{"metadata": {"results_url": "https://api.anthropic.com/x"}}',
    "deeper in a list": b'{"data": [{"m": {"results_url": "https://api.anthropic.com/x"}}]}',
    "list in a list": b'{"data": [{"data": [{"results_url": "https://api.anthropic.com/x"}]}]}',
    "array in data": b'{"data": [["results_url", "https://api.anthropic.com/x"]]}',
    "data that is an object": b'{"data": {"results_url": "https://api.anthropic.com/x"}}',
    "top-level array": b'[{"results_url": "https://api.anthropic.com/x"}]',
    "top-level string": b'"https://api.anthropic.com/x"',
    "error envelope": b'{"type":"error","error":{"type":"not_found_error","message":"x"}}',
    "empty object": b" { } ",
    "empty list": b'{"data": [ ] }',
    "empty": b"",
    "white space": b"  \n",
    "cut short": b'{"results_url": "https://api.anthropic.com/x"',
    "cut in the string": b'{"results_url": "https://api.anthropic.com/',
    "trailing garbage": b'{"results_url": "https://api.anthropic.com/x"} x',
    "trailing comma": b'{"results_url": "https://api.anthropic.com/x",}',
    "control byte in a string": b'{"results_url": "https://api.anthropic.com/\n"}',
    "bad escape": b'{"results_url": "https://api.anthropic.com/\\x"}',
    "not UTF-8": b'{"results_url": "https://api.anthropic.com/\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"results_url": "https://api.anthropic.com/x"}',
    "gzip": b"\x1f\x8b\x08\x00\x00",
    "deep nesting": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_everything_else_is_returned_as_it_is(body: bytes) -> None:
    assert rewritten(body) is body


def test_a_repeated_member_is_replaced_each_time() -> None:
    body = b'{"results_url":"%s/a","results_url":"%s/b","data":[],"data":[{"results_url":"%s/c"}]}'
    assert rewritten(body % (UPSTREAM, UPSTREAM, UPSTREAM)) == body % (OURS, OURS, OURS)


def test_no_number_is_too_long() -> None:
    body = b'{"n":%b,"results_url":"%%s/x"}' % (b"9" * 10_000)
    assert rewritten(body % UPSTREAM) == body % OURS


def test_any_depth_is_either_rewritten_or_left() -> None:
    body = '{"data":[{"results_url":"%s/x","a":%s}]}'
    outcomes = set()
    for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 10):
        nested = "[" * depth + "]" * depth
        was, new = (body % (origin, nested) for origin in (UPSTREAM.decode(), OURS.decode()))
        result = rewritten(was.encode())
        assert result in (was.encode(), new.encode())
        outcomes.add(result == new.encode())
    assert True in outcomes


@pytest.mark.parametrize(
    ("upstream", "own", "was", "new"),
    [
        (b"http://127.0.0.1:9", b"http://h/anthropic", "http://127.0.0.1:9/x", "http://h/anthropic/x"),
        (b"http://sandbox.test:80", b"http://h", "http://sandbox.test/x", "http://h/x"),
        (b"https://API.anthropic.com/", b"http://h/", "https://api.anthropic.com/x", "http://h/x"),
        (b"https://[::1]:8443", b"http://[::1]:4000", "https://[::1]:8443/x", "http://[::1]:4000/x"),
        (b"http://gw.test/base", b"http://h/anthropic", "http://gw.test/base/v1", "http://h/anthropic/v1"),
        (b"http://gw.test/base", b"http://h", "http://gw.test/based/v1", "http://gw.test/based/v1"),
        (b"http://gw.test/base", b"http://h", "http://gw.test/v1", "http://gw.test/v1"),
        (b"nonsense", b"http://h", "https://api.anthropic.com/x", "https://api.anthropic.com/x"),
    ],
)
def test_upstreams_and_bases_of_all_kinds(upstream: bytes, own: bytes, was: str, new: str) -> None:
    def body(url: str) -> bytes:
        return b'{"results_url": "%s"}' % url.encode()

    assert rewrite_results_url(body(was), upstream, own) == body(new)


# Exactness: a document is written in two versions at once, with white space and escapes at random. They differ only
# where a URL is to be replaced. An object is a tuple of members, so that it can hold a name twice.

Tree = str | float | bool | list["Tree"] | tuple[tuple[str, "Tree"], ...] | None
Pair = tuple[str, str]

ORIGINS = ("https://api.anthropic.com", "HTTPS://api.anthropic.COM", "https://API.anthropic.com:443")
LOOKALIKES = ("results_url", "data", UPSTREAM.decode() + PATH, '"results_url":"', "\\", '"', "{", "]", ",", ":")

texts = st.one_of(st.text(max_size=6), st.sampled_from(LOOKALIKES))
urls = st.builds("{}{}".format, st.sampled_from(ORIGINS), st.text(max_size=5).map("/{}".format))
scalars = st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), texts, urls)
trees: st.SearchStrategy[Tree] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(texts, inner), max_size=3).map(tuple)),
    max_leaves=6,
)
ordinary = st.tuples(texts, trees)
pointing = st.tuples(st.just("results_url"), urls)
batches = st.lists(st.one_of(ordinary, pointing), max_size=4).map(tuple)
listing = st.tuples(st.just("data"), st.lists(st.one_of(batches, trees), max_size=3))
documents = st.lists(st.one_of(ordinary, pointing, listing), max_size=4).map(tuple)


def escaped(text: str, dice: random.Random) -> str:
    """The content of a JSON string, each character in one of its spellings."""
    written = []
    for character in text:
        spellings = [json.dumps(character)[1:-1]]
        if character == "/":
            spellings.append("\\/")
        if ord(character) < 0x10000:
            spellings += [f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]
        if character >= " " and character not in '"\\':
            spellings += [character] * 3
        written.append(dice.choice(spellings))
    return "".join(written)


def replaced(url: str, dice: random.Random) -> Pair:
    """Both versions of a string that counts: with its origin, if it is the upstream's, and with ours."""
    for origin in ORIGINS:
        if url.startswith(origin + "/"):
            rest = escaped(url.removeprefix(origin), dice)
            return f'"{escaped(origin, dice)}{rest}"', f'"{OURS.decode()}{rest}"'
    return (f'"{escaped(url, dice)}"',) * 2


def written(tree: Tree, dice: random.Random, place: str = "elsewhere") -> Pair:
    """Both versions of a value. `place` is where it stands: `top`, `data` (the list), `item` (of it), `elsewhere`."""

    def space() -> str:
        return "".join(dice.choices(" \t\n\r", k=dice.choice((0, 0, 1, 2))))

    if isinstance(tree, str):
        return (f'"{escaped(tree, dice)}"',) * 2
    parts: list[Pair] = []
    if isinstance(tree, list):
        brackets = "[]"
        parts = [written(item, dice, "item" if place == "data" else "elsewhere") for item in tree]
    elif isinstance(tree, tuple):
        brackets = "{}"
        for name, value in tree:
            head = f'"{escaped(name, dice)}"{space()}:{space()}'
            if name == "results_url" and isinstance(value, str) and place in ("top", "item"):
                was, new = replaced(value, dice)
            else:
                was, new = written(value, dice, "data" if (name, place) == ("data", "top") else "elsewhere")
            parts.append((head + was, head + new))
    else:
        return (json.dumps(tree),) * 2
    spaced = []
    for was, new in parts:
        before, after = space(), space()
        spaced.append((before + was + after, before + new + after))
    if not parts:
        spaced.append((space(),) * 2)
    was, new = (",".join(pair[version] for pair in spaced) for version in (0, 1))
    return brackets[0] + was + brackets[1], brackets[0] + new + brackets[1]


@given(documents, st.integers(0, 2**32))
def test_only_the_origins_change(document: Tree, seed: int) -> None:
    was, new = (version.encode() for version in written(document, random.Random(seed), "top"))
    json.loads(was)
    assert rewritten(b" " + was + b"\n") == b" " + new + b"\n"


@given(documents, st.integers(0, 2**32))
def test_a_document_that_is_cut_is_left_alone(document: Tree, seed: int) -> None:
    dice = random.Random(seed)
    body = written(document, dice, "top")[0].encode()
    cut = body[: dice.randrange(len(body))]
    assert rewritten(cut) is cut


@given(st.binary(max_size=64))
def test_no_bytes_at_all_make_it_fail(body: bytes) -> None:
    assert rewritten(body) == body
