"""Files of lines, on a real disk."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.export.stock import settled
from tests.store.laws import T0, make_closing, make_opening
from tproxy.export.jsonl import JsonlSink
from tproxy.export.sink import NotTaken
from tproxy.setting_tables import Jsonl
from tproxy.store.base import Closing, Opening
from tproxy.store.feed import Settled

DAY_US = 86_400_000_000
TODAY = T0 - T0 % DAY_US


def make_sink(directory: Path, **settings: Any) -> JsonlSink:
    return JsonlSink(Jsonl(directory=directory, **settings))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def numbers(directory: Path) -> list[int]:
    """Of all lines of all files, as they sort."""
    return [
        json.loads(line)["seq"]
        for name in names(directory)
        for line in (directory / name).read_text().splitlines(keepends=True)
        if line.endswith("\n") or pytest.fail("a torn line")
    ]


def tear(file: Path, torn: str) -> None:
    with file.open("a") as text:
        text.write(torn)


def exchanges(seqs: Sequence[int], ended_us: int = TODAY) -> list[Any]:
    return [settled(seq, ended_us=ended_us) for seq in seqs]


async def test_lines_are_appended_to_one_file(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "a" / "exports")
    await sink.send(exchanges([1, 2]))
    await sink.send(exchanges([3]))
    await sink.aclose()
    await sink.send(exchanges([4]))
    await sink.aclose()
    assert names(tmp_path / "a" / "exports") == ["exchanges-20251124-000000000001.jsonl"]
    assert numbers(tmp_path / "a" / "exports") == [1, 2, 3, 4]
    assert stat.S_IMODE((tmp_path / "a" / "exports").stat().st_mode) == 0o700
    assert stat.S_IMODE(next((tmp_path / "a" / "exports").iterdir()).stat().st_mode) == 0o600


async def test_a_full_file_is_followed_by_another_also_after_a_restart(tmp_path: Path) -> None:
    for seq in (1, 2, 3):
        sink = make_sink(tmp_path, max_file_bytes=10)
        await sink.send(exchanges([seq * 10]))
        await sink.send(exchanges([seq * 10 + 1]))
        await sink.aclose()
    assert [name[-8:-6] for name in names(tmp_path)] == ["10", "11", "20", "21", "30", "31"]
    assert numbers(tmp_path) == [10, 11, 20, 21, 30, 31]


async def test_a_day_that_is_over_ends_its_file_also_within_a_batch(tmp_path: Path) -> None:
    sink = make_sink(tmp_path)
    batch = exchanges([1, 2], TODAY + DAY_US - 1) + exchanges([3], TODAY + DAY_US)
    await sink.send(batch)
    await sink.send(exchanges([4], TODAY + DAY_US - 1))  # it ended before, and was settled after
    await sink.aclose()
    assert names(tmp_path) == ["exchanges-20251124-000000000001.jsonl", "exchanges-20251125-000000000003.jsonl"]
    assert numbers(tmp_path) == [1, 2, 3, 4]


async def test_the_oldest_files_go(tmp_path: Path) -> None:
    (tmp_path / "exchanges-of-mine.jsonl").touch()
    sink = make_sink(tmp_path, max_file_bytes=1, keep_files=3)
    for seq in range(1, 8):
        await sink.send(exchanges([seq]))
    await sink.aclose()
    (tmp_path / "exchanges-of-mine.jsonl").unlink()
    assert numbers(tmp_path) == [5, 6, 7]


@pytest.mark.parametrize(
    "torn", ["", '{"seq":3', "x" * 200_000, '{"version":1,"seq":3}'], ids=["nothing", "short", "long", "but its end"]
)
async def test_a_torn_last_line_is_cut_off_at_the_start(torn: str, tmp_path: Path) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1, 2]))
    await sink.aclose()
    tear(tmp_path / names(tmp_path)[0], torn)
    sink = make_sink(tmp_path)
    await sink.send(exchanges([3]))
    await sink.aclose()
    assert numbers(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("torn", [1, 65_535, 65_536, 65_537, 200_000])
async def test_nothing_but_the_torn_line_is_cut_off(torn: int, tmp_path: Path) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges(range(1, 201)))
    await sink.aclose()
    file = tmp_path / names(tmp_path)[0]
    whole = file.read_bytes()
    assert len(whole) > 200_000
    tear(file, "x" * torn)
    sink = make_sink(tmp_path)
    await sink.send(exchanges([201]))
    await sink.aclose()
    assert file.read_bytes().startswith(whole)
    assert numbers(tmp_path) == list(range(1, 202))


async def test_a_file_that_is_torn_from_its_beginning_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "exchanges-20251124-000000000001.jsonl").write_text("x" * 70_000)
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1, 2]))
    await sink.aclose()
    assert len(names(tmp_path)) == 1
    assert numbers(tmp_path) == [1, 2]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_batch_that_is_written_in_part_is_cut_off_and_given_again(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1]))
    write, calls = os.write, 0

    def short(file: int, content: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(code, "as a disk says it")
        return write(file, content[:100])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(NotTaken) as caught:
            await sink.send(exchanges([2, 3]))
    assert caught.value.why == ("the disk is full" if code == errno.ENOSPC else "Input/output error")
    assert not caught.value.final
    assert numbers(tmp_path) == [1]
    await sink.send(exchanges([2, 3]))
    await sink.aclose()
    assert numbers(tmp_path) == [1, 2, 3]


async def test_what_could_not_be_cut_off_at_once_is_before_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1]))
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, content: write(file, content[:100]) and full())
        patched.setattr(os, "ftruncate", lambda file, size: full())
        with pytest.raises(NotTaken):
            await sink.send(exchanges([2]))
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert numbers(tmp_path) == [1, 2]


async def test_a_name_that_could_not_be_kept_is_kept_before_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[int | str]
) -> None:
    sink = make_sink(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: full())
        with pytest.raises(NotTaken):
            await sink.send(exchanges([1]))
    await sink.send(exchanges([1]))
    await sink.aclose()
    assert synced == ["directory", (tmp_path / names(tmp_path)[0]).stat().st_size]
    assert numbers(tmp_path) == [1]


async def test_a_file_is_full_by_all_that_it_holds(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "one")
    await sink.send(exchanges([1]))
    await sink.aclose()
    size = (tmp_path / "one" / names(tmp_path / "one")[0]).stat().st_size
    sink = make_sink(tmp_path / "two", max_file_bytes=size * 2)
    for seq in (1, 2, 3):
        await sink.send(exchanges([seq]))
    await sink.aclose()
    assert [name[-8:-6] for name in names(tmp_path / "two")] == ["01", "03"]


async def test_a_file_that_is_full_and_whose_batch_comes_again_keeps_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_sink(tmp_path, max_file_bytes=10)
    await sink.send(exchanges([1, 2]))
    await sink.aclose()
    # The cursor was not kept. What is to be made has the name of what is there.
    sink = make_sink(tmp_path, max_file_bytes=10)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, content: write(file, content[:100]) and full())
        with pytest.raises(NotTaken):
            await sink.send(exchanges([1, 2]))
    assert numbers(tmp_path) == [1, 2]
    await sink.send(exchanges([1, 2]))
    await sink.aclose()
    assert len(names(tmp_path)) == 1
    assert numbers(tmp_path) == [1, 2, 1, 2]


def full() -> int:
    raise OSError(errno.ENOSPC, "as a disk says it")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """What was brought onto the disk: a file, by its size, or a directory."""
    found: list[int | str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        there = os.fstat(file)
        found.append("directory" if stat.S_ISDIR(there.st_mode) else there.st_size)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    return found


async def test_it_is_on_the_disk_before_it_counts_as_taken(tmp_path: Path, synced: list[int | str]) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1]))
    first = (tmp_path / names(tmp_path)[0]).stat().st_size
    assert synced == ["directory", first]
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert synced == ["directory", first, (tmp_path / names(tmp_path)[0]).stat().st_size]


@pytest.mark.parametrize("torn", [True, False])
async def test_where_it_goes_on_the_cut_and_the_name_are_on_the_disk_first(
    torn: bool, tmp_path: Path, synced: list[int | str]
) -> None:
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1]))
    await sink.aclose()
    file = tmp_path / names(tmp_path)[0]
    whole = file.stat().st_size
    if torn:
        tear(file, '{"seq":')
    synced.clear()
    sink = make_sink(tmp_path)
    await sink.send(exchanges([2]))
    assert synced == [*([whole] if torn else []), "directory", file.stat().st_size]
    await sink.aclose()


async def test_a_file_that_was_moved_away_gets_no_more(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "exports")
    await sink.send(exchanges([1]))
    (tmp_path / "exports" / names(tmp_path / "exports")[0]).rename(tmp_path / "away.jsonl")
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert numbers(tmp_path / "exports") == [2]


async def test_a_file_that_was_put_in_the_place_of_another_gets_what_comes_next(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "exports")
    await sink.send(exchanges([1]))
    file = tmp_path / "exports" / names(tmp_path / "exports")[0]
    file.rename(tmp_path / "away.jsonl")
    file.touch()
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert numbers(tmp_path / "exports") == [2]
    assert (tmp_path / "away.jsonl").read_text().count("\n") == 1


async def test_numbers_of_more_digits_than_their_names_have_room_for_come_after_the_others(tmp_path: Path) -> None:
    last = 999_999_999_999
    sink = make_sink(tmp_path, max_file_bytes=1, keep_files=2)
    for seq in (last - 1, last, last + 1):
        await sink.send([Settled(seq, *closed(1))])
    await sink.aclose()
    assert set(names(tmp_path)) == {"exchanges-20251124-999999999999.jsonl", "exchanges-20251124-1000000000000.jsonl"}
    sink = make_sink(tmp_path)
    await sink.send([Settled(last + 2, *closed(2))])
    await sink.aclose()
    lines = (tmp_path / "exchanges-20251124-1000000000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [last + 1, last + 2]


def closed(number: int) -> tuple[Opening, Closing]:
    return make_opening(number), make_closing(number, ended_us=TODAY)


async def test_where_no_directory_can_be_made(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "exports")
    (tmp_path / "exports").touch()
    with pytest.raises(NotTaken, match=r"exists|directory"):
        await sink.send(exchanges([1]))
    (tmp_path / "exports").unlink()
    await sink.send(exchanges([1]))
    await sink.aclose()
    assert numbers(tmp_path / "exports") == [1]


async def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "exchanges-20251124-000000000001.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(NotTaken):
        await make_sink(tmp_path / "exports").send(exchanges([1]))
    assert (tmp_path / "other").read_text() == ""


async def test_a_disk_that_hangs_keeps_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, on = threading.Event(), threading.Event()
    fsync = os.fsync

    def hang(file: int) -> None:
        hanging.set()
        assert on.wait(10)
        fsync(file)

    monkeypatch.setattr(os, "fsync", hang)
    sink = make_sink(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, exchanges([1]))
        await trio.to_thread.run_sync(hanging.wait, 10)
        nursery.cancel_scope.cancel()
    with pytest.raises(NotTaken, match="hangs"):
        await sink.send(exchanges([1]))
    await sink.aclose()
    on.set()
    with trio.fail_after(10):
        while True:
            try:
                await sink.send(exchanges([2]))
                break
            except NotTaken:
                await trio.sleep(0.01)
    await sink.aclose()
    assert numbers(tmp_path) == [1, 2]
