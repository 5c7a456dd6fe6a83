"""What a run came to, for people: on the terminal, as Markdown, as one HTML file.

    figures ─► tables ─► plots ─► document ─► markdown, html
                  └────► terminal

Nothing here measures; a report can be made of a saved run at any time, and the same run gives the same report.
"""

from __future__ import annotations

from pathlib import Path

from bench.suite import Results


def write(results: Results, folder: Path) -> None:
    """Write `report.md`, `report.html` and the plots into a folder."""
    from bench.report import document, html, markdown  # the plots take a second to import, which no run should wait for

    parts = document.document(results)
    markdown.write_plots(parts, folder)
    (folder / "report.md").write_text("# What tproxy adds\n\n" + markdown.render(parts, ""))
    (folder / "report.html").write_text(html.render(parts))


def write_docs(results: Results) -> None:
    """Put a run into docs/bench.md.

    Raises:
        BenchFault: it has no place for it.
    """
    from bench.report import document, markdown

    markdown.into_docs(document.document(results))
