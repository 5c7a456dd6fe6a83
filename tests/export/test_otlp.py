"""The sink for OTLP before a strict receiver on a real socket: what it sends, and what it makes of each answer."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.export.collector import TAKEN, collector, reply
from tests.store.laws import make_closing, make_opening
from tests.wire.peer import CA, OTHER_CA, Script, answers_early, hang_up, peer, server_context, silence
from tproxy import __version__
from tproxy.export.otlp import OtlpSink, traces_url
from tproxy.export.semconv import SCHEMA_URL
from tproxy.export.sink import NotTaken
from tproxy.setting_tables import Otlp
from tproxy.settings import SettingsFault, load
from tproxy.store.feed import Settled

SECRET = "7f3a-canary"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def settled(count: int) -> list[Settled]:
    return [Settled(n, make_opening(n, traceparent=PARENT if n % 2 else None), make_closing(n)) for n in range(count)]


async def send(endpoint: str, batch: Sequence[Settled], **settings: Any) -> None:
    """By a sink of its own, that is closed."""
    sink = OtlpSink(Otlp(endpoint=endpoint, **settings))
    try:
        await sink.send(batch)
    finally:
        await sink.aclose()


async def test_a_batch_arrives_whole_and_in_order() -> None:
    batch = settled(100)
    async with collector(headers={"authorization": "Basic YTpi=="}) as received:
        await send(received.url, batch, headers=(SecretStr("Authorization = Basic YTpi=="),), service_name="gateway")
    [request] = received.requests
    fields = dict(request.headers)
    assert fields[b"content-encoding"] == b"gzip"
    assert fields[b"user-agent"] == f"tproxy/{__version__}".encode()
    assert [span.attributes["tproxy.exchange.id"] for span in received.spans] == [one.opening.id for one in batch]
    assert [span.trace_id for span in received.spans[:2]] == [batch[0].opening.id.replace("-", ""), PARENT[3:35]]
    assert [span.parent_id for span in received.spans[:2]] == ["", PARENT[36:52]]
    assert len({span.span_id for span in received.spans}) == 100
    span = received.spans[0]
    assert span.scope == ("tproxy", __version__, SCHEMA_URL)
    assert span.resource.keys() == {"service.name", "service.version", "service.instance.id"}
    assert (span.resource["service.name"], span.resource["service.version"]) == ("gateway", __version__)
    assert span.attributes["gen_ai.response.finish_reasons"] == ["end_turn"]


async def test_what_is_sent_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = settled(3)
    async with collector() as received:
        sink = OtlpSink(Otlp(endpoint=received.url))
        await sink.send(batch)
        now = time.time() + 100
        monkeypatch.setattr(time, "time", lambda: now)
        await sink.send(batch)
        await sink.aclose()
        await send(received.url, batch)
    assert len({request.body for request in received.requests}) == 1
    assert len(received.requests) == 3


async def test_of_two_header_lines_with_one_name_the_last_counts() -> None:
    lines = tuple(map(SecretStr, ("X-Key=1", "x-other=a", "x-key=2")))
    async with collector(headers={"x-key": "2", "x-other": "a"}) as received:
        await send(received.url, settled(1), headers=lines)
    [request] = received.requests
    assert [value for name, value in request.headers if name.lower() == b"x-key"] == [b"2"]


async def test_the_environment_adds_to_the_resource_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-secret={SECRET}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with collector() as received:
        await send(received.url, settled(1))
    assert received.spans[0].resource["deployment.environment.name"] == "test"
    assert received.spans[0].resource["service.name"] == "tproxy"
    assert SECRET.encode() not in repr(received.requests).encode()


def partial(rejected: int, message: str = SECRET) -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return bytes(response.SerializeToString())


@dataclass(frozen=True)
class Answered:
    """An answer to a batch of three, and what the sink says of it; nothing where it was taken."""

    row: str
    answer: bytes
    why: str | None = None
    final: bool = False
    too_large: bool = False
    retry_after: float | None = None


ANSWERS = [
    Answered("taken", TAKEN),
    Answered("taken, with a word", reply(body=partial(0))),
    Answered("taken, as JSON", reply(body=b"{}", type="application/json")),
    Answered("taken, and no message", reply(body=b"\xff\xff ok", type="text/plain")),
    Answered("taken, and no JSON", reply(body=b"{ok}", type="text/plain")),
    Answered("accepted", reply(202)),
    Answered("a redirect", reply(302, b"", "location: http://127.0.0.1:1/"), "it answered 302", final=True),
    Answered("bad", reply(400, SECRET.encode()), "it answered 400", final=True),
    Answered("unknown key", reply(401, SECRET.encode()), "it answered 401", final=True),
    Answered("too large", reply(413), "it answered 413", final=True, too_large=True),
    Answered("too many", reply(429, b"", "retry-after: 3"), "it answered 429", retry_after=3),
    Answered("broken", reply(500, SECRET.encode()), "it answered 500"),
    Answered("away", reply(503, b"", "retry-after: 7"), "it answered 503", retry_after=7),
    Answered("no HTTP", b"SSH-2.0-OpenSSH\r\n\r\n", "the answer is not HTTP, or was broken off"),
]


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: row.row)
async def test_answers(row: Answered, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    headers = (SecretStr(f"x-key={SECRET}"),)
    async with collector(row.answer, headers={"x-key": SECRET}) as received:
        if row.why is None:
            await send(received.url, settled(3), headers=headers)
            assert len(received.spans) == 3
        else:
            with pytest.raises(NotTaken) as caught:
                await send(received.url, settled(3), headers=headers)
            fault = caught.value
            assert (fault.why, fault.final, fault.too_large) == (row.why, row.final, row.too_large)
            assert fault.retry_after == row.retry_after
    assert len(received.requests) == 1  # it is for others to try again
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        reply(body=partial(2)),
        reply(body=b' {"partialSuccess":{"rejectedSpans":"2","errorMessage":"x"}}', type="application/json"),
    ],
    ids=["protobuf", "JSON"],
)
async def test_spans_that_are_rejected_are_told_and_hold_up_nobody(answer: bytes) -> None:
    batch = settled(3)
    with capture_logs() as said:
        async with collector(answer) as received:
            await send(received.url, batch)
    assert len(received.requests) == 1
    [line] = said
    assert (line["log_level"], line["count"]) == ("warning", 2)
    assert line["among"] == (batch[0].opening.id, batch[-1].opening.id)


async def test_nobody_there() -> None:
    async with collector() as received:
        pass
    with pytest.raises(NotTaken, match=r"^no connection$") as caught:
        await send(received.url, settled(1))
    assert not caught.value.final


@pytest.mark.parametrize(
    ("script", "why"),
    [(silence, "no answer in time"), (hang_up, "the answer is not HTTP, or was broken off|the connection broke")],
    ids=["silent", "hangs up"],
)
async def test_no_answer(script: Script, why: str, autojump_clock: trio.abc.Clock) -> None:
    async with peer(script) as upstream:
        with pytest.raises(NotTaken, match=f"^({why})$") as caught:
            await send(f"http://127.0.0.1:{upstream.origin.port}", settled(1))
    assert not caught.value.final


async def test_tls(tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    OTHER_CA.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    async with collector(tls=server_context()) as received:
        for ca_file in (None, tmp_path / "other.pem"):
            with pytest.raises(NotTaken, match=r"^no connection: its certificate is not trusted$"):
                await send(received.url, settled(1), ca_file=ca_file)
        await send(received.url, settled(1), ca_file=tmp_path / "ca.pem")
    assert len(received.spans) == 1


async def test_tls_with_somebody_who_speaks_none() -> None:
    async with peer(answers_early(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as upstream:
        with pytest.raises(NotTaken, match=r"^no connection$"):
            await send(f"https://127.0.0.1:{upstream.origin.port}", settled(1))


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://otlp.test/otlp", "https://otlp.test/otlp/v1/traces"),
        ("https://otlp.test/v1/traces", "https://otlp.test/v1/traces"),
        ("https://otlp.test/v1/traces/", "https://otlp.test/v1/traces"),
        ("https://otlp.test/otlp?tenant=a", "https://otlp.test/otlp/v1/traces?tenant=a"),
    ],
)
def test_where_traces_go(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


LINES = {
    "no equals sign": ("authorization", False),
    "no name": ("=x", False),
    "no value": ("x-key=", False),
    "a space in the name": ("x key=x", False),
    "a line break": ("x-key=a\r\nhost: b", False),
    "no ASCII": ("x-key=ü", False),
    "one that requests have": ("Content-Encoding=identity", False),
    "another": ("CONTENT-TYPE = x", False),
    "spaces and equals signs in the value": ("Authorization=Basic YTpi==", True),
    "spaces around": (" x-key = a ", True),
}


@pytest.mark.parametrize(("line", "good"), LINES.values(), ids=LINES)
def test_header_lines(line: str, good: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[tproxy.export.otlp]\nheaders = ["env:LINE", "x-other=1"]\n')
    environ = {"ANTHROPIC_API_KEY": "sk-ant-real", "LINE": line}
    if good:
        settings = load(path, environ)
        assert [each.get_secret_value() for each in settings.export.otlp.headers] == [line, "x-other=1"]
        assert line not in repr(settings)
    else:
        with pytest.raises(SettingsFault, match=r"tproxy\.export\.otlp\.headers\[0\].*: must (be|not be) ") as caught:
            load(path, environ)
        assert line not in str(caught.value)


DOCUMENT = (Path(__file__).parent.parent.parent / "docs/otlp.md").read_text()
BASIC = "Basic " + base64.b64encode(b"user:password").decode()


@dataclass(frozen=True)
class Recipe:
    """What a vendor wants: where, and which headers (their names in lower case). From the vendor's own documents."""

    title: str
    origin: str
    path: str
    headers: dict[str, str]
    environ: dict[str, str]


