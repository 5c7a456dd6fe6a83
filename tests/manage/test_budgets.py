from __future__ import annotations

from pathlib import Path

from tests.manage.desk import office
from tproxy.store.subjects import CUSTOMER, TEAM


async def test_a_budget_is_made_changed_and_deleted(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (
            await o.post(
                "/budget/new",
                budget_id="b",
                max_budget=3,
                soft_budget=2,
                budget_duration="1d",
                rpm_limit=4,
                budget_mode="hard",
            )
        ).ok
        names = ("budget_id", "max_budget", "soft_budget", "budget_duration", "rpm_limit", "budget_mode", "created_by")
        assert [made[name] for name in names] == ["b", 3, 2, "1d", 4, "hard", "master"]
        assert (await o.post("/budget/info", budgets=["b"])).ok == [made]
        assert (await o.get("/budget/list")).ok == [made]
        settings = (await o.get("/budget/settings", budget_id="b")).ok
        values = {each["field_name"]: each["field_value"] for each in settings}
        assert (values["max_budget"], values["rpm_limit"], values["tpm_limit"]) == (3, 4, None)

        changed = (await o.post("/budget/update", budget_id="b", max_budget=5, rpm_limit=None)).ok
        assert (changed["max_budget"], changed["rpm_limit"], changed["soft_budget"]) == (5, None, 2)
        assert (await o.post("/budget/new", budget_id="b")).status == 400
        assert (await o.post("/budget/new", model_max_budget={"m": 1})).error["param"] == "model_max_budget"
        assert (await o.post("/budget/update", budget_id="none")).status == 404
        assert (await o.post("/budget/update", max_budget=1)).error["param"] == "budget_id"
        assert (await o.post("/budget/info", budgets=["b", "none"])).status == 404
        assert (await o.get("/budget/settings", budget_id="none")).status == 404
        assert (await o.post("/budget/delete", id="none")).status == 404
        assert (await o.post("/budget/delete", id="b")).status == 200
        assert (await o.get("/budget/list")).ok == []


async def test_a_budget_without_an_id_is_given_one(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        ids = {(await o.post("/budget/new", max_budget=1)).ok["budget_id"] for _ in range(3)}
        assert len(ids) == 3


async def test_a_change_is_one_of_all_who_share_it(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/budget/new", budget_id="b", max_budget=3, rpm_limit=4)
        await o.post("/team/new", team_id="t", budget_id="b")
        await o.post("/customer/new", user_id="c", budget_id="b")
        await o.post("/tag/new", name="n", budget_id="b")
        key, _ = await o.make(budget_id="b", tpm_limit=9)

        async def limits() -> list[tuple[float | None, float | None, int | None]]:
            pages = [
                (await o.get("/key/info", key=key)).ok["info"],
                (await o.get("/team/info", team_id="t")).ok["team_info"],
                (await o.get("/customer/info", end_user_id="c")).ok,
                (await o.post("/tag/info", names=["n"])).ok["n"],
            ]
            return [(page["max_budget"], page["budgets"][0]["max_budget"], page["rpm_limit"]) for page in pages]

        assert await limits() == [(3, 3, 4)] * 4
        await o.post("/budget/update", budget_id="b", max_budget=5)
        assert await limits() == [(5, 5, 4)] * 4
        for kind, id in ((TEAM, "t"), (CUSTOMER, "c")):
            known = o.desk.directory.find(kind, id)
            assert known is not None
            assert known.terms.budgets[0].limit_nano == 5_000_000_000
        await o.post("/budget/delete", id="b")
        assert await limits() == [(5, 5, 4)] * 4
        page = (await o.get("/key/info", key=key)).ok["info"]
        assert (page["budget_id"], page["tpm_limit"]) == (None, 9)


async def test_of_shared_budgets_it_stays_known_which_is_the_primary(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        day = [{"budget_duration": "1d", "max_budget": 1}]
        await o.post("/budget/new", budget_id="b", budget_limits=[{"budget_duration": "1mo", "max_budget": 9}])
        _, id = await o.make(budget_id="b")
        _, own = await o.make(budget_id="b", budget_limits=day)

        async def limits(id: str) -> tuple[float | None, list[str]]:
            page = (await o.get("/key/info", key=id)).ok["info"]
            return page["max_budget"], [each["budget_duration"] for each in page["budget_limits"]]

        assert [await limits(id), await limits(own)] == [(None, ["1mo"]), (None, ["1d"])]
        await o.post("/budget/update", budget_id="b", max_budget=7)
        assert [await limits(id), await limits(own)] == [(7, ["1mo"]), (None, ["1d"])]
        await o.post("/key/update", key=own, budget_id=None)
        assert await limits(own) == (None, ["1d"])
        await o.post("/budget/update", budget_id="b", max_budget=None, budget_limits=[])
        assert [await limits(id), await limits(own)] == [(None, []), (None, ["1d"])]
