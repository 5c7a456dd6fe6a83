"""The table of subjects, what they are told, what they pass on, and the audit of what tproxy writes."""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bench import talk
from bench.load import Tally
from bench.process import BenchFault, Cores, running
from bench.subjects import (
    FLOORS,
    OURS,
    PEERS,
    SUBJECTS,
    Served,
    Subject,
    Upstream,
    address_in,
    audit_ledger,
    audit_money,
    ours,
)
from bench.subjects.base import accepting, free_address
from bench.subjects.floors import envoy_config, haproxy_config, nginx_config
from bench.subjects.peers import rolter_config
from bench.suite import installed
from tproxy.store.base import EXACT, FINISHED
from tproxy.store.migrate import migrate

ALL_CORES = frozenset([0])
TALLY = Tally(exchanges=2, asked=30)
COST = talk.INPUT_TOKENS * talk.NANO_PER_INPUT_TOKEN + 15 * talk.NANO_PER_OUTPUT_TOKEN
ROW = {
    "accepted_us": 1,
    "method": "POST",
    "path": "/v1/messages",
    "upstream": "http://127.0.0.1:1",
    "caller": "key:1",
    "customer": ours.HEADERS["x-tproxy-customer"],
    "session": ours.HEADERS["x-claude-code-session-id"],
    "agent": ours.HEADERS["x-claude-code-agent-id"],
    "tags": '["load", "bench"]',
    "ended": FINISHED,
    "certainty": EXACT,
    "input_tokens": talk.INPUT_TOKENS,
    "output_tokens": 15,
    "cost_nano": COST,
}
SUMS: dict[str, object] = {"exchanges": 2, "cost_nano": 2 * COST}
BUDGET: dict[str, object] = {"kind": "key", "subject": "1", "started_us": 0, "spent_nano": 2 * COST, "held_nano": 0}

# ---------------------------------------------------------------------------------------------------- the table


def test_the_table() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert names == [
        "direct", "nginx", "haproxy", "envoy", "tproxy", "tproxy, everything on",
        "tproxy, unwatched", "tproxy, watched",
        "rolter", "superbased-observer", "lmnr claude-code-proxy", "portkey", "litellm",
    ]  # fmt: skip
    assert [subject.name for subject in SUBJECTS if subject.peer] == [subject.name for subject in PEERS]
    assert all(subject.tls and subject.exact for subject in (*FLOORS[1:], *OURS))
    assert OURS[1].headers
    assert not OURS[0].headers


def test_a_subject_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [subject.name for subject in installed(["direct"])] == ["direct"]
    with pytest.raises(BenchFault, match=r"no subject is named hare; there are: direct; nginx; .*; tproxy, every"):
        installed(["direct", "hare"])
    monkeypatch.setattr("bench.suite.SUBJECTS", (replace(SUBJECTS[0], version=lambda: None),))
    with pytest.raises(BenchFault, match=r"not installed: direct\. Run: make bench-peers"):
        installed(["direct"])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_is_read_from_what_a_server_prints(scheme: str) -> None:
    assert address_in(f"tproxy listening on {scheme}://127.0.0.1:4000") == ("127.0.0.1", 4000)


@pytest.mark.parametrize(
    ("cores", "shared"),
    [([3], (3, 3, 3)), ([0, 1], (0, 1, 1)), ([2, 4, 6], (2, 4, 6)), ([0, 1, 2, 3], (0, 1, 2))],
)
def test_the_proxy_has_a_core_for_itself_where_there_are_two(cores: list[int], shared: tuple[int, int, int]) -> None:
    proxy, upstream, load = shared
    assert Cores.share(cores) == Cores(frozenset([proxy]), frozenset([upstream]), frozenset([load]))


# ---------------------------------------------------------------------------------------------- what they are told

LISTEN = ("127.0.0.1", 7001)
PLAIN, SECURE = Upstream("127.0.0.1", 7002), Upstream("127.0.0.1", 7002, Path("/ca.pem"))


