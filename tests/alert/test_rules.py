"""Each rule as a table: from figures to a decision. FIRM begins an episode, HELD lets one go on, None ends it."""

from __future__ import annotations

from typing import Any

import pytest

from tproxy.alert import rules
from tproxy.alert.alert import Finding, Of
from tproxy.store.base import Standing

NANO = 1_000_000_000
DAY_US = 86_400_000_000
NOW_US = 1_795_000_000_000_000

FIRM, HELD = "firm", "held"


def decided(finding: Finding | None) -> str | None:
    return None if finding is None else FIRM if finding.firm else HELD


def standing(spent: float, limit: float | None = None, soft: float | None = None, **more: Any) -> Standing:
    def nano(dollars: float | None) -> int | None:
        return None if dollars is None else int(dollars * NANO)

    fields: dict[str, Any] = {
        "kind": "key",
        "subject": "abc",
        "period": "1d",
        "reset_us": NOW_US,
        "held_nano": 0,
    } | more
    return Standing(spent_nano=nano(spent) or 0, limit_nano=nano(limit), soft_nano=nano(soft), **fields)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(standing(4.99, 10, 5), None, id="below"),
        pytest.param(standing(5, 10, 5), FIRM, id="reached"),
        pytest.param(standing(12, 10, 5), FIRM, id="also past the limit"),
        pytest.param(standing(5, 5), None, id="no soft limit"),
        pytest.param(standing(0, None, 0), FIRM, id="a soft limit of nothing"),
    ],
)
def test_a_soft_budget(given: Standing, expected: str | None) -> None:
    assert decided(rules.soft_budget(given, "anna")) == expected


@pytest.mark.parametrize(
    ("given", "refused", "expected"),
    [
        pytest.param(standing(9.4, 10), True, None, id="one request did not fit, many others would"),
        pytest.param(standing(9.499999999, 10), True, None, id="a little less than 95 %"),
        pytest.param(standing(9.5, 10), True, FIRM, id="95 %"),
        pytest.param(standing(9.6, 10), False, HELD, id="nearly spent"),
        pytest.param(standing(9.6, 10), True, FIRM, id="nearly spent, and a request was refused"),
        pytest.param(standing(10, 10), False, FIRM, id="spent"),
        pytest.param(standing(11, 10), False, FIRM, id="overspent"),
        pytest.param(standing(11, None, 5), True, None, id="no limit"),
    ],
)
def test_a_budget(given: Standing, refused: bool, expected: str | None) -> None:
    assert decided(rules.budget(given, "anna", refused=refused)) == expected


def test_what_is_said_of_a_budget() -> None:
    found = rules.budget(standing(10, 10), "anna", refused=False)
    assert found is not None
    assert found.summary == "The budget of the key 'anna' is spent: 10.00 of 10.00 USD per 1d. Requests are refused."
    assert found.figures == {
        "spent_usd": 10.0,
        "soft_usd": None,
        "limit_usd": 10.0,
        "period": "1d",
        "resets": "2026-11-18T11:06:40Z",
    }
    whole = rules.soft_budget(standing(3, None, 2, kind="proxy", subject="", period=None, reset_us=None), "")
    assert whole is not None
    assert whole.summary == "The budget of the whole proxy has reached its soft limit: 3.00 of 2.00 USD in all spent."


def test_the_next_period_of_a_budget_is_another_episode() -> None:
    first, same = rules.budget(standing(10, 10), "", refused=False), rules.budget(standing(11, 10), "", refused=False)
    later = rules.budget(standing(10, 10, reset_us=NOW_US + DAY_US), "", refused=False)
    assert first is not None
    assert same is not None
    assert later is not None
    assert first.of == same.of != later.of


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        pytest.param(3.01, None, id="later"),
        pytest.param(3, FIRM, id="in three days"),
        pytest.param(0.001, FIRM, id="in a minute"),
        pytest.param(0, None, id="it has expired"),
        pytest.param(-1, None, id="it has long expired"),
    ],
)
def test_a_key_that_expires(days: float, expected: str | None) -> None:
    found = rules.key_expiry("abc", "anna", NOW_US + int(days * DAY_US), NOW_US, 3)
    assert decided(found) == expected


