"""Which programs run a workload, and how those in C come to be. What they do: test_load.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import native
from bench.workloads import CLOSED, HELD, WORKLOADS, Workload

PLAIN = Workload(name="plain", shape=CLOSED, connections=1, stream=False)
TLS = Workload(name="tls", shape=HELD, connections=1, tls=True)
GZIP = Workload(name="gzip", shape=HELD, connections=1, gzip=True)
PYTHON_LOAD = [sys.executable, "-m", "bench.load"]
PYTHON_UPSTREAM = [sys.executable, "-m", "bench.upstream"]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test compiles for itself, if at all, in a directory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.program.cache_clear()
    native._cache.cache_clear()
    yield
    native.program.cache_clear()
    native._cache.cache_clear()


def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")


@pytest.mark.parametrize("compiler", [lacking, failing])
def test_python_runs_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch, compiler: object) -> None:
    assert callable(compiler)
    compiler(monkeypatch)
    assert {native.kind(workload) for workload in (PLAIN, TLS, GZIP)} == {"Python"}
    assert native.load_command(PLAIN) == PYTHON_LOAD
    assert native.upstream_command(PLAIN) == PYTHON_UPSTREAM


def compiling(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Put a compiler in place that writes down what it is asked, and writes a file."""
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[command.index("-o") + 1]).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_c_runs_what_it_speaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiling(monkeypatch)
    authority = tmp_path / "ca.pem"
    assert native.kind(PLAIN) == "C"
    assert native.kind(TLS) == "load in C, upstream in Python"
    assert native.kind(GZIP) == "Python"
    assert native.load_command(PLAIN) == native.load_command(TLS) == [sys.executable, "-m", "bench.native"]
    assert native.load_command(GZIP) == PYTHON_LOAD
    (program,) = native.upstream_command(PLAIN)
    assert Path(program).is_relative_to(tmp_path)
    assert native.upstream_command(TLS, authority) == [*PYTHON_UPSTREAM, "--tls", str(authority)]
    assert native.upstream_command(GZIP) == [*PYTHON_UPSTREAM, "--gzip"]
    with pytest.raises(ValueError, match="authority"):
        native.upstream_command(TLS)


def test_a_program_is_compiled_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiling(monkeypatch)
    programs = []
    for _ in range(2):
        native.program.cache_clear()
        programs.append(native.program("load"))
    assert programs[0] == programs[1] is not None
    assert len(asked) == 1
    monkeypatch.setattr(native, "FLAGS", ("-O0",))
    native.program.cache_clear()
    assert native.program("load") != programs[0]
    assert len(asked) == 2


def test_a_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = native._cache()
    assert folder == native._cache()
    folder.rmdir()


def test_the_table_has_rows_for_all() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names) == 12
    core = {workload.name for workload in WORKLOADS if workload.core}
    assert core == {"100 streams x 50/s", "plain answers, 16 connections", "first byte, 20 connections"}
    assert core == {workload.name for workload in WORKLOADS if workload.short}
