from __future__ import annotations

import json

import pytest

from tests.flow.asgi import Asked, Stage, stage
from tests.wire.peer import close
from tproxy import __version__
from tproxy.manage.health import LEDGER_FAILS, Manage


async def get(s: Stage, path: bytes, method: str = "GET") -> Asked:
    return await s.ask(Asked(method=method, path=path, headers=[(b"host", b"h")], body=[b""]))


@pytest.mark.parametrize("path", [b"/health/liveliness", b"/health/liveness", b"/health/readiness"])
async def test_the_pages_are_public_and_named(path: bytes) -> None:
    async with stage(close, access="keys") as s:
        for method in ("GET", "HEAD"):
            asked = await get(s, path, method)
            assert asked.status == 200
            assert {b"x-tproxy-id", b"x-litellm-call-id"} <= {name for name, _ in asked.sent[0]["headers"]}
        assert s.upstream.lines == []


async def test_the_pages_have_the_shapes_of_litellms() -> None:
    async with stage(close) as s:
        assert json.loads((await get(s, b"/health/liveliness")).answer) == "I'm alive!"
        page = json.loads((await get(s, b"/health/readiness")).answer)
        assert (page["status"], page["db"], page["litellm_version"]) == (
            "healthy",
            "connected",
            f"tproxy {__version__}",
        )
        s.proxy._manage = Manage(lambda: LEDGER_FAILS)
        assert json.loads((await get(s, b"/health/readiness")).answer)["db"] == "Not connected"


async def test_readiness_says_why_not() -> None:
    async with stage(close) as s:
        s.proxy._manage = Manage(lambda: "draining")
        asked = await get(s, b"/health/readiness")
        assert (asked.status, json.loads(asked.answer)["status"]) == (503, "draining")
        assert (await get(s, b"/health/liveness")).status == 200


@pytest.mark.parametrize("path", [b"/%68ealth/readiness", b"/health/Readiness", b"/health/readiness/", b"/health"])
async def test_no_other_spelling_is_served(path: bytes) -> None:
    async with stage(close) as s:
        assert (await get(s, path)).status == 404


async def test_nothing_is_changed_by_a_post() -> None:
    async with stage(close) as s:
        assert (await get(s, b"/health/readiness", "POST")).status == 404


@pytest.mark.parametrize("path", [b"/key/sk-canary/../x", b"/key/sk-canary/%2e", b"/key/sk-canary/x", b"/sk-canary"])
async def test_a_key_in_a_path_that_is_refused_is_not_logged(path: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    async with stage(close) as s:
        assert (await get(s, path)).status in (400, 404)
    written = capsys.readouterr()
    assert "refused" in written.out + written.err
    assert "sk-canary" not in written.out + written.err
