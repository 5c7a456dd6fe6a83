"""A ledger of 100,000 keys and 1,000,000 exchanges, and how long the management side's questions take on it.

    python -m tests.store.large DIR

fills `DIR/large.db` if it is not there (some minutes, 1.7 GB) and then prints the median and the worst of some runs
of each query. Every key has ten exchanges, each on a day of its own: the case in which the sums by day save nothing.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tproxy.store import reports, search
from tproxy.store.file import LedgerFile
from tproxy.store.migrate import shipped
from tproxy.store.reading import reading
from tproxy.store.search import Wanted

KEYS = 100_000
ROWS = 1_000_000
DAYS = 30
START_US = 1_762_300_800_000_000  # 2025-11-05T00:00:00Z
RUNS = 7
GOAL_MS = 300

_DAY_US = 86_400_000_000

# What stands for the SHA-256 of a key: 64 hex digits, scattered over the whole range.
_HASH = "printf('%08x%056d', ({0} * 2654435761) % 4294967296, {0})"

_KEYS = f"""
INSERT INTO subject (kind, id, alias, team, user, created_us, document)
WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < :keys - 1)
SELECT 'key', {_HASH.format("i")}, 'key-' || i, 'team-' || (i % 50), 'user-' || (i % 500), :start + i,
       json_object('kind', 'key', 'id', {_HASH.format("i")}, 'alias', 'key-' || i, 'team', 'team-' || (i % 50),
                   'user', 'user-' || (i % 500), 'last4', printf('%04d', i % 10000), 'created_us', :start + i,
                   'terms', json_object('budgets', json_array(json_object('period', '30d', 'limit_nano', 5000000000))))
  FROM n
"""

_ROWS = f"""
INSERT INTO exchange (
    id, accepted_us, method, path, upstream, model_asked, stream, caller, caller_alias, team, user, customer, tags,
    session, client_address, user_agent, ended, ended_us, dialled_us, head_us, first_content_us, last_byte_us, status,
    model_served, request_id, message_id, stop_reason, input_tokens, output_tokens, cache_read_tokens,
    cache_write_5m_tokens, cache_write_1h_tokens, service_tier, cost_nano, cost_input_nano, cost_output_nano,
    cost_cache_read_nano, cost_cache_write_nano, cost_tools_nano, price_version, certainty, bytes_in, bytes_out)
WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < :rows - 1),
     made AS (SELECT i, (i * 7919) % :keys AS k, :start + i * (:span / :rows) AS at,
                     CASE i % 3 WHEN 0 THEN 'claude-sonnet-4-5' WHEN 1 THEN 'claude-haiku-4-5'
                                ELSE 'claude-opus-4-5' END AS model
                FROM n)
SELECT printf('%08x-%04x-7000-8000-%012x', (at / 1000) >> 16, (at / 1000) & 65535, i), at, 'POST', '/v1/messages',
       'https://api.anthropic.com', model, 1, 'key:' || {_HASH.format("k")}, 'key-' || k, 'team-' || (k % 50),
       'user-' || (k % 500), iif(i % 5, NULL, 'customer-' || (i / 5 % 1000)),
       json_array('tag-' || (i % 20), 'tag-' || (20 + i % 7)), iif(i % 3, NULL, printf('session-%06d', i / 60)),
       '10.0.0.7', 'claude-cli/2.0', iif(i % 50, 'finished', 'refused'), at + 3000000, at + 1000, at + 400000,
       at + 500000, at + 3000000, iif(i % 50, 200, 529), model, 'req_' || i, 'msg_' || i, 'end_turn',
       i % 2000, i % 900, i % 30000, i % 500, 0, 'standard', i % 100000 * 1000, i % 100000 * 1000, 0, 0, 0, 0, '1',
       'exact', 4000, 9000
  FROM made
