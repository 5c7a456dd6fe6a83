"""Which bodies are taken, what is held of them and until when: in a real flow, before a scripted upstream."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.capture.test_record import STREAM
from tests.flow.asgi import BODY, POST, Asked, stage
from tests.wire.peer import Script, answers, close
from tproxy.capture import capturing as module
from tproxy.capture.capturing import Capturing
from tproxy.capture.shelf import DAY_US
from tproxy.errors import Header
from tproxy.flow.observer import Observer, Sight
from tproxy.setting_tables import Capture
from tproxy.store.base import Closing
from tproxy.store.subjects import KEY, Subject

NOW = 1_795_000_000_000_000


def answer(body: bytes, status: int = 200, *, media: str = "application/json", coding: str | None = None) -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\n"
    return (head + (f"content-encoding: {coding}\r\n" if coding else "")).encode() + b"\r\n" + body


WHOLE = answer(b'{"type": "message", "content": []}')
REFUSAL = answer(b'{"type": "error", "error": {"type": "overloaded_error"}}', 529)
STREAMED = answer(STREAM, media="text/event-stream")


@asynccontextmanager
async def taking(tmp_path: Path, *scripts: Script, known: Any = (), **settings: Any) -> AsyncIterator[Any]:
    """A stage whose exchanges are captured; `settled` waits until all that was queued has been dealt with."""
    database = f"sqlite:{tmp_path}/captures.db"
    capturing = Capturing(Capture.model_validate({"database": database} | settings), lambda: NOW)
    async with trio.open_nursery() as nursery, stage(*scripts, observers=[capturing], known=known) as on:
        nursery.start_soon(capturing.run)
        yield on, capturing
        nursery.cancel_scope.cancel()
    assert capturing.held == 0


async def settled(capturing: Capturing, count: int = 1) -> None:
    with trio.fail_after(30):
        while capturing.kept + capturing.failed < count:  # noqa: ASYNC110
            await trio.sleep(0.01)  # the process is not on trio's clock


def only(capturing: Capturing) -> dict[str, Any]:
    [row] = capturing.shelf.rows(limit=9)
    found = capturing.shelf.find(row["id"])
    assert found is not None
    return found


async def test_both_bodies_are_kept(tmp_path: Path) -> None:
    async with taking(tmp_path, answers([STREAMED]), sample_rate=1) as (on, capturing):
        await on.ask(Asked())
        await settled(capturing)
        row = only(capturing)
        assert json.loads(row["request"]) == json.loads(BODY)
        assert (row["why"], row["answer_kind"], row["answer_whole"]) == ("sample", "message", True)
        assert json.loads(row["answer"])["content"][0]["text"] == "the key is [redacted]"
        assert (row["id"], row["ended"], row["status"]) == (on.row["id"], "finished", 200)
        assert (row["request_bytes"], row["answer_bytes"]) == (len(BODY), len(STREAM))
        assert (row["caller"], row["model"]) == ("anonymous", "claude-sonnet-5-5")


async def test_a_coded_answer_is_kept_plain(tmp_path: Path) -> None:
    script = answers([answer(gzip.compress(STREAM), media="text/event-stream", coding="gzip")])
    async with taking(tmp_path, script, sample_rate=1) as (on, capturing):
        await on.ask(Asked())
        await settled(capturing)
        assert json.loads(only(capturing)["answer"])["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("script", "ended", "kept"),
    [
        (answers([WHOLE]), "finished", None),
        (answers([REFUSAL]), "refused", {"type": "error", "error": {"type": "overloaded_error"}}),
        (close, "upstream_broken", "none"),
    ],
    ids=["finished", "refused", "broken"],
)
async def test_of_errors_those_that_did_not_end_well(tmp_path: Path, script: Script, ended: str, kept: Any) -> None:
    async with taking(tmp_path, script, errors=True) as (on, capturing):
        await on.ask(Asked())
        assert on.row["ended"] == ended
        if kept is None:
            assert (capturing.held, capturing.kept) == (0, 0)
            return
        await settled(capturing)
        row = only(capturing)
        assert (row["why"], row["ended"]) == ("errors", ended)
        assert json.loads(row["request"]) == json.loads(BODY)
        assert (row["answer"] is None) if kept == "none" else (json.loads(row["answer"]) == kept)
    assert capturing.dropped == 0


class Watch(Observer):
    """Gives a capturing a body of its own, and counts who holds it besides."""

    def __init__(self, capturing: Capturing) -> None:
        self.capturing = capturing
        self.held: list[int] = []
        self._body = b""

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        self._body = bytes(bytearray(body or b""))
        self._free = sys.getrefcount(self._body)
        self.capturing.admitted(sight, headers, self._body)
        self.count()
        self.copied = sight.tap.copy is not None

    def ended(self, sight: Sight, closing: Closing) -> None:
        self.count()
        self.capturing.ended(sight, closing)
        self.count()

    def count(self) -> None:
        self.held.append(sys.getrefcount(self._body) - self._free)


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, []),
        ({"keys": ["somebody"]}, []),
        ({"sample_rate": 1}, [(b"x-tproxy-turn-off-message-logging", b"true")]),
        ({"sample_rate": 1}, [(b"X-LiteLLM-Enable-Message-Redaction", b"true")]),
        ({"errors": True}, [(b"litellm-enable-message-redaction", b"true")]),
    ],
    ids=str,
)
async def test_what_is_not_captured_is_not_held(tmp_path: Path, settings: Any, headers: list[Header]) -> None:
    watch = Watch(Capturing(Capture.model_validate({"database": f"sqlite:{tmp_path}/c.db"} | settings), lambda: NOW))
    async with stage(answers([REFUSAL]), observers=[watch]) as on:
        await on.ask(Asked(headers=[*POST, *headers]))
    assert watch.held == [0, 0, 0]
    assert not watch.copied
    assert watch.capturing.held == watch.capturing.dropped == 0
    assert not os.listdir(tmp_path)


async def test_a_body_is_let_go_of_once_the_exchange_has_ended_well(tmp_path: Path) -> None:
    watch = Watch(Capturing(Capture(database=f"sqlite:{tmp_path}/c.db", errors=True), lambda: NOW))
    async with stage(answers([WHOLE]), observers=[watch]) as on:
        await on.ask(Asked())
    assert watch.held == [1, 1, 0]
    assert watch.copied
    assert watch.capturing.held == 0


async def test_whoever_turned_message_logging_off_is_not_captured(tmp_path: Path) -> None:
    shy = Subject(
        kind=KEY, id=hashlib.sha256(b"sk-shy").hexdigest(), alias="shy", metadata={"turn_off_message_logging": True}
    )
    open_one = Subject(kind=KEY, id=hashlib.sha256(b"sk-open").hexdigest(), alias="open")
    async with taking(
        tmp_path, answers([WHOLE], [WHOLE]), known=[shy, open_one], sample_rate=1, keys=["shy", "open"]
    ) as (on, capturing):
        for presented in (b"sk-shy", b"sk-open"):
            headers = [(name, presented if name == b"x-api-key" else value) for name, value in POST]
            assert (await on.ask(Asked(headers=headers))).status == 200
        await settled(capturing)
        assert (only(capturing)["caller_alias"], only(capturing)["why"]) == ("open", "keys")


async def test_bodies_are_held_up_to_their_bound(tmp_path: Path) -> None:
    body = json.dumps({"model": "claude-opus-5-5", "max_tokens": 10, "system": "x" * 700, "messages": []}).encode()
    headers = [(n, str(len(body)).encode() if n == b"content-length" else v) for n, v in POST]
    big = answer(b'{"type": "message", "text": "' + b"y" * 2000 + b'"}')
    async with taking(tmp_path, answers([big]), sample_rate=1, max_bytes=100) as (on, capturing):
        await on.ask(Asked(headers=headers, body=[body]))
        await settled(capturing)
        row = only(capturing)
        assert (row["request_bytes"], row["request_cut"]) == (len(body), True)
        assert row["answer_bytes"] > 2000
        assert row["answer_cut"]
        assert len(row["request"]) <= 110
        assert len(row["answer"]) <= 110
        assert json.loads(row["request"])["model"] == "claude-opus-5-5"


async def test_past_what_may_be_held_nothing_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", len(BODY) + 10)
    async with taking(tmp_path, answers([WHOLE], [WHOLE]), sample_rate=1) as (on, capturing):
        capturing.held += 11
        await on.ask(Asked())
        assert (capturing.dropped, capturing.kept) == (1, 0)
        capturing.held -= 11
        await on.ask(Asked())  # the answer is more than there is room for
        await settled(capturing)
        row = only(capturing)
        assert (row["request_cut"], row["answer_cut"], row["answer_bytes"]) == (False, True, 34)


async def test_a_queue_that_is_full_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 0)
    async with taking(tmp_path, answers([WHOLE]), sample_rate=1) as (on, capturing):
        await on.ask(Asked())
        assert (capturing.dropped, capturing.held) == (1, 0)


async def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with taking(tmp_path, answers(*[[WHOLE]] * 3), sample_rate=1, database=f"sqlite:{tmp_path}/x.db") as (
        on,
        capturing,
    ):
        (tmp_path / "x.db").mkdir()
        for count in (1, 2):
            assert (await on.ask(Asked())).status == 200
            await settled(capturing, count)
        assert (capturing.failed, capturing.kept) == (2, 0)
        (tmp_path / "x.db").rmdir()
        await on.ask(Asked())
        await settled(capturing, 3)
        assert (capturing.failed, capturing.kept) == (2, 1)
    said = [(record.levelno, record.message.partition(" in /")[0]) for record in caplog.records]
    assert said == [
        (logging.ERROR, "captures cannot be kept"),
        (logging.WARNING, "captures can be kept again; 2 were lost so far"),
    ]


async def test_where_there_are_no_bodies_nothing_is_kept(tmp_path: Path) -> None:
    headers = [(b"host", b"127.0.0.1:4000"), (b"x-api-key", b"sk-anything")]
    async with taking(tmp_path, answers([WHOLE], [WHOLE]), sample_rate=1) as (on, capturing):
        asked = await on.ask(Asked(method="GET", path=b"/v1/models", headers=headers, body=[b""]))
        assert asked.status == 200
        assert not capturing._queue
        await on.ask(Asked())
        await settled(capturing)
        assert only(capturing)["path"] == "/v1/messages"
    assert (capturing.dropped, capturing.failed) == (0, 0)


async def test_what_is_queued_at_the_end_is_kept(tmp_path: Path) -> None:
    capturing = Capturing(Capture(database=f"sqlite:{tmp_path}/c.db", sample_rate=1), lambda: NOW)
    async with stage(answers([WHOLE]), observers=[capturing]) as on:
        await on.ask(Asked())
    with trio.CancelScope() as scope:
        scope.cancel()
        await capturing.run()
    assert (capturing.kept, capturing.held) == (1, 0)
    assert len(capturing.shelf.rows(limit=9)) == 1


async def test_what_is_old_goes_and_other_settings_are_taken(tmp_path: Path) -> None:
    async with taking(tmp_path, answers([WHOLE], [WHOLE], [WHOLE]), sample_rate=1) as (on, capturing):
        await on.ask(Asked())
        await settled(capturing)
        capturing.take(Capture(database=f"sqlite:{tmp_path}/other.db", sample_rate=1))
        await on.ask(Asked())
        await settled(capturing, 2)
        assert capturing.shelf.path.name == "other.db"
        assert len(capturing.shelf.rows(limit=9)) == 1
        capturing.take(Capture(database=f"sqlite:{tmp_path}/other.db"))
        await on.ask(Asked())
        assert (capturing.kept, capturing.held) == (2, 0)


async def test_what_was_kept_while_it_was_on_goes_in_its_time(tmp_path: Path) -> None:
    first = Capturing(Capture(database=f"sqlite:{tmp_path}/c.db", sample_rate=1), lambda: NOW)
    async with stage(answers([WHOLE]), observers=[first]) as on:
        await on.ask(Asked())
    with trio.CancelScope() as scope:
        scope.cancel()
        await first.run()
    later = Capturing(Capture(database=f"sqlite:{tmp_path}/c.db", retention_days=1), lambda: NOW + 30 * DAY_US)
    assert len(later.shelf.rows(limit=9)) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later.run)
        with trio.fail_after(30):
            while later.shelf.rows(limit=9):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
