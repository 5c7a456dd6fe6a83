"""The management API from outside: one request at a time, for the commands.

The key goes to the address that the user named and nowhere else: redirects are not followed, and a proxy of the
environment stands between only where the address is another machine's. An answer has a deadline and a bound. Whatever
goes wrong is one sentence for people (`ApiFault`), in which the key never stands.

Not known here: what the fields mean, and how anything is shown.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx2

URL_VARIABLE: Final = "TPROXY_URL"
KEY_VARIABLE: Final = "TPROXY_MASTER_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:4000"

CONNECT_SECONDS: Final = 10
ANSWER_SECONDS: Final = 60
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_MAX_REASON: Final = 600


class ApiFault(Exception):
    """The API could not be asked, or said no. Its text is a sentence for people; `status` is None without an answer."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Api:
    """The management API of one server. A context manager: it holds a connection.

    Args:
        url: where the server is, with a path if it stands below one.
        key: the master key, or a key with the role for what is asked.
        transport: what carries the requests, in place of the network.

    Raises:
        ValueError: `url` is no http address, or `key` cannot stand in a header.
    """

    def __init__(self, url: str, key: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        host = _host(self.url)
        self._key = key.strip()
        if not self._key:
            raise ValueError(f"{KEY_VARIABLE} is not set: it holds the key that opens the management API")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds something that is no key")
        self._client = httpx2.Client(
            headers={"authorization": f"Bearer {self._key}", "accept": "application/json"},
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=not _is_here(host),
            # Where nothing is encrypted, no certificates need be read: that takes a tenth of a second.
            verify=True if self.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()

    def get(self, path: str, **query: str | int | None) -> Any:
        """Ask for `path`; what is None is not asked for. Returns the JSON of the answer.

        Raises:
            ApiFault: there is no answer, or it says no.
        """
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, fields: Mapping[str, Any]) -> Any:
        """Send `fields` as JSON. Returns the JSON of the answer.

        Raises:
            ApiFault: there is no answer, or it says no.
        """
        return self._ask("POST", path, json=dict(fields))

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        deadline = time.monotonic() + ANSWER_SECONDS
        with self._faults(), self._client.stream(method, self.url + path, **content) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise ApiFault(f"the answer of {self.url} is larger than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ApiFault(f"{self.url} has not answered whole within {ANSWER_SECONDS} seconds")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if response.is_success and answer is not None:
            return answer
        raise ApiFault(self._sentence(response, answer, f"{method} {path}"), response.status_code)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what the network does into a sentence that says where, and what to do."""
        elsewhere = f"start it with `tproxy serve`, or say where it is with --url or {URL_VARIABLE}"
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ApiFault(f"cannot reach {self.url} ({_reason(error)}): {elsewhere}") from None
        except httpx2.TimeoutException:
            raise ApiFault(f"{self.url} has not answered within {ANSWER_SECONDS} seconds") from None
        except httpx2.HTTPError as error:
            raise ApiFault(f"{self.url} gave no whole answer ({_reason(error)})") from None

    def _sentence(self, response: httpx2.Response, answer: Any, asked: str) -> str:
        status = response.status_code
        if response.is_redirect:
            return f"{self.url} sends the request elsewhere ({status}), and the key does not go there: is it tproxy's?"
        said = _said(answer)
        said = said and said.replace(self._key, "…")
        if response.is_success or said is None:
            return f"{self.url} answered {asked} with {status} and not as tproxy does: is the address right?"
        if status == 401:
            return f"{self.url} does not take the key in {KEY_VARIABLE}: {said}"
        return f"{self.url} says {status}: {said}"


def _host(url: str) -> str:
    """The host of an address that requests can go to."""
    try:
        parts = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        parts = httpx2.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment or "?" in url:
        raise ValueError(f"{url!r} is no address of a server: it must be as in {DEFAULT_URL}")
    if parts.userinfo:
        raise ValueError(f"the address must hold no user and password: the key is in {KEY_VARIABLE}")
    return parts.host


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _said(answer: Any) -> str | None:
    """What an error's JSON says to people: Anthropic's and LiteLLM's envelope, or FastAPI's `detail`."""
    if not isinstance(answer, dict):
        return None
    said = answer.get("error", answer.get("detail"))
    if isinstance(said, dict):
        said = said.get("message", said.get("error"))
    if isinstance(said, list):
        said = "; ".join(_fault(entry) for entry in said if isinstance(entry, dict))
    if not isinstance(said, str) or not said.strip():
        return None
    said = " ".join(said.split())
    return said if len(said) <= _MAX_REASON else f"{said[:_MAX_REASON]}…"


def _fault(entry: Mapping[str, Any]) -> str:
    """One fault of a field: `max_budget: must be …`."""
    place = entry.get("loc")
    place = [str(part) for part in place if part not in ("body", "query", "path")] if isinstance(place, list) else []
    return f"{'.'.join(place)}: {entry.get('msg')}" if place else str(entry.get("msg"))
