from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.manage.spending import MASTER, TODAY, Office, digest, office
from tproxy.manage import activity, spend
from tproxy.manage.csv_text import csv_text, tame
from tproxy.store import base
from tproxy.store.subjects import CUSTOMER, TEAM, USER, VIEWER, Member, Subject

DOLLAR = 1_000_000_000
YESTERDAY = "2025-11-23"
SPAN: dict[str, Any] = {"start_date": YESTERDAY, "end_date": TODAY}
HAIKU, SONNET = "claude-haiku-4-5", "claude-sonnet-4-5"

METRICS = {
    "spend",
    "spend_nano",
    "prompt_tokens",
    "completion_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "total_tokens",
    "successful_requests",
    "failed_requests",
    "api_requests",
}
BREAKDOWN = {"mcp_servers", "models", "model_groups", "providers", "endpoints", "api_keys", "entities"}


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Office]:
    """Two keys of alice and one of bob, in two teams, on two days, with two models and two tags."""
    async with office(tmp_path) as o:
        for kind, id in ((USER, "alice"), (USER, "bob"), (CUSTOMER, "acme")):
            await o.desk.directory.create(Subject(kind=kind, id=id))
        await o.desk.directory.create(
            Subject(kind=TEAM, id="red", alias="Reds", members=(Member(user="bob", role="admin"),))
        )
        await o.desk.directory.create(Subject(kind=TEAM, id="blue"))
        keys = {
            "one": await o.key("one-of-alice", user="alice", team="red"),
            "two": await o.key("two-of-alice", user="alice", team="blue"),
            "bob": await o.key("one-of-bob", user="bob", team="blue"),
        }
        nobody: dict[str, Any] = {"user": None, "team": None, "customer": None, "tags": ()}
        for cost, changes in (
            (1 * DOLLAR, {"key": "one", "user": "alice", "team": "red", "tags": ("night", "ci")}),
            (2 * DOLLAR, {"key": "one", "user": "alice", "team": "red", "days_ago": 1, "tags": ("ci",)}),
            (4 * DOLLAR, {"key": "two", "user": "alice", "team": "blue", "model_served": HAIKU, "customer": "acme"}),
            (8 * DOLLAR + 1, {"key": "bob", "user": "bob", "team": "blue", "ended": base.CLIENT_GONE}),
            (16 * DOLLAR, {"days_ago": 1}),
            (32 * DOLLAR, {"key": "one", "user": "alice", "team": "red", "days_ago": 2}),
        ):
            key = changes.pop("key", None)
            caller = "anonymous" if key is None else f"key:{keys[str(key)]}"
            await o.exchange(cost, caller=caller, **(nobody | changes))
        yield o


