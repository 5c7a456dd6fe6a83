from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse
from structlog.testing import capture_logs

from tests.flow.known import Known
from tests.manage.desk import MASTER, digest, office
from tproxy.errors import RouteUnknown
from tproxy.manage import faults
from tproxy.manage.app import build
from tproxy.manage.desk import Desk
from tproxy.manage.gate import BODY_SECONDS, MAX_BODY, Gate
from tproxy.store.directory import Directory

Message = MutableMapping[str, Any]
JSON = {"content-type": "application/json"}


class Client:
    """A client of the gate that sends its body piece by piece."""

    def __init__(self, *pieces: bytes, headers: dict[str, str] | None = None, leaves: bool = False) -> None:
        self.pieces = list(pieces)
        self.leaves = leaves
        self.sent: list[Message] = []
        self.gone = False
        lines = {"authorization": f"Bearer {MASTER}", **(headers or {})}
        self.scope: Message = {
            "type": "http",
            "method": "POST",
            "path": "/key/generate",
            "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
        }

    async def receive(self) -> Message:
        if self.pieces:
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}
        if self.leaves:
            return {"type": "http.disconnect"}
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        if self.gone:
            raise ConnectionResetError
        self.sent.append(message)

    @property
    def error(self) -> Any:
        start, *bodies = self.sent
        error = json.loads(b"".join(message["body"] for message in bodies))["error"]
        assert error["code"] == str(start["status"])
        return error


class Inner:
    """What stands behind the gate in these tests."""

    def __init__(self, answer: Callable[[], JSONResponse] = lambda: JSONResponse({})) -> None:
        self.bodies: list[bytes] = []
        self.answer = answer

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.bodies.append(await Request(scope, receive).body())
        await self.answer()(scope, receive, send)


def gate(inner: Inner) -> Gate:
    desk = Desk(
        directory=cast(Directory, Known()),
        database=Path("/nowhere"),
        clock=lambda: 0,
        zone=cast(Any, None),
        master=lambda: digest(MASTER),
        prices=cast(Any, None),
        models=list,
        unready=lambda: None,
        running=lambda: 0,
        mode=lambda: "expected",
    )
    return Gate(inner, desk)


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        pytest.param({"content-length": str(MAX_BODY + 1)}, (), id="said to be too long"),
        pytest.param({"content-length": "9" * 5000}, (), id="said to be absurdly long"),
        pytest.param({}, (b"x" * MAX_BODY, b"x"), id="too long"),
        pytest.param({"content-length": "1"}, (b"x" * (MAX_BODY + 1),), id="longer than said"),
    ],
)
async def test_a_body_has_a_bound(headers: dict[str, str], pieces: tuple[bytes, ...]) -> None:
    inner, client = Inner(), Client(*pieces, headers=headers)
    await gate(inner)(client.scope, client.receive, client.send)
    assert client.error["type"] == "request_too_large"
    assert client.error["code"] == "413"
    assert inner.bodies == []


async def test_a_body_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    inner, client = Inner(), Client(b"{")
    await gate(inner)(client.scope, client.receive, client.send)
    assert client.error["code"] == "408"
    assert trio.current_time() == BODY_SECONDS
    assert inner.bodies == []


async def test_nobody_is_asked_for_a_body_before_it_is_known_who_it_is() -> None:
    inner, client = Inner(), Client(headers={"authorization": "Bearer sk-unknown-to-all"})
    await gate(inner)(client.scope, client.receive, client.send)  # would wait for ever for a body
    assert client.error["code"] == "401"


@pytest.mark.parametrize("pieces", [(), (b"{",)])
async def test_a_client_that_leaves_before_its_body_is_whole(pieces: tuple[bytes, ...]) -> None:
    inner, client = Inner(), Client(*pieces, leaves=True)
    await gate(inner)(client.scope, client.receive, client.send)
    assert (client.sent, inner.bodies) == ([], [])


