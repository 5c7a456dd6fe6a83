"""The official SDK's clients, as a user makes them but for two things: they do not retry, and load no certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import trio

from tests.e2e.house import REAL_KEY, House

HELLO: list[Any] = [{"role": "user", "content": "Hello, world"}]


def client(url: str, key: str = "sk-anything", *, max_retries: int = 0, **hooks: Any) -> anthropic.Anthropic:
    """The synchronous client; `hooks` are the HTTP client's event hooks."""
    http = anthropic.DefaultHttpxClient(verify=False, event_hooks=hooks)
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=max_retries, http_client=http)


def async_client(url: str) -> anthropic.AsyncAnthropic:
    """The asynchronous client, with the key as an auth token."""
    http = anthropic.DefaultAsyncHttpxClient(verify=False)
    return anthropic.AsyncAnthropic(base_url=url, auth_token="sk-anything", max_retries=0, http_client=http)


async def call(url: str, calls: Callable[[anthropic.Anthropic], Any], key: str = "sk-anything") -> Any:
    """Make calls with the synchronous client, in a thread."""

    def made() -> Any:
        with client(url, key) as sdk:
            return calls(sdk)

    return await trio.to_thread.run_sync(made)


async def both(house: House, base: str, calls: Callable[[anthropic.Anthropic], Any]) -> tuple[Any, Any]:
    """What calls give through the proxy, and what they give without it."""
    assert house.sandbox is not None
    return await call(house.url + base, calls), await call(house.sandbox.url, calls, REAL_KEY)
