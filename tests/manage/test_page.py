"""Pages beside the management API: who sees one, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.manage.desk import MASTER, Office, office
from tproxy.manage.gate import send_page
from tproxy.manage.health import Manage
from tproxy.manage.page import Page, Show

KEYED = [(b"authorization", f"Bearer {MASTER}".encode())]


async def shows(scope: Any, receive: Any, send: Any) -> None:
    await send_page(send, 200, {"shown": True})


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise ZeroDivisionError("sk-of-somebody")


async def breaks(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError("sk-of-somebody")


def put(o: Office, show: Show, public: Callable[[], bool] = lambda: False) -> None:
    o.manage._pages = {b"/seen": Page(o.desk, show, public)}


async def test_it_is_for_the_master_key_and_for_keys_that_may_read(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        put(o, shows)
        await o.post("/user/new", user_id="viewer", user_role="proxy_admin_viewer", auto_create_key=False)
        viewer, _ = await o.make(user_id="viewer")
        plain, _ = await o.make()
        statuses = [(await o.get("/seen", who=who)).status for who in (None, "sk-no", plain, viewer, "sk-m")]
        assert statuses == [401, 401, 403, 200, 401]
        assert (await o.get("/seen")).ok == {"shown": True}
        assert o.master[0] is not None
        o.master[0] = None  # and without a master key it is for nobody
        assert (await o.get("/seen")).status == 403


async def test_public_is_asked_anew_each_time(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        public = [True]
        put(o, shows, lambda: public[0])
        assert (await o.get("/seen", who=None)).status == 200
        public[0] = False
        assert (await o.get("/seen", who=None)).status == 401


async def test_methods(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        put(o, shows)
        head = await o.ask("HEAD", "/seen")
        assert (head.status, head.response.content) == (200, b"")
        assert head.response.headers["content-length"] == "14"
        post = await o.ask("POST", "/seen", {})
        assert (post.status, post.response.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(("show", "status"), [(fails, 500), (breaks, 200)])
async def test_a_bug_is_logged_and_tells_nothing(show: Show, status: int, tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        put(o, show)
        with capture_logs() as said:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "GET", "raw_path": b"/seen", "path": "/seen", "headers": KEYED}
            await o.manage(scope, None, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == status
        assert b"sk-of" not in b"".join(message.get("body", b"") for message in sent)
        assert [line["event"] for line in said] == ["a page: a bug"]


async def test_who_leaves_is_nobodys_fault(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        put(o, shows)

        async def send(message: Any) -> None:
            raise BrokenPipeError

        scope = {"type": "http", "method": "GET", "raw_path": b"/seen", "path": "/seen", "headers": KEYED}
        with capture_logs() as said:
            await o.manage(scope, None, send)  # type: ignore[arg-type]
        assert [line["event"] for line in said] == ["client_gone"]
        assert isinstance(o.manage, Manage)
