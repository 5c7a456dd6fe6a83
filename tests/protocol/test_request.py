"""Request bodies: what is read, what is never read wrongly, and the one member that is taken out."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from tproxy.protocol.request import RequestFacts, read_request, strip_litellm_metadata

CLAUDE_CODE = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "9b1c0c6e-0d5f-4a53"})

READ = {
    "a plain request": (
        b'{"model":"claude-opus-5-5","max_tokens":1024,"messages":[{"role":"user","content":"hi"}]}',
        RequestFacts(model="claude-opus-5-5", max_tokens=1024),
    ),
    "everything": (
        b'{"model":"m","stream":true,"max_tokens":1,"service_tier":"auto","speed":"fast","inference_geo":"us",'
        b'"metadata":{"user_id":"u"},"litellm_metadata":{"user":"c","tags":["a","b"]},"messages":[]}',
        RequestFacts(
            model="m",
            stream=True,
            max_tokens=1,
            service_tier="auto",
            speed="fast",
            inference_geo="us",
            user_id="u",
            litellm_user="c",
            litellm_tags=("a", "b"),
            has_litellm_metadata=True,
        ),
    ),
    "an empty object": (b"{}", RequestFacts()),
    "white space of every kind": (b' \r\n\t{ "model" :\n"m" }\n', RequestFacts(model="m")),
    "a name in escapes": (b'{"m\\u006fde\\u006C":"m"}', RequestFacts(model="m")),
    "a value in escapes": (b'{"model":"claude-\\u006f\\ud83d\\ude00"}', RequestFacts(model="claude-o😀")),
    "the same names further down": (
        b'{"model":"m","messages":[{"model":"x","model":"y","litellm_metadata":{}}],"tools":{"stream":true}}',
        RequestFacts(model="m"),
    ),
    "wrong types": (
        b'{"model":"m","stream":1,"max_tokens":"5","service_tier":3,"speed":[],"inference_geo":{},"metadata":7,'
        b'"litellm_metadata":[1]}',
        RequestFacts(model="m", has_litellm_metadata=True),
    ),
    "wrong types one level down": (
        b'{"model":"m","metadata":{"user_id":5},"litellm_metadata":{"user":{},"tags":"a,b"}}',
        RequestFacts(model="m", has_litellm_metadata=True),
    ),
    "nulls": (
        b'{"stream":null,"max_tokens":null,"metadata":null,"litellm_metadata":null,"service_tier":null}',
        RequestFacts(has_litellm_metadata=True),
    ),
    "numbers beyond reason": (
        b'{"model":"m","max_tokens":' + b"9" * 400 + b',"temperature":1e999999}',
        RequestFacts(model="m"),
    ),
    "a negative number": (b'{"max_tokens":-1}', RequestFacts()),
    "a fraction": (b'{"max_tokens":0.5}', RequestFacts()),
    "no UTF-8 where nobody looks": (b'{"model":"m","messages":"\xff\xfe"}', RequestFacts(model="m")),
    "tags of mixed worth": (
        b'{"litellm_metadata":{"tags":["a",1,null,"","b","a",["c"],"d\\u0000d"]}}',
        RequestFacts(litellm_tags=("a", "b", "dd"), has_litellm_metadata=True),
    ),
    "attribution twice, the last counts": (
        b'{"metadata":{"user_id":"a"},"metadata":{"user_id":"b"}}',
        RequestFacts(user_id="b"),
    ),
    "Claude Code's user": (
        json.dumps({"metadata": {"user_id": CLAUDE_CODE}}).encode(),
        RequestFacts(user_id=CLAUDE_CODE, session="9b1c0c6e-0d5f-4a53"),
    ),
    "an older Claude Code's user": (
        b'{"metadata":{"user_id":"user_ab12_account__session_57a121ec-f78c-48c3-a745-e3036a3ecc33"}}',
        RequestFacts(
            user_id="user_ab12_account__session_57a121ec-f78c-48c3-a745-e3036a3ecc33",
            session="57a121ec-f78c-48c3-a745-e3036a3ecc33",
        ),
    ),
    "a user that only looks like one": (
        b'{"metadata":{"user_id":"the user_ab_session_cd of today"}}',
        RequestFacts(user_id="the user_ab_session_cd of today"),
    ),
    "a user in JSON without a session": (
        b'{"metadata":{"user_id":"{\\"session_id\\":5}"}}',
        RequestFacts(user_id='{"session_id":5}'),
    ),
}


@pytest.mark.parametrize(("body", "facts"), READ.values(), ids=READ.keys())
def test_reads(body: bytes, facts: RequestFacts) -> None:
    assert read_request(body) == facts


DOUBTFUL = {
    "empty": (b"", "not valid JSON"),
    "text": (b"hello", "not valid JSON"),
    "cut short": (b'{"model":"m","messages":[', "not valid JSON"),
    "more after the end": (b'{"model":"m"}{"model":"n"}', "not valid JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"model":"m"}', "not valid JSON"),
    "UTF-16": ('{"model":"m"}'.encode("utf-16"), "not valid JSON"),
    "NaN": (b'{"model":"m","temperature":NaN}', "not valid JSON"),
    "half a surrogate pair": (b'{"model":"m","system":"\\ud83d"}', "not valid JSON"),
    "a bare control character": (b'{"model":"m","system":"a\nb"}', "not valid JSON"),
    "a name that is no UTF-8": (b'{"model":"m","\xff":1}', "not valid JSON"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "not valid JSON"),
    "an array": (b'[{"model":"m"}]', "not an object"),
    "a string": (b'"m"', "not an object"),
    "null": (b"null", "not an object"),
    "deep": (b'{"model":"m","system":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep and cut short": (b'{"model":"m","system":' + b'{"a":' * 100_000, "nested too deeply"),
    "many members": (b'{"model":"m",' + b'"":0,' * 1_000_000 + b'"a":1}', "more than 1,000"),
    "two models": (b'{"model":"m","model":"n"}', "'model' occurs more than once"),
    "two equal models": (b'{"model":"m","a":{"b":1},"model":"m"}', "'model' occurs more than once"),
    "two models, one in escapes": (b'{"model":"m","\\u006dodel":"n"}', "'model' occurs more than once"),
    "three models": (b'{"model":1,"model":null,"m\\u006Fdel":"n"}', "'model' occurs more than once"),
    "null as a model": (b'{"model":null}', "'model' is not a text"),
    "a number as a model": (b'{"model":5}', "'model' is not a text"),
    "an object as a model": (b'{"model":{"id":"m"}}', "'model' is not a text"),
    "a model that is no UTF-8": (b'{"model":"\xff"}', "'model' is not a text"),
    "an endless model": (b'{"model":"' + b"m" * 257 + b'"}', "'model' is not a text"),
    "a model with a NUL": (b'{"model":"m\\u0000"}', "'model' is not a text"),
}


@pytest.mark.parametrize(("body", "problem"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_names_no_model_in_doubt(body: bytes, problem: str) -> None:
    facts = read_request(body)
    assert facts.model is None
    assert facts.problem is not None
    assert problem in facts.problem
    assert facts == RequestFacts(problem=facts.problem)


@pytest.mark.parametrize("name", ["stream", "max_tokens", "service_tier", "speed", "inference_geo"])
def test_a_decisive_member_that_occurs_twice_has_no_value(name: str) -> None:
    value = {"stream": "true", "max_tokens": "5"}.get(name, '"x"')
    facts = read_request(f'{{"{name}":{value},"model":"m","{name}":{value}}}'.encode())
    assert facts == RequestFacts(model="m", problem=f"The member '{name}' occurs more than once.")


def test_a_problem_holds_nothing_of_the_body() -> None:
    for body in (b'{"model":"sk-secret', b'{"sk-secret":1,"sk-secret":2,"model":7}', b'"sk-secret"'):
        assert "sk-secret" not in (read_request(body).problem or "")


def test_attribution_is_bounded() -> None:
    long = "ü" * 300
    tags = [f"{number}-{long}" for number in range(70)]
    body = {"metadata": {"user_id": long}, "litellm_metadata": {"user": long, "tags": tags}, "speed": long}
    facts = read_request(json.dumps(body).encode())
    assert facts.user_id == facts.litellm_user == facts.speed == "ü" * 256
    assert facts.litellm_tags == tuple(tag[:256] for tag in tags[:64])


@pytest.mark.parametrize("unit", ["user_x_session_", '\\\\\\"', "a"])
def test_what_is_spelled_at_great_length_is_passed_over(unit: str) -> None:
    long = json.loads('"' + unit * (20_000 // len(unit)) + '"')
    litellm = {"user": long, "tags": [long, "t"]}
    body = {"model": "m", "metadata": {"user_id": long}, "litellm_metadata": litellm, "speed": long}
    facts = read_request(json.dumps(body).encode())
    assert facts == RequestFacts(model="m", litellm_tags=("t",), has_litellm_metadata=True)
    facts = read_request(json.dumps({"model": long}).encode())
    assert facts.model is None
    assert facts.problem


def test_metadata_of_great_length_are_passed_over() -> None:
    more = {str(number): 1 for number in range(200_000)}
    body = {"metadata": {"user_id": "u"} | more, "litellm_metadata": {"user": "v"} | more}
    assert read_request(json.dumps(body).encode()) == RequestFacts(has_litellm_metadata=True)


def test_a_long_user_still_has_its_session() -> None:
    user = json.dumps({"device_id": "d" * 300, "session_id": "s-1"})
    facts = read_request(json.dumps({"metadata": {"user_id": user}}).encode())
    assert (facts.session, facts.user_id) == ("s-1", user[:256])


def test_tags_beyond_every_bound_are_passed_over() -> None:
    body = b'{"model":"m","litellm_metadata":{"user":"c","tags":[' + b'"t",' * 100_000 + b'"t"]}}'
    assert read_request(body) == RequestFacts(model="m", litellm_user="c", has_litellm_metadata=True)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
known_names = st.sampled_from([*(field for field in RequestFacts.__struct_fields__), "metadata", "litellm_metadata"])


@given(st.dictionaries(known_names | st.text(max_size=8), anything, max_size=8))
def test_reads_what_a_full_parser_reads(body: dict[str, object]) -> None:
    facts = read_request(json.dumps(body).encode())
    asked = body.get("model")
    named = isinstance(asked, str) and len(asked) <= 256 and "\0" not in asked
    assert facts.model == (asked if named else None)
    assert (facts.problem is None) == (named or "model" not in body)
    assert facts.stream is (body.get("stream") is True)
    assert facts.has_litellm_metadata == ("litellm_metadata" in body)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b'{"metadata":{"user_id":"{\\"session_id\\":' + b"[" * 5_000)
@example(b'{"litellm_metadata":{"tags":[' + b"[" * 500 + b"]" * 500 + b"]}}")
@example(json.dumps({"metadata": {"user_id": '{"a":' * 100_000}}).encode())
def test_never_raises(body: bytes) -> None:
    read_request(body)
    strip_litellm_metadata(body)


STRIPPED = {
    "the only one": (b'{"litellm_metadata":{"user":"u"}}', b"{}"),
    "the only one, in white space": (b' { "litellm_metadata" : 1 } \n', b" {  } \n"),
    "first": (b'{"litellm_metadata":{"tags":["a,b"]}, "model":"m"}', b'{ "model":"m"}'),
    "in the middle": (b'{"a":1, "litellm_metadata":null ,"b":2}', b'{"a":1 ,"b":2}'),
    "last": (b'{"a":1 , "litellm_metadata": [1,{"x":"}"}] }', b'{"a":1  }'),
    "with a name in escapes": (b'{"a":1,"l\\u0069tellm\\u005fmetadata":2,"b":3}', b'{"a":1,"b":3}'),
    "twice in a row at first": (b'{"litellm_metadata":1 , "litellm_metadata":2 , "a":3}', b'{  "a":3}'),
    "twice in a row at last": (b'{"a":3 , "litellm_metadata":1 , "litellm_metadata":2 }', b'{"a":3   }'),
    "first and last": (b'{"litellm_metadata":1,"a":3,"litellm_metadata":2}', b'{"a":3}'),
    "first, middle and last": (
        b'{"litellm_metadata":1,"a":3,"litellm_metadata":2,"b":4,"litellm_metadata":{}}',
        b'{"a":3,"b":4}',
    ),
    "nothing but it": (b'{"litellm_metadata":1,"litellm_metadata":2}', b"{}"),
    "not the one further down": (
        b'{"a":{"litellm_metadata":1},"litellm_metadata":{"litellm_metadata":2},"b":["litellm_metadata"]}',
        b'{"a":{"litellm_metadata":1},"b":["litellm_metadata"]}',
    ),
    "among odd neighbours": (
        b'{"x\\"":"\\\\","n":-0.10e+05,"litellm_metadata":"\\"},{","z":"\xc3\xbc\xff"}',
        b'{"x\\"":"\\\\","n":-0.10e+05,"z":"\xc3\xbc\xff"}',
    ),
}


@pytest.mark.parametrize(("body", "stripped"), STRIPPED.values(), ids=STRIPPED.keys())
def test_strips(body: bytes, stripped: bytes) -> None:
    assert strip_litellm_metadata(body) == stripped


UNTOUCHED = {
    "empty": b"",
    "no such member": b'{"model":"m","system":"litellm_metadata \\u0041"}',
    "only further down": b'{"a":{"litellm_metadata":1},"b":[{"litellm_metadata":2}]}',
    "only as a value": b'{"a":"litellm_metadata"}',
    "another name": b'{"litellm_metadata2":1,"LITELLM_METADATA":2,"litellm_metadata\\u0000":3}',
    "an array": b'[{"litellm_metadata":1}]',
    "cut short": b'{"litellm_metadata":1,"a":',
    "no JSON inside": b'{"a":tru,"litellm_metadata":1}',
    "NaN": b'{"a":NaN,"litellm_metadata":1}',
    "more after the end": b'{"litellm_metadata":1},{}',
    "two commas": b'{"a":1,,"litellm_metadata":1}',
    "deep": b'{"litellm_metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_returns_the_same_object_where_there_is_nothing_to_strip(body: bytes) -> None:
    assert strip_litellm_metadata(body) is body


white = st.text(" \t\r\n", max_size=3)


def _spelled(name: str, escaped: list[bool]) -> str:
    """A JSON string of `name`, some of its characters as escapes."""
    letters = zip(name, [*escaped, *[False] * len(name)], strict=False)
    return '"' + "".join(f"\\u{ord(c):04x}" if e else json.dumps(c)[1:-1] for c, e in letters) + '"'


@given(st.data())
def test_removes_the_member_with_one_comma_and_nothing_else(data: st.DataObject) -> None:
    names = st.text(max_size=6).filter(lambda name: name != "litellm_metadata")
    kept = data.draw(st.dictionaries(names, anything, max_size=5))
    members = [(json.dumps(name), json.dumps(value)) for name, value in kept.items()]
    place = data.draw(st.integers(0, len(members)))
    name = _spelled("litellm_metadata", data.draw(st.lists(st.booleans(), max_size=16)))
    members.insert(place, (name, json.dumps(data.draw(anything))))
    written = [
        tuple(data.draw(white) if part is None else part for part in (None, name, None, ":", None, value, None))
        for name, value in members
    ]
    body = data.draw(white) + "{" + ",".join("".join(parts) for parts in written) + "}" + data.draw(white)

    stripped = strip_litellm_metadata(body.encode()).decode()

    assert json.loads(stripped) == kept
    before = sum(len("".join(parts)) + 1 for parts in written[:place]) + body.index("{") + 1
    start = before + len(written[place][0])
    end = start + len("".join(written[place][1:6]))
    if place:
        start = before - 1
    elif kept:
        end += len(written[place][6]) + 1
    assert stripped == body[:start] + body[end:]


@given(st.dictionaries(known_names, anything, max_size=8))
def test_nothing_else_is_read_from_a_stripped_body(body: dict[str, object]) -> None:
    sent = json.dumps(body).encode()
    facts = read_request(sent)
    without = replace(facts, litellm_user=None, litellm_tags=(), has_litellm_metadata=False)
    assert read_request(strip_litellm_metadata(sent)) == without
