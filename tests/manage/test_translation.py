from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tproxy.manage.asked import (
    BudgetNew,
    CustomerAsked,
    KeyNew,
    KeyUpdate,
    MemberAdd,
    TagAsked,
    TeamNew,
    UserNew,
    without_nulls,
)
from tproxy.manage.faults import Invalid, Unprocessable
from tproxy.manage.fields import iso, until_us
from tproxy.manage.translation import IDS, KEPT, LIMITS, NAMES, REFUSED, changed, row
from tproxy.store.base import Standing
from tproxy.store.money import Tally
from tproxy.store.subjects import (
    CUSTOMER,
    KEY,
    TAG,
    TEAM,
    TERMS,
    USER,
    Budget,
    Subject,
    Terms,
    from_document,
    to_document,
)

NOW = 1_795_000_000_000_000
DAY = 86_400_000_000
HASH = "ab" * 32
EMPTY = Subject(kind=KEY, id=HASH)


def key(**fields: Any) -> Subject:
    return changed(EMPTY, KeyNew.model_validate(fields), NOW)


def updated(subject: Subject, **fields: Any) -> Subject:
    return changed(subject, KeyUpdate.model_validate({"key": HASH, **fields}), NOW)


# LiteLLM's field and value: what the subject has of it.
FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"key_alias": "a"}, {"alias": "a"}),
    ({"key_alias": ""}, {}),
    ({"user_id": "u", "team_id": "t"}, {"user": "u", "team": "t"}),
    ({"models": ["a", "b*", "a"]}, {"models": ("a", "b*")}),
    ({"models": []}, {}),
    ({"models": ["all-team-models"]}, {"models": ("all-team-models",)}),
    ({"allowed_routes": ["/v1/messages"]}, {"routes": ("/v1/messages",)}),
    ({"tags": ["x", "y"]}, {"tags": ("x", "y")}),
    ({"metadata": {"a": {"b": [1, None, "c"]}}}, {"metadata": {"a": {"b": [1, None, "c"]}}}),
    ({"blocked": True}, {"blocked": True}),
    ({"budget_id": "b"}, {"terms_of": "b"}),
    ({"role": "admin"}, {"role": "admin"}),
    ({"key_type": "management"}, {"role": "admin", "inference": False, "kept": {"key_type": "management"}}),
    ({"key_type": "read_only"}, {"role": "viewer", "inference": False, "kept": {"key_type": "read_only"}}),
    ({"key_type": "llm_api"}, {"kept": {"key_type": "llm_api"}, "routes": ("llm_api_routes",)}),
    (
        {"key_type": "management", "role": None},
        {"role": "admin", "inference": False, "kept": {"key_type": "management"}},
    ),
    (
        {"key_type": "management", "role": "viewer"},
        {"role": "viewer", "inference": False, "kept": {"key_type": "management"}},
    ),
    ({"duration": "30d"}, {"expires_us": NOW + 30 * DAY}),
    ({"duration": "1mo", "expires": None}, {"expires_us": NOW + 30 * DAY}),
    ({"expires": "2027-01-01T01:00:00+01:00"}, {"expires_us": 1_798_761_600_000_000}),
    ({"expires": "2027-01-01"}, {"expires_us": 1_798_761_600_000_000}),
    ({"aliases": {"a": "b"}, "guardrails": ["g"]}, {"kept": {"aliases": {"a": "b"}, "guardrails": ["g"]}}),
    ({"nobody_knows": "this", "api_key": "sk-stray"}, {}),
    ({"max_budget": 0.1}, {"terms": Terms(budgets=(Budget(limit_nano=100_000_000),))}),
    ({"max_budget": 0}, {"terms": Terms(budgets=(Budget(limit_nano=0),))}),
    ({"max_budget": "12.5"}, {"terms": Terms(budgets=(Budget(limit_nano=12_500_000_000),))}),
    ({"max_budget": 1e-9}, {"terms": Terms(budgets=(Budget(limit_nano=1),))}),
    ({"soft_budget": 2}, {"terms": Terms(budgets=(Budget(soft_nano=2_000_000_000),))}),
    ({"budget_duration": "1d"}, {"terms": Terms(budgets=(Budget("1d"),))}),
    (
        {"max_budget": 5, "budget_duration": "1mo", "budget_limits": [{"budget_duration": "1d", "max_budget": 1}]},
        {"terms": Terms(budgets=(Budget("1mo", 5_000_000_000), Budget("1d", 1_000_000_000)))},
    ),
    (
        {"budget_limits": [{"budget_duration": "1d", "max_budget": 1}, {"budget_duration": "7d", "max_budget": 2}]},
        {"terms": Terms(budgets=(Budget("1d", 1_000_000_000, further=True), Budget("7d", 2_000_000_000)))},
    ),
    ({"budget_mode": "hard", "cut_at_budget": True}, {"terms": Terms(mode="hard", cut=True)}),
    ({"budget_wait": 2}, {"terms": Terms(wait=2.0)}),
    (
        {"rpm_limit": 1, "tpm_limit": 2, "itpm_limit": 3, "otpm_limit": 4},
        {"terms": Terms(rpm=1, tpm=2, itpm=3, otpm=4)},
    ),
    ({"rpm_limit": 0}, {"terms": Terms(rpm=0)}),
    ({"tpm_limit": 100.0}, {"terms": Terms(tpm=100)}),
    ({"tpm_limit": "100"}, {"terms": Terms(tpm=100)}),
    ({"max_parallel_requests": 3}, {"terms": Terms(parallel=3)}),
    (
        {"model_rpm_limit": {"m": 1}, "model_tpm_limit": {"m": 2}},
        {"terms": Terms(model_rpm={"m": 1}, model_tpm={"m": 2})},
    ),
]


