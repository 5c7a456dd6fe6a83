from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from structlog.testing import capture_logs

from tests.capture.test_record import FAILED, STREAM, made
from tests.manage.desk import Office, office
from tproxy.capture.shelf import Shelf
from tproxy.manage import captures
from tproxy.manage.app import build
from tproxy.manage.gate import Gate
from tproxy.manage.health import Manage


@asynccontextmanager
async def archive(path: Path) -> AsyncIterator[tuple[Office, Shelf]]:
    """A management side that has captures."""
    shelf = Shelf(path / "captures.db")
    async with office(path) as o:
        desk = dataclasses.replace(o.desk, captures=lambda: shelf)
        manage = Manage(desk.unready, Gate(build(desk), desk))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(manage), base_url="http://tproxy") as client:
            o.client = client
            yield o, shelf
    shelf.close()


async def test_a_capture_is_shown_as_the_conversation_that_it_was(tmp_path: Path) -> None:
    async with archive(tmp_path) as (o, shelf):
        shelf.put([made(id="a", answer=[STREAM]), made(id="b", answer=[FAILED]), made(id="c", request=b"<x>")])
        page = (await o.get("/capture/info", id="a")).ok
        assert page["request"]["messages"] == [{"role": "user", "content": "hello"}]
        assert page["answer"]["content"] == [{"type": "text", "text": "the key is [redacted]"}]
        assert (page["answer_whole"], page["answer_kind"], page["redacted"]) == (True, "message", 1)
        page = (await o.get("/capture/info", id="b")).ok
        assert page["answer_error"]["type"] == "overloaded_error"
        page = (await o.get("/capture/info", id="c")).ok
        assert (page["request"], page["answer"], page["answer_error"]) == ("<x>", None, None)


async def test_captures_are_listed_page_by_page(tmp_path: Path) -> None:
    async with archive(tmp_path) as (o, shelf):
        assert (await o.get("/capture/list")).ok == {"captures": [], "next": None}
        shelf.put(
            [made(id=f"{number}", at_us=number, caller_alias="alice" if number == 3 else None) for number in range(5)]
        )
        seen, before = [], None
        for _ in range(3):
            page = (await o.get("/capture/list", limit=2, **({"before": before} if before else {}))).ok
            seen.append([row["id"] for row in page["captures"]])
            before = page["next"]
        assert (seen, before) == ([["4", "3"], ["2", "1"], ["0"]], None)
        page = (await o.get("/capture/list", caller="alice")).ok
        assert [row["id"] for row in page["captures"]] == ["3"]
        assert "request" not in page["captures"][0]
        assert (await o.get("/capture/list", ended="refused")).ok["captures"] == []
        assert (await o.get("/capture/list", limit=0)).status == 422


async def test_one_is_deleted_by_admins_only(tmp_path: Path) -> None:
    async with archive(tmp_path) as (o, shelf):
        shelf.put([made(id="a")])
        viewer, _ = await o.make(key_alias="viewer", key_type="read_only")
        plain, _ = await o.make(key_alias="plain")
        for who, statuses in ((plain, (403, 403)), (viewer, (200, 403))):
            read = await o.get("/capture/info", who=who, id="a")
            assert (read.status, (await o.post("/capture/delete", {"id": "a"}, who=who)).status) == statuses
        assert (await o.post("/capture/delete", {"id": "a"})).ok == {"deleted": "a"}
        assert (await o.post("/capture/delete", {"id": "a"})).status == 404
        assert "No bodies are kept" in (await o.get("/capture/info", id="a")).error["message"]


async def test_where_nothing_is_captured_there_is_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        assert (await o.get("/capture/list")).ok == {"captures": [], "next": None}
        assert (await o.get("/capture/info", id="a")).status == 404


async def test_what_is_kept_is_json_for_every_reader(tmp_path: Path) -> None:
    async with archive(tmp_path) as (o, shelf):
        shelf.put([made(id="a", request=b'{"a": "\xff \x1b[2J"', answer=[b"\x00\x1b"])])
        answer = await o.get("/capture/info", id="a")
        assert json.loads(answer.response.content) == answer.ok


async def test_a_file_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    async with archive(tmp_path) as (o, shelf):
        shelf.path.write_bytes(b"this is no database, though it is as long as one may be " * 50)
        with capture_logs() as logs:
            for answer in (await o.get("/capture/list"), await o.post("/capture/delete", {"id": "a"})):
                assert answer.status == 503
                assert answer.error["message"].startswith("The file of captures cannot be used now.")
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "the file of captures cannot be used"
        ] * 2


async def test_a_file_that_hangs_is_said_to_and_holds_up_no_other_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, "SECONDS", 0.05)
    async with archive(tmp_path) as (o, shelf):
        go_on = threading.Event()
        monkeypatch.setattr(shelf, "find", lambda _: go_on.wait(30))
        try:
            with capture_logs() as lines:
                for _ in range(captures.THREADS + 2):
                    assert (await o.get("/capture/info", id="a")).status == 503
            assert {line.get("why") for line in lines if line["log_level"] == "warning"} == {"it took more than 0.05 s"}
            assert o.desk.threads.borrowed_tokens == 0
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        finally:
            go_on.set()
