from __future__ import annotations

import pytest
import trio

from tproxy.sandbox.server import Sandbox, serve_sandbox


@pytest.fixture
async def sandbox(nursery: trio.Nursery) -> Sandbox:
    """A sandbox that takes any credential; it ends with the test."""
    running: Sandbox = await nursery.start(serve_sandbox, "127.0.0.1:0")
    return running
