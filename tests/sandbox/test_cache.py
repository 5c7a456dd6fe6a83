from __future__ import annotations

from typing import Any

import pytest

from tproxy.sandbox.asked import Asked, read
from tproxy.sandbox.cache import Prompt, PromptCache, size
from tproxy.sandbox.errors import ApiError

MARK = {"cache_control": {"type": "ephemeral"}}
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def block(word: str, mark: dict[str, Any] | None = None) -> dict[str, Any]:
    """A block of ten tokens."""
    return {"type": "text", "text": f" {word}" * 10} | (mark or {})


def asked(system: list[dict[str, Any]], last: str = "end", model: str = "claude-opus-5-5", **members: Any) -> Asked:
    messages = [{"role": "user", "content": [block(last)]}]  # three tokens more for the message
    return read({"model": model, "max_tokens": 9, "messages": messages, "system": system} | members)


def test_without_a_mark_all_is_input() -> None:
    cache = PromptCache()
    for _ in range(2):
        assert cache.account(asked([block("one"), block("two")]), 0) == Prompt(33)


def test_the_first_time_writes_and_the_next_reads() -> None:
    cache = PromptCache()
    request = asked([block("one"), block("two", MARK)])
    assert cache.account(request, 0) == Prompt(13, write_5m=20)
    assert cache.account(request, 0) == Prompt(13, read=20)


def test_each_stretch_is_written_at_the_ttl_of_its_mark() -> None:
    cache = PromptCache()
    request = asked([block("one", HOUR), block("two"), block("three", MARK)])
    assert cache.account(request, 0) == Prompt(13, write_1h=10, write_5m=20)
    assert cache.account(request, 0) == Prompt(13, read=30)


def test_a_longer_prompt_reads_what_it_shares_and_writes_the_rest() -> None:
    cache = PromptCache()
    cache.account(asked([block("one"), block("two", MARK)]), 0)
    longer = asked([block("one"), block("two"), block("three", MARK)])
    assert cache.account(longer, 0) == Prompt(13, read=20, write_5m=10)


def test_another_prefix_or_model_shares_nothing() -> None:
    cache = PromptCache()
    cache.account(asked([block("one"), block("two", MARK)]), 0)
    assert cache.account(asked([block("other"), block("two", MARK)]), 0).read == 0
    assert cache.account(asked([block("one"), block("two", MARK)], model="claude-haiku-5-5"), 0).read == 0


def test_what_comes_after_the_last_mark_does_not_matter() -> None:
    cache = PromptCache()
    cache.account(asked([block("one", MARK)], last="a"), 0)
    assert cache.account(asked([block("one", MARK)], last="b"), 0) == Prompt(13, read=10)


@pytest.mark.parametrize(("mark", "seconds"), [(MARK, 300), (HOUR, 3600)])
def test_a_prefix_is_kept_for_its_ttl_from_its_last_use(mark: dict[str, Any], seconds: float) -> None:
    cache = PromptCache()
    request = asked([block("one", mark)])
    cache.account(request, 0)
    assert cache.account(request, seconds).read == 10
    assert cache.account(request, 2 * seconds).read == 10
    assert cache.account(request, 3 * seconds + 1).read == 0


def test_a_prefix_that_is_read_by_a_longer_one_is_in_use() -> None:
    cache = PromptCache()
    cache.account(asked([block("one", MARK)]), 0)
    cache.account(asked([block("one"), block("two", MARK)]), 200)
    assert cache.account(asked([block("one"), block("three", MARK)]), 400).read == 10


def test_tools_come_first_and_a_mark_at_the_top_is_one_on_the_last_block() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    cache = PromptCache()
    whole = asked([block("one")], tools=[tool], cache_control={"type": "ephemeral"})
    assert cache.account(whole, 0) == Prompt(0, write_5m=size(whole))
    assert cache.account(asked([block("one", MARK)], tools=[tool]), 0).read == 0, "only marked prefixes are kept"
    assert cache.account(whole, 0) == Prompt(0, read=size(whole))


def test_the_parts_add_up_to_what_is_counted() -> None:
    cache = PromptCache()
    for request in (
        asked([block("one"), block("two", MARK)]),
        asked([block("one"), block("two"), block("three", HOUR)]),
        asked([block("one")], tools=[{"name": "x", "input_schema": {}} | MARK]),
    ):
        assert cache.account(request, 0).total == size(request)


def test_blocks_of_every_kind_have_a_weight() -> None:
    def weigh(*blocks: dict[str, Any]) -> int:
        messages = [{"role": "user", "content": list(blocks)}]
        return size(read({"model": "claude-opus-5", "max_tokens": 9, "messages": messages}))

    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    assert weigh(image) > 1000
    assert weigh({"type": "document", "source": {}}) > 1000
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    assert weigh(result | {"content": "word " * 50}) > 50
    assert weigh(result | {"content": [block("word"), image]}) > weigh(image)
    assert weigh({"type": "unknown", "x": "word " * 50}) > 50


@pytest.mark.parametrize(
    "control", [{"type": "forever"}, {"type": "ephemeral", "ttl": "2h"}, "ephemeral"], ids=["type", "ttl", "text"]
)
def test_a_wrong_mark_is_refused(control: Any) -> None:
    with pytest.raises(ApiError, match="cache_control"):
        PromptCache().account(asked([block("one", {"cache_control": control})]), 0)


def test_the_cache_has_a_bound() -> None:
    cache = PromptCache(count=2)
    for word in ("one", "two", "three"):
        cache.account(asked([block(word, MARK)]), 0)
    assert cache.account(asked([block("one", MARK)]), 0).read == 0
    assert cache.account(asked([block("three", MARK)]), 0).read == 10
