"""Which key is meant: by its alias, its hash, the beginning of its hash, or the key itself on stdin.

A key never stands in an argument: that is in the shell's history and in the list of processes. On stdin it is hashed
here, and only the hash is sent.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import typer

from tproxy.client import Api, ApiFault
from tproxy.protocol.keys import chosen_fault, hash_key

STDIN: Final = "-"
PAGE: Final = 100  # the most that LiteLLM's API gives at once
_LEAST_DIGITS: Final = 8
_MAX_KEY: Final = 4096

_HASH: Final = re.compile(r"[0-9a-fA-F]{64}")
_BEGINNING: Final = re.compile(rf"[0-9a-fA-F]{{{_LEAST_DIGITS},63}}")
# Long enough for no alias that anybody would think of.
_KEY: Final = re.compile(r"sk-\S{17,}")


def find(api: Api, name: str) -> dict[str, Any]:
    """The fields of the one key that `name` stands for, with its hash in `token`.

    Raises:
        ApiFault: there is none, or more than one, or the API cannot be asked.
        typer.BadParameter: `name` is a key, or what stands on stdin is none.
    """
    if name == STDIN:
        return _by_hash(api, hash_key(read_key()))
    refuse_key(name)
    if _HASH.fullmatch(name):
        return _by_hash(api, name.lower())
    found = {row["token"]: row for row in every_key(api, key_alias=name) if row.get("key_alias") == name}
    if _BEGINNING.fullmatch(name):
        beginning = name.lower()
        found |= {row["token"]: row for row in every_key(api, key_hash=beginning) if row["token"].startswith(beginning)}
    if not found:
        raise ApiFault(f"there is no key with the alias, or a hash that begins with, {name!r}")
    if len(found) > 1:
        hashes = ", ".join(token[:16] for token in sorted(found)[:10])
        raise ApiFault(
            f"{name!r} stands for {len(found)} keys, whose hashes begin with {hashes}: give more of the hash"
        )
    return next(iter(found.values()))


def every_key(api: Api, limit: int | None = None, **filters: str | None) -> Iterator[dict[str, Any]]:
    """The keys that the API lists, newest first, each once, page by page.

    Raises:
        ApiFault: the API cannot be asked, or gives no list of keys.
    """
    seen: set[str] = set()
    page = 1
    while limit is None or len(seen) < limit:
        answer = api.get(
            "/key/list", page=page, size=PAGE, return_full_object="true", include_team_keys="false", **filters
        )
        rows = answer.get("keys") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(_is_key(row) for row in rows):
            raise ApiFault(f"{api.url} gave no list of keys: is it tproxy's?")
        # Keys that are made meanwhile move others to the next page.
        fresh = [row for row in rows if row["token"] not in seen]
        for row in fresh[: None if limit is None else limit - len(seen)]:
            seen.add(row["token"])
            yield row
        if len(rows) < PAGE or not fresh:
            return
        page += 1


def read_key(shortest: int = 1) -> str:
    """A key from stdin: without echo from a terminal, else its first line.

    Args:
        shortest: how many characters it must have.

    Raises:
        typer.BadParameter: it can be none.
    """
    if sys.stdin.isatty():
        key: str = typer.prompt("Key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(_MAX_KEY)
    key = key.strip()
    fault = chosen_fault(key, shortest)
    if fault is not None:
        raise typer.BadParameter(f"the key on stdin {fault}", param_hint=STDIN)
    return key


def refuse_key(name: str) -> None:
    """Say no to a key that was given as an argument, without repeating it.

    Raises:
        typer.BadParameter: it is one.
    """
    if _KEY.fullmatch(name):
        raise typer.BadParameter(
            "a key in an argument can be read in the shell's history and in the list of processes: give its alias or "
            f"the beginning of its hash, or {STDIN} and the key on stdin"
        )


def _by_hash(api: Api, digest: str) -> dict[str, Any]:
    answer = api.get("/key/info", key=digest)
    info = answer.get("info") if isinstance(answer, dict) else None
    if not isinstance(info, dict):
        raise ApiFault(f"{api.url} gave no key: is it tproxy's?")
    return {**info, "token": digest}


def _is_key(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("token"), str)
