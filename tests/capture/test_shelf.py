from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.capture.test_record import made
from tproxy.capture import shelf as module
from tproxy.capture.shelf import DAY_US, SLICE, Shelf

NOW = 1_795_000_000_000_000


def test_there_is_no_file_before_the_first_capture(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    assert shelf.rows(limit=5) == []
    assert shelf.find("a") is None
    assert not shelf.remove("a")
    assert shelf.tidy(NOW, 1, 1) == 0
    assert not list(tmp_path.iterdir())


def test_what_is_put_is_found(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    row = made(id="a", answer=[b'{"a": 1}'])
    shelf.put([row, made(id="b")])
    assert shelf.path.stat().st_mode & 0o777 == 0o600
    found = shelf.find("a")
    assert found == {name: getattr(row, name) for name in row.__struct_fields__}
    assert found["request_cut"] is False
    shelf.close()
    again = Shelf(shelf.path)
    again.put([made(id="a", ended="refused")])
    assert (again.find("a") or {})["ended"] == "refused"
    assert len(again.rows(limit=9)) == 2
    again.close()


def test_a_list_is_newest_first_and_goes_on(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    shelf.put([made(id=f"{number}", at_us=number // 2, caller=f"key:{number % 2}") for number in range(6)])
    shelf.put([made(id="7", at_us=9, ended="refused", caller_alias="alice")])
    rows = shelf.rows(limit=3)
    assert [row["id"] for row in rows] == ["7", "5", "4"]
    assert not {"request", "answer", "answer_error"} & set(rows[0])
    assert [row["id"] for row in shelf.rows(limit=9, before="4")] == ["3", "2", "1", "0"]
    assert [row["id"] for row in shelf.rows(limit=9, before="unknown")] == []
    assert [row["id"] for row in shelf.rows(limit=9, caller="key:1")] == ["5", "3", "1"]
    assert [row["id"] for row in shelf.rows(limit=9, caller="alice")] == ["7"]
    assert [row["id"] for row in shelf.rows(limit=9, ended="finished", before="5")] == ["4", "3", "2", "1", "0"]
    shelf.close()


def test_what_is_old_goes(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    count = 2 * SLICE + 50  # more than one slice
    shelf.put([made(id=f"old {number}", at_us=NOW - 3 * DAY_US) for number in range(count)])
    shelf.put([made(id="edge", at_us=NOW - 2 * DAY_US), made(id="new", at_us=NOW)])
    assert shelf.tidy(NOW, 2, 1 << 40) == count
    assert [row["id"] for row in shelf.rows(limit=999)] == ["new", "edge"]
    assert shelf.tidy(NOW, 2, 1 << 40) == 0
    shelf.close()


def test_a_slow_disk_is_left_alone_between_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", -1.0)
    shelf = Shelf(tmp_path / "captures.db")
    shelf.put([made(id=f"{number}", at_us=1) for number in range(2 * SLICE)])
    assert [shelf.tidy(NOW, 1, 1 << 40) for _ in range(3)] == [SLICE, SLICE, 0]
    shelf.close()


def test_the_oldest_go_where_there_is_too_much_and_their_room_is_given_back(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    canary = b"sensitive words " * 2000
    rows = [made(10**6, id=f"{number:03}", at_us=number, request=canary) for number in range(150)]
    shelf.put(rows)
    size = rows[0].size
    shelf.close()  # which writes the WAL back
    before = os.stat(shelf.path).st_size
    assert shelf.tidy(NOW, 10**6, 10 * size + 1) == 140
    assert [row["id"] for row in shelf.rows(limit=99)] == [f"{number:03}" for number in range(149, 139, -1)]
    assert os.stat(shelf.path).st_size < before / 4
    assert shelf.tidy(NOW, 10**6, size - 1) == 10
    shelf.close()
    assert b"sensitive words" not in shelf.path.read_bytes()


def test_one_can_be_deleted(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    shelf.put([made(id="a"), made(id="b")])
    assert shelf.remove("a")
    assert not shelf.remove("a")
    assert [row["id"] for row in shelf.rows(limit=9)] == ["b"]
    shelf.close()


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    shelf.put([made(id="a")])
    for file in tmp_path.iterdir():
        file.rename(file.with_suffix(".gone" + file.suffix))
    shelf.put([made(id="b")])
    assert [row["id"] for row in shelf.rows(limit=9)] == ["b"]
    shelf.close()


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "captures.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (a)")
    other.close()
    shelf = Shelf(path)
    with pytest.raises(sqlite3.DatabaseError, match="no file of captures"):
        shelf.put([made(id="a")])
    assert shelf.rows(limit=1) == []
    path.write_bytes(b"no database at all, but long enough to be looked at by whoever opens it" * 20)
    with pytest.raises(sqlite3.DatabaseError):
        shelf.put([made(id="a")])


def test_a_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "no" / "captures.db")
    with pytest.raises(OSError, match="No such file"):
        shelf.put([made(id="a")])


def test_threads_take_turns(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "captures.db")
    shelf.put([made(id="start")])
    faults: list[Exception] = []

    def work(name: int) -> None:
        try:
            for number in range(10):
                shelf.put([made(id=f"{name} {number}")])
                assert shelf.remove(f"{name} {number}") or number < 0
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not faults
    assert len(shelf.rows(limit=9)) == 1
    shelf.close()
