from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute

from tests.manage.desk import MASTER, Office, digest, office
from tproxy.manage.app import build, routers
from tproxy.manage.auth import needs
from tproxy.manage.gate import PUBLIC, Gate
from tproxy.store.subjects import ADMIN, KEY, VIEWER, Subject

UNKNOWN = "sk-nobody-has-ever-seen-this"

# Every route that is not closed to whoever may only read, with what it is open to.
OPEN_TO_VIEWERS = {"/budget/info", "/tag/info", "/v2/key/info", "/spend/calculate", "/cost/estimate"}
OPEN_TO_ALL_KEYS = {"/key/info", "/models", "/model/info", "/v1/model/info", "/v2/model/info", "/model_group/info"}
# What a key without a role sees there is its own: test_activity.py.
OPEN_TO_ALL_KEYS |= {f"/{whose}/spend/report" for whose in ("key", "user", "team")}
OPEN_TO_ALL_KEYS |= {f"/{whose}/daily/activity" for whose in ("user", "team", "tag")}
OPEN_TO_ALL_KEYS |= {f"/{whose}/daily/activity/aggregated" for whose in ("user", "team")}


def every_route(o: Office) -> list[tuple[str, str]]:
    """The method and path of all routes: of the routers themselves, not of what they say of themselves."""
    found = []
    for router in routers(o.desk):
        for route in router.routes:
            assert isinstance(route, APIRoute)
            found += [(method, route.path.replace("{key}", digest("x"))) for method in sorted(route.methods or ())]
    return found


