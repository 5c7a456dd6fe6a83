from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.tomlfile import PlacedFault, SettingsFault, Table, TomlFile, is_readable


class Inner(Table):
    number: int = 0
    names: tuple[str, ...] = ()


class Outer(Table):
    inner: Inner = Inner()


KNOWN = [("outer",), ("outer", "inner"), ("outer", "inner", "number"), ("outer", "inner", "names")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.toml"
    path.touch(0o600)
    return path


def faults(path: Path, *, private: bool = False) -> list[tuple[str, int | None, str]]:
    with pytest.raises(SettingsFault) as caught:
        TomlFile(path, {}, private=private).check()
    return [(fault.place, fault.line, fault.message) for fault in caught.value.faults]


def test_a_fault_is_one_line() -> None:
    assert str(PlacedFault("a.toml: b.c", "is wrong")) == "a.toml: b.c: is wrong"
    assert str(PlacedFault("a.toml: b.c", "is wrong", 3)) == "a.toml: b.c (line 3): is wrong"
    both = SettingsFault([PlacedFault("a", "x"), PlacedFault("b", "y")])
    assert str(both) == "a: x\nb: y"


def test_a_missing_file(path: Path) -> None:
    path.unlink()
    assert faults(path) == [("some.toml", None, f"cannot be read: No such file or directory: {path}")]
    assert faults(path, private=True) == faults(path)
    with pytest.raises(SettingsFault, match=f": {path}; look elsewhere$"):
        TomlFile(path, {}, advice="look elsewhere")


def test_a_missing_file_is_named_with_its_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    monkeypatch.chdir(path.parent)
    assert faults(Path(path.name)) == faults(path)


def test_which_files_can_be_read(path: Path) -> None:
    assert is_readable(path)
    for other in (path.parent, path.parent / "nope", path / "below", path.parent / ("x" * 300), "a\0", ""):
        assert not is_readable(other)


def test_a_directory(tmp_path: Path) -> None:
    ((_, _, message),) = faults(tmp_path)
    assert "Is a directory" in message


def test_a_syntax_fault_has_its_line_and_column(path: Path) -> None:
    path.write_text("a = 1\nb = = 2\n")
    assert faults(path) == [("some.toml", None, "is not TOML: Invalid value (at line 2, column 5)")]


def test_not_utf8(path: Path) -> None:
    path.write_bytes(b"a = '\xff'")
    assert faults(path) == [("some.toml", None, "is not UTF-8 text, at byte 5")]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_private_file_is_closed_to_others(path: Path, mode: int) -> None:
    TomlFile(path, {}, private=True).check()
    path.chmod(mode)
    TomlFile(path, {}).check()
    ((place, _, message),) = faults(path, private=True)
    assert place == "some.toml"
    assert f"chmod 600 {path}" in message
    path.write_text("= 1")
    assert len(faults(path, private=True)) == 2


def test_the_first_fault_at_a_place_is_told(path: Path) -> None:
    file = TomlFile(path, {})
    file.add(("a", "b"), "first")
    file.add(("a", "b"), "again")
    file.add(("a", "b", 0), "inside")
    file.add(("a",), "around")
    assert file.faulty(("a",))
    assert file.faulty(("a", "b"))
    assert not file.faulty(("a", "c"))
    with pytest.raises(SettingsFault) as caught:
        file.check()
    assert [fault.message for fault in caught.value.faults] == ["first", "around"]


def test_values_are_resolved_wherever_they_stand(path: Path) -> None:
    (path.parent / "text").write_text("  of a file \n")
    file = TomlFile(path, {"A": "of a variable"})
    data = {"a": "env:A", "b": ["x", "file:text", {"c": "env:A"}], "d": 1, "e": "en:A", "f": "environment"}
    expected = {"a": "of a variable", "b": ["x", "of a file", {"c": "of a variable"}], "d": 1, "e": "en:A"}
    assert file.resolve((), data) == {**expected, "f": "environment"}
    file.check()


def test_a_resolved_value_is_not_resolved_again(path: Path) -> None:
    assert TomlFile(path, {"A": "env:B"}).resolve(("a",), "env:A") == "env:B"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("env:A", "the environment variable A is not set"),
        ("env:E", "the environment variable E is empty"),
        ("env:", "must be followed by the name"),
        ("env:1A", "must be followed by the name"),
        ("env: A", "must be followed by the name"),
        ("file:nope", "No such file"),
        ("file:empty", "the file is empty"),
        ("file:binary", "is not UTF-8"),
        ("file:\0", "cannot be read"),
        ("file:", "Is a directory"),
    ],
)
def test_what_cannot_be_resolved(path: Path, value: str, message: str) -> None:
    (path.parent / "empty").write_text(" \n")
    (path.parent / "binary").write_bytes(b"\xff")
    file = TomlFile(path, {"E": ""})
    assert file.resolve(("a", 1), [value]) == [value]
    with pytest.raises(SettingsFault) as caught:
        file.check()
    (fault,) = caught.value.faults
    assert fault.place == "some.toml: a[1][0]"
    assert message in fault.message


def test_a_model_and_its_faults(path: Path) -> None:
    path.write_text("[outer.inner]\nnumber = 'x'\nnames = 'y'\nnumbr = 1\n")
    file = TomlFile(path, {})
    assert file.validate(Outer, file.table(("outer",)), ("outer",), KNOWN) is None
    with pytest.raises(SettingsFault) as caught:
        file.check()
    assert [(fault.place, fault.line, fault.message) for fault in caught.value.faults] == [
        ("some.toml: outer.inner.number", 2, "must be a whole number"),
        ("some.toml: outer.inner.names", 3, "must be a list"),
        ("some.toml: outer.inner.numbr", 4, "unknown key; the nearest known one is outer.inner.number"),
    ]


def test_odd_keys_stay_on_one_line(path: Path) -> None:
    path.write_text('[outer]\n"a.b\\nc" = 1')
    file = TomlFile(path, {})
    file.validate(Outer, file.table(("outer",)), ("outer",), KNOWN)
    with pytest.raises(SettingsFault) as caught:
        file.check()
    assert caught.value.faults[0].place == r'some.toml: outer."a.b\nc"'


LINES = """\
top = 1
[a]
b.c = 2
"quoted" = 3
  [ a . d ]  # spaced
list = [
  'x',
]
[[e]]
f = 1
[[e]]
g = 2
[e.h]
i = 3
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("top",), 1),
        (("a",), 2),
        (("a", "b", "c"), 3),
        (("a", "quoted"), 4),
        (("a", "d"), 5),
        (("a", "d", "list", 0), 6),
        (("a", "d", "missing"), 5),
        (("e", 0, "f"), 10),
        (("e", 1, "g"), 12),
        (("e", 1, "missing"), 11),
        (("nowhere",), None),
    ],
)
def test_lines(path: Path, place: tuple[str | int, ...], line: int | None) -> None:
    path.write_text(LINES)
    file = TomlFile(path, {})
    file.add(place, "x")
    with pytest.raises(SettingsFault) as caught:
        file.check()
    assert caught.value.faults[0].line == line
