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
from tests.store.laws import T0
from tproxy.export.jsonl import JsonlSink
from tproxy.export.sink import NotTaken
from tproxy.setting_tables import Jsonl

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


async def test_it_is_on_the_disk_before_it_counts_as_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(file).st_mode))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    sink = make_sink(tmp_path)
    await sink.send(exchanges([1]))
    assert synced == [True, False]
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert synced == [True, False, False]


async def test_a_file_that_was_moved_away_gets_no_more(tmp_path: Path) -> None:
    sink = make_sink(tmp_path / "exports")
    await sink.send(exchanges([1]))
    (tmp_path / "exports" / names(tmp_path / "exports")[0]).rename(tmp_path / "away.jsonl")
    await sink.send(exchanges([2]))
    await sink.aclose()
    assert numbers(tmp_path / "exports") == [2]


async def test_where_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "exports").touch()
    sink = make_sink(tmp_path / "exports")
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
