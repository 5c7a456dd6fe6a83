from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.fake_api import Answer, Asked, FakeApi, fake_api
from tproxy.commands.keys import app
from tproxy.protocol.keys import compose, is_misspelt

MASTER = "sk-master-0123456789"
KEY = compose(bytes(32))
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A key as the API lists it."""
    token = DIGEST if number == 0 else hashlib.sha256(b"%d" % number).hexdigest()
    known = {"token": token, "key_alias": f"key {number}", "key_name": "sk-...abcd", "spend": 0.5, "blocked": False}
    return known | fields


class Keys(FakeApi):
    """A server that has keys."""

    rows: list[dict[str, Any]]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if asked.path == "/key/list":
            wanted = {name: asked.query[name] for name in ("key_alias", "team_id", "user_id") if name in asked.query}
            begin = asked.query.get("key_hash", "")
            rows = [
                row
                for row in self.rows
                if row["token"].startswith(begin) and all(row.get(name) == value for name, value in wanted.items())
            ]
            page, size = int(asked.query["page"]), int(asked.query["size"])
            some = rows[(page - 1) * size : page * size]
            return Answer(body={"keys": some, "total_count": len(rows), "current_page": page, "total_pages": 9})
        if asked.path == "/key/info":
            found = [dict(row) for row in self.rows if row["token"] == asked.query["key"]]
            if not found:
                return Answer(404, {"error": {"message": "there is no such key"}})
            del found[0]["token"]
            return Answer(body={"key": asked.query["key"], "info": found[0]})
        if asked.path in ("/key/generate", "/key/regenerate"):
            return Answer(body={"key": KEY, "key_alias": asked.body.get("key_alias"), "token": DIGEST})
        return Answer(body={"told": asked.body})


@pytest.fixture
def server() -> Iterator[Keys]:
    keys = Keys()
    keys.rows = [row()]
    with fake_api(keys):
        yield keys


def run(server: FakeApi | None, *arguments: str, stdin: str = "", code: int = 0, **environ: str) -> Result:
    """Run a command; it ends with `code`, and says nothing of the keys it was told."""
    known = {
        "TPROXY_MASTER_KEY": MASTER,
        "TPROXY_URL": server.url if server else "http://127.0.0.1:1",
        "COLUMNS": "160",
    }
    result = CliRunner().invoke(app, arguments, input=stdin, env=known | environ)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert MASTER not in result.output
    return result


def changes(server: FakeApi) -> list[tuple[str, Any]]:
    return [(asked.path, asked.body) for asked in server.asked if asked.method == "POST"]


def test_a_key_alone_stands_on_stdout(server: Keys) -> None:
    result = run(server, "create", "--alias", "alice")
    assert result.stdout == KEY + "\n"
    assert "shown only now" in result.stderr
    assert DIGEST[:16] in result.stderr
    assert "Alias: alice" in result.stderr
    assert KEY not in result.stderr


def test_all_that_a_key_can_be_told(server: Keys) -> None:
    told = (
        "--alias a --team t --user u --model claude-haiku-4-5 --model claude-opus-* --budget 25 --every 1mo"
        " --limit 1d=5 --limit 7d=0.000000001 --soft 20.5 --mode hard --cut --rpm 60 --tpm 1000 --itpm 800 --otpm 200"
        " --parallel 4 --expires 30d --tag x --tag y --route /v1/messages --role viewer"
    )
    result = run(server, "create", *told.split(), "--json")
    assert json.loads(result.stdout)["key"] == KEY
    assert changes(server) == [
        (
            "/key/generate",
            {
                "key_alias": "a",
                "team_id": "t",
                "user_id": "u",
                "models": ["claude-haiku-4-5", "claude-opus-*"],
                "max_budget": 25.0,
                "budget_duration": "1mo",
                "budget_limits": [
                    {"budget_duration": "1d", "max_budget": 5.0},
                    {"budget_duration": "7d", "max_budget": 0.000000001},
                ],
                "soft_budget": 20.5,
                "budget_mode": "hard",
                "cut_at_budget": True,
                "rpm_limit": 60,
                "tpm_limit": 1000,
                "itpm_limit": 800,
                "otpm_limit": 200,
                "max_parallel_requests": 4,
                "duration": "30d",
                "tags": ["x", "y"],
                "allowed_routes": ["/v1/messages"],
                "role": "viewer",
            },
        )
    ]


def test_what_is_not_told_is_not_sent(server: Keys) -> None:
    run(server, "create")
    run(server, "update", DIGEST, "--no-cut")
    assert changes(server) == [("/key/generate", {}), ("/key/update", {"key": DIGEST, "cut_at_budget": False})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("create --budget much", "'much' must be an amount of dollars"),
        ("create --budget -1", "must be an amount from 0"),
        ("create --budget 0.0000000001", "must not be finer than a nano-dollar"),
        ("create --soft nan", "must be an amount from 0"),
        ("create --every 1d", "give --budget or --soft too"),
        ("create --budget 1 --every often", "'often' must be a number and one of s, m, h, d, w, mo"),
        ("create --limit 5", "'5' must be a period and an amount, such as 1d=5"),
        ("create --limit 1x=5", "'1x' must be a number and one of"),
        ("create --limit 1d=x", "'x' must be an amount of dollars"),
        ("create --expires soon", "'soon' must be a number and one of"),
        ("create --rpm -1", "greater than or equal to 0"),
        ("create --mode tight", "'tight' is not one of"),
        ("create --role root", "'root' is not one of"),
        ("update a", "nothing to change"),
        ("update a --unset colour", "'colour' is none of: alias, team"),
        ("update a --rpm 5 --unset rpm", "it names what is set in the same command"),
        ("rotate a --grace long", "'long' must be a number and one of"),
        ("list --limit 0", "greater than or equal to 1"),
        ("delete -", "give --yes too"),
        (f"info {KEY}", "can be read in the shell's history"),
        (f"block {KEY}", "can be read in the shell's history"),
        (f"hash {KEY}", "give it on stdin"),
    ],
)
def test_a_slip_is_named_before_anything_is_asked(server: Keys, arguments: str, said: str) -> None:
    result = run(server, *arguments.split(), code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert KEY[4:] not in result.output
    assert not server.asked


def test_a_table_of_keys(server: Keys) -> None:
    server.rows = [
        row(1, key_alias="alice", team_id="red", user_id="al", spend=1.25, max_budget=25.0, budget_duration="1mo"),
        row(2, key_alias=None, blocked=True, expires="2020-01-01T00:00:00Z"),
    ]
    lines = [line.strip() for line in run(server, "list").stdout.splitlines()]
    alice = next(line.split() for line in lines if line.startswith("alice"))
    token = server.rows[0]["token"]
    assert alice == ["alice", "sk-...abcd", token[:12], "red", "al", "1.25", "25.00", "per", "1mo", "active"]
    assert any(line.split() == ["sk-...abcd", server.rows[1]["token"][:12], "0.50", "blocked"] for line in lines)


@pytest.mark.parametrize(("limit", "listed", "pages"), [(None, 250, 3), (120, 120, 2), (100, 100, 1), (7, 7, 1)])
def test_a_list_goes_through_all_pages(server: Keys, limit: int | None, listed: int, pages: int) -> None:
    server.rows = [row(number, team_id="red") for number in range(250)] + [row(999)]
    result = run(server, "list", "--team", "red", "--json", *(["--limit", str(limit)] if limit else []))
    assert [key["key_alias"] for key in json.loads(result.stdout)] == [f"key {number}" for number in range(listed)]
    assert [asked.query["page"] for asked in server.asked] == [str(page + 1) for page in range(pages)]


def test_a_list_ends_where_a_server_repeats_itself(server: Keys) -> None:
    page = [row(number) for number in range(100)]
    server.rows = page * 50
    assert len(json.loads(run(server, "list", "--json").stdout)) == 100
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("name", "stdin"),
    [
        pytest.param("key 0", "", id="alias"),
        pytest.param(DIGEST, "", id="hash"),
        pytest.param(DIGEST.upper(), "", id="hash in capitals"),
        pytest.param(DIGEST[:8], "", id="beginning"),
        pytest.param(DIGEST[:63], "", id="all but a digit"),
        pytest.param("-", KEY + "\nrest", id="stdin"),
    ],
)
def test_which_key_is_meant(server: Keys, name: str, stdin: str) -> None:
    server.rows = [row(5), row(), row(6)]
    run(server, "block", name, stdin=stdin)
    assert changes(server) == [("/key/block", {"key": DIGEST})]
    for asked in server.asked:
        assert KEY not in json.dumps([asked.query, asked.body, asked.headers])


@pytest.mark.parametrize(
    ("name", "stdin", "code", "said"),
    [
        pytest.param("key 9", "", 1, "there is no key", id="no alias"),
        pytest.param("KEY 0", "", 1, "there is no key", id="alias in capitals"),
        pytest.param("0" * 8, "", 1, "there is no key", id="no hash"),
        pytest.param("0" * 64, "", 1, "there is no such key", id="no whole hash"),
        pytest.param(DIGEST[:7], "", 1, "there is no key", id="too short a beginning"),
        pytest.param("-", "", 2, "the key on stdin must begin with sk-", id="nothing on stdin"),
        pytest.param("-", "hello", 2, "the key on stdin must begin with sk-", id="something else on stdin"),
        pytest.param("-", KEY[:-1] + ("a" if KEY[-1] != "a" else "b"), 2, "its checksum does not fit", id="a slip"),
    ],
)
def test_no_key_is_meant(server: Keys, name: str, stdin: str, code: int, said: str) -> None:
    result = run(server, "block", name, stdin=stdin, code=code)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not changes(server)
    assert KEY[4:-4] not in result.output


def test_a_beginning_of_several_hashes(server: Keys) -> None:
    other = row(1, token=DIGEST[:20] + "0" * 44)
    server.rows += [other]
    result = run(server, "block", DIGEST[:10], code=1)
    assert "stands for 2 keys" in result.stderr
    server.rows = [row(), row(2, key_alias=DIGEST[:10])]
    run(server, "block", DIGEST[:10], code=1)
    assert not changes(server)


def test_a_key_in_full(server: Keys) -> None:
    server.rows = [row(max_budget=2.0, metadata={"a": [1]}, models=["m", "n"], team_id=None, tags=[], rpm_limit=0)]
    lines = [line.split(maxsplit=1) for line in run(server, "info", DIGEST).stdout.splitlines()]
    shown = {name: value.strip() for name, value in lines}
    assert shown == {
        "key_alias": "key 0",
        "key_name": "sk-...abcd",
        "spend": "0.5 USD",
        "blocked": "false",
        "max_budget": "2.0 USD",
        "metadata": '{"a": [1]}',
        "models": "m, n",
        "rpm_limit": "0",
        "token": DIGEST,
    }


def test_what_is_taken_back(server: Keys) -> None:
    names = ("--unset", "budget", "--unset", "model", "--unset", "expires")
    run(server, "update", "key 0", "--alias", "b", *names)
    assert changes(server) == [
        ("/key/update", {"key": DIGEST, "key_alias": "b", "max_budget": None, "models": [], "duration": None})
    ]


@pytest.mark.parametrize(
    ("arguments", "path", "body", "said"),
    [
        ("block", "/key/block", {"key": DIGEST}, "blocked"),
        ("unblock", "/key/unblock", {"key": DIGEST}, "unblocked"),
        ("delete --yes", "/key/delete", {"keys": [DIGEST]}, "deleted"),
        ("update --rpm 0", "/key/update", {"key": DIGEST, "rpm_limit": 0}, "changed"),
    ],
)
def test_what_was_done(server: Keys, arguments: str, path: str, body: dict[str, Any], said: str) -> None:
    command, *options = arguments.split()
    result = run(server, command, "key 0", *options)
    assert result.stdout == f"{said}: key 0 (sk-...abcd, hash {DIGEST[:16]}…)\n"
    assert json.loads(run(server, command, "key 0", *options, "--json").stdout) == {"told": body}
    assert changes(server) == [(path, body)] * 2


@pytest.mark.parametrize(("answer", "code", "deleted"), [("y\n", 0, True), ("n\n", 1, False), ("", 1, False)])
def test_to_delete_is_asked_for(server: Keys, answer: str, code: int, deleted: bool) -> None:
    result = run(server, "delete", "key 0", stdin=answer, code=code)
    assert "Delete key 0 (sk-...abcd" in result.stderr
    assert bool(changes(server)) is deleted


def test_a_new_key_in_place_of_an_old(server: Keys) -> None:
    result = run(server, "rotate", "key 0", "--grace", "24h")
    assert result.stdout == KEY + "\n"
    assert "works for 24h" in result.stderr
    assert "opens nothing any more" in run(server, "rotate", "key 0").stderr
    assert changes(server) == [
        ("/key/regenerate", {"key": DIGEST, "grace_period": "24h"}),
        ("/key/regenerate", {"key": DIGEST}),
    ]


def test_hashes_need_no_server() -> None:
    assert run(None, "hash", stdin=KEY + "\n", TPROXY_MASTER_KEY="").stdout == DIGEST + "\n"
    assert run(None, "hash", "-", stdin=KEY).stdout == DIGEST + "\n"
    made = [dict(line.split() for line in run(None, "hash", "--new").stdout.splitlines()) for _ in range(2)]
    assert made[0]["key"] != made[1]["key"]
    assert "at least 16 characters" in run(None, "hash", stdin="sk-short", code=2).stderr
    for new in made:
        assert new["hash"] == hashlib.sha256(new["key"].encode()).hexdigest()
        assert new["key"].startswith("sk-")
        assert not is_misspelt(new["key"])


def test_what_the_server_says_cannot_steer_the_terminal(server: Keys) -> None:
    nasty = "\x1b[2J\u202e[bold]x\ud800\x07"
    server.rows = [row(key_alias=nasty, team_id=nasty, metadata={"a": nasty})]
    shown = [
        run(server, "list").output,
        run(server, "info", DIGEST).output,
        run(server, "block", DIGEST).output,
        run(server, "delete", DIGEST, code=1).output,
        run(server, "info", nasty.replace("\ud800", "\x1b"), code=1).output,
    ]
    for text in shown:
        assert not set(text) & set("\x1b\x07\u202e\ud800"), text
        assert "[bold]x" in text.replace("\n", "")
    assert json.loads(run(server, "list", "--json").stdout)[0]["key_alias"] == nasty


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401, {"error": {"message": "unknown key"}}), "does not take the key in TPROXY_MASTER_KEY: unknown key"),
        (Answer(422, {"detail": [{"loc": ["body", "rpm_limit"], "msg": "too\x1b[2J big"}]}), "rpm_limit: too"),
        (Answer(200, {"token": "x"}), "the answer holds no key"),
        (Answer(200, ["x"]), "the answer holds no key"),
        (Answer(200, b"<html>"), "not as tproxy does"),
    ],
)
def test_a_server_that_says_no(answer: Answer, said: str) -> None:
    with fake_api() as server:
        server.answers["POST /key/generate"] = answer
        result = run(server, "create", code=1)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("listed", [{}, {"keys": None}, {"keys": ["hash"]}, {"keys": [{"token": 1}]}, []])
def test_a_list_that_is_none(listed: object) -> None:
    with fake_api() as server:
        server.answers["GET /key/list"] = Answer(body=listed)
        assert "gave no list of keys" in run(server, "list", code=1).stderr


@pytest.mark.parametrize(
    ("environ", "code", "said"),
    [
        ({}, 1, "cannot reach http://127.0.0.1:1 "),
        ({"TPROXY_MASTER_KEY": ""}, 2, "TPROXY_MASTER_KEY is not set"),
        ({"TPROXY_URL": "127.0.0.1"}, 2, "is no address of a server"),
    ],
)
def test_no_server_to_ask(environ: dict[str, str], code: int, said: str) -> None:
    result = run(None, "list", code=code, **environ)
    assert result.stderr.startswith("tproxy: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_address_as_an_option_goes_before_that_of_the_environment(server: Keys) -> None:
    run(server, "list", "--url", server.url, TPROXY_URL="http://127.0.0.1:1")
    assert server.asked
