from __future__ import annotations

import pytest

from tests.flow.known import key
from tproxy import errors
from tproxy.flow.allow import check_customer, check_model, check_route
from tproxy.flow.identify import Caller
from tproxy.flow.route import Passage
from tproxy.store.subjects import CUSTOMER, TAG, TEAM, USER, Subject, Terms

MESSAGES = Passage("POST", b"/anthropic", b"/v1/messages", None)


def caller(*subjects: Subject) -> Caller:
    return Caller("key:abc", "search", subjects=subjects)


def for_models(*models: str) -> Subject:
    return key("sk-search", "search", models=models)


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "claude-opus-5", True),
        ((), None, True),
        (("claude-opus-5",), "claude-opus-5", True),
        (("claude-haiku-*", "claude-opus-5"), "claude-haiku-4-5", True),
        (("claude-haiku-*",), "claude-opus-5", False),
        (("claude-opus-5",), "claude-opus-5-5", False),
        (("claude-opus-5",), "CLAUDE-OPUS-5", False),
        (("*",), None, False),
        (("claude-opus-4-8[1m]",), "claude-opus-4-8[1m]", True),
        (("claude-opus-4-8[1m]",), "claude-opus-4-8m", False),
        (("claude-*-4-?",), "claude-opus-4-8", False),
        (("claude-*-4-8", "x"), "claude-opus-4-8", True),
        (("*-4*8",), "claude-opus-4-8", True),
        (("claude-*opus-4-8*opus-4-8",), "claude-opus-4-8", False),
        (("a*a",), "a", False),
        (("*a*b*" * 50,), "ab" * 128, True),
        (("*a*b*" * 50 + "c",), "ab" * 128, False),
    ],
)
def test_the_list_of_models(models: tuple[str, ...], model: str | None, allowed: bool) -> None:
    if allowed:
        check_model([for_models(*models)], MESSAGES, model)
    else:
        with pytest.raises(errors.ModelNotAllowed):
            check_model([for_models(*models)], MESSAGES, model)


@pytest.mark.parametrize(
    ("key_models", "team_models", "user_models", "allowed"),
    [
        ((), ("claude-opus-5",), (), True),
        ((), ("claude-haiku-*",), (), False),
        (("claude-opus-5",), ("claude-haiku-*",), (), False),
        (("claude-opus-5",), (), ("claude-haiku-*",), False),
        (("all-team-models",), ("claude-opus-5",), (), True),
        (("all-team-models",), ("claude-haiku-*",), (), False),
        (("all-team-models",), (), (), True),
    ],
)
def test_every_list_has_a_say(
    key_models: tuple[str, ...], team_models: tuple[str, ...], user_models: tuple[str, ...], allowed: bool
) -> None:
    who = caller(
        for_models(*key_models),
        Subject(kind=TEAM, id="t", models=team_models),
        Subject(kind=USER, id="u", models=user_models),
    )
    if allowed:
        check_model(who.subjects, MESSAGES, "claude-opus-5")
    else:
        with pytest.raises(errors.ModelNotAllowed):
            check_model(who.subjects, MESSAGES, "claude-opus-5")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", b"/v1/messages", True),
        ("POST", b"/v1/messages/count_tokens", True),
        ("GET", b"/v1/models", True),
        ("POST", b"/v1/files", True),
        ("POST", b"/v1/messages/batches", False),
        ("POST", b"/v1/sessions", False),
    ],
)
def test_a_key_for_certain_models_may_not_run_what_cannot_be_read(method: str, path: bytes, allowed: bool) -> None:
    """A batch names a model in each of its requests; a top-level one says nothing about them."""
    passage = Passage(method, b"", path, None)
    if allowed:
        check_model([for_models("claude-opus-5")], passage, "claude-opus-5")
    else:
        with pytest.raises(errors.ModelNotAllowed):
            check_model([for_models("claude-opus-5")], passage, "claude-opus-5")


def test_limits_by_model_want_to_know_the_model() -> None:
    limited = key("sk-search", "search", terms=Terms(model_rpm={"claude-opus-*": 1}))
    check_model([limited], MESSAGES, "claude-haiku-4-5")
    for passage in (MESSAGES, Passage("POST", b"", b"/v1/messages/batches", None)):
        with pytest.raises(errors.ModelNotAllowed):
            check_model([limited], passage, None)


@pytest.mark.parametrize(
    ("routes", "path", "allowed"),
    [
        ((), b"/v1/files", True),
        (("/v1/messages",), b"/v1/messages", True),
        (("/v1/messages",), b"/v1/messages/count_tokens", False),
        (("/v1/messages*",), b"/v1/messages/count_tokens", True),
        (("/anthropic/v1/messages",), b"/v1/messages", True),
        (("/anthropic/*",), b"/v1/files", True),
        (("/v1/messages",), b"/v1/mess%61ges", False),
        (("llm_api_routes",), b"/v1/files", True),
        (("management_routes",), b"/v1/messages", False),
        (("info_routes", "/v1/models"), b"/v1/models", True),
    ],
)
def test_the_list_of_routes(routes: tuple[str, ...], path: bytes, allowed: bool) -> None:
    who = caller(key("sk-search", "search", routes=routes))
    for prefix in (b"", b"/anthropic"):
        if allowed:
            check_route(who, Passage("POST", prefix, path, None))
        else:
            with pytest.raises(errors.RouteNotAllowed) as caught:
                check_route(who, Passage("POST", prefix, path, None))
            assert "'search'" in caught.value.message


def test_a_blocked_customer_is_not_served() -> None:
    check_customer(None)
    check_customer(Subject(kind=CUSTOMER, id="c"))
    check_customer(Subject(kind=TAG, id="c", blocked=True))
    with pytest.raises(errors.CustomerBlocked):
        check_customer(Subject(kind=CUSTOMER, id="c", blocked=True))
