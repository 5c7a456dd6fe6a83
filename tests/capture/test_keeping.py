"""The process that keeps captures, as the proxy has it: what it loses, how it is replaced, and that nothing waits."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.capture.test_capturing import NOW, WHOLE, settled, taking
from tests.capture.test_keeper import HANGS, batch, endless
from tests.capture.test_record import taken
from tests.flow.asgi import POST, Asked, stage
from tests.wire.peer import answers
from tproxy.capture import capturing as capturing_module
from tproxy.capture import keeping as module
from tproxy.capture.capturing import Capturing
from tproxy.capture.keeper import Done
from tproxy.capture.keeping import COMMAND, Keeping, Lost, _environment
from tproxy.setting_tables import Capture

BODY = b'{"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [], "system": "' + b"a" * 500 + b'"}'


def hanging() -> Asked:
    """A request that `HANGS` never comes to an end with."""
    return Asked(headers=[(n, b"%d" % len(BODY) if n == b"content-length" else v) for n, v in POST], body=[BODY])


def runs(pid: int) -> bool:
    """Whether there is a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    with trio.fail_after(20):
        while runs(pid):  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)


async def test_it_stays_from_batch_to_batch_and_ends_when_it_is_let_go(tmp_path: Path) -> None:
    keeping = Keeping()
    assert keeping.pid is None
    pids: set[int | None] = set()
    for number in range(3):
        assert await keeping.keep(batch(tmp_path, taken=[taken(id=str(number))])) == Done(1, None, [])
        pids.add(keeping.pid)
    [pid] = pids
    assert pid is not None
    await keeping.end()
    assert not runs(pid)
    assert keeping.pid is None


async def test_one_that_died_while_it_had_nothing_to_do_costs_nothing(tmp_path: Path) -> None:
    keeping = Keeping()
    await keeping.keep(batch(tmp_path, taken=[taken(id="a")]))
    assert keeping.pid is not None
    os.kill(keeping.pid, signal.SIGKILL)
    await gone(keeping.pid)
    assert (await keeping.keep(batch(tmp_path, taken=[taken(id="b")]))).kept == 1
    await keeping.end()


async def test_a_batch_that_takes_too_long_is_lost_and_its_process_killed(tmp_path: Path) -> None:
    keeping = Keeping()
    await keeping.keep(batch(tmp_path))
    pid = keeping.pid
    assert pid is not None
    with pytest.raises(Lost, match="took more than 1 s, and was killed"):
        await keeping.keep(batch(tmp_path, seconds=1, patterns=(HANGS,), taken=[endless()]))
    assert not runs(pid)
    assert (await keeping.keep(batch(tmp_path, patterns=(HANGS,), taken=[taken(request=b"{}")]))).kept == 1
    await keeping.end()


def scripted(code: str) -> Keeping:
    return Keeping([sys.executable, "-c", f"import sys, time; {code}"])


