from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.fake_api import Answer, FakeApi, fake_api
from tproxy import client
from tproxy.client import Api, ApiFault

KEY = "sk-master-0123456789"


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with fake_api() as api:
        yield api


def fault(server: FakeApi, answer: Answer) -> ApiFault:
    """What asking for something comes to."""
    server.answers["POST /key/block"] = answer
    with Api(server.url, KEY) as api, pytest.raises(ApiFault) as caught:
        api.post("/key/block", {"key": "a"})
    assert KEY not in str(caught.value)
    return caught.value


def test_what_is_sent(server: FakeApi) -> None:
    server.answers = {"GET /key/list": Answer(body={"keys": []}), "POST /key/generate": Answer(body=["x"])}
    with Api(server.url + "/", f" {KEY}\n") as api:
        assert api.get("/key/list", page=2, team_id="a&b=c", user_id=None) == {"keys": []}
        assert api.post("/key/generate", {"models": ["é"], "blocked": None}) == ["x"]
    listed, made = server.asked
    assert listed.query == {"page": "2", "team_id": "a&b=c"}
    assert made.body == {"models": ["é"], "blocked": None}
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}


def test_a_server_below_a_path(server: FakeApi) -> None:
    server.answers = {"GET /llm/key/list": Answer(body=[])}
    with Api(f"{server.url}/llm/", KEY) as api:
        assert api.get("/key/list") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param({"error": {"message": "no such key", "type": "x", "code": "404"}}, "no such key", id="litellm"),
        pytest.param({"type": "error", "error": {"type": "t", "message": "m"}}, "m", id="anthropic"),
        pytest.param({"detail": "Not allowed"}, "Not allowed", id="fastapi"),
        pytest.param({"detail": {"error": "User not found"}}, "User not found", id="litellm's detail"),
        pytest.param(
            {"detail": [{"loc": ["body", "budget_limits", 0, "max_budget"], "msg": "is no amount"}, {"msg": "and"}]},
            "budget_limits.0.max_budget: is no amount; and",
            id="fields",
        ),
        pytest.param({"error": {"message": "two\n  lines"}}, "two lines", id="lines"),
        pytest.param({"error": {"message": f"your key is {KEY}"}}, "your key is …", id="a key repeated"),
        pytest.param({"error": {"message": "x" * 5000}}, "x" * 600 + "…", id="long"),
    ],
)
def test_an_error_is_one_sentence(server: FakeApi, body: object, said: str) -> None:
    error = fault(server, Answer(400, body))
    assert str(error) == f"{server.url} says 400: {said}"
    assert error.status == 400


def test_a_key_that_is_not_taken(server: FakeApi) -> None:
    error = fault(server, Answer(401, {"error": {"message": "unknown key"}}))
    assert str(error) == f"{server.url} does not take the key in TPROXY_MASTER_KEY: unknown key"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(200, b"<html>", id="a web page"),
        pytest.param(502, b"<html>", id="a gateway's page"),
        pytest.param(200, b"", id="nothing"),
        pytest.param(404, {"error": {"message": 7}}, id="no text"),
        pytest.param(404, ["x"], id="a list"),
        pytest.param(200, b"[" * 100_000, id="too deep"),
        pytest.param(200, b"\xff", id="no UTF-8"),
    ],
)
def test_something_else_answers(server: FakeApi, status: int, body: object) -> None:
    sentence = str(fault(server, Answer(status, body)))
    assert (
        sentence == f"{server.url} answered POST /key/block with {status} and not as tproxy does: is the address right?"
    )


def test_the_key_follows_no_redirect(server: FakeApi) -> None:
    with fake_api() as elsewhere:
        error = fault(server, Answer(307, {}, {"location": f"{elsewhere.url}/key/block"}))
        assert "elsewhere (307)" in str(error)
        assert not elsewhere.asked


def test_no_proxy_of_the_environment_stands_before_this_machine(
    server: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = {"GET /key/list": Answer(body=[])}
    with fake_api() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Api(server.url, KEY) as api:
            assert api.get("/key/list") == []
        assert not proxy.asked


def test_nothing_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with Api(url, KEY) as api, pytest.raises(ApiFault) as caught:
            api.get("/key/list")
    assert str(caught.value).startswith(f"cannot reach {url} (")
    assert str(caught.value).endswith("start it with `tproxy serve`, or say where it is with --url or TPROXY_URL")
    assert caught.value.status is None


class Broken(urllib.request.OpenerDirector):
    """A network that fails."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault

    def open(self, *_: object, **__: object) -> NoReturn:
        raise self.fault


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError("t"), "has not answered within 60 seconds"),
        (urllib.error.URLError(TimeoutError("timed out")), "cannot reach http://a.example (timed out)"),
        (urllib.error.URLError(ConnectionResetError("reset")), "gave no whole answer (reset)"),
        (http.client.RemoteDisconnected("peer closed"), "gave no whole answer (peer closed)"),
        (ConnectionResetError("reset\nby peer"), "gave no whole answer (reset by peer)"),
        (http.client.BadStatusLine("x"), "gave no whole answer (x)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_fails(error: Exception, said: str) -> None:
    with Api("http://a.example", KEY, opener=Broken(error)) as api, pytest.raises(ApiFault) as caught:
        api.get("/key/list")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n",
        b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n[]",
    ],
    ids=["length", "chunks", "a refusal"],
)
def test_an_answer_that_is_cut_is_none(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(said)

        server = threading.Thread(target=answer)
        server.start()
        with Api(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY) as api, pytest.raises(ApiFault) as caught:
            api.get("/key/list")
        server.join()
    assert "gave no whole answer" in str(caught.value)


def test_an_answer_has_a_bound_and_a_deadline(server: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1 << 20)
    assert "larger than 1 MiB" in str(fault(server, Answer(200, b" " * (1 << 21))))
    monkeypatch.setattr(client, "ANSWER_SECONDS", -1)
    assert "whole within" in str(fault(server, Answer(200, b"[]")))


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("127.0.0.1:4000", KEY, "no address of a server"),
        ("ftp://127.0.0.1", KEY, "no address of a server"),
        ("http://", KEY, "no address of a server"),
        ("http://a\nb", KEY, "no address of a server"),
        ("http://a:port", KEY, "no address of a server"),
        ("http://a?x=1", KEY, "no address of a server"),
        ("http://u:p@a", KEY, "must hold no user and password"),
        ("http://a", "", "TPROXY_MASTER_KEY is not set"),
        ("http://a", " \n", "TPROXY_MASTER_KEY is not set"),
        ("http://a", "sk-a\nx-b: c", "holds something that is no key"),
        ("http://a", "sk-é", "holds something that is no key"),
    ],
)
def test_what_cannot_be_asked(url: str, key: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Api(url, key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "proxy.example", "10.0.0.1"])
def test_a_proxy_stands_between_only_on_the_way_to_another_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    asked: list[str] = []

    class Spy(http.client.HTTPConnection):
        def connect(self) -> None:
            asked.append(f"{self.host}:{self.port}")
            raise ConnectionRefusedError

    monkeypatch.setattr(http.client, "HTTPConnection", Spy)
    with Api(f"http://{host}", KEY) as api, pytest.raises(ApiFault, match="cannot reach"):
        api.get("/key/list")
    assert (asked == ["127.0.0.1:9"]) == (host in ("proxy.example", "10.0.0.1"))
