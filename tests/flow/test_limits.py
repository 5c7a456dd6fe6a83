"""Limits, by tables for what is said, and against a reference that adds up everything anew for what is decided."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.errors import RateLimited
from tproxy.flow import limits
from tproxy.flow.limits import Limiter, Taken
from tproxy.store.subjects import CUSTOMER, KEY, PROXY, TEAM, USER, Subject, Terms

HASH = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
OPUS = "claude-opus-5-5"
HAIKU = "claude-haiku-5"


def key(terms: Terms, id: str = HASH, alias: str | None = "alice") -> Subject:
    return Subject(kind=KEY, id=id, alias=alias, last4="abcd", terms=terms)


def team(terms: Terms) -> Subject:
    return Subject(kind=TEAM, id="red", terms=terms)


def refused(limiter: Limiter, asked: Sequence[Subject], now: float, *, tokens: tuple[int, int] = (1, 1)) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limiter.take(asked, OPUS, *tokens, now)
    return caught.value


def headers_of(source: RateLimited | Taken, now: float = 0.0) -> dict[str, str]:
    listed = source.headers if isinstance(source, RateLimited) else source.headers(now)
    told = {name.decode("ascii"): value.decode("ascii") for name, value in listed}
    assert len(told) == len(listed), "no header twice"
    return told


# --- What is said ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What is taken before, at 0 s and (input, output) each, and what a request of 1 + 1 is told 23.5 s later."""

    terms: Terms
    before: list[tuple[int, int]]
    message: str
    headers: Mapping[str, str]


REFUSALS = {
    "requests": Row(
        Terms(rpm=2),
        [(1, 1), (1, 1)],
        "The key 'alice' may make 2 requests a minute, and has. Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "37",
        },
    ),
    "one request": Row(
        Terms(rpm=1),
        [(1, 1)],
        "The key 'alice' may make 1 request a minute, and has. Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-requests": "1",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "37",
        },
    ),
    "tokens of both sides": Row(
        Terms(tpm=100),
        [(50, 49)],
        "The key 'alice' may use 100 tokens a minute. It has used 99, and this request counts as 2. Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "1",
            "x-ratelimit-reset-tokens": "37",
        },
    ),
    "input tokens": Row(
        Terms(itpm=100, otpm=100),
        [(100, 1)],
        "The key 'alice' may use 100 input tokens a minute. It has used 100, and this request counts as 1. "
        "Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-input-tokens": "100",
            "x-ratelimit-remaining-input-tokens": "0",
            "x-ratelimit-reset-input-tokens": "37",
        },
    ),
    "output tokens": Row(
        Terms(itpm=100, otpm=100),
        [(1, 120)],
        "The key 'alice' may use 100 output tokens a minute. It has used 120, and this request counts as 1. "
        "Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-output-tokens": "100",
            "x-ratelimit-remaining-output-tokens": "0",
            "x-ratelimit-reset-output-tokens": "37",
        },
    ),
    "in parallel": Row(
        Terms(parallel=2),
        [(1, 1), (1, 1)],
        "The key 'alice' may run 2 requests at a time, and does. Try again in 1 s.",
        {
            "retry-after": "1",
            "x-ratelimit-limit-parallel-requests": "2",
            "x-ratelimit-remaining-parallel-requests": "0",
        },
    ),
    "requests of a model": Row(
        Terms(rpm=10, model_rpm={"claude-opus-*": 1, HAIKU: 0}),
        [(1, 1)],
        "The key 'alice' may make 1 request a minute for 'claude-opus-*', and has. Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-requests": "1",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "37",
        },
    ),
    "tokens of a model": Row(
        Terms(tpm=10, model_tpm={OPUS: 3}),
        [(1, 1)],
        f"The key 'alice' may use 3 tokens a minute for '{OPUS}'. It has used 2, and this request counts as 2. "
        "Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-tokens": "3",
            "x-ratelimit-remaining-tokens": "1",
            "x-ratelimit-reset-tokens": "37",
        },
    ),
    "the one that takes the longest": Row(
        Terms(parallel=1, rpm=1),
        [(1, 1)],
        "The key 'alice' may make 1 request a minute, and has. Try again in 37 s.",
        {
            "retry-after": "37",
            "x-ratelimit-limit-requests": "1",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "37",
        },
    ),
}


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_whose_limit_and_when(row: Row) -> None:
    limiter, asked = Limiter(), [key(row.terms)]
    for tokens in row.before:
        limiter.take(asked, OPUS, *tokens, 1000.0)
    refusal = refused(limiter, asked, 1023.5)
    assert refusal.message == row.message
    assert headers_of(refusal) == row.headers
    assert (refusal.status, refusal.type, refusal.code) == (429, "rate_limit_error", "rate_limited")


