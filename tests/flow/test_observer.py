"""Who looks on is told once of each thing, and can harm nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from tests.flow.asgi import BODY, Asked, stage
from tests.wire.peer import answers, close
from tproxy.errors import Header
from tproxy.flow.identify import ANONYMOUS
from tproxy.flow.observer import Observer, Refused, Sight
from tproxy.observe.lines import Lines
from tproxy.protocol.keys import compose
from tproxy.store import base
from tproxy.store.base import Closing

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
    b"anthropic-ratelimit-requests-remaining: 49\r\nanthropic-ratelimit-tokens-remaining: 1e3\r\n\r\n{}"
)


class Note(Observer):
    """Notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.sight: Sight | None = None
        self.closing: Closing | None = None
        self.body: bytes | None = None
        self.why: Refused | None = None

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        assert dict(headers)[b"x-api-key"]
        self.sight, self.body = sight, body
        self.told.append(f"admitted {sight.so_far().ended}")

    def ended(self, sight: Sight, closing: Closing) -> None:
        assert sight is self.sight
        self.closing = closing
        self.told.append(f"ended {closing.ended}")

    def refused(self, refused: Refused) -> None:
        self.why = refused
        self.told.append(f"refused {refused.fault.code}")


class Broken(Observer):
    """Fails whatever it is told."""

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        raise ZeroDivisionError

    def ended(self, sight: Sight, closing: Closing) -> None:
        raise ZeroDivisionError

    def refused(self, refused: Refused) -> None:
        raise ZeroDivisionError


async def test_an_exchange_is_told_twice() -> None:
    note = Note()
    async with stage(answers([ANSWER]), observers=[Observer(), note]) as on:
        asked = await on.ask(Asked())
        assert asked.status == 200
        assert note.told == ["admitted open", "ended finished"]
        assert note.body == BODY
        assert note.sight is not None
        assert note.closing is not None
        assert note.sight.opening.id == note.closing.id == on.row["id"]
        assert note.sight.caller is ANONYMOUS
        assert note.sight.credential == "api_keys[0]"
        assert note.sight.course.remains == (49, None, None, None)  # what is no number is not one


async def test_a_refusal_is_told_once() -> None:
    note = Note()
    async with stage(close, observers=[note], access="keys", master="0" * 64) as on:
        asked = await on.ask(Asked(path=b"/v1/messages?key=a"))
        assert asked.status == 401
    assert note.told == ["refused key_unknown"]
    assert note.why is not None
    assert (note.why.method, note.why.path, note.why.client_address) == ("POST", "/v1/messages", "127.0.0.1")


async def test_an_exchange_that_cannot_be_answered_has_ended() -> None:
    note = Note()
    async with stage(close, observers=[note]) as on:
        assert (await on.ask(Asked())).status == 502
    assert note.told == ["admitted open", f"ended {base.UPSTREAM_BROKEN}"]


async def test_who_fails_is_counted_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    note = Note()
    async with stage(answers([ANSWER]), observers=[Broken(), note]) as on:
        assert (await on.ask(Asked())).status == 200
        assert (await on.ask(Asked(path=b"/v1/../x"))).status == 400
        assert note.told == ["admitted open", "ended finished", "refused bad_request"]
        assert on.proxy.services.observers.failures == 3
        assert on.at_rest
    assert caplog.text.count("who looks on failed") == 3


async def test_no_key_is_written_down_wherever_a_client_puts_one() -> None:
    key = compose(bytes(range(32)))
    user = json.dumps({"device_id": "d", "account_uuid": "a", "session_id": key})
    body = json.dumps({"model": f"x{key}", "max_tokens": 1, "messages": [], "metadata": {"user_id": user}}).encode()
    note = Note()
    with capture_logs() as said:
        async with stage(answers([ANSWER]), observers=[note, Lines()]) as on:
            asked = Asked(path=b"/v1/messages", body=[body])
            asked.headers[3] = (b"content-length", str(len(body)).encode())
            asked.headers += [
                (b"x-tproxy-tags", f"z{key},t".encode()),
                (b"user-agent", f"a/{key}".encode()),
                (b"x-claude-code-agent-id", f"9{key}".encode()),
            ]
            await on.ask(asked)
            row = on.row
    assert row["model_asked"] == "xsk-…"
    assert row["session"] == "sk-…"
    assert note.told[0].startswith("admitted")
    for place in (row, said, note.sight and note.sight.opening):
        assert key not in repr(place)
