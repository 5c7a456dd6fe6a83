from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.fake_api import Answer, FakeApi, fake_api
from tproxy.cli import app
from tproxy.commands.spend import day

MASTER = "sk-master-0123456789"
TOTAL = {
    "exchanges": 1300,
    "failures": None,
    "prompt_tokens": 90,
    "completion_tokens": 80,
    "spend_nano": 2_000_000_001,
    "spend": 2.000000001,
    "unpriced": 3,
}
SUMS = {
    "by": "key",
    "rows": [
        {
            "id": "a" * 64,
            "alias": "alice\x1b[2J",
            "exchanges": 1200,
            "failures": 1,
            "prompt_tokens": 9,
            "completion_tokens": 8,
            "spend_nano": 1_250_000_000,
            "spend": 1.25,
            "unpriced": 0,
        }
    ],
    "total": TOTAL,
    "complete": False,
}


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with fake_api() as api:
        api.answers["GET /spend/by"] = Answer(body=SUMS)
        yield api


def run(server: FakeApi, *arguments: str, code: int = 0) -> Result:
    environ = {"TPROXY_MASTER_KEY": MASTER, "TPROXY_URL": server.url, "COLUMNS": "120"}
    result = CliRunner().invoke(app, ["spend", *arguments], env=environ)
    assert result.exit_code == code, (result.output, result.exception)
    assert MASTER not in result.output
    return result


@pytest.mark.parametrize("by", ["key", "team", "user", "customer", "tag", "model", "session"])
def test_what_is_asked_for(server: FakeApi, by: str) -> None:
    run(server, "--by", by)
    run(server, "--by", by, "--since", "2026-11-01", "--until", "2026-11-25", "--limit", "7")
    assert [asked.query for asked in server.asked] == [
        {"by": by, "limit": "50"},
        {"by": by, "since": "2026-11-01", "until": "2026-11-25", "limit": "7"},
    ]


def test_so_many_days_end_today(server: FakeApi) -> None:
    today = datetime.now(UTC).date()
    run(server, "--by", "key", "--since", "7d")
    first = date.fromisoformat(server.asked[0].query["since"])
    assert first - today in (timedelta(days=-6), timedelta(days=-5)), "the latter where midnight passes meanwhile"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("2026-11-25", "2026-11-25"),
        ("20261101", "2026-11-01"),
        ("1d", "2026-11-25"),
        ("7d", "2026-11-19"),
        ("1w", "2026-11-19"),
        ("1mo", "2026-10-27"),
    ],
)
def test_a_day_as_people_give_it(text: str, first: str) -> None:
    assert day(text, date(2026, 11, 25), "--since").isoformat() == first


@pytest.mark.parametrize("text", ["", "yesterday", "12h", "0d", "99999999d", "2026-13-01", "2026-11-25T00:00:00"])
def test_no_day(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be a day, such as 2026-11-25"):
        day(text, date(2026, 11, 25), "--since")


def test_a_table_and_json(server: FakeApi) -> None:
    shown = run(server, "--by", "key").stdout
    row = next(line.split() for line in shown.splitlines() if "alice" in line)
    assert row == ["alice\ufffd[2J", "1,200", "1", "9", "8", "1.250000000"]
    assert ["all", "exchanges", "1,300", "?", "90", "80", "2.000000001", "+", "?"] in map(str.split, shown.splitlines())
    assert "not all exchanges of these days were looked at" in shown
    assert "that cost most" not in shown
    assert json.loads(run(server, "--by", "key", "--json").stdout) == SUMS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--by colour", "'colour' is not one of"),
        ("--by key --since often", "'often' must be a day"),
        ("--by key --until 2026-99-99", "'2026-99-99' must be a day"),
        ("--by key --last 3", "it goes with neither --id nor --last"),
        ("--since 7d", "they need --by"),
        ("--by key --limit 0", "greater than or equal to 1"),
    ],
)
def test_a_slip_is_named_before_anything_is_asked(server: FakeApi, arguments: str, said: str) -> None:
    result = run(server, *arguments.split(), code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not server.asked


def test_more_than_was_asked_for(server: FakeApi) -> None:
    assert "the 1 that cost most; --limit shows more" in run(server, "--by", "key", "--limit", "1").stdout


@pytest.mark.parametrize("body", [[], {}, {"rows": None, "total": {}}, {"rows": ["x"], "total": {}}, {"rows": []}])
def test_sums_that_are_none(server: FakeApi, body: object) -> None:
    server.answers["GET /spend/by"] = Answer(body=body)
    result = run(server, "--by", "team", code=1)
    assert result.stderr == f"tproxy: {server.url} gave no sums: is it tproxy's?\n"
