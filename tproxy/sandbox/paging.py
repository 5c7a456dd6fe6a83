"""Pages of a list, in the API's two ways: by the ids at their ends, and by an opaque cursor."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from tproxy.sandbox.errors import invalid

Query = Mapping[str, Sequence[str]]


def _limit(query: Query) -> int:
    text = query.get("limit", ["20"])[-1]
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise invalid("limit: Input should be between 1 and 1000")
    return int(text)


def by_ids(items: list[dict[str, Any]], query: Query) -> dict[str, Any]:
    """A page in the manner of `/v1/models`: `limit`, and `after_id` or `before_id`.

    Raises:
        ApiError: 400 for a limit out of range or an id that is not in the list.
    """
    limit = _limit(query)
    ids = [item["id"] for item in items]
    try:
        if "before_id" in query:
            end = ids.index(query["before_id"][-1])
            start = max(end - limit, 0)
            more = start > 0
        else:
            start = ids.index(query["after_id"][-1]) + 1 if "after_id" in query else 0
            end = start + limit
            more = end < len(items)
    except ValueError as fault:
        raise invalid("Invalid cursor: no such id in the list") from fault
    page = items[start:end]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"data": page, "has_more": more, **ends}


def by_cursor(items: list[dict[str, Any]], query: Query) -> dict[str, Any]:
    """A page in the manner of `/v1/files`: `limit` and `page`, or `ids`.

    Raises:
        ApiError: 400 for a limit out of range or a cursor that is none.
    """
    if wanted := query.get("ids") or query.get("ids[]"):
        return {"data": [item for item in items if item["id"] in wanted], "next_page": None}
    limit = _limit(query)
    start = 0
    if "page" in query:
        try:
            start = int(base64.urlsafe_b64decode(query["page"][-1].removeprefix("page_")))
        except (ValueError, binascii.Error) as fault:
            raise invalid("page: Invalid cursor") from fault
    end = start + limit
    following = None
    if end < len(items):
        following = "page_" + base64.urlsafe_b64encode(str(end).encode()).decode()
    return {"data": items[start:end], "next_page": following}