def dollars(page: dict[str, Any]) -> float:
    nano = page["metadata"]["total_spend_nano"]
    assert nano == sum(day["metrics"]["spend_nano"] for day in page["results"])
    return float(nano // DOLLAR)


async def test_the_shape(busy: Office) -> None:
    page = await busy.get("/team/daily/activity", team_ids="red", start_date=TODAY, end_date=TODAY)
    (day,) = page["results"]
    figures = {
        "spend": 1.0,
        "spend_nano": DOLLAR,
        "prompt_tokens": 12 + 33 + 44 + 55,
        "completion_tokens": 22,
        "cache_read_input_tokens": 33,
        "cache_creation_input_tokens": 44 + 55,
        "total_tokens": 12 + 33 + 44 + 55 + 22,
        "successful_requests": 1,
        "failed_requests": 0,
        "api_requests": 1,
    }
    by_key = {
        digest("sk-one-of-alice"): {
            "metrics": figures,
            "metadata": {"key_alias": "one-of-alice", "team_id": "red", "user_id": "alice"},
        }
    }
    part = {"metrics": figures, "metadata": {}, "api_key_breakdown": by_key}
    assert day == {
        "date": TODAY,
        "metrics": figures,
        "breakdown": {
            "mcp_servers": {},
            "models": {SONNET: part},
            "model_groups": {SONNET: part},
            "providers": {"anthropic": part},
            "endpoints": {},
            "api_keys": by_key,
            "entities": {"red": part | {"metadata": {"team_alias": "Reds"}}},
        },
    }
    assert page["metadata"] == {
        "total_spend": 1.0,
        "total_spend_nano": DOLLAR,
        "total_prompt_tokens": 144,
        "total_completion_tokens": 22,
        "total_cache_read_input_tokens": 33,
        "total_cache_creation_input_tokens": 99,
        "total_tokens": 166,
        "total_successful_requests": 1,
        "total_failed_requests": 0,
        "total_api_requests": 1,
        "page": 1,
        "total_pages": 1,
        "has_more": False,
    }


async def test_the_parts_of_a_day_add_up(busy: Office) -> None:
    page = await busy.get("/user/daily/activity/aggregated", **SPAN)
    assert [day["date"] for day in page["results"]] == [TODAY, YESTERDAY], "the newest first"
    assert page["metadata"]["total_spend_nano"] == 31 * DOLLAR + 1
    assert page["metadata"]["total_failed_requests"] == 1
    for day in page["results"]:
        assert set(day["breakdown"]) == BREAKDOWN
        assert set(day["metrics"]) == METRICS
        for name in ("models", "providers", "api_keys"):
            for figure in METRICS - {"spend"}:
                parts = [part["metrics"][figure] for part in day["breakdown"][name].values()]
                assert sum(parts) == day["metrics"][figure], (name, figure)
    total = (await busy.get("/spend/by", by="key", since=YESTERDAY))["total"]
    assert total["spend_nano"] == page["metadata"]["total_spend_nano"]


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        pytest.param("/user/daily/activity", {}, 31, id="all"),
        pytest.param("/user/daily/activity", {"user_id": "alice"}, 7, id="a user"),
        pytest.param("/user/daily/activity", {"user_id": "nobody"}, 0, id="no user"),
        pytest.param("/user/daily/activity", {"user_id": "alice", "api_key": "sk-two-of-alice"}, 4, id="a key of hers"),
        pytest.param("/user/daily/activity", {"user_id": "alice", "api_key": "sk-one-of-bob"}, 0, id="none of hers"),
        pytest.param("/user/daily/activity", {"api_key": digest("sk-one-of-alice")}, 3, id="a key by its hash"),
        pytest.param("/user/daily/activity", {"api_key": "anonymous"}, 16, id="nobody in particular"),
        pytest.param("/user/daily/activity", {"model": HAIKU}, 4, id="a model"),
        pytest.param("/user/daily/activity", {"model": "no-such"}, 0, id="no model"),
        pytest.param("/user/daily/activity", {"start_date": TODAY}, 13, id="one day"),
        pytest.param("/user/daily/activity", {"start_date": "2025-11-22"}, 63, id="three days"),
        pytest.param("/user/daily/activity", {"start_date": "2024-01-01", "end_date": "2024-02-01"}, 0, id="before"),
        pytest.param("/team/daily/activity", {}, 15, id="all teams"),
        pytest.param("/team/daily/activity", {"team_ids": "red"}, 3, id="a team"),
        pytest.param("/team/daily/activity", {"team_ids": "red, blue,red"}, 15, id="two teams"),
        pytest.param("/team/daily/activity", {"exclude_team_ids": "red"}, 12, id="without a team"),
        pytest.param("/team/daily/activity", {"team_ids": "red,blue", "exclude_team_ids": "blue"}, 3, id="both"),
        pytest.param("/team/daily/activity", {"team_ids": "blue", "model": SONNET}, 8, id="a team with a model"),
        pytest.param("/team/daily/activity/aggregated", {"team_ids": "blue"}, 12, id="a team on one page"),
        pytest.param("/tag/daily/activity", {}, 4, id="each tag of an exchange"),
        pytest.param("/tag/daily/activity", {"tags": "night"}, 1, id="a tag"),
        pytest.param("/tag/daily/activity", {"tags": "ci", "start_date": TODAY}, 1, id="a tag on a day"),
        pytest.param("/customer/daily/activity", {}, 4, id="all customers"),
        pytest.param("/end_user/daily/activity", {"end_user_ids": "acme"}, 4, id="a customer"),
        pytest.param("/customer/daily/activity", {"exclude_end_user_ids": "acme"}, 0, id="without a customer"),
    ],
)
async def test_filters(busy: Office, path: str, query: dict[str, str], expected: float) -> None:
    assert dollars(await busy.get(path, **SPAN | query)) == expected


