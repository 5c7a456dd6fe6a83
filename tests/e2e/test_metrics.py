"""`/metrics` of a whole house: who may see it, and that it says what went through."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from tests.e2e.api import MASTER, WITH_MASTER, call, made
from tests.e2e.house import REAL_KEY, House, config_text, open_house
from tests.e2e.raw import Answer, ask, request
from tests.e2e.test_budgets import body, message
from tproxy.settings import SettingsFault, load

OPEN_METRICS = ("accept", "application/openmetrics-text; version=1.0.0")
LABELS = """[tproxy.metrics]
enable_end_user_cost_tracking_prometheus_only = true
emit_stream_label = true
max_label_sets = 20
metadata_labels = ["metadata.department"]
tags = ["prod-*", "User-Agent: claude-cli/*"]
"""


async def scrape(house: House, *headers: tuple[str, str], method: str = "GET", key: str | None = MASTER) -> Answer:
    who = [("authorization", f"Bearer {key}")] if key is not None else []
    return await ask(house.address, request(method, "/metrics", [*who, *headers]))


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in plain_text(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def total(text: str, name: str, **labels: str) -> float:
    """The sum of all samples of that name with those labels."""
    return sum(v for n, has, v in samples(text) if n == name and labels.items() <= has.items())


@pytest.mark.parametrize(
    ("key", "public", "status"),
    [(None, False, 401), ("sk-unknown-and-long", False, 401), (MASTER, False, 200), (None, True, 200)],
    ids=["no key", "unknown", "master", "public"],
)
async def test_who_may_see_it(key: str | None, public: bool, status: int, tmp_path: Path) -> None:
    tables = f"[tproxy.metrics]\npublic = {str(public).lower()}\n"
    async with open_house(tmp_path, tproxy=WITH_MASTER, tables=tables) as house:
        answer = await scrape(house, key=key)
        assert answer.status == status
        assert (b"tproxy_build_info" in answer.body) == (status == 200)


async def test_a_key_sees_it_only_with_a_role(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        plain = (await made(house, "/key/generate"))["key"]
        assert (await scrape(house, key=plain)).status == 403
        viewer = (await made(house, "/user/new", user_id="v", user_role="proxy_admin_viewer"))["key"]
        assert (await scrape(house, key=viewer)).status == 200


async def test_off_there_is_no_page_and_nothing_is_counted(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER, tables="[tproxy.metrics]\nenabled = false\n") as house:
        assert (await ask(house.address, message(MASTER, body(), "tokens=5"))).status == 200
        for key in (MASTER, None):
            answer = await scrape(house, key=key)
            assert answer.status == 404
            assert b"tproxy.metrics.enabled" in answer.body


async def test_forms_of_the_page(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        assert (await ask(house.address, message(MASTER, body(), "tokens=5"))).status == 200
        plain = await scrape(house)
        assert plain.get("content-type").startswith(b"text/plain; version=0.0.4")
        names = {name for name, _, _ in samples(plain.body.decode())}
        assert {"litellm_spend_metric_total", "tproxy_stream_gap_seconds_bucket", "process_open_fds"} <= names

        opened = await scrape(house, OPEN_METRICS)
        assert opened.get("content-type").startswith(b"application/openmetrics-text; version=1.0.0")
        families = {family.name for family in open_metrics(opened.body.decode())}  # type: ignore[no-untyped-call]
        assert {"litellm_spend_metric", "tproxy_exchanges_ended"} <= families

        small = await scrape(house, ("accept-encoding", "deflate, gzip;q=0.8"))
        assert small.get("content-encoding") == b"gzip"
        assert b"litellm_spend_metric_total" in gzip.decompress(small.body)
        assert not [value for name, value in plain.headers if name.lower() == b"content-encoding"]

        head = await scrape(house, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.get("content-length")) > 1000
        assert (await scrape(house, method="POST")).status == 405


async def test_it_says_what_the_ledger_says(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        await made(house, "/team/new", team_id="red", team_alias="Red", max_budget=50, budget_duration="30d")
        keys = [
            await made(
                house,
                "/key/generate",
                key_alias=f"key-{i}",
                team_id="red",
                max_budget=10,
                rpm_limit=4,
                model_tpm_limit={"claude-*": 100_000},
            )
            for i in range(3)
        ]
        for made_key in keys:
            for tokens in (5, 20):
                asked = message(made_key["key"], body(), f"tokens={tokens}")
                assert (await ask(house.address, asked)).status == 200
        assert (await ask(house.address, message("sk-nobody-knows-this", body(), "tokens=5"))).status == 401
        assert (await ask(house.address, message(MASTER, body(), "status=529"))).status == 529
        rows = await house.rows(7)
        text = (await scrape(house)).body.decode()

        spent = sum(row["cost_nano"] for row in rows)
        assert spent > 0
        assert total(text, "tproxy_spend_nano_total") == spent
        assert total(text, "litellm_spend_metric_total") == pytest.approx(spent / 1e9, rel=1e-12)
        assert total(text, "litellm_requests_metric_total") == 7
        assert total(text, "litellm_proxy_total_requests_metric_total") == 8
        assert total(text, "litellm_proxy_total_requests_metric_total", status_code="200") == 6
        assert total(text, "litellm_proxy_failed_requests_metric_total") == 2
        assert total(text, "litellm_proxy_failed_requests_metric_total", exception_class="key_unknown") == 1
        assert total(text, "litellm_output_tokens_metric_total") == sum(row["output_tokens"] or 0 for row in rows) > 0
        assert total(text, "tproxy_exchanges_ended_total", ended="finished") == 6
        assert total(text, "tproxy_exchanges_ended_total", ended="refused") == 1
        assert total(text, "tproxy_refusals_total", code="key_unknown") == 1
        assert total(text, "tproxy_relayed_bytes_total", direction="answer") == sum(row["bytes_out"] for row in rows)
        assert total(text, "litellm_in_flight_requests") == 0
        assert total(text, "litellm_request_total_latency_metric_count") == 6
        assert total(text, "litellm_llm_api_time_to_first_token_metric_count") == 6
        latency = sum(row["ended_us"] - row["accepted_us"] for row in rows if row["ended"] == "finished")
        assert total(text, "litellm_request_total_latency_metric_sum") == pytest.approx(latency / 1e6)
        assert total(text, "tproxy_upstream_requests_total") == 7
        assert total(text, "tproxy_ledger_writable") == total(text, "tproxy_budgets_read") == 1
        assert total(text, "tproxy_ledger_commit_seconds_count") > 0
        assert total(text, "tproxy_stream_events_total") > 0

        for made_key in keys:
            whose = {"hashed_api_key": made_key["token"], "api_key_alias": made_key["key_alias"]}
            cost = sum(row["cost_nano"] for row in rows if row["caller"] == f"key:{made_key['token']}") / 1e9
            assert total(text, "litellm_spend_metric_total", team="red", team_alias="Red", **whose) == pytest.approx(
                cost
            )
            assert total(text, "litellm_remaining_api_key_budget_metric", **whose) == pytest.approx(10 - cost)
            assert total(text, "litellm_api_key_max_budget_metric", **whose) == 10
            assert total(text, "litellm_remaining_api_key_requests_for_model", **whose) == 2
            assert 90_000 < total(text, "litellm_remaining_api_key_tokens_for_model", **whose) < 100_000
        keys_spent = sum(row["cost_nano"] for row in rows if row["team"] == "red") / 1e9
        red = {"team": "red", "team_alias": "Red"}
        assert total(text, "litellm_remaining_team_budget_metric", **red) == pytest.approx(50 - keys_spent)
        assert 0 < total(text, "litellm_team_budget_remaining_hours_metric", **red) <= 31 * 24

        page = text + (await scrape(house, OPEN_METRICS)).body.decode()
        secrets = [MASTER, REAL_KEY, "sk-nobody-knows-this", *(made_key["key"] for made_key in keys)]
        assert not [secret for secret in secrets if secret in page or secret[3:] in page]
        assert not re.search(r"sk-[A-Za-z0-9]", page)


async def test_a_stream_is_seen_while_it_runs(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, house.address, message(MASTER, body(), "tokens=200; tps=20"))
            with trio.fail_after(10):
                text = ""
                while total(text, "tproxy_relayed_bytes_total", direction="answer") < 2000:  # past its first content
                    await trio.sleep(0.02)
                    text = (await scrape(house)).body.decode()
            assert total(text, "litellm_in_flight_requests") == total(text, "tproxy_streams_open") == 1
            assert total(text, "tproxy_upstream_connections", state="active") == 1
            assert total(text, "tproxy_relayed_bytes_total", direction="request") == len(body())
            nursery.cancel_scope.cancel()
        rows = await house.rows(1)
        assert rows[0]["ended"] == "client_gone"
        text = (await scrape(house)).body.decode()
        assert total(text, "tproxy_client_disconnects_total", phase="midway") == 1
        assert total(text, "litellm_proxy_failed_requests_metric_total") == 0
        assert total(text, "tproxy_relayed_bytes_total", direction="answer") == rows[0]["bytes_out"]


async def test_series_stay_bounded(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER, tables=LABELS) as house:
        key = (await made(house, "/key/generate", metadata={"department": "sk-secret-department"}))["key"]

        async def send(number: int) -> None:
            content = json.loads(body())
            content["model"] = f"model-of-{number}" if number % 2 else content["model"]
            content["stream"] = bool(number % 3)
            headers = [("x-tproxy-customer", f"customer-{number}"), ("x-tproxy-tags", f"tag-{number},prod-{number}")]
            asked = message(key, json.dumps(content).encode(), "tokens=5", *headers)
            assert (await ask(house.address, asked)).status == (404 if number % 2 else 200)

        for number in range(60):
            await send(number)
        await house.rows(60)
        text = (await scrape(house)).body.decode()
        assert total(text, "litellm_requests_metric_total") == 60
        told = [has for name, has, _ in samples(text) if name == "litellm_requests_metric_total"]
        assert len(told) <= 2 * 20 + 1
        assert {has["end_user"] for has in told if has["end_user"] != "other"} == {f"customer-{n}" for n in range(20)}
        assert {has["requested_model"] for has in told} == {"claude-sonnet-4-5", "other"}
        assert {has["stream"] for has in told} == {"true", "false"}
        assert {has["tag_prod__"] for has in told} == {"true", "other"}
        assert {has["metadata_department"] for has in told} == {"sk-…", "other"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('tags = ["a-b", "a_b"]', "tproxy.metrics.tags"),
        ('tags = ["*"]', "tproxy.metrics.tags"),
        ('metadata_labels = ["department"]', "tproxy.metrics.metadata_labels"),
        ('metadata_labels = ["metadata.a.b", "metadata.a-b"]', "tproxy.metrics.metadata_labels"),
    ],
    ids=["the same label", "every tag", "no metadata", "the same field"],
)
def test_labels_that_cannot_be(setting: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(config_text("http://127.0.0.1:1", tproxy=WITH_MASTER, tables=f"[tproxy.metrics]\n{setting}\n"))
    with pytest.raises(SettingsFault, match=re.escape(said)):
        load(file)


async def test_the_page_goes_on_where_budgets_cannot_be_read(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        house.database.rename(tmp_path / "away.db")
        text = (await scrape(house)).body.decode()
        assert total(text, "tproxy_budgets_read") == 0
        assert total(text, "tproxy_build_info") == 1
        (tmp_path / "away.db").rename(house.database)
        assert total((await scrape(house)).body.decode(), "tproxy_budgets_read") == 1


async def test_management_requests_are_not_counted(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        assert (await call(house, "GET", "/key/list"))[0] == 200
        assert total((await scrape(house)).body.decode(), "litellm_proxy_total_requests_metric_total") == 0
