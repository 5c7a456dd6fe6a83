"""The estimate of output tokens: near enough to the real counts, and the same however a text was cut."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.protocol.tokens import _BEYOND_ASCII, _CLASSES, TokenCounter, _count, count_tokens

OLDER = "claude-sonnet-4-5-20250929"
NEWER = "claude-opus-5-5"

# Texts of our own, none of which the weights were fitted to. The counts are those of ctok 1.3.0 for Claude 3 to
# Opus 4.6 and for the models since Opus 4.8, less its counts of an empty message (8 and 6).
TEXTS = {
    "a plain answer": (
        (
            "The cache is not the problem here. What you see is a race between the writer and the "
            "reader: the writer replaces the file while the reader still holds an old descriptor, so "
            "for a short time both are right and neither is useful. Open the file again after each "
            "rename, or keep the name and lock the content."
        ),
        65,
        83,
    ),
    "a story": (
        (
            "Every evening the old woman walked down to the harbour, counted the boats, and went "
            "home again without a word. When people asked her what she was waiting for, she smiled "
            "and said that somebody ought to know how many had come back. Nobody laughed at that, "
            "because in some years the number had been smaller."
        ),
        63,
        86,
    ),
    "Markdown": (
        (
            "## Installing\n"
            "\n"
            "1. Create a virtual environment.\n"
            "2. Run `pip install -e .` in the **root** folder.\n"
            "3. Check the result:\n"
            "\n"
            "```sh\n"
            "make test\n"
            "```\n"
            "\n"
            "If it fails, see [Troubleshooting](#troubleshooting) first; most errors come from an "
            "old compiler.\n"
        ),
        70,
        91,
    ),
    "JSON in one line": (
        (
            '{"id": "ord_20391", "customer": {"name": "Ada Byron", "email": "ada@example.org", '
            '"vip": true}, "items": [{"sku": "K-112", "quantity": 2, "price": 19.95}, {"sku": "Z-7", '
            '"quantity": 1, "price": 249.0}], "shipping": {"method": "express", "address": null}, '
            '"notes": "Leave it at the back door, please."}'
        ),
        113,
        139,
    ),
    "JSON, indented": (
        (
            "{\n"
            '  "type": "object",\n'
            '  "properties": {\n'
            '    "location": {\n'
            '      "type": "string",\n'
            '      "description": "The city and the country"\n'
            "    },\n"
            '    "unit": {\n'
            '      "type": "string",\n'
            '      "enum": ["celsius", "fahrenheit"]\n'
            "    },\n"
            '    "days": {\n'
            '      "type": "integer",\n'
            '      "minimum": 1,\n'
            '      "maximum": 14\n'
            "    }\n"
            "  },\n"
            '  "required": ["location"]\n'
            "}"
        ),
        117,
        136,
    ),
    "Python": (
        (
            "def read_lines(path: str, limit: int = 100) -> list[str]:\n"
            '    """Return at most `limit` lines."""\n'
            "    lines: list[str] = []\n"
            '    with open(path, encoding="utf-8") as file:\n'
            "        for number, line in enumerate(file):\n"
            "            if number >= limit:\n"
            "                break\n"
            '            lines.append(line.rstrip("\\n"))\n'
            "    return lines\n"
        ),
        95,
        119,
    ),
    "JavaScript": (
        (
            "export async function loadUser(id) {\n"
            "  const response = await fetch(`/api/users/${id}`);\n"
            "  if (!response.ok) {\n"
            "    throw new Error(`Cannot load user ${id}: ${response.status}`);\n"
            "  }\n"
            "  return response.json();\n"
            "}\n"
        ),
        63,
        83,
    ),
    "German": (
        (
            "Der Bericht beschreibt, wie die Messungen durchgeführt wurden und welche Fehler dabei "
            "auftreten können. Für eine genauere Auswertung fehlen allerdings die Daten der letzten "
            "zwei Wochen, die erst im Frühjahr veröffentlicht werden sollen."
        ),
        73,
        103,
    ),
    "Chinese": (
        (
            "会议将于下周三上午十点在三楼的大会议室举行，请各部门负责人提前准备好本季度的工作总结，并在会前一天发送给秘书处。"  # noqa: RUF001
        ),
        58,
        58,
    ),
    "Russian": (
        (
            "Отчёт описывает, как проводились измерения и какие ошибки при этом могут возникать. "
            "Более точная оценка пока невозможна."
        ),
        45,
        46,
    ),
    "figures": (
        (
            "2026-11-23 06:40:12 1024 2048 4096 8192\n"
            "2026-11-23 06:41:12 1039 2071 4120 8230\n"
            "2026-11-23 06:42:12 998 2044 4101 8177\n"
        ),
        73,
        73,
    ),
    "emoji": (
        ("All checks passed ✅🎉 and the release is out 🚀! Thanks to everybody who helped 🙏, see you next week 👋."),
        37,
        46,
    ),
}


@pytest.mark.parametrize(("text", "older", "newer"), TEXTS.values(), ids=TEXTS.keys())
def test_is_near_the_real_count(text: str, older: int, newer: int) -> None:
    assert count_tokens(text, OLDER) == pytest.approx(older, rel=0.2)
    assert count_tokens(text, NEWER) == pytest.approx(newer, rel=0.2)
    assert older * 0.8 <= count_tokens(text) <= newer * 1.2


def test_is_nearer_for_much_text_than_for_little() -> None:
    english = [row for name, row in TEXTS.items() if name not in ("German", "Chinese", "Russian")]
    whole = "\n\n".join(text for text, _, _ in english)
    assert count_tokens(whole, OLDER) == pytest.approx(sum(older for _, older, _ in english), rel=0.08)
    assert count_tokens(whole, NEWER) == pytest.approx(sum(newer for _, _, newer in english), rel=0.08)


@pytest.mark.parametrize(
    "model",
    [
        "claude-instant-1.2",
        "claude-2.1",
        "claude-3-5-haiku-20241022",
        "claude-3-7-sonnet-latest",
        "claude-opus-4-20250514",
        "claude-sonnet-4-0",
        "claude-opus-4-1-20250805",
        "claude-haiku-4-5",
        "claude-opus-4-6",
        "claude-sonnet-4@20250514",
    ],
)
def test_knows_the_models_with_the_older_tokenizer(model: str) -> None:
    text = TEXTS["a story"][0]
    assert count_tokens(text, model) == count_tokens(text, OLDER) < count_tokens(text, NEWER)


@pytest.mark.parametrize(
    "model",
    ["claude-opus-4-7", "claude-opus-4-8", "claude-opus-4-10", "claude-sonnet-5", "claude-haiku-5-5", "claude-30"],
)
def test_takes_every_later_model_for_one_with_the_newer(model: str) -> None:
    text = TEXTS["a story"][0]
    assert count_tokens(text, model) == count_tokens(text, NEWER) > count_tokens(text, OLDER)


def test_a_model_of_no_known_family_gets_the_mean() -> None:
    text = TEXTS["a story"][0]
    older, newer = count_tokens(text, OLDER), count_tokens(text, NEWER)
    assert count_tokens(text, "sandbox-1") == count_tokens(text) == pytest.approx((older + newer) / 2, abs=1)


PIECES = ["a", "Ab", "ABC", "1", "12", "!", "?.", "\n", " ", "  ", "\t", "é", "中", "한", "🙂", "\0", "\x7f", "\ud800"]
RUNS = st.builds(
    str.__mul__, st.sampled_from(PIECES), st.sampled_from([1, 2, 3, 4, 7, 15, 16, 17, 18, 19, 20, 32, 33, 36])
)


@given(st.lists(RUNS).map("".join))
def test_each_class_is_counted_as_its_pattern_matches(text: str) -> None:
    assert list(_count(text)) == [len(re.findall(pattern, text)) for pattern, _, _ in _CLASSES + _BEYOND_ASCII]


def test_nothing_is_no_token_and_anything_is_one() -> None:
    assert count_tokens("") == TokenCounter().tokens(None) == 0
    assert count_tokens("a") == count_tokens(".") == count_tokens("\u0600") == 1


@pytest.mark.parametrize("text", [text for text, _, _ in TEXTS.values() if text.isascii()])
def test_cuts_change_nothing(text: str) -> None:
    for pieces in every_cut(text.encode()):
        assert _fed(piece.decode() for piece in pieces).tokens(NEWER) == count_tokens(text, NEWER)


@given(
    st.lists(st.text(st.sampled_from('aZ9 .\n\té中🙂"_'), max_size=40) | st.text(max_size=20), max_size=12),
    st.integers(0, 3),
)
def test_cuts_change_nothing_in_any_text(pieces: list[str], times: int) -> None:
    assert _fed(pieces * times).tokens(OLDER) == count_tokens("".join(pieces * times), OLDER)


@pytest.mark.parametrize(
    "text",
    ["\n\n".join(text for text, _, _ in TEXTS.values()) * 6, "12 " * 20_000, "one\n\n    two  " * 4_000],
    ids=["all texts", "figures", "indented"],
)
def test_cuts_change_nothing_in_long_texts(text: str) -> None:
    dice = random.Random(1)
    edges = sorted(dice.randrange(len(text)) for _ in range(1_500))
    pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
    assert _fed(pieces).tokens(NEWER) == count_tokens(text, NEWER)


@pytest.mark.parametrize("text", ["x" * 100_000, "QUJD" * 25_000, "中" * 100_000, " " * 100_000, "\n" * 100_000])
def test_text_without_a_place_to_cut_is_counted_all_the_same(text: str) -> None:
    """It is counted in portions then: here and there a run is counted as two."""
    counter = _fed(text[at : at + 7] for at in range(0, len(text), 7))
    assert counter.tokens(NEWER) == pytest.approx(count_tokens(text, NEWER), abs=64)


def test_may_be_asked_at_any_time() -> None:
    text = TEXTS["a plain answer"][0]
    counter = TokenCounter()
    seen = 0
    for at, character in enumerate(text, 1):
        counter.feed("text_delta", character)
        assert counter.tokens(NEWER) == count_tokens(text[:at], NEWER)
        assert counter.tokens(NEWER) >= seen - 1
        seen = counter.tokens(NEWER)


def test_texts_of_two_kinds_are_never_one_word() -> None:
    counter = TokenCounter()
    for _ in range(50):
        counter.feed("thinking_delta", "so")
        counter.feed("text_delta", "we")
    assert counter.tokens(NEWER) == count_tokens("so we " * 50, NEWER) > count_tokens("sowe" * 50, NEWER) + 50


def test_a_tool_call_is_more_than_its_input() -> None:
    """Billed, in a recorded answer of Sonnet 4: 65 tokens for this text and call."""
    counter = TokenCounter()
    for piece in ("I", "'ll check the current weather in Paris for you."):
        counter.feed("text_delta", piece)
    counter.tool_call("get_weather")
    for piece in ("", '{"locati', 'on": "P', "ar", 'is"}'):
        counter.feed("input_json_delta", piece)
    assert counter.tokens("claude-sonnet-4-20250514") == pytest.approx(65, rel=0.1)


def _fed(pieces: Iterable[str]) -> TokenCounter:
    counter = TokenCounter()
    for piece in pieces:
        counter.feed("text_delta", piece)
    return counter
