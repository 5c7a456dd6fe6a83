from __future__ import annotations

from pathlib import Path

from tests.manage.desk import digest, office
from tproxy.store.base import COUNTED, Claim
from tproxy.store.subjects import KEY, TEAM, USER


async def test_a_user_is_made_with_a_key(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t")
        made = (
            await o.post(
                "/user/new",
                user_id="u",
                user_email="u@b",
                user_alias="the user",
                user_role="internal_user",
                max_budget=5,
                budget_duration="1mo",
                models=["m"],
                teams=["t"],
                key_alias="k",
                duration="1d",
                tags=["x"],
            )
        ).ok
        shown = {
            name: made[name] for name in ("user_id", "user_email", "user_alias", "user_role", "max_budget", "teams")
        }
        assert shown == {
            "user_id": "u",
            "user_email": "u@b",
            "user_alias": "the user",
            "user_role": "internal_user",
            "max_budget": 5,
            "teams": ["t"],
        }
        assert made["token"] == digest(made["key"])
        assert (made["key_alias"], made["expires"], made["tags"]) == ("k", "2026-11-19T11:06:40.000000Z", ["x"])
        own = (await o.get("/key/info", who=made["key"])).ok["info"]
        assert (own["user_id"], own["models"], own["max_budget"]) == ("u", ["m"], None)  # the budget is the user's

        page = (await o.get("/user/info", user_id="u")).ok
        assert (page["user_id"], page["user_info"]["max_budget"], page["user_info"]["teams"]) == ("u", 5, ["t"])
        assert [each["token"] for each in page["keys"]] == [made["token"]]
        assert [each["team_id"] for each in page["teams"]] == ["t"]
        assert made["key"] not in str(page)
        team = o.desk.directory.find(TEAM, "t")
        assert team is not None
        assert [(each.user, each.email) for each in team.members] == [("u", "u@b")]
        assert (await o.get("/v2/user/info", user_id="u")).ok == {
            name: value for name, value in page["user_info"].items() if name != "teams"
        }


async def test_a_user_without_a_key_or_an_id(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        page = (await o.post("/user/new", user_id="u", auto_create_key=False)).ok
        assert "key" not in page
        assert (await o.get("/key/list")).ok["keys"] == []
        ids = {(await o.post("/user/new", {"user_id": None})).ok["user_id"] for _ in range(2)}
        assert len(ids) == 2
        assert (await o.get("/key/list")).ok["total_count"] == 2


async def test_all_of_a_new_user_or_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.make(key_alias="taken")
        await o.post("/team/new", team_id="t")
        for body, status in (
            ({"user_id": "u", "key_alias": "taken", "teams": ["t"]}, 400),
            ({"user_id": "u", "teams": ["t", "none"]}, 404),
            ({"user_id": "u", "teams": [{"team_id": "t", "max_budget_in_team": 5}]}, 400),
            ({"user_id": "u", "model_max_budget": {"m": 1}}, 400),
            ({"user_id": "u", "user_role": "king"}, 422),
            ({"user_id": "u", "budget_id": "none"}, 404),
        ):
            assert (await o.post("/user/new", body)).status == status, body
        assert (await o.get("/user/list")).ok["total"] == 0
        assert (await o.get("/key/list")).ok["total_count"] == 1
        team = o.desk.directory.find(TEAM, "t")
        assert team is not None
        assert team.members == ()
        assert (await o.post("/user/new", user_id="u", teams=[{"team_id": "t", "user_role": "admin"}])).status == 200
        assert (await o.post("/user/new", user_id="u")).status == 400


async def test_a_user_is_changed_and_deleted(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t")
        await o.post("/user/new", user_id="u", teams=["t"], rpm_limit=1, user_role="proxy_admin")
        await o.post("/user/new", user_id="v")
        page = (await o.post("/user/update", user_id="u", max_budget=3, rpm_limit=None, spend=1)).ok
        assert (page["max_budget"], page["rpm_limit"], page["user_role"], page["spend"]) == (3, None, "proxy_admin", 1)
        assert page["data"]["user_id"] == "u"
        user = o.desk.directory.find(USER, "u")
        assert user is not None
        assert user.role == "admin"
        assert (await o.post("/user/update", user_id="u", user_role="internal_user")).ok["user_role"] == "internal_user"
        user = o.desk.directory.find(USER, "u")
        assert user is not None
        assert user.role is None
        assert (await o.post("/user/update", max_budget=3)).error["param"] == "user_id"
        assert (await o.post("/user/update", user_id="none")).status == 404

        assert (await o.post("/user/delete", user_ids=["u", "none"])).status == 404
        assert (await o.get("/user/list")).ok["total"] == 2
        assert (await o.post("/user/delete", user_ids=["u"])).ok == {"deleted_users": ["u"]}
        assert (await o.get("/user/info", user_id="u")).status == 404
        assert [each["user_id"] for each in (await o.get("/user/list")).ok["users"]] == ["v"]
        assert (await o.get("/key/list", user_id="u")).ok["keys"] == []
        team = o.desk.directory.find(TEAM, "t")
        assert team is not None
        assert team.members == ()


async def test_users_are_listed(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for n in range(3):
            o.clock.pass_seconds(1)
            await o.post("/user/new", user_id=f"u{n}", auto_create_key=n == 1)
        for team in ("red", "blue"):
            await o.post("/team/new", team_id=team, members_with_roles=[{"role": "user", "user_id": "u1"}])
        page = (await o.get("/user/list", page=1, page_size=2)).ok
        shown = [(each["user_id"], each["key_count"], each["teams"]) for each in page.pop("users")]
        assert shown == [("u2", 0, []), ("u1", 1, ["blue", "red"])]
        assert page == {"total": 3, "page": 1, "page_size": 2, "total_pages": 2}
        assert [each["user_id"] for each in (await o.get("/user/list", user_ids="u0")).ok["users"]] == ["u0"]
        assert set((await o.get("/user/available_roles")).ok) >= {"proxy_admin", "internal_user"}


async def test_what_a_user_has_spent(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (await o.post("/user/new", user_id="u", max_budget=5)).ok
        id = made["token"]
        await o.spend(250_000_000, key=id, user="u", claims=[Claim(KEY, id, COUNTED), Claim(USER, "u", COUNTED)])
        page = (await o.get("/user/info", user_id="u")).ok
        assert (page["user_info"]["spend"], page["keys"][0]["spend"]) == (0.25, 0.25)


async def test_whose_key_asks(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        made = (await o.post("/user/new", user_id="u", user_role="proxy_admin_viewer")).ok
        assert (await o.get("/user/info", who=made["key"])).ok["user_id"] == "u"
        assert (await o.get("/user/info")).error["param"] == "user_id"
        assert (await o.get("/v2/user/info")).error["param"] == "user_id"
