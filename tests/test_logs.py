"""Logging never waits and never raises, and says no more than it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tproxy import logs
from tproxy.logs import Lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: its reading end, and its writing end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def fill(writing: int) -> int:
    """Write until the pipe is full; how many bytes that took."""
    os.set_blocking(writing, False)
    count = 0
    with suppress(BlockingIOError):
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    count += os.write(writing, b"\0" * size)
    os.set_blocking(writing, True)
    return count


def read(reading: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(reading, count - len(data))
    return data


def test_lines_arrive_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = Lines(writing)
    wanted = [f"{n} ä\n" for n in range(1000)]
    for line in wanted:
        lines.write(line)
    assert lines.drain(10)
    assert read(reading, len("".join(wanted).encode())).decode() == "".join(wanted)


def test_what_has_no_encoding_is_written_all_the_same(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = Lines(writing)
    lines.write("\ud800\n")
    assert lines.drain(10)
    assert os.read(reading, 100) == b"\\ud800\n"


def test_a_line_may_be_made_when_it_is_written(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = Lines(writing)
    lines.write(lambda: f"made by {threading.current_thread().name}\n")
    lines.write(lambda: f"{1 / 0}\n")
    assert lines.drain(10)
    lines.write("last\n")
    assert lines.drain(10)
    assert os.read(reading, 100) == b"made by log\n1 lines of this log were dropped\nlast\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_is_stuck(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    """Lines wait up to the bound, then are dropped and counted. The count comes when the reader reads again."""
    monkeypatch.setattr(logs, "LINES_MAX", 10)
    reading, writing = pipe
    filling = fill(writing)
    os.set_blocking(writing, blocking)
    lines = Lines(writing)
    for n in range(15):
        lines.write(f"{n}\n")
    assert not lines.drain(0)
    assert read(reading, filling) == b"\0" * filling
    assert lines.drain(10)
    lines.write("later\n")
    assert lines.drain(10)
    os.close(writing)
    with os.fdopen(os.dup(reading)) as rest:
        said = rest.read().splitlines()
    assert [line for line in said if line.isdigit()] == [str(n) for n in range(10)]
    assert [line for line in said if not line.isdigit()] == ["5 lines of this log were dropped", "later"]


def test_a_reader_that_is_gone_and_one_that_comes(pipe: tuple[int, int], tmp_path: Path) -> None:
    reading, writing = pipe
    lines = Lines(writing)
    os.close(reading)
    for _ in range(3):
        lines.write("lost\n")
    assert lines.drain(10)
    lines.drop()
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), writing)
    lines.write("kept\n")
    assert lines.drain(10)
    assert (tmp_path / "log").read_text() == "4 lines of this log were dropped\nkept\n"


_FULL = """
import os, resource, sys
from tproxy.logs import Lines
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
lines = Lines(file)
resource.setrlimit(resource.RLIMIT_FSIZE, (14, resource.RLIM_INFINITY))
for n in range(4):
    lines.write(f"line {n}...\\n")
assert lines.drain(10)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
lines.write("room\\n")
assert lines.drain(10)
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A line that was broken off stays so, and the next one begins on its own."""
    subprocess.run([sys.executable, "-c", _FULL, str(tmp_path / "log")], check=True)
    assert (tmp_path / "log").read_text() == "line 0...\nline\n3 lines of this log were dropped\nroom\n"


_CONFIGURED = """
import logging, sys, structlog
from tproxy import logs

class Unsayable:
    def __repr__(self):
        raise RuntimeError("no")

def fail():
    secret = "sk-" + "secret-in-a-local"
    try:
        raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])
    except ExceptionGroup as group:
        structlog.get_logger().exception("ours")
        logging.getLogger("lib").exception("theirs")
        logging.getLogger("lib").error("theirs, as asgi does", exc_info=group)

level, format = sys.argv[1:3]
logs.configure(level, format)
log = structlog.get_logger("t")
for name in ("debug", "info", "warning", "error"):
    getattr(log, name)("ours " + name, number=1)
    getattr(logging.getLogger("lib"), name)("theirs %s", name)
fail()
log.error("odd", text="\\ud800 ä", number=2**70, more=None, list=[1, "ä"])
log.error("odd", text="\\ud800 ä", number=2**70, more=None)
log.error("%s of %d", "interpolated", 2)
for library in ("httpx2", "httpcore2"):
    logging.getLogger(library).info("POST https://hooks.example/secret-in-a-url")
    logging.getLogger(library + ".deeper").debug("secret-in-a-url")
    logging.getLogger(library).error("said by a library")
log.error("steers", text="a\x1b]0;pwned\x07\u202e")
logs.later("steers later", lambda: {"text": "a\x1b]0;pwned\x07\u202e"})
logs.later("gathered", lambda: {"number": 1})
logs.later("not gathered", lambda: 1 // 0)
logs.configure("warning", "json")
log.info("not said")
log.warning("after")
log.error("not renderable", value=Unsayable())
logging.getLogger("lib").error("%d", "no number")
log.error("last")
"""


def configured(*arguments: str, close_stderr: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CONFIGURED, *arguments]
    if close_stderr:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)


LEVELS = ["debug", "info", "warning", "error"]


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_configured_is_said(level: str, format: str) -> None:
    done = configured(level, format)
    assert done.stdout == ""
    for name in LEVELS:
        said = LEVELS.index(name) >= LEVELS.index(level)
        assert (f"ours {name}" in done.stderr, f"theirs {name}" in done.stderr) == (said, said), name
    assert done.stderr.count("ValueError") == done.stderr.count("KeyError") >= 3
    assert "secret-in-a-local" not in done.stderr
    assert "not said" not in done.stderr
    assert "secret-in-a-url" not in done.stderr
    assert done.stderr.count("said by a library") == 2
    said_in_json = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in said_in_json if line["event"] in ("after", "last")] == ["after", "last"]
    gathers = LEVELS.index(level) <= LEVELS.index("info")
    assert ("gathered" in done.stderr) == gathers
    # With which line the thread tells of them depends on how far it is.
    dropped = sum(line["count"] for line in said_in_json if line["event"] == "lines of this log were dropped")
    assert dropped == (3 if gathers else 2)
    if format == "json":
        assert all(json.loads(line)["timestamp"] for line in done.stderr.splitlines())
        odd, plain = (line for line in said_in_json if line["event"] == "odd")
        assert (plain["text"], plain["number"], plain["more"]) == ("\ud800 ä", 2**70, None)
        assert odd.keys() - plain.keys() == {"list"}
        assert plain["level"] == "error"
    else:
        assert "interpolated of 2" in done.stderr
        assert not {"\x1b", "\x07", "\u202e"} & set(done.stderr)
        assert "ignored" not in done.stderr  # nor does a library warn of how it is set up


def test_a_process_without_stderr() -> None:
    done = configured("debug", "json", close_stderr=True)
    assert done.stdout == done.stderr == ""


def test_to_flush_what_was_never_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_lines", None)
    before = threading.active_count()
    logs.flush()
    assert threading.active_count() == before
