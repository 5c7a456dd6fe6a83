"""Where the books are kept and where their days begin, which can be read without the other settings."""

from __future__ import annotations

import struct
import zoneinfo
from pathlib import Path

import pytest

from tproxy.settings import SettingsFault, load, load_books


def add_zone(directory: Path) -> None:
    """Put a time zone "Somewhere" into a directory, and look for zones there."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)  # RFC 8536 section 3.1: one type, a name of four bytes
    (directory / "Somewhere").write_bytes(b"TZif" + b"\0" * 16 + counts + b"\0" * 6 + b"SMW\0")
    zoneinfo.reset_tzpath([str(directory)])


def test_time_zones_are_those_of_the_system(tmp_path: Path) -> None:
    add_zone(tmp_path)
    try:
        for zone in ("Somewhere", "UTC"):  # UTC needs no file
            (tmp_path / "config.toml").write_text(f"[tproxy.budgets]\ntimezone = '{zone}'")
            assert load(tmp_path / "config.toml", {"ANTHROPIC_API_KEY": "sk-ant-real"}).budgets.timezone == zone
    finally:
        zoneinfo.reset_tzpath()


BOOKS = {
    "the defaults": ("", "tproxy.db", "UTC"),
    "both": (
        "[tproxy]\ndatabase = 'env:DATABASE'\n[tproxy.budgets]\ntimezone = 'file:zone'",
        "books.db",
        "Somewhere",
    ),
    "faults elsewhere": (
        """
        bind = "nowhere"
        backlock = 1
        [tproxy]
        database = "sqlite:books.db"
        master_key = "env:NOPE"
        price_file = "nope.toml"
        access = "open to all"
        log = 1
        [tproxy.upstream]
        api_keys = ["env:NOPE"]
        [tproxy.budgets]
        timezone = "UTC"
        wait = -1
        """,
        "books.db",
        "UTC",
    ),
}


@pytest.mark.parametrize(("text", "database", "zone"), BOOKS.values(), ids=BOOKS)
def test_the_books_need_no_other_settings(tmp_path: Path, text: str, database: str, zone: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "zone").write_text("Somewhere\n")
    add_zone(tmp_path)
    try:
        books = load_books(tmp_path / "config.toml", {"DATABASE": "sqlite:books.db"})
    finally:
        zoneinfo.reset_tzpath()
    assert books == (tmp_path / database, zone)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (
            "[tproxy]\ndatabase = 'postgres:x'\n[tproxy.budgets]\ntimezone = 'Mars/Base'",
            ["database", "budgets.timezone"],
        ),
        ("[tproxy]\ndatabase = 'sqlite:no/t.db'", ["database"]),
        ("[tproxy]\ndatabase = 'env:NOPE'", ["database"]),
        ("[tproxy]\nbudgets = 1", ["budgets"]),
        ("[tproxy]\ndatabase = 1\nmaster_key = 1", ["database"]),
    ],
)
def test_faults_of_the_books(tmp_path: Path, text: str, places: list[str]) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(SettingsFault) as caught:
        load_books(tmp_path / "config.toml", {})
    assert [fault.place for fault in caught.value.faults] == [f"config.toml: tproxy.{place}" for place in places]


def test_the_books_are_read_with_the_process_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("[tproxy]\ndatabase = 'env:DATABASE'")
    monkeypatch.setenv("DATABASE", "sqlite:/t.db")
    assert load_books(tmp_path / "config.toml") == (Path("/t.db"), "UTC")