async def test_pages_hold_each_line_once(busy: Office) -> None:
    pages = [await busy.get("/user/daily/activity", page=page, page_size=2, **SPAN) for page in (1, 2, 3, 4)]
    assert [page["metadata"]["has_more"] for page in pages] == [True, True, False, False]
    assert {page["metadata"]["total_pages"] for page in pages} == {3}
    assert [page["metadata"]["total_api_requests"] for page in pages] == [2, 2, 1, 0]
    assert sum(page["metadata"]["total_spend_nano"] for page in pages) == 31 * DOLLAR + 1
    assert pages[3]["results"] == []


async def test_a_rotated_key_is_one_key(busy: Office) -> None:
    old, new = digest("sk-one-of-alice"), digest("sk-new-of-alice")
    await busy.ledger.write(
        lambda c: c.execute("INSERT INTO renamed (old, new) VALUES (?, ?)", (f"key:{old}", f"key:{new}"))
    )
    page = await busy.get("/user/daily/activity", start_date=TODAY, end_date=TODAY, api_key="sk-new-of-alice")
    assert dollars(page) == 1
    assert list(page["results"][0]["breakdown"]["api_keys"]) == [new]
    page = await busy.get("/user/daily/activity", start_date=TODAY, end_date=TODAY, api_key=old)
    assert list(page["results"][0]["breakdown"]["api_keys"]) == [old], "asked for by itself, it is shown as it stands"
    by_day = await busy.get("/spend/by/day", by="key", since=TODAY)
    assert {row["id"]: row["spend_nano"] for row in by_day["days"][0]["rows"]}[new] == DOLLAR


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        pytest.param({"end_date": TODAY}, 400, "start_date", id="no first day"),
        pytest.param({"start_date": TODAY}, 400, "end_date", id="no last day"),
        pytest.param({"start_date": TODAY, "end_date": YESTERDAY}, 422, "end_date", id="the wrong way round"),
        pytest.param({"start_date": "today", "end_date": TODAY}, 422, "start_date", id="no day"),
        pytest.param({"start_date": "2020-01-01", "end_date": TODAY}, 422, "end_date", id="too many days"),
        pytest.param(SPAN | {"page": "0"}, 422, "page", id="no page"),
        pytest.param(SPAN | {"page_size": "1001"}, 422, "page_size", id="too large a page"),
        pytest.param(SPAN | {"format": "xml"}, 422, "format", id="no format"),
        pytest.param(SPAN | {"team_ids": ",".join(map(str, range(1001)))}, 422, "team_ids", id="too many ids"),
    ],
)
async def test_what_is_refused(tmp_path: Path, query: dict[str, str], status: int, param: str) -> None:
    async with office(tmp_path) as o:
        assert await o.refused("/team/daily/activity", **query) == (status, param)


async def test_an_answer_is_bounded(busy: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "WHOLE_MAX", 4)
    monkeypatch.setattr(activity, "LINES_MAX", 4)
    monkeypatch.setattr(spend, "BY_DAY_MAX", 4)
    assert await busy.refused("/spend/by/day", by="key", since=YESTERDAY) == (422, "limit")
    assert len((await busy.get("/spend/by/day", by="key", since=YESTERDAY, limit=2))["rows"]) == 2
    assert await busy.refused("/user/daily/activity/aggregated", **SPAN) == (422, "end_date")
    assert await busy.refused("/user/daily/activity", format="csv", **SPAN) == (422, "end_date")
    assert dollars(await busy.get("/user/daily/activity", page_size=1, **SPAN)) in (8, 4, 1)
    assert dollars(await busy.get("/user/daily/activity/aggregated", model=HAIKU, **SPAN)) == 4


@pytest.fixture
async def asking(busy: Office) -> Office:
    """With keys that have a role, or nobody, or certain routes only."""
    await busy.key("reader", role=VIEWER)
    await busy.key("nobodys")
    await busy.key("narrow", user="alice", team="red", routes=("/v1/messages",))
    return busy