"""


def fill(path: Path, keys: int = KEYS, rows: int = ROWS) -> None:
    """Make the ledger. With smaller figures it is a small one of the same make."""
    file = LedgerFile(path, now_us=START_US, busy_seconds=1)
    connection = file.ready()
    values = {"keys": keys, "rows": rows, "start": START_US, "span": DAYS * _DAY_US}
    connection.execute("BEGIN")
    connection.execute(_KEYS, values)
    connection.execute(_ROWS, values)
    book(connection)
    connection.execute("COMMIT")
    file.close()


def book(connection: sqlite3.Connection) -> None:
    """Sum up the exchanges of a ledger that has no sums yet, as the migration did that brought them."""
    sql = next(step.sql for step in shipped() if step.name == "money")
    for statement in sql[sql.index("CREATE TEMP VIEW") :].split(";\n"):
        connection.execute(statement)


def _questions() -> dict[str, Callable[[sqlite3.Connection], object]]:
    """What is asked, by name."""
    ago = {number: f"2025-12-{5 - number:02d}" if number < 5 else f"2025-11-{35 - number:02d}" for number in (1, 7, 20)}
    key = f"key:{(77 * 2654435761) % 4294967296:08x}{77:056d}"
    recent = START_US + 23 * _DAY_US
    kinds = (reports.CALLER, reports.TEAM, reports.USER, reports.CUSTOMER, reports.TAG, reports.MODEL)
    wanted = {
        "all": Wanted(),
        "7 days": Wanted(since_us=recent),
        "a key": Wanted(caller=key),
        "a team": Wanted(team="team-7"),
        "a team, 7 days": Wanted(team="team-7", since_us=recent),
        "a user": Wanted(user="user-7"),
        "a customer": Wanted(customer="customer-7"),
        "a session": Wanted(session="session-000007"),
        "a tag": Wanted(tag="tag-7"),
        "a tag that nobody has": Wanted(tag="tag-none"),
        "a user and a tag": Wanted(user="user-7", tag="tag-7"),
    }
    asked: dict[str, Callable[[sqlite3.Connection], object]] = {}
    for name, what in wanted.items():
        asked[f"rows: {name}"] = lambda c, what=what: search.rows(c, what)  # type: ignore[misc]
        asked[f"count: {name}"] = lambda c, what=what: search.count(c, what)  # type: ignore[misc]
    asked["rows: one by its id"] = lambda c: search.rows(c, Wanted(id="019a5178-5000-7000-8000-000000000000"))
    asked["rows: the 5,000th page"] = lambda c: search.rows(c, Wanted(), offset=500_000)
    for by in kinds:
        asked[f"sums by {by}"] = lambda c, by=by: reports.sums(c, by)  # type: ignore[misc]
        asked[f"sums by {by}, 7 days"] = lambda c, by=by: reports.sums(c, by, since=ago[7])  # type: ignore[misc]
    asked["sums by caller, 20 days"] = lambda c: reports.sums(c, reports.CALLER, since=ago[20])
    asked["sums by session, 7 days"] = lambda c: reports.session_sums(c, since_us=recent)
    asked["total, 7 days"] = lambda c: reports.total(c, since=ago[7])
    asked["total"] = reports.total
    asked["by day and model"] = lambda c: reports.day_sums(c, reports.MODEL, limit=20_000)
    asked["by day and user"] = lambda c: reports.day_sums(c, reports.USER, limit=20_000)
    asked["report of a day by team"] = lambda c: reports.days(c, reports.TEAM, since=ago[1], limit=20_000)
    asked["report of one key"] = lambda c: reports.days(c, reports.CALLER, id=key, limit=20_000)
    asked["keys by what they spent"] = lambda c: reports.seen(c, reports.CALLER, begin="key:", limit=100)
    return asked


def main(directory: Path) -> None:
    """Fill, ask, print."""
    path = directory / "large.db"
    if not path.exists():
        fill(path)
    print(f"{'':32}{'median':>10}{'worst':>10}   ms, of {RUNS} runs; goal {GOAL_MS}")
    with reading(path) as connection:
        for name, ask in _questions().items():
            took = []
            for _ in range(RUNS):
                began = time.perf_counter()
                ask(connection)
                took.append((time.perf_counter() - began) * 1000)
            late = "   over the goal" if sorted(took)[RUNS // 2] > GOAL_MS else ""
            print(f"{name:32}{sorted(took)[RUNS // 2]:10.1f}{max(took):10.1f}{late}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