ZEROS = {
    "requests": (Terms(rpm=0), "0 requests a minute"),
    "tokens": (Terms(tpm=0), "0 tokens a minute"),
    "input tokens": (Terms(itpm=0), "0 input tokens a minute"),
    "output tokens": (Terms(otpm=0), "0 output tokens a minute"),
    "in parallel": (Terms(parallel=0), "0 requests at a time"),
    "requests of a model": (Terms(model_rpm={"*": 0}), "0 requests a minute for '*'"),
    "tokens of a model": (Terms(model_tpm={OPUS: 0}), f"0 tokens a minute for '{OPUS}'"),
}


@pytest.mark.parametrize(("terms", "said"), ZEROS.values(), ids=ZEROS)
def test_a_limit_of_zero_lets_nothing_in(terms: Terms, said: str) -> None:
    limiter = Limiter()
    refusal = refused(limiter, [key(terms)], 0.0, tokens=(0, 0))
    assert refusal.message == (
        f"The limit of the key 'alice' is {said}, so nothing is let in until that is changed. Try again in 60 s."
    )
    assert headers_of(refusal)["retry-after"] == "60"
    assert len(limiter) == 0


def test_of_equal_waits_the_one_without_end_is_named() -> None:
    limiter = Limiter()
    limiter.take([key(Terms(rpm=1))], OPUS, 1, 1, 0.0)
    assert "The limit of the team 'red' is 0" in refused(limiter, [key(Terms(rpm=1)), team(Terms(tpm=0))], 0.0).message


NAMES = {
    "alias": (Subject(kind=KEY, id=HASH, alias="alice", last4="abcd"), "The key 'alice' may"),
    "last four of a key": (Subject(kind=KEY, id=HASH, last4="abcd"), "The key '…abcd' may"),
    "id": (Subject(kind=TEAM, id="red"), "The team 'red' may"),
    "alias before id": (Subject(kind=USER, id="u-1", alias="Bob"), "The user 'Bob' may"),
    "escaped": (Subject(kind=CUSTOMER, id="a\r\nb"), "The customer 'a\\r\\nb' may"),
    "the proxy": (Subject(kind=PROXY, id=""), "The whole proxy may"),
}


@pytest.mark.parametrize(("subject", "said"), NAMES.values(), ids=NAMES)
def test_names_in_messages(subject: Subject, said: str) -> None:
    limiter = Limiter()
    limited = Subject(
        kind=subject.kind, id=subject.id, alias=subject.alias, last4=subject.last4, terms=Terms(parallel=1)
    )
    limiter.take([limited], OPUS, 1, 1, 0.0)
    message = refused(limiter, [limited], 0.0).message
    assert message.startswith(said)
    assert HASH not in message


