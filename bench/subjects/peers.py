"""Other gateways that speak the Anthropic API, each as a plain way to the upstream, as its own guide says for load.

They run on one core, one worker each, with whatever they log, count and check by default, and have answered a few
requests before they are measured, since some load half of themselves only then. None of them may talk to
anybody but the upstream: they are told so where they would, and have a home directory of their own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from bench import http1, talk
from bench.process import BenchFault, running
from bench.subjects.base import Address, Served, Start, Subject, Upstream, accepting, free_address
from bench.subjects.programs import LITELLM, LMNR, OBSERVER, PORTKEY, ROLTER, Package, found, version

SLOW_READY_SECONDS = 120.0  # LiteLLM imports half a minute long on a slow core
WARMING = 6  # requests, every other one of a stream
KEY = talk.HEADERS["x-api-key"]
UPSTREAM_KEY = "sk-ant-bench"


def _peer(
    name: str,
    package: Package,
    start: Start,
    *,
    path: str = "/v1/messages",
    headers: dict[str, str] | None = None,
    exact: bool = True,
) -> Subject:
    told = headers or {}

    @asynccontextmanager
    async def warmed(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
        async with start(home, upstream, cores) as served:
            with trio.move_on_after(SLOW_READY_SECONDS) as limit:
                for number in range(WARMING):
                    await _ask(served, path, {**told, **served.headers}, stream=number % 2 == 0)
            if limit.cancelled_caught:
                raise BenchFault(f"{name} does not answer")
            yield served

    return Subject(
        name=name, version=lambda: version(package), start=warmed, path=path, headers=told, peer=True, exact=exact
    )


async def _ask(served: Served, path: str, headers: dict[str, str], *, stream: bool) -> None:
    """Ask once and wait for the whole answer, whatever it is: the load will judge."""
    request = talk.Request.make(served.address[0], path, stream=stream, more=headers)
    answer = http1.Answer()
    try:
        async with await trio.open_tcp_stream(*served.address) as connection:
            await connection.send_all(request.asking(talk.Asked(stream, 1)))
            while not answer.ended and (data := await connection.receive_some()):
                answer.feed(data)
    except (OSError, trio.BrokenResourceError, http1.Malformed, ValueError) as error:
        raise BenchFault(f"it does not answer: {error!r}") from error


def _program(package: Package) -> str:
    program = found(package)
    assert program is not None, "only what has a version is started"
    return str(program)


def _env(home: Path, **more: str) -> dict[str, str]:
    """What every peer gets: no way to find anything of the user's, and no proxy on its way to the upstream."""
    own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home), "NO_PROXY": "*"}
    return own | {"DO_NOT_TRACK": "1", "ANTHROPIC_API_KEY": UPSTREAM_KEY} | more


# ------------------------------------------------------------------------------------------------------ rolter

# Its queue would let eight requests wait for their heads at a time; without Redis and ClickHouse it keeps no books.
ROLTER_CONFIG = """
[server]
host = "{host}"
port = {port}
[[providers]]
name = "anthropic"
kind = "anthropic"
api_base = "{url}"
api_key_env = "ANTHROPIC_API_KEY"
allow_custom_api_base = true
[[routes]]
model = "{model}"
strategy = "round_robin"
[[routes.targets]]
provider = "anthropic"
model = "{model}"
[[virtual_keys]]
key = "{key}"
name = "bench"
models = []
[queue]
enabled = false
[timeouts]
request_secs = 600
"""


def rolter_config(upstream: Upstream, listen: Address) -> str:
    """One provider, one route, one key."""
    return ROLTER_CONFIG.format(host=listen[0], port=listen[1], url=upstream.url, model=talk.MODEL, key=KEY)


