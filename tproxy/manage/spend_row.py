"""A row of the ledger as LiteLLM's spend row, for the programs that read those.

All names of that row are here. What LiteLLM has no name for is below `metadata.tproxy`. Money is a float of dollars, as
there, and exact beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tproxy.money import to_dollars
from tproxy.store import base

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = "key:"

_OURS: Final = (
    "ended",
    "certainty",
    "cost_nano",
    "expected_nano",
    "cost_input_nano",
    "cost_output_nano",
    "cost_cache_read_nano",
    "cost_cache_write_nano",
    "cost_tools_nano",
    "price_version",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "thinking_tokens",
    "web_searches",
    "service_tier",
    "method",
    "stream",
    "model_asked",
    "agent",
    "parent_agent",
    "stop_reason",
    "message_id",
    "error_type",
    "user_agent",
)


def spend_row(row: Mapping[str, Any], team_alias: Callable[[str], str | None]) -> dict[str, Any]:
    """The spend row of one exchange that has ended.

    Args:
        row: the columns of the table `exchange`, `tags` as a list.
        team_alias: gives the name of a team for people.
    """
    prompt = sum(
        row[name] or 0
        for name in ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    )
    completion = row["output_tokens"] or 0
    key = shown_caller(row["caller"])
    model = row["model_served"] or row["model_asked"] or ""
    ended_us = row["ended_us"] or row["accepted_us"]
    return {
        "request_id": row["id"],
        "call_type": "pass_through_endpoint",
        "api_base": row["upstream"] + row["path"],
        "custom_llm_provider": "anthropic",
        "spend": to_dollars(row["cost_nano"] or 0),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "startTime": moment(row["accepted_us"]),
        # What is not a stream begins and is complete at the same time.
        "completionStartTime": moment(row["first_content_us"] or ended_us),
        "endTime": moment(ended_us),
        "request_duration_ms": (ended_us - row["accepted_us"]) // 1000,
        "request_tags": list(row["tags"]),
        "end_user": row["customer"] or "",
        "model": model,
        "model_group": model,
        "api_key": key,
        "team_id": row["team"],
        "user": row["user"] or "",
        "session_id": row["session"],
        "cache_hit": "False",  # the proxy's own cache of answers, which there is none of
        "status": "success" if succeeded(row) else "failure",
        "requester_ip_address": row["client_address"],
        "metadata": {
            "user_api_key": key,
            "user_api_key_alias": row["caller_alias"],
            "user_api_key_team_id": row["team"],
            "user_api_key_team_alias": team_alias(row["team"]) if row["team"] is not None else None,
            "user_api_key_user_id": row["user"],
            "spend_logs_metadata": None,
            "tproxy": {name: row[name] for name in _OURS}
            | {"request_id": row["request_id"], "http_status": row["status"]},
        },
    }


def succeeded(row: Mapping[str, Any]) -> bool:
    """Did the whole answer reach the client, and was it a good one? As the sums by day count it."""
    return row["ended"] == base.FINISHED and (row["status"] or 0) < 400


def shown_caller(caller: str) -> str:
    """A caller as LiteLLM knows it: a key by its bare hash. Others keep their id, such as `master`."""
    return caller.removeprefix(_KEY)


def moment(us: int) -> str:
    """A time in ISO 8601, UTC, with microseconds."""
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