def test_an_answer_tells_what_remains_of_the_tightest() -> None:
    limiter = Limiter()
    asked = [
        key(Terms(rpm=10, tpm=1000, itpm=100, parallel=5)),
        team(Terms(rpm=9, tpm=5000, otpm=50, model_rpm={"claude-*": 3})),
    ]
    limiter.take(asked, OPUS, 20, 30, 0.0)
    taken = limiter.take(asked, OPUS, 1, 2, 10.25)
    assert headers_of(taken, 20.0) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "51",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "947",
        "x-ratelimit-reset-tokens": "51",
        "x-ratelimit-limit-input-tokens": "100",
        "x-ratelimit-remaining-input-tokens": "79",
        "x-ratelimit-reset-input-tokens": "51",
        "x-ratelimit-limit-output-tokens": "50",
        "x-ratelimit-remaining-output-tokens": "18",
        "x-ratelimit-reset-output-tokens": "51",
        "x-litellm-key-rpm-limit": "10",
        "x-litellm-key-tpm-limit": "1000",
    }
    # The first has left at 60 s, both have at 71 s. Nothing that was used beyond a limit makes it negative.
    assert headers_of(taken, 60.0)["x-ratelimit-remaining-requests"] == "2"
    assert headers_of(taken, 71.0)["x-ratelimit-remaining-requests"] == "3"
    assert headers_of(taken, 71.0)["x-ratelimit-reset-requests"] == "0"


def test_nothing_is_told_below_zero() -> None:
    taken = Limiter().take([key(Terms(tpm=10))], OPUS, 30, 30, 0.0)
    assert headers_of(taken)["x-ratelimit-remaining-tokens"] == "0"


def test_an_answer_without_limits_tells_nothing() -> None:
    assert Limiter().take([key(Terms()), team(Terms(parallel=2))], OPUS, 1, 1, 0.0).headers(0.0) == []


MODEL_HEADERS = {
    "as LiteLLM's": ("Claude-Opus-5.5", {"requests-claude-opus-5.5": "4", "tokens-claude-opus-5.5": "97"}),
    "no token": ("claude-opus-4-8[1m]", {}),
    "a header of its own": ("claude\r\nset-cookie: a=b", {}),
    "not ASCII": ("claude-ö", {}),
    "too long": ("c" * 129, {}),
    "no model": (None, {}),
}


@pytest.mark.parametrize(("model", "told"), MODEL_HEADERS.values(), ids=MODEL_HEADERS)
def test_what_remains_of_a_keys_limits_for_a_model(model: str | None, told: Mapping[str, str]) -> None:
    asked = [
        key(Terms(model_rpm={"*": 8, "[Cc]*": 1, "C*": 5}, model_tpm={"*": 100})),
        team(Terms(model_rpm={"*": 2})),
    ]
    headers = headers_of(Limiter().take(asked, model, 1, 2, 0.0))
    litellm = {name: value for name, value in headers.items() if name.startswith("x-litellm")}
    assert litellm == {f"x-litellm-key-remaining-{name}": value for name, value in told.items()}


# --- What is decided: single cases ----------------------------------------------------------------------------------


def test_a_refused_request_is_entered_nowhere() -> None:
    limiter = Limiter()
    free, full = key(Terms(rpm=2, tpm=100, parallel=2)), team(Terms(rpm=1))
    first = limiter.take([free, full], OPUS, 1, 1, 0.0)
    for _ in range(5):
        refused(limiter, [free, full], 1.0)
    assert headers_of(first, 1.0)["x-ratelimit-remaining-tokens"] == "98"
    limiter.take([free], OPUS, 1, 1, 2.0)  # one request and one place were left, and still are
    refused(limiter, [free], 2.0)


def test_a_request_larger_than_the_limit_passes_when_it_is_alone() -> None:
    limiter, asked = Limiter(), [key(Terms(tpm=100))]
    limiter.take(asked, OPUS, 1000, 1000, 0.0)
    assert headers_of(refused(limiter, asked, 0.5, tokens=(1000, 1000)))["retry-after"] == "60"
    refused(limiter, asked, 59.5, tokens=(1000, 1000))
    limiter.take(asked, OPUS, 1000, 1000, 60.0)


