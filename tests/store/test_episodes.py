from __future__ import annotations

from pathlib import Path

from tproxy.store import episodes
from tproxy.store.episodes import Episode
from tproxy.store.reading import reading
from tproxy.store.sqlite import open_ledger


async def test_what_is_put_is_there_after_a_restart_and_what_has_gone_is_not(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    old, new = Episode("errors", "", 5, 5), Episode("budget", "key:1d 9:ab:c", 7, 7)
    async with open_ledger(path) as ledger:
        await ledger.write(lambda connection: episodes.put_all(connection, [old, new]))
        await ledger.write(lambda connection: episodes.put_all(connection, [Episode("errors", "", 8, 9)]))
        gone = [("budget", "key:1d 9:ab:c"), ("never", "there")]
        await ledger.write(lambda connection: episodes.put_all(connection, [], gone))
    async with open_ledger(path):
        with reading(path) as connection:
            assert episodes.all_open(connection, 10) == [Episode("errors", "", 8, 9)]


async def test_of_very_many_the_newest_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    async with open_ledger(path) as ledger:
        many = [Episode("model", str(number), number, number) for number in range(10)]
        await ledger.write(lambda connection: episodes.put_all(connection, many))
    with reading(path) as connection:
        assert [each.began_us for each in episodes.all_open(connection, 3)] == [9, 8, 7]
