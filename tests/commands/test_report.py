from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.fake_api import Answer, Asked, FakeApi, fake_api
from tproxy.cli import app
from tproxy.commands import report_charts as charts
from tproxy.commands.report import By, Format, days, report, whole_month
from tproxy.commands.report_figures import REST, figures_of, table_of
from tproxy.commands.report_html import page, span_of
from tproxy.manage import spend

MASTER = "sk-master-0123456789"
EVIL = '<script>alert(1)</script>"\x1b[2J'
FORMULA = "=1+1"
FIRST, LAST = date(2026, 11, 1), date(2026, 11, 30)
NOW = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)


def figures(nano: int, exchanges: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "exchanges": exchanges,
        "failures": 0,
        "prompt_tokens": 100 * exchanges,
        "completion_tokens": 10 * exchanges,
        "spend_nano": nano,
        "spend": nano / 1e9,
        "unpriced": 0,
    } | changes


ANSWER: dict[str, Any] = {
    "by": "team",
    "rows": [
        {"id": "red", "alias": EVIL} | figures(1_500_000_000_001, 3, failures=1),
        {"id": FORMULA, "alias": None} | figures(4_000_000_000, 2),
    ],
    "total": figures(1_507_000_000_003, 9, failures=2, unpriced=1),
    "days": [
        {"day": "2026-11-03", "rows": [{"id": "red"} | figures(1_000_000_000_000, 2, failures=1)]}
        | figures(1_000_000_000_000, 2, failures=1),
        {
            "day": "2026-11-30",
            "rows": [{"id": "red"} | figures(500_000_000_001), {"id": FORMULA} | figures(4_000_000_000, 2)],
        }
        | figures(507_000_000_003, 7, failures=1, unpriced=1),
    ],
    "complete": True,
}
NOTHING: dict[str, Any] = {"by": "team", "rows": [], "total": figures(0, 0), "days": [], "complete": True}


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with fake_api() as api:
        api.answers["GET /spend/by/day"] = Answer(body=ANSWER)
        yield api


def run(server: FakeApi, *arguments: str, code: int = 0) -> Result:
    environ = {"TPROXY_MASTER_KEY": MASTER, "TPROXY_URL": server.url, "COLUMNS": "120"}
    result = CliRunner().invoke(app, ["report", *arguments], env=environ)
    assert result.exit_code == code, (result.output, result.exception)
    assert MASTER not in result.output
    return result