def test_no_more_than_the_limit_at_the_edge_of_a_minute() -> None:
    """What a fixed window lets pass: all of one minute at its end, and all of the next at its start."""
    limiter, asked = Limiter(), [key(Terms(rpm=3))]
    for now in (59.0, 59.1, 59.2):
        limiter.take(asked, OPUS, 1, 1, now)
    assert headers_of(refused(limiter, asked, 60.0))["retry-after"] == "59"
    limiter.take(asked, OPUS, 1, 1, 119.0)
    assert headers_of(refused(limiter, asked, 119.05))["retry-after"] == "1"


def test_the_real_tokens_take_the_place_of_the_expected() -> None:
    limiter, asked = Limiter(), [key(Terms(tpm=100))]
    taken = limiter.take(asked, OPUS, 10, 90, 0.0)
    refused(limiter, asked, 1.0)
    taken.settle(10, 20, 1.0)
    second = limiter.take(asked, OPUS, 35, 35, 1.0)
    second.settle(35, 45, 2.0)  # more than was expected: 110 in all, until the first leaves
    assert headers_of(second, 2.0)["x-ratelimit-remaining-tokens"] == "0"
    assert headers_of(refused(limiter, asked, 2.0))["retry-after"] == "58"
    limiter.take(asked, OPUS, 10, 10, 60.0)
    refused(limiter, asked, 60.0)


def test_what_is_not_known_stays_as_it_was_expected() -> None:
    limiter, asked = Limiter(), [key(Terms(itpm=100, otpm=100))]
    taken = limiter.take(asked, OPUS, 30, 40, 0.0)
    taken.settle(None, 5, 1.0)
    again = limiter.take(asked, OPUS, 1, 1, 1.0)
    assert headers_of(again, 1.0)["x-ratelimit-remaining-input-tokens"] == "69"
    assert headers_of(again, 1.0)["x-ratelimit-remaining-output-tokens"] == "94"
    again.settle(2, None, 1.0)
    assert headers_of(again, 1.0)["x-ratelimit-remaining-input-tokens"] == "68"
    assert headers_of(again, 1.0)["x-ratelimit-remaining-output-tokens"] == "94"


def test_a_long_request_keeps_its_place_and_none_of_its_tokens() -> None:
    limiter, asked = Limiter(), [key(Terms(tpm=100, parallel=1))]
    taken = limiter.take(asked, OPUS, 10, 90, 0.0)
    assert "at a time" in refused(limiter, asked, 1000.0).message
    taken.settle(10, 5000, 1000.0)
    assert headers_of(limiter.take(asked, OPUS, 1, 1, 1000.0), 1000.0)["x-ratelimit-remaining-tokens"] == "98"


def test_a_request_ends_once() -> None:
    limiter, asked = Limiter(), [key(Terms(parallel=2, tpm=100))]
    first, second = (limiter.take(asked, OPUS, 10, 10, 0.0) for _ in range(2))
    first.settle(5, 5, 0.0)
    first.settle(50, 50, 0.0)
    first.give_back()
    assert headers_of(second)["x-ratelimit-remaining-tokens"] == "70"
    limiter.take(asked, OPUS, 1, 1, 0.0)
    assert "at a time" in refused(limiter, asked, 0.0).message
    second.give_back()
    second.settle(50, 50, 0.0)
    assert headers_of(second)["x-ratelimit-remaining-tokens"] == "88"


def test_a_request_given_back_holds_up_no_reset() -> None:
    limiter, asked = Limiter(), [key(Terms(rpm=5))]
    first = limiter.take(asked, OPUS, 1, 1, 0.0)
    second = limiter.take(asked, OPUS, 1, 1, 20.0)
    third = limiter.take(asked, OPUS, 1, 1, 30.0)
    second.give_back()  # between others: the third is what the reset waits for
    assert headers_of(first, 30.0)["x-ratelimit-reset-requests"] == "60"
    third.give_back()
    assert headers_of(first, 30.0)["x-ratelimit-reset-requests"] == "30"
    assert headers_of(first, 30.0)["x-ratelimit-remaining-requests"] == "4"


