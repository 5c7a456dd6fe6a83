from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.flow.known import Known, digest, key
from tproxy import errors
from tproxy.errors import Header
from tproxy.flow.identify import ANONYMOUS, MASTER, Caller, KeyRing, check_open
from tproxy.protocol.keys import compose
from tproxy.store.subjects import TEAM, USER, Subject

NOW_US = 1_800_000_000_000_000
MISSPELT = compose(bytes(range(32)))[:-2] + ("aa" if not compose(bytes(range(32))).endswith("aa") else "bb")

TEAM_1 = Subject(kind=TEAM, id="t1", models=("claude-*",), tags=("a", "of the team"))
KEYS = [
    key("sk-good", "good", team="t1", user="u1", tags=("a",), models=("claude-*",)),
    key("sk-blocked", "blocked", blocked=True),
    key("sk-expired", "expired", expires_us=NOW_US),
    key("sk-soon", "soon", expires_us=NOW_US + 1),
    key("sk-management", "management", inference=False),
    key("sk-team-blocked", "of a blocked team", team="t2"),
    key("sk-user-blocked", "of a blocked user", user="u2"),
    key("sk-old", "old", replaced_by=digest("sk-good"), expires_us=NOW_US + 1),
    key("sk-older", "older", replaced_by=digest("sk-good"), expires_us=NOW_US),
    key("sk-replaced", "replaced", replaced_by=digest("sk-blocked"), expires_us=NOW_US + 1),
    key(MISSPELT, "cannot be"),
]
KNOWN = Known(
    [*KEYS, TEAM_1, Subject(kind=TEAM, id="t2", blocked=True), Subject(kind=USER, id="u2", alias="Eve", blocked=True)]
)


def ring(access: str = "keys", api_keys: Sequence[str] = ("sk-ant-real",)) -> KeyRing:
    return KeyRing(access, digest("sk-master"), KNOWN, api_keys)


GOOD = Caller("key:" + digest("sk-good"), "good", "t1", "u1", ("a", "of the team"), (KEYS[0], TEAM_1))

Headers = list[Header]


@pytest.mark.parametrize(
    ("headers", "caller", "form"),
    [
        ([(b"x-api-key", b"sk-good")], GOOD, "x-api-key"),
        ([(b"Authorization", b"Bearer sk-good")], GOOD, "bearer"),
        ([(b"authorization", b"bearer  sk-good")], GOOD, "bearer"),
        ([(b"api-key", b"sk-good")], GOOD, "x-api-key"),
        ([(b"x-litellm-api-key", b"sk-good")], GOOD, "x-api-key"),
        ([(b"x-litellm-api-key", b"Bearer sk-good")], GOOD, "x-api-key"),
        ([(b"x-api-key", b"sk-other"), (b"Authorization", b"Bearer sk-good")], GOOD, "bearer"),
        ([(b"Authorization", b"Bearer sk-other"), (b"x-litellm-api-key", b"sk-good")], GOOD, "x-api-key"),
        ([(b"x-api-key", b"sk-master")], MASTER, "x-api-key"),
        ([(b"x-api-key", b"sk-old")], GOOD, "x-api-key"),  # in its grace period, it is the one that replaced it
    ],
)
def test_known_keys(headers: Headers, caller: Caller, form: str) -> None:
    found, credential = ring().identify(headers, NOW_US)
    assert found == caller
    assert (credential.form, credential.value) == (form, b"sk-ant-real")


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([], errors.KeyMissing),
        ([(b"Authorization", b"Basic c2stZ29vZDo=")], errors.KeyMissing),
        ([(b"x-api-key", b"sk-nobody")], errors.KeyUnknown),
        ([(b"x-api-key", b"sk-good"), (b"Authorization", b"Bearer sk-nobody")], errors.KeyUnknown),
        ([(b"x-api-key", b"sk-blocked")], errors.KeyBlocked),
        ([(b"x-api-key", b"sk-expired")], errors.KeyExpired),
        ([(b"x-api-key", b"sk-team-blocked")], errors.KeyBlocked),
        ([(b"x-api-key", b"sk-user-blocked")], errors.KeyBlocked),
        ([(b"x-api-key", b"sk-older")], errors.KeyExpired),
        ([(b"x-api-key", b"sk-replaced")], errors.KeyBlocked),
        ([(b"x-api-key", MISSPELT.encode())], errors.KeyUnknown),
        ([(b"x-api-key", b"sk-good"), (b"x-api-key", b"sk-nobody")], errors.BadRequest),
    ],
)
def test_who_is_not_let_in(headers: Headers, fault: type[errors.Fault]) -> None:
    with pytest.raises(fault) as caught:
        ring().identify(headers, NOW_US)
    assert b"sk-nobody" not in errors.envelope(caught.value, "id")
    if fault is not errors.BadRequest:
        assert (b"x-should-retry", b"false") in caught.value.headers


def test_a_key_for_the_management_api_opens_nothing_else() -> None:
    with pytest.raises(errors.RouteNotAllowed):
        ring().identify([(b"x-api-key", b"sk-management")], NOW_US)


def test_a_refusal_says_what_is_blocked_or_misspelt() -> None:
    for presented, said in ((b"sk-user-blocked", "user 'Eve'"), (MISSPELT.encode(), "misspelt")):
        with pytest.raises(errors.AuthenticationFault) as caught:
            ring().identify([(b"x-api-key", presented)], NOW_US)
        assert said in caught.value.message