def test_a_config_names_both_ends_and_checks_certificates() -> None:
    for upstream, scheme in ((PLAIN, "http"), (SECURE, "https")):
        assert upstream.url == f"{scheme}://127.0.0.1:7002"
        nginx = nginx_config(Path("/home"), upstream, LISTEN)
        assert "listen 127.0.0.1:7001" in nginx
        assert "server 127.0.0.1:7002;" in nginx
        assert f"proxy_pass {scheme}://api;" in nginx
        assert ("proxy_ssl_verify on;" in nginx) == (upstream is SECURE)
        haproxy = haproxy_config(upstream, LISTEN)
        assert "bind 127.0.0.1:7001" in haproxy
        assert "server api 127.0.0.1:7002" in haproxy
        assert ("ssl verify required ca-file /ca.pem" in haproxy) == (upstream is SECURE)
        resources = json.loads(envoy_config(upstream, LISTEN))["static_resources"]
        (listener,), (cluster,) = resources["listeners"], resources["clusters"]
        assert listener["address"]["socket_address"]["port_value"] == 7001
        assert '"port_value": 7002' in json.dumps(cluster)
        assert ("/ca.pem" in json.dumps(cluster)) == ("transport_socket" in cluster) == (upstream is SECURE)
        tproxy = ours.config(upstream, ours.OPEN)
        assert f'base_url = "{scheme}://127.0.0.1:7002"' in tproxy
        assert ('ca_file = "/ca.pem"' in tproxy) == (upstream is SECURE)
    rolter = rolter_config(PLAIN, LISTEN)
    assert "port = 7001" in rolter
    assert 'api_base = "http://127.0.0.1:7002"' in rolter


@pytest.mark.parametrize(("place", "figure"), [("nginx", 12_200), ("haproxy", 6_000), ("envoy", 12_200)])
def test_a_config_has_room_for_5_000_streams(place: str, figure: int) -> None:
    texts = {
        "nginx": nginx_config(Path("/home"), PLAIN, LISTEN),
        "haproxy": haproxy_config(PLAIN, LISTEN),
        "envoy": envoy_config(PLAIN, LISTEN),
    }
    wanted = {"nginx": "worker_connections {};", "haproxy": "maxconn {}\n", "envoy": '"max_requests": {}'}
    assert wanted[place].format(figure) in texts[place]
    assert figure >= 5_000 if place == "haproxy" else figure >= 2 * 5_000


# ---------------------------------------------------------------------------------------------- what they pass on

HERE = [subject for subject in (*FLOORS, *OURS) if subject.version() is not None]
THERE = [(subject, tls) for subject in HERE for tls in (False, True) if subject.tls or not tls]


@pytest.mark.parametrize(("subject", "tls"), THERE, ids=[f"{subject.name}{', TLS' * tls}" for subject, tls in THERE])
async def test_every_byte_passes_and_is_on_the_books(subject: Subject, tls: bool, tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem" if tls else None
    command = [sys.executable, "-m", "bench.upstream", *(["--tls", str(authority)] if tls else [])]
    asked = [talk.Asked(True, 20, 1_000), talk.Asked(False, 10), talk.Asked(True, 5)]
    with trio.fail_after(60):
        async with running("upstream", command, ALL_CORES, tmp_path) as upstream:
            there = Upstream(*address_in(await upstream.line()), authority)
            async with subject.start(tmp_path, there, ALL_CORES) as served:
                for one in asked:
                    await trio.to_thread.run_sync(ask, subject, served, one)
    tally = Tally(exchanges=len(asked), asked=sum(one.events for one in asked))
    assert subject.audit(tmp_path, tally) == []
    tally.asked += 1
    assert bool(subject.audit(tmp_path, tally)) == (subject in OURS)


def ask(subject: Subject, served: Served, asked: talk.Asked) -> None:
    """Ask for an answer; every byte of it must come."""
    said = {"role": "user", "content": asked.marker.decode()}
    body = {"model": talk.MODEL, "max_tokens": 100, "stream": asked.stream, "messages": [said]}
    with closing(http.client.HTTPConnection(*served.address, timeout=20)) as connection:
        headers = {**talk.HEADERS, **subject.headers, **served.headers}
        connection.request("POST", subject.path, json.dumps(body), headers)
        answer = connection.getresponse()
        check = talk.Check(asked)
        assert answer.status == 200
        check.feed(answer.read())
        check.end()


async def test_one_that_does_not_start_is_told_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    with trio.fail_after(20), pytest.raises(BenchFault, match=r"^hare does not accept: no such setting$"):
        async with running("hare", command, ALL_CORES, tmp_path) as process:
            await accepting(free_address(), process, seconds=600)


def test_a_free_address_can_be_listened_on() -> None:
    host, port = free_address()
    code = f"import socket; socket.create_server(({host!r}, {port}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------- the audits


def ledger(home: Path, *rows: dict[str, object], **more: list[dict[str, object]]) -> None:
    """Write a ledger: rows of `exchange`, and those of other tables."""
    numbered = [{"id": str(number)} | row for number, row in enumerate(rows)]
    with closing(sqlite3.connect(home / "ledger.db", isolation_level=None)) as connection:
        migrate(connection, now_us=0)
        for table, entries in {"exchange": numbered, **more}.items():
            for values in entries:
                places = ",".join("?" * len(values))
                statement = f"INSERT INTO {table} ({','.join(values)}) VALUES ({places})"
                connection.execute(statement, [*values.values()])


def money() -> dict[str, list[dict[str, object]]]:
    """What belongs to two right rows."""
    told = (("caller", "key:1"), ("tag", "load"), ("tag", "bench"), ("customer", "customer"), ("proxy", ""))
    return {
        "tally": [{"kind": kind, "id": name} | SUMS for kind, name in told],
        "budget": [BUDGET | {"period": period} for period in ("1mo", "1d")],
        "reservation": [],
    }


def test_a_right_ledger(tmp_path: Path) -> None:
    ledger(tmp_path, ROW, ROW, **money())
    assert audit_ledger(tmp_path, TALLY) == []
    assert audit_money(tmp_path, TALLY) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROW], "1 rows, not 2"),
        ([ROW, ROW, ROW], "3 rows, not 2"),
        ([ROW, ROW | {"ended": "client_gone"}], "1 whole exchanges as client_gone"),
        ([ROW, ROW | {"certainty": "estimated"}], "1 exact rows, not 2"),
        ([ROW, ROW | {"input_tokens": 24}], "49 input tokens, not 50"),
        ([ROW, ROW | {"output_tokens": 14}], "29 output tokens, not 30"),
        ([ROW, ROW | {"cost_nano": COST + 1}], "200,001 nano-dollars, not 200,000"),
        ([ROW, ROW | {"cost_nano": None}], "100,000 nano-dollars, not 200,000"),
    ],
    ids=["lost", "twice", "unfinished", "estimated", "input", "output", "cost", "unpriced"],
)
def test_a_wrong_ledger(tmp_path: Path, rows: list[dict[str, object]], told: str) -> None:
    ledger(tmp_path, *rows, **money())
    assert any(told in fault for fault in audit_ledger(tmp_path, TALLY))
    assert any(told in fault for fault in audit_money(tmp_path, TALLY))