@pytest.mark.parametrize("headers", [{}, {"content-length": str(MAX_BODY + 1)}, {"authorization": "Bearer sk-none"}])
async def test_a_client_that_is_not_there_to_be_answered(headers: dict[str, str]) -> None:
    client = Client(headers=headers)
    client.scope["method"] = "GET"
    client.gone = True

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await gate(Inner())(client.scope, receive, client.send)
    assert client.sent == []


async def test_no_body_is_sent_for_head() -> None:
    client = Client(headers={"content-length": "0"})
    client.scope["method"] = "HEAD"

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await gate(Inner(lambda: JSONResponse({"a": 1})))(client.scope, receive, client.send)
    assert client.sent[0]["status"] == 200
    assert (b"content-length", b"7") in client.sent[0]["headers"]
    assert [message["body"] for message in client.sent[1:]] == [b""]


async def test_other_protocols_are_not_served() -> None:
    inner, client = Inner(), Client()
    client.scope["type"] = "websocket"
    await gate(inner)(client.scope, client.receive, client.send)
    assert (client.sent, inner.bodies) == ([], [])


async def test_a_bug_is_logged_and_says_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        app = build(o.desk)

        @app.get("/key/broken/{key}")
        async def broken(key: str) -> None:
            raise RuntimeError("something inside")

        o.manage._api = Gate(app, o.desk)
        with capture_logs() as logged:
            answer = await o.get("/key/broken/sk-in-the-path")
        assert answer.status == 500
        assert answer.error["type"] == "internal_server_error"
        assert "inside" not in answer.response.text
        [line] = [each for each in logged if each["log_level"] == "error"]
        assert (line["log_level"], line["exc_info"]) == ("error", True)
        assert "sk-in-the-path" not in repr(line)
        assert (await o.get("/key/list")).status == 200


# A body, and what is answered to it. None of them is a bug.
BODIES: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 422),
    "nothing": (b"", 422),
    "no object": (b"[]", 422),
    "null": (b"null", 422),
    "no UTF-8": (b'{"key_alias": "\xff"}', 400),
    "deep": (b"[" * 100_000, 400),
    "deep in a field": (b'{"metadata":' + b'{"a":' * 500 + b"1" + b"}" * 501, 422),
    "a number of many digits": (b'{"max_budget": ' + b"9" * 5000 + b"}", 400),
    "a large number": (b'{"max_budget": 1e400}', 422),
    "NaN": (b'{"max_budget": NaN}', 422),
    "NaN within": (b'{"metadata": {"a": [NaN]}}', 422),
    "infinity within": (b'{"metadata": {"a": -Infinity}}', 422),
    "half a pair": (b'{"key_alias": "\\ud800"}', 422),
    "half a pair within": (b'{"metadata": {"\\udfff": 1}}', 422),
    "a number beyond 64 bits": (b'{"metadata": {"a": 36893488147419103232}}', 422),
    "a large metadata": (b'{"metadata": {"a": "' + b"x" * 70_000 + b'"}}', 422),
    "a large kept field": (b'{"config": {"a": "' + b"x" * 70_000 + b'"}}', 422),
    "NUL": (b'{"key_alias": "a\\u0000b"}', 422),
    "a line's end": (b'{"team_id": "a\\r\\nx: y"}', 422),
    "a long text": (b'{"user_id": "' + b"x" * 257 + b'"}', 422),
    "twice the same field": (b'{"rpm_limit": 1, "rpm_limit": -1}', 422),
}


