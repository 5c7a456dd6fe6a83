"""`tproxy top`: what it draws, and what it does when the server goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from tests.fake_api import Answer, FakeApi, fake_api
from tproxy.cli import app
from tproxy.client import Api, ApiFault
from tproxy.commands.top import GIVE_UP_SECONDS, watch
from tproxy.commands.top_view import Sort, frame, table

KEY = "sk-master-0123456789"
AT_US = 1_795_000_000_000_000


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    """An exchange as `/live` tells of it."""
    known = {
        "id": f"id-{number}",
        "accepted_us": AT_US - (number + 1) * 1_500_000,
        "phase": "streaming",
        "method": "POST",
        "path": "/v1/messages",
        "caller": "key:abc",
        "caller_alias": f"alice-{number}",
        "team": "research",
        "user": None,
        "customer": None,
        "model_asked": "claude-haiku-4-5",
        "model_served": "claude-haiku-4-5-20251001",
        "prompt_tokens": 12_345,
        "output_tokens": 678 - number,
        "tokens_per_second": 20.5 + number,
        "average_tokens_per_second": 19.0,
        "head_ms": 210.5,
        "first_content_ms": 1259.4,
        "cost_nano": 15_735_000 + number,
        "bytes_out": 45_678,
    }
    return known | fields


def snapshot(*rows: dict[str, Any], **totals: Any) -> dict[str, Any]:
    known = {
        "running": len(rows),
        "tokens_per_second": 95.84,
        "cost_nano_per_second": 478_848,
        "admitted_per_second": 0.2,
        "refused_per_second": 0.0,
        "events_per_second": 1059.9,
        "waiting_for_head": 2,
        "waiting_for_content": 1,
    }
    return {"at_us": AT_US, "totals": known | totals, "exchanges": list(rows)}


def lines(width: int, height: int | None, *rows: dict[str, Any], sort: Sort = Sort.AGE, note: str = "") -> list[str]:
    return [line.plain for line in frame(snapshot(*rows), width, height, sort, note)]


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        pytest.param(8, ["caller"], id="hardly anything"),
        pytest.param(40, ["caller", "model", "age", "out", "tok/s"], id="narrow"),
        pytest.param(80, ["caller", "model", "age", "out", "tok/s", "cost"], id="usual"),
        pytest.param(
            200,
            ["caller", "model", "age", "out", "tok/s", "cost", "phase", "in", "first s", "head s", "bytes", "team"],
            id="wide",
        ),
    ],
)
def test_it_fits_the_width(width: int, headings: list[str]) -> None:
    drawn = lines(width, 20, row(), row(1, caller_alias="a" * 100, model_served="模型" * 40), row(2, team=None))
    assert max(map(cell_len, drawn)) <= width
    assert drawn[2].split("  ")[0].split()[0] == "caller"
    assert " ".join(drawn[2].split()) == " ".join(headings)


@pytest.mark.parametrize(
    ("height", "shown"),
    [pytest.param(2, 0, id="no room"), pytest.param(8, 5, id="some"), pytest.param(50, 10, id="all")],
)
def test_it_fits_the_height(height: int, shown: int) -> None:
    drawn = lines(120, height, *(row(number) for number in range(10)))
    assert len(drawn) <= height
    assert sum("alice-" in line for line in drawn) == shown
    assert (f"{shown} of 10 exchanges, by age" in drawn[1]) is (shown < 10)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        pytest.param(Sort.AGE, ["c", "b", "a"], id="the oldest first"),
        pytest.param(Sort.TOKENS, ["a", "c", "b"], id="tokens, the unknown last"),
        pytest.param(Sort.COST, ["b", "c", "a"], id="cost, the unknown last"),
        pytest.param(Sort.RATE, ["c", "a", "b"], id="rate, or the average where it is not known"),
    ],
)
def test_the_order(sort: Sort, order: list[str]) -> None:
    rows = [
        row(0, caller_alias="a", output_tokens=30, cost_nano=None, tokens_per_second=5.0),
        row(1, caller_alias="b", output_tokens=None, cost_nano=9, tokens_per_second=1.0),
        row(2, caller_alias="c", output_tokens=20, cost_nano=7, tokens_per_second=None),
    ]
    assert [line.split()[0] for line in lines(120, None, *rows, sort=sort)[3:]] == order


def test_the_figures() -> None:
    totals, more, _, line = lines(200, None, row())
    assert totals == (
        "1 running  95.8 tok/s  1.72 USD/h  0.2 req/s  0.0 refused/s  1,059.9 events/s  "
        "waiting: 2 for a head, 1 for content"
    )
    assert more == ""
    assert line.split() == [
        "alice-0", "claude-haiku-4-5-20251001", "1.5s", "678", "20.5", "0.015735", "stream", "12,345", "1.26", "0.21",
        "45,678", "research",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "age"), [(0, "0.0s"), (59.94, "59.9s"), (61, "1m01"), (3599, "59m59"), (7260, "2h01"), (-5, "0.0s")]
)
def test_ages(seconds: float, age: str) -> None:
    line = lines(120, None, row(accepted_us=AT_US - int(seconds * 1e6)))[3]
    assert line.split()[2] == age


def test_what_is_not_known_is_not_shown_as_0() -> None:
    unknown = dict.fromkeys(row()) | {"caller": "anonymous", "path": "/v1/files"}
    line = lines(200, None, unknown)[3]
    assert line.split() == ["anonymous", "/v1/files", *["-"] * 9]


def test_no_name_steers_the_terminal() -> None:
    drawn = "".join(
        lines(120, None, row(caller_alias="\x1b[31mred", model_served="[bold]x\n"), note="\x1b]0;title\x07")
    )
    assert "\x1b" not in drawn
    assert "\n" not in drawn
    assert "[bold]x" in drawn


def test_a_note_stands_in_place_of_the_totals() -> None:
    drawn = lines(120, 10, row(), note="the server is away")
    assert drawn[0] == "the server is away"
    assert "alice-0" in drawn[3]
    assert frame({"totals": {}, "exchanges": []}, 40, 10, Sort.AGE, "away")[0].plain == "away"


def test_a_table_is_plain_text() -> None:
    drawn = table(snapshot(row(), row(1)), Sort.AGE, width=80).splitlines()
    assert [line.split()[0] for line in drawn] == ["2", "caller", "alice-1", "alice-0"]


class Server:
    """Plays answers of `/live`: each a list of snapshots, and how it ends."""

    url = "http://server"

    def __init__(self, *answers: tuple[int, str | ApiFault]) -> None:
        self._answers = list(answers)
        self.now = 0.0
        self.pauses: list[float] = []
        self.notes: list[str] = []

    def lines(self, path: str, patience: float, **query: Any) -> Iterator[bytes]:
        count, ending = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        for _ in range(count):
            data = json.dumps(snapshot()).encode()
            yield from (b"id: 1\n", b"event: snapshot\n", b"data: %b\n" % data, b"\n")
        if isinstance(ending, ApiFault):
            raise ending
        if ending == "end":
            yield from (b"event: end\n", b'data: {"reason":"draining"}\n', b"\n")
        elif ending == "a page":
            yield b"<html>\n"
        elif ending == "no snapshot":
            yield from (b"event: snapshot\n", b"data: []\n", b"\n")

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def watch(self) -> Iterator[dict[str, Any]]:
        return watch(cast(Api, self), 1, self.notes.append, pause=self.pause, clock=lambda: self.now)


GONE = ApiFault("cannot reach http://server")


@pytest.mark.parametrize("ending", ["end", "cut", GONE], ids=["it drains", "it is cut", "it is gone"])
def test_a_server_that_comes_back_is_seen_again(ending: str | ApiFault) -> None:
    server = Server((2, ending), (0, GONE), (0, GONE), (3, "end"), (1, "end"))
    seen = server.watch()
    assert len([next(seen) for _ in range(6)]) == 6
    assert server.pauses == [0.5, 1, 2, 0.5]
    assert len(server.notes) == 4
    assert "asking again in 2 s" in server.notes[2]


def test_a_server_that_stays_away_is_given_up() -> None:
    server = Server((1, "end"), (0, GONE))
    with pytest.raises(ApiFault, match="given up after 60 seconds: cannot reach"):
        list(server.watch())
    assert GIVE_UP_SECONDS < sum(server.pauses) < GIVE_UP_SECONDS + 10
    assert max(server.pauses) == 8


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        pytest.param([(0, GONE)], "cannot reach", id="it was never there"),
        pytest.param([(0, ApiFault("no", 401))], "no", id="it says no"),
        pytest.param([(1, "end"), (0, ApiFault("too many", 429))], "too many", id="it says no later"),
        pytest.param([(0, "a page")], "is it tproxy's", id="it is something else"),
        pytest.param([(0, "no snapshot")], "no snapshot", id="it shows something else"),
    ],
)
def test_what_ends_it_at_once(answers: Sequence[tuple[int, str | ApiFault]], said: str) -> None:
    server = Server(*answers)
    with pytest.raises(ApiFault, match=said):
        list(server.watch())


def stream(*snapshots: dict[str, Any]) -> Answer:
    body = b"".join(b"event: snapshot\ndata: %b\n\n" % json.dumps(each).encode() for each in snapshots)
    return Answer(body=body + b"event: end\ndata: {}\n\n", headers={"content-type": "text/event-stream"})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with fake_api() as server:
        monkeypatch.setenv("TPROXY_URL", server.url)
        monkeypatch.setenv("TPROXY_MASTER_KEY", KEY)
        monkeypatch.setenv("COLUMNS", "100")
        yield server


@pytest.mark.parametrize("arguments", [["--once"], []], ids=["asked for", "no terminal"])
def test_one_snapshot_is_a_table(arguments: list[str], api: FakeApi) -> None:
    api.answers["GET /live"] = stream(snapshot(row(), admitted_per_second=None), snapshot(row(1)))
    done = CliRunner().invoke(app, ["top", *arguments])
    assert done.exit_code == 0, done.output
    assert "alice-1" in done.stdout, "the first that knows rates"
    assert "alice-0" not in done.stdout
    [asked] = api.asked
    assert (asked.query, asked.headers["authorization"]) == ({"interval": "0.5"}, f"Bearer {KEY}")


def test_json_is_what_the_server_says(api: FakeApi) -> None:
    told = snapshot(row(team="é"))
    api.answers["GET /live"] = stream(told)
    done = CliRunner().invoke(app, ["top", "--once", "--json"])
    assert (done.exit_code, json.loads(done.stdout), done.stdout.isascii()) == (0, told, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(Answer(401, {"error": {"message": "unknown key"}}), "does not take the key", id="no"),
        pytest.param(Answer(429, {"error": {"message": "16 others look"}}), "16 others look", id="full"),
        pytest.param(Answer(404, {"detail": "Not Found"}), "404", id="no such page"),
        pytest.param(stream(), "shutting down", id="it drains"),
        pytest.param(Answer(body=b"data: x"), "breaks off", id="a part of a line"),
    ],
)
def test_what_the_server_says_no_to_is_said(answer: Answer, said: str, api: FakeApi) -> None:
    api.answers["GET /live"] = answer
    done = CliRunner().invoke(app, ["top", "--once"])
    assert done.exit_code == 1
    assert said in done.stderr
    assert KEY not in done.output


@pytest.mark.parametrize("arguments", [["--interval", "0.1"], ["--interval", "60"], ["--sort", "beauty"]])
def test_arguments_that_make_no_sense(arguments: list[str], api: FakeApi) -> None:
    assert CliRunner().invoke(app, ["top", *arguments]).exit_code == 2
    assert api.asked == []
