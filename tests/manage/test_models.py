from __future__ import annotations

from pathlib import Path

import pytest

from tests.manage.spending import Office, office
from tproxy.store.subjects import TEAM, USER, VIEWER, Subject

KNOWN = ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-5", "claude-of-tomorrow")


async def ids(o: Office, key: str) -> list[str]:
    return [model["id"] for model in (await o.get("/models", key=key))["data"]]


async def test_models_are_listed_as_openai_does(tmp_path: Path) -> None:
    async with office(tmp_path, known=KNOWN) as o:
        page = await o.get("/models")
        assert page["object"] == "list"
        assert [model["id"] for model in page["data"]] == list(KNOWN)
        for model in page["data"]:
            assert (model["object"], model["owned_by"]) == ("model", "anthropic")
            assert type(model["created"]) is int
    (tmp_path / "other").mkdir()
    async with office(tmp_path / "other", known=("claude-fable-5-1", "claude-sonnet-4-5", "claude-of-tomorrow")) as o:
        created = [model["created"] for model in (await o.get("/models"))["data"]]
        assert created == [1_788_220_800, 0, 0]  # 2026-09-01; always; unknown


@pytest.mark.parametrize(
    ("key", "team", "user", "expected"),
    [
        pytest.param((), (), (), KNOWN, id="no list"),
        pytest.param(("claude-haiku-4-5",), (), (), KNOWN[1:2], id="one name"),
        pytest.param(("claude-*-4-5",), (), (), KNOWN[:3], id="a pattern"),
        pytest.param(("gpt-4",), (), (), (), id="none that is known"),
        pytest.param(("claude-*",), ("*opus*",), (), KNOWN[2:3], id="the team's list too"),
        pytest.param(("all-team-models",), ("*opus*",), (), KNOWN[2:3], id="what the team may"),
        pytest.param((), ("*-4-5",), ("*sonnet*", "*tomorrow"), KNOWN[:1], id="the user's list too"),
    ],
)
async def test_a_key_sees_the_models_that_it_may_use(
    tmp_path: Path, key: tuple[str, ...], team: tuple[str, ...], user: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    async with office(tmp_path, known=KNOWN) as o:
        await o.desk.directory.create(Subject(kind=TEAM, id="core", models=team))
        await o.desk.directory.create(Subject(kind=USER, id="ada", models=user))
        await o.key("build-key-1234", models=key, team="core", user="ada")
        assert await ids(o, "sk-build-key-1234") == list(expected)
        for path in ("/model/info", "/v2/model/info"):
            data = (await o.get(path, key="sk-build-key-1234"))["data"]
            assert [model["model_name"] for model in data] == list(expected)
        data = (await o.get("/model_group/info", key="sk-build-key-1234"))["data"]
        assert [model["model_group"] for model in data] == list(expected)


async def test_prices_are_per_token_and_none_where_unknown(tmp_path: Path) -> None:
    async with office(tmp_path, known=KNOWN) as o:
        (model,) = (await o.get("/model/info", litellm_model_id="claude-sonnet-4-5"))["data"]
        assert model["litellm_params"] == {"model": "anthropic/claude-sonnet-4-5"}
        assert model["model_info"] == {
            "id": "claude-sonnet-4-5",
            "db_model": False,
            "litellm_provider": "anthropic",
            "mode": "chat",
            "input_cost_per_token": 3e-06,
            "output_cost_per_token": 1.5e-05,
            "cache_read_input_token_cost": 3e-07,
            "cache_creation_input_token_cost": 3.75e-06,
            "cache_creation_input_token_cost_above_1hr": 6e-06,
            "max_input_tokens": 200_000,
            "max_output_tokens": 64_000,
        }
        unknown = (await o.get("/model/info"))["data"][3]["model_info"]
        assert unknown["input_cost_per_token"] is None
        assert await o.refused("/model/info", litellm_model_id="gpt-4") == (404, "litellm_model_id")


async def test_health_is_told_without_a_call(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        page = await o.get("/health")
        assert (page["healthy_count"], page["unhealthy_count"], page["unhealthy_endpoints"]) == (1, 0, [])
        assert await o.get("/health/backlog") == {"in_flight_requests": 3}
        o.why.append("draining")
        page = await o.get("/health")
        assert (page["healthy_count"], page["unhealthy_count"]) == (0, 1)
        assert page["unhealthy_endpoints"][0]["error"] == "draining"


@pytest.mark.parametrize(
    ("path", "role", "status"),
    [
        ("/models", None, 200),
        ("/model/info", None, 200),
        ("/health", None, 403),
        ("/health/backlog", None, 403),
        ("/health", VIEWER, 200),
        ("/health/backlog", VIEWER, 200),
    ],
)
async def test_health_is_for_those_with_a_role(tmp_path: Path, path: str, role: str | None, status: int) -> None:
    async with office(tmp_path) as o:
        await o.key("build-key-1234", role=role)
        assert (await o.ask(path, key="sk-build-key-1234")).status_code == status
        assert (await o.ask(path, key="sk-other-key-1234")).status_code == 401