def test_a_request_given_back_late_is_taken_out_of_nothing() -> None:
    limiter, asked = Limiter(), [key(Terms(rpm=3))]
    old = limiter.take(asked, OPUS, 1, 1, 0.0)
    new = limiter.take(asked, OPUS, 1, 1, 60.0)
    old.give_back()
    assert headers_of(new, 60.0)["x-ratelimit-remaining-requests"] == "2"


ROUNDED = {  # a difference that floats round to another whole second than the one that its sum reaches
    "the sum falls short": (3.8420100153756866, 18.84201001537568, "46"),
    "the sum is reached before": (7.633569459865948, 31.633569459865946, "36"),
    "as it is": (0.5, 10.5, "50"),
}


@pytest.mark.parametrize(("taken", "asked_again", "told"), ROUNDED.values(), ids=ROUNDED)
def test_retry_after_is_right_in_floats_too(taken: float, asked_again: float, told: str) -> None:
    limiter, asked = Limiter(), [key(Terms(rpm=1))]
    limiter.take(asked, OPUS, 1, 1, taken)
    assert headers_of(refused(limiter, asked, asked_again))["retry-after"] == told
    refused(limiter, asked, asked_again + (int(told) - 1))
    limiter.take(asked, OPUS, 1, 1, asked_again + int(told))


def test_a_changed_figure_applies_to_the_past_minute() -> None:
    limiter = Limiter()
    for _ in range(3):
        limiter.take([key(Terms(rpm=3))], OPUS, 5, 5, 0.0)
    refused(limiter, [key(Terms(rpm=2))], 1.0)
    refused(limiter, [key(Terms(tpm=31))], 1.0)
    refused(limiter, [key(Terms(parallel=3))], 1.0)
    limiter.take([key(Terms(rpm=4, tpm=40, parallel=4))], OPUS, 5, 5, 1.0)


def test_each_pattern_has_a_window_of_its_own() -> None:
    limiter = Limiter()
    asked = [key(Terms(model_rpm={"claude-opus-*": 2, "claude-*": 3}))]
    for _ in range(2):
        limiter.take(asked, OPUS, 1, 1, 0.0)
    assert "'claude-opus-*'" in refused(limiter, asked, 0.0).message
    limiter.take(asked, HAIKU, 1, 1, 0.0)
    with pytest.raises(RateLimited, match=r"3 requests a minute for 'claude-\*'"):
        limiter.take(asked, HAIKU, 1, 1, 0.0)
    limiter.take(asked, "another", 1, 1, 0.0)
    limiter.take(asked, None, 1, 1, 0.0)


def test_subjects_share_nothing_by_name_alone() -> None:
    limiter, terms = Limiter(), Terms(rpm=1)
    for kind in (KEY, TEAM, USER, CUSTOMER):
        for id in ("a", "b"):
            limiter.take([Subject(kind=kind, id=id, terms=terms)], OPUS, 1, 1, 0.0)
    assert len(limiter) == 8


def test_a_clock_that_is_read_early_and_used_late() -> None:
    """Tasks may read the clock, and come here in another order: nothing is out of order for that."""
    limiter, asked = Limiter(), [key(Terms(rpm=2))]
    limiter.take(asked, OPUS, 1, 1, 10.0)
    late = limiter.take(asked, OPUS, 1, 1, 4.0)
    assert headers_of(late, 4.0)["x-ratelimit-reset-requests"] == "60"
    assert headers_of(late, 65.0)["x-ratelimit-reset-requests"] == "5"
    refused(limiter, asked, 69.9)
    limiter.take(asked, OPUS, 1, 1, 70.0)


# --- What is held in memory -----------------------------------------------------------------------------------------


def held_entries() -> int:
    gc.collect()
    return sum(isinstance(each, limits._Entry) for each in gc.get_objects())


