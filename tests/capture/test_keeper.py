"""What the process that keeps captures does with a batch, and how it ends: the real one, by its pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.capture.test_record import REQUEST, STREAM, made, taken
from tproxy.capture import keeper as module
from tproxy.capture.keeper import Batch, Done, Keeper, Tidy
from tproxy.capture.keeping import COMMAND
from tproxy.capture.shelf import DAY_US, Shelf

HANGS = r"(\w{1,50}){1,50}!"


def batch(folder: Path, **fields: Any) -> Batch:
    values: dict[str, Any] = {"path": f"{folder}/c.db", "patterns": (), "max_bytes": 10_000, "seconds": 30}
    return Batch(**values | fields)


def message(value: Any) -> bytes:
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(4) + data


def endless() -> Any:
    """A capture whose request takes the pattern above longer than anybody lives."""
    return taken(request=b"a" * 500)


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def test_what_is_in_a_batch_is_kept_and_what_is_old_goes(tmp_path: Path) -> None:
    keeper = Keeper()
    rows = [taken(id="a", answer=[STREAM], request=b"my name is Bob"), taken(id="b", at_us=9 * DAY_US)]
    done = keeper.do(batch(tmp_path, taken=rows, patterns=("B.b",), tidy=Tidy(9 * DAY_US, 7, 1 << 40)))
    assert done == Done(2, None, [])
    shelf = Shelf(tmp_path / "c.db")
    assert [row["id"] for row in shelf.rows(limit=9)] == ["b"]
    keeper.do(batch(tmp_path, path=f"{tmp_path}/d.db", taken=rows, patterns=("B.b",)))
    assert (Shelf(tmp_path / "d.db").find("a") or {})["request"] == "my name is [redacted]"
    keeper.close()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    keeper = Keeper()
    done = keeper.do(batch(tmp_path, path=f"{tmp_path}/no/c.db", taken=[taken()]))
    assert (done.kept, done.bugs) == (0, [])
    assert done.fault is not None
    assert "No such file" in done.fault


def test_a_bug_costs_one_capture_and_says_nothing_of_its_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def develop(taken: Any, *_: Any) -> Any:
        if taken.id == "b":
            raise KeyError(taken.request)
        return made(id=taken.id)

    monkeypatch.setattr(module, "develop", develop)
    keeper = Keeper()
    done = keeper.do(batch(tmp_path, taken=[taken(id="a"), taken(id="b"), taken(id="c")]))
    assert (done.kept, done.fault) == (2, None)
    [bug] = done.bugs
    assert bug.startswith("b: KeyError at test_keeper.py:")
    assert REQUEST.decode() not in bug
    keeper.close()


def test_it_answers_each_batch_heeds_no_signal_and_ends_with_its_input(tmp_path: Path) -> None:
    with process() as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        for number in range(2):
            running.stdin.write(message(batch(tmp_path, taken=[taken(id=str(number))])))
            running.stdin.flush()
            length = int.from_bytes(running.stdout.read(4))
            assert msgspec.msgpack.decode(running.stdout.read(length), type=Done) == Done(1, None, [])
            for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                running.send_signal(signal_number)
        assert os.getpriority(os.PRIO_PROCESS, running.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + module.NICE, 19)
        running.stdin.close()
        assert running.wait(20) == 0
        assert running.stdout.read() + running.stderr.read() == b""
    assert not list(tmp_path.glob("*-wal"))


def test_it_ends_itself_where_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process() as running:
        assert running.stdin is not None
        running.stdin.write(message(batch(tmp_path, seconds=1, patterns=(HANGS,), taken=[endless()])))
        running.stdin.flush()
        assert running.wait(30) == -signal.SIGALRM


@pytest.mark.parametrize("garbage", [b"\0\0\0\x03abc", b"\0\0\0\x01\xc0"], ids=["no batch", "nil"])
def test_what_is_no_batch_ends_it(garbage: bytes) -> None:
    with process() as running:
        out, err = running.communicate(garbage, 20)
        assert (running.returncode, out) == (1, b"")
        assert err.startswith(b"the process that keeps captures ends for a bug: ValidationError at keeper.py:")


def test_it_loads_neither_the_server_nor_trio() -> None:
    code = "import sys, tproxy.capture.keeper; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"trio", "fastapi", "pydantic", "structlog", "hypercorn", "httpx2"} & set(loaded.split())
