from __future__ import annotations

import pytest

from tproxy.flow.route import Manage, Passage, Probe, route
from tproxy.protocol.target import Target


@pytest.mark.parametrize(
    ("method", "path", "prefix", "upstream"),
    [
        ("POST", b"/anthropic/v1/messages", b"/anthropic", b"/v1/messages"),
        ("POST", b"/v1/messages", b"", b"/v1/messages"),
        ("GET", b"/anthropic/v1/some/new/endpoint", b"/anthropic", b"/v1/some/new/endpoint"),
        ("GET", b"/anthropic/api/hello", b"/anthropic", b"/api/hello"),
        ("PATCH", b"/anthropic/v1/x%41/", b"/anthropic", b"/v1/x%41/"),
        ("GET", b"/anthropic/key/list", b"/anthropic", b"/key/list"),
    ],
)
def test_what_goes_to_the_upstream(method: str, path: bytes, prefix: bytes, upstream: bytes) -> None:
    where = route(method, Target(path, b"beta=true"))
    assert where == Passage(method, prefix, upstream, b"beta=true")
    assert where.target == upstream + b"?beta=true"


def test_the_query_is_kept_as_it_came() -> None:
    for query, text in ((None, b"/v1/models"), (b"", b"/v1/models?"), (b"a=1&a=2&&=", b"/v1/models?a=1&a=2&&=")):
        where = route("GET", Target(b"/anthropic/v1/models", query))
        assert isinstance(where, Passage)
        assert where.target == text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", b"/"),
        ("HEAD", b"/anthropic"),
        ("GET", b"/anthropic"),
        ("GET", b"/anthropic/"),
    ],
)
def test_probes(method: str, path: bytes) -> None:
    assert route(method, Target(path, None)) == Probe()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/"),
        ("POST", b"/anthropic"),
        ("GET", b"/anthropicx/v1/messages"),
        ("GET", b"/v1"),
        ("GET", b"/v1x/messages"),
        ("POST", b"/key/generate"),
        ("GET", b"/health/liveness"),
    ],
)
def test_what_stays_here(method: str, path: bytes) -> None:
    assert route(method, Target(path, None)) == Manage()


@pytest.mark.parametrize(
    ("method", "path", "held", "inference", "free"),
    [
        ("POST", b"/v1/messages", True, True, False),
        ("POST", b"/v1/complete", True, True, False),
        ("POST", b"/v1/messages/count_tokens", True, False, True),
        ("GET", b"/v1/messages", False, False, True),
        ("POST", b"/v1/messages/batches", False, False, False),
        ("POST", b"/v1/messages/batches/b1/cancel", False, False, True),
        ("POST", b"/v1/files", False, False, True),
        ("GET", b"/v1/files/f1/content", False, False, True),
        ("DELETE", b"/v1/files/f1", False, False, True),
        ("POST", b"/v1/sessions/s1/events", False, False, False),
    ],
)
def test_what_a_passage_costs_and_how_its_body_is_read(
    method: str, path: bytes, held: bool, inference: bool, free: bool
) -> None:
    passage = Passage(method, b"", path, None)
    assert (passage.held, passage.inference, passage.free) == (held, inference, free)
