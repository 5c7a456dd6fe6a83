from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.asgi import Asked, stage
from tests.wire.peer import answers, close
from tproxy.alert.seen import CREDENTIALS_MAX, MODELS_MAX, Seen, Window
from tproxy.errors import BudgetExceeded, RateLimited
from tproxy.flow.identify import Caller
from tproxy.flow.observer import Refused
from tproxy.store.subjects import Subject


def answer(status: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


@pytest.mark.parametrize(
    ("status", "bad", "refused"),
    [
        pytest.param(200, 0, 0, id="well"),
        pytest.param(400, 0, 0, id="the client's fault"),
        pytest.param(429, 0, 0, id="its limits"),
        pytest.param(401, 0, 1, id="our credential"),
        pytest.param(403, 0, 1, id="what our credential may not do"),
        pytest.param(500, 1, 0, id="the upstream's fault"),
        pytest.param(529, 1, 0, id="overloaded"),
    ],
)
async def test_what_an_answer_tells(status: int, bad: int, refused: int) -> None:
    seen = Seen()
    async with stage(answers(answer(status)), observers=[seen]) as s:
        assert (await s.ask(Asked())).status == status
    [[name, credential]] = seen.credentials.items()
    now_us = credential.at_us
    assert seen.upstream.sums(now_us) == (1, bad)
    assert (name, credential.status, credential.window.sums(now_us)) == ("api_keys[0]", status, (1, refused))


async def test_an_upstream_that_breaks_off_failed_and_said_nothing_of_the_credential() -> None:
    seen = Seen()
    async with stage(close, observers=[seen]) as s:
        assert (await s.ask(Asked())).status == 502
    assert sum(bucket[1] for bucket in seen.upstream._buckets.values()) == 1
    assert seen.credentials == {}


async def test_a_model_without_a_price_is_noted() -> None:
    body = b'{"type":"message","id":"msg_1","model":"claude-next","usage":{"input_tokens":5,"output_tokens":7}}'
    seen = Seen()
    async with stage(answers(answer(200, body)), observers=[seen]) as s:
        assert (await s.ask(Asked())).status == 200
    assert seen.unpriced == {"claude-next"}


def test_a_window_forgets() -> None:
    window = Window()
    window.add(0, bad=True)
    window.add(200_000_000, bad=False)
    assert window.sums(200_000_000) == (2, 1)
    assert window.sums(301_000_000) == (1, 0)
    assert window.sums(900_000_000) == (0, 0)


def refused(fault: BudgetExceeded | RateLimited) -> Refused:
    key, team = Subject(kind="key", id="abc"), Subject(kind="team", id="a")
    caller = Caller("key:abc", subjects=(key, team))
    return Refused(id="1", method="POST", path="/", fault=fault, caller=caller, model=None, client_address=None)


def test_of_whose_requests_one_was_refused() -> None:
    seen = Seen()
    seen.refused(refused(RateLimited("too many")))
    assert seen.refused_of == set()
    seen.refused(refused(BudgetExceeded("spent")))
    assert seen.refused_of == {("proxy", ""), ("key", "abc"), ("team", "a")}


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    seen = Seen()
    for number in range(CREDENTIALS_MAX + MODELS_MAX):
        seen._note(f"api_keys[{number}]", 200, 1)
    assert len(seen.credentials) == CREDENTIALS_MAX
