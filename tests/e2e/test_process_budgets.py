"""A hard budget whose process is killed while streams run: what was held is booked, and nothing stays held."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import trio

from tests.e2e.process import tproxy
from tests.e2e.raw import ask
from tests.e2e.test_budgets import TOKENS, body, message
from tests.e2e.test_process import configure
from tproxy.sandbox.server import Sandbox, serve_sandbox

NANO = 1_000_000_000
KEY = "sk-forty-times-one"
# What one exchange of `body()` comes to: 11 tokens in at 3, 200 out at 15 dollars a million.
ONE = TOKENS * 15_000 + 11 * 3_000


def charged(sandbox: Sandbox) -> int:
    total = sandbox.books.total()
    return total["input_tokens"] * 3_000 + total["output_tokens"] * 15_000


def budget(books: Path) -> tuple[int, int]:
    """What is spent and held of the only budget there is."""
    with closing(sqlite3.connect(f"file:{books}?mode=ro", uri=True)) as connection:
        spent, held = connection.execute("SELECT spent_nano, held_nano FROM budget").fetchone()
        assert connection.execute("SELECT count(*) FROM reservation").fetchone() == (0,) or held
        return spent, held


async def test_kill_9_under_a_hard_budget(tmp_path: Path, nursery: trio.Nursery) -> None:
    sandbox: Sandbox = await nursery.start(serve_sandbox)
    books = configure(tmp_path, sandbox, tproxy='key_file = "keys.toml"')
    limit = 40 * ONE
    keys = tmp_path / "keys.toml"
    keys.touch(mode=0o600)
    keys.write_text(f'[[key]]\nalias = "k"\nkey = "{KEY}"\nbudget_mode = "hard"\nmax_budget = "{limit / NANO:.9f}"\n')
    async with tproxy(tmp_path) as server, trio.open_nursery() as streams:

        async def stream() -> None:
            try:
                async with await trio.open_tcp_stream(*server.address) as client:
                    await client.send_all(message(KEY, body(), f"tokens={TOKENS}; per=1; tps=100"))
                    while await client.receive_some(65536):
                        pass
            except (OSError, trio.BrokenResourceError):
                pass

        for _ in range(60):
            streams.start_soon(stream)
        with trio.fail_after(10):
            while budget(books)[1] < 30 * ONE:
                await trio.sleep(0.02)
        server.process.send_signal(signal.SIGKILL)
        await server.process.wait()
    async with tproxy(tmp_path) as server:
        spent, held = budget(books)
        assert held == 0
        assert 30 * ONE <= spent <= limit, "what those that were killed held is booked: nobody knows what they came to"
        statuses = [(await ask(server.address, message(KEY, body(), f"tokens={TOKENS}"))).status for _ in range(12)]
        assert statuses == sorted(statuses)
        assert statuses[-1] == 402
        await sandbox.books.settled()
        assert await server.stop() == 0
    assert charged(sandbox) <= limit
    spent, held = budget(books)
    assert (spent <= limit, held) == (True, 0)


def test_the_price_of_one_is_as_reckoned() -> None:
    assert json.loads(body())["max_tokens"] == TOKENS
