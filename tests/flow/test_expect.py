"""What exchanges are expected to cost, and that budgets which go by it are used up and hardly overshot."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tproxy.flow.expect import Expectations, Expected, text_bytes
from tproxy.protocol.pricing import Bill, Cost, PriceBook, Tokens, built_in
from tproxy.store.base import EXACT, FINISHED, Closing

BOOK = built_in()
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
DOLLAR = 1_000_000_000
OPUS = "claude-opus-4-8"  # 5 in, 6.25 for five minutes, 10 for an hour, 0.50 read, 25 out: nano-dollars a thousandth
MARK = {"type": "ephemeral"}


def body(size: int = 10_000, **members: Any) -> bytes:
    """A body of so many bytes."""
    value = {"model": OPUS, "max_tokens": 64_000, "messages": []} | members | {"system": ""}
    value["system"] = "x" * (size - len(json.dumps(value)))
    return json.dumps(value).encode()


def closing(
    uncached: int = 0, output: int = 100, *, write_5m: int = 0, write_1h: int = 0, read: int = 0, **members: Any
) -> Closing:
    tokens = Tokens(uncached, write_5m, write_1h, read, output)
    bill = Bill(OPUS, NOW, tokens, members.get("web_searches", 0), members.get("speed"), members.get("geo"))
    cost = BOOK.price(bill)
    assert isinstance(cost, Cost)
    return Closing(
        id="id",
        ended=FINISHED,
        certainty=EXACT,
        input_tokens=uncached,
        output_tokens=output,
        cache_write_5m_tokens=write_5m,
        cache_write_1h_tokens=write_1h,
        cache_read_tokens=read,
        **{"cost_nano": cost.total_nano} | members,
    )


def expect(
    expectations: Expectations,
    of: bytes,
    *,
    caller: str = "key:a",
    model: str = OPUS,
    max_tokens: int | None = 64_000,
    prices: PriceBook = BOOK,
) -> Expected:
    return expectations.expect(caller, model, of, max_tokens, prices, NOW)


def learnt(*closings: Closing, of: bytes, caller: str = "key:a", model: str = OPUS) -> Expectations:
    expectations = Expectations()
    for each in closings:
        expectations.learn(caller, model, text_bytes(of), each)
    return expectations


FIRST = {
    "plain input": (body(), 4_000 * 5_000),
    "the cache": (body(cache_control=MARK), 4_000 * 6_250),
    "the cache, for an hour": (body(cache_control=MARK | {"ttl": "1h"}), 4_000 * 10_000),
    "fast": (body(speed="fast"), 2 * 4_000 * 5_000 + 1_024 * 25_000),
    "more than the window": (body(3_000_000), 1_000_000 * 5_000),
}


@pytest.mark.parametrize(("of", "input_nano"), FIRST.values(), ids=FIRST)
def test_of_the_first_exchange(of: bytes, input_nano: int) -> None:
    """2.5 bytes are taken for a token, and 1,024 tokens for the output."""
    expected = expect(Expectations(), of)
    assert expected.nano == input_nano + 1_024 * 25_000
    assert expected.input_tokens == min(len(of) * 2 // 5, 1_000_000)
    assert expected.output_tokens == 1_024


def test_no_more_output_than_asked_for() -> None:
    assert expect(Expectations(), body(), max_tokens=10) == Expected(
        4_000, 10, 4_000 * 5_000 + 10 * 25_000, 10 * 25_000
    )
    assert expect(Expectations(), body(), max_tokens=None).output_tokens == 1_024


def test_of_a_model_without_a_price_tokens_are_expected() -> None:
    assert expect(Expectations(), body(), model="claude-opus-9") == Expected(4_000, 1_024, None)
    assert expect(Expectations(), body(), model="") == Expected(4_000, 1_024, None)


def test_what_comes_again_is_expected_exactly() -> None:
    of = body(cache_control=MARK)
    same = closing(50, 800, write_5m=300, read=2_650)
    assert expect(learnt(*[same] * 4, of=of), of).nano == same.cost_nano
    assert expect(learnt(*[same] * 4, of=of), of) == Expected(3_000, 800, same.cost_nano, 800 * 25_000)


def test_the_input_grows_with_the_body() -> None:
    expectations = learnt(*[closing(1_000, 10, read=2_000)] * 4, of=body(10_000))
    expected = expect(expectations, body(20_000))
    assert (expected.input_tokens, expected.nano) == (6_000, 2_000 * 5_000 + 4_000 * 500 + 10 * 25_000)


def test_not_so_what_the_body_only_refers_to() -> None:
    """Here more tokens than the body has bytes."""
    expectations = learnt(*[closing(30_000, 10)] * 4, of=body(1_000))
    assert expect(expectations, body(100_000)).input_tokens == 30_000


def test_the_input_is_never_longer_than_the_window() -> None:
    expectations = learnt(*[closing(900, 10)] * 4, of=body(1_000))
    assert expect(expectations, body(3_000_000)).input_tokens == 1_000_000


def test_of_ten_and_more_the_dearest_tenth_is_passed_over() -> None:
    of = body()
    cheap, dear = closing(10, 100, read=2_990), closing(3_000, 5_000)
    assert expect(learnt(dear, *[cheap] * 8, of=of), of).nano == dear.cost_nano
    assert expect(learnt(dear, *[cheap] * 9, of=of), of).nano == cheap.cost_nano
    assert expect(learnt(*[dear] * 4, *[cheap] * 28, of=of), of).nano == dear.cost_nano
    assert expect(learnt(*[dear] * 3, *[cheap] * 29, of=of), of).nano == cheap.cost_nano


def test_input_and_output_are_looked_at_apart() -> None:
    of = body()
    expectations = learnt(closing(3_000, 10), *[closing(300, 900)] * 3, of=of)
    assert expect(expectations, of).nano == 3_000 * 5_000 + 900 * 25_000


def test_only_the_last_32_count() -> None:
    of = body()
    dear, cheap = closing(3_000, 5_000), closing(10, 100)
    assert expect(learnt(*[dear] * 32, *[cheap] * 31, of=of), of).nano == cheap.cost_nano
    assert expect(learnt(*[cheap] * 32, *[dear] * 31, of=of), of).nano == dear.cost_nano


def test_a_caller_with_few_is_not_expected_to_be_cheap() -> None:
    of = body()
    first = expect(Expectations(), of)
    assert expect(learnt(*[closing(10, 100)] * 3, of=of), of) == first
    assert expect(learnt(*[closing(10, 100)] * 4, of=of), of).nano == 10 * 5_000 + 100 * 25_000
    assert expect(learnt(closing(9_000, 3_000), of=of), of).nano == 9_000 * 5_000 + 3_000 * 25_000


def test_a_new_caller_has_the_lengths_of_all_others_but_not_their_cache() -> None:
    of = body(cache_control=MARK)
    expectations = learnt(*[closing(100, 700, read=2_400)] * 8, of=of, caller="key:other")
    assert expect(expectations, of) == Expected(2_500, 1_024, 2_500 * 6_250 + 1_024 * 25_000, 1_024 * 25_000)
    assert expect(expectations, of, model="claude-opus-5-5").input_tokens == 4_000


def test_callers_and_models_are_kept_apart() -> None:
    of = body()
    expectations = learnt(*[closing(10, 100)] * 4, of=of)
    first = expect(Expectations(), of)
    assert expect(expectations, of, caller="key:b") == first
    assert expect(expectations, of, model="claude-opus-4-7") == first
    assert expect(expectations, of, model=OPUS + "[1m]") == expect(expectations, of)


def test_a_new_price_holds_at_once() -> None:
    of = body()
    expectations = learnt(*[closing(1_000, 100, read=1_000)] * 4, of=of)
    toml = f'[[model]]\nid = "{OPUS}"\nprice = [{{ input = "1", cache_read = "2", output = "3" }}]'
    book = BOOK.with_overrides(toml.encode(), "own")
    assert expect(expectations, of, prices=book).nano == 1_000 * 1_000 + 1_000 * 2_000 + 100 * 3_000


def test_speed_region_and_searches_stay_as_they_were() -> None:
    of = body()
    same = closing(1_000, 100, speed="fast", geo="us", web_searches=2)
    assert expect(learnt(*[same] * 4, of=of), of).nano == same.cost_nano


def test_what_has_no_price_as_it_was_is_priced_as_plain_input() -> None:
    of = body()
    past = Closing(
        id="id",
        ended=FINISHED,
        input_tokens=1_000,
        cache_read_tokens=500,
        output_tokens=100,
        geo="mars",
        cost_nano=None,
    )
    assert expect(learnt(*[past] * 4, of=of), of).nano == 1_500 * 5_000 + 100 * 25_000


def test_nothing_is_learnt_of_refusals_and_of_what_has_no_figures() -> None:
    of = body()
    nothing = [
        closing(5, 0, cost_nano=0),
        Closing(id="id", ended=FINISHED),
        Closing(id="i", ended=FINISHED, input_tokens=1),
    ]
    expectations = learnt(*nothing * 4, of=of)
    assert len(expectations) == 0
    assert expect(expectations, of) == expect(Expectations(), of)


def test_what_is_kept_is_bounded_to_those_used_last() -> None:
    of = body()
    expectations = Expectations(pairs=2)
    for caller in ("a", "a", "a", "a", "b"):
        expectations.learn(caller, OPUS, text_bytes(of), closing(10, 100))
    expect(expectations, of, caller="a")
    expectations.learn("c", OPUS, text_bytes(of), closing(10, 100))
    assert len(expectations) == 2
    assert expect(expectations, of, caller="a").input_tokens == 10
    for n in range(1_000):
        expectations.learn("a", f"made-up-{n}", text_bytes(of), closing(10, 100))
    assert len(expectations) == 2


def source(data: bytes, kind: str = "image") -> dict[str, Any]:
    return {"type": kind, "source": {"type": "base64", "data": base64.b64encode(data).decode()}}


def text(*blocks: dict[str, Any], indent: int | None = None) -> bytes:
    return json.dumps({"model": OPUS, "messages": [{"role": "user", "content": blocks}]}, indent=indent).encode()


def test_text_is_text() -> None:
    essay = {"type": "document", "source": {"type": "text", "data": "Some words of prose. " * 1_000}}
    assert text_bytes(text(essay)) == len(text(essay))
    assert text_bytes(b"") == 0
    assert text_bytes(b'{"data": "' + b"A" * 9_000) == len(b'{"data": "') + 9_000


@pytest.mark.parametrize("indent", [None, 2])
def test_images_and_pdfs_count_little(indent: int | None) -> None:
    image, pdf = source(bytes(3_000_000)), source(b"%PDF-1.7" + bytes(1_599_992), "document")
    rest = len(text(source(b""), indent=indent))
    assert text_bytes(text(image, indent=indent)) == rest + 4_000
    assert text_bytes(text(pdf, indent=indent)) - rest == pytest.approx(
        len(base64.b64encode(bytes(1_600_000))) / 16, abs=9
    )
    both = text_bytes(text(image, image, pdf, {"type": "text", "text": "x" * 5_000}, indent=indent))
    assert 145_000 < both < 150_000


@dataclass
class Budget:
    """What is held and spent never passes the limit at admission; save, if so told, for an exchange that is alone."""

    limit: int
    lets_in_one: bool
    spent: int = 0
    held: int = 0
    served: int = 0

    def hold(self, nano: int) -> bool:
        alone = self.lets_in_one and not self.held
        if self.spent >= self.limit or (self.spent + self.held + nano > self.limit and not alone):
            return False
        self.held += nano
        return True

    def settle(self, held: int, cost: int) -> None:
        self.held -= held
        self.spent += cost
        self.served += 1


@dataclass
class Session:
    """The truth of requests of Claude Code's kind: a long prefix, which is read from the cache once it is there."""

    cached: bool
    tokens: int = 28_000
    turns: itertools.count[int] = field(default_factory=itertools.count)

    def closing(self, warm: bool) -> Closing:
        output = 740 + 20 * (next(self.turns) % 7)  # 740 to 860
        if not self.cached:
            return closing(self.tokens, output)
        prefix = self.tokens - 500
        return closing(500, output, read=prefix) if warm else closing(500, output, write_5m=prefix)