async def test_who_asked_for_a_change_is_logged_without_the_path(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        key, _ = await o.make(key_type="management", user_id="someone")
        with capture_logs() as logged:
            assert (await o.post("/key/sk-in-the-path/regenerate", {}, who=key)).status == 404
            assert (await o.post("/key/generate", {"key_alias": "a"})).status == 200
            assert (await o.get("/key/list")).status == 200
            assert (await o.get("/key/list", who="sk-of-a-stranger")).status == 401
        changes = [line for line in logged if line["event"] == "asked"]
        assert [(line["route"], line["by"], line["status"]) for line in changes] == [
            ("/key/{key}/regenerate", "someone", 404),
            ("/key/generate", "master", 200),
        ]
        [refused] = [line for line in logged if line["event"] == "not let in"]
        assert (refused["status"], refused["why"]) == (401, "token_not_found_in_db")
        assert "sk-" not in repr(logged)


async def test_no_body_is_too_strange(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        headers = {**JSON, "authorization": f"Bearer {MASTER}"}
        for name, (body, status) in BODIES.items():
            response = await o.client.post("/key/generate", content=body, headers=headers)
            assert response.status_code == status, (name, response.text[:300])
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}, name
            assert len(response.content) < 2000, name
        assert (await o.get("/key/list")).ok["total_count"] == 0


async def test_a_body_that_is_not_said_to_be_json(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        headers = {"content-type": "application/x-www-form-urlencoded", "authorization": f"Bearer {MASTER}"}
        response = await o.client.post("/key/generate", content=b'{"rpm_limit": 1}', headers=headers)
        assert response.status_code == 422
        assert "content-type: application/json" in response.json()["error"]["message"]


async def test_a_field_that_does_not_validate_is_named_and_its_value_is_not(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        answer = await o.post(
            "/key/generate", rpm_limit="sk-secret-value", budget_limits=[{"max_budget": -1, "budget_duration": "sk-x"}]
        )
        assert answer.status == 422
        assert answer.error["param"] == "budget_limits.0.budget_duration"
        assert {tuple(each["loc"]) for each in answer.json["detail"]} == {
            ("body", "rpm_limit"),
            ("body", "budget_limits", 0, "max_budget"),
            ("body", "budget_limits", 0, "budget_duration"),
        }
        assert all(set(each) == {"loc", "msg", "type"} for each in answer.json["detail"])
        assert "secret" not in answer.response.text
        assert (await o.get("/key/list", page=0)).error["param"] == "page"
        answer = await o.post("/key/generate", model_rpm_limit={"sk-secret-value": -1})
        assert answer.error["param"] == "model_rpm_limit.[key]"
        assert "secret" not in answer.response.text


async def test_head_is_get_without_the_body(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for path in ("/key/list", "/docs", "/key/unheard-of", "/health/readiness"):
            full, head = await o.ask("GET", path), await o.ask("HEAD", path)
            assert head.status == full.status, path
            assert head.response.headers == full.response.headers
        assert (await o.ask("HEAD", "/key/list")).response.content == b""
        assert (await o.ask("HEAD", "/key/list", who=None)).status == 401
        assert (await o.ask("HEAD", "/key/generate")).status == 405


# Spellings of a route that must not reach it, nor anything else.
SPELLINGS = [
    b"/%6bey/list",
    b"/key%2flist",
    b"/key/list%00",
    b"/key/%2e%2e/key/list",
    b"/KEY/list",
    b"/key/list/",
    b"//key/list",
    b"/key//list",
    b"/key/./list",
    b"/x/../key/list",
    b"/key/list;x",
    b"/anthropic%2f..%2fkey/list",
    b"/key\\list",
    "/kéy/list".encode(),
]


async def test_a_path_is_what_it_came_as(tmp_path: Path) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async with office(tmp_path) as o:
        for path in SPELLINGS:
            sent: list[Message] = []

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            scope = {
                "type": "http",
                "method": "GET",
                "raw_path": path,
                "path": "/key/list",  # as a server that decodes it would have it
                "query_string": b"",
                "headers": [(b"authorization", f"Bearer {MASTER}".encode())],
                "root_path": "/somewhere",
            }
            with suppress(RouteUnknown):  # which is answered with 404
                await o.manage(scope, receive, send)
                assert sent[0]["status"] == 404, path
            assert b"total_count" not in b"".join(message.get("body", b"") for message in sent), path


async def test_a_key_in_a_path_is_not_repeated(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for path in ("/key/sk-secret/regenerate%20", "/%6bey/sk-secret", "/key/sk-secret/nothing"):
            answer = await o.ask("POST", path)
            assert answer.status == 404
            assert "secret" not in answer.response.text
        for path in ("/key/%73k-x/regenerate", "/key/sk-\u00e9/regenerate"):
            answer = await o.ask("POST", path, {})
            assert "spelt without %" in answer.error["message"]
        with pytest.raises(RouteUnknown) as raised:
            await o.post("/keys/sk-secret/regenerate")
        assert "secret" not in raised.value.message


# What goes wrong, and what is said of it.
SAID = {
    "There is no team 'sk-1234567890abcdef'.": "There is no team 'sk-...'.",
    'There is no team "sk-it\'s-a-key".': 'There is no team "sk-...".',
    "There is no team '\\nsk-1234567890abcdef'.": "There is no team '\\nsk-...'.",
    "sk-a, sk-b; (sk-c)": "sk-..., sk-...; (sk-...)",
    "There is no team 'task-force'.": "There is no team 'task-force'.",
    "key must begin with sk-": "key must begin with sk-",
    "must not begin with sk-ant-: that is Anthropic's": "must not begin with sk-ant-: that is Anthropic's",
    "the form of a generated key (sk- and 49 letters)": "the form of a generated key (sk- and 49 letters)",
}


@pytest.mark.parametrize(("message", "said"), SAID.items())
def test_what_looks_like_a_key_is_not_said(message: str, said: str) -> None:
    assert faults.masked(message) == said
    page = faults.page(faults.Unprocessable(message, param="x"))
    assert page["error"]["message"] == page["detail"][0]["msg"] == said


async def test_a_key_where_an_id_belongs_is_not_repeated(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        secret = "sk-secret-that-came-into-the-wrong-field"
        await o.make(key_alias=secret)
        for answer in (
            await o.get("/team/info", team_id=secret),
            await o.get("/team/info", team_id=f"\n{secret}"),
            await o.get("/user/info", user_id=secret),
            await o.get("/customer/info", end_user_id=secret),
            await o.post("/budget/update", budget_id=secret),
            await o.post("/key/generate", budget_id=secret),
            await o.post("/key/generate", key_alias=secret),
            await o.post("/team/delete", team_ids=[secret]),
            await o.post("/tag/delete", name=secret),
        ):
            assert answer.status in (400, 404)
            assert "secret" not in answer.response.text


async def test_the_page_describes_every_route_and_loads_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        document = (await o.ask("GET", "/openapi.json", who=None)).ok
        page = await o.ask("GET", "/docs", who=None)
        assert page.status == 200
        assert page.response.headers["content-security-policy"].startswith("default-src 'none'")
        text = page.response.text
        for path in document["paths"]:
            assert f"<code>{path}</code>" in text
        for name in ("budget_mode", "cut_at_budget", "budget_wait", "itpm_limit", "otpm_limit", "role"):
            assert f"<code>{name}</code>" in text
        for name in ("expected | hard | soft", "admin | viewer", "members_with_roles"):
            assert name in text
        assert "http://" not in text
        assert "https://" not in text
        assert "<script" not in text
        assert {"/key/generate", "/team/member_add", "/end_user/block", "/spend/logs"} <= set(document["paths"])
        assert document["components"]["securitySchemes"]
        unsaid = [
            path
            for path, methods in document["paths"].items()
            for each in methods.values()
            if not each.get("description") or not each.get("summary")
        ]
        assert unsaid == []


async def test_answers_are_not_kept_by_anybody(tmp_path: Path) -> None:
    async with office(tmp_path) as o:
        for who in (MASTER, None):
            headers = (await o.get("/key/list", who=who)).response.headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
