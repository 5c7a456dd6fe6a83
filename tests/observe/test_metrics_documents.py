"""The dashboard and the alert rules ask only for metrics and labels that `/metrics` gives, and docs/metrics.md has them
all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from tests.e2e.api import WITH_MASTER, made
from tests.e2e.house import open_house
from tests.e2e.raw import ask
from tests.e2e.test_budgets import body, message
from tests.e2e.test_metrics import samples, scrape

DOCS = Path(__file__).parent.parent.parent / "docs"
DASHBOARD = DOCS / "grafana" / "tproxy.json"
RULES = DOCS / "prometheus" / "alerts.yml"

NAME = re.compile(r"\b((?:tproxy|litellm|process)_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
# Which Prometheus adds when it scrapes.
SCRAPED = {"job", "instance", "le"}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Each with its legend."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


def rules() -> list[tuple[str, str]]:
    """The query of each rule, and what its summary shows."""
    found = []
    for block in RULES.read_text().split("- alert: ")[1:]:
        query = re.search(r"expr: (?:\|\n)?((?:.|\n)*?)\n +(?:for|labels):", block)
        summary = re.search(r'summary: "(.*)"', block)
        assert query, block
        assert summary, block
        found.append((query[1], summary[1]))
    return found


def test_the_queries_are_found() -> None:
    assert len(list(dashboard_queries())) > 50
    assert len(rules()) == RULES.read_text().count("- alert:")
    assert len(rules()) > 12


def test_the_dashboard_can_be_imported() -> None:
    page: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert page["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in page["panels"]]
    assert len(set(ids)) == len(ids)
    rows = [panel["title"] for panel in page["panels"] if panel["type"] == "row"]
    assert rows == [
        "Traffic",
        "Latency",
        "Money and tokens",
        "Limits and budgets",
        "Ledger, exports and the upstream",
        "Process",
    ]
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", ()))


async def given(folder: Path) -> dict[str, set[str]]:
    """The names of all samples that a busy house gives, with their labels."""
    tables = f'[tproxy.export.jsonl]\ndirectory = "{folder}"\n'
    async with open_house(folder, tproxy=WITH_MASTER, tables=tables) as house:
        await made(house, "/team/new", team_id="red", max_budget=5, budget_duration="1d")
        await made(house, "/user/new", user_id="u", max_budget=5, budget_duration="1d", auto_create_key=False)
        terms = {"rpm_limit": 10, "tpm_limit": 100_000, "max_budget": 5, "budget_duration": "1d"}
        key = (await made(house, "/key/generate", team_id="red", user_id="u", **terms))["key"]
        assert (await ask(house.address, message(key, body(), "tokens=5"))).status == 200
        assert (await ask(house.address, message("sk-of-nobody-at-all", body(), "tokens=5"))).status == 401
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, house.address, message(key, body(), "ttft=60"))
            found: dict[str, set[str]] = {}
            with trio.fail_after(10):
                while not {"tproxy_reserved_nano", "tproxy_export_lag_exchanges"} <= found.keys():
                    await trio.sleep(0.05)  # until it holds money, which the ledger's thread sees to
                    found = {name: set(labels) for name, labels, _ in samples((await scrape(house)).body.decode())}
            nursery.cancel_scope.cancel()
        return found


# Of the upstream's own limits, the sandbox says nothing.
UNSAID = {
    f"litellm_remaining_{what}_metric": {"model_group", "litellm_model_name", "api_provider", "credential"}
    for what in ("requests", "tokens")
}


async def test_all_that_is_asked_for_is_given(tmp_path: Path) -> None:
    there = UNSAID | await given(tmp_path)
    for query, shown in [*dashboard_queries(), *rules()]:
        labels: set[str] = set()
        names = NAME.findall(GROUPED.sub("", query))
        for name, matchers in names:
            assert name in there, query
            labels |= there[name]
            asked = set(re.findall(r"(\w+)\s*=~?", matchers))
            assert asked <= there[name] | SCRAPED, query
        for group in GROUPED.findall(query):
            assert {label.strip() for label in group.split(",")} <= labels | SCRAPED, query
        wanted = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown))
        assert wanted <= labels | SCRAPED, (query, shown)
        if names and (groups := GROUPED.findall(query)):  # what is not grouped by is gone
            kept = {label.strip() for group in groups for label in group.split(",")} | {"le"}
            assert wanted <= kept, (query, shown)


async def test_the_document_names_them_all(tmp_path: Path) -> None:
    rows = [line.split("|")[1] for line in (DOCS / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows if re.match(" `(tproxy|litellm)_", row) for name in re.findall(r"`(\w+)`", row)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in UNSAID | await given(tmp_path)}
    ours = {name for name in families if name.startswith(("tproxy_", "litellm_"))}
    assert named == ours


def test_every_rule_has_a_severity() -> None:
    blocks = RULES.read_text().split("- alert: ")[1:]
    assert all(re.search(r"severity: (critical|warning|info)\}", block) for block in blocks)
