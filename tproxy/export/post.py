"""POST requests to receivers that the settings name: webhooks of exchanges and of alerts.

- Certificates are checked against the system's store, as for the upstream. Redirects are not followed: a receiver is
  where the settings say. No proxy of the environment is used, as none is for the upstream.
- Every wait has a deadline; of an answer no more than `ANSWER_MAX` is read.
- httpx is loaded with the first request, in a thread.
- What is raised speaks of the receiver's answer or of how it could not be had, never of a URL, a header or a body.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import trio

from tproxy import __version__
from tproxy.export.sink import NotTaken
from tproxy.wire.dial import tls_context

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 30.0  # each read and write, and the whole answer
ANSWER_MAX: Final = 65536
RETRY_AFTER_MAX: Final = 3600.0

# A receiver that says one of these may say otherwise later.
_LATER: Final = {408, 425, 429}
_TOO_LARGE: Final = 413


class Poster:
    """A client that keeps its connections; made without any I/O.

    Args:
        tls: makes the context for `https` URLs; called in a thread, once.
    """

    def __init__(self, *, tls: Any = None) -> None:
        self._tls = tls or _system
        self._client: httpx2.AsyncClient | None = None
        self._httpx: ModuleType
        self._loading = trio.Lock()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Return what the receiver said, cut off at `ANSWER_MAX`, once its status is 2xx.

        Raises:
            NotTaken: it is another status, or there was none.
        """
        client = await self._ready()
        try:
            with trio.fail_after(CONNECT_SECONDS + 2 * WAIT_SECONDS):
                async with client.stream("POST", url, content=body, headers=dict(headers)) as answer:
                    said = await _read(answer)
        except trio.TooSlowError:
            raise NotTaken("no answer in time") from None
        except self._httpx.HTTPError as fault:
            raise NotTaken(self._why(fault)) from None
        except ssl.SSLError:
            raise NotTaken("TLS failed") from None
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise NotTaken("the connection broke") from None
        if not answer.is_success:
            raise refused(answer.status_code, answer.headers.get("retry-after"))
        return said

    async def aclose(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _ready(self) -> httpx2.AsyncClient:
        async with self._loading:
            if self._client is not None:
                return self._client
            self._httpx, client = await trio.to_thread.run_sync(self._load)
            self._client = client
            return client

    def _load(self) -> tuple[ModuleType, httpx2.AsyncClient]:
        import httpx2

        return httpx2, httpx2.AsyncClient(  # which loads the rest
            verify=self._tls(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(WAIT_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=4, max_keepalive_connections=2, keepalive_expiry=30),
            headers={"user-agent": f"tproxy/{__version__}", "accept-encoding": "identity"},
        )

    def _why(self, fault: Exception) -> str:
        httpx = self._httpx
        if isinstance(fault, httpx.ConnectTimeout):
            return f"no connection within {CONNECT_SECONDS:g} s"
        if isinstance(fault, httpx.ConnectError):
            return "no connection: its certificate is not trusted" if _untrusted(fault) else "no connection"
        if isinstance(fault, httpx.TimeoutException):
            return "no answer in time"
        if isinstance(fault, httpx.ProtocolError):
            return "the answer is not HTTP, or was broken off"
        return "the connection broke"


def refused(status: int, retry_after: str | None = None, *, now: float | None = None) -> NotTaken:
    """What a status that is not 2xx means for a batch.

    Args:
        retry_after: RFC 9110 section 10.2.3: seconds or a date.
        now: seconds since the epoch.
    """
    later = status >= 500 or status in _LATER
    return NotTaken(
        f"it answered {status}",
        retry_after=_seconds(retry_after, time.time() if now is None else now) if later else None,
        final=not later,
        too_large=status == _TOO_LARGE,
    )


def _seconds(text: str | None, now: float) -> float | None:
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX)


async def _read(answer: httpx2.Response) -> bytes:
    """Read to the end, so that the connection can be used again, or to the bound."""
    said = bytearray()
    with trio.move_on_after(WAIT_SECONDS) as scope:
        async for piece in answer.aiter_raw():
            said += piece
            if len(said) >= ANSWER_MAX:
                scope.cancel()  # a `break` would leave the library's own generators unfinished
    return bytes(said[:ANSWER_MAX])


def _untrusted(fault: BaseException | None) -> bool:
    while fault is not None:
        if isinstance(fault, ssl.SSLCertVerificationError):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def _system() -> ssl.SSLContext:
    return tls_context(None)
