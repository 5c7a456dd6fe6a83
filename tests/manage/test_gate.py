"""What the server does without: the management API is made when somebody who was let in first asks for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.responses import JSONResponse
from structlog.testing import capture_logs

from tests.manage.desk import Office, office
from tproxy.manage.app import build
from tproxy.manage.gate import ASGIApp, Gate, Late
from tproxy.manage.health import SECTIONS


async def app(scope: Any, receive: Any, send: Any) -> None:
    await JSONResponse({})(scope, receive, send)


class Making:
    """Makes the application as often as it is asked to, and fails the first `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.threads: list[bool] = []

    def __call__(self) -> ASGIApp:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            self.threads.append(True)
        else:
            self.threads.append(False)
        if len(self.threads) <= self.failures:
            raise ImportError("sk-of-somebody, and what is broken")
        return app


def late(o: Office, make: Callable[[], ASGIApp]) -> None:
    """Let the office's API be made by `make` when it is asked for."""
    o.manage._api = Gate(Late(make), o.desk)


# What a client that is not let in, or that asks for no route of the API, can send.
UNASKED = {
    "alive": ("GET", "/health/liveliness"),
    "ready": ("GET", "/health/readiness"),
    "no key": ("GET", "/key/list"),
    "spelt otherwise": ("GET", "/%6bey/list"),
    "a change": ("POST", "/key/generate"),
    "no route": ("GET", "/key/unheard-of"),
}


async def test_who_is_not_let_in_does_not_have_it_made(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        making = Making()
        late(o, making)
        for method, path in UNASKED.values():
            for key in (None, "sk-nobody-has-ever-seen-this"):
                await o.ask(method, path, {} if method == "POST" else None, who=key)
        assert making.threads == []
        assert (await o.get("/key/list")).status == 200
        assert making.threads == [True]


async def test_it_is_made_once_and_in_a_thread(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        making, statuses = Making(), []
        late(o, making)

        async def ask() -> None:
            statuses.append((await o.get("/key/list")).status)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert (making.threads, statuses) == ([True], [200] * 5)


async def test_where_it_cannot_be_made_the_next_request_tries_again(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        late(o, Making(failures=1))
        with capture_logs() as logged:
            answer = await o.get("/key/list")
        assert (answer.status, answer.error["type"]) == (500, "internal_server_error")
        assert "broken" not in answer.response.text
        assert [line["log_level"] for line in logged] == ["error"]
        assert (await o.get("/key/list")).status == 200


async def test_a_client_that_leaves_meanwhile_does_not_stop_it(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        begun, leave, making = trio.Event(), threading.Event(), Making()

        def slowly() -> ASGIApp:
            trio.from_thread.run_sync(begun.set)
            leave.wait(10)
            return making()

        late(o, slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(o.get, "/key/list")
            await begun.wait()
            nursery.cancel_scope.cancel()
            leave.set()
        assert (await o.get("/key/list")).status == 200
        assert making.threads == [True]


async def test_the_sections_are_those_of_the_routes(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        assert build(o.desk).state.sections == SECTIONS


@pytest.mark.parametrize("module", ["tproxy.server", "tproxy.cli", "tproxy.assembly"])
def test_the_server_starts_without_it(module: str) -> None:
    unwanted = ("fastapi", "starlette", "anyio", "tproxy.manage.app")
    code = f"import sys, {module}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