@pytest.mark.parametrize(("fields", "expected"), FIELDS, ids=lambda value: ",".join(value) if value else "nothing")
def test_what_is_asked_for_is_what_the_key_has(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    subject = Subject(kind=KEY, id=HASH, **expected)
    assert key(**fields) == subject
    # And what it answers, asked for again, changes nothing.
    page = row(subject)
    given = {name: value for name, value in page.items() if name in KeyNew.model_fields or name in subject.kept}
    assert key(**given) == subject


def test_null_is_as_good_as_missing_in_a_new_key() -> None:
    assert key(**dict.fromkeys(KeyNew.model_fields)) == EMPTY
    assert key(**dict.fromkeys(KEPT | REFUSED)) == EMPTY


FULL = key(
    key_alias="a", user_id="u", team_id="t", models=["m"], allowed_routes=["/r"], tags=["x"], metadata={"a": 1},
    blocked=True, role="viewer", duration="1d", max_budget=5, soft_budget=4, budget_duration="1mo", aliases={"a": "b"},
    budget_limits=[{"budget_duration": "1d", "max_budget": 1}], budget_mode="hard", cut_at_budget=True, budget_wait=1,
    rpm_limit=1, tpm_limit=2, itpm_limit=3, otpm_limit=4, max_parallel_requests=5, model_rpm_limit={"m": 1},
    model_tpm_limit={"m": 2},
)  # fmt: skip


def test_what_is_missing_in_an_update_stays() -> None:
    assert updated(FULL) == FULL
    assert updated(FULL, rpm_limit=9).terms.rpm == 9
    assert updated(FULL, rpm_limit=9).terms.budgets == FULL.terms.budgets
    assert without_nulls(KeyUpdate.model_validate({"rpm_limit": None, "tpm_limit": 3})).model_fields_set == {
        "tpm_limit"
    }


@pytest.mark.parametrize("name", [name for name in KeyUpdate.model_fields if name not in ("key", "key_type")])
def test_null_in_an_update_takes_back(name: str) -> None:
    before, after = row(FULL), row(updated(FULL, **{name: None}))
    if name in ("blocked", "metadata", "spend", "budget_id"):
        assert after == before
        return
    shown = "expires" if name == "duration" else name
    assert before[shown] not in (None, [], {}, False)
    assert after[shown] in (None, [], {}, False)
    others = {"budgets", "budget_limits"} if name == "budget_duration" else {"budgets"}
    assert {each for each in after if after[each] != before[each]} - others == {shown}


@pytest.mark.parametrize(
    ("fields", "budgets"),
    [
        pytest.param({"max_budget": 7}, [("1mo", 7, 4), ("1d", 1, None)], id="the amount"),
        pytest.param({"budget_duration": "7d"}, [("7d", 5, 4), ("1d", 1, None)], id="the period"),
        pytest.param({"max_budget": None}, [("1mo", None, 4), ("1d", 1, None)], id="no amount"),
        pytest.param({"budget_limits": []}, [("1mo", 5, 4)], id="no others"),
        pytest.param(
            {"budget_limits": [{"budget_duration": "1h", "max_budget": 2}]},
            [("1mo", 5, 4), ("1h", 2, None)],
            id="others",
        ),
        pytest.param({"budget_limits": None}, [("1mo", 5, 4)], id="null for others"),
        pytest.param(
            {"max_budget": None, "soft_budget": None, "budget_duration": "7d"},
            [("7d", None, None), ("1d", 1, None)],
            id="a period alone",
        ),
    ],
)
def test_changing_budgets(fields: dict[str, Any], budgets: list[tuple[str, int | None, int | None]]) -> None:
    billion = 1_000_000_000
    expected = [Budget(period, limit and limit * billion, soft and soft * billion) for period, limit, soft in budgets]
    assert list(updated(FULL, **fields).terms.budgets) == expected


def limits(**dollars: float) -> list[dict[str, Any]]:
    """`budget_limits`, each by its period with the unit first: `d1=10` is 10 dollars in `1d`."""
    return [
        {"budget_duration": name.lstrip("dmo") + name.rstrip("0123456789"), "max_budget": amount}
        for name, amount in dollars.items()
    ]


# The limits of a key, a change, and then its max_budget, budget_duration and budget_limits.
PRIMARY_AND_FURTHER: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Any, Any, Any]]] = {
    "others alone": ({"budget_limits": limits(d1=10, mo1=100)}, {}, (None, None, limits(d1=10, mo1=100))),
    "an other goes": (
        {"budget_limits": limits(d1=10, mo1=100)},
        {"budget_limits": limits(mo1=200)},
        (None, None, limits(mo1=200)),
    ),
    "all others go": ({"budget_limits": limits(d1=10)}, {"budget_limits": []}, (None, None, [])),
    "null for others": ({"budget_limits": limits(d1=10)}, {"budget_limits": None}, (None, None, [])),
    "a primary comes": (
        {"budget_limits": limits(d1=10)},
        {"max_budget": 1000},
        (1000, None, limits(d1=10)),
    ),
    "a primary comes with its period": (
        {"budget_limits": limits(d1=10)},
        {"max_budget": 1000, "budget_duration": "7d"},
        (1000, "7d", limits(d1=10)),
    ),
    "a primary goes": (
        {"max_budget": 5, "budget_duration": "7d", "budget_limits": limits(d1=10, mo1=100)},
        {"max_budget": None},
        (None, None, limits(d1=10, mo1=100)),
    ),
    "a primary goes, and comes among the others": (
        {"max_budget": 5, "budget_duration": "7d"},
        {"max_budget": None, "budget_limits": limits(d7=5)},
        (None, None, limits(d7=5)),
    ),
    "others beside a primary": (
        {"max_budget": 5, "budget_duration": "7d"},
        {"budget_limits": limits(d1=1)},
        (5, "7d", limits(d1=1)),
    ),
    "null where there is no primary": (
        {"budget_limits": limits(d1=10)},
        {"max_budget": None, "soft_budget": None, "budget_duration": None},
        (None, None, limits(d1=10)),
    ),
}