SCRIPTS = {
    "reads nothing": ("time.sleep(60)", "took more than 1 s"),
    "ends at once": ("", "died"),
    "ends in the middle of its answer": ("sys.stdin.buffer.read(9); print('abc', flush=True)", "died"),
    "answers too much": ("sys.stdin.buffer.read(9); print('abcd' * 9, flush=True); time.sleep(60)", "died"),
    "answers nonsense": (
        r"sys.stdin.buffer.read(9); sys.stdout.buffer.write(b'\0\0\0\1\xc0'); sys.stdout.flush(); time.sleep(60)",
        "died",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_one_that_does_not_do_its_work_is_killed(name: str, tmp_path: Path) -> None:
    code, why = SCRIPTS[name]
    keeping = scripted(code)
    # What is more than a pipe holds, and what is done at once.
    request, seconds = (b"x" * 10**6, 1) if name == "reads nothing" else (b"x", 30)
    for _ in range(2):
        with pytest.raises(Lost, match=why):
            await keeping.keep(batch(tmp_path, seconds=seconds, taken=[taken(request=request)]))
        assert keeping.pid is None


async def test_the_pause_between_two_grows_until_one_does_its_work(tmp_path: Path) -> None:
    keeping = scripted("")
    pauses = []
    for _ in range(3):
        with pytest.raises(Lost, match="died"):
            await keeping.keep(batch(tmp_path))
        pauses.append(keeping._pause)
    assert pauses == [0.01, 0.02, 0.04]
    keeping._command = COMMAND
    await keeping.keep(batch(tmp_path))
    assert keeping._pause == 0
    await keeping.end()


async def test_one_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    keeping = Keeping([f"{tmp_path}/nothing"])
    for _ in range(3):
        with pytest.raises(Lost, match=r"cannot be started: .*No such file"):
            await keeping.keep(batch(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_no_other_is_started_while_one_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILLED_SECONDS", 0.05)
    keeping = scripted("time.sleep(60)")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda _: None)  # as on a disk that hangs
        with pytest.raises(Lost, match="took more"):
            await keeping.keep(batch(tmp_path, seconds=1))
    keeping._command = COMMAND
    with pytest.raises(Lost, match="cannot be started: the one before was killed, and does not end"):
        await keeping.keep(batch(tmp_path))
    assert keeping._killed is not None
    await keeping._killed.kill()
    assert (await keeping.keep(batch(tmp_path, taken=[taken()]))).kept == 1
    await keeping.end()


def test_it_is_told_no_secret() -> None:
    environ = {
        "PATH": "/bin",
        "ANTHROPIC_API_KEY": "sk-x",
        "TPROXY_MASTER_KEY": "sk-y",
        "PYTHONPATH": "p",
        "LC_ALL": "C",
    }
    assert _environment(environ) == {"PATH": "/bin", "PYTHONPATH": "p", "LC_ALL": "C"}


async def test_one_that_dies_with_a_batch_costs_that_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with taking(tmp_path, answers([WHOLE], [WHOLE], [WHOLE]), sample_rate=1, patterns=[HANGS]) as (on, capturing):
        await on.ask(hanging())
        with trio.fail_after(20):
            while capturing._queue or capturing._keeping.pid is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        os.kill(capturing._keeping.pid, signal.SIGKILL)
        await settled(capturing)
        assert (capturing.kept, capturing.failed, capturing.held) == (0, 1, 0)
        for count in (2, 3):
            await on.ask(Asked())
            await settled(capturing, count)
        assert (capturing.kept, capturing.failed) == (2, 1)
    said = [(record.levelno, record.message.replace(str(tmp_path), "")) for record in caplog.records]
    assert said == [
        (logging.ERROR, "captures cannot be kept in /captures.db: the process that keeps them died"),
        (logging.WARNING, "captures can be kept again; 1 were lost so far"),
    ]


async def test_while_one_hangs_exchanges_go_on_and_no_thread_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing_module, "KEEP_SECONDS", 4)
    limiter = trio.to_thread.current_default_thread_limiter()
    async with taking(tmp_path, answers(*[[WHOLE]] * 4), sample_rate=1, patterns=[HANGS]) as (on, capturing):
        await on.ask(hanging())
        with trio.fail_after(20):
            while capturing._queue or capturing._keeping.pid is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        pid = capturing._keeping.pid
        for _ in range(3):
            assert (await on.ask(Asked())).status == 200
        assert (capturing.kept, capturing.failed) == (0, 0)
        assert capturing.held > 0
        assert limiter.borrowed_tokens == capturing._looking.borrowed_tokens == 0
        assert capturing._keeping._starting.borrowed_tokens == 0
        await settled(capturing, 4)
        assert (capturing.kept, capturing.failed, capturing.held) == (3, 1, 0)
        assert not runs(pid)


async def test_no_thread_of_the_default_limiter_is_needed(tmp_path: Path) -> None:
    limiter = trio.to_thread.current_default_thread_limiter()
    async with taking(tmp_path, answers([WHOLE]), sample_rate=1) as (on, capturing):
        tokens, limiter.total_tokens = limiter.total_tokens, 1
        try:
            async with limiter:
                await on.ask(Asked())
                await settled(capturing)
        finally:
            limiter.total_tokens = tokens
        assert capturing.kept == 1


async def test_the_end_waits_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capturing_module, "LAST_SECONDS", 0.2)
    monkeypatch.setattr(capturing_module, "BATCH", 1)
    settings = Capture(database=f"sqlite:{tmp_path}/c.db", sample_rate=1, patterns=(HANGS,))
    capturing = Capturing(settings, lambda: NOW)
    async with stage(answers(*[[WHOLE]] * 9), observers=[capturing]) as on:
        for _ in range(9):
            await on.ask(hanging())
    with trio.fail_after(capturing_module.KEEP_SECONDS - 10):  # one batch may take that, and there are nine
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capturing.run)
            while capturing._keeping.pid is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
            pid = capturing._keeping.pid
            nursery.cancel_scope.cancel()
    assert not runs(pid)
    assert (capturing.kept, capturing.failed, capturing.held) == (0, 9, 0)
    assert [record.message for record in caplog.records] == ["9 captures were lost at the end"]


PROXY = """
import os, trio
from pathlib import Path
from tests.capture.test_keeper import HANGS, batch, endless
from tproxy.capture.keeping import Keeping

async def main():
    keeping, folder = Keeping(), Path({folder!r})
    await keeping.keep(batch(folder))
    print(keeping.pid, flush=True)
    if {hangs}:
        await keeping.keep(batch(folder, seconds=2, patterns=(HANGS,), taken=[endless()]))
    await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("hangs", [False, True])
async def test_it_does_not_outlive_the_proxy(hangs: bool, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    code = PROXY.format(folder=str(tmp_path), hangs=hangs)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as proxy:  # noqa: ASYNC220
        assert proxy.stdout is not None
        pid = int(proxy.stdout.readline())
        assert runs(pid)
        assert os.getsid(pid) == pid
        if hangs:
            await trio.sleep(0.2)  # until it is at it
        proxy.kill()
    await gone(pid)
