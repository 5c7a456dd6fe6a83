from __future__ import annotations

import pytest

from tests.flow.asgi import POST, Asked, stage
from tests.wire.peer import answers, close
from tproxy.alert.seen import CREDENTIALS_MAX, MODELS_MAX, REFUSED_MAX, Seen, Window
from tproxy.errors import BudgetExceeded, RateLimited
from tproxy.flow.course import Course
from tproxy.flow.identify import ANONYMOUS, Caller
from tproxy.flow.limits import Limiter
from tproxy.flow.observer import Refused, Sight
from tproxy.flow.pulse import Pulse
from tproxy.flow.route import Passage
from tproxy.flow.tap import Tap
from tproxy.store.base import FINISHED, UNPRICED, Closing, Opening
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


async def test_what_the_upstream_says_to_a_client_s_own_credential_says_nothing_of_ours() -> None:
    seen = Seen()
    headers = [(name, b"sk-ant-their-own" if name == b"x-api-key" else value) for name, value in POST]
    async with stage(answers(answer(401)), observers=[seen], access="own", api_keys=[]) as s:
        assert (await s.ask(Asked(headers=headers))).status == 401
    assert seen.credentials == {}
    assert list(seen.upstream._buckets.values()) == [[1, 0]]


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


def refused(fault: BudgetExceeded | RateLimited, key: str = "abc") -> Refused:
    of = Subject(kind="key", id=key), Subject(kind="team", id="a")
    caller = Caller(f"key:{key}", subjects=of)
    return Refused(id="1", method="POST", path="/", fault=fault, caller=caller, model=None, client_address=None)


def test_of_whose_requests_one_was_refused() -> None:
    seen = Seen()
    seen.refused(refused(RateLimited("too many")))
    assert seen.refused_of == set()
    seen.refused(refused(BudgetExceeded("spent")))
    assert seen.refused_of == {("proxy", ""), ("key", "abc"), ("team", "a")}


def unpriced(model: str) -> tuple[Sight, Closing]:
    """The end of an exchange with a model without a price."""
    course = Course("1", Passage("POST", b"", b"/v1/messages", None), 1, lambda: 1)
    end = Closing(id="1", ended=FINISHED, ended_us=1, model_served=model, certainty=UNPRICED)
    opening = Opening(id="1", accepted_us=1, method="POST", path="/v1/messages", upstream="test", caller="anonymous")
    taken = Limiter().take((), None, 0, 0, 0.0)
    return Sight(opening, course, Tap(course, Pulse()), ANONYMOUS, "own", taken, lambda: end), end


def test_what_is_kept_is_bounded() -> None:
    assert (CREDENTIALS_MAX, MODELS_MAX, REFUSED_MAX) == (100, 100, 1_000)
    seen = Seen()
    for number in range(CREDENTIALS_MAX + 1):
        seen._note(f"api_keys[{number}]", 200, 1)
    for number in range(MODELS_MAX + 1):
        seen.ended(*unpriced(f"claude-{number}"))
    for number in range(REFUSED_MAX + 1):
        seen.refused(refused(BudgetExceeded("spent"), f"{number}"))
    assert (len(seen.credentials), len(seen.unpriced), len(seen.refused_of)) == (100, 100, 1_000)
    assert "claude-99" in seen.unpriced
