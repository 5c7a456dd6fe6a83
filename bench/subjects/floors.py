"""What does nothing but forward: no proxy at all, and three in C and C++, one thread each, set up to stream.

All three keep connections to the upstream open, wait ten minutes for the next byte, write no access log, and take
5,000 streams at a time, which are twice as many open files. They run on one core, like every subject.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from bench.process import running
from bench.subjects.base import TLS_NAME, Address, Served, Subject, Upstream, accepting, free_address
from bench.subjects.programs import ENVOY, found, told, version

CONNECTIONS = 6_000  # of clients at a time
FILES = 2 * CONNECTIONS + 200  # each of them opens one to the upstream
IDLE_SECONDS = 600


@asynccontextmanager
async def _direct(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    yield Served((upstream.host, upstream.port), None)


# ------------------------------------------------------------------------------------------------------- nginx

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {home}/nginx.pid;
error_log stderr;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream api {{
        server {host}:{port};
        keepalive 512;
        keepalive_requests 1000000;
    }}
    server {{
        listen {listen} backlog=4096;
        client_max_body_size 64m;
        location / {{
            proxy_pass {scheme}://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout {idle}s;
            proxy_send_timeout {idle}s;
            {tls}
        }}
    }}
}}
"""
NGINX_TLS = "proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca_file}; proxy_ssl_name {name};"


def nginx_config(home: Path, upstream: Upstream, listen: Address) -> str:
    """One worker that buffers neither requests nor answers."""
    tls = NGINX_TLS.format(ca_file=upstream.ca_file, name=TLS_NAME) if upstream.ca_file else ""
    return NGINX.format(
        home=home,
        host=upstream.host,
        port=upstream.port,
        listen=_joined(listen),
        scheme="https" if tls else "http",
        tls=tls,
        files=FILES,
        idle=IDLE_SECONDS,
    )


@cache
def _nginx_version() -> str | None:
    program = shutil.which("nginx")
    return told(program, "-v").removeprefix("nginx version: ") if program else None


@asynccontextmanager
async def _nginx(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "nginx.conf"
    file.write_text(nginx_config(home, upstream, address))
    command = ["nginx", "-e", "stderr", "-p", str(home), "-c", str(file)]
    async with running("nginx", command, cores, home) as process:
        await accepting(address, process)
        yield Served(address, process)


# ----------------------------------------------------------------------------------------------------- HAProxy

HAPROXY = """
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    maxconn {connections}
    backlog 4096
    option http-no-delay
    option http-keep-alive
    http-reuse always
    timeout connect 10s
    timeout client {idle}s
    timeout server {idle}s
listen bench
    bind {listen}
    server api {host}:{port}{tls}
"""
HAPROXY_TLS = " ssl verify required ca-file {ca_file} sni str({name}) verifyhost {name}"


def haproxy_config(upstream: Upstream, listen: Address) -> str:
    """One thread that sends what it has at once."""
    tls = HAPROXY_TLS.format(ca_file=upstream.ca_file, name=TLS_NAME) if upstream.ca_file else ""
    return HAPROXY.format(
        host=upstream.host,
        port=upstream.port,
        listen=_joined(listen),
        tls=tls,
        connections=CONNECTIONS,
        idle=IDLE_SECONDS,
    )


@cache
def _haproxy_version() -> str | None:
    program = shutil.which("haproxy")
    return " ".join(told(program, "-v").split()[:3]) if program else None


@asynccontextmanager
async def _haproxy(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "haproxy.cfg"
    file.write_text(haproxy_config(upstream, address))
    async with running("haproxy", ["haproxy", "-db", "-f", str(file)], cores, home) as process:
        await accepting(address, process)
        yield Served(address, process)


# ------------------------------------------------------------------------------------------------------- Envoy


def envoy_config(upstream: Upstream, listen: Address) -> str:
    """One worker without time limits, access log, request ids or tracing; JSON, which Envoy reads as it does YAML."""
    http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": http,
        "stat_prefix": "bench",
        "stream_idle_timeout": f"{IDLE_SECONDS}s",
        "request_timeout": "0s",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "bench",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "api", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": router, "suppress_envoy_headers": True}}],
    }
    thresholds = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), FILES)
    cluster: dict[str, object] = {
        "name": "api",
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {
            "cluster_name": "api",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket((upstream.host, upstream.port))}}]}],
        },
    }
    if upstream.ca_file:
        cluster["transport_socket"] = _envoy_tls(upstream.ca_file, TLS_NAME)
    listener = {
        "name": "bench",
        "address": _socket(listen),
        "tcp_backlog_size": 4096,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def _envoy_tls(ca_file: Path, name: str) -> dict[str, object]:
    names = [{"san_type": "DNS", "matcher": {"exact": name}}]
    context = {"trusted_ca": {"filename": str(ca_file)}, "match_typed_subject_alt_names": names}
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    common = {"validation_context": context}
    return {"name": "tls", "typed_config": {"@type": kind, "sni": name, "common_tls_context": common}}


def _socket(address: Address) -> dict[str, object]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


@asynccontextmanager
async def _envoy(home: Path, upstream: Upstream, cores: frozenset[int]) -> AsyncIterator[Served]:
    address, file = free_address(), home / "envoy.json"
    file.write_text(envoy_config(upstream, address))
    command = [str(found(ENVOY)), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    async with running("envoy", command, cores, home) as process:
        await accepting(address, process)
        yield Served(address, process)


def _joined(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


FLOORS = (
    Subject(name="direct", version=lambda: "the upstream itself", start=_direct),
    Subject(name="nginx", version=_nginx_version, start=_nginx, tls=True),
    Subject(name="haproxy", version=_haproxy_version, start=_haproxy, tls=True),
    Subject(name="envoy", version=lambda: version(ENVOY), start=_envoy, tls=True),
)
