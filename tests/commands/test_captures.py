from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.fake_api import Answer, FakeApi, fake_api
from tproxy.cli import app

MASTER = "sk-master-0123456789"
ROW: dict[str, Any] = {
    "id": "0198c0de",
    "at_us": 1_795_000_000_000_000,
    "caller": "key:abc",
    "caller_alias": "alice\x1b[2J",
    "model": "claude-sonnet-5-5",
    "path": "/v1/messages",
    "status": 200,
    "ended": "incomplete",
    "error_type": None,
    "request_bytes": 99,
    "request_cut": False,
    "answer_bytes": 88,
    "answer_cut": False,
    "answer_whole": False,
    "redacted": 2,
}
CONVERSATION = ROW | {
    "request": {
        "model": "claude-sonnet-5-5",
        "system": "Be brief.",
        "tools": [{"name": "get_weather"}, 1],
        "messages": [
            {"role": "user", "content": "What is\tthe\nweather\x1b]0;x\x07?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Zürich"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "no such city"},
                    {"type": "image", "source": {"type": "base64", "data": "[image/png, 3 bytes]"}},
                ],
            },
        ],
    },
    "answer": {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "text", "text": "It is sunny.", "citations": [{}]},
            {"type": "new_block", "x": 1},
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1234, "output_tokens": 5, "cache_creation": {}},
    },
    "answer_error": {"type": "overloaded_error"},
}


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with fake_api() as api:
        api.answers["GET /capture/list"] = Answer(body={"captures": [ROW], "next": "0198c0de"})
        api.answers["GET /capture/info"] = Answer(body=CONVERSATION)
        api.answers["POST /capture/delete"] = Answer(body={"deleted": "0198c0de"})
        yield api


def run(server: FakeApi, *arguments: str, code: int = 0) -> Result:
    environ = {"TPROXY_MASTER_KEY": MASTER, "TPROXY_URL": server.url, "COLUMNS": "120"}
    result = CliRunner().invoke(app, ["captures", *arguments], env=environ)
    assert result.exit_code == code, (result.output, result.exception)
    assert "\x1b" not in result.output
    return result


def test_they_are_listed_one_a_line(server: FakeApi) -> None:
    result = run(server, "list", "--limit", "1", "--caller", "alice", "--ended", "incomplete")
    assert result.stdout.splitlines() == [
        "0198c0de  2026-11-18 11:06:40  200  incomplete  claude-sonnet-5-5  alice\ufffd[2J"
    ]
    assert "--before 0198c0de" in result.stderr
    assert server.asked[0].query == {"limit": "1", "caller": "alice", "ended": "incomplete"}
    assert json.loads(run(server, "list", "--json").stdout)["captures"] == [ROW]


def test_one_is_shown_as_a_conversation(server: FakeApi) -> None:
    text = run(server, "show", "0198c0de").stdout
    assert server.asked[0].query == {"id": "0198c0de"}
    order = [
        "0198c0de  2026-11-18",
        "── request ──",
        "tools: get_weather, ?",
        "── system ──\nBe brief.",
        "── user ──\nWhat is    the\nweather\ufffd]0;x\ufffd?",
        '── assistant ──\n[tool_use get_weather toolu_1] {"city": "Zürich"}',
        "── user ──\n[tool_result error toolu_1] no such city\n[image] [image/png, 3 bytes]",
        '── assistant ──\n[thinking] Hm.\nIt is sunny.\n[1 citations]\n[new_block] {"type": "new_block", "x": 1}',
        "stop_reason end_turn, input_tokens 1,234, output_tokens 5",
        "(incomplete: the stream ended before its message did)",
        '(error: {"type": "overloaded_error"})',
        "(2 redacted)",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert json.loads(run(server, "show", "0198c0de", "--json").stdout) == CONVERSATION


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"request": None, "answer": None}, ["(99 bytes, not captured", "(none was captured)"]),
        ({"request": "<x>", "answer": "<y>", "request_cut": True}, ["<x>", "(cut: it had 99 bytes)", "<y>"]),
        ({"request": {}, "answer": {"type": "error"}, "error_type": "x"}, ['{"type": "error"}', "(error: x)"]),
        ({"request": {"messages": 1}, "answer": [1], "answer_cut": True}, ["[1]", "(cut: it had 88 bytes or more)"]),
        ({"request": {"messages": [1, {"role": "user"}]}, "answer": {"content": [1, None]}}, ["── user ──\nnull"]),
    ],
    ids=str,
)
def test_odd_bodies_are_shown_too(server: FakeApi, fields: dict[str, Any], expected: list[str]) -> None:
    server.answers["GET /capture/info"] = Answer(body=ROW | fields)
    text = run(server, "show", "0198c0de").stdout
    assert all(part in text for part in expected), text


def test_one_is_deleted(server: FakeApi) -> None:
    assert run(server, "delete", "0198c0de").stdout == "deleted: 0198c0de\n"
    assert server.asked[0].body == {"id": "0198c0de"}


@pytest.mark.parametrize("body", [{"captures": 1}, {"captures": [1]}, [1]], ids=str)
def test_what_is_no_answer_of_ours_is_said(server: FakeApi, body: Any) -> None:
    server.answers["GET /capture/list"] = Answer(body=body)
    assert "is it tproxy's?" in run(server, "list", code=1).stderr
