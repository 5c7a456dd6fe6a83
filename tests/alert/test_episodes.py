from __future__ import annotations

import pytest

from tproxy.alert import alert
from tproxy.alert.alert import Finding, Of
from tproxy.alert.episodes import OPEN_MAX, Episodes, is_told
from tproxy.store.episodes import Episode

HOUR_US = 3_600_000_000


def finding(*, firm: bool = True, of: Of = Of(), kind: str = alert.ERRORS) -> Finding:  # noqa: B008
    return Finding(kind, of, "It is so.", {"rate": 0.5}, firm)


def episodes(*rows: Episode) -> Episodes:
    return Episodes(rows, lambda of: of.id.upper())


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        pytest.param("FFF", "b..", id="once"),
        pytest.param("FhFhF", "b....", id="what swings about its threshold is one episode"),
        pytest.param("hh", "..", id="none begins in the soft band"),
        pytest.param("F-F", "beb", id="an end, and another one"),
        pytest.param("Fh-h", "b.e.", id="after its end it has to be firm again"),
        pytest.param("--", "..", id="nothing"),
    ],
)
def test_once_for_each_episode(looks: str, told: str) -> None:
    them = episodes()
    for number, (look, expected) in enumerate(zip(looks, told, strict=True)):
        findings = [] if look == "-" else [finding(firm=look == "F")]
        found = them.look(alert.ERRORS, findings, number)
        assert ["e" if each.resolved_us is not None else "b" for each in found] == (
            [expected] if expected != "." else []
        )


def test_of_each_subject_once_and_each_ends_alone() -> None:
    them = episodes()
    a, b = Of("key", "a"), Of("key", "b")
    began = them.look(alert.BUDGET, [finding(of=a, kind=alert.BUDGET), finding(of=b, kind=alert.BUDGET)], 5)
    assert [(each.name, each.severity, each.began_us) for each in began] == [("A", "critical", 5), ("B", "critical", 5)]
    assert them.look(alert.ERRORS, [], 6) == []  # another kind's look says nothing of these
    [ended] = them.look(alert.BUDGET, [finding(of=b, kind=alert.BUDGET)], 7)
    assert (ended.of, ended.name, ended.began_us, ended.resolved_us) == (a, "A", 5, 7)
    assert ended.summary == "Resolved: budget reached (A)."
    assert {each.id for each in (*began, ended)} == {began[0].id, began[1].id, ended.id}
    assert len({each.id for each in (*began, ended)}) == 3


def test_a_restart_tells_nothing_twice_and_tells_the_end() -> None:
    before = episodes()
    before.look(alert.ERRORS, [finding()], 5)
    put, _ = before.unwritten()
    after = episodes(*put)
    assert after.look(alert.ERRORS, [finding()], 6) == []
    [ended] = after.look(alert.ERRORS, [], 7)
    assert (ended.began_us, ended.resolved_us) == (5, 7)
    assert after.unwritten() == ([], [(alert.ERRORS, "")])


def test_what_is_to_be_written_is_what_has_not_been() -> None:
    them = episodes()
    them.look(alert.ERRORS, [finding()], 5)
    first = them.unwritten()
    assert first == ([Episode(alert.ERRORS, "", 5, 5)], [])
    them.look(alert.ERRORS, [], 6)  # while that is being written
    them.look(alert.ERRORS, [finding()], 7)
    them.written(*first)
    assert them.unwritten() == ([Episode(alert.ERRORS, "", 7, 7)], [])
    them.written(*them.unwritten())
    assert them.unwritten() == ([], [])
    them.look(alert.ERRORS, [finding()], 3_600_000_007)
    assert them.unwritten() == ([Episode(alert.ERRORS, "", 7, 3_600_000_007)], [])


def test_what_is_only_heard_of_fades_and_is_told_anew() -> None:
    them = episodes()
    model = finding(kind=alert.UNPRICED, of=Of("model", "m"))
    assert len(them.hear(model, 0)) == 1
    them.fade(alert.UNPRICED, 10, 10)
    assert them.hear(model, 10) == []
    them.fade(alert.UNPRICED, 10, 11)
    assert them.open == ()
    assert len(them.hear(model, 12)) == 1


def test_one_that_is_heard_of_again_and_again_does_not_fade() -> None:
    them = episodes()
    model = finding(kind=alert.UNPRICED, of=Of("model", "m"))
    for hour in range(4):
        them.hear(model, hour * HOUR_US)
    them.fade(alert.UNPRICED, HOUR_US, 4 * HOUR_US)
    assert [(each.began_us, each.last_us) for each in them.open] == [(0, 3 * HOUR_US)]
    them.fade(alert.UNPRICED, HOUR_US, 4 * HOUR_US + 1)
    assert them.open == ()


def test_one_that_ends_before_it_was_written_is_not_put() -> None:
    them = episodes()
    them.hear(finding(), 5)
    them.look(alert.ERRORS, [], 6)
    assert them.unwritten() == ([], [(alert.ERRORS, "")])


def test_there_are_never_too_many() -> None:
    them = episodes(*(Episode(alert.KEY_EXPIRY, str(number), 1, 1) for number in range(OPEN_MAX)))
    assert them.look(alert.ERRORS, [finding()], 2) == []
    assert (len(them.open), them.left_out) == (OPEN_MAX, 1)


def test_what_may_have_been_left_out_of_a_look_does_not_end() -> None:
    them = episodes()
    them.look(alert.ERRORS, [finding()], 1)
    assert them.look(alert.ERRORS, [], 2, whole=False) == []
    assert len(them.open) == 1


def test_whose_end_is_told() -> None:
    them = episodes()
    for kind in alert.KINDS:
        [began] = them.look(kind, [finding(kind=kind)], 1)
        assert is_told(began)
        [ended] = them.look(kind, [], 2)
        assert is_told(ended) == (kind in alert.END_IS_TOLD)
