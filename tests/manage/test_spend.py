from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.manage.spending import DAY_US, MASTER, NOW_US, TODAY, digest, office
from tests.store.laws import T0
from tproxy.manage import global_spend, logs_page
from tproxy.store import base, money
from tproxy.store.subjects import CUSTOMER, KEY, TEAM, USER, VIEWER, Budget, Subject, Terms

DOLLAR = 1_000_000_000
YESTERDAY = "2025-11-23"
READS = (
    "/spend/logs",
    "/spend/logs/v2",
    "/spend/by",
    "/spend/keys",
    "/spend/users",
    "/spend/tags",
    "/global/spend",
    "/global/spend/report",
    "/global/spend/logs",
    "/global/spend/keys",
    "/global/spend/models",
    "/global/spend/end_users",
    "/global/spend/tags",
    "/global/spend/teams",
    "/global/activity",
    "/global/activity/model",
)


async def test_a_row_is_as_programs_for_litellm_read_it(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.desk.directory.create(Subject(kind=TEAM, id="core", alias="The core"))
        id = await o.exchange(13_408_000, caller="key:" + "a" * 64, expected_nano=5, agent="g-1", parent_agent="g-0")
        (row,) = await o.get("/spend/logs", request_id=id)
        start, content, end = (datetime.fromisoformat(row.pop(name)) for name in _TIMES)
        assert (start.timestamp() * 1e6, str(start.tzinfo)) == (T0 + 1000, "UTC")
        assert ((content - start).total_seconds(), (end - start).total_seconds()) == (0.3, 0.9)
        tproxy = row["metadata"].pop("tproxy")
        assert row == {
            "request_id": id,
            "call_type": "pass_through_endpoint",
            "api_base": "https://api.anthropic.com/v1/messages",
            "custom_llm_provider": "anthropic",
            "spend": 0.013408,
            "prompt_tokens": 12 + 33 + 44 + 55,
            "completion_tokens": 22,
            "total_tokens": 12 + 33 + 44 + 55 + 22,
            "request_duration_ms": 900,
            "request_tags": ["a", "ü,\n\"'", "b"],
            "end_user": "acme & sons, gmbh €",
            "model": "claude-sonnet-4-5",
            "model_group": "claude-sonnet-4-5",
            "api_key": "a" * 64,
            "team_id": "core",
            "user": "ada",
            "session_id": "s-1",
            "cache_hit": "False",
            "status": "success",
            "requester_ip_address": "127.0.0.1:50000",
            "metadata": {
                "user_api_key": "a" * 64,
                "user_api_key_alias": "build",
                "user_api_key_team_id": "core",
                "user_api_key_team_alias": "The core",
                "user_api_key_user_id": "ada",
                "spend_logs_metadata": None,
            },
        }
        expected = {
            "ended": "finished",
            "certainty": "exact",
            "cost_nano": 13_408_000,
            "expected_nano": 5,
            "agent": "g-1",
            "parent_agent": "g-0",
            "stop_reason": "end_turn",
            "request_id": "req_1",
            "http_status": 200,
            "cost_output_nano": 2,
        }
        assert {name: tproxy[name] for name in expected} == expected


_TIMES = ("startTime", "completionStartTime", "endTime")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, {"status": "success"}, id="a good one"),
        pytest.param({"ended": base.REFUSED, "status": 529}, {"status": "failure"}, id="refused by the upstream"),
        pytest.param({"status": 404}, {"status": "failure"}, id="whole, and an error"),
        pytest.param({"ended": base.CLIENT_GONE}, {"status": "failure"}, id="cut"),
        pytest.param({"cost_nano": None, "certainty": base.UNPRICED}, {"spend": 0.0}, id="unpriced"),
        pytest.param({"model_asked": None}, {"model": "", "model_group": ""}, id="no model"),
        pytest.param({"model_served": "m"}, {"model": "m"}, id="the model that served"),
        pytest.param({"customer": None, "user": None}, {"end_user": "", "user": ""}, id="nobody in particular"),
        pytest.param({"caller": "master"}, {"api_key": "master"}, id="the master key"),
        pytest.param({"output_tokens": None}, {"completion_tokens": 0, "total_tokens": 144}, id="not told"),
    ],
)
async def test_what_is_unknown_has_a_value_all_the_same(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    async with office(tmp_path) as o:
        await o.exchange(**changes)
        (row,) = await o.get("/spend/logs")
        assert {name: row[name] for name in expected} == expected


async def test_a_row_without_content_is_complete_at_its_end(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.exchange(first_content_us=None)
        (row,) = await o.get("/spend/logs")
        assert row["completionStartTime"] == row["endTime"] > row["startTime"]


async def test_logs_are_found_by_each_name(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234")
        fields: dict[str, Any] = {"user": "u", "team": "t", "customer": "c", "session": "s", "tags": ("x",)}
        mine = await o.exchange(caller=f"key:{key}", **fields)
        by_master = await o.exchange(caller="master")
        for name, value in (
            ("request_id", mine),
            ("api_key", key),
            ("api_key", "sk-build-key-1234"),
            ("user_id", "u"),
            ("team_id", "t"),
            ("end_user", "c"),
            ("session_id", "s"),
            ("tag", "x"),
        ):
            for more in ({}, {"start_date": TODAY, "end_date": TODAY}, {"page": 1, "page_size": 1}):
                rows = await o.get("/spend/logs", **{name: value}, **more)
                assert [row["request_id"] for row in rows] == [mine], name
            page = await o.get("/spend/logs/v2", **{name: value})
            assert [row["request_id"] for row in page["data"]] == [mine], name
            assert (page["total"], page["total_is_exact"], page["total_pages"]) == (1, True, 1)
            assert await o.get("/spend/logs", **{name: value + "'"}) == []
        for api_key in (MASTER, digest(MASTER), "master"):
            assert [row["request_id"] for row in await o.get("/spend/logs", api_key=api_key)] == [by_master]


async def test_logs_come_in_pages_newest_first(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        ids = [await o.exchange() for _ in range(5)][::-1]

        async def page(**params: Any) -> list[str]:
            return [row["request_id"] for row in await o.get("/spend/logs", **params)]

        assert await page() == await page(summarize=False, start_date=TODAY) == ids
        assert [await page(page=n, page_size=2) for n in (1, 2, 3, 4)] == [ids[:2], ids[2:4], ids[4:], []]
        last = await o.get("/spend/logs/v2", page=3, page_size=2)
        assert [row["request_id"] for row in last.pop("data")] == ids[4:]
        assert last == {"total": 5, "total_is_exact": True, "page": 3, "page_size": 2, "total_pages": 3}


async def test_days_are_those_of_utc_and_the_last_is_in(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        midnight = (T0 // DAY_US) * DAY_US
        before = await o.exchange(accepted_us=midnight - 1)
        today = await o.exchange(accepted_us=midnight)

        async def found(**days: Any) -> list[str]:
            return [row["request_id"] for row in await o.get("/spend/logs", summarize=False, **days)]

        assert await found(start_date=TODAY) == await found(start_date=TODAY, end_date=TODAY) == [today]
        assert await found(end_date=YESTERDAY) == await found(start_date=YESTERDAY, end_date=YESTERDAY) == [before]
        assert await found(start_date=f"{YESTERDAY} 00:00:00", end_date=f"{TODAY}T23:59:59Z") == [today, before]


async def test_days_alone_give_a_summary(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.exchange(days_ago=3, user="u", model_asked="a")
        await o.exchange(2 * DOLLAR, days_ago=3, user="v", model_asked="a")
        await o.exchange(4 * DOLLAR, days_ago=1, user=None, model_asked="b")
        assert await o.get("/spend/logs", start_date="2025-11-20", end_date=TODAY) == [
            {"startTime": "2025-11-21", "spend": 3.0, "models": {"a": 3.0}, "users": {"u": 1.0, "v": 2.0}},
            {"startTime": "2025-11-23", "spend": 4.0, "models": {"b": 4.0}, "users": {}},
            {"startTime": "2025-11-24", "spend": 0.0, "models": {}, "users": {}},
        ]
        assert await o.get("/spend/logs", start_date="2025-11-01", end_date="2025-11-02") == []
        assert len(await o.get("/spend/logs", end_date=YESTERDAY)) == 2


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("/spend/logs", {"start_date": "24.11.2025"}, "start_date"),
        ("/spend/logs", {"end_date": "2025-02-30"}, "end_date"),
        ("/spend/logs", {"end_date": "1763942400"}, "end_date"),
        ("/spend/logs", {"start_date": "2025-11-24", "end_date": "2025-11-23"}, "end_date"),
        ("/spend/logs", {"start_date": "2000-01-01", "end_date": "2025-11-23"}, "end_date"),
        ("/spend/logs", {"page_size": 1001}, "page_size"),
        ("/spend/logs", {"page": 0}, "page"),
        ("/spend/logs", {"page": 100_000, "page_size": 1000}, "page"),
        ("/spend/logs/v2", {"page_size": 0}, "page_size"),
        ("/spend/by", {"since": "last week"}, "since"),
        ("/spend/by", {"until": "7d"}, "until"),
        ("/spend/by", {"since": "1d", "until": "2025-11-01"}, "until"),
        ("/spend/by", {"by": "planet"}, "by"),
        ("/spend/by", {"limit": 0}, "limit"),
        ("/global/spend/report", {"group_by": "planet"}, "group_by"),
        ("/global/spend/report", {"period": "year"}, "period"),
        ("/global/spend/tags", {"start_date": "x"}, "start_date"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(tmp_path: Path, path: str, params: dict[str, Any], param: str) -> None:
    async with office(tmp_path) as o:
        assert await o.refused(path, **params) == (422, param)


async def test_spend_by_each(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234")
        await o.desk.directory.create(Subject(kind=TEAM, id="t", alias="The team"))
        await o.desk.directory.create(Subject(kind=CUSTOMER, id="c", alias="Acme"))
        mine: dict[str, Any] = {
            "caller": f"key:{key}",
            "team": "t",
            "user": "u",
            "customer": "c",
            "session": "s",
            "model_asked": "m",
        }
        await o.exchange(DOLLAR, tags=("x", "y"), **mine)
        await o.exchange(2 * DOLLAR, days_ago=6, tags=("x",), **mine)
        await o.exchange(None, certainty=base.UNPRICED, ended=base.CLIENT_GONE, days_ago=7, tags=(), **mine)
        nobody: dict[str, Any] = {"team": None, "user": None, "customer": None, "session": None, "tags": ()}
        await o.exchange(DOLLAR // 2, caller="master", caller_alias="the master key", model_asked="n", **nobody)
        shown = {"key": (key, "build-key-1234"), "team": ("t", "The team"), "user": ("u", None)}
        shown |= {"customer": ("c", "Acme"), "model": ("m", None), "session": ("s", None)}
        for by, (id, alias) in shown.items():
            page = await o.get("/spend/by", by=by)
            row = page["rows"][0]
            assert (row["id"], row["alias"], row["exchanges"], row["spend_nano"]) == (id, alias, 3, 3 * DOLLAR), by
            assert row["spend"] == 3.0
            assert row["prompt_tokens"] == 3 * (11 + 33 + 44 + 55) + 1 + 2 + 3
            assert row["completion_tokens"] == 66
            assert (row["unpriced"], row["failures"]) == (1, None if by == "session" else 1), by
            assert len(page["rows"]) == (2 if by in ("key", "model") else 1)
            assert (page["by"], page["since"], page["until"], page["complete"]) == (by, None, None, True)
            figures = {"exchanges": 4, "spend_nano": 3_500_000_000, "spend": 3.5, "unpriced": 1, "failures": 1}
            assert page["total"] | figures == page["total"]
            page = await o.get("/spend/by", by=by, since="7d")
            assert page["since"] == "2025-11-18"
            assert (page["rows"][0]["exchanges"], page["rows"][0]["spend_nano"]) == (2, 3 * DOLLAR), by
            assert page["rows"][0]["unpriced"] == 0
            assert page["total"]["exchanges"] == 3
            page = await o.get("/spend/by", by=by, since="2025-11-01", until="2025-11-18")
            assert [row["spend_nano"] for row in page["rows"]] == [2 * DOLLAR], by
        others = (await o.get("/spend/by"))["rows"][1:]
        assert [(row["id"], row["alias"]) for row in others] == [("master", "the master key")]
        tags = (await o.get("/spend/by", by="tag"))["rows"]
        assert [(row["id"], row["spend_nano"]) for row in tags] == [("x", 3 * DOLLAR), ("y", DOLLAR)]
        assert len((await o.get("/spend/by", by="tag", limit=1))["rows"]) == 1


async def test_a_key_that_was_deleted_keeps_its_last_name(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234", alias="now")
        await o.exchange(caller=f"key:{key}", caller_alias="first")
        await o.exchange(caller=f"key:{key}", caller_alias="last")
        assert [row["alias"] for row in (await o.get("/spend/by"))["rows"]] == ["now"]
        await o.desk.directory.delete(KEY, key)
        assert [row["alias"] for row in (await o.get("/spend/by"))["rows"]] == ["last"]
        assert (await o.get("/spend/keys"))[0]["key_alias"] is None


async def test_a_rotated_key_has_all_that_it_came_to(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key, old, older = await o.key("now-key-1234", alias="build", user="u"), digest("old"), digest("older")
        for days_ago, caller in ((0, f"key:{key}"), (1, f"key:{old}"), (2, f"key:{older}"), (0, "master")):
            await o.exchange(days_ago=days_ago, caller=caller, user="u", model_asked="m", caller_alias=None)
        names = [(f"key:{old}", f"key:{key}"), (f"key:{older}", f"key:{key}")]
        await o.ledger.write(lambda c: c.executemany("INSERT INTO renamed VALUES (?, ?)", names).rowcount)
        for since, spent in ((None, 4), (YESTERDAY, 3), (TODAY, 2)):
            page = await o.get("/spend/by", by="key", **{} if since is None else {"since": since})
            rows = {row["id"]: (row["alias"], row["exchanges"], row["spend"]) for row in page["rows"]}
            assert rows == {key: ("build", spent - 1, spent - 1.0), "master": (None, 1, 1.0)}
            assert sum(row["spend_nano"] for row in page["rows"]) == page["total"]["spend_nano"] == spent * DOLLAR
        month = {"start_date": "2025-11-01", "end_date": TODAY, "period": "month"}
        (report,) = await o.get("/global/spend/report", group_by="key", **month)
        shown = {each["api_key"]: (each["key_alias"], each["total_spend"]) for each in report["keys"]}
        assert shown == {key: ("build", 3.0), "master": (None, 1.0)}
        (report,) = await o.get("/global/spend/report", group_by="user", **month)
        (user,) = report["users"]
        assert {(each["api_key"], each["spend"]) for each in user["metadata"]} == {(key, 3.0), ("master", 1.0)}
        for api_key, spends in ((key, [3.0]), ("sk-now-key-1234", [3.0]), (old, [1.0])):
            page = await o.get("/global/spend/report", api_key=api_key, **month)
            assert [each["total_cost"] for each in page] == spends
        page = await o.get("/global/spend/report", internal_user_id="u", **month)
        assert {each["api_key"]: each["total_cost"] for each in page} == {key: 3.0, "master": 1.0}
        assert [(each["api_key"], each["total_spend"]) for each in await o.get("/global/spend/keys")] == [
            (key, 3.0),
            ("master", 1.0),
        ]
        assert [(each["token"], each["spend"]) for each in await o.get("/spend/keys")] == [(key, 3.0)]
        # A row names the key as it was.
        for api_key, keys in ((key, [key, old, older]), ("sk-now-key-1234", [key, old, older]), (old, [old])):
            assert [row["api_key"] for row in await o.get("/spend/logs", api_key=api_key)] == keys
            page = await o.get("/spend/logs/v2", api_key=api_key, page_size=1)
            assert (len(page["data"]), page["total"], page["total_is_exact"]) == (1, len(keys), True)


async def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        page = await o.get("/spend/by")
        assert (page["rows"], page["total"]["spend_nano"], page["total"]["exchanges"]) == ([], 0, 0)
        assert await o.get("/global/spend") == {"spend": 0.0, "max_budget": None}
        for path in READS:
            assert (await o.ask(path)).status_code == 200, path


async def test_who_spent_most(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234", team="t", user="u")
        await o.desk.directory.create(
            Subject(kind=USER, id="u", alias="Ada", terms=Terms(budgets=(Budget(limit_nano=5 * DOLLAR),)))
        )
        gone = "f" * 64
        await o.exchange(DOLLAR, caller=f"key:{key}", user="u", tags=("x",))
        await o.exchange(2 * DOLLAR, caller=f"key:{gone}", user="v", tags=("y", "x"))
        await o.exchange(9 * DOLLAR, caller="master", user=None, tags=())
        keys = await o.get("/spend/keys")
        assert [(each["token"], each["spend"]) for each in keys] == [(gone, 2.0), (key, 1.0)]
        assert keys[1] | keys[0] == keys[0]  # the same names
        assert (keys[1]["key_alias"], keys[1]["key_name"]) == ("build-key-1234", "sk-...1234")
        assert (keys[1]["user_id"], keys[1]["team_id"], keys[0]["key_alias"]) == ("u", "t", None)
        assert await o.get("/spend/users") == [
            {"user_id": "v", "user_alias": None, "spend": 2.0, "max_budget": None},
            {"user_id": "u", "user_alias": "Ada", "spend": 1.0, "max_budget": 5.0},
        ]
        assert [each["user_id"] for each in await o.get("/spend/users", user_id="u")] == ["u"]
        tags = [
            {"individual_request_tag": "x", "log_count": 2, "total_spend": 3.0},
            {"individual_request_tag": "y", "log_count": 1, "total_spend": 2.0},
        ]
        assert await o.get("/spend/tags") == await o.get("/spend/tags", start_date=TODAY) == tags
        assert await o.get("/spend/tags", end_date=YESTERDAY) == []
        assert len(await o.get("/spend/keys", limit=1)) == 1


async def test_a_reset_sets_figures_back_and_keeps_the_logs(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        terms = Terms(budgets=(Budget(limit_nano=5 * DOLLAR), Budget(period="1d", limit_nano=DOLLAR)))
        key = await o.key("build-key-1234", terms=terms)
        await o.desk.directory.set_proxy(Terms(budgets=(Budget(limit_nano=100 * DOLLAR),)))
        await o.ledger.write(lambda c: money.set_spent(c, KEY, key, DOLLAR, NOW_US, o.desk.zone()))
        await o.exchange(3 * DOLLAR, caller=f"key:{key}", user="u")
        assert await o.get("/global/spend") == {"spend": 3.0, "max_budget": 100.0}
        viewer = await o.key("admin-key-1234", role="admin")
        assert viewer
        answer = await o.ask("/global/spend/reset", key="sk-admin-key-1234", json={})
        assert answer.status_code == 403
        assert await o.get("/global/spend") == {"spend": 3.0, "max_budget": 100.0}
        answer = await o.ask("/global/spend/reset", json={})
        assert (answer.status_code, answer.json()["status"]) == (200, "success")
        assert await o.get("/global/spend") == {"spend": 0.0, "max_budget": 100.0}
        assert [each["spend"] for each in await o.get("/spend/keys") + await o.get("/spend/users")] == [0.0, 0.0]
        stand = await o.desk.look(lambda c: money.standings(c, KEY, [key], NOW_US, o.desk.zone()))
        assert [(each.spent_nano, each.limit_nano) for each in stand[key]] == [(0, 5 * DOLLAR), (0, DOLLAR)]
        assert [row["spend"] for row in await o.get("/spend/logs")] == [3.0]
        assert (await o.get("/spend/by"))["rows"][0]["spend_nano"] == 3 * DOLLAR
        await o.exchange(DOLLAR, caller=f"key:{key}")
        assert (await o.get("/global/spend"))["spend"] == 1.0


async def test_reports_by_each_and_by_period(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234")
        await o.desk.directory.create(Subject(kind=TEAM, id="t", alias="The team"))
        mine: dict[str, Any] = {
            "caller": f"key:{key}",
            "team": "t",
            "user": "u",
            "customer": "c",
            "tags": ("x",),
            "model_asked": "m",
        }
        await o.exchange(DOLLAR, **mine)
        await o.exchange(2 * DOLLAR, days_ago=1, **mine)
        await o.exchange(4 * DOLLAR, days_ago=1, **mine | {"caller": "master", "model_asked": "n"})
        days = {"start_date": "2025-11-01", "end_date": TODAY}
        page = await o.get("/global/spend/report", **days)
        assert page == await o.get("/global/spend/report", group_by="team", **days)
        assert page == [
            {
                "group_by_day": "2025-11-23T00:00:00+00:00",
                "teams": [
                    {
                        "team_name": "The team",
                        "team_id": "t",
                        "total_spend": 6.0,
                        "metadata": [
                            {"model": "m", "spend": 2.0, "total_tokens": 22 + 145, "api_key": key},
                            {"model": "n", "spend": 4.0, "total_tokens": 22 + 146, "api_key": "master"},
                        ],
                    }
                ],
            },
            {
                "group_by_day": "2025-11-24T00:00:00+00:00",
                "teams": [
                    {
                        "team_name": "The team",
                        "team_id": "t",
                        "total_spend": 1.0,
                        "metadata": [{"model": "m", "spend": 1.0, "total_tokens": 22 + 144, "api_key": key}],
                    }
                ],
            },
        ]
        for group_by, members, name, ids in (
            ("customer", "customers", "customer", ["c"]),
            ("user", "users", "user", ["u"]),
            ("tag", "tags", "tag", ["x"]),
            ("key", "keys", "api_key", ["master", key]),
            ("model", "models", "model", ["n", "m"]),
        ):
            page = await o.get("/global/spend/report", group_by=group_by, **days)
            assert [each[name] for each in page[0][members]] == ids
        # 2025-11-23 is a Sunday, so the two days are in two weeks.
        for period, begins in (("week", ["2025-11-17", "2025-11-24"]), ("month", ["2025-11-01"])):
            page = await o.get("/global/spend/report", period=period, **days)
            assert [each["group_by_day"][:10] for each in page] == begins
        assert page[0]["teams"][0]["total_spend"] == 7.0
        assert page[0]["teams"][0]["metadata"][0]["spend"] == 3.0
        assert await o.get("/global/spend/report", team_id="other") == []
        assert len(await o.get("/global/spend/report", team_id="t")) == 2
        assert (await o.get("/global/spend/report", customer_id="c"))[0]["customers"][0]["customer"] == "c"
        assert (await o.refused("/global/spend/report", customer_id="c", team_id="t"))[0] == 400


async def test_reports_of_one_key_and_of_one_users_keys(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234")
        mine: dict[str, Any] = {"caller": f"key:{key}", "user": "u"}
        await o.exchange(DOLLAR, model_asked="m", **mine)
        await o.exchange(2 * DOLLAR, days_ago=2, model_asked="n", **mine)
        await o.exchange(4 * DOLLAR, caller="master", user="u", model_asked="m")
        details = [
            {"model": "n", "total_cost": 2.0, "total_input_tokens": 145, "total_output_tokens": 22},
            {"model": "m", "total_cost": 1.0, "total_input_tokens": 144, "total_output_tokens": 22},
        ]
        one = {"api_key": key, "total_cost": 3.0, "total_input_tokens": 289, "total_output_tokens": 44}
        for api_key in (key, "sk-build-key-1234"):
            assert await o.get("/global/spend/report", api_key=api_key) == [one | {"model_details": details}]
        page = await o.get("/global/spend/report", internal_user_id="u")
        assert {each["api_key"]: each["total_cost"] for each in page} == {key: 3.0, "master": 4.0}
        assert await o.get("/global/spend/report", api_key=key, end_date="2025-11-01") == []


async def test_the_pages_of_the_whole(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("build-key-1234")
        mine: dict[str, Any] = {
            "caller": f"key:{key}",
            "customer": "c",
            "tags": ("x",),
            "model_asked": "m",
            "team": "t",
        }
        await o.exchange(DOLLAR, **mine)
        await o.exchange(2 * DOLLAR, days_ago=1, **mine)
        await o.exchange(4 * DOLLAR, days_ago=40, **mine)  # before the last thirty days
        assert await o.get("/global/spend/logs") == [
            {"date": "2025-11-23", "spend": 2.0},
            {"date": "2025-11-24", "spend": 1.0},
        ]
        assert await o.get("/global/spend/keys", limit=5) == [
            {"api_key": key, "total_spend": 3.0, "key_alias": "build-key-1234", "key_name": "sk-...1234"}
        ]
        assert await o.get("/global/spend/models") == [{"model": "m", "total_spend": 3.0}]
        assert await o.get("/global/spend/end_users") == [{"end_user": "c", "total_spend": 3.0}]
        assert await o.get("/global/spend/tags") == {"spend_per_tag": [{"name": "x", "spend": 3.0, "log_count": 2}]}
        assert await o.get("/global/spend/teams") == {
            "daily_spend": [{"date": "2025-11-23", "t": 2.0}, {"date": "2025-11-24", "t": 1.0}],
            "teams": ["t"],
            "total_spend_per_team": [{"team_id": "t", "total_spend": 3.0}],
        }
        tokens = [144 + 22 + 1, 144 + 22]
        activity = {
            "daily_data": [
                {"date": "Nov 23", "api_requests": 1, "total_tokens": tokens[0]},
                {"date": "Nov 24", "api_requests": 1, "total_tokens": tokens[1]},
            ],
            "sum_api_requests": 2,
            "sum_total_tokens": sum(tokens),
        }
        assert await o.get("/global/activity") == activity
        assert await o.get("/global/activity/model") == [{"model": "m"} | activity]
        assert (await o.get("/global/activity", start_date=TODAY, end_date=TODAY))["sum_api_requests"] == 1


async def test_what_would_be_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_spend, "LINES_MAX", 1)
    monkeypatch.setattr(logs_page, "LINES_MAX", 1)
    async with office(tmp_path) as o:
        await o.exchange()
        assert len(await o.get("/global/spend/report")) == 1
        await o.exchange(days_ago=1)
        for path in ("/global/spend/report", "/global/spend/logs", "/global/activity", "/global/spend/teams"):
            assert await o.refused(path) == (422, "end_date"), path
        assert await o.refused("/spend/logs", start_date="2025-11-01") == (422, "end_date")


MODEL = "claude-sonnet-4-5"
USAGE = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 20}
OPENAI = {"prompt_tokens": 1010, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 10}}


@pytest.mark.parametrize(
    ("asked", "nano"),
    [
        pytest.param({"completion_response": {"model": MODEL, "usage": USAGE}}, 4_578_000, id="anthropic"),
        pytest.param({"completion_response": {"model": MODEL, "usage": OPENAI}}, 4_503_000, id="openai"),
        pytest.param({"model": MODEL, "completion_response": {"usage": USAGE}}, 4_578_000, id="model beside it"),
        pytest.param({"model": f"anthropic/{MODEL}", "completion_response": {"usage": USAGE}}, 4_578_000, id="prefix"),
    ],
)
async def test_the_cost_of_an_answer(tmp_path: Path, asked: dict[str, Any], nano: int) -> None:
    async with office(tmp_path) as o:
        await o.key("read-key-1234", role=VIEWER)
        answer = await o.ask("/spend/calculate", key="sk-read-key-1234", json=asked)
        assert answer.json() == {"cost": nano / 1e9, "cost_nano": nano}


async def test_the_cost_of_messages_is_estimated(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        content = [{"type": "text", "text": "word " * 400}, {"type": "tool_result", "content": "word " * 400}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "word " * 200}]
        answer = await o.ask("/spend/calculate", json={"model": "claude-sonnet-4-5", "messages": messages})
        page = answer.json()
        assert page["estimated"] is True
        assert 800 < page["prompt_tokens"] < 1300
        assert page["cost_nano"] == page["prompt_tokens"] * 3000


@pytest.mark.parametrize(
    ("asked", "status", "param", "says"),
    [
        pytest.param({}, 400, "messages", "completion_response", id="nothing"),
        pytest.param({"messages": []}, 400, "model", "model", id="no model"),
        pytest.param({"model": "gpt-4", "messages": []}, 404, "model", "gpt-4", id="unknown model"),
        pytest.param({"model": "m", "completion_response": {}}, 422, "completion_response", "usage", id="no usage"),
        pytest.param(
            {"model": "m", "completion_response": {"usage": {"input_tokens": "x"}}},
            422,
            "completion_response",
            "oddly",
            id="odd usage",
        ),
        pytest.param({"model": 5, "messages": []}, 422, "model", "string", id="a model of another type"),
    ],
)
async def test_what_has_no_cost(tmp_path: Path, asked: dict[str, Any], status: int, param: str, says: str) -> None:
    async with office(tmp_path) as o:
        answer = await o.ask("/spend/calculate", json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param)
        assert says in error["message"]


@pytest.mark.parametrize("path", READS)
async def test_spend_is_for_those_with_a_role(tmp_path: Path, path: str) -> None:
    async with office(tmp_path) as o:
        await o.key("none-key-1234")
        await o.key("read-key-1234", role=VIEWER)
        assert (await o.ask(path, key="sk-none-key-1234")).status_code == 403
        assert (await o.ask(path, key="sk-read-key-1234")).status_code == 200


async def test_no_key_is_in_any_answer(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key = await o.key("secret-key-abcdefgh-1234", alias="build")
        await o.exchange(caller=f"key:{key}")
        for path in READS:
            assert "abcdefgh" not in (await o.ask(path, api_key="sk-secret-key-abcdefgh-1234")).text, path
