"""A report as Markdown, with its plots beside it; and the part of docs/bench.md that is made of a run."""

from __future__ import annotations

from pathlib import Path

from bench.process import ROOT, BenchFault
from bench.report.document import Part
from bench.report.tables import Table

DOCS = ROOT / "docs" / "bench.md"
BEGIN = "<!-- From here to the end mark, all is made by: python -m bench report run.json --docs -->"
END = "<!-- the end mark -->"


def render(parts: list[Part], plots: str, *, level: int = 2) -> str:
    """All parts.

    Args:
        plots: the folder of the plots, relative to the file; empty: the same folder.
        level: of their headings.
    """
    return "\n\n".join(_part(part, f"{plots}/" if plots else "", "#" * level) for part in parts) + "\n"


def into_docs(parts: list[Part], file: Path = DOCS) -> None:
    """Put a run into docs/bench.md, between its marks, and its plots into the folder beside it.

    Raises:
        BenchFault: the marks are not there.
    """
    text = file.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchFault(f"{file.name} has not the two marks between which the report goes")
    folder = file.with_suffix("")
    write_plots(parts, folder)
    file.write_text(f"{before}{begin}\n\n{render(parts, folder.name, level=3)}\n{end}{after}")


def write_plots(parts: list[Part], folder: Path) -> None:
    """Write the plots, and take away those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for part in parts:
        if part.plot:
            (folder / f"{part.plot.name}.svg").write_text(part.plot.svg)


def _part(part: Part, plots: str, hashes: str) -> str:
    blocks = [f"{hashes} {_escaped(part.title)}"]
    if part.plot:
        blocks.append(f"![{_escaped(part.plot.alt)}]({plots}{part.plot.name}.svg)")
    if part.table:
        blocks.append(_table(part.table))
    return "\n\n".join([*blocks, *(_escaped(paragraph) for paragraph in part.paragraphs)])


def _table(table: Table) -> str:
    heads = _row([_escaped(heading) for heading in table.headings])
    ruler = _row(["---", *("---:" if heading else "---" for heading in table.headings[1:])])
    return "\n".join([heads, ruler, *(_row([_escaped(str(entry)) for entry in row]) for row in table.rows)])


def _row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _escaped(text: str) -> str:
    """So that nothing in it is Markdown, and all of it is one line."""
    for special in "\\|[]<>*_`":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