RECIPES = [
    Recipe("OpenTelemetry Collector", "http://127.0.0.1:4318", "/v1/traces", {}, {}),
    Recipe(
        "Grafana Cloud",
        "https://otlp-gateway-prod-eu-west-2.grafana.net",
        "/otlp/v1/traces",
        {"authorization": BASIC},
        {"OTLP_AUTHORIZATION": f"Authorization={BASIC}"},
    ),
    Recipe(
        "Honeycomb",
        "https://api.honeycomb.io",
        "/v1/traces",
        {"x-honeycomb-team": "hcaik_1"},
        {"HONEYCOMB_HEADER": "x-honeycomb-team=hcaik_1"},
    ),
    Recipe(
        "Datadog",
        "https://otlp.datadoghq.com",
        "/v1/traces",
        {"dd-api-key": "dd1", "dd-otlp-source": "llmobs"},
        {"DATADOG_HEADER": "dd-api-key=dd1"},
    ),
    Recipe(
        "Langfuse",
        "https://cloud.langfuse.com",
        "/api/public/otel/v1/traces",
        {"authorization": BASIC, "x-langfuse-ingestion-version": "4"},
        {"OTLP_AUTHORIZATION": f"Authorization={BASIC}"},
    ),
]


def settings_of(title: str) -> str:
    """The settings of a recipe, as the document has them."""
    recipe = DOCUMENT.split(f"\n### {title}\n")[1].split("\n### ")[0]
    [block] = [each.split("```")[0] for each in recipe.split("```toml\n")[1:]]
    return block


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
async def test_the_recipes_of_the_document(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = settings_of(recipe.title)
    assert f'endpoint = "{recipe.origin}' in text
    async with collector(path=recipe.path, headers=recipe.headers) as received:
        path.write_text(text.replace(recipe.origin, received.url))
        sink = OtlpSink(load(path, {"ANTHROPIC_API_KEY": "sk-ant-real", **recipe.environ}).export.otlp)
        await sink.send(settled(3))
        await sink.aclose()
    assert len(received.spans) == 3


def test_every_recipe_of_the_document_is_tried() -> None:
    recipes = DOCUMENT.split("\n## Recipes\n")[1]
    assert [line.removeprefix("### ") for line in recipes.splitlines() if line.startswith("### ")] == [
        recipe.title for recipe in RECIPES
    ]


def test_the_document_makes_a_header_of_user_and_password() -> None:
    recipes = DOCUMENT.split("\n## Recipes\n")[1]
    script = recipes.split("```sh\n")[1].split("```")[0] + 'printf %s "$OTLP_AUTHORIZATION"'
    environ = {"PATH": os.environ["PATH"], "USER_PART": "user", "SECRET_PART": "password"}
    assert subprocess.run(["sh", "-c", script], env=environ, capture_output=True, check=True).stdout.decode() == (
        f"Authorization={BASIC}"
    )


def test_a_sink_that_has_sent_nothing_has_loaded_nothing() -> None:
    script = (
        "import sys; from tproxy.export.otlp import OtlpSink; from tproxy.setting_tables import Otlp;"
        "OtlpSink(Otlp(endpoint='http://127.0.0.1:4318'));"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'opentelemetry', 'google', 'httpx2'}))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert said.stdout == "[]\n"
