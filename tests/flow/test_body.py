from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from tproxy import errors
from tproxy.flow.body import Held, RequestBody, announced_length


class Script:
    """ASGI's `receive`, from a list; waits for ever at its end."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages: Iterator[dict[str, Any]] = iter(messages)
        self.ended = 0

    async def __call__(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        message = next(self._messages, None)
        if message is None:
            await trio.sleep_forever()
        assert message is not None
        return message

    def end(self) -> None:
        self.ended += 1


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def body(script: Script, announced: int | None = None, limit: int = 10, held: Held | None = None) -> RequestBody:
    return RequestBody(script, announced=announced, limit=limit, timeout=5, on_end=script.end, held=held or Held(1000))


async def test_whole_joins_the_pieces_and_says_when_it_ended() -> None:
    script = Script(part(b"abc"), part(b""), part(b"de"), part(b"", more=False))
    incoming = body(script)
    assert await incoming.whole() == b"abcde"
    assert (incoming.length, incoming.ended, script.ended) == (5, True, 1)
    assert await incoming.piece() == b""


async def test_piece_gives_an_empty_one_exactly_at_the_end() -> None:
    incoming = body(Script(part(b"ab"), part(b""), part(b"c", more=False)))
    assert [await incoming.piece() for _ in range(4)] == [b"ab", b"c", b"", b""]


async def test_the_limit_counts_what_came_not_what_was_announced() -> None:
    incoming = body(Script(part(b"x" * 10), part(b"y")), announced=3)
    with pytest.raises(errors.BodyTooLarge):
        await incoming.whole()


async def test_what_all_hold_together_is_bounded_and_given_back() -> None:
    held = Held(12)
    first = body(Script(part(b"x" * 8, more=False)), held=held)
    await first.whole()
    second = body(Script(part(b"y" * 3), part(b"y" * 3, more=False)), held=held)
    with pytest.raises(errors.Overloaded):
        await second.whole()
    assert held.used == 11
    second.release()
    first.release()
    first.release()
    assert held.used == 0


async def test_what_is_passed_on_is_not_held() -> None:
    held = Held(1)
    incoming = body(Script(part(b"x" * 8, more=False)), held=held)
    assert await incoming.piece() == b"x" * 8
    assert held.used == 0


async def test_exactly_the_limit_is_taken() -> None:
    assert len(await body(Script(part(b"x" * 10, more=False)), announced=10).whole()) == 10


def test_an_announced_length_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(errors.BodyTooLarge):
        body(Script(), announced=11)


async def test_a_slow_body_times_out_as_a_whole(autojump_clock: trio.testing.MockClock) -> None:
    async def receive() -> dict[str, Any]:
        await trio.sleep(2)
        return part(b"x")

    incoming = RequestBody(receive, announced=None, limit=100, timeout=5, on_end=lambda: None, held=Held(9))
    with pytest.raises(errors.BodyTimeout):
        await incoming.whole()
    assert trio.current_time() == 5


async def test_a_client_that_leaves_midway() -> None:
    with pytest.raises(errors.ClientGone):
        await body(Script(part(b"x"), {"type": "http.disconnect"})).whole()


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"7")], 7),
        ([(b"Transfer-Encoding", b"chunked")], None),
    ],
)
def test_announced_length(headers: list[errors.Header], length: int | None) -> None:
    assert announced_length(headers) == length


def test_a_length_that_is_no_number() -> None:
    with pytest.raises(errors.BadRequest):
        announced_length([(b"content-length", b"+5")])