@pytest.mark.parametrize(("before", "change", "after"), PRIMARY_AND_FURTHER.values(), ids=PRIMARY_AND_FURTHER)
def test_max_budget_and_budget_limits_leave_each_other_alone(
    before: dict[str, Any], change: dict[str, Any], after: tuple[Any, Any, Any]
) -> None:
    subject = from_document(to_document(updated(key(**before), **change)))
    page = row(subject)
    assert (page["max_budget"], page["budget_duration"], page["budget_limits"]) == after
    names = ("max_budget", "soft_budget", "budget_duration", "budget_limits")
    assert updated(subject, **{name: page[name] for name in names}) == subject


def test_a_period_is_there_once() -> None:
    window = {"budget_duration": "1d", "max_budget": 1}
    for fields in (
        {"budget_limits": [window, window]},
        {"max_budget": 2, "budget_duration": "1d", "budget_limits": [window]},
    ):
        with pytest.raises(ValidationError, match="each period once"):
            KeyNew.model_validate(fields)
    for changes, param in (
        ({"budget_duration": "1d"}, "budget_duration"),
        ({"budget_limits": [{"budget_duration": "1mo", "max_budget": 2}]}, "budget_limits"),
        ({"budget_limits": [{"budget_duration": "7d", "max_budget": 2}], "budget_duration": "7d"}, "budget_limits"),
    ):
        with pytest.raises(Unprocessable) as raised:
            updated(FULL, **changes)
        assert raised.value.param == param


