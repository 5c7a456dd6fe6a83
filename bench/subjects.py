"""The table of subjects: what stands between the load and the upstream, how it is started, how its books are read.

A new subject is a row here: a name, where its program is, and how to start it on a free port of the loopback address
so that it passes everything on to an upstream. One whose program is not found is left out, and the report says so.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import trio

from bench import talk
from bench.load import Tally
from bench.process import READY_SECONDS, BenchFault, Running, running

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Served:
    """A subject that is ready. `process`: None where there is none."""

    address: Address
    process: Running | None


Start = Callable[[Path, Address, frozenset[int]], AbstractAsyncContextManager[Served]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something to measure.

    Attributes:
        version: what it is, in full; None: it is not installed here.
        start: gets a directory of its own, the upstream's address, and its cores.
        audit: looks at what it left in its directory when it has ended; returns what is wrong with it.
        path: the path of a request.
    """

    name: str
    version: Callable[[], str | None]
    start: Start
    audit: Callable[[Path, Tally], list[str]] = lambda home, tally: []
    path: str = "/v1/messages"


def address_in(line: str) -> Address:
    """The address at the end of a line that says where somebody listens."""
    host, _, port = line.rpartition("http://")[2].rpartition(":")
    return host, int(port)


# ------------------------------------------------------------------------------------------------------ direct


@asynccontextmanager
async def _direct(home: Path, upstream: Address, cores: frozenset[int]) -> AsyncIterator[Served]:
    yield Served(upstream, None)


# ------------------------------------------------------------------------------------------------------- nginx

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {home}/nginx.pid;
error_log stderr;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream api {{ server {host}:{port}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{listen} backlog=2048;
        client_max_body_size 64m;
        location / {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def _nginx_version() -> str | None:
    program = shutil.which("nginx")
    if program is None:
        return None
    return subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr.strip()


@asynccontextmanager
async def _nginx(home: Path, upstream: Address, cores: frozenset[int]) -> AsyncIterator[Served]:
    host, port = upstream
    address = ("127.0.0.1", _free_port())
    file = home / "nginx.conf"
    file.write_text(NGINX.format(home=home, host=host, port=port, listen=address[1]))
    async with running("nginx", ["nginx", "-e", "stderr", "-p", str(home), "-c", str(file)], cores, home) as process:
        await _accepting(address, process)
        yield Served(address, process)


def _free_port() -> int:
    """A port that was free just now, for programs that cannot say which one they took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _accepting(address: Address, process: Running) -> None:
    with trio.move_on_after(READY_SECONDS):
        while True:
            try:
                stream = await trio.open_tcp_stream(*address)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return
    raise BenchFault(f"{process.name} does not accept: {process.tail()}")


# ------------------------------------------------------------------------------------------------------ tproxy

# As in production: the ledger on disk and a log line for each exchange.
TPROXY = """
bind = ["127.0.0.1:0"]
worker_class = "trio"
[tproxy]
{access}
database = "sqlite:ledger.db"
[tproxy.upstream]
base_url = "http://{host}:{port}"
api_keys = ["sk-ant-bench"]
"""

# Two ways to let the load in: no key is looked up; or all that a key can be held to, in figures that nobody reaches.
OPEN = 'access = "open"'
KEYS = 'key_file = "keys.toml"'
KEY_FILE = """
[[key]]
alias = "bench"
key = "sk-bench"
max_budget = 1000000
budget_duration = "1mo"
budget_limits = [{ budget_duration = "1d", max_budget = 100000 }]
rpm_limit = 100000000
tpm_limit = 100000000000
max_parallel_requests = 100000
tags = ["bench"]
models = ["claude-*"]
"""

_AUDIT = """
SELECT count(*), coalesce(sum(certainty = 'exact'), 0), coalesce(sum(input_tokens), 0),
       coalesce(sum(output_tokens), 0), coalesce(sum(cost_nano), 0)
  FROM exchange
"""


def _tproxy_version() -> str | None:
    return f"tproxy {importlib.metadata.version('tproxy')}"


def _tproxy(access: str) -> Start:
    @asynccontextmanager
    async def start(home: Path, upstream: Address, cores: frozenset[int]) -> AsyncIterator[Served]:
        host, port = upstream
        file, keys = home / "config.toml", home / "keys.toml"
        file.write_text(TPROXY.format(host=host, port=port, access=access))
        keys.touch(mode=0o600)
        keys.write_text(KEY_FILE)
        program = Path(sys.executable).with_name("tproxy")
        async with running("tproxy", [str(program), "serve", "--config", str(file)], cores, home) as process:
            yield Served(address_in(await process.line()), process)

    return start


def audit_ledger(home: Path, tally: Tally) -> list[str]:
    """Compare the ledger with what the load has sent: one row for each exchange, every token, every nano-dollar."""
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        found = ledger.execute(_AUDIT).fetchone()
        unfinished = ledger.execute("SELECT ended, count(*) FROM exchange WHERE ended != 'finished' GROUP BY ended")
        faults = [f"the ledger has {count:,} whole exchanges as {ended}" for ended, count in unfinished]
    n, tokens_in = tally.exchanges, tally.exchanges * talk.INPUT_TOKENS
    cost = tokens_in * talk.NANO_PER_INPUT_TOKEN + tally.asked * talk.NANO_PER_OUTPUT_TOKEN
    expected = {
        "rows": n,
        "exact rows": n,
        "input tokens": tokens_in,
        "output tokens": tally.asked,
        "nano-dollars": cost,
    }
    return faults + [
        f"the ledger has {there:,} {what}, not {wanted:,}"
        for (what, wanted), there in zip(expected.items(), found, strict=True)
        if there != wanted
    ]


SUBJECTS = (
    Subject(name="direct", version=lambda: "the upstream itself", start=_direct),
    Subject(name="nginx", version=_nginx_version, start=_nginx),
    Subject(name="tproxy", version=_tproxy_version, start=_tproxy(OPEN), audit=audit_ledger),
    Subject(name="tproxy, budgets", version=_tproxy_version, start=_tproxy(KEYS), audit=audit_ledger),
)
