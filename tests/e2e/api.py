"""The management API of a house, asked over its own socket."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from tests.e2e.house import House
from tests.e2e.raw import ask, request

MASTER = "sk-master-of-the-house"
# For `open_house(tproxy=…)`.
WITH_MASTER = f'master_key = "{MASTER}"'


async def call(
    house: House, method: str, path: str, content: Any = None, *, key: str | None = MASTER, **query: Any
) -> tuple[int, Any]:
    """Ask; returns the status and the JSON of the answer."""
    headers = [("authorization", f"Bearer {key}")] if key is not None else []
    body = b"" if content is None else json.dumps(content).encode()
    if body:
        headers.append(("content-type", "application/json"))
    target = path + ("?" + urlencode(query) if query else "")
    answer = await ask(house.address, request(method, target, headers, body))
    return answer.status, json.loads(answer.body) if answer.body else None


async def made(house: House, path: str, **fields: Any) -> dict[str, Any]:
    """Make something, and expect it to be made."""
    status, content = await call(house, "POST", path, fields)
    assert status == 200, content
    assert isinstance(content, dict)
    return content