# What no field can hold.
WRONG: dict[str, list[Any]] = {
    "max_budget": [-1, True, "x", [], 1e-10, float("nan"), float("inf"), 1e10, "1e999999999"],
    "rpm_limit": [-1, True, 1.5, "x", "-1", float("nan"), 10**16, [], "1" * 40],
    "budget_duration": ["1", "d", "0d", "-1d", "1y", 30, "1d ", "999999mo"],
    "duration": ["x", "30 d"],
    "budget_mode": ["Hard", "none", 1],
    "budget_wait": [-1, 601, True, "5", float("nan")],
    "key_alias": [1, ["a"], "a\x00", "a\nb", "\u202ea", "\x7f", "x" * 257, "\ud800"],
    "models": ["m", [1], [None], [""], ["a\r"], {}, ["m"] * 1001],
    "metadata": ["m", [], {"a": float("nan")}, {"a": 2**64}, {"a": "\ud800"}, {"a": "x" * 70_000}],
    "expires": [
        "x",
        1,
        "2027-13-01",
        True,
        "9999-12-31T23:59:59-14:00",
        "1969-12-31",
        "1970-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+14:00",
    ],
    "blocked": ["maybe", [], 2],
    "model_rpm_limit": [{"m": -1}, {"m": None}, {"": 1}, [], {"a\n": 1}],
    "budget_limits": [
        [{"max_budget": 1}],
        [{"budget_duration": "1d"}],
        [{"budget_duration": f"{n}d", "max_budget": 1} for n in range(1, 30)],
    ],
    "role": ["owner"],
    "key_type": ["root"],
    "spend": [-1],
}
VALUES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_what_no_field_can_hold(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        KeyNew.model_validate({name: value})
    [error, *_] = raised.value.errors()
    assert error["loc"][0] == name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_limit_that_does_nothing_is_refused(name: str) -> None:
    some: list[Any] = [1, 0, True, "1d", {"a": 1}, [1], 0.5]
    nothing: list[Any] = [None, False, "", [], {}]
    for value in some:
        with pytest.raises(Invalid) as raised:
            key(**{name: value})
        assert raised.value.param == name
        assert raised.value.message.startswith(name)
    for value in nothing:
        assert key(**{name: value}) == EMPTY


@pytest.mark.parametrize("model", [TeamNew, UserNew, CustomerAsked, BudgetNew, TagAsked, MemberAdd, KeyUpdate])
def test_no_body_takes_such_a_limit_as_a_field(model: Any) -> None:
    assert not REFUSED & model.model_fields.keys()
    assert not REFUSED & KEPT
    assert not (REFUSED | KEPT) & (LIMITS.keys() | NAMES[KEY].keys())


def test_what_is_kept_is_bounded() -> None:
    with pytest.raises(Unprocessable, match="config"):
        key(config={"a": "x" * 70_000})
    grown = EMPTY
    kept = sorted(KEPT - {"key_type"})
    for name in kept[:6]:
        grown = updated(grown, **{name: "x" * 10_000})
    with pytest.raises(Unprocessable):  # also bit by bit
        updated(grown, **{kept[6]: "x" * 10_000})
    assert updated(key(config={"a": 1}), config=None).kept == {}


@pytest.mark.parametrize(
    ("kind", "model", "fields", "expected"),
    [
        pytest.param(TEAM, TeamNew, {"team_alias": "a", "tags": ["x"]}, {"alias": "a", "tags": ("x",)}, id="team"),
        pytest.param(
            USER, UserNew, {"user_alias": "a", "user_email": "a@b", "user_role": "proxy_admin"},
            {"alias": "a", "role": "admin", "kept": {"user_email": "a@b", "user_role": "proxy_admin"}}, id="user",
        ),
        pytest.param(
            USER, UserNew, {"user_role": "proxy_admin_viewer"},
            {"role": "viewer", "kept": {"user_role": "proxy_admin_viewer"}}, id="viewer",
        ),
        pytest.param(
            CUSTOMER, CustomerAsked, {"user_id": "c", "alias": "a", "blocked": True},
            {"alias": "a", "blocked": True}, id="customer",
        ),
        pytest.param(
            TAG, TagAsked, {"name": "n", "models": ["m"], "description": "d"},
            {"models": ("m",), "kept": {"description": "d"}}, id="tag",
        ),
        pytest.param(TERMS, BudgetNew, {"rpm_limit": 1}, {"terms": Terms(rpm=1)}, id="budget"),
    ],
)  # fmt: skip
def test_the_other_kinds(kind: str, model: Any, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    subject = changed(Subject(kind=kind, id="i"), model.model_validate(fields), NOW)
    assert subject == Subject(kind=kind, id="i", **expected)
    page = row(subject)
    named = {name: value for name, value in fields.items() if name not in ("user_id", "name")}
    assert page | named == page
    assert page[IDS[kind]] == "i"


def test_what_was_spent_is_that_of_the_first_budget() -> None:
    month = Standing(
        kind=KEY,
        subject=HASH,
        period="1mo",
        limit_nano=5_000_000_000,
        soft_nano=None,
        spent_nano=1_500_000_000,
        held_nano=250_000_000,
        reset_us=NOW,
    )
    day = Standing(
        kind=KEY,
        subject=HASH,
        period="1d",
        limit_nano=1_000_000_000,
        soft_nano=None,
        spent_nano=1,
        held_nano=0,
        reset_us=None,
    )
    tally = Tally(exchanges=9, cost_nano=3_000_000_000, written_off_nano=1_000_000_000)
    page = row(FULL, [month, day], tally)
    assert page["spend"] == 1.5
    assert page["budget_reset_at"] == "2026-11-18T11:06:40.000000Z"
    assert page["budgets"] == [
        {
            "budget_duration": "1mo",
            "max_budget": 5.0,
            "soft_budget": None,
            "spent": 1.5,
            "held": 0.25,
            "reset_at": "2026-11-18T11:06:40.000000Z",
        },
        {"budget_duration": "1d", "max_budget": 1, "soft_budget": None, "spent": 1e-09, "held": 0, "reset_at": None},
    ]
    assert row(EMPTY, [], tally)["spend"] == 2.0
    assert row(EMPTY, [], tally)["budget_reset_at"] is None


def test_how_well_costs_are_foretold() -> None:
    tally = Tally(
        expected_exchanges=4, expected_nano=8 * 10**9, expected_cost_nano=6 * 10**9, expected_error_nano=2 * 10**9
    )
    assert row(EMPTY, [], tally)["budget_estimate"] == {
        "exchanges": 4,
        "expected": 8.0,
        "actual": 6.0,
        "mean_error": 0.5,
    }
    assert row(EMPTY)["budget_estimate"] is None


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        pytest.param(253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z", id="the last moment"),
        pytest.param(253_402_300_800_000_000, "9999-12-31T23:59:59.999999Z", id="after it"),
        pytest.param(2**63, "9999-12-31T23:59:59.999999Z", id="far after it"),
        pytest.param(-1, "1969-12-31T23:59:59.999999Z", id="before 1970"),
        pytest.param(-(2**63), "0001-01-01T00:00:00.000000Z", id="before all calendars"),
    ],
)
def test_every_stored_moment_can_be_shown(us: int, expected: str) -> None:
    assert iso(us) == expected
    assert row(Subject(kind=KEY, id=HASH, expires_us=us))["expires"] == expected


def test_what_lasts_beyond_all_calendars_ends_with_them() -> None:
    last = 253_402_300_799_999_999
    assert until_us("36500d", NOW) == NOW + 36_500 * DAY
    assert until_us("36500d", last - 1) == until_us("1d", last) == last
    assert changed(EMPTY, KeyNew(duration="1mo"), last).expires_us == last


def test_of_a_key_only_the_end_is_shown() -> None:
    assert row(Subject(kind=KEY, id=HASH, last4="wxyz"))["key_name"] == "sk-...wxyz"
    assert row(EMPTY)["key_name"] is None
    assert HASH not in repr(row(EMPTY))
