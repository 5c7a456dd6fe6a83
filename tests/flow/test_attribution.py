from __future__ import annotations

import subprocess
import sys
import uuid

import pytest
from msgspec.structs import replace

from tproxy.errors import Header
from tproxy.flow.attribution import Attribution, attribute, new_id, user_agent
from tproxy.flow.identify import Caller
from tproxy.protocol.request import read_request

CALLER = Caller("key:abc", "search", team="t", user="u", tags=("k", "shared"))
FACTS = read_request(b'{"model":"claude-opus-5","max_tokens":1,"messages":[],"stream":true}')


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    now_us = 1_790_000_000_000_000
    ids = [new_id(now_us + step * 1000) for step in range(1000)]  # some more than are drawn at a time
    assert ids == sorted(ids)
    assert len({text[13:] for text in ids}) == 1000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert uuid.UUID(new_id(now_us)).int >> 80 == now_us // 1000


_FORKED = """
import os
from tproxy.flow.attribution import new_id

new_id(0)
child = os.fork()
os.write(1, f"{new_id(0)}\\n".encode())
if child:
    os.waitpid(child, 0)
"""


def test_a_child_process_has_ids_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, check=True, timeout=30)
    ids = done.stdout.split()
    assert len(set(ids)) == len(ids) == 2


def test_all_of_it() -> None:
    headers = [
        (b"X-Claude-Code-Session-Id", b"s1"),
        (b"X-Claude-Code-Agent-Id", b"a1"),
        (b"x-claude-code-parent-agent-id", b"a0"),
        (b"x-tproxy-customer", b"c1"),
        (b"x-tproxy-tags", b"t1"),
    ]
    expected = Attribution(customer="c1", tags=("t1", "k", "shared"), session="s1", agent="a1", parent_agent="a0")
    assert attribute(headers, FACTS, CALLER) == expected


def test_the_session_of_the_body_where_no_header_tells() -> None:
    facts = replace(FACTS, session="s2")
    assert attribute([], facts, CALLER).session == "s2"
    assert attribute([(b"x-claude-code-session-id", b"s1")], facts, CALLER).session == "s1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-litellm-end-user-id", b"3"), (b"x-litellm-customer-id", b"2"), (b"x-tproxy-customer", b"1")], "1"),
        ([(b"x-litellm-end-user-id", b"3"), (b"X-LiteLLM-Customer-Id", b"2")], "2"),
        ([(b"x-litellm-end-user-id", b"3")], "3"),
        ([(b"x-tproxy-customer", b" ")], "4"),
        ([], "4"),
    ],
)
def test_the_first_customer_wins(headers: list[Header], expected: str) -> None:
    facts = replace(FACTS, litellm_user="4", user_id="5")
    assert attribute(headers, facts, CALLER).customer == expected


def test_metadata_user_id_is_the_last_resort() -> None:
    assert attribute([], replace(FACTS, litellm_user=None, user_id="5"), CALLER).customer == "5"
    assert attribute([], FACTS, CALLER).customer is None
    assert attribute([], None, CALLER).customer is None


def test_tags_are_joined_in_order_without_repetition() -> None:
    headers = [(b"x-litellm-tags", b"c, a"), (b"x-tproxy-tags", b"a,,b "), (b"x-tproxy-tags", b"d")]
    facts = replace(FACTS, litellm_tags=("e", "shared", "b"))
    assert attribute(headers, facts, CALLER).tags == ("a", "b", "d", "c", "e", "shared", "k")


def test_tags_are_utf_8() -> None:
    found = attribute([(b"x-tproxy-tags", "zürich".encode())], None, replace(CALLER, tags=()))
    assert found.tags == ("zürich",)


def test_it_is_bounded() -> None:
    many = b",".join(b"t%d" % n for n in range(1000))
    headers = [(b"x-tproxy-tags", many), (b"x-tproxy-tags", b"x" * 9999), (b"x-tproxy-customer", b"\xff" * 9999)]
    found = attribute(headers, None, CALLER)
    assert len(found.tags) == 64
    assert found.customer == "\ufffd" * 256
    assert user_agent([(b"user-agent", b"u" * 9999)]) == "u" * 256


def test_too_many_tags_of_a_client_do_not_push_out_those_of_the_key() -> None:
    many = b",".join(b"t%d" % n for n in range(1000))
    assert attribute([(b"x-tproxy-tags", many)], None, CALLER).tags[-2:] == CALLER.tags


def test_what_looks_like_a_key_is_left_out() -> None:
    headers = [
        (b"x-tproxy-customer", b"sk-0123456789abcdef"),
        (b"x-tproxy-tags", b"task-0123456789,sk-0123456789abcdef"),
        (b"x-claude-code-session-id", b"disk-0123456789"),
    ]
    found = attribute(headers, FACTS, replace(CALLER, tags=()))
    assert (found.customer, found.tags) == ("sk-…", ("task-0123456789", "sk-…"))
    assert found.session == "disk-0123456789"
    assert user_agent([(b"user-agent", b"x (sk-0123456789abcdef) y")]) == "x (sk-… y"