@pytest.mark.parametrize(
    ("month", "first", "last"),
    [
        ("2026-11", "2026-11-01", "2026-11-30"),
        ("2026-12", "2026-12-01", "2026-12-31"),
        ("2026-02", "2026-02-01", "2026-02-28"),
        ("2028-02", "2028-02-01", "2028-02-29"),
        ("2100-02", "2100-02-01", "2100-02-28"),
        ("0001-01", "0001-01-01", "0001-01-31"),
        ("9999-12", "9999-12-01", "9999-12-31"),
    ],
)
def test_a_month(month: str, first: str, last: str) -> None:
    assert tuple(map(str, whole_month(month))) == (first, last)


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-00", "0000-01", "2026-1", "2026-11-01", "November", "\uff12026-11"]
)
def test_no_month(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be a month, such as 2026-11"):
        whole_month(text)


@pytest.mark.parametrize(
    ("given", "first", "last"),
    [
        pytest.param((None, None, None), "2026-11-01", "2026-11-30", id="this month"),
        pytest.param(("2026-10", None, None), "2026-10-01", "2026-10-31", id="a month"),
        pytest.param((None, "2026-11-20", None), "2026-11-20", "2026-11-25", id="until today"),
        pytest.param((None, "7d", None), "2026-11-19", "2026-11-25", id="so many days"),
        pytest.param((None, "2026-10-30", "2026-11-02"), "2026-10-30", "2026-11-02", id="over a month's end"),
        pytest.param((None, "2026-11-25", "2026-11-25"), "2026-11-25", "2026-11-25", id="one day"),
    ],
)
def test_the_days_of_a_report(given: tuple[str | None, str | None, str | None], first: str, last: str) -> None:
    assert tuple(map(str, days(*given, date(2026, 11, 25)))) == (first, last)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--by colour", "'colour' is not one of"),
        ("--by session", "'session' is not one of"),
        ("--month 2026-13", "'2026-13' must be a month"),
        ("--month 2026-11 --since 7d", "either a month, or --since and --until"),
        ("--until 2026-11-25", "it needs --since"),
        ("--since 2026-11-25 --until 2026-11-01", "2026-11-01 comes before 2026-11-25"),
        ("--since often", "'often' must be a day"),
        ("--format pdf", "'pdf' is not one of"),
        ("--out report.txt", "a table is for the terminal"),
        ("--format table --out report.csv", "a table is for the terminal"),
    ],
)
def test_a_slip_is_named_before_anything_is_asked(server: FakeApi, arguments: str, said: str) -> None:
    result = run(server, *arguments.split(), code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not server.asked


@pytest.mark.parametrize("by", ["team", "user", "key", "customer", "tag", "model"])
def test_what_is_asked_for(server: FakeApi, by: str) -> None:
    run(server, "--month", "2026-11", "--by", by)
    (asked,) = server.asked
    assert asked.query == {"by": by, "since": "2026-11-01", "until": "2026-11-30", "limit": "100"}


def test_of_very_many_days_fewer_groups_are_asked_for(server: FakeApi) -> None:
    server.answers["GET /spend/by/day"] = Answer(body=NOTHING)
    run(server, "--since", "2024-01-01", "--until", "2026-12-31")
    (asked,) = server.asked
    assert asked.query["limit"] == "36"
    assert int(asked.query["limit"]) * 1096 <= spend.BY_DAY_MAX, "as the server takes it"


def test_a_table(server: FakeApi) -> None:
    shown = run(server, "--month", "2026-11").stdout
    lines = [line.split() for line in shown.splitlines()]
    assert ["(none", "or", "others)", "4", "1", "400", "40", "3.000000002", "+", "?"] in lines
    assert ["all", "exchanges", "9", "2", "900", "90", "1507.000000003", "+", "?"] in lines
    assert "2026-11-01 to 2026-11-30, days of UTC" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", ["90", "200"])
def test_a_table_fits_the_terminal(server: FakeApi, width: str) -> None:
    environ = {"TPROXY_MASTER_KEY": MASTER, "TPROXY_URL": server.url, "COLUMNS": width}
    shown = CliRunner().invoke(app, ["report", "--month", "2026-11"], env=environ).stdout
    assert "1507.000000003" in shown, "a figure is never cut"
    assert max(map(len, shown.splitlines())) <= int(width)


def test_csv_adds_up_to_the_total(server: FakeApi, tmp_path: Path) -> None:
    out = tmp_path / "report.csv"
    result = run(server, "--month", "2026-11", "--out", str(out))
    assert (result.stdout, "".join(result.stderr.split())) == ("", f"written:{out}")
    content = out.read_bytes().decode()
    assert content == run(server, "--month", "2026-11", "--format", "csv").stdout_bytes.decode()
    assert content.count("\r\n") == 5
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [(row["day"], row["team"], row["name"], row["spend_nano"], row["spend_usd"]) for row in rows] == [
        ("2026-11-03", "red", EVIL, "1000000000000", "1000.0"),
        ("2026-11-30", "red", EVIL, "500000000001", "500.000000001"),
        ("2026-11-30", "'=1+1", "'=1+1", "4000000000", "4.0"),
        ("2026-11-30", "", REST, "3000000002", "3.000000002"),
    ]
    for name in ("exchanges", "failures", "prompt_tokens", "completion_tokens", "spend_nano"):
        assert sum(int(row[name]) for row in rows) == ANSWER["total"][name]


class Terminal(io.StringIO):
    """A stdout that people look at."""

    def isatty(self) -> bool:
        return True


def test_csv_steers_no_terminal(server: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPROXY_MASTER_KEY", MASTER)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    report(By.team, Format.csv, None, server.url, month="2026-11", since=None, until=None)
    assert "\x1b" not in terminal.getvalue()
    assert "\ufffd[2J" in terminal.getvalue()
    assert len(terminal.getvalue().splitlines()) == 5


class Page(HTMLParser):
    """What a browser makes of a page."""

    VOID = ("meta", "rect", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed in its place"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def html(answer: dict[str, Any] = ANSWER, by: str = "team", first: date = FIRST, last: date = LAST) -> str:
    return page(figures_of(answer, by, first, last), NOW)


def test_a_page_stands_by_itself() -> None:
    text = html()
    parsed = Page(text)
    assert not parsed.open
    assert not {"script", "link", "img", "iframe", "object", "form", "a", "use", "image"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} | ({"src", "href", "style"} & names)
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?:", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text


def test_what_others_named_is_no_markup() -> None:
    text = html()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;\ufffd[2J" in text
    assert "<script>alert(1)</script>" in Page(text).text, "it is read as it is"


def test_the_figures_of_a_page() -> None:
    parsed = Page(html())
    groups, by_day = parsed.tables
    assert [line[0] for line in groups] == ["team", EVIL.replace("\x1b", "\ufffd"), FORMULA, REST, "all exchanges"]
    assert [line[5] for line in groups[1:]] == [
        "1,500.000000001",
        "4.000000000",
        "3.000000002 + ?",
        "1,507.000000003 + ?",
    ]
    assert [line[6] for line in groups[1:]] == ["99.5 %", "0.2 %", "0.1 %", ""]
    assert [line[0] for line in by_day[1:]] == ["2026-11-03", "2026-11-30", "all exchanges"]
    assert "November 2026, days of UTC" in parsed.text
    assert "Days are those of UTC" in parsed.text
    assert "1 of the calls have tokens whose price is not known" in parsed.text
    assert "not over yet" not in parsed.text


def test_a_month_that_goes_on_says_so() -> None:
    found = figures_of(ANSWER, "team", FIRST, LAST)
    assert "not over yet, as of 2026-11-30 23:59 UTC" in page(found, datetime(2026, 11, 30, 23, 59, tzinfo=UTC))
    assert "not over yet" not in page(found, datetime(2026, 12, 1, tzinfo=UTC))


def test_an_empty_month(server: FakeApi) -> None:
    server.answers["GET /spend/by/day"] = Answer(body=NOTHING)
    shown = run(server, "--month", "2026-11", "--format", "html").stdout
    parsed = Page(shown)
    assert "There was no exchange in this time." in parsed.text
    assert "svg" not in parsed.tags
    assert run(server, "--month", "2026-11", "--format", "csv").stdout.splitlines() == [
        "day,team,name,exchanges,failures,prompt_tokens,completion_tokens,spend_nano,spend_usd,unpriced"
    ]
    assert "all exchanges" in run(server, "--month", "2026-11").stdout


def test_exchanges_that_cost_nothing() -> None:
    free = NOTHING | {
        "rows": [{"id": "red", "alias": None} | figures(0)],
        "total": figures(0),
        "days": [{"day": "2026-11-01", "rows": [{"id": "red"} | figures(0)]} | figures(0)],
    }
    groups, _ = Page(html(free)).tables
    assert groups[1][0] == "red"
    assert groups[1][6] == ""


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (date(2026, 2, 1), date(2026, 2, 28), "February 2026"),
        (date(2028, 2, 1), date(2028, 2, 28), "2028-02-01 to 2028-02-28"),
        (date(2026, 11, 2), date(2026, 11, 30), "2026-11-02 to 2026-11-30"),
        (date(2026, 11, 1), date(2026, 12, 31), "2026-11-01 to 2026-12-31"),
        (date(2026, 11, 1), date(2026, 11, 1), "2026-11-01"),
        (date(9999, 12, 1), date(9999, 12, 31), "December 9999"),
    ],
)
def test_a_span_for_people(first: date, last: date, shown: str) -> None:
    assert span_of(figures_of(NOTHING, "team", first, last)) == shown


def test_bars_hold_all_that_was_spent() -> None:
    found = figures_of(ANSWER, "team", FIRST, LAST)
    bars = charts.bars_of(found)
    assert [bar.label for bar in bars] == [f"{day} Nov" for day in range(1, 31)]
    assert sum(bar.total_nano for bar in bars) == found.total.spend_nano
    assert [bar.parts for bar in bars if bar.parts] == [
        [(0, 1_000_000_000_000)],
        [(0, 500_000_000_001), (1, 4_000_000_000), (2, 3_000_000_002)],
    ]


def test_many_days_are_shown_by_month() -> None:
    bars = charts.bars_of(figures_of(ANSWER, "team", date(2026, 9, 15), date(2026, 12, 31)))
    assert [(bar.label, bar.total_nano) for bar in bars] == [
        ("Sep 2026", 0),
        ("Oct 2026", 0),
        ("Nov 2026", 1_507_000_000_003),
        ("Dec 2026", 0),
    ]
    assert "Spend by month" in html(first=date(2026, 9, 15), last=date(2026, 12, 31))


def test_more_groups_than_colours_and_bars() -> None:
    rows = [{"id": f"team-{number}", "alias": None} | figures(10**9 - number) for number in range(30)]
    total = figures(sum(row["spend_nano"] for row in rows), 30)
    many = NOTHING | {"rows": rows, "total": total, "days": [{"day": "2026-11-01", "rows": rows} | total]}
    text = html(many)
    (bar,) = [bar for bar in charts.bars_of(figures_of(many, "team", FIRST, LAST)) if bar.parts]
    assert [series for series, _ in bar.parts] == [*range(charts.SERIES), charts.SERIES]
    assert sum(nano for _, nano in bar.parts) == total["spend_nano"]
    assert "all others" in text
    assert "and 15 more, in the table below" in text


def test_tags_overlap_and_are_not_stacked() -> None:
    rows = [{"id": name, "alias": None} | figures(2_000_000_000, 2) for name in ("ci", "night")]
    both = NOTHING | {"rows": rows, "total": figures(2_000_000_000, 2)}
    both["days"] = [{"day": "2026-11-01", "rows": rows} | both["total"]]
    found = figures_of(both, "tag", FIRST, LAST)
    assert [row.id for row in found.rows] == ["ci", "night"], "no rest"
    assert charts.bars_of(found)[0].parts == [(0, 2_000_000_000)]
    assert "A call counts for each of its tags" in page(found, NOW)
    assert len(table_of(found)[1]) == 2


@pytest.mark.parametrize(
    ("nano", "top"), [(0, 4), (4, 4), (5, 6), (33, 40), (81, 100), (86_000_000_000, 10**11), (10**11 + 1, 12 * 10**10)]
)
def test_the_top_of_the_scale(nano: int, top: int) -> None:
    assert charts._round_up(nano) == top


def changed(**changes: Any) -> dict[str, Any]:
    return ANSWER | changes


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([], id="a list"),
        pytest.param({}, id="nothing"),
        pytest.param(changed(rows=None), id="no rows"),
        pytest.param(changed(rows=["x"]), id="rows that are none"),
        pytest.param(changed(rows=[{"id": "a"}]), id="a row without figures"),
        pytest.param(changed(rows=[{"id": 3, "alias": None} | figures(1)]), id="an id that is none"),
        pytest.param(changed(rows=[{"id": "a", "alias": 3} | figures(1)]), id="an alias that is none"),
        pytest.param(changed(rows=[{"id": "a"} | figures(1) | {"exchanges": True}]), id="a figure that is none"),
        pytest.param(changed(rows=[{"id": "a"} | figures(10**15)]), id="rows above the total"),
        pytest.param(changed(total=figures(1)), id="another total"),
        pytest.param(changed(days=[]), id="days that do not add up"),
        pytest.param(changed(days=[{"day": "soon", "rows": []} | figures(1)]), id="a day that is none"),
    ],
)
def test_an_answer_that_is_none(server: FakeApi, body: object) -> None:
    server.answers["GET /spend/by/day"] = Answer(body=body)
    result = run(server, "--month", "2026-11", code=1)
    assert result.stderr.startswith(f"tproxy: {server.url} gave no report (")


def test_a_file_that_cannot_be_written(server: FakeApi, tmp_path: Path) -> None:
    out = tmp_path / "none" / "report.html"
    said = " ".join(run(server, "--out", str(out), code=1).stderr.split())
    assert said.startswith("tproxy: cannot write")
    assert "No such file or directory" in said


def test_what_the_server_refuses(server: FakeApi, tmp_path: Path) -> None:
    def refuse(asked: Asked) -> Answer:
        return Answer(403, {"error": {"message": "This route needs a role."}})

    server.answers["GET /spend/by/day"] = refuse
    out = tmp_path / "report.html"
    assert "says 403" in run(server, "--out", str(out), code=1).stderr
    assert not out.exists()