@pytest.mark.parametrize(
    ("table", "place", "change", "told"),
    [
        ("tally", 0, {"cost_nano": 1}, "the sums of caller key have 1 nano-dollars, not 200,000"),
        ("tally", 0, {"exchanges": 3}, "the sums of caller key have 3 exchanges, not 2"),
        ("tally", 1, {"exchanges": 1}, "the sums of tag load have 1 exchanges, not 2"),
        ("tally", 2, {"exchanges": 1}, "the sums of tag bench have 1 exchanges, not 2"),
        ("tally", 3, {"id": "other"}, "the sums of customer customer have 0 exchanges, not 2"),
        ("budget", 0, {"spent_nano": 1}, "the budget 1mo has 1 nano-dollars spent, not 200,000"),
        ("budget", 1, {"held_nano": 5}, "the budget 1d has 5 nano-dollars held, not 0"),
        ("budget", 1, {"period": "7d"}, "the budget 1d has 0 nano-dollars spent, not 200,000"),
    ],
    ids=["cost", "count", "tag", "key's tag", "customer", "spent", "held", "no budget"],
)
def test_wrong_sums(tmp_path: Path, table: str, place: int, change: dict[str, object], told: str) -> None:
    kept = money()
    kept[table][place] |= change
    ledger(tmp_path, ROW, ROW, **kept)
    assert told in audit_money(tmp_path, TALLY)
    assert audit_ledger(tmp_path, TALLY) == []


def test_a_reservation_that_is_left(tmp_path: Path) -> None:
    left = {"exchange": "1", "budget": 1, "mode": "hold", "amount_nano": 0}
    ledger(tmp_path, ROW, ROW, **(money() | {"reservation": [left]}))
    assert audit_money(tmp_path, TALLY) == ["1 reservations are left"]


@pytest.mark.parametrize("change", [{"tags": '["bench"]'}, {"customer": None}, {"session": "x"}, {"agent": None}])
def test_a_row_that_does_not_say_whose_it_is(tmp_path: Path, change: dict[str, object]) -> None:
    ledger(tmp_path, ROW, ROW | change, **money())
    assert audit_money(tmp_path, TALLY) == ["1 rows lack the tags, customer, session or agent of their request"]
