"""A report as one HTML file that needs no other: the plots are in it."""

from __future__ import annotations

import re
from html import escape

from bench.goals import KEPT, MISSED
from bench.report.document import Part
from bench.report.figures import Figure
from bench.report.plots import Plot
from bench.report.tables import Entry, Table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff; }
h1, h2 { line-height: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th[scope=row], .words { text-align: left; }
small { display: block; color: #555; }
.kept { color: #00613f; } .missed { color: #a30000; font-weight: bold; }
svg { max-width: 100%; height: auto; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{parts}
</main>
</body>
</html>
"""


def render(parts: list[Part], title: str = "What tproxy adds") -> str:
    """The whole file. It is well-formed XML too."""
    return PAGE.format(title=escape(title), style=STYLE, parts="\n".join(_part(part) for part in parts))


def _part(part: Part) -> str:
    blocks = [f"<h2>{escape(part.title)}</h2>"]
    if part.plot:
        blocks.append(_inline(part.plot))
    if part.table:
        blocks.append(_table(part.table))
    blocks += [f"<p>{escape(paragraph)}</p>" for paragraph in part.paragraphs]
    return f"<section>\n{chr(10).join(blocks)}\n</section>"


def _inline(plot: Plot) -> str:
    """The plot as a part of the page: one image to a reader, with identifiers that no other plot of the page has."""
    _, _, svg = plot.svg.partition("<svg ")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{plot.name}-", svg)
    return f'<figure><svg role="img" aria-label="{escape(plot.alt)}" {svg}</figure>'


def _table(table: Table) -> str:
    words = [not heading for heading in table.headings]
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    body = "\n".join(_row(row, words) for row in table.rows)
    thead = f"<thead><tr>{head}</tr></thead>\n" if any(table.headings) else ""
    name = escape(table.title)
    return f'<div class="scroll"><table aria-label="{name}">\n{thead}<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(row: tuple[Entry, ...], words: list[bool]) -> str:
    first, *rest = row
    entries = "".join(_entry(entry, word) for entry, word in zip(rest, words[1:], strict=True))
    return f'<tr><th scope="row">{escape(str(first))}</th>{entries}</tr>'


def _entry(entry: Entry, words: bool) -> str:
    if isinstance(entry, Figure):
        ends = f"<small>{escape('–'.join(entry.ends))}</small>" if entry.ends else ""  # noqa: RUF001
        return f"<td>{escape(entry.middle)}{ends}</td>"
    if not words:
        return f"<td>{escape(entry)}</td>"
    verdict = f" {entry}" if entry in (KEPT, MISSED) else ""
    return f'<td class="words{verdict}">{escape(entry)}</td>'
