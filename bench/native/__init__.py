"""The load and the upstream in C, compiled when they are first needed, so that they are never what is measured.

They do what `bench.load` and `bench.upstream` do, byte for byte and check for check, for a small part of the CPU; the
texts and figures that both languages need are written by Python into a header. Where there is no C compiler, and for
a workload that the C programs do not speak, those in Python run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from bench import load, talk, upstream, workloads
from bench.workloads import Workload

HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
COMPILE_SECONDS = 60
C, PYTHON = "C", "Python"


def kind(workload: Workload) -> str:
    """Which programs run it, in words for the report."""
    load_in = C if _loads(workload) else PYTHON
    upstream_in = C if _serves(workload) else PYTHON
    return load_in if load_in == upstream_in else f"load in {load_in}, upstream in {upstream_in}"


def load_command(workload: Workload) -> list[str]:
    """The command of the load; its argument, a `load.Plan` as JSON, is to be added."""
    return [sys.executable, "-m", "bench.native" if _loads(workload) else "bench.load"]


def upstream_command(workload: Workload, authority: Path | None = None) -> list[str]:
    """The command of the upstream.

    Args:
        authority: for a workload with TLS, the file into which the authority's certificate is written.

    Raises:
        ValueError: that file is not named.
    """
    program = _serves(workload)
    if program is not None:
        return [str(program)]
    options = ["--gzip"] if workload.gzip else []
    if workload.tls:
        if authority is None:
            raise ValueError("a TLS upstream needs a file for its authority's certificate")
        options += ["--tls", str(authority)]
    return [sys.executable, "-m", "bench.upstream", *options]


def _loads(workload: Workload) -> Path | None:
    return None if workload.gzip else program("load")


def _serves(workload: Workload) -> Path | None:
    return None if workload.gzip or workload.tls else program("upstream")


@cache
def program(name: str) -> Path | None:
    """The program `name`.c, compiled, or as it was compiled before. None: this machine cannot."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    sources = [HERE / f"{name}.c", *sorted(HERE.glob("*.h"))]
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    header = talk_h()
    key = hashlib.sha256("\0".join([compiler, *FLAGS, header, *(file.read_text() for file in sources)]).encode())
    wanted = _cache() / key.hexdigest()[:20] / name
    if wanted.exists():
        return wanted
    wanted.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=wanted.parent) as work:
        (Path(work) / "talk.h").write_text(header)
        made = Path(work) / name
        command = [compiler, *FLAGS, f"-I{work}", "-o", str(made), str(sources[0])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            print(f"{name}.c does not compile here, so Python runs:\n{done.stderr}", file=sys.stderr)
            return None
        made.replace(wanted)  # at once, for others that look at the same time
    return wanted


@cache
def _cache() -> Path:
    """A directory of this user that outlives the run, or else one of this process."""
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tproxy-bench"
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(mkdtemp(prefix="tproxy-bench-"))
    return wanted


def talk_h() -> str:
    """The header with what stands in talk.py, upstream.py, load.py and workloads.py."""
    return "\n".join(["/* Written by bench/native. */", *_macros(), ""])


def _macros() -> Iterator[str]:
    texts = {
        "MARKER_FORMAT": talk.MARKER.encode(),
        "PROLOGUE": talk.PROLOGUE,
        "DELTA_BEFORE": talk.DELTA_BEFORE,
        "STAMP_FORMAT": talk.STAMP.replace("%08d", "%08ld").replace("%019d", "%019lld").encode(),
        "DELTA_AFTER": talk.DELTA_AFTER,
        "EPILOGUE_BEFORE": talk.EPILOGUE_BEFORE,
        "EPILOGUE_AFTER": talk.EPILOGUE_AFTER,
        "WORD": talk.WORD.encode(),
        "PLAIN_BEFORE": talk.PLAIN_BEFORE,
        "PLAIN_BETWEEN": talk.PLAIN_BETWEEN,
        "PLAIN_AFTER": talk.PLAIN_AFTER,
        "STREAM_HEAD": upstream.STREAM_HEAD + b"\r\n",
        "PLAIN_HEAD_FORMAT": upstream.PLAIN_HEAD.replace(b"%d", b"%zu"),
        "NOT_FOUND": upstream.NOT_FOUND,
        "NOTHING_HERE": upstream.NOTHING_HERE,
        "UNKNOWN": upstream.UNKNOWN,
    }
    for name, text in texts.items():
        yield f"#define {name} {_literal(text)}"
    numbers = {
        "DELTA_LENGTH": talk.DELTA_LENGTH,
        "FLOOD_EVENTS": upstream.FLOOD_EVENTS,
        "BACKLOG": upstream.BACKLOG,
        "READ": load.READ,
        "SLOW_READ": load.SLOW_READ,
        "SLOW_WINDOW": load.SLOW_WINDOW,
        "SLOW_SEGMENT": load.SLOW_SEGMENT,
    }
    for name, number in numbers.items():
        yield f"#define {name} {number}"
    yield f"#define QUANTILE_NAMES {', '.join(_literal(name.encode()) for name in load.QUANTILES)}"
    yield f"#define QUANTILE_SHARES {', '.join(map(repr, load.QUANTILES.values()))}"
    yield f"#define SHARES {', '.join(map(repr, workloads.SHARES))}"


def _literal(text: bytes) -> str:
    """A string literal in C."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;%-_=/{}[]()"
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text) + '"'
