"""The log's line of an exchange says what its row says."""

from __future__ import annotations

import pytest
import structlog
from structlog.typing import EventDict

from tests.flow.asgi import Asked, stage
from tests.wire.peer import answers, close
from tproxy.observe.lines import Lines

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 114\r\nrequest-id: req_1\r\n\r\n"
    b'{"type":"message","id":"msg_1","model":"claude-opus-5-5","stop_reason":"end_turn","usage":{"input_tokens":7,'
    b'"output_tokens":5}}'
)
ANSWER = ANSWER.replace(b": 114", b": %d" % len(ANSWER.partition(b"\r\n\r\n")[2]))


async def test_a_line_has_the_fields_of_the_row() -> None:
    with structlog.testing.capture_logs() as said:
        async with stage(answers([ANSWER]), observers=[Lines()]) as on:
            asked = Asked()
            asked.headers += [(b"x-tproxy-tags", b"a, b"), (b"x-tproxy-customer", b"c")]
            assert (await on.ask(asked)).status == 200
    [line] = [each for each in said if each["event"] == "exchange"]
    row = on.row
    apart = {"event", "log_level", "head_ms", "first_content_ms", "total_ms", "tags"}
    assert {name: value for name, value in line.items() if name not in apart} == {
        name: value
        for name, value in row.items()
        if value is not None and name not in ("tags", "traceparent") and not name.endswith("_us")
    }
    assert line["tags"] == "a,b"
    assert line["total_ms"] == (row["ended_us"] - row["accepted_us"]) / 1000
    assert line["cost_nano"] == row["cost_nano"] > 0


async def test_a_refusal_has_a_line_without_the_key() -> None:
    with structlog.testing.capture_logs() as said:
        async with stage(close, observers=[Lines()]) as on:
            await on.ask(Asked(path=b"/v1/../sk-1234567890123456"))
    assert [(line["event"], line["status"], line["code"]) for line in said] == [("refused", 400, "bad_request")]
    assert "1234567890123456" not in str(said)


@pytest.mark.parametrize(("level", "lines"), [(20, 1), (30, 0)], ids=["info", "warning"])
async def test_below_its_level_nothing_is_gathered(level: int, lines: int) -> None:
    said: list[str] = []

    def keep(logger: object, method: str, event: EventDict) -> str:
        said.append(method)
        return ""

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level), processors=[keep], cache_logger_on_first_use=False
    )
    try:
        async with stage(answers([ANSWER]), observers=[Lines()]) as on:
            await on.ask(Asked())
    finally:
        structlog.configure(**before)
    assert len(said) == lines


async def test_a_long_line_is_cut() -> None:
    with structlog.testing.capture_logs() as said:
        async with stage(answers([ANSWER]), observers=[Lines()]) as on:
            asked = Asked(path=b"/v1/files/" + b"a" * 5_000)
            asked.headers += [(b"x-tproxy-tags", ",".join(f"{n:0200}" for n in range(60)).encode())]
            assert (await on.ask(asked)).status == 200
            assert len(on.row["path"]) > 5_000
    [line] = said
    assert len(line["path"]) == len(line["tags"]) == 1_000