def test_memory_holds_a_minute_and_what_runs() -> None:
    before, limiter = held_entries(), Limiter()
    running = [limiter.take([key(Terms(rpm=9), id=f"r{n}")], OPUS, 1, 1, 0.0) for n in range(3)]
    for n in range(3000):
        asked = [key(Terms(rpm=10**6, model_tpm={"*": 10**6}), id=f"k{n}"), team(Terms(tpm=10**6))]
        limiter.take(asked, OPUS, 1, 1, float(n)).settle(1, 1, n + 0.5)
    # One key a second, with two logs each, and the team's; the running, and what is looked at with the next requests.
    assert len(limiter) <= 2 * 60 + 1 + len(running) + 5
    assert held_entries() - before <= 60 + len(running) + 5
    for _ in range(len(limiter)):
        limiter.take([], None, 0, 0, 4000.0)
    assert len(limiter) == len(running)
    for taken in running:
        taken.settle(1, 1, 4000.0)
    for _ in range(len(running)):
        limiter.take([], None, 0, 0, 4000.0)
    del running, taken
    assert len(limiter) == 0
    assert held_entries() == before


def test_a_subject_that_comes_again_and_again_keeps_no_others_in_memory() -> None:
    limiter, most = Limiter(), 0
    for n in range(600):
        if n % 50 == 0:
            limiter.take([team(Terms(tpm=10**6))], OPUS, 1, 1, float(n)).settle(1, 1, float(n))
        limiter.take([key(Terms(rpm=9), id=f"k{n}")], OPUS, 1, 1, float(n)).settle(1, 1, float(n))
        most = max(most, len(limiter))
    assert most <= 60 + 1 + 3


def test_what_is_given_back_is_held_no_longer() -> None:
    before, limiter, asked = held_entries(), Limiter(), [key(Terms(tpm=10**6))]
    for _ in range(1000):
        limiter.take(asked, OPUS, 1, 1, 0.0).give_back()
    assert held_entries() == before
    limiter.take([], None, 0, 0, 0.0)
    assert len(limiter) == 0


# --- Against a reference --------------------------------------------------------------------------------------------


@dataclass
class Past:
    """A request of the reference: what it was entered under, when, with what, and whether it runs."""

    under: set[tuple[str, str, str | None]]
    at: float
    read: int
    written: int
    running: bool = True


@dataclass
class Reference:
    """The same rules, adding up all there ever was for each question."""

    past: list[Past] = field(default_factory=list)

    @staticmethod
    def figures(subject: Subject, model: str | None) -> Iterator[tuple[str, int, str | None]]:
        terms = subject.terms
        for what in ("rpm", "tpm", "itpm", "otpm", "parallel"):
            if (figure := getattr(terms, what)) is not None:
                yield what, figure, None
        for what, by_pattern in (("rpm", terms.model_rpm), ("tpm", terms.model_tpm)):
            for pattern, figure in by_pattern.items():
                if model is not None and model.startswith(pattern.rstrip("*")):
                    yield what, figure, pattern

    def under(self, asked: Sequence[Subject], model: str | None) -> set[tuple[str, str, str | None]]:
        return {(s.kind, s.id, pattern) for s in asked for _, _, pattern in self.figures(s, model)}

    def used(self, subject: Subject, what: str, pattern: str | None, now: float) -> int:
        entered = [each for each in self.past if (subject.kind, subject.id, pattern) in each.under]
        recent = [each for each in entered if now < each.at + 60.0]
        return {
            "rpm": len(recent),
            "tpm": sum(each.read + each.written for each in recent),
            "itpm": sum(each.read for each in recent),
            "otpm": sum(each.written for each in recent),
            "parallel": sum(each.running for each in entered),
        }[what]

    def passes(
        self, asked: Sequence[Subject], model: str | None, read: int, written: int, now: float, *, parallel: bool = True
    ) -> bool:
        sizes = {"rpm": 1, "tpm": read + written, "itpm": read, "otpm": written, "parallel": 1}
        for subject in asked:
            for what, figure, pattern in self.figures(subject, model):
                used = self.used(subject, what, pattern, now)
                fits = used + sizes[what] <= figure or used == 0
                if (parallel or what != "parallel") and (figure == 0 or not fits):
                    return False
        return True

    def retry_after(self, asked: Sequence[Subject], model: str | None, read: int, written: int, now: float) -> int:
        if any(figure == 0 for subject in asked for _, figure, _ in self.figures(subject, model)):
            return 60
        return next(
            seconds
            for seconds in range(1, 61)
            if self.passes(asked, model, read, written, now + seconds, parallel=False)
        )

    def remaining(self, asked: Sequence[Subject], model: str | None, now: float) -> dict[str, int]:
        names = {"rpm": "requests", "tpm": "tokens", "itpm": "input-tokens", "otpm": "output-tokens"}
        told: dict[str, int] = {}
        for subject in asked:
            for what, figure, pattern in self.figures(subject, model):
                if what in names:
                    left = max(0, figure - self.used(subject, what, pattern, now))
                    told[names[what]] = min(left, told.get(names[what], left))
        return told


