"""A run: its order, its length, and what it does with faults."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import trio
from rich.console import Console
from typer.testing import CliRunner

from bench import __main__ as command
from bench import suite
from bench.cell import Cell
from bench.plan import PEER_ROUNDS, Plan, Step, fitted, plan
from bench.process import BenchFault, Cores
from bench.progress import Progress, lasting
from bench.subjects import SUBJECTS, Subject
from bench.suite import REPEATS, Results, machine_facts, run
from bench.workloads import CLOSED, HELD, WORKLOADS, Workload
from tests.bench.runs import FACTS, cell

CORE = Workload(name="core", shape=HELD, connections=100, interval_us=20_000, core=True, short=True, seconds=6)
OTHER = Workload(name="other", shape=CLOSED, connections=16, stream=False, seconds=4)
SECURE = Workload(name="secure", shape=HELD, connections=10, interval_us=20_000, tls=True)

A, B, PLAIN_ONLY, PEER = (
    replace(SUBJECTS[0], name=name, peer=peer, tls=tls)
    for name, peer, tls in (("a", False, True), ("b", False, True), ("plain only", False, False), ("peer", True, True))
)


def order(planned: Plan) -> list[str]:
    return [f"{step.workload.name} {step.subject.name} {step.turn + 1}" for step in planned.steps]


def test_subjects_take_turns_and_peers_run_fewer_rounds_of_the_core() -> None:
    assert PEER_ROUNDS == 1
    assert order(plan([CORE, OTHER], [A, B, PEER])) == [
        "core a 1", "core b 1", "core peer 1", "core a 2", "core b 2", "core a 3", "core b 3", "other a 1", "other b 1",
    ]  # fmt: skip


def test_rounds_are_those_asked_for() -> None:
    assert order(plan([CORE, OTHER], [A, PEER], 2)) == ["core a 1", "core peer 1", "core a 2", "other a 1", "other a 2"]


def test_an_upstream_with_tls_is_for_those_that_can() -> None:
    assert order(plan([SECURE], [A, PLAIN_ONLY, B])) == ["secure a 1", "secure b 1"]


def test_nothing_to_run() -> None:
    assert order(plan([OTHER], [PEER])) == []
    assert fitted([OTHER], [PEER], None, budget=10, least=1).seconds == 0


def test_a_run_is_shortened_to_its_budget() -> None:
    full = plan([CORE, OTHER], [A, B, PEER])
    assert fitted([CORE, OTHER], [A, B, PEER], None, budget=full.seconds, least=1) == full
    short = fitted([CORE, OTHER], [A, B, PEER], None, budget=full.seconds - 20, least=1)
    assert short.seconds == pytest.approx(full.seconds - 20)
    part = {workload.name: workload.seconds for workload in short.workloads}
    assert part["core"] / 6 == pytest.approx(part["other"] / 4)
    assert order(short) == order(full)
    least = fitted([CORE, OTHER], [A, B, PEER], None, budget=1, least=2.5)
    assert {workload.seconds for workload in least.workloads} == {2.5}
    below = fitted([CORE, OTHER], [A, B, PEER], None, budget=1, least=5)
    assert [workload.seconds for workload in below.workloads] == [5, 4]


def test_the_whole_bench_takes_about_ten_minutes_and_the_short_one_about_one() -> None:
    here = [A, B, PLAIN_ONLY, A, B, A, *[PEER] * 5]
    everybody = [replace(subject, name=str(number)) for number, subject in enumerate(here)]
    assert 540 <= _seconds(WORKLOADS, everybody, None, quick=False) <= 840
    short = [workload for workload in WORKLOADS if workload.short]
    assert 45 <= _seconds(short, everybody[:6], 1, quick=True) <= 90


def _seconds(workloads: object, subjects: list[Subject], rounds: int | None, *, quick: bool) -> float:
    assert isinstance(workloads, list | tuple)
    return command.planned(workloads, subjects, rounds, quick=quick).seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bar"])
def test_progress_tells_what_is_left(terminal: bool) -> None:
    file, clock, planned = StringIO(), Clock(), plan([CORE], [A, B], 1)
    console = Console(file=file, force_terminal=terminal, width=150)
    progress = Progress(planned, console, clock)
    each = planned.steps[0].seconds
    for step in planned.steps:
        progress.at(step)
        clock.now += each * 2  # twice as long as planned
    progress.end()
    told = file.getvalue()
    assert f"2 measurements of 1 workload: about {int(planned.seconds)} s" in told
    assert "core, a, round 1" in told
    assert f"2 of 2, {int(each * 2)} s left" in told


@pytest.mark.parametrize(("seconds", "told"), [(20.9, "20 s"), (60, "1:00 minutes"), (605, "10:05 minutes")])
def test_a_length_of_time(seconds: float, told: str) -> None:
    assert lasting(seconds) == told


def recorded(monkeypatch: pytest.MonkeyPatch, faults: dict[str, str | BenchFault], *, disturbed: int = 0) -> list[str]:
    """Pretend to measure; some subjects have a fault in their second cell, and the first cells are disturbed."""
    ran: list[str] = []

    async def measure(workload: Workload, subject: Subject, cores: Cores, *, turn: int) -> Cell:
        await trio.lowlevel.checkpoint()
        ran.append(f"{workload.name} {subject.name} {turn + 1}")
        made = cell(workload, subject.name, turn)
        made.disturbed += ["too busy"] * (len(ran) <= disturbed)
        fault = faults.get(subject.name)
        if fault and turn == 1:
            if isinstance(fault, BenchFault):
                raise fault
            made.faults.append(fault)
        return made

    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(suite, "raise_descriptor_limit", lambda connections: None)
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: None)
    return ran


def by_rounds(subjects: list[Subject], rounds: int, *workloads: Workload) -> Plan:
    """Without the rule for peers, so that a peer has a second round."""
    steps = [Step(w, subject, turn) for w in workloads for turn in range(rounds) for subject in subjects]
    return Plan(workloads, tuple(steps))


@contextmanager
def telling(planned: Plan) -> Iterator[Progress]:
    progress = Progress(planned, Console(file=StringIO()))
    yield progress
    progress.end()


@pytest.mark.parametrize("fault", ["a byte differs", BenchFault("it ended early")], ids=["fault", "no start"])
async def test_a_peer_that_fails_is_left_out_of_that_workload(
    monkeypatch: pytest.MonkeyPatch, fault: str | BenchFault
) -> None:
    ran = recorded(monkeypatch, {"peer": fault})
    planned = by_rounds([A, PEER], 3, CORE)
    with telling(planned) as progress:
        results = await run(planned, [A, PEER], progress)
    assert ran == ["core a 1", "core peer 1", "core a 2", "core peer 2", "core a 3"]
    assert [cell.subject for cell in results.cells] == ["a", "a", "a"]
    (failure,) = results.failures
    assert (failure.workload, failure.subject, failure.reason) == ("core", "peer", str(fault))
    assert results.faults() == []


async def test_a_fault_of_any_other_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = recorded(monkeypatch, {"b": "the ledger has 1 rows, not 2"})
    planned = by_rounds([A, B, PEER], 3, CORE, OTHER)
    with telling(planned) as progress:
        results = await run(planned, [A, B, PEER], progress)
    assert ran[-1] == "core b 2"
    assert results.faults() == ["core, b, round 2: the ledger has 1 rows, not 2"]


@pytest.mark.parametrize(("times", "kept"), [(REPEATS, True), (REPEATS + 1, False)], ids=["a while", "always"])
@pytest.mark.parametrize("subject", [A, PEER], ids=["ours", "a peer"])
async def test_a_disturbed_measurement_is_repeated(
    monkeypatch: pytest.MonkeyPatch, times: int, kept: bool, subject: Subject
) -> None:
    ran = recorded(monkeypatch, {}, disturbed=times)
    planned = plan([CORE], [subject], 1)
    with telling(planned) as progress:
        results = await run(planned, [subject], progress)
    assert len(ran) == REPEATS + 1
    assert [cell.repeats for cell in results.cells] == ([] if subject.peer and not kept else [REPEATS])
    assert len(results.failures) == (subject.peer and not kept)
    assert len(results.faults()) == (not subject.peer and not kept)


async def test_another_that_does_not_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(monkeypatch, {"b": BenchFault("b ended early")})
    planned = by_rounds([A, B], 2, CORE)
    with telling(planned) as progress, pytest.raises(BenchFault, match="b ended early"):
        await run(planned, [A, B], progress)


def test_what_a_run_depends_on_is_told() -> None:
    facts = machine_facts(Cores(frozenset([0]), frozenset([1]), frozenset([1])))
    assert facts["pinned"] == {"proxy": [0], "upstream": [1], "load": [1]}
    for name in ("at", "cpu", "cores", "memory", "kernel", "system", "python", "governor", "hyper-threading"):
        assert facts[name]
    assert {"trio", "h11", "hypercorn", "msgspec", "OpenSSL", "SQLite"} <= dict(facts["libraries"]).keys()  # type: ignore[call-overload]


def test_workloads_are_named() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert [workload.name for workload in command.named([names[2], names[0]])] == [names[0], names[2]]
    with pytest.raises(BenchFault, match="no workload is named 'sprint'; there are: 100 streams"):
        command.named(["sprint"])


def pretend(monkeypatch: pytest.MonkeyPatch, *cells: Cell, fault: str | None = None) -> None:
    async def run(*args: object) -> Results:
        await trio.lowlevel.checkpoint()
        if fault is not None:
            raise BenchFault(fault)
        return Results(FACTS, (CORE,), cells)

    monkeypatch.setattr(command, "run", run)


def test_a_run_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, cell(CORE, "direct", us=100))
    command._write(command._run(plan([CORE], [A]), [A]), tmp_path / "run.json", None)
    kept = suite.read(tmp_path / "run.json")
    assert kept.facts["cpu"] == "slow"
    assert kept.workloads == (CORE,)
    assert kept.cells[0].tally.times["event"]["p50"] == 100
    assert len(kept.cells[0].tally.cdf["event"]) > 100


@pytest.mark.parametrize(
    ("faults", "fault", "told"),
    [
        (["the ledger has 1 rows, not 2"], None, "core, tproxy, round 1: the ledger has 1 rows, not 2"),
        ([], "nginx ended early", "nginx ended early"),
    ],
    ids=["of a cell", "of a process"],
)
def test_nothing_is_told_of_a_run_with_a_fault(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    faults: list[str],
    fault: str | None,
    told: str,
) -> None:
    pretend(monkeypatch, cell(CORE, "tproxy", faults=faults), fault=fault)
    with pytest.raises(SystemExit) as ended:
        command._run(plan([CORE], [A]), [A])
    assert ended.value.code == 1
    assert told in capsys.readouterr().err


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    command.see_that_they_can_be_written(tmp_path / "old.json", tmp_path / "out")
    command.see_that_they_can_be_written(tmp_path / "new.json", None)
    assert (tmp_path / "old.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old.json", "out"]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--json"], "file/run.json"),
        (["--json"], "nowhere/run.json"),
        (["--json"], "."),
        (["--report"], "file/out"),
        (["hold", "--json"], "nowhere/run.json"),
    ],
)
def test_nothing_is_run_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "installed", lambda names: [A])
    monkeypatch.setattr(command, "_run", lambda *args: pytest.fail("it was run"))
    done = CliRunner().invoke(command.app, [*options, str(tmp_path / place)])
    assert done.exit_code == 1
    assert "cannot be written" in done.output
    assert str(tmp_path) in done.output
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_cannot_be_written_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command._write(Results(FACTS, (CORE,), ()), tmp_path, None)
    assert ended.value.code == 1
    assert "Is a directory" in capsys.readouterr().err


def test_a_narrow_terminal_loses_no_digit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    command.show("9" * 100)
    assert "9" * 100 in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_in_the_background_of_a_script_ends_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    async def run(*args: object) -> Results:
        os.kill(os.getpid(), number)
        with trio.fail_after(10):
            await trio.sleep_forever()
        raise AssertionError

    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it there
    monkeypatch.setattr(command, "run", run)
    try:
        with pytest.raises(KeyboardInterrupt):
            command._run(plan([CORE], [A]), [A])
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
