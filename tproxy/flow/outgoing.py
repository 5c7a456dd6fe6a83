"""What goes to the upstream: the request that the client made, with our credential, and a question of our own.

The body is what the client sent, byte for byte, unless it holds a top-level `litellm_metadata`. That is read here too,
since both want the plain body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec
import trio

from tproxy.errors import Fault, Header
from tproxy.flow.request import Request
from tproxy.flow.route import Passage
from tproxy.protocol import headers as header
from tproxy.protocol.bound import count_tokens_body
from tproxy.protocol.coding import CodingFault, decode
from tproxy.protocol.headers import Credential
from tproxy.protocol.request import RequestFacts, read_request, strip_litellm_metadata
from tproxy.wire.pool import Body, Origin, Pool, Response

_TRACE = (b"traceparent", b"tracestate")
_COUNT_PATH = b"/v1/messages/count_tokens"
_COUNT_SECONDS = 10.0
_MAX_COUNT_BYTES = 64 * 1024


class Read(msgspec.Struct, frozen=True):
    """A request body that was read whole: what it says, itself without its coding, and what of it is sent.

    `facts` and `plain` are None where the body is no JSON, or cannot be decoded: the upstream will say what it thinks.
    """

    headers: Sequence[Header]
    body: bytes
    facts: RequestFacts | None = None
    plain: bytes | None = None


def read_body(request: Request, passage: Passage, body: bytes, max_bytes: int) -> Read:
    """Read a held body. If `litellm_metadata` has to come out of a coded one, it goes on decoded.

    Args:
        max_bytes: the most that a coded body may decode to.
    """
    headers = request.headers
    if request.method != "POST" or not (passage.held or _is_json(headers)):
        return Read(headers, body)
    encoding = header.joined(headers, b"content-encoding")
    plain = body
    if encoding is not None:
        try:
            plain = decode(body, encoding, max_output=max_bytes)
        except CodingFault:
            return Read(headers, body)
    facts = read_request(plain)
    if not facts.has_litellm_metadata:
        return Read(headers, body, facts, plain)
    if encoding is not None:
        headers = [h for h in headers if h[0].lower() != b"content-encoding"]
    plain = strip_litellm_metadata(plain)
    return Read(headers, plain, facts, plain)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go, and how this proxy is called on the way there.

    Args:
        pseudonym: this process in Via headers (RFC 9110 section 7.6.3).
        base_path: the path of the upstream's base URL, without a trailing slash.
        forward_traceparent: send on what says of which trace a request is a part.
    """

    pool: Pool
    origin: Origin
    base_path: bytes
    pseudonym: bytes
    forward_traceparent: bool = True

    def ask(
        self,
        request: Request,
        passage: Passage,
        headers: Sequence[Header],
        body: Body,
        credential: Credential,
        announced: int | None,
        on_sending: Callable[[], None],
    ) -> AbstractAsyncContextManager[Response]:
        """Ask the upstream what the client asks; see `Pool.exchange`, which keeps nothing of it once it is sent."""
        return self.pool.exchange(
            request.method.encode(),
            self.base_path + passage.target,
            self._headers(request, headers, credential, _framing(request.headers, announced, body)),
            body,
            on_sending,
        )

    async def count_tokens(self, request: Request, credential: Credential, body: bytes) -> int | None:
        """Ask the upstream how many input tokens a Messages body has (API reference, "Count Message tokens": free).

        Returns:
            None where it does not say, for whatever reason, within 10 s: nothing depends on the answer but how tight
            a bound is.
        """
        question = count_tokens_body(body)
        if question is None:
            return None
        plain = [h for h in request.headers if h[0].lower() != b"content-encoding"]
        framing = (b"content-length", str(len(question)).encode())
        headers = self._headers(request, plain, credential, framing)
        answer = b""
        with trio.move_on_after(_COUNT_SECONDS):
            try:
                target = self.base_path + _COUNT_PATH
                async with self.pool.exchange(b"POST", target, headers, question) as response:
                    while (chunk := await response.receive()) and len(answer) < _MAX_COUNT_BYTES:
                        answer += chunk
                    if response.head.status == 200:
                        encoding = header.joined(response.head.headers, b"content-encoding")
                        plain_answer = decode(answer, encoding, max_output=_MAX_COUNT_BYTES) if encoding else answer
                        return msgspec.json.decode(plain_answer, type=_Count).input_tokens
            except (Fault, CodingFault, msgspec.DecodeError):
                pass
        return None

    def _headers(
        self, request: Request, headers: Sequence[Header], credential: Credential, framing: Header | None
    ) -> list[Header]:
        if not self.forward_traceparent:
            headers = [h for h in headers if h[0].lower() not in _TRACE]
        return header.upstream_headers(
            headers,
            host=self.origin.host_header,
            via=header.via(request.http_version, self.pseudonym),
            credential=credential,
            framing=framing,
        )


class _Count(msgspec.Struct):
    input_tokens: int


def _framing(headers: Sequence[Header], announced: int | None, body: Body) -> Header | None:
    """How the request body is framed on the way to the upstream: by its length wherever that is known.

    A length of 0 is said if the client said it: some servers want one with every POST (RFC 9110 section 8.6).
    """
    if body == b"" and announced == 0 and header.get(headers, b"content-length") is None:
        return None
    if isinstance(body, bytes):
        return (b"content-length", str(len(body)).encode())
    if announced is None:
        return (b"transfer-encoding", b"chunked")
    return (b"content-length", str(announced).encode())


def _is_json(headers: Sequence[Header]) -> bool:
    return b"json" in (header.get(headers, b"content-type") or b"").lower()
