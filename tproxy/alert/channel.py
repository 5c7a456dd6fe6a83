"""The ways to tell somebody of an alert, and what they have in common: one alert at a time, delivered or not.

No error says where it went: the address of a channel is a secret.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from tproxy.alert.alert import Alert
from tproxy.export.webhook import signed
from tproxy.protocol import signature

TITLE_MAX: Final = 200
TEXT_MAX: Final = 3_000  # characters; Slack cuts a text at 40,000, and nobody reads as many


class Channel(Protocol):
    """One way."""

    async def send(self, alert: Alert) -> None:
        """Deliver an alert; bounded by a deadline of whoever calls.

        Raises:
            NotTaken: it was not taken. Its `why` never says where to.
        """


Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[object]]
"""`Poster.post`: sends a body with headers to a URL, and returns once that was taken."""


class Webhook:
    """Alerts as JSON, the object of `Alert.as_json`, signed as exchanges are (`protocol/signature.py`).

    Args:
        secret: what signs them; None: nothing does.
        now: seconds since the epoch.
    """

    def __init__(self, url: str, secret: str | None, post: Post, now: Callable[[], float] = time.time) -> None:
        self._url = url
        self._key = None if secret is None else signature.key(secret)
        self._post = post
        self._now = now

    async def send(self, alert: Alert) -> None:
        """See `Channel`."""
        body = _json(alert.as_json())
        await self._post(self._url, body, signed(self._key, alert.id, int(self._now()), body))


class Slack:
    """Alerts as Slack's incoming webhooks take them, and what imitates them (Mattermost, Discord's /slack)."""

    def __init__(self, url: str, post: Post) -> None:
        self._url = url
        self._post = post

    async def send(self, alert: Alert) -> None:
        """See `Channel`."""
        await self._post(self._url, _json(slack_text(alert)), {"content-type": "application/json"})


def slack_text(alert: Alert) -> dict[str, Any]:
    """The message. What came from outside is no markup in it: of mrkdwn only &, < and > begin any that does something
    (Slack, "Escaping text"), and the title's asterisks are kept for the title."""
    title = escaped(one_line(alert.title)[:TITLE_MAX].replace("*", ""))
    return {"text": f"*{title}*\n{escaped(one_line(alert.summary)[:TEXT_MAX])}"}


def escaped(text: str) -> str:
    """As Slack has it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def one_line(text: str) -> str:
    """Without what would end a line or cannot be seen."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
