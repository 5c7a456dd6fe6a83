from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from tproxy import terminal
from tproxy.money import usd
from tproxy.plaintext import plain
from tproxy.store.reading import DayModel

NO_TIMES = {"first_content_us": None, "ended_us": None}


def day(model: str = "claude-haiku-4-5", **figures: Any) -> DayModel:
    known: dict[str, Any] = {
        "day": date(2026, 11, 25),
        "sandbox": False,
        "exchanges": 1,
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 30,
        "cache_write_tokens": 40,
        "cost_nano": 0,
        "unpriced": 0,
        "estimated": 0,
        "partial": 0,
        "open": 0,
    }
    return DayModel(**(known | {"model": model} | figures))


def shown(capsys: pytest.CaptureFixture[str], *days: DayModel) -> list[list[str]]:
    terminal.show_days(days)
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("nano", "decimals", "text"),
    [
        (0, 0, "0.0"),
        (1, 0, "0.000000001"),
        (13_408_000, 0, "0.013408"),
        (13_408_000, 9, "0.013408000"),
        (2_500_000_000, 2, "2.50"),
        (-1_000_000_001, 0, "-1.000000001"),
    ],
)
def test_dollars_are_exact(nano: int, decimals: int, text: str) -> None:
    assert usd(nano, decimals) == text


def test_a_column_of_money_has_one_number_of_decimals(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, day(cost_nano=475_000), day("claude-opus-5", cost_nano=2_000_000_000))
    assert [line[-1] for line in lines if line[0] in ("2026-11-25", "total")] == ["0.000475", "2.000000", "2.000475"]


def test_what_has_no_price_is_not_shown_as_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, day("claude-opus-99", unpriced=1), day(cost_nano=10_000_000, unpriced=1, exchanges=2))
    by_name = {line[1] if line[0] == "2026-11-25" else line[0]: line for line in lines}
    assert by_name["claude-opus-99"][-1] == "unpriced"
    for name in ("claude-haiku-4-5", "total"):
        assert by_name[name][-3:] == ["0.01", "+", "?"]
    assert by_name["total"][1] == "3"


def test_what_the_sandbox_served_is_not_in_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, day(cost_nano=10_000_000), day(cost_nano=70_000_000, sandbox=True))
    ends = {line[0]: line[-1] for line in lines}
    assert (ends["total"], ends["sandbox"]) == ("0.01", "0.07")


def test_how_sure_the_figures_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_days([day(estimated=2, partial=1, open=3)])
    out = " ".join(capsys.readouterr().out.split())
    for note in ("2 estimated", "1 known in part", "3 still running"):
        assert note in out


def test_what_clients_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_days([day("claude\x1b[2J\x9b1m")])
    terminal.show_exchange({"customer": "\x1b]0;pwned\x07[bold]x", "accepted_us": 1, "head_us": None} | NO_TIMES)
    out = capsys.readouterr().out
    assert not [char for char in out if char in "\x1b\x9b\x07"]
    assert "[bold]x" in out


def test_an_empty_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    assert ["total", "0", "0", "0", "0", "0.00"] in shown(capsys)


def test_a_narrow_terminal_cuts_neither_models_nor_money(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show_days([day("claude-haiku-4-5-20251001", cost_nano=123_456_789_123, exchanges=1_000_000)])
    out = capsys.readouterr().out
    assert "123.456789123" in out
    assert "…" not in out


def test_one_exchange_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "id": "01a2",
        "accepted_us": 1_795_602_512_115_577,
        "head_us": 1_795_602_512_615_577,
        "first_content_us": None,
        "ended_us": 1_795_602_513_115_577,
        "tags": ["a", "[b]"],
        "cost_nano": 412_000,
        "customer": None,
    }
    terminal.show_exchange(row)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["accepted", "2026-11-25 10:28:32.115+00:00"] in [[a, *(b.strip() for b in rest)] for a, *rest in lines]
    text = "\n".join(" ".join(line) for line in lines)
    for part in ("a, [b]", "0.000412 USD", "500.0 ms", "1,000.0 ms"):
        assert part in text


def test_the_newest_exchanges(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "id": "01a21218-2349-7da9-846c-3729d22bb745",
        "accepted_us": 1_795_602_512_115_577,
        "caller": "key:" + "a" * 64,
        "caller_alias": None,
        "model_served": None,
        "model_asked": "claude-opus-5",
        "path": "/v1/messages",
        "ended": "finished",
        "cost_nano": None,
    }
    terminal.show_recent([row])
    out = capsys.readouterr().out
    assert "claude-opus-5" in "".join(out.split())
    assert "01a21218-2349-7da9-846c-3729d22bb745" in out
    assert " ? " in out.replace("\n", " "), "a cost that is not known"


NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def key(**fields: Any) -> dict[str, Any]:
    """A key as the management API lists it."""
    return {"token": "ab" * 32, "key_alias": "alice", "key_name": "sk-...abcd", "spend": 0.0, "blocked": False} | fields


