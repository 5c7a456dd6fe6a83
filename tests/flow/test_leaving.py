"""A client that leaves while nobody asks for the rest of its upload, as our own connection class tells it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.flow.asgi import Asked, stage
from tests.wire.peer import OK, answers, deaf
from tproxy.wire.pool import Bounds

UPLOAD = [(b"host", b"h"), (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("drain", [False, True], ids=["cut", "drain"])
async def test_during_an_upload_that_is_stuck(drain: bool) -> None:
    """There is nothing to drain: the upstream has not got the whole request."""
    async with stage(deaf, drain=drain) as s:
        blob = bytes(60_000)
        s.proxy.services = type(s.proxy.services)(
            **{name: getattr(s.proxy.services, name) for name in s.proxy.services.__slots__}
            | {"max_upload_bytes": 1 << 40}
        )
        asked = Asked(path=b"/v1/files", headers=UPLOAD, body=[blob] * 1000, ours=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.ask, asked)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert asked.body, "the upstream took all of it"
            asked.leave()
            with trio.fail_after(5):
                while not s.at_rest:
                    await trio.testing.wait_all_tasks_blocked()
        assert (s.row["ended"], asked.sent) == ("client_gone", [])


async def test_while_an_upload_waits_for_a_place() -> None:
    async with stage(deaf, bounds=Bounds(max_connections=1)) as s, trio.open_nursery() as nursery:
        first = Asked()
        nursery.start_soon(s.ask, first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        asked = Asked(path=b"/v1/files", headers=UPLOAD, body=[b"x", b""], ours=True)
        nursery.start_soon(s.ask, asked)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert "active 1, waiting 1" in repr(s.pool)
        asked.leave()
        with trio.fail_after(5):
            while "active 1, waiting 0" not in repr(s.pool):
                await trio.testing.wait_all_tasks_blocked()
        first.leave()
        with trio.fail_after(5):
            while not s.at_rest:
                await trio.testing.wait_all_tasks_blocked()
        assert [row["ended"] for row in s.ledger.rows.values()] == ["client_gone", "client_gone"]


async def test_who_stays_is_served() -> None:
    async with stage(answers(OK)) as s:
        asked = await s.ask(Asked(path=b"/v1/files", headers=UPLOAD, body=[b"x", b""], ours=True))
        assert (asked.answer, s.row["ended"]) == (b"ok", "finished")
