"""The house: lower floors know nothing of higher ones, and every file is read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tproxy"

# A module may import from its own room and from the rooms below its floor. Rooms of one floor do not know each other.
FLOORS: list[set[str]] = [
    {"__init__", "errors", "histogram", "money", "period", "plaintext", "tomlfile"},
    {"protocol", "sandbox", "hypercorn_keys", "logs", "setting_kinds"},
    {"setting_tables"},
    {"settings"},
    {"wire", "store"},
    {"flow"},
    {"observe", "capture", "export"},
    {"alert"},
    {"manage"},
    {"observation"},
    {"terminal", "assembly", "client"},
    {"server", "commands"},
    {"cli"},
    {"__main__"},
]
LONGEST = 350


def room(path: Path) -> str:
    """The room of a source file: its package below `tproxy`, or its own name."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms of tproxy that a file names at import, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "tproxy" else [f"tproxy.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "tproxy":
                known = len(parts) > 1 and any(parts[1] in floor for floor in FLOORS)
                yield (parts[1] if known else "__init__"), node.lineno


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in SOURCES}
    assert rooms <= set().union(*FLOORS)
    assert {"protocol", "wire", "store", "flow", "manage", "sandbox", "cli"} <= rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    if path == PACKAGE / "__init__.py":
        return  # it names the application for hypercorn, inside a function
    wrong = [
        f"line {line}: {here} imports {there}"
        for there, line in imported_rooms(path)
        if there != here and floor(there) >= floor(here)
    ]
    assert not wrong


@pytest.mark.parametrize("path", sorted((PACKAGE / "sandbox").glob("*.py")), ids=lambda path: path.name)
def test_the_sandbox_knows_nothing_of_the_proxy(path: Path) -> None:
    assert {there for there, _ in imported_rooms(path)} <= {"sandbox"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "protocol").glob("*.py")), ids=lambda path: path.name)
def test_protocol_does_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"trio", "socket", "time", "os", "logging", "structlog"}


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted((ROOT / "bench").rglob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