@asynccontextmanager
async def _rolter(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "rolter.toml"
    file.write_text(rolter_config(upstream, address))
    command = [_program(ROLTER), "gateway", "-c", str(file)]
    env = _env(home, ROLTER_UPDATE_CHECK="false", RUST_LOG="error")
    async with running("rolter", command, cores, home, env=env, cwd=home, quiet=True) as process:
        await accepting(address, process)
        yield Served(address, process)


# ----------------------------------------------------------------------------------------- superbased-observer

# It opens connections to all its upstreams when it starts. Its books are in SQLite, as ours are.
OBSERVER_CONFIG = """
[proxy]
enabled = true
port = {port}
anthropic_upstream = "{url}"
openai_upstream = "{url}"
chatgpt_upstream = "{url}"
[observer]
db_path = "{home}/observer.db"
"""


@asynccontextmanager
async def _observer(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "observer.toml"
    file.write_text(OBSERVER_CONFIG.format(port=address[1], url=upstream.url, home=home))
    command = [_program(OBSERVER), "proxy", "start", "--config", str(file)]
    async with running("observer", command, cores, home, env=_env(home), cwd=home, quiet=True) as process:
        await accepting(address, process)
        yield Served(address, process)


# -------------------------------------------------------------------------------------- lmnr claude-code-proxy

LMNR_SCRIPT = """
const {{ ProxyServer }} = require({module});
const server = new ProxyServer({port});
server.runServer({url});
process.on("SIGTERM", () => process.exit(0));
setInterval(() => {{}}, 1 << 30);
"""


@asynccontextmanager
async def _lmnr(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "lmnr.cjs"
    module = json.dumps(str(Path(_program(LMNR)).parent))
    file.write_text(LMNR_SCRIPT.format(module=module, port=address[1], url=json.dumps(upstream.url)))
    async with running("lmnr", ["node", str(file)], cores, home, env=_env(home), cwd=home, quiet=True) as process:
        await accepting(address, process)
        yield Served(address, process)


# ----------------------------------------------------------------------------------------------------- Portkey


@asynccontextmanager
async def _portkey(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address = free_address()
    command = ["node", _program(PORTKEY), f"--port={address[1]}", "--headless"]
    env = _env(home, NODE_ENV="production", TRUSTED_CUSTOM_HOSTS=upstream.host)
    async with running("portkey", command, cores, home, env=env, cwd=home, quiet=True) as process:
        await accepting(address, process)
        yield Served(address, process, {"x-portkey-custom-host": f"{upstream.url}/v1"})


# ----------------------------------------------------------------------------------------------------- LiteLLM

# As its production guide has it, but for the database and Redis: without these it keeps no books.
LITELLM_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: anthropic/{model}
      api_base: {url}
      api_key: os.environ/ANTHROPIC_API_KEY
litellm_settings:
  set_verbose: false
  json_logs: true
  request_timeout: 600
  telemetry: false
general_settings:
  master_key: {key}
  disable_error_logs: true
  allow_requests_on_db_unavailable: true
"""
LITELLM_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "true",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
}


@asynccontextmanager
async def _litellm(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "litellm.yaml"
    file.write_text(LITELLM_CONFIG.format(model=talk.MODEL, url=upstream.url, key=KEY))
    command = [_program(LITELLM), "--config", str(file), "--host", address[0], "--port", str(address[1])]
    command += ["--num_workers", "1", "--telemetry", "False"]
    env = _env(home, ANTHROPIC_API_BASE=upstream.url, **LITELLM_ENV)
    async with running("litellm", command, cores, home, env=env, cwd=home, quiet=True) as process:
        await accepting(address, process, SLOW_READY_SECONDS)
        yield Served(address, process)


PEERS = (
    _peer("rolter", ROLTER, _rolter, headers={"authorization": f"Bearer {KEY}"}),
    _peer("superbased-observer", OBSERVER, _observer),
    _peer("lmnr claude-code-proxy", LMNR, _lmnr),
    _peer("portkey", PORTKEY, _portkey, headers={"x-portkey-provider": "anthropic"}, exact=False),
    _peer("litellm", LITELLM, _litellm, path="/anthropic/v1/messages", headers={"authorization": f"Bearer {KEY}"}),
)  # fmt: skip