@pytest.mark.parametrize(
    ("key", "path", "query", "expected"),
    [
        pytest.param("reader", "/user/daily/activity", {}, 31, id="a role: all"),
        pytest.param("reader", "/user/daily/activity", {"user_id": "bob"}, 8, id="a role: anybody"),
        pytest.param("reader", "/customer/daily/activity", {}, 4, id="a role: customers"),
        pytest.param("one-of-alice", "/user/daily/activity", {}, 7, id="her own"),
        pytest.param("one-of-alice", "/user/daily/activity", {"user_id": "alice"}, 7, id="her own by name"),
        pytest.param("one-of-alice", "/user/daily/activity/aggregated", {"user_id": "bob"}, 403, id="another's"),
        pytest.param("one-of-alice", "/user/daily/activity", {"api_key": "sk-one-of-bob"}, 0, id="another's key"),
        pytest.param("nobodys", "/user/daily/activity", {}, 0, id="a key of nobody: itself"),
        pytest.param("nobodys", "/user/daily/activity", {"api_key": "sk-one-of-bob"}, 403, id="not another"),
        pytest.param("nobodys", "/user/daily/activity", {"user_id": "bob"}, 403, id="nor a user"),
        pytest.param("narrow", "/user/daily/activity", {}, 0, id="certain routes: itself"),
        pytest.param("narrow", "/user/daily/activity", {"user_id": "alice"}, 403, id="certain routes: not its user"),
        pytest.param("one-of-alice", "/team/daily/activity", {}, 3, id="her part of her team"),
        pytest.param("two-of-alice", "/team/daily/activity", {}, 4, id="and not the whole of it"),
        pytest.param("two-of-alice", "/team/daily/activity", {"team_ids": "red"}, 403, id="another team"),
        pytest.param("two-of-alice", "/team/daily/activity", {"api_key": "sk-one-of-bob"}, 403, id="a mate's key"),
        pytest.param("one-of-bob", "/team/daily/activity", {"team_ids": "red"}, 3, id="the team's admin: all of it"),
        pytest.param("one-of-bob", "/team/daily/activity", {"team_ids": "red,blue"}, 403, id="but not two"),
        pytest.param("nobodys", "/team/daily/activity", {}, 422, id="no team"),
        pytest.param("one-of-alice", "/tag/daily/activity", {"tags": "ci"}, 3, id="her part of a tag"),
        pytest.param("two-of-alice", "/tag/daily/activity", {}, 0, id="none of a tag"),
        pytest.param("two-of-alice", "/tag/daily/activity", {"api_key": "sk-one-of-alice"}, 403, id="not by her other"),
        pytest.param("one-of-alice", "/customer/daily/activity", {}, 403, id="customers need a role"),
        pytest.param("one-of-alice", "/spend/by/day", {}, 403, id="sums by day need a role"),
        pytest.param("one-of-alice", "/global/spend/provider", {}, 403, id="the whole needs a role"),
        pytest.param("one-of-alice", "/global/spend/all_tag_names", {}, 403, id="so do tags"),
        pytest.param("one-of-alice", "/global/all_end_users", {}, 403, id="and customers"),
    ],
)
async def test_who_sees_what(asking: Office, key: str, path: str, query: dict[str, str], expected: int) -> None:
    answer = await asking.ask(path, key=f"sk-{key}", **SPAN | query)
    if expected >= 400:
        assert answer.status_code == expected
        return
    assert answer.status_code == 200, answer.text
    assert dollars(answer.json()) == expected
    table = await asking.ask(path, key=f"sk-{key}", format="csv", **SPAN | query)
    assert sum(int(row["spend_nano"]) for row in rows_of(table.text)) // DOLLAR == expected, "CSV shows no more"


@pytest.mark.parametrize(
    ("key", "path", "query", "expected"),
    [
        pytest.param("one-of-alice", "/key/spend/report", {}, 3, id="itself"),
        pytest.param("one-of-alice", "/key/spend/report", {"api_key": "sk-one-of-alice"}, 3, id="itself by name"),
        pytest.param("one-of-alice", "/key/spend/report", {"api_key": "sk-one-of-bob"}, 403, id="another"),
        pytest.param("one-of-alice", "/user/spend/report", {}, 7, id="its user"),
        pytest.param("one-of-alice", "/user/spend/report", {"internal_user_id": "bob"}, 403, id="another user"),
        pytest.param("one-of-alice", "/team/spend/report", {}, 3, id="its team"),
        pytest.param("one-of-alice", "/team/spend/report", {"team_id": "blue"}, 403, id="another team"),
        pytest.param("reader", "/key/spend/report", {"api_key": "sk-one-of-bob"}, 8, id="a role: any key"),
        pytest.param("reader", "/user/spend/report", {}, 31, id="a role: all users"),
        pytest.param("reader", "/team/spend/report", {"team_id": "blue"}, 12, id="a role: any team"),
    ],
)
async def test_reports_of_what_is_ones_own(
    asking: Office, key: str, path: str, query: dict[str, str], expected: int
) -> None:
    answer = await asking.ask(path, key=f"sk-{key}", **SPAN | query)
    if expected >= 400:
        assert answer.status_code == expected
        return
    rows = answer.json()
    assert int(sum(row["total_cost"] for row in rows)) == expected
    for row in rows:
        assert set(row) == {"api_key", "total_cost", "total_input_tokens", "total_output_tokens", "model_details"}
        for name in ("total_cost", "total_input_tokens", "total_output_tokens"):
            assert row[name] == sum(model[name] for model in row["model_details"])
    assert (await asking.ask(path, key=f"sk-{key}")).status_code == 400, "it needs days"


