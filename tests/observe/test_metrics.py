"""What is counted of exchanges, to the last number; and that no one can make it grow without end."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace as other
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from tests.flow.asgi import Asked, stage
from tests.flow.known import key
from tests.wire.peer import answers, close
from tproxy.errors import BudgetExceeded, Fault, RateLimited
from tproxy.flow.course import Course
from tproxy.flow.identify import ANONYMOUS, MASTER, Caller
from tproxy.flow.limits import Limiter
from tproxy.flow.observer import Refused, Sight
from tproxy.flow.pulse import Pulse
from tproxy.flow.remaining import remaining
from tproxy.flow.route import Passage
from tproxy.flow.tap import Tap
from tproxy.histogram import Histogram
from tproxy.observe import labels
from tproxy.observe.exposition import Writing
from tproxy.observe.metrics import Metrics
from tproxy.observe.series import Family
from tproxy.protocol.pricing import built_in
from tproxy.setting_tables import Metrics as Table
from tproxy.store import base
from tproxy.store.base import Closing, Opening
from tproxy.store.subjects import KEY, TEAM, Subject, Terms

BOOK = built_in()
START = 1_795_000_000_000_000
MODEL = "claude-opus-5-5"
ALICE = Caller("key:" + "a" * 64, "alice", "red", "u1", (), ())


def metrics(**settings: Any) -> Metrics:
    return Metrics(Table(**settings), lambda: BOOK)


def sight(caller: Caller = ALICE, *, path: str = "/v1/messages", method: str = "POST", **opening: Any) -> Sight:
    fields: dict[str, Any] = {"model_asked": MODEL, "stream": True, "user_agent": "claude-cli/2.1", **opening}
    course = Course("x", Passage(method, b"", path.encode(), None), START, lambda: START)
    return Sight(
        Opening(id="x", accepted_us=START, method=method, path=path, upstream="test", caller=caller.id, **fields),
        course,
        Tap(course, Pulse()),
        caller,
        "api_keys[0]",
        Limiter().take((), None, 0, 0, 0.0),
        lambda: Closing(id="x", ended=base.OPEN),
    )


GOOD = Closing(
    id="x",
    ended=base.FINISHED,
    ended_us=START + 2_000_000,
    dialled_us=START + 1_000,
    head_us=START + 400_000,
    first_content_us=START + 501_000,
    last_byte_us=START + 1_900_000,
    status=200,
    model_served=MODEL,
    input_tokens=10,
    output_tokens=20,
    cache_read_tokens=100,
    cache_write_5m_tokens=30,
    cache_write_1h_tokens=5,
    thinking_tokens=7,
    cost_nano=123_456_789,
    certainty=base.EXACT,
    bytes_in=50,
    bytes_out=900,
)


def ended(**changes: Any) -> Closing:
    return msgspec.structs.replace(GOOD, **changes)


def page(families: Iterable[Family], accept: str = "") -> str:
    return b"".join(Writing(families, accept).pieces()).decode()


def figures(counted: Metrics, name: str) -> dict[tuple[str, ...], float | Histogram]:
    [family] = [each for each in counted.families() if each.name == name]
    found = list(family.samples)
    assert len(dict(found)) == len(found), "a set of labels twice"
    assert all(len(values) == len(family.labels) for values, _ in found)
    return dict(found)


def total(counted: Metrics, name: str) -> float:
    return sum(value if not isinstance(value, Histogram) else value.count for value in figures(counted, name).values())


async def test_an_exchange_and_a_refusal_through_the_flow() -> None:
    counted = metrics()
    content = (
        b'{"type":"message","id":"msg_1","model":"claude-opus-5-5","stop_reason":"end_turn",'
        b'"usage":{"input_tokens":7,"output_tokens":5}}'
    )
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nanthropic-ratelimit-requests-remaining: 49\r\n"
        b"anthropic-ratelimit-tokens-remaining: 8000\r\ncontent-length: %d\r\n\r\n" % len(content)
    )
    async with stage(answers(head + content), observers=[counted]) as on:
        assert (await on.ask(Asked())).status == 200
        assert (await on.ask(Asked(path=b"/v1/messages/../x"))).status == 400
        row = on.row
    who = ("anonymous", "", "", "", "", "")
    assert figures(counted, "tproxy_spend_nano") == {(MODEL,): row["cost_nano"]}
    assert figures(counted, "litellm_total_tokens_metric") == {(*who, MODEL, MODEL, "anthropic"): 12}
    assert figures(counted, "litellm_proxy_total_requests_metric") == {
        (*who, MODEL, "/v1/messages", "200"): 1,
        (*who, "", "/v1/messages", "400"): 1,
    }
    assert figures(counted, "litellm_proxy_failed_requests_metric") == {
        (*who, "", "/v1/messages", "400", "bad_request"): 1
    }
    upstream = (MODEL, MODEL, "anthropic", "api_keys[0]")
    assert figures(counted, "litellm_remaining_requests_metric") == {upstream: 49}
    assert figures(counted, "litellm_remaining_tokens_metric") == {upstream: 8000}


def test_known_exchanges_give_exact_figures() -> None:
    counted = metrics()
    for number in range(10):
        counted.ended(sight(), ended(cost_nano=GOOD.cost_nano and GOOD.cost_nano + number))
    who = ("a" * 64, "alice", "red", "", "u1", "", MODEL, MODEL)
    provided = (*who, "anthropic")
    for name, figure in {
        "litellm_requests_metric": 10,
        "litellm_input_tokens_metric": 1450,
        "litellm_output_tokens_metric": 200,
        "litellm_total_tokens_metric": 1650,
        "litellm_input_cached_tokens_metric": 1000,
        "litellm_input_cache_creation_tokens_metric": 350,
        "litellm_output_reasoning_tokens_metric": 70,
        "litellm_spend_metric": 1.234567935,
    }.items():
        assert figures(counted, name) == {provided: figure}, name
    assert figures(counted, "tproxy_spend_nano") == {(MODEL,): 1_234_567_935}
    for name, sum_us, bucket in (
        ("litellm_request_total_latency_metric", 20_000_000, 2_000_000),
        ("litellm_llm_api_latency_metric", 18_990_000, 2_000_000),
        ("litellm_overhead_latency_metric", 1_010_000, 250_000),
        ("litellm_llm_api_time_to_first_token_metric", 5_000_000, 500_000),
    ):
        [histogram] = figures(counted, name).values()
        assert isinstance(histogram, Histogram)
        assert (histogram.total, histogram.count) == (sum_us, 10)
        assert histogram.counts[histogram.bounds.index(bucket)] == 10
    assert (counted.bytes_in, counted.bytes_out) == (500, 9000)

    text = page(counted.families(), "application/openmetrics-text; version=1.0.0")
    families = list(open_metrics(text))  # type: ignore[no-untyped-call]
    read = {sample.name: sample.value for each in families for sample in each.samples}
    assert read["litellm_overhead_latency_metric_sum"] == 1.01
    assert read["litellm_overhead_latency_metric_count"] == 10


@pytest.mark.parametrize(
    ("closing", "status", "why"),
    [
        (ended(), "200", None),
        (ended(ended=base.REFUSED, status=429, error_type="rate_limit_error"), "429", "rate_limit_error"),
        (ended(ended=base.REFUSED, status=599, error_type="made_up"), "other", "other"),
        (ended(ended=base.UPSTREAM_BROKEN), "200", "upstream_broken"),
        (ended(ended=base.FAILED, status=None, error_type="shutdown"), "499", "shutdown"),
        (ended(ended=base.CLIENT_GONE, status=None), "499", None),
    ],
    ids=["good", "upstream refuses", "unknown words", "broken", "shutdown", "left"],
)
def test_what_counts_as_failed(closing: Closing, status: str, why: str | None) -> None:
    counted = metrics()
    counted.ended(sight(), closing)
    who = ("a" * 64, "alice", "red", "", "u1", "", MODEL, "/v1/messages")
    assert figures(counted, "litellm_proxy_total_requests_metric") == {(*who, status): 1}
    failed = {} if why is None else {(*who, status, why): 1}
    assert figures(counted, "litellm_proxy_failed_requests_metric") == failed
    assert total(counted, "litellm_request_total_latency_metric") == (1 if closing.ended == base.FINISHED else 0)
    assert figures(counted, "tproxy_exchanges_ended")[closing.ended,] == 1


@pytest.mark.parametrize(
    ("path", "changes", "phase"),
    [
        ("/v1/messages", {"head_us": None, "first_content_us": None}, "before_head"),
        ("/v1/files", {"head_us": None, "first_content_us": None}, "uploading"),
        ("/v1/messages", {"first_content_us": None}, "before_content"),
        ("/v1/messages", {}, "midway"),
        ("/v1/files", {"first_content_us": None}, "midway"),
    ],
    ids=["before head", "uploading", "before content", "midway", "midway of a file"],
)
def test_when_a_client_left(path: str, changes: dict[str, Any], phase: str) -> None:
    counted = metrics()
    counted.ended(sight(path=path), ended(ended=base.CLIENT_GONE, **changes))
    assert {phase} == {name for (name,), n in figures(counted, "tproxy_client_disconnects").items() if n}


def test_only_streams_have_a_first_token() -> None:
    counted = metrics()
    counted.ended(sight(stream=False), ended())
    assert figures(counted, "litellm_llm_api_time_to_first_token_metric") == {}
    assert figures(counted, "tproxy_time_to_first_content_seconds") == {}
    assert total(counted, "tproxy_time_to_head_seconds") == 1


def test_a_clock_that_was_set_back_spoils_nothing() -> None:
    counted = metrics()
    counted.ended(
        sight(), ended(ended_us=START - 5, head_us=START - 9, first_content_us=START - 8, last_byte_us=START - 7)
    )
    for name in ("litellm_request_total_latency_metric", "litellm_overhead_latency_metric"):
        [histogram] = figures(counted, name).values()
        assert isinstance(histogram, Histogram)
        assert histogram.total == 0


def refused(fault: Fault, caller: Caller = ALICE, path: str = "/anthropic/v1/messages") -> Refused:
    return Refused("x", "POST", path, fault, caller, "no-such-model", None)


def test_refusals() -> None:
    counted = metrics(emit_stream_label=True)
    counted.refused(refused(RateLimited("")))
    counted.refused(refused(BudgetExceeded("")))
    counted.refused(refused(BudgetExceeded(""), ANONYMOUS, "/v1/models/x"))
    assert {code: n for (code,), n in figures(counted, "tproxy_refusals").items() if n} == {
        "rate_limited": 1,
        "budget_exceeded": 2,
    }
    who = ("a" * 64, "alice", "red", "", "u1", "", "other", "/v1/messages")
    assert figures(counted, "litellm_proxy_failed_requests_metric") == {
        (*who, "429", "rate_limited", ""): 1,
        (*who, "402", "budget_exceeded", ""): 1,
        ("anonymous", "", "", "", "", "", "other", "/v1/models", "402", "budget_exceeded", ""): 1,
    }
    assert total(counted, "litellm_proxy_total_requests_metric") == 3
    assert total(counted, "litellm_requests_metric") == 0


@pytest.mark.parametrize(
    ("settings", "end_user"),
    [
        ({}, ""),
        ({"enable_end_user_cost_tracking_prometheus_only": True}, "customer-1"),
        (
            {
                "enable_end_user_cost_tracking_prometheus_only": True,
                "disable_end_user_cost_tracking_prometheus_only": True,
            },
            "",
        ),
        ({"enable_end_user_cost_tracking_prometheus_only": True, "disable_end_user_cost_tracking": True}, ""),
    ],
    ids=["default", "enabled", "disabled here", "disabled everywhere"],
)
def test_end_users(settings: dict[str, bool], end_user: str) -> None:
    counted = metrics(**settings)
    counted.ended(sight(customer="customer-1"), ended())
    [values] = figures(counted, "litellm_spend_metric")
    assert values[5] == end_user


def test_tags_and_metadata() -> None:
    red = Subject(kind=TEAM, id="red", alias="Red Team", metadata={"department": "of the team", "cost": {"center": 7}})
    alice = Subject(kind=KEY, id="a" * 64, metadata={"department": "of the key", "flag": True})
    caller = Caller("key:" + "a" * 64, "alice", "red", None, ("prod-eu",), (alice, red))
    counted = metrics(
        tags=("prod-*", "User-Agent: claude-cli", "User-Agent: curl/*", "prod"),
        metadata_labels=("metadata.department", "metadata.cost.center", "metadata.flag", "metadata.none"),
    )
    assert counted.who.names[6:] == (
        *("metadata_department", "metadata_cost_center", "metadata_flag", "metadata_none"),
        *("tag_prod__", "tag_User_Agent__claude_cli", "tag_User_Agent__curl__", "tag_prod"),
    )
    counted.ended(sight(caller, tags=("x", "prod-eu")), ended())
    [values] = figures(counted, "litellm_spend_metric")
    assert values[3] == "Red Team"
    assert values[6:14] == ("of the key", "7", "true", "", "true", "true", "false", "false")
    counted.refused(refused(RateLimited(""), caller))
    values = next(v for v in figures(counted, "litellm_proxy_failed_requests_metric"))
    assert values[6:14] == ("of the key", "7", "true", "", "true", "false", "false", "false")


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/messages", "/v1/messages"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/messages/batches/msgbatch_1/results", "/v1/messages/batches"),
        ("/v1/messages_and_more", "other"),
        ("/v1/files/file_1/content", "/v1/files"),
        ("/v1", "other"),
        ("/key/x", "other"),
        ("", "other"),
    ],
)
def test_routes(path: str, family: str) -> None:
    assert labels.route(path) == family


@pytest.mark.parametrize(
    ("name", "told"),
    [(None, ""), (MODEL, MODEL), (MODEL + "[1m]", MODEL), ("claude-nobody", "other"), ("", "other")],
)
def test_models(name: str | None, told: str) -> None:
    assert labels.model(name, BOOK) == told


def test_off_nothing_is_counted() -> None:
    counted = metrics(enabled=False)
    counted.ended(sight(), ended())
    counted.refused(refused(RateLimited("")))
    assert total(counted, "tproxy_exchanges_ended") == total(counted, "litellm_proxy_total_requests_metric") == 0


def test_a_reload_begins_anew_only_where_labels_change() -> None:
    counted = metrics()
    counted.ended(sight(), ended())
    counted.take(Table(public=True))
    assert total(counted, "litellm_requests_metric") == 1
    counted.take(Table(public=True, enabled=False))
    counted.ended(sight(), ended())
    assert total(counted, "litellm_requests_metric") == 1
    counted.take(Table(tags=("prod",)))
    assert total(counted, "litellm_requests_metric") == 0
    assert total(counted, "tproxy_exchanges_ended") == 1
    counted.ended(sight(), ended())
    [values] = figures(counted, "litellm_requests_metric")
    assert values[6] == "false"


def test_texts_that_look_the_same_are_one_and_no_key_is_told() -> None:
    counted = metrics()
    for alias in ("sk-abcdefgh12345678", "sk-other-secret-99999", "x" * 200 + "1", "x" * 200 + "2", "\ud800"):
        caller = Caller("key:" + "a" * 64, alias)
        counted.ended(sight(caller), ended())
    counted.ended(sight(MASTER), ended())
    aliases = {values[1]: n for values, n in figures(counted, "litellm_requests_metric").items()}
    assert aliases == {"sk-…": 2, "x" * 128: 2, "?": 1, "master": 1}
    page(counted.families())


def random_exchange(chance: random.Random) -> tuple[Sight, Closing]:
    """Of somebody, for somebody, with any model, in any way."""

    def of(kind: str) -> str:
        return f"{kind}-{chance.randrange(10_000)}"

    caller = Caller(f"key:{chance.randrange(10_000):064x}", of("alias"), of("team"), of("user"))
    subject = Subject(kind=KEY, id=caller.id, metadata={"department": of("department")})
    caller = msgspec.structs.replace(caller, subjects=(subject,))
    seen = sight(
        caller,
        path=chance.choice(["/v1/messages", f"/v1/{of('path')}", "/v1/models"]),
        model_asked=of("model"),
        stream=chance.choice([True, False, None]),
        customer=of("customer"),
        tags=(of("tag"), "a" * chance.randrange(3)),
        user_agent=of("agent"),
    )
    seen = other(seen, credential=chance.choice(["own", "api_keys[0]", "api_keys[1]"]))
    seen.course.remains = (chance.randrange(9), None, 3, 4)
    return seen, ended(
        ended=chance.choice([*labels.ENDS, *[base.FINISHED] * 20]),
        status=chance.choice([None, *range(100, 1000)]),
        error_type=of("error"),
        model_served=chance.choice([of("model"), MODEL, "claude-haiku-4-5", None]),
    )


MOST = 200
# Per set of labels: of usage eight counters and 4 histograms; a count of requests and one of failures. All besides.
BOUND = (2 * MOST + 1) * (8 + 3 * 18 + 15 + 2) + 5_000


def test_series_are_bounded_whoever_asks() -> None:
    chance = random.Random(5)
    counted = metrics(
        max_label_sets=MOST,
        emit_stream_label=True,
        enable_end_user_cost_tracking_prometheus_only=True,
        metadata_labels=("metadata.department",),
        tags=("tag-*", "a", "aa", "User-Agent: agent-1*"),
    )
    sizes = []
    for _ in range(2):
        for _ in range(10_000):
            seen, closing = random_exchange(chance)
            counted.ended(seen, closing)
            counted.refused(refused(RateLimited(""), seen.caller, seen.opening.path))
        text = page(counted.families())
        sizes.append(sum(not line.startswith("#") for line in text.splitlines()))
    print(f"{sizes[0]} sample lines after 10,000 users, customers, models and tags; {sizes[1]} after 20,000")
    assert sizes[1] <= BOUND
    assert total(counted, "litellm_requests_metric") == 20_000
    assert total(counted, "litellm_proxy_total_requests_metric") == 40_000
    for table in (counted.usage, counted.requests, counted.failures):
        assert MOST < len(table) <= 2 * MOST + 1


TERMS = {
    "none": (Terms(parallel=3), MODEL, (None, None)),
    "requests": (Terms(rpm=10), None, (9, None)),
    "the least": (Terms(rpm=10, tpm=100, model_rpm={"claude-*": 2}, model_tpm={"claude-*": 60}), MODEL, (1, 55)),
    "another model": (Terms(rpm=10, model_rpm={"claude-haiku*": 2}), MODEL, (9, None)),
}


@pytest.mark.parametrize(("terms", "model", "left"), TERMS.values(), ids=TERMS)
def test_what_is_left_of_limits(terms: Terms, model: str | None, left: tuple[int | None, int | None]) -> None:
    limiter = Limiter()
    alice = key("sk-alice", terms=terms)
    assert remaining(limiter, alice, model, 1.0)[0] == (None if left[0] is None else left[0] + 1)
    assert len(limiter) == 0
    limiter.take([alice], MODEL, 2, 3, 5.0)
    assert remaining(limiter, alice, model, 6.0) == left
    assert remaining(limiter, alice, model, 65.5)[0] == (None if left[0] is None else left[0] + 1)


def test_the_library_is_loaded_when_somebody_scrapes() -> None:
    program = "import sys, tproxy.server; print([name for name in sys.modules if name.startswith('prometheus')])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_families_have_help_and_units() -> None:
    names: list[str] = []
    for family in metrics().families():
        assert family.help.endswith(".")
        assert not family.name.endswith("_total")
        names.append(family.name)
    assert len(set(names)) == len(names)


ROWS: dict[str, tuple[Family, list[str]]] = {
    "counter": (Family("a_b", "counter", "X.", ("l",), [(('"\\\n',), 3)]), ['a_b_total{l="\\"\\\\\\n"} 3.0']),
    "gauge": (Family("a", "gauge", "X.", (), [((), 0.5)]), ["a 0.5"]),
    "none": (Family("a", "gauge", "X."), []),
}


@pytest.mark.parametrize(("family", "lines"), ROWS.values(), ids=ROWS)
def test_how_it_is_written(family: Family, lines: list[str]) -> None:
    text = page([family])
    assert [line for line in text.splitlines() if line.startswith("a")] == lines


def test_a_histogram_is_written_in_seconds() -> None:
    seen = Histogram((100_000, 250_000))
    for value in (99_999, 100_000, 200_000, 7_000_000):
        seen.observe(value)
    text = page([Family("h", "histogram", "X.", (), [((), seen)], 1e-6)])
    assert [line for line in text.splitlines() if line.startswith("h_")] == [
        'h_bucket{le="0.1"} 2.0',
        'h_bucket{le="0.25"} 3.0',
        'h_bucket{le="+Inf"} 4.0',
        "h_count 4.0",
        "h_sum 7.399999",
    ]


async def test_a_refused_request_that_never_was_an_exchange_has_no_series_of_a_caller() -> None:
    counted = metrics()
    async with stage(close, observers=[counted]) as on:
        await on.ask(Asked(path=b"/nothing/here"))
    assert figures(counted, "litellm_proxy_total_requests_metric") == {
        ("anonymous", "", "", "", "", "", "", "other", "404"): 1
    }


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"], ids=["text", "OpenMetrics"])
def test_pieces_are_one_page(accept: str) -> None:
    seen = Histogram(range(10))
    families = [
        Family("many", "counter", "X.", ("l",), [((str(number),), number) for number in range(500)]),
        Family("none", "gauge", "X."),
        Family("spread", "histogram", "X.", ("l",), [((str(number),), seen) for number in range(20)]),
    ]
    pieces = list(Writing(families, accept).pieces())
    assert all(piece.count(b"\n") <= 70 for piece in pieces)
    text = b"".join(pieces).decode()
    assert [line for line in text.splitlines() if line.startswith("# TYPE ") and "process" not in line] == [
        f"# TYPE many{'' if accept else '_total'} counter",
        "# TYPE none gauge",
        "# TYPE spread histogram",
    ]
    read = open_metrics(text) if accept else plain_text(text)  # type: ignore[no-untyped-call]
    sizes = {family.name: len(family.samples) for family in read}
    assert sizes["many"] == 500
    assert sizes["spread"] == 20 * 13
    assert text.count("# EOF") == (1 if accept else 0)
