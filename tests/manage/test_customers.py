from __future__ import annotations

from pathlib import Path

import pytest

from tests.manage.desk import office
from tproxy.store.base import COUNTED, Claim
from tproxy.store.subjects import CUSTOMER


@pytest.mark.parametrize("prefix", ["/customer", "/end_user"])
async def test_a_customer_is_made_changed_and_deleted(tmp_path: Path, prefix: str) -> None:
    async with office(tmp_path) as o:
        made = (
            await o.post(f"{prefix}/new", user_id="c", alias="the customer", max_budget=5, budget_duration="1mo")
        ).ok
        assert (made["user_id"], made["alias"], made["blocked"], made["spend"]) == ("c", "the customer", False, 0)
        table = made["litellm_budget_table"]
        assert (table["max_budget"], table["budget_duration"], table["budget_id"]) == (5, "1mo", None)
        assert (await o.get(f"{prefix}/info", end_user_id="c")).ok == made
        assert (await o.get(f"{prefix}/list")).ok == [made]
        known = o.desk.directory.find(CUSTOMER, "c")
        assert known is not None
        assert known.terms.budgets[0].limit_nano == 5_000_000_000

        changed = (await o.post(f"{prefix}/update", user_id="c", max_budget=None, rpm_limit=3)).ok
        assert (changed["max_budget"], changed["rpm_limit"], changed["alias"]) == (None, 3, "the customer")
        assert (await o.post(f"{prefix}/new", user_id="c")).status == 400
        assert (await o.post(f"{prefix}/new", {})).error["param"] == "user_id"
        assert (await o.post(f"{prefix}/update", user_id="none")).status == 404
        assert (await o.get(f"{prefix}/info", end_user_id="none")).status == 404
        assert (await o.get(f"{prefix}/info")).error["param"] == "end_user_id"
        assert (await o.post(f"{prefix}/delete", user_ids=["c", "none"])).status == 404
        assert (await o.post(f"{prefix}/delete", user_ids=["c", "c"])).ok["deleted_customers"] == 1
        assert (await o.get(f"{prefix}/list")).ok == []
        assert o.desk.directory.find(CUSTOMER, "c") is None


async def test_a_shared_budget_or_its_own(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/budget/new", budget_id="b", max_budget=3)
        for fields in ({"max_budget": 1}, {"rpm_limit": 1}, {"max_budget": 0}):
            answer = await o.post("/customer/new", {"user_id": "c", "budget_id": "b", **fields})
            assert (answer.status, answer.error["param"]) == (400, "budget_id")
        made = (await o.post("/customer/new", user_id="c", budget_id="b", max_budget=None)).ok
        assert (made["budget_id"], made["max_budget"], made["litellm_budget_table"]["budget_id"]) == ("b", 3, "b")
        assert made["budgets"][0]["max_budget"] == 3
        assert (await o.post("/customer/update", user_id="c", budget_id="b", rpm_limit=1)).status == 400
        assert (await o.post("/customer/update", user_id="c", budget_id=None, max_budget=7)).ok["max_budget"] == 7


async def test_one_that_was_first_seen_in_a_request(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        _, id = await o.make()
        await o.spend(250_000_000, key=id, customer="seen", claims=[Claim(CUSTOMER, "seen", COUNTED)])
        page = (await o.get("/customer/info", end_user_id="seen")).ok
        assert (page["spend"], page["litellm_budget_table"]) == (0.25, None)
        assert o.desk.directory.find(CUSTOMER, "seen") is None
        page = (await o.post("/customer/update", user_id="seen", max_budget=1)).ok
        assert (page["max_budget"], page["budgets"][0]["max_budget"]) == (1, 1)
        assert o.desk.directory.find(CUSTOMER, "seen") is not None


async def test_customers_are_blocked_also_unseen(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/customer/new", user_id="c", rpm_limit=3)
        blocked = (await o.post("/customer/block", user_ids=["c", "unseen", "c"])).ok["blocked_users"]
        assert [(each["user_id"], each["blocked"], each["rpm_limit"]) for each in blocked] == [
            ("c", True, 3),
            ("unseen", True, None),
        ]
        known = o.desk.directory.find(CUSTOMER, "unseen")
        assert known is not None
        assert known.blocked
        assert (await o.post("/customer/unblock", user_ids=["c", "unseen"])).status == 200
        assert o.desk.directory.find(CUSTOMER, "unseen") is None
        assert (await o.get("/customer/info", end_user_id="c")).ok["rpm_limit"] == 3
        for wrong in ([], ["a\x00"], [""], None):
            assert (await o.post("/customer/block", user_ids=wrong)).status == 422


async def test_customers_are_listed_page_by_page(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for n in range(4):
            o.clock.pass_seconds(1)
            await o.post("/customer/new", user_id=f"c{n}")
        assert [each["user_id"] for each in (await o.get("/customer/list")).ok] == ["c3", "c2", "c1", "c0"]
        assert [each["user_id"] for each in (await o.get("/customer/list", page=2, size=3)).ok] == ["c0"]