async def test_the_master_key_has_no_spend_report_of_its_own(busy: Office) -> None:
    assert await busy.refused("/key/spend/report", **SPAN) == (422, "api_key")


async def test_providers_tags_and_customers(busy: Office) -> None:
    assert await busy.get("/global/spend/provider", **SPAN) == [{"provider": "anthropic", "spend": 31.000000001}]
    assert await busy.get("/global/spend/provider", start_date="2024-01-01", end_date="2024-01-02") == []
    assert await busy.get("/global/spend/all_tag_names") == {"tag_names": ["ci", "night"]}
    assert await busy.get("/global/spend/all_tag_names", limit=1) == {"tag_names": ["ci"]}
    assert await busy.get("/global/all_end_users") == {"end_users": ["acme"]}


@pytest.mark.parametrize("by", ["key", "team", "user", "customer", "tag", "model"])
async def test_sums_by_day_are_those_of_all_days(busy: Office, by: str) -> None:
    page = await busy.get("/spend/by/day", by=by, since=YESTERDAY)
    whole = await busy.get("/spend/by", by=by, since=YESTERDAY)
    assert {name: page[name] for name in whole} == whole
    assert [day["day"] for day in page["days"]] == [YESTERDAY, TODAY]
    assert page["rows"]
    for name in ("spend_nano", "exchanges", "failures", "prompt_tokens", "completion_tokens", "unpriced"):
        assert sum(day[name] for day in page["days"]) == page["total"][name]
        for row in page["rows"]:
            days = [each[name] for day in page["days"] for each in day["rows"] if each["id"] == row["id"]]
            assert sum(days) == row[name], (row["id"], name)


async def test_sums_by_day_of_the_dearest(busy: Office) -> None:
    page = await busy.get("/spend/by/day", by="user", since="2025-11-22", limit=1)
    assert [row["id"] for row in page["rows"]] == ["alice"]
    assert {each["id"] for day in page["days"] for each in day["rows"]} == {"alice"}
    assert page["total"]["spend_nano"] == 63 * DOLLAR + 1
    thirty = await busy.get("/spend/by/day", by="user")
    assert (thirty["since"], thirty["until"]) == ("2025-10-26", TODAY)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


async def test_activity_as_csv(busy: Office) -> None:
    answer = await busy.ask("/team/daily/activity", format="csv", page_size=1, **SPAN)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == f'attachment; filename="activity-{YESTERDAY}-{TODAY}.csv"'
    rows = rows_of(answer.text)
    assert [(row["date"], row["team_id"]) for row in rows] == [
        (YESTERDAY, "red"),
        (TODAY, "blue"),
        (TODAY, "blue"),
        (TODAY, "red"),
    ]
    assert rows[0] == {
        "date": YESTERDAY,
        "team_id": "red",
        "team_alias": "Reds",
        "api_key": digest("sk-one-of-alice"),
        "key_alias": "one-of-alice",
        "model": SONNET,
        "api_requests": "1",
        "successful_requests": "1",
        "failed_requests": "0",
        "prompt_tokens": "145",
        "completion_tokens": "22",
        "cache_read_input_tokens": "33",
        "cache_creation_input_tokens": "99",
        "total_tokens": "167",
        "spend_nano": "2000000000",
        "spend_usd": "2.0",
        "unpriced": "0",
    }
    assert "8.000000001" in {row["spend_usd"] for row in rows}, "exact"
    whole = await busy.ask("/user/daily/activity", format="csv", **SPAN)
    assert list(rows_of(whole.text)[0])[:4] == ["date", "api_key", "key_alias", "model"]


