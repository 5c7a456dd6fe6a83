"""One exchange, step by step: what the client sees, what the upstream sees, and the row, however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.flow.asgi import BODY, POST, REAL_KEY, Asked, Stage, stage
from tests.flow.known import digest
from tests.wire.peer import Line, Script, answers, close, deaf, silence
from tproxy.errors import Header
from tproxy.wire.pool import Bounds

EVENTS = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"claude-opus-5-5",'
    b'"usage":{"input_tokens":100,"output_tokens":1}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":"Hello there"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":9}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
HEAD = (
    b"HTTP/1.1 200 Fine\r\nContent-Type: text/event-stream\r\nrequest-id: req_1\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = [HEAD, *map(chunk, EVENTS), b"0\r\n\r\n"]
STREAM = b"".join(EVENTS)


def error_code(asked: Asked) -> str:
    code: str = json.loads(asked.answer)["error"]["details"]["error_code"]
    return code


async def test_a_stream_goes_through_and_is_written_down() -> None:
    async with stage(answers(WHOLE)) as s:
        asked = await s.ask(Asked())
        assert (asked.status, asked.sent[0]["reason"], asked.answer, asked.whole) == (200, b"Fine", STREAM, True)
        [request] = s.upstream.lines[0].requests
        assert request.body == BODY
        assert (b"x-api-key", REAL_KEY.encode()) in request.headers
        assert s.row["ended"] == "finished"
        assert (s.row["input_tokens"], s.row["output_tokens"], s.row["certainty"]) == (100, 9, "exact")
        assert s.row["request_id"] == "req_1"
        assert dict(asked.sent[0]["headers"])[b"x-tproxy-id"].decode() == s.row["id"]
        assert s.row["bytes_in"] == len(BODY)
        assert s.row["bytes_out"] == len(STREAM)
        times = [s.row[f"{name}_us"] for name in ("accepted", "dialled", "head", "first_content", "last_byte", "ended")]
        assert times == sorted(times)
        assert s.at_rest


async def test_one_read_is_one_write() -> None:
    async with stage(answers([HEAD + chunk(EVENTS[0]) + chunk(EVENTS[1]), *map(chunk, EVENTS[2:]), b"0\r\n\r\n"])) as s:
        asked = await s.ask(Asked())
        assert [m["body"] for m in asked.sent[1:]] == [EVENTS[0] + EVENTS[1], *EVENTS[2:], b""]
        assert asked.sent[0]["held"], "the first events came with the head"


async def test_a_head_that_came_alone_goes_out_alone() -> None:
    async with stage(answers([HEAD])) as s:
        asked = Asked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            while not asked.sent:
                await trio.testing.wait_all_tasks_blocked()
            assert not asked.sent[0]["held"]
            asked.leave()


@pytest.mark.parametrize(
    "ending", [[chunk(EVENTS[1]) + b"0\r\n\r\n"], [chunk(EVENTS[1]), b"0\r\n\r\n"]], ids=["together", "apart"]
)
async def test_the_end_goes_out_with_the_last_bytes_where_it_came_with_them(ending: list[bytes]) -> None:
    async with stage(answers([HEAD + chunk(EVENTS[0]), *ending])) as s:
        asked = await s.ask(Asked())
        bodies = [EVENTS[0], EVENTS[1]] if len(ending) == 1 else [EVENTS[0], EVENTS[1], b""]
        assert [m["body"] for m in asked.sent[1:]] == bodies
        assert asked.whole


async def test_no_byte_goes_out_before_the_row_is_durable() -> None:
    async with stage(answers(WHOLE)) as s:
        s.ledger.hold_commits()
        asked = Asked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert s.upstream.requests == 1
            assert asked.sent == []
            s.ledger.release()
        assert asked.whole


async def test_a_ledger_that_cannot_be_written_refuses_before_dialling() -> None:
    async with stage(answers(WHOLE)) as s:
        s.ledger.fail()
        asked = await s.ask(Asked())
        assert (asked.status, error_code(asked)) == (503, "ledger_unavailable")
        assert s.upstream.lines == []


async def test_a_ledger_that_fails_under_way_lets_no_byte_out() -> None:
    async with stage(answers(WHOLE)) as s:
        asked = Asked()
        writable = s.ledger.open

        def failing(opening: object) -> object:
            s.ledger.writable = False
            return writable(opening)  # type: ignore[arg-type]

        s.ledger.open = failing  # type: ignore[assignment,method-assign]
        await s.ask(asked)
        assert (asked.status, error_code(asked)) == (503, "ledger_unavailable")
        assert "active 0" in repr(s.pool)


@pytest.mark.parametrize(
    ("script", "status", "code", "ended"),
    [
        (close, 502, "upstream_broken", "upstream_broken"),
        (answers([b"nonsense\r\n\r\n"]), 502, "upstream_broken", "upstream_broken"),
        (silence, 504, "upstream_timeout", "upstream_timeout"),
    ],
    ids=["closes", "nonsense", "silent"],
)
async def test_an_upstream_that_breaks_before_its_head(script: Script, status: int, code: str, ended: str) -> None:
    async with stage(script, bounds=Bounds(first_byte=0.05)) as s:
        asked = await s.ask(Asked())
        assert (asked.status, error_code(asked), asked.whole) == (status, code, True)
        assert (s.row["ended"], s.row["status"], s.row["error_type"]) == (ended, status, code)
        assert (s.row["cost_nano"], s.row["certainty"]) == (None, "partial")
        assert json.loads(asked.answer)["request_id"] == s.row["id"]
        assert (b"request-id", s.row["id"].encode()) in asked.sent[0]["headers"]
        assert s.at_rest


async def test_an_upstream_that_cannot_be_reached() -> None:
    async with stage(close) as s:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        free: int = listener.socket.getsockname()[1]
        await listener.aclose()
        s.pool.origin = type(s.pool.origin)("http", "127.0.0.1", free)
        asked = await s.ask(Asked())
        assert (asked.status, error_code(asked)) == (502, "upstream_unreachable")
        assert s.row["ended"] == "upstream_unreachable"


@pytest.mark.parametrize("then", [Line.cut, Line.reset])
async def test_an_upstream_that_breaks_midway_is_seen_as_broken(then: Callable[[Line], None]) -> None:
    async with stage(answers([HEAD, *map(chunk, EVENTS[:3])], then=then)) as s:
        asked = await s.ask(Asked())
        assert asked.answer == b"".join(EVENTS[:3])
        assert not asked.whole
        assert (s.row["ended"], s.row["status"], s.row["certainty"]) == ("upstream_broken", 200, "estimated")
        assert s.row["input_tokens"] == 100
        assert s.row["output_tokens"] >= 2
        assert s.at_rest


async def test_an_upstream_that_falls_silent_midway() -> None:
    async with stage(answers([HEAD, chunk(EVENTS[0])]), bounds=Bounds(idle=0.05)) as s:
        asked = await s.ask(Asked())
        assert not asked.whole
        assert s.row["ended"] == "upstream_timeout"


@pytest.mark.parametrize("after", [0, 1, 3], ids=["before the head", "after the head", "midway"])
async def test_a_client_that_leaves_cuts_the_upstream(after: int) -> None:
    pieces = [HEAD, *map(chunk, EVENTS[:2])] if after else []
    async with stage(answers(pieces) if pieces else silence) as s:
        asked = Asked()
        asked.on_send = lambda: asked.leave() if len(asked.sent) >= after else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            if not after:
                await trio.testing.wait_all_tasks_blocked(0.01)
                asked.leave()
            with trio.fail_after(1):
                while not s.upstream.lines:
                    await trio.testing.wait_all_tasks_blocked()
                await s.upstream.lines[0].gone.wait()
        assert s.row["ended"] == "client_gone"
        assert not asked.whole
        assert s.at_rest


async def test_with_drain_the_answer_is_read_to_its_end() -> None:
    async with stage(answers(WHOLE), drain=True) as s:
        asked = Asked()
        asked.on_send = lambda: asked.leave() if len(asked.sent) == 2 else None
        await s.ask(asked)
        assert not asked.whole
        assert (s.row["ended"], s.row["certainty"], s.row["output_tokens"]) == ("client_gone", "exact", 9)
        assert s.row["bytes_out"] < len(STREAM)
        assert s.at_rest


async def test_a_drain_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with stage(answers([HEAD, chunk(EVENTS[0])]), drain=True) as s:
        asked = Asked()
        asked.on_send = lambda: asked.leave() if len(asked.sent) == 2 else None
        await s.ask(asked)
        assert 30 <= trio.current_time() < 31
        assert s.row["ended"] == "client_gone"
        assert s.at_rest


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "key_missing"),
        ([(b"x-api-key", b"sk-wrong")], 401, "key_unknown"),
    ],
)
async def test_who_is_not_let_in_leaves_no_row(headers: list[Header], status: int, code: str) -> None:
    async with stage(close, access="keys", master=digest("sk-master")) as s:
        asked = await s.ask(Asked(headers=[(b"host", b"h"), *headers]))
        assert (asked.status, error_code(asked)) == (status, code)
        assert (b"x-should-retry", b"false") in asked.sent[0]["headers"]
        assert s.ledger.rows == {}
        assert s.upstream.lines == []


@pytest.mark.parametrize(
    ("server", "let_in"),
    [
        (("127.0.0.1", 4000), True),
        (("127.9.9.9", 4000), True),
        (("::1", 4000), True),
        (("/run/tproxy.sock", None), True),
        (("192.0.2.7", 4000), False),
        (("fe80::1%eth0", 4000), False),
    ],
)
async def test_open_access_is_for_loopback_addresses_only(server: tuple[str, int | None], let_in: bool) -> None:
    async with stage(answers(WHOLE)) as s:
        asked = await s.ask(Asked(server=server))
        assert asked.status == (200 if let_in else 401)
        assert len(s.upstream.lines) == let_in


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (b"/anthropic/../key/list", 400, "bad_request"),
        (b"/v1/%2e%2e/x", 400, "bad_request"),
        (b"/nothing", 404, "route_unknown"),
    ],
)
async def test_targets_that_go_nowhere(path: bytes, status: int, code: str) -> None:
    async with stage(close) as s:
        asked = await s.ask(Asked(path=path))
        assert (asked.status, error_code(asked)) == (status, code)
        assert s.upstream.lines == []


async def test_a_loop_is_one_error() -> None:
    async with stage(close) as s:
        asked = await s.ask(Asked(headers=[*POST, (b"Via", b"1.1 other, 1.1 tproxy-test")]))
        assert (asked.status, error_code(asked)) == (508, "loop_detected")
        assert s.upstream.lines == []


async def test_a_held_body_over_its_limit() -> None:
    async with stage(close) as s:
        asked = await s.ask(Asked(headers=[(b"host", b"h"), (b"transfer-encoding", b"chunked")], body=[b"x" * 600] * 2))
        assert (asked.status, error_code(asked)) == (413, "body_too_large")
        assert s.ledger.rows == {}


async def test_bodies_that_are_held_are_counted_until_their_exchanges_end() -> None:
    async with stage(silence) as s:
        big = [(b"host", b"h"), (b"content-length", b"900")]
        first = Asked(headers=big, body=[b"x" * 900])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, first)
            await trio.testing.wait_all_tasks_blocked(0.01)
            second = await s.ask(Asked(headers=big, body=[b"x" * 900]))
            assert (second.status, error_code(second)) == (503, "overloaded")
            first.leave()
        assert s.proxy.services.held.used == 0


async def test_a_streamed_body_is_passed_on_as_it_comes() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with stage(answers(answer)) as s:
        headers = [(b"host", b"h"), (b"Transfer-Encoding", b"chunked"), (b"content-type", b"multipart/form-data")]
        await s.ask(Asked(path=b"/anthropic/v1/files", headers=headers, body=[b"a" * 40_000, b"b" * 40_000, b""]))
        [request] = s.upstream.lines[0].requests
        assert request.body == b"a" * 40_000 + b"b" * 40_000
        assert (b"transfer-encoding", b"chunked") in [(name.lower(), value) for name, value in request.headers]
        assert (s.row["bytes_in"], s.row["cost_nano"], s.row["ended"]) == (80_000, 0, "finished")


async def test_a_streamed_body_over_its_limit_midway() -> None:
    async with stage(silence) as s:
        headers = [(b"host", b"h"), (b"transfer-encoding", b"chunked")]
        asked = await s.ask(Asked(path=b"/v1/files", headers=headers, body=[b"x" * 60_000] * 2))
        assert (asked.status, error_code(asked)) == (413, "body_too_large")
        assert s.row["ended"] == "client_fault"
        assert s.at_rest


async def test_a_client_that_leaves_in_the_middle_of_its_upload() -> None:
    async with stage(silence) as s:
        asked = Asked(path=b"/v1/files", headers=[(b"host", b"h"), (b"transfer-encoding", b"chunked")])
        asked.body = [b"x" * 1000, b"y"]
        original = asked.receive

        async def receive() -> dict[str, object]:
            message = await original()
            asked.leave()
            return message

        await s.proxy(asked.scope, receive, asked.send)
        assert (s.row["ended"], asked.sent) == ("client_gone", [])
        assert s.at_rest


async def test_a_bug_is_answered_and_written_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(answers(WHOLE)) as s:

        def bug(*args: object, **more: object) -> object:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("tproxy.flow.forward.header.downstream_headers", bug)
        asked = await s.ask(Asked())
        assert (asked.status, error_code(asked)) == (500, "internal")
        assert s.row["ended"] == "failed"
        assert "ZeroDivisionError" in caplog.text
        assert s.at_rest


class AtStep(trio.abc.Instrument):
    """Does something before the n-th step of one task."""

    def __init__(self, task: trio.lowlevel.Task, step: int, act: Callable[[], None]) -> None:
        self._task = task
        self._left = step
        self._act = act
        self.acted = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self.acted = True
                self._act()


async def disturbed(s: Stage, asked: Asked, step: int, act: Callable[[], None], scope: trio.CancelScope) -> bool:
    """Run an exchange and act at one step of its task; False if it ended before that step."""
    watcher = AtStep(trio.lowlevel.current_task(), step, act)
    trio.lowlevel.add_instrument(watcher)
    try:
        with scope:
            await s.ask(asked)
    finally:
        trio.lowlevel.remove_instrument(watcher)
    return watcher.acted


@pytest.mark.parametrize("kind", ["cancelled", "left"])
@pytest.mark.parametrize("drain", [False, True], ids=["cut", "drain"])
async def test_an_end_at_every_await_leaves_nothing_behind(kind: str, drain: bool) -> None:
    """Cancelled, or left by its client, at any await: the row is closed once, the place given back, the peer let go."""
    for step in range(1, 200):
        async with stage(answers(WHOLE), drain=drain) as s:
            asked, scope = Asked(), trio.CancelScope()
            acted = await disturbed(s, asked, step, scope.cancel if kind == "cancelled" else asked.leave, scope)
            assert s.at_rest, step
            if s.ledger.rows:
                assert s.row["ended"] in ("failed", "client_gone", "finished"), step
                if kind == "cancelled" and s.row["ended"] != "finished":
                    assert s.row["ended"] == "failed"
            if asked.whole:
                assert asked.answer == STREAM
            if not acted:
                break
    else:
        pytest.fail("the exchange never ran through undisturbed")
    assert step > 10


async def test_cancellation_while_the_ledger_is_slow() -> None:
    async with stage(answers(WHOLE)) as s:
        s.ledger.hold()
        with trio.move_on_after(0.05):
            await s.ask(Asked())
        assert (s.row["ended"], s.row["error_type"]) == ("failed", "shutdown")
        assert s.at_rest


async def test_a_deaf_upstream_does_not_hold_a_leaving_client() -> None:
    async with stage(deaf) as s:
        asked = Asked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            await trio.testing.wait_all_tasks_blocked(0.01)
            asked.leave()
        assert s.row["ended"] == "client_gone"
