"""The management API from outside: one request at a time, for the commands.

The key goes to the address that the user named and nowhere else: redirects are not followed, and a proxy of the
environment stands between only where the address is another machine's. An answer has a deadline and a bound. Whatever
goes wrong is one sentence for people (`ApiFault`), in which the key never stands.

The standard library's client is enough for that, and is there four times as soon as others (measured: 30 ms against
160); a command is started anew each time.

Not known here: what the fields mean, and how anything is shown.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode, urlsplit

URL_VARIABLE: Final = "TPROXY_URL"
KEY_VARIABLE: Final = "TPROXY_MASTER_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:4000"

ANSWER_SECONDS: Final = 60
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_MAX_REASON: Final = 600
_PIECE: Final = 64 * 1024


class ApiFault(Exception):
    """The API could not be asked, or said no. Its text is a sentence for people; `status` is None without an answer."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Api:
    """The management API of one server. A context manager.

    Args:
        url: where the server is, with a path if it stands below one.
        key: the master key, or a key with the role for what is asked.
        opener: what carries the requests, in place of the network.

    Raises:
        ValueError: `url` is no http address, or `key` cannot stand in a header.
    """

    def __init__(self, url: str, key: str, *, opener: urllib.request.OpenerDirector | None = None) -> None:
        self.url = url.rstrip("/")
        host = _host(self.url)
        self._key = key.strip()
        if not self._key:
            raise ValueError(f"{KEY_VARIABLE} is not set: it holds the key that opens the management API")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds something that is no key")
        self._opener = opener or _opener(encrypted=self.url.startswith("https:"), proxied=not _is_here(host))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._opener.close()

    def get(self, path: str, **query: str | int | None) -> Any:
        """Ask for `path`; what is None is not asked for. Returns the JSON of the answer.

        Raises:
            ApiFault: there is no answer, or it says no.
        """
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        return self._ask("GET", path, f"?{asked}" if asked else "", None)

    def post(self, path: str, fields: Mapping[str, Any]) -> Any:
        """Send `fields` as JSON. Returns the JSON of the answer.

        Raises:
            ApiFault: there is no answer, or it says no.
        """
        return self._ask("POST", path, "", json.dumps(dict(fields)).encode())

    def lines(self, path: str, patience: float, **query: str | float | None) -> Iterator[bytes]:
        """Ask for `path`, whose answer goes on; its lines, as they come, with their ends.

        Args:
            patience: for so many seconds the server may say nothing.

        Raises:
            ApiFault: there is no answer, it says no, or it breaks off.
        """
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        headers = {"authorization": f"Bearer {self._key}"}
        # `_host` has seen to it that this is http or https.
        request = urllib.request.Request(f"{self.url}{path}?{asked}".rstrip("?"), None, headers)  # noqa: S310
        with self._faults(patience), self._opener.open(request, timeout=patience) as response:
            if response.status != 200:
                answer = _json(response.read(MAX_ANSWER_BYTES))
                raise ApiFault(self._sentence(response.status, answer, f"GET {path}"), response.status)
            while line := response.readline(MAX_ANSWER_BYTES):
                if not line.endswith(b"\n"):
                    raise ApiFault(f"a line of the answer of {self.url} breaks off, or is too long")
                yield line

    def _ask(self, method: str, path: str, query: str, content: bytes | None) -> Any:
        headers = {"authorization": f"Bearer {self._key}", "accept": "application/json"}
        if content is not None:
            headers["content-type"] = "application/json"
        # `_host` has seen to it that this is http or https.
        request = urllib.request.Request(self.url + path + query, content, headers, method=method)  # noqa: S310
        deadline = time.monotonic() + ANSWER_SECONDS
        with self._faults(), self._opener.open(request, timeout=max(ANSWER_SECONDS, 1)) as response:
            body = bytearray()
            while piece := response.read1(_PIECE):
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise ApiFault(f"the answer of {self.url} is larger than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ApiFault(f"{self.url} has not answered whole within {ANSWER_SECONDS} seconds")
            status = response.status
            if response.length:  # `read1` takes a connection that ends early for a good end
                raise http.client.IncompleteRead(bytes(body), response.length)
        answer = _json(body)
        if 200 <= status < 300 and answer is not None:
            return answer
        raise ApiFault(self._sentence(status, answer, f"{method} {path}"), status)

    @contextmanager
    def _faults(self, seconds: float = ANSWER_SECONDS) -> Iterator[None]:
        """Turn what the network does into a sentence that says where, and what to do."""
        elsewhere = f"start it with `tproxy serve`, or say where it is with --url or {URL_VARIABLE}"
        try:
            yield
        except TimeoutError:
            raise ApiFault(f"{self.url} has not answered within {seconds:g} seconds") from None
        except urllib.error.URLError as error:  # raised before the request was sent, as far as the library can tell
            reason = error.reason if isinstance(error.reason, Exception) else error
            if isinstance(reason, ConnectionResetError | BrokenPipeError):
                raise ApiFault(f"{self.url} gave no whole answer ({_reason(reason)})") from None
            raise ApiFault(f"cannot reach {self.url} ({_reason(reason)}): {elsewhere}") from None
        except (http.client.HTTPException, OSError) as error:
            raise ApiFault(f"{self.url} gave no whole answer ({_reason(error)})") from None

    def _sentence(self, status: int, answer: Any, asked: str) -> str:
        if 300 <= status < 400:
            return f"{self.url} sends the request elsewhere ({status}), and the key does not go there: is it tproxy's?"
        said = _said(answer)
        said = said and said.replace(self._key, "…")
        if 200 <= status < 300 or said is None:
            return f"{self.url} answered {asked} with {status} and not as tproxy does: is the address right?"
        if status == 401:
            return f"{self.url} does not take the key in {KEY_VARIABLE}: {said}"
        return f"{self.url} says {status}: {said}"


def _opener(*, encrypted: bool, proxied: bool) -> urllib.request.OpenerDirector:
    """What opens an address, whatever the status of the answer, and follows nobody elsewhere.

    Where nothing is encrypted, no certificates are read: that takes a tenth of a second.
    """
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler(None if proxied else {}))
    opener.add_handler(urllib.request.HTTPSHandler() if encrypted else urllib.request.HTTPHandler())
    return opener


def _host(url: str) -> str:
    """The host of an address that requests can go to."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # a bad port or IPv6 address
        host = None
    if host is None or not url.isascii() or not url.isprintable() or any(mark in url for mark in " ?#"):
        raise ValueError(f"{url!r} is no address of a server: it must be as in {DEFAULT_URL}")
    if "@" in parts.netloc:
        raise ValueError(f"the address must hold no user and password: the key is in {KEY_VARIABLE}")
    return host


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json(body: bytes | bytearray) -> Any:
    """What JSON stands there; None where there is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


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