@pytest.mark.parametrize(
    ("path", "query", "columns"),
    [
        ("/spend/by", {"by": "team"}, ["team", "alias"]),
        ("/spend/by", {"by": "session"}, ["session", "alias"]),
        ("/global/spend/report", {}, ["day", "team_id", "team_alias"]),
        ("/global/spend/report", {"group_by": "key", "period": "month"}, ["month", "api_key", "key_alias"]),
        ("/global/spend/report", {"group_by": "model", "period": "week"}, ["week", "model"]),
        ("/global/spend/report", {"internal_user_id": "alice"}, ["api_key", "key_alias", "model"]),
        ("/global/spend/report", {"api_key": "sk-one-of-bob"}, ["api_key", "key_alias", "model"]),
    ],
)
async def test_other_reports_as_csv(busy: Office, path: str, query: dict[str, str], columns: list[str]) -> None:
    answer = await busy.ask(path, format="csv", **query)
    figures = ["exchanges", "failures", "prompt_tokens", "completion_tokens", "spend_nano", "spend_usd", "unpriced"]
    rows = rows_of(answer.text)
    assert rows
    assert list(rows[0]) == columns + figures
    assert answer.headers["content-disposition"].startswith('attachment; filename="spend-by-')
    shown = (await busy.get(path, **query)) if path == "/spend/by" else None
    if shown is not None:
        assert [int(row["spend_nano"]) for row in rows] == [row["spend_nano"] for row in shown["rows"]]


async def test_a_report_as_csv_has_what_the_report_has(busy: Office) -> None:
    rows = rows_of((await busy.ask("/global/spend/report", format="csv", group_by="user")).text)
    report = await busy.get("/global/spend/report", group_by="user")
    assert {(row["day"], row["user"]): float(row["spend_usd"]) for row in rows} == {
        (day["group_by_day"][:10], user["user"]): user["total_spend"] for day in report for user in day["users"]
    }


@pytest.mark.parametrize(
    ("accept", "format", "is_csv"),
    [
        ("text/csv", None, True),
        ("text/csv;q=1, */*", None, True),
        ("TEXT/CSV", None, True),
        ("text/csv", "json", False),
        ("application/json", "csv", True),
        ("application/json, text/csv", None, False),
        ("*/*", None, False),
    ],
)
async def test_who_asks_for_csv(tmp_path: Path, accept: str, format: str | None, is_csv: bool) -> None:
    async with office(tmp_path) as o:
        headers = {"authorization": f"Bearer {MASTER}", "accept": accept}
        answer = await o.client.get("/spend/by", headers=headers, params={"format": format} if format else {})
        assert answer.headers["content-type"].startswith("text/csv") is is_csv


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("a=1", "a=1"),
        ("'=1", "'=1"),
        ("", ""),
        ('Zoë, "Z"\n', 'Zoë, "Z"\n'),
    ],
)
def test_no_cell_is_a_formula(text: str, written: str) -> None:
    assert tame(text) == written
    (row,) = csv.DictReader(io.StringIO(csv_text(("name", "n"), [(text, -1)]), newline=""))
    assert row == {"name": written, "n": "-1"}, "a number stays one"


def test_lines_and_empty_cells() -> None:
    assert csv_text(("a", "b"), [(None, 1), ('x"y', "1,2")]) == 'a,b\r\n,1\r\n"x""y","1,2"\r\n'


async def test_names_of_users_are_tamed_in_answers(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("formula", alias='=cmd|"/c calc"!A1')
        await o.exchange(caller=f"key:{key}", tags=("@tag",))
        await o.exchange(caller=f"key:{key}", tags=("Zoë",), days_ago=1)
        (row,) = rows_of((await o.ask("/spend/by", format="csv")).text)
        assert row["alias"] == '\'=cmd|"/c calc"!A1'
        tags = rows_of((await o.ask("/tag/daily/activity", format="csv", **SPAN)).text)
        assert [row["tag"] for row in tags] == ["Zoë", "'@tag"]
        report = rows_of((await o.ask("/global/spend/report", format="csv", group_by="tag")).text)
        assert report[1]["tag"] == "'@tag"


async def test_what_is_kept_when_exchanges_go(busy: Office) -> None:
    before = await busy.get("/user/daily/activity", **SPAN)
    await busy.ledger.write(lambda c: c.execute("DELETE FROM exchange"))
    after = await busy.get("/user/daily/activity", **SPAN)
    assert after["metadata"] == before["metadata"]
    assert await busy.desk.look(lambda c: c.execute("SELECT count(*) FROM exchange").fetchone()[0]) == 0
