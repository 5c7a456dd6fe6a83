"""What end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import house


@pytest.fixture(params=["fast path", "plain ASGI"])
def both_paths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test twice: with what our connection class offers beyond ASGI, and without."""
    house.PLAIN_ASGI = request.param == "plain ASGI"
    yield
    house.PLAIN_ASGI = False
