"""What several of the wire tests run through."""

from __future__ import annotations

import pytest

from tproxy.wire import poller


@pytest.fixture(params=["told by the poller", "without a poller"])
def either_channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of channel, on plain connections; see `tproxy/wire/channel_kinds.py`."""
    if request.param == "without a poller":
        monkeypatch.setattr(poller, "current", lambda: None)
