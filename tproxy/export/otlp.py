"""Exchanges as spans, for whoever speaks OTLP over HTTP: one span each (`otlp_span.py`), in protobuf and gzip.

    settled ──► otlp_span: the SDK's spans ──► otlp_proto: one request ──► post: POST …/v1/traces

- Nothing is dropped: there is no queue between the ledger and the POST, as the SDK's batch processor would be. What is
  not taken is given again by `exports.py`, and is the same span then, with the same ids.
- Spans that a receiver rejects out of a batch that it took are lost to it: the protocol forbids to send them again, and
  all others would wait behind them. The log says so.
- Nor does the SDK's own exporter send: it takes a redirect for success, does not look for spans that were rejected,
  tries again by itself, blocks a thread while it does, and takes headers from the environment for whatever endpoint.
- The libraries, some 12 MB, are loaded in a thread where the settings name an endpoint, and else not at all.
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from tproxy import __version__
from tproxy.export import semconv
from tproxy.export.post import Poster
from tproxy.export.sink import BATCH, LINGER_SECONDS
from tproxy.setting_tables import Otlp
from tproxy.store.feed import Settled
from tproxy.wire.dial import tls_context

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from tproxy.export.otlp_proto import TraceRequest
    from tproxy.store.base import Closing, Opening

    _Loaded = tuple[Callable[[], TraceRequest], Callable[[Opening, Closing], ReadableSpan]]

PATH: Final = "/v1/traces"

log = structlog.get_logger("tproxy.export")

_AT_ONCE: Final = 8  # spans made before the streams on the same loop have their turn
_GZIP_LEVEL: Final = 3
_INSTANCE: Final = str(uuid.uuid4())  # this process, among others of the same name


class OtlpSink:
    """A `Sink` that sends to `settings.endpoint`, which is set."""

    name = "otlp"
    batch = BATCH
    linger = LINGER_SECONDS

    def __init__(self, settings: Otlp, *, poster: Poster | None = None) -> None:
        if settings.endpoint is None:
            raise ValueError("there is no endpoint")
        self._url = traces_url(settings.endpoint)
        self._service = settings.service_name
        self._headers = {
            **dict(header(line.get_secret_value()) for line in settings.headers),
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
        }
        self._poster = poster or Poster(tls=partial(tls_context, settings.ca_file))
        self._loaded: _Loaded | None = None

    async def open(self) -> None:
        """See `Sink`."""
        self._loaded = await trio.to_thread.run_sync(_load, self._service)

    async def send(self, settled: Sequence[Settled]) -> None:
        """See `Sink`."""
        if self._loaded is None:
            await self.open()
        assert self._loaded is not None  # noqa: S101 (for mypy)
        begin, span_of = self._loaded
        request = begin()
        for start in range(0, len(settled), _AT_ONCE):
            for each in settled[start : start + _AT_ONCE]:
                request.add(span_of(each.opening, each.closing))
            await trio.lowlevel.checkpoint()
        body = await trio.to_thread.run_sync(_packed, request)
        answer = await self._poster.post(self._url, body, self._headers)
        if rejected := await trio.to_thread.run_sync(_rejected, answer):
            ids = (settled[0].opening.id, settled[-1].opening.id)
            log.warning("the receiver rejected spans, which are not sent again", count=rejected, among=ids)

    async def aclose(self) -> None:
        """See `Sink`."""
        await self._poster.aclose()


def traces_url(endpoint: str) -> str:
    """Where traces go (OTLP specification, "OTLP/HTTP Request"): below `endpoint`, unless that says so itself."""
    url = urlsplit(endpoint)
    path = url.path.rstrip("/")
    return url._replace(path=path if path.endswith(PATH) else path + PATH).geturl()


def header(line: str) -> tuple[str, str]:
    """The name, in lower case, and the value of `name=value`."""
    name, _, value = line.partition("=")
    return name.strip().lower(), value.strip()


def _load(service: str) -> _Loaded:
    """What begins a request, and what makes a span of an exchange."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    from tproxy.export.otlp_proto import TraceRequest
    from tproxy.export.otlp_span import SCOPE, span_of

    own: Mapping[str, str] = {
        semconv.SERVICE_NAME: service,
        semconv.SERVICE_VERSION: __version__,
        semconv.SERVICE_INSTANCE: _INSTANCE,
    }
    resource = OTELResourceDetector().detect().merge(Resource(own))
    return partial(TraceRequest, resource, SCOPE), partial(span_of, resource=resource)


def _packed(request: TraceRequest) -> bytes:
    return gzip.compress(request.encoded(), _GZIP_LEVEL, mtime=0)


class _Partial(msgspec.Struct, rename="camel"):
    rejected_spans: int = 0


class _Answer(msgspec.Struct, rename="camel"):
    partial_success: _Partial | None = None


def _rejected(answer: bytes) -> int:
    """How many spans an answer with status 200 says were rejected (OTLP specification, "Partial Success").

    Some receivers answer in JSON, whatever they were sent. Nothing is known of an answer that is neither.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    if answer.lstrip()[:1] == b"{":
        try:
            found = msgspec.json.decode(answer, type=_Answer, strict=False).partial_success
        except msgspec.DecodeError:
            return 0
        return found.rejected_spans if found is not None else 0
    try:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
    except DecodeError:
        return 0