def figure(most: int) -> st.SearchStrategy[int | None]:
    return st.sampled_from([None] * most + list(range(most + 1)))


TERMS = st.builds(
    Terms,
    rpm=figure(6),
    tpm=figure(60),
    itpm=figure(40),
    otpm=figure(40),
    parallel=figure(5),
    model_rpm=st.just({}) | st.dictionaries(st.sampled_from(["claude-*", "claude-opus-*", HAIKU]), st.integers(0, 6)),
    model_tpm=st.just({}) | st.dictionaries(st.sampled_from(["*", OPUS]), st.integers(0, 60)),
)
WHO = [(KEY, "one"), (TEAM, "red"), (USER, "one"), (CUSTOMER, "one")]
TOKENS = st.integers(0, 25)
STEP = st.sampled_from([0.0, 1.0, 30.0, 59.0, 60.0]) | st.floats(0.0, 20.0) | st.integers(0, 64).map(lambda n: n / 64)
TAKES = [  # one for each model, so that most steps are one of them
    st.tuples(st.just("take"), st.sets(st.integers(0, 3), min_size=1, max_size=3), st.just(model), TOKENS, TOKENS)
    for model in (OPUS, HAIKU, None)
]
SETTLE = st.tuples(st.just("settle"), st.integers(0, 99), st.none() | TOKENS, st.none() | TOKENS)
GIVE_BACK = st.tuples(st.just("give_back"), st.integers(0, 99))
CHANGE = st.tuples(st.just("change"), st.integers(0, 3), TERMS)
START = st.sampled_from([0.0, 1e6 / 3, 2.0**31]) | st.floats(0, 1e6)