@pytest.mark.parametrize("lets_in_one", [True, False], ids=["one may pass the limit", "none may"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize("at_once", [1, 20])
def test_a_dollar_is_served_until_it_is_used(at_once: int, cached: bool, lets_in_one: bool) -> None:
    """100 kB, max_tokens 64,000, real output about 800 tokens, from a cold start."""
    of = body(100_000, **({"cache_control": MARK} if cached else {}))
    expectations, budget, session = Expectations(), Budget(DOLLAR, lets_in_one), Session(cached)
    warm, dearest, held_for_one = False, 0, 0
    while True:
        running = []
        for _ in range(at_once):
            expected = expect(expectations, of)
            assert expected.nano is not None
            held_for_one = expected.nano
            if budget.hold(expected.nano):
                running.append((expected.nano, session.closing(warm)))
        if not running:
            break
        warm = True
        for held, real in running:
            assert real.cost_nano is not None
            assert real.cost_nano <= held * 1.02
            budget.settle(held, real.cost_nano)
            expectations.learn("key:a", OPUS, text_bytes(of), real)
            dearest = max(dearest, real.cost_nano)
    assert budget.held == 0
    assert budget.spent - DOLLAR < dearest
    left = DOLLAR - budget.spent
    assert left <= 0 if lets_in_one else left < held_for_one


def test_once_learnt_the_expectation_is_close() -> None:
    of = body(100_000, cache_control=MARK)
    session = Session(cached=True)
    expectations = learnt(session.closing(warm=False), *[session.closing(warm=True) for _ in range(12)], of=of)
    for _ in range(40):
        real, expected = session.closing(warm=True), expect(expectations, of)
        assert real.cost_nano is not None
        assert expected.nano is not None
        assert real.cost_nano / 1.02 <= expected.nano < real.cost_nano * 1.1
        expectations.learn("key:a", OPUS, text_bytes(of), real)


def test_a_hundred_callers_at_once_do_not_disturb_each_other() -> None:
    """A new key on a model that others know: its first requests write the cache, and that is expected of them."""
    of = body(100_000, cache_control=MARK)
    expectations, session = Expectations(), Session(cached=True)
    for n in range(100):
        for warm in (False, True, True):
            expectations.learn(f"key:{n}", OPUS, text_bytes(of), session.closing(warm))
    for n in range(100, 110):
        cold = session.closing(warm=False)
        expected = expect(expectations, of, caller=f"key:{n}")
        assert expected.nano is not None
        assert cold.cost_nano is not None
        assert cold.cost_nano <= expected.nano < cold.cost_nano * 1.1
