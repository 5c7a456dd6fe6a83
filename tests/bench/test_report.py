"""What is told of a run: on the terminal, as Markdown, as HTML, in plots."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from bench import holding, report
from bench.cell import Cell
from bench.goals import ON, PLAIN, STREAMS, UNWATCHED, VIEWED, WATCHED
from bench.process import BenchFault
from bench.report import html, markdown, plots, tables, terminal
from bench.report.document import document
from bench.report.figures import Figure
from bench.suite import Results, read
from bench.workloads import WORKLOADS, Workload, hold
from tests.bench.runs import FACTS, NAMED, cell, usual, whole

SVG = "{http://www.w3.org/2000/svg}"


def text(drawn: RenderableType) -> str:
    file = StringIO()
    Console(width=250, file=file).print(drawn)
    return file.getvalue()


def rows(results: Results, workload: Workload) -> dict[str, list[str]]:
    lines = text(terminal.draw(tables.of_workload(results, workload))).splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}


def test_figures_are_medians_and_added_is_by_round() -> None:
    streams = NAMED[STREAMS]
    times = {"direct": (100, 200, 120), "nginx": (150, 260, 300)}
    cells = [cell(streams, name, turn, us) for name, each in times.items() for turn, us in enumerate(each)]
    found = rows(Results(FACTS, (streams,), tuple(cells)), streams)
    assert found["direct"] == ["120", "240", "240", "2.00", "0%"]
    assert found["nginx"] == ["260", "60", "520", "120", "520", "120", "2.00", "50.0", "400", "50.0", "40.0", "0%"]
    assert found["least"][:6] == ["150", "50", "300", "100", "300", "100"]
    assert found["most"][:6] == ["300", "180", "600", "360", "600", "360"]


def test_added_is_told_of_rounds_that_direct_has_too() -> None:
    streams = NAMED[STREAMS]
    cells = (cell(streams, "direct", 1, 100), cell(streams, "nginx", 0, 500), cell(streams, "nginx", 1, 130))
    assert rows(Results(FACTS, (streams,), cells), streams)["nginx"][:2] == ["315", "30"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_has_a_table_and_needs_no_direct_run(workload: Workload) -> None:
    table = tables.of_workload(Results(FACTS, (workload,), (cell(workload, "nginx"),)), workload)
    assert len(table.headings) == len(table.rows[0]) > 4
    assert sum(isinstance(entry, Figure) for entry in table.rows[0]) >= 4


def test_what_was_not_measured_is_left_empty() -> None:
    streams = NAMED[STREAMS]
    nothing = cell(streams, "nginx")
    nothing.tally.events, nothing.tally.times = 0, {}
    (row,) = tables.of_workload(Results(FACTS, (streams,), (nothing,)), streams).rows
    assert "50.0" in map(str, row)  # the idle process


def test_what_the_load_held_back_is_marked() -> None:
    plain = NAMED[PLAIN]
    results = Results(FACTS, (plain,), (cell(plain, "direct", load_bound=True), cell(plain, "nginx")))
    found = rows(results, plain)
    assert found["direct"][-3:-1] == ["≥", "1,000"]
    assert found["nginx"][-3:-1] == ["1,000", "83"]


@pytest.mark.parametrize(
    ("facts", "more", "told"),
    [
        ({"pinned": {"proxy": [0], "upstream": [0], "load": [0]}}, {}, "shared its only core"),
        ({}, {"foreign_cores": 0.5}, "Other work took up to 0.50 cores"),
        ({}, {"load_bound": True}, "at their own limit"),
        ({}, {"repeats": 2}, "2 measurements were thrown away and repeated"),
        ({}, {"repeats": 1}, "1 measurement was thrown away and repeated"),
    ],
)
def test_warnings(facts: dict[str, object], more: dict[str, Any], told: str) -> None:
    streams = NAMED[STREAMS]
    assert not tables.warnings(Results(FACTS, (streams,), (cell(streams, "nginx"),)))
    (warning,) = tables.warnings(Results(FACTS | facts, (streams,), (cell(streams, "nginx", **more),)))
    assert told in warning


def test_the_load_tells_its_own_cost_and_what_is_left_of_its_core() -> None:
    streams = NAMED[STREAMS]
    direct = cell(streams, "direct", upstream_cpu_seconds=0.3, side_busy=0.15, side_core_busy=0.17)
    (row,) = tables.of_load(Results(FACTS, (streams,), (direct, cell(streams, "nginx")))).rows
    assert [str(entry) for entry in row] == [STREAMS, "C", "60.0", "100.0", "10%", "5%", "17%", "5.7 x"]


def test_a_workload_that_goes_as_fast_as_it_can_has_no_headroom() -> None:
    plain = NAMED[PLAIN]
    (row,) = tables.of_load(Results(FACTS, (plain,), (cell(plain, "direct", side_busy=0.15),))).rows
    assert row[-1] == tables.NONE


@pytest.mark.parametrize(("events", "last"), [(800, "200"), (799, tables.NONE)], ids=["enough", "too few"])
def test_a_tail_of_too_few_is_left_empty(events: int, last: str) -> None:
    streams = NAMED[STREAMS]
    cells = (cell(streams, "direct"), cell(streams, "nginx"))
    cells[1].tally.events = events
    results = Results(FACTS, (streams,), cells)
    (latency,) = plots.plots(results)
    nginx = dict(zip(latency.table.headings, map(str, latency.table.rows[1]), strict=True))
    assert (nginx["p90"], nginx["p99"], nginx["p99.9"], nginx["max"]) == ("200", last, tables.NONE, "200")
    found = rows(results, streams)
    assert found["direct"][:3] == ["100", "200", "200"]
    added = "0" if last == "200" else tables.NONE
    assert found["nginx"][:6] == ["100", "0", last, added, tables.NONE, tables.NONE]


@pytest.mark.parametrize(
    ("results", "told"),
    [
        (usual(), ""),
        (replace(usual(), cells=usual().cells[:1]), "One round: only a hint."),
        (Results(FACTS, (NAMED[STREAMS].lasting(1),), usual().cells[:1]), "One short round: only a hint."),
    ],
    ids=["rounds", "one", "a short one"],
)
def test_goals_of_one_round_are_a_hint(results: Results, told: str) -> None:
    assert tables.goals(results).note.partition("\n")[0] == told


def test_goals_that_were_not_measured_are_one_line() -> None:
    results = whole(ON, "nginx", UNWATCHED, WATCHED)
    table = tables.goals(results)
    assert len(table.rows) == 11
    assert table.note == (
        f"Not measured: 3 of 14 goals; envoy did not run {STREAMS}, or too little of it; "
        f"litellm did not run {PLAIN}, or too little of it."
    )


def test_names_that_hold_a_comma_are_told_apart() -> None:
    facts: dict[str, object] = {"not asked": ["nginx", ON], "pinned": {"proxy": [0, 1]}, "not installed": []}
    table = tables.facts(Results(facts, (), ()))
    assert [row[1] for row in table.rows] == [f"nginx; {ON}", "proxy: 0, 1", "none"]
    assert tables.who_did_not_run(Results(facts, (), ())) == [f"Not asked: nginx; {ON}."]


def test_a_long_reason_is_cut() -> None:
    results = usual()
    failure = replace(results.failures[0], reason="log\n" * 1000)
    (told, _) = tables.who_did_not_run(replace(results, failures=(failure,)))
    assert told.startswith(f"hare is left out of {STREAMS}; it failed: log log")
    assert len(told) < 400


@pytest.mark.parametrize("results", [usual(), whole()], ids=["usual", "direct alone"])
def test_the_terminal_tells_all(results: Results) -> None:
    told = text(terminal.render(results))
    for expected in (*(w.name for w in results.workloads), "Not installed: tortoise.", "hare", "Goals"):
        assert expected in told


def test_a_workload_that_nobody_ran_has_no_table() -> None:
    results = Results(FACTS, (NAMED[STREAMS], NAMED[PLAIN]), (cell(NAMED[PLAIN], "nginx"),))
    assert [table.title for table in tables.of_workloads(results)] == [f"{PLAIN}, 6.0 s"]
    assert text(terminal.render(results))


def saved(results: Results, folder: Path) -> Results:
    (folder / "run.json").write_bytes(results.as_json())
    return read(folder / "run.json")


@pytest.mark.parametrize("results", [usual(), whole()], ids=["usual", "direct alone"])
def test_a_saved_run_is_the_same_and_gives_the_same_report(results: Results, tmp_path: Path) -> None:
    again = saved(results, tmp_path)
    assert again == results
    for name, run in (("one", results), ("two", again)):
        report.write(run, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"report.md", "report.html"} < set(files)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("content", [None, b"{", b'{"cells": 1}'], ids=["no file", "no JSON", "no run"])
def test_a_file_that_holds_no_run(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(BenchFault, match=r"run\.json holds no run"):
        read(tmp_path / "run.json")


def test_plots_are_svg_with_a_text_and_a_table() -> None:
    found = plots.plots(usual())
    assert [plot.name for plot in found] == [
        "latency-100-streams-x-50-s",
        "latency-first-byte-20-connections",
        "cpu-per-event",
        "memory",
        "answers-plain-answers-16-connections",
    ]
    for plot in found:
        root = ElementTree.fromstring(plot.svg)
        assert root.tag == f"{SVG}svg"
        words = "".join(root.itertext())
        for name in ("nginx", "envoy", ON, "litellm"):
            assert name in words
            assert name in plot.alt
            assert name in [row[0] for row in plot.table.rows]
        assert "date" not in plot.svg


def test_a_plot_shows_its_figures() -> None:
    latency, first_byte, cpu, memory, answers = plots.plots(usual())
    assert "direct 105; nginx 155" in latency.alt
    assert [str(entry) for entry in latency.table.rows[0]] == ["direct", "105 (100–110)", *["210 (200–220)"] * 4]  # noqa: RUF001
    assert "answers against time. Medians in µs: direct 105; nginx 155" in first_byte.alt
    assert cpu.table.headings == ("", STREAMS, VIEWED, "5,000 streams x 1/s")
    assert "nginx 50.0 to 50.0" in cpu.alt
    assert "nginx 54.1 to 54.1" in memory.alt
    assert "direct 1,000" in answers.alt


def test_every_subject_is_drawn_in_its_own_way() -> None:
    names = [f"subject {number}" for number in range(12)]
    results = whole(*names)
    styles = {name: plots._style(results, name) for name in results.subjects()}
    assert len({(colour, dashes) for colour, dashes, _ in styles.values()}) == len(names) + 1
    assert len({(colour, mark) for colour, _, mark in styles.values()}) == len(names) + 1


def test_html_is_one_well_formed_file() -> None:
    page = html.render(document(usual()))
    root = ElementTree.fromstring(page.replace("<!DOCTYPE html>", ""))
    identifiers = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers)) > 10
    for reference in re.findall(r'(?:url\(|href=")#([^)"]+)', page):
        assert reference in identifiers
    drawings = [element for element in root.iter(f"{SVG}svg") if element.get("role") == "img"]
    assert len(drawings) == 5
    assert all(len(drawing.get("aria-label", "")) > 50 for drawing in drawings)
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "&lt;b&gt; at event | 3 of `4`" in page
    for table in root.iter("table"):
        widths = {len(row) for row in table.iter("tr")}
        assert len(widths) == 1


def test_markdown_is_well_formed(tmp_path: Path) -> None:
    parts = document(usual())
    report.write(usual(), tmp_path)
    told = markdown.render(parts, "")
    for alt, name in re.findall(r"!\[((?:\\.|[^\]])*)\]\((.*?)\)", told):
        assert len(alt) > 50
        assert (tmp_path / name).exists()
    blocks = [block.splitlines() for block in told.split("\n\n") if block.startswith("|")]
    assert len(blocks) == sum(part.table is not None for part in parts)
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"[|\-: ]+", block[1])
    assert r"\<b\> at event \| 3 of \`4\`" in told


def test_a_run_goes_into_the_docs_between_their_marks(tmp_path: Path) -> None:
    file = tmp_path / "bench.md"
    file.write_text(f"Before.\n\n{markdown.BEGIN}\nold\n{markdown.END}\n\nAfter.\n")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "old.svg").touch()
    for _ in range(2):
        markdown.into_docs(document(usual()), file)
        told = file.read_text()
        assert told.startswith(f"Before.\n\n{markdown.BEGIN}\n\n### ")
        assert told.endswith(f"\n{markdown.END}\n\nAfter.\n")
        assert "\nold\n" not in told
    links = re.findall(r"\]\((.*?\.svg)\)", told)
    assert sorted(f"bench/{path.name}" for path in (tmp_path / "bench").iterdir()) == sorted(links)
    file.write_text("no marks")
    with pytest.raises(BenchFault, match=r"bench\.md has not the two marks"):
        markdown.into_docs(document(usual()), file)


def test_the_docs_have_the_marks() -> None:
    before, _, rest = markdown.DOCS.read_text().partition(markdown.BEGIN)
    assert before
    assert markdown.END in rest


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, True),
        ({"idle_bytes": 70_100_000, "loaded_bytes": 70_200_000}, False),
        ({"loaded_bytes": 50_000_000 + 100 * 33 * 1024}, False),
        ({"dropped": 7}, False),
        ({"us": 12_600}, False),
    ],
    ids=["within", "idle", "each stream", "dropped", "p99"],
)
def test_promises(more: dict[str, Any], kept: bool) -> None:
    workload = hold(100, 5)
    more = {"loaded_bytes": 50_000_000 + 100 * 20 * 1024} | more
    cells: tuple[Cell, ...] = (cell(workload, "direct", us=9), cell(workload, ON, **more))
    results = Results(FACTS, (workload,), cells)
    assert holding.within_bounds(results, workload) is kept
    told = text(holding.render(results, workload))
    assert ("missed" in told) is not kept
    assert "tortoise" not in told  # nobody else was asked