@settings(max_examples=150, deadline=None)
@given(
    start=START,
    terms=st.lists(TERMS, min_size=4, max_size=4),
    steps=st.lists(st.tuples(STEP, st.one_of(*TAKES, SETTLE, GIVE_BACK, CHANGE)), min_size=20, max_size=40),
)
def test_it_decides_as_the_reference_does(
    start: float, terms: list[Terms], steps: list[tuple[float, tuple[object, ...]]]
) -> None:
    limiter, reference, now = Limiter(), Reference(), start
    subjects = [Subject(kind=kind, id=id, terms=each) for (kind, id), each in zip(WHO, terms, strict=True)]
    ends: list[tuple[Taken, Past]] = []
    for elapsed, step in steps:
        now += elapsed
        match step:
            case ("take", set() as chosen, model, int() as read, int() as written):
                assert model is None or isinstance(model, str)
                asked = [subjects[n] for n in sorted(chosen)]
                question = (asked, model, read, written)
                if reference.passes(*question, now):
                    taken = limiter.take(*question, now)
                    past = Past(reference.under(asked, model), now, read, written)
                    reference.past.append(past)
                    ends.append((taken, past))
                    told = headers_of(taken, now)
                    prefix = "x-ratelimit-remaining-"
                    assert {
                        name.removeprefix(prefix): int(value) for name, value in told.items() if prefix in name
                    } == reference.remaining(asked, model, now)
                else:
                    held = len(limiter)
                    with pytest.raises(RateLimited) as caught:
                        limiter.take(*question, now)
                    assert len(limiter) == held
                    retry_after = int(headers_of(caught.value)["retry-after"])
                    assert retry_after == reference.retry_after(*question, now)
                    assert f"Try again in {retry_after} s." in caught.value.message
            case ("settle", int() as n, read_or_none, written_or_none) if ends:
                taken, past = ends[n % len(ends)]
                assert read_or_none is None or isinstance(read_or_none, int)
                assert written_or_none is None or isinstance(written_or_none, int)
                taken.settle(read_or_none, written_or_none, now)
                if past.running:
                    past.running = False
                    past.read = past.read if read_or_none is None else read_or_none
                    past.written = past.written if written_or_none is None else written_or_none
            case ("give_back", int() as n) if ends:
                taken, past = ends[n % len(ends)]
                taken.give_back()
                if past.running:
                    past.running = False
                    reference.past.remove(past)
            case ("change", int() as n, Terms() as changed):
                subjects[n] = Subject(kind=subjects[n].kind, id=subjects[n].id, terms=changed)
    # Nothing is left behind, however it went.
    for taken, _ in ends:
        taken.settle(None, None, now)
    for _ in range(len(limiter)):
        limiter.take([], None, 0, 0, now + 61)
    assert len(limiter) == 0


LIMITED = st.builds(Terms, rpm=figure(4), tpm=figure(60), itpm=figure(40), otpm=figure(40)).filter(
    lambda terms: 0 not in (terms.rpm, terms.tpm, terms.itpm, terms.otpm)
)


@settings(max_examples=150, deadline=None)
@given(
    start=START,
    terms=st.tuples(LIMITED, LIMITED),
    steps=st.lists(st.tuples(STEP, TOKENS, TOKENS), min_size=5, max_size=30),
)
def test_no_minute_holds_more_and_retry_after_is_right(
    start: float, terms: tuple[Terms, Terms], steps: list[tuple[float, int, int]]
) -> None:
    """Asked of the limiter alone: it is refused a second before it is told to come again, and let in when it does."""
    limiter, now, asked = Limiter(), start, [key(terms[0]), team(terms[1])]
    let_in: list[tuple[float, int, int]] = []
    for elapsed, read, written in steps:
        now += elapsed
        try:
            limiter.take(asked, OPUS, read, written, now)
            let_in.append((now, read, written))
        except RateLimited as refusal:
            wait = int(headers_of(refusal)["retry-after"])
            with pytest.raises(RateLimited):
                copy.deepcopy(limiter).take(asked, OPUS, read, written, now + (wait - 1))
            copy.deepcopy(limiter).take(asked, OPUS, read, written, now + wait)
    for each in terms:
        for most, sizes in (
            (each.rpm, [(at, 1) for at, _, _ in let_in]),
            (each.tpm, [(at, read + written) for at, read, written in let_in]),
            (each.itpm, [(at, read) for at, read, _ in let_in]),
            (each.otpm, [(at, written) for at, _, written in let_in]),
        ):
            for first, _ in sizes:
                minute = [size for at, size in sizes if first <= at < first + 60.0 and size]
                assert most is None or sum(minute) <= most or len(minute) == 1


def test_a_key_that_is_rotated_takes_what_it_has_used_along() -> None:
    limiter, terms = Limiter(), Terms(rpm=1, parallel=2, model_rpm={"claude-*": 1})
    taken = limiter.take([key(terms, "old")], OPUS, 1, 1, 0)
    limiter.move(KEY, "old", "new")
    assert "old" not in repr(limiter._logs.keys())
    assert refused(limiter, [key(terms, "new")], 59).message
    limiter.take([key(terms, "old")], OPUS, 1, 1, 59).give_back()
    taken.settle(1, 1, 59)
    limiter.take([key(terms, "new")], OPUS, 1, 1, 60)
