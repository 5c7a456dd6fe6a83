"""Law 3: no key of the proxy's goes upstream, no real key comes back, and neither is written anywhere.

First what goes upstream for each form in which a key can be brought; then a canary: a process that has served and
refused all kinds of requests is searched, its answers, its output and its files, for every key that it knew.
"""

from __future__ import annotations

import base64
import json
import signal
from dataclasses import dataclass
from pathlib import Path

import h11
import pytest

from tests.e2e.house import REAL_KEY, config_text, open_house_before
from tests.e2e.process import run, running, tproxy
from tests.e2e.raw import Header, ask, chunked, parse, request
from tests.wire.peer import OK, Line, answers, close, peer

VIRTUAL = "sk-virtual-0123456789abcdef"
LIMITED = "sk-limited-0123456789abcdef"
MASTER = "sk-master-0123456789abcdef"
OWN = "sk-ant-api03-of-the-client"
BASIC = "Basic " + base64.b64encode(f"user:{VIRTUAL}".encode()).decode()

KEYS = f"""
[[key]]
alias = "search"
key = "{VIRTUAL}"
[[key]]
alias = "limited"
key = "{LIMITED}"
models = ["claude-haiku-*"]
"""
SETTINGS = f'key_file = "keys.toml"\nmaster_key = "{MASTER}"\naccess = "%s"'


def write_keys(folder: Path) -> None:
    file = folder / "keys.toml"
    file.touch(mode=0o600)
    file.write_text(KEYS)


def read_all(folder: Path) -> bytes:
    """What the process keeps there: ledger and output, but not what it was configured with."""
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.suffix != ".toml")


@dataclass(frozen=True)
class Row:
    """Credentials as a client brings them, and the only ones that may arrive."""

    name: str
    access: str
    brought: list[tuple[str, str]]
    arrives: Header


