from __future__ import annotations

from pathlib import Path

from tests.manage.desk import office
from tproxy.store.base import COUNTED, Claim
from tproxy.store.subjects import TAG


async def test_a_tag_is_made_changed_and_deleted(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (
            await o.post("/tag/new", name="n", description="d", models=["m"], max_budget=3, budget_duration="1d")
        ).ok["tag"]
        names = ("name", "description", "models", "max_budget", "spend", "budget_reset_at")
        assert [made[name] for name in names] == ["n", "d", ["m"], 3, 0, "2026-11-19T00:00:00.000000Z"]
        assert (await o.post("/tag/info", names=["n", "n"])).ok == {"n": made}
        assert (await o.get("/tag/list")).ok == [made]
        known = o.desk.directory.find(TAG, "n")
        assert known is not None
        assert known.models == ("m",)

        changed = (await o.post("/tag/update", name="n", max_budget=4, description=None)).ok["tag"]
        assert (changed["max_budget"], changed["description"], changed["models"]) == (4, None, ["m"])
        assert (await o.post("/tag/new", name="n")).status == 400
        assert (await o.post("/tag/new", {})).error["param"] == "name"
        assert (await o.post("/tag/update", name="none")).status == 404
        assert (await o.post("/tag/info", names=["none"])).status == 404
        assert (await o.post("/tag/delete", name="none")).status == 404
        assert (await o.post("/tag/delete", name="n")).status == 200
        assert (await o.get("/tag/list")).ok == []
        assert o.desk.directory.find(TAG, "n") is None


async def test_what_was_spent_under_a_tag(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/tag/new", name="n", max_budget=3)
        await o.post("/tag/new", name="of old")
        _, id = await o.make()
        for _ in range(2):
            await o.spend(500_000_000, key=id, tags=("n", "of old"), claims=[Claim(TAG, "n", COUNTED)])
        pages = (await o.post("/tag/info", names=["n", "of old"])).ok
        assert (pages["n"]["spend"], pages["of old"]["spend"]) == (1, 1)
