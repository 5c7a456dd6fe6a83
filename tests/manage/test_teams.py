from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.manage.desk import Office, digest, office
from tproxy.store.base import COUNTED, Claim
from tproxy.store.subjects import KEY, TEAM, Subject


async def info(o: Office, team: str) -> dict[str, Any]:
    page: dict[str, Any] = (await o.get("/team/info", team_id=team)).ok
    return page


def members(page: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    return [(each["user_id"], each["role"], each["user_email"]) for each in page["members_with_roles"]]


async def test_a_team_is_made_changed_and_deleted(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (
            await o.post(
                "/team/new",
                team_id="t",
                team_alias="the team",
                max_budget=10,
                budget_duration="7d",
                models=["m"],
                tags=["x"],
                metadata={"a": 1},
                tpm_limit=5,
                members_with_roles=[{"role": "admin", "user_id": "u"}, {"role": "user", "user_email": "a@b"}],
            )
        ).ok
        assert (made["team_id"], made["team_alias"], made["max_budget"], made["tpm_limit"]) == ("t", "the team", 10, 5)
        assert made["budget_reset_at"] == "2026-11-23T00:00:00.000000Z"
        assert members(made) == [("u", "admin", None), ("a@b", "user", "a@b")]
        assert (made["admins"], made["members"]) == (["u"], ["u", "a@b"])
        known = o.desk.directory.find(TEAM, "t")
        assert known is not None
        assert known.terms.tpm == 5

        page = await info(o, "t")
        assert page["team_info"] == made
        assert (page["team_id"], page["keys"]) == ("t", [])
        assert [each["user_id"] for each in page["team_memberships"]] == ["u", "a@b"]

        changed = (await o.post("/team/update", team_id="t", max_budget=11, models=None)).ok
        assert (changed["max_budget"], changed["models"], changed["tags"]) == (11, [], ["x"])
        assert changed["data"]["max_budget"] == 11
        assert members(changed) == members(made)

        assert (await o.post("/team/new", team_id="t")).status == 400
        assert (await o.post("/team/update", team_id="none")).status == 404
        assert (await o.get("/team/info", team_id="none")).status == 404
        assert (await o.get("/team/info")).error["param"] == "team_id"
        assert (await o.post("/team/delete", team_ids=["t", "none"])).status == 404
        assert (await o.post("/team/delete", team_ids=[])).status == 422
        assert (await info(o, "t"))["team_info"]["max_budget"] == 11
        assert (await o.post("/team/delete", team_ids=["t"])).ok == {"deleted_teams": ["t"]}
        assert (await o.get("/team/info", team_id="t")).status == 404
        assert o.desk.directory.find(TEAM, "t") is None


async def test_a_team_without_an_id_is_given_one(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        ids = {(await o.post("/team/new", team_alias="a")).ok["team_id"] for _ in range(3)}
        assert len(ids) == 3


async def test_what_a_team_has_spent_and_its_keys(tmp_path: Path) -> None:
    in_file = Subject(kind=KEY, id=digest("sk-of-the-file"), alias="f", team="t", in_file=True)
    async with office(tmp_path, file_keys=[in_file]) as o:
        await o.post("/team/new", team_id="t", max_budget=10)
        _, id = await o.make(team_id="t", key_alias="k")
        await o.make(key_alias="of no team")
        await o.spend(500_000_000, key=id, team="t", claims=[Claim(KEY, id, COUNTED), Claim(TEAM, "t", COUNTED)])
        page = await info(o, "t")
        assert page["team_info"]["spend"] == 0.5
        assert [(each["key_alias"], each["spend"]) for each in page["keys"]] == [("f", 0), ("k", 0.5)]
        [listed] = (await o.get("/team/list")).ok
        assert (listed["team_id"], listed["spend"], listed["keys"]) == ("t", 0.5, page["keys"])
        assert (await o.post("/team/update", team_id="t", spend=0)).ok["spend"] == 0

        # A key of the file names it: it cannot go before that one does.
        answer = await o.post("/team/delete", team_ids=["t"])
        assert answer.status == 400
        await o.desk.directory.set_file_keys({})
        assert (await o.post("/team/delete", team_ids=["t"])).status == 200
        assert (await o.get("/key/info", key=id)).status == 404
        assert (await o.get("/key/aliases")).ok["aliases"] == ["of no team"]


async def test_teams_are_listed(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for n in range(5):
            o.clock.pass_seconds(1)
            user = [{"role": "user", "user_id": "u"}] if n == 2 else None
            await o.post("/team/new", team_id=f"t{n}", team_alias=f"a{n}", members_with_roles=user)
        assert [each["team_id"] for each in (await o.get("/team/list")).ok] == ["t4", "t3", "t2", "t1", "t0"]
        assert [each["team_id"] for each in (await o.get("/team/list", user_id="u")).ok] == ["t2"]
        assert (await o.get("/team/list", user_id="x' OR 1=1 --")).ok == []
        page = (await o.get("/v2/team/list", page=2, page_size=2)).ok
        assert [each["team_id"] for each in page.pop("teams")] == ["t2", "t1"]
        assert page == {"total": 5, "page": 2, "page_size": 2, "total_pages": 3}
        for query, expected in (({"team_id": "t1"}, ["t1"]), ({"team_alias": "a2"}, ["t2"]), ({"team_id": "none"}, [])):
            page = (await o.get("/v2/team/list", **query)).ok
            assert [each["team_id"] for each in page["teams"]] == expected
            assert page["total"] == len(expected)
        assert (await o.get("/team/available")).ok == []


async def test_members_come_and_go(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t")
        page = (await o.post("/team/member_add", team_id="t", member={"role": "user", "user_id": "u"})).ok
        assert members(page) == [("u", "user", None)]
        page = (
            await o.post(
                "/team/member_add",
                team_id="t",
                member=[
                    {"role": "admin", "user_id": "u"},
                    {"user_email": "a@b"},
                    {"user_id": "v", "user_email": "v@b"},
                ],
            )
        ).ok
        assert members(page) == [("u", "admin", None), ("a@b", "user", "a@b"), ("v", "user", "v@b")]
        assert members((await o.post("/team/member_delete", team_id="t", user_id="u")).ok) == [
            ("a@b", "user", "a@b"),
            ("v", "user", "v@b"),
        ]
        assert members((await o.post("/team/member_delete", team_id="t", user_email="v@b")).ok) == [
            ("a@b", "user", "a@b")
        ]
        assert (await o.post("/team/member_delete", team_id="t", user_id="u")).status == 404
        assert (await o.post("/team/member_delete", team_id="none", user_id="u")).status == 404
        assert (await o.post("/team/member_delete", team_id="t")).error["param"] == "user_id"
        assert (await o.post("/team/member_add", team_id="t", member={"role": "user"})).status == 422
        assert (await o.post("/team/member_add", team_id="t", member={"role": "boss", "user_id": "u"})).status == 422
        assert (await o.post("/team/member_add", team_id="none", member={"user_id": "u"})).status == 404
        wrong = {"team_id": "t", "member": {"user_id": "w"}, "max_budget_in_team": 5}
        assert (await o.post("/team/member_add", wrong)).error["param"] == "max_budget_in_team"
        wrong = {"team_id": "t", "member": {"user_id": "w", "max_budget_in_team": 5}}
        assert (await o.post("/team/member_add", wrong)).error["param"] == "max_budget_in_team"
        assert [each[0] for each in members((await info(o, "t"))["team_info"])] == ["a@b"]


async def test_a_team_has_so_many_members_at_most(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        many = [{"user_id": f"u{n}"} for n in range(1000)]
        assert (await o.post("/team/new", team_id="t", members_with_roles=[*many, {"user_id": "u"}])).status == 422
        for n_th in range(10):
            some = [{"user_id": f"{n_th}-{n}"} for n in range(1000)]
            body = {"team_id": "t", "members_with_roles": some} if n_th == 0 else {"team_id": "t", "member": some}
            assert (await o.post("/team/new" if n_th == 0 else "/team/member_add", body)).status == 200
        answer = await o.post("/team/member_add", team_id="t", member={"user_id": "one too many"})
        assert answer.status == 400
        assert (await o.post("/team/member_add", team_id="t", member={"user_id": "0-0", "role": "admin"})).status == 200


async def test_a_team_is_blocked(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t", rpm_limit=3)
        key, _ = await o.make(team_id="t")
        assert (await o.post("/team/block", team_id="t")).ok["blocked"] is True
        assert (await o.get("/key/info", who=key)).status == 401
        page = (await o.post("/team/unblock", team_id="t")).ok
        assert (page["blocked"], page["rpm_limit"]) == (False, 3)
        assert (await o.get("/key/info", who=key)).status == 200
        assert (await o.post("/team/block", team_id="none")).status == 404