def test_a_key_works_up_to_its_expiry() -> None:
    assert ring().identify([(b"x-api-key", b"sk-soon")], NOW_US)[0].alias == "soon"


@pytest.mark.parametrize("headers", [[], [(b"x-api-key", b"sk-anything")], [(b"Authorization", b"bearer sk-anything")]])
def test_open_takes_any_key_or_none(headers: Headers) -> None:
    caller, credential = ring("open").identify(headers, NOW_US)
    assert caller == ANONYMOUS
    assert credential.value == b"sk-ant-real"


def test_open_still_knows_the_keys_that_it_has() -> None:
    assert ring("open").identify([(b"x-api-key", b"sk-good")], NOW_US)[0] == GOOD


def test_an_oauth_token_is_always_a_bearer_token() -> None:
    credential = ring(api_keys=["sk-ant-oat01-x"]).identify([(b"x-api-key", b"sk-good")], NOW_US)[1]
    assert credential.form == "bearer"


def test_one_caller_always_gets_the_same_of_several_keys() -> None:
    several = ring("open", [f"sk-ant-{n}" for n in range(4)])
    choose: Callable[[bytes], bytes] = lambda name: several.identify([(b"x-api-key", name)], NOW_US)[1].value  # noqa: E731
    assert len({choose(b"sk-good") for _ in range(5)}) == 1


def test_another_key_moves_few_callers() -> None:
    before, after = ring("keys", [f"sk-ant-{n}" for n in range(4)]), ring("keys", [f"sk-ant-{n}" for n in range(5)])
    callers = [Caller(f"key:{n}") for n in range(400)]
    moved = [caller for caller in callers if before._credential(caller, b"") != after._credential(caller, b"")]
    assert 40 < len(moved) < 130
    assert {after._credential(caller, b"").value for caller in moved} == {b"sk-ant-4"}


OWN_TOKEN = "sk-ant-api03-mine"
OWN = Caller("own:" + digest(OWN_TOKEN))


@pytest.mark.parametrize(
    ("headers", "caller", "form"),
    [
        ([(b"x-api-key", OWN_TOKEN.encode())], OWN, "x-api-key"),
        ([(b"Authorization", b"Bearer " + OWN_TOKEN.encode())], OWN, "bearer"),
        ([(b"api-key", OWN_TOKEN.encode())], OWN, "x-api-key"),
        ([(b"x-litellm-api-key", b"sk-good"), (b"Authorization", b"Bearer " + OWN_TOKEN.encode())], GOOD, "bearer"),
        ([(b"Authorization", b"Bearer sk-good"), (b"x-api-key", OWN_TOKEN.encode())], GOOD, "x-api-key"),
    ],
)
def test_own_forwards_the_clients_credential(headers: Headers, caller: Caller, form: str) -> None:
    found, credential = ring("own", []).identify(headers, NOW_US)
    assert found == caller
    assert (credential.form, credential.value) == (form, OWN_TOKEN.encode())
    assert OWN_TOKEN not in repr(credential)


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([], errors.KeyMissing),
        ([(b"x-litellm-api-key", b"sk-good")], errors.KeyMissing),
        ([(b"x-api-key", b"sk-good")], errors.KeyMissing),
        ([(b"Authorization", b"Bearer sk-master")], errors.KeyMissing),
        ([(b"x-litellm-api-key", b"sk-nobody"), (b"x-api-key", OWN_TOKEN.encode())], errors.KeyUnknown),
        ([(b"Authorization", b"Bearer Bearer sk-good")], errors.KeyUnknown),
        ([(b"Authorization", b"Bearer sk-good ;")], errors.KeyUnknown),
        ([(b"Authorization", b"Bearer sk-goof")], errors.KeyUnknown),
        ([(b"x-litellm-api-key", b"sk-good"), (b"Authorization", b"Bearer sk-gone")], errors.KeyMissing),
        ([(b"Authorization", b"Bearer sk-ant-a sk-good")], errors.KeyUnknown),
    ],
    ids=[
        "none",
        "no own one",
        "a virtual key",
        "the master key",
        "unknown proxy key",
        "a scheme too many",
        "something behind it",
        "mistyped",
        "an old one beside it",
        "two words",
    ],
)
def test_own_never_forwards_a_key_of_the_proxy(headers: Headers, fault: type[errors.Fault]) -> None:
    with pytest.raises(fault):
        ring("own", []).identify(headers, NOW_US)


def test_the_real_keys_do_not_show() -> None:
    assert "sk-ant-real" not in repr(ring())


@pytest.mark.parametrize(
    ("is_local", "origin", "fault"),
    [
        (True, None, None),
        (True, b"http://localhost:3000", None),
        (True, b"http://127.0.0.1:4000", None),
        (True, b"https://[::1]", None),
        (True, b"https://evil.example", errors.RouteNotAllowed),
        (True, b"http://localhost.evil.example", errors.RouteNotAllowed),
        (True, b"null", errors.RouteNotAllowed),
        (True, b"\xff", errors.RouteNotAllowed),
        (False, None, errors.KeyMissing),
    ],
)
def test_open_is_for_this_machine_and_not_for_web_pages(
    is_local: bool, origin: bytes | None, fault: type[errors.Fault] | None
) -> None:
    if fault is None:
        check_open(is_local, origin)
    else:
        with pytest.raises(fault):
            check_open(is_local, origin)