WEEKS = [10] * 28


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        pytest.param([0, *[10] * 27, 10, 29], None, id="less than three times"),
        pytest.param([0, *[10] * 27, 10, 30], FIRM, id="three times"),
        pytest.param([0, *[10] * 27, 40, 5], HELD, id="yesterday was, today is young"),
        pytest.param([0, *[10] * 27, 40, 50], FIRM, id="for two days"),
        pytest.param([40, *[10] * 27, 10, 5], None, id="long ago"),
        pytest.param([0, *([10, 10, 10, 10, 10, 0, 0] * 4)[:27], 0, 30], FIRM, id="days off do not count as cheap"),
        pytest.param([0, *[0] * 23, 10, 10, 10, 10, 0, 99], None, id="four days of history are too few"),
        pytest.param([0, *[0] * 22, 10, 10, 10, 10, 10, 0, 99], FIRM, id="five are enough"),
        pytest.param([0, 10, *[0] * 22, 10, 10, 10, 10, 0, 99], FIRM, id="28 days ago is history"),
        pytest.param([10, 0, *[0] * 22, 10, 10, 10, 10, 0, 99], None, id="29 days ago is none"),
        pytest.param([0, 0, *[0] * 22, 10, 10, 10, 10, 10, 99], FIRM, id="yesterday is history"),
        pytest.param([10, 0, *[0] * 22, 10, 10, 10, 10, 40, 5], HELD, id="29 days ago is yesterday's history"),
        pytest.param([0, 0, *[0] * 22, 10, 10, 10, 10, 40, 5], None, id="yesterday is not its own history"),
        pytest.param([0] * 29 + [99], None, id="a new key"),
        pytest.param([0, *[10] * 26, 500, 10, 30], FIRM, id="one dear day moves nothing"),
        pytest.param([0, *[1] * 27, 1, 9], None, id="cheap all the same"),
        pytest.param([0, *[1] * 27, 1, 10], FIRM, id="no longer cheap"),
    ],
)
def test_unusual_spend(days: list[int], expected: str | None) -> None:
    assert len(days) == 30
    assert decided(rules.spend("key:abc", "anna", [day * NANO for day in days], 3, 10 * NANO)) == expected


@pytest.mark.parametrize(
    ("exchanges", "failures", "expected"),
    [
        pytest.param(20, 2, FIRM, id="one in ten"),
        pytest.param(19, 19, HELD, id="too few to say"),
        pytest.param(100, 9, HELD, id="a little less"),
        pytest.param(100, 5, None, id="half"),
        pytest.param(100, 0, None, id="none"),
        pytest.param(19, 0, HELD, id="a few that went well"),
        pytest.param(0, 0, HELD, id="nothing was asked, nothing is known"),
    ],
)
def test_errors_of_the_upstream(exchanges: int, failures: int, expected: str | None) -> None:
    assert decided(rules.errors(exchanges, failures, 0.1)) == expected


@pytest.mark.parametrize(
    ("unwritable", "behind", "expected", "said"),
    [
        pytest.param(0, 0, None, "", id="well"),
        pytest.param(0, 2.5, None, "", id="half as long"),
        pytest.param(0, 3, HELD, "is behind", id="nearly"),
        pytest.param(0, 5, FIRM, "is behind", id="behind"),
        pytest.param(5, 5, FIRM, "cannot be written", id="not writable"),
        pytest.param(4, 0, HELD, "cannot be written", id="not writable for a moment"),
    ],
)
def test_the_ledger(unwritable: float, behind: float, expected: str | None, said: str) -> None:
    found = rules.ledger(unwritable_seconds=unwritable, behind_seconds=behind, queued=7, limit=5)
    assert decided(found) == expected
    assert found is None or said in found.summary


@pytest.mark.parametrize(
    ("asked", "refused", "expected"),
    [
        pytest.param(3, 3, FIRM, id="all"),
        pytest.param(3, 1, HELD, id="some"),
        pytest.param(3, 0, None, id="none"),
        pytest.param(0, 0, HELD, id="nothing was asked"),
    ],
)
def test_credentials(asked: int, refused: int, expected: str | None) -> None:
    assert decided(rules.credential("api_keys[0]", asked, refused)) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(299.0, HELD), (300.0, FIRM)])
def test_exports(seconds: float, expected: str) -> None:
    assert decided(rules.export("otlp", seconds, 5, 300)) == expected


def test_a_model_without_a_price_is_named_in_bounds() -> None:
    found = rules.unpriced("claude-" + "x" * 1_000)
    assert decided(found) == FIRM
    assert len(found.of.id) == rules.MODEL_CHARACTERS
    assert len(found.summary) < 400


@pytest.mark.parametrize(
    "of", [Of(), Of("key", "abc"), Of("team", "a:b:c", "1d 17"), Of("model", ""), Of("proxy", "", "30d 17")]
)
def test_whom_it_is_of_survives_the_table(of: Of) -> None:
    assert Of.parse(str(of)) == of