async def test_no_route_can_be_reached_without_a_key(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        routes = every_route(o)
        assert len(routes) > 60
        assert {path for _, path in routes}.isdisjoint(PUBLIC)
        for method, path in [*routes, ("GET", "/key/unheard-of"), ("PATCH", "/key/list"), ("OPTIONS", "/key/generate")]:
            for key in (None, UNKNOWN):
                answer = await o.ask(method, path, who=key)
                assert answer.status == 401, (method, path, key)


async def test_every_route_is_closed_to_keys_without_the_role(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        plain, _ = await o.make(key_alias="plain")
        viewer, _ = await o.make(key_alias="viewer", key_type="read_only")
        for method, path in every_route(o):
            body: Any = {} if method == "POST" else None
            status = (await o.ask(method, path, body, who=plain)).status
            assert (status == 403) == (path not in OPEN_TO_ALL_KEYS), (method, path, status)
            status = (await o.ask(method, path, body, who=viewer)).status
            reads = method == "GET" or path in OPEN_TO_VIEWERS or path in OPEN_TO_ALL_KEYS
            assert (status == 403) == (not reads), (method, path, status)
        listed = (await o.get("/key/list")).ok
        assert listed["total_count"] == 2


async def test_a_route_that_says_nothing_is_for_admins(tmp_path: Path) -> None:
    async def unmarked() -> None: ...

    assert needs(unmarked, "POST") == ADMIN
    assert needs(unmarked, "DELETE") == ADMIN
    assert needs(unmarked, "GET") == VIEWER
    async with office(tmp_path) as o:
        app = build(o.desk)

        @app.delete("/key/added")
        async def added() -> dict[str, str]:
            return {"done": "yes"}

        o.manage._api = Gate(app, o.desk)
        plain, _ = await o.make()
        viewer, _ = await o.make(role="viewer")
        statuses = [(await o.ask("DELETE", "/key/added", who=key)).status for key in (None, plain, viewer, MASTER)]
        assert statuses == [401, 403, 403, 200]


# A key's fields, its user's role; what is answered to a read and to a change.
ROLES: dict[str, tuple[dict[str, Any], str | None, int, int]] = {
    "no role": ({}, None, 403, 403),
    "for models": ({"key_type": "llm_api"}, None, 403, 403),
    "for management": ({"key_type": "management"}, None, 200, 200),
    "for reading": ({"key_type": "read_only"}, None, 200, 403),
    "role admin": ({"role": "admin"}, None, 200, 200),
    "role viewer": ({"role": "viewer"}, None, 200, 403),
    "of an admin": ({}, "proxy_admin", 200, 200),
    "of a viewer": ({}, "proxy_admin_viewer", 200, 403),
    "of a user": ({}, "internal_user", 403, 403),
    "its own role comes first": ({"role": "viewer"}, "proxy_admin", 200, 403),
}


async def test_what_a_key_may_do(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for name, (fields, user_role, reads, changes) in ROLES.items():
            await o.post("/user/new", user_id=name, user_role=user_role, auto_create_key=False)
            key, id = await o.make(user_id=name, **fields)
            assert (await o.get("/key/list", who=key)).status == reads, name
            assert (await o.post("/key/generate", {"max_budget": 1}, who=key)).status == changes, name
            assert (await o.get("/key/info", who=key)).ok["key"] == id, name


async def test_a_key_without_a_role_sees_itself_only(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key, id = await o.make(key_alias="mine", metadata={"secret": "of mine"})
        other, other_id = await o.make(key_alias="other", metadata={"secret": "of the other"})
        for name in (key, id, id.upper()):
            own = await o.ask("GET", "/key/info", who=key, params={"key": name})
            assert own.ok["info"]["key_alias"] == "mine"
        for name in (other, other_id, UNKNOWN, digest(MASTER)):
            answer = await o.ask("GET", "/key/info", who=key, params={"key": name})
            assert answer.status == 403
            assert "of the other" not in answer.response.text


HEADERS: dict[str, tuple[dict[str, str], int]] = {
    "x-litellm-api-key first": ({"x-litellm-api-key": MASTER, "authorization": "Bearer no"}, 200),
    "with Bearer": ({"x-litellm-api-key": f"Bearer {MASTER}"}, 200),
    "the first decides": ({"x-litellm-api-key": "no", "authorization": f"Bearer {MASTER}"}, 401),
    "then Authorization": ({"authorization": f"Bearer {MASTER}", "x-api-key": "no"}, 200),
    "another scheme is an empty key": ({"authorization": "Basic abc", "x-api-key": MASTER}, 401),
    "then x-api-key": ({"x-api-key": MASTER, "api-key": "no"}, 200),
    "then api-key": ({"api-key": MASTER}, 200),
    "no scheme": ({"authorization": MASTER}, 401),
    "empty": ({"authorization": "Bearer"}, 401),
    "not a cookie": ({"cookie": f"token={MASTER}"}, 401),
}


async def test_where_the_key_is_taken_from(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for name, (headers, status) in HEADERS.items():
            assert (await o.client.get("/key/list", headers=headers)).status_code == status, name
        assert (await o.client.get(f"/key/list?api_key={MASTER}&key={MASTER}")).status_code == 401


async def test_contradicting_keys_are_refused(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        headers = [("authorization", f"Bearer {MASTER}"), ("authorization", "Bearer sk-other-than-that")]
        response = await o.client.get("/key/list", headers=headers)
        assert response.status_code == 400
        assert "sk-other" not in response.text


UNKNOWN_KEYS = {
    "unknown": UNKNOWN,
    "no key at all": "not-even-a-key",
    "nearly the master key": MASTER[:-1],
    "a hash is no key": digest(MASTER),
    "SQL": "sk-' OR 1=1 --",
    "long": "s" * 8000,
}


async def test_the_errors_of_unknown_keys(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        error = (await o.get("/key/list", who=None)).error
        assert (error["code"], error["type"], error["param"]) == ("401", "auth_error", "None")
        assert error["message"] == "Authentication Error, No api key passed in."
        bodies = set()
        for name, key in UNKNOWN_KEYS.items():
            answer = await o.get("/key/list", who=key)
            error = answer.error
            assert (error["code"], error["type"], error["param"]) == ("401", "token_not_found_in_db", "key"), name
            bodies.add(answer.response.text)
        assert len(bodies) == 1  # so none of them holds a part of the key


async def test_a_key_that_opens_nothing_any_more_says_why(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        await o.post("/team/new", team_id="t")
        await o.post("/user/new", user_id="u", auto_create_key=False)
        key, id = await o.make(team_id="t", user_id="u", duration="1h", key_type="management")
        assert (await o.get("/key/list", who=key)).status == 200
        for path, body in (
            ("/key/{}", {"key": id}),
            ("/team/{}", {"team_id": "t"}),
        ):
            assert (await o.post(path.format("block"), body)).status == 200
            error = (await o.get("/key/list", who=key)).error
            assert (error["code"], error["type"], error["param"]) == ("401", "auth_error", "None")
            assert "is blocked" in error["message"]
            assert (await o.post(path.format("unblock"), body)).status == 200
            assert (await o.get("/key/list", who=key)).status == 200
        assert (await o.post("/user/update", user_id="u", blocked=True)).status == 200
        assert (await o.get("/key/list", who=key)).error["message"].startswith("Authentication Error, User is blocked")
        assert (await o.post("/user/update", user_id="u", blocked=False)).status == 200
        o.clock.pass_seconds(3600)
        error = (await o.get("/key/list", who=key)).error
        assert (error["code"], error["type"], error["param"]) == ("401", "expired_key", "key")
        assert (await o.post("/key/delete", keys=[id])).status == 200
        assert (await o.get("/key/list", who=key)).error["type"] == "token_not_found_in_db"


async def test_a_key_in_its_time_of_grace_is_the_new_one(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        old, old_id = await o.make(key_type="management", user_id="someone")
        made = (await o.post("/key/regenerate", key=old, grace_period="1h")).ok
        for key in (old, made["key"]):
            assert (await o.get("/key/info", who=key)).ok["key"] == made["token"]
            assert (await o.post("/key/generate", {"max_budget": 1}, who=key)).ok["created_by"] == "someone"
        assert (await o.ask("GET", "/key/info", who=old, params={"key": old_id})).ok["info"]["replaced_by"] == made[
            "token"
        ]
        o.clock.pass_seconds(3600)
        assert (await o.get("/key/info", who=old)).error["type"] == "expired_key"
        assert (await o.get("/key/info", who=made["key"])).status == 200


async def test_without_a_master_key_there_is_no_management(tmp_path: Path) -> None:
    admin = Subject(kind=KEY, id=digest("sk-admin-of-the-file"), alias="admin", role=ADMIN, in_file=True)
    async with office(tmp_path, master=None, file_keys=[admin]) as o:
        for key in (None, MASTER, "sk-admin-of-the-file", ""):
            answer = await o.get("/key/list", who=key)
            assert answer.status == 403
            assert "set master_key" in answer.error["message"]
        assert (await o.ask("GET", "/docs", who=None)).status == 200
        o.master[0] = digest(MASTER)  # as a reload sets it
        assert (await o.get("/key/list")).status == 200


async def test_who_it_was_is_kept(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key, _ = await o.make(key_type="management", key_alias="robot")
        made = (await o.post("/key/generate", {"key_alias": "made"}, who=key)).ok
        assert (made["created_by"], made["updated_by"]) == ("robot", "robot")
        o.clock.pass_seconds(1)
        changed = (await o.post("/key/update", key=made["token"], rpm_limit=5)).ok
        assert (changed["created_by"], changed["updated_by"]) == ("robot", "master")
        assert changed["created_at"] < changed["updated_at"]