REAL_BEARER = (b"Authorization", b"Bearer " + REAL_KEY.encode())
REAL_X_API_KEY = (b"x-api-key", REAL_KEY.encode())
ROWS = [
    Row("bearer", "keys", [("Authorization", f"Bearer {VIRTUAL}")], REAL_BEARER),
    Row("bearer in lower case", "keys", [("Authorization", f"bearer {VIRTUAL}")], REAL_BEARER),
    Row("bearer with blanks", "keys", [("AUTHORIZATION", f"BEARER  {VIRTUAL} ")], REAL_BEARER),
    Row("master", "keys", [("authorization", f"Bearer {MASTER}")], REAL_BEARER),
    Row("x-api-key", "keys", [("X-Api-Key", VIRTUAL)], REAL_X_API_KEY),
    Row("api-key", "keys", [("api-key", VIRTUAL)], REAL_X_API_KEY),
    Row("x-litellm-api-key", "keys", [("x-litellm-api-key", VIRTUAL)], REAL_X_API_KEY),
    Row("x-litellm-api-key with bearer", "keys", [("X-LiteLLM-API-Key", f"Bearer {VIRTUAL}")], REAL_X_API_KEY),
    Row(
        "in every header",
        "keys",
        [
            ("api-key", VIRTUAL),
            ("x-api-key", VIRTUAL),
            ("Authorization", f"Bearer {VIRTUAL}"),
            ("x-litellm-api-key", VIRTUAL),
            ("x_api_key", VIRTUAL),
            ("x_litellm_api_key", VIRTUAL),
            ("x-litellm_api-key", VIRTUAL),
            ("Proxy-Authorization", BASIC),
        ],
        REAL_X_API_KEY,
    ),
    Row("twice the same", "keys", [("x-api-key", VIRTUAL), ("X-API-KEY", VIRTUAL)], REAL_X_API_KEY),
    Row("basic beside it", "keys", [("Authorization", BASIC), ("x-litellm-api-key", VIRTUAL)], REAL_X_API_KEY),
    Row("nominated", "keys", [("Connection", "x-api-key, authorization"), ("x-api-key", VIRTUAL)], REAL_X_API_KEY),
    Row("open, none", "open", [], REAL_X_API_KEY),
    Row("open, any", "open", [("Authorization", "bearer sk-anything")], REAL_BEARER),
    Row("open, basic", "open", [("Authorization", BASIC)], REAL_BEARER),
    Row("open, a client's own", "open", [("x-api-key", OWN)], REAL_X_API_KEY),
    Row("own, bearer", "own", [("Authorization", f"Bearer {OWN}")], (b"Authorization", f"Bearer {OWN}".encode())),
    Row("own, x-api-key", "own", [("x-api-key", OWN)], (b"x-api-key", OWN.encode())),
    Row(
        "own, beside a key of ours",
        "own",
        [("x-litellm-api-key", VIRTUAL), ("Authorization", f"Bearer {OWN}")],
        (b"Authorization", f"Bearer {OWN}".encode()),
    ),
    Row(
        "own, with a key of ours in another place",
        "own",
        [("x-litellm-api-key", VIRTUAL), ("Authorization", f"Bearer {OWN}"), ("x-api-key", VIRTUAL)],
        (b"Authorization", f"Bearer {OWN}".encode()),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_only_the_right_credential_arrives(row: Row, tmp_path: Path) -> None:
    write_keys(tmp_path)
    sent = request("POST", "/v1/messages", [("accept", "x/y"), *row.brought, ("x-last", "1")], b"{}")
    async with open_house_before(tmp_path, answers(OK), tproxy=SETTINGS % row.access) as (house, upstream):
        answer = await ask(house.address, sent)
        assert answer.status == 200
        await house.row(answer.id)
        received = bytes(upstream.lines[0].received)
    name, value = row.arrives
    found = [(given.lower(), said) for given, said in parse(received).headers]
    assert [header for header in found if header[0] not in (b"host", b"content-length", b"via")] == [
        (b"accept", b"x/y"),
        *([(name.lower(), value)] if row.brought else []),
        (b"x-last", b"1"),
        *([] if row.brought else [(name.lower(), value)]),
    ]
    for secret in (VIRTUAL, MASTER, BASIC):
        assert secret.encode() not in received


REFUSED = [
    ("keys", [("Authorization", f"Bearer {OWN}")], 401, "key_unknown"),
    ("keys", [("x-litellm-api-key", "sk-x"), ("x-api-key", VIRTUAL)], 401, "key_unknown"),
    ("keys", [("Authorization", BASIC)], 401, "key_missing"),
    ("keys", [("x-api-key", VIRTUAL), ("x-api-key", MASTER)], 400, "bad_request"),
    ("own", [("x-api-key", VIRTUAL)], 401, "key_missing"),
    ("own", [("x-litellm-api-key", VIRTUAL), ("Authorization", f"Bearer {MASTER}")], 401, "key_missing"),
    ("own", [("x-litellm-api-key", "sk-x"), ("Authorization", f"Bearer {OWN}")], 401, "key_unknown"),
]


@pytest.mark.parametrize(("access", "brought", "status", "code"), REFUSED)
async def test_who_is_refused_costs_the_upstream_nothing(
    access: str, brought: list[tuple[str, str]], status: int, code: str, tmp_path: Path
) -> None:
    write_keys(tmp_path)
    async with open_house_before(tmp_path, answers(OK), tproxy=SETTINGS % access) as (house, upstream):
        answer = await ask(house.address, request("POST", "/v1/messages", brought, b"{}"))
        assert (answer.status, json.loads(answer.body)["error"]["details"]["error_code"]) == (status, code)
        assert not upstream.lines
        assert not await house.rows(0)
    for secret in (VIRTUAL, MASTER, OWN, REAL_KEY):
        assert secret.encode() not in answer.head + answer.body


@pytest.mark.parametrize("path", ["/v1/messages", "/anthropic/v1/messages/", "/v1/mess%61ges", "/v1/complet%65"])
async def test_no_spelling_of_a_path_leads_around_the_models_of_a_key(path: str, tmp_path: Path) -> None:
    write_keys(tmp_path)
    headers = [("x-api-key", LIMITED), ("transfer-encoding", "chunked")]
    sent = request("POST", path, headers, chunked(b'{"model":"claude-opus-4-8"}'))
    async with open_house_before(tmp_path, answers(OK), tproxy=SETTINGS % "keys") as (house, upstream):
        assert (await ask(house.address, sent)).status == 403
        assert not upstream.lines


FAULTY = """
import trio
from tproxy.cli import main

async def open_tcp_stream(host: str, port: int) -> None:
    raise ExceptionGroup("a fault of ours", [RuntimeError(host)])

trio.open_tcp_stream = open_tcp_stream
main()
"""


@pytest.mark.parametrize("format", ["json", "console"])
async def test_no_key_is_in_the_traceback_of_a_fault_of_ours(format: str, tmp_path: Path) -> None:
    write_keys(tmp_path)
    text = config_text("http://127.0.0.1:9", tproxy=SETTINGS % "keys", tables=f'[tproxy.log]\nformat = "{format}"')
    (tmp_path / "config.toml").write_text(text)
    serve = running("python", "-c", FAULTY, "serve", folder=tmp_path, ready="tproxy listening on ")
    async with serve as process:
        answer = await ask(process.address, request("POST", "/v1/messages", [("x-api-key", VIRTUAL)], b"{}"))
        assert answer.status == 500
        assert await process.stop() == 0
    log = process.log.read_text()
    assert "a fault of ours" in log
    assert "open_tcp_stream" in log
    for secret in (VIRTUAL, LIMITED, MASTER, REAL_KEY):
        assert secret not in log
        assert secret.encode() not in answer.head + answer.body


async def test_no_key_is_in_what_the_process_says_or_keeps(tmp_path: Path) -> None:
    """Every kind of answer that the proxy can give, and every way in which its upstream can fail."""
    write_keys(tmp_path)
    event = b'data: {"type":"message_start","message":{"model":"claude-haiku-4-5","usage":{"input_tokens":1}}}\n\n'
    cut = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n" + event
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    served = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    garbage = b"HTTP/9 what\r\n\r\n"
    upstream_says = [answers(served), answers(refusal), close, answers(cut, then=Line.cut), answers(garbage), close]
    bearer, limited, master = (("Authorization", f"Bearer {key}") for key in (VIRTUAL, LIMITED, MASTER))
    haiku = b'{"model":"claude-haiku-4-5","litellm_metadata":{"user":"u"}}'
    requests = [
        *(request("POST", "/anthropic/v1/messages", [bearer, ("x-tproxy-tags", "t")], haiku) for _ in upstream_says),
        request("GET", "/v1/models", [master]),
        request("POST", "/v1/messages", [limited], b'{"model":"claude-opus-4-8"}'),
        request("POST", "/v1/messages", [("x-api-key", VIRTUAL + "x")], haiku),
        request("POST", "/v1/messages", [("x-api-key", VIRTUAL), ("x-api-key", MASTER)], haiku),
        request("GET", f"/v1/../x?key={VIRTUAL}", [bearer]),
        request("GET", f"/v1/models?key={VIRTUAL} x", [bearer]),
        request("GET", "/v1/models", [bearer, ("bad\0", VIRTUAL)]),
        request("GET", "/nothing/here", [bearer]),
        request("GET", "/health/readiness", [bearer]),
        request("HEAD", "/anthropic", [bearer]),
        request("POST", "/v1/messages", [bearer, ("content-length", "999999999999")]),
    ]
    async with peer(*upstream_says) as upstream:
        text = config_text(
            f"http://{upstream.origin}",
            tproxy=SETTINGS % "keys",
            tables='[tproxy.log]\nlevel = "debug"',
        )
        (tmp_path / "config.toml").write_text(text)
        said, statuses = b"", []
        async with tproxy(tmp_path) as process:
            for sent in requests:
                try:
                    answer = await ask(process.address, sent)
                except h11.RemoteProtocolError:
                    statuses.append(0)
                else:
                    statuses.append(answer.status)
                    said += answer.head + answer.body
            (tmp_path / "keys.toml").write_text(KEYS.replace("models", f'models = ["{MASTER}"]\nmodel'))
            process.process.send_signal(signal.SIGHUP)
            assert await process.stop() == 0
        received = b"".join(bytes(line.received) for line in upstream.lines)
    spend = await run("tproxy", "spend", "--json", folder=tmp_path)

    assert statuses == [200, 401, 502, 0, 502, 502, 502, 403, 401, 400, 400, 400, 400, 404, 200, 200, 413]
    kept = read_all(tmp_path)
    assert all(found in kept for found in (b"exchange", b"SQLite format 3", b"not reloaded"))
    assert received.count(REAL_KEY.encode()) >= 5
    for secret in (VIRTUAL, LIMITED, MASTER):
        assert secret.encode() not in received
    for secret in (VIRTUAL, LIMITED, MASTER, REAL_KEY):
        for place in (said, kept, spend.stdout.encode(), spend.stderr.encode()):
            assert secret.encode() not in place