def keys_shown(capsys: pytest.CaptureFixture[str], *rows: dict[str, Any]) -> list[list[str]]:
    terminal.show_keys(rows, NOW)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    return lines[3:-1]


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "active"),
        ({"blocked": True, "expires": "2020-01-01T00:00:00Z"}, "blocked"),
        ({"expires": "2026-11-25T12:00:00Z"}, "expired"),
        ({"expires": "2026-11-25T13:00:00+02:00"}, "expired"),
        ({"expires": "2026-11-25T11:00:00"}, "expired"),
        ({"expires": "2026-12-25T12:00:00.123456Z"}, "until 2026-12-25"),
        ({"expires": "some day"}, "active"),
        ({"expires": 7}, "active"),
        ({"in_key_file": True}, "active, in the file"),
    ],
)
def test_the_state_of_a_key(capsys: pytest.CaptureFixture[str], fields: dict[str, Any], state: str) -> None:
    (line,) = keys_shown(capsys, key(**fields))
    assert " ".join(line).endswith(f"0.00 {state}")


def test_the_budgets_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    lines = keys_shown(
        capsys,
        key(
            max_budget=25,
            budget_duration="1mo",
            budget_reset_at="2026-12-01T00:00:00Z",
            budget_limits=[
                {"max_budget": 0.000000001, "budget_duration": "1d", "reset_at": "2026-11-26T00:00:00+00:00"},
                "nonsense",
            ],
        ),
        key(max_budget=3.5),
        key(max_budget=None, budget_limits=None, budgets=[]),
        key(
            max_budget=9,
            budgets=[
                {"max_budget": None, "soft_budget": 1.0, "budget_duration": "1mo"},
                {"max_budget": 9.0, "budget_duration": "1d", "reset_at": "2026-11-26T00:00:00Z"},
            ],
        ),
    )
    assert lines[4][3:] == ["0.00", "9.00", "per", "1d", "2026-11-26", "00:00", "active"]
    assert lines[0][3:] == ["0.00", "25.00", "per", "1mo", "2026-12-01", "00:00", "active"]
    assert lines[1] == ["0.000000001", "per", "1d", "2026-11-26", "00:00"]
    assert lines[2][3:] == ["0.00", "3.50", "active"]
    assert lines[3][3:] == ["0.00", "active"]


@pytest.mark.parametrize(
    ("spend", "shown"),
    [
        (0.1 + 0.2, "0.30"),
        (1e-9, "0.000000001"),
        (-0.5, "-0.50"),
        (7, "7.00"),
        (float("nan"), "?"),
        (float("inf"), "?"),
        ("7", "?"),
        (True, "?"),
        (None, "?"),
    ],
)
def test_money_of_the_api(capsys: pytest.CaptureFixture[str], spend: object, shown: str) -> None:
    (line,) = keys_shown(capsys, key(spend=spend))
    assert line[3] == shown


def test_a_narrow_terminal_cuts_nothing_of_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show_keys([key(max_budget=25, budget_duration="1mo", budget_reset_at="2026-12-01T00:00:00Z")], NOW)
    out = capsys.readouterr().out
    for whole in ("sk-...abcd", "abababababab", "25.00 per 1mo", "2026-12-01 00:00", "active"):
        assert whole in out
    assert "…" not in out


def test_how_the_budgets_of_a_key_stand(capsys: pytest.CaptureFixture[str]) -> None:
    budgets = [
        {
            "max_budget": 25.0,
            "budget_duration": "1mo",
            "spent": 3.5,
            "held": 0.000000001,
            "reset_at": "2026-12-01T00:00:00Z",
        },
        {"max_budget": None, "soft_budget": 2.0, "budget_duration": None, "spent": 0, "held": 0, "reset_at": None},
    ]
    terminal.show_key({"spend": 3.5, "budgets": budgets})
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "spend 3.5 USD",
        "budgets 25.00 per 1mo: spent 3.5, held 0.000000001, resets 2026-12-01 00:00",
        "no limit: spent 0.0, held 0.0, warns at 2.0",
    ]


def test_sums_of_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    alice: dict[str, Any] = {
        "id": "a1",
        "alias": "alice",
        "exchanges": 1200,
        "failures": 3,
        "prompt_tokens": 5_000,
        "completion_tokens": 70,
        "spend_nano": 1_000_000_001,
    }
    rows = [
        alice,
        {"id": "[b]\x1b", "exchanges": 1, "failures": None, "spend_nano": 500_000_000, "unpriced": 2},
        {"id": "", "exchanges": 1, "spend_nano": 0, "unpriced": 1},
        {"id": "x", "exchanges": "many", "spend_nano": 0.5},
    ]
    terminal.show_sums("key", rows, alice, "a note")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[1] == ["key", "calls", "failed", "input", "output", "cost"]
    assert [line for line in lines[3:] if "─" not in line[0]] == [
        ["alice", "1,200", "3", "5,000", "70", "1.000000001"],
        ["[b]\ufffd", "1", "?", "?", "?", "0.500000000", "+", "?"],
        ["(none)", "1", "?", "?", "?", "unpriced"],
        ["x", "?", "?", "?", "?", "?"],
        ["all", "exchanges", "1,200", "3", "5,000", "70", "1.000000001"],
        ["a", "note"],
    ]


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    terminal.show_keys([key(key_alias=":bomb: [/] \\[b]", user_id="\N{CJK UNIFIED IDEOGRAPH-6F22}")], NOW)
    terminal.show_key({"key_alias": ":bomb:"})
    out = capsys.readouterr().out
    assert ":bomb: [/] \\[b]" in out
    assert out.count(":bomb:") == 2


def test_text_that_would_steer_a_terminal() -> None:
    assert plain("a\x1b\x9b\x7f\u202e\u2066\ud800\n[b]é漢") == "a" + "\ufffd" * 7 + "[b]é漢"
