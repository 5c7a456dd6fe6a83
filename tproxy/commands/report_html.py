"""A report as one HTML file, to be mailed or printed: no script, nothing from elsewhere, in light and in dark.

Every text that comes from the server is escaped, and the page forbids itself whatever it does not need.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Final

from tproxy import __version__
from tproxy.commands import report_charts as charts
from tproxy.commands.report_figures import Report, Row
from tproxy.money import usd
from tproxy.plaintext import plain

_STYLE: Final = """
:root{color-scheme:light dark;--ground:#fcfcfb;--ink:#0b0b0b;--quiet:#52514e;--line:#e1e0d9;
--c0:#2a78d6;--c1:#1baf7a;--c2:#eda100;--c3:#008300;--c4:#4a3aa7;--c5:#e34948;--c6:#e87ba4;--c7:#a09f98}
@media (prefers-color-scheme:dark){:root{--ground:#1a1a19;--ink:#fff;--quiet:#c3c2b7;--line:#383835;
--c0:#3987e5;--c1:#199e70;--c2:#c98500;--c3:#3fa33f;--c4:#9085e9;--c5:#e66767;--c6:#d55181;--c7:#7c7b75}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:32px 24px}
h1{font-size:26px;line-height:1.2;margin:0}
h2{font-size:16px;margin:36px 0 8px}
p{margin:4px 0}
.quiet,footer,figcaption{color:var(--quiet)}
.facts{display:flex;flex-wrap:wrap;gap:12px 36px;margin:24px 0 0}
.facts dt{color:var(--quiet);font-size:13px}
.facts dd{margin:0;font-size:22px;font-variant-numeric:tabular-nums}
figure{margin:0}
svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--quiet)}
svg .name,svg .figure{fill:var(--ink)}
svg .grid{stroke:var(--line)}
svg rect{stroke:var(--ground);stroke-width:1}
.s0{fill:var(--c0)}.s1{fill:var(--c1)}.s2{fill:var(--c2)}.s3{fill:var(--c3)}
.s4{fill:var(--c4)}.s5{fill:var(--c5)}.s6{fill:var(--c6)}.s7{fill:var(--c7)}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;margin:8px 0 0;padding:0;font-size:13px}
.legend svg{display:inline-block;width:11px;height:11px;margin-right:6px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:5px 0 5px 14px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
th{color:var(--quiet);font-weight:500}
th:first-child,td:first-child{padding-left:0;text-align:left;white-space:normal;overflow-wrap:anywhere}
tfoot td{font-weight:600;border-bottom:0}
footer{margin-top:36px;font-size:13px}
@media print{main{padding:0}section,tr{break-inside:avoid}}
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report, now: datetime) -> str:
    """The whole page.

    Args:
        now: when it is made.
    """
    title = f"Spend by {report.by}, {span_of(report)}"
    by_month = len(report.days) > charts.DAYS_MAX
    parts = [
        f"<h1>Spend by {escape(report.by)}</h1>",
        f'<p class="quiet">{escape(span_of(report))}, days of UTC{_running(report, now)}</p>',
        _facts(report.total),
    ]
    if report.total.exchanges:
        over_time = f"<figure>{charts.over_time(report)}{_legend(report)}</figure>"
        parts += [
            _section(f"Spend by {'month' if by_month else 'day'}, in USD", over_time),
            _section(f"Totals by {report.by}, in USD", f"<figure>{charts.totals(report)}{_left_out(report)}</figure>"),
            _section("All figures", _groups(report)),
            _section("By day", _days(report)),
        ]
    else:
        parts.append("<p>There was no exchange in this time.</p>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="content-security-policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n<footer>{_notes(report, now)}</footer>\n</main>\n</body>\n</html>\n"
    )


def span_of(report: Report) -> str:
    """The days for people: `November 2026`, or `2026-11-03 to 2026-11-09`."""
    first, last = report.first, report.last
    month = calendar.monthrange(first.year, first.month)[1]
    if (first, last) == (first.replace(day=1), first.replace(day=month)):
        return f"{first:%B %Y}"
    return f"{first}" if first == last else f"{first} to {last}"


def _running(report: Report, now: datetime) -> str:
    return f"; not over yet, as of {now:%Y-%m-%d %H:%M} UTC" if report.last >= now.date() else ""


def _facts(total: Row) -> str:
    facts = (
        ("Cost, in USD", charts.money(total.spend_nano)),
        ("Calls", f"{total.exchanges:,}"),
        ("Failed", _count(total.failures)),
        ("Input tokens", f"{total.prompt_tokens:,}"),
        ("Output tokens", f"{total.completion_tokens:,}"),
    )
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in facts)
        + "</dl>"
    )


def _legend(report: Report) -> str:
    names = [row.name for row in charts.series_of(report)]
    if not names:
        return ""
    shown = list(enumerate(names))
    if any(row.spend_nano for row in report.rows[len(names) :]):
        shown.append((charts.SERIES, charts.OTHERS))
    marks = (
        f'<li><svg viewBox="0 0 11 11" aria-hidden="true"><rect class="s{number}" width="11" height="11" rx="2"/></svg>'
        f"{_text(name)}</li>"
        for number, name in shown
    )
    return f'<ul class="legend">{"".join(marks)}</ul>'


def _left_out(report: Report) -> str:
    more = sum(1 for row in report.rows if row.spend_nano) - charts.BARS
    return f"<figcaption>and {more} more, in the table below</figcaption>" if more > 0 else ""


def _groups(report: Report) -> str:
    decimals = _decimals([*report.rows, report.total])
    whole = report.total.spend_nano
    heads = (report.by, "calls", "failed", "input tokens", "output tokens", "cost in USD", "share")
    lines = [
        (
            row.name,
            *_figures(row),
            _money(row, decimals),
            f"{row.spend_nano * 1000 // whole / 10:.1f} %" if whole else "",
        )
        for row in report.rows
    ]
    return _table(heads, lines, ("all exchanges", *_figures(report.total), _money(report.total, decimals), ""))


def _days(report: Report) -> str:
    decimals = _decimals([day.total for day in report.days] + [report.total])
    lines = [
        (day.day.isoformat(), *_figures(day.total), _money(day.total, decimals))
        for day in report.days
        if day.total.exchanges
    ]
    total = ("all exchanges", *_figures(report.total), _money(report.total, decimals))
    return _table(("day", "calls", "failed", "input tokens", "output tokens", "cost in USD"), lines, total)


def _figures(row: Row) -> tuple[str, ...]:
    counts = (row.exchanges, row.failures, row.prompt_tokens, row.completion_tokens)
    return tuple(_count(count) for count in counts)


def _count(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _money(row: Row, decimals: int) -> str:
    return charts.money(row.spend_nano, decimals) + (" + ?" if row.unpriced else "")


def _decimals(rows: Iterable[Row]) -> int:
    """As many as the longest figure has: nothing is rounded."""
    return max([2, *(len(usd(row.spend_nano).partition(".")[2]) for row in rows)])


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], total: Sequence[str]) -> str:
    def cells(tag: str, line: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in line) + "</tr>"

    body = "".join(cells("td", line) for line in lines)
    parts = f"<thead>{cells('th', heads)}</thead><tbody>{body}</tbody><tfoot>{cells('td', total)}</tfoot>"
    return f'<div class="wide"><table>{parts}</table></div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _text(text: str) -> str:
    """Text that others chose: no markup, and nothing that turns the direction of what follows."""
    return escape(plain(text))


def _notes(report: Report, now: datetime) -> str:
    notes = ["Days are those of UTC, from midnight to midnight, and a call counts for the day on which it came in."]
    if report.overlaps:
        notes.append("A call counts for each of its tags, so that the rows can come to more than all exchanges.")
    if report.unpriced:
        notes.append(
            f"{report.unpriced:,} of the calls have tokens whose price is not known, which are in no figure of money."
        )
    made = f"Made at {now:%Y-%m-%d %H:%M} UTC by tproxy {__version__}."
    return "".join(f"<p>{escape(note)}</p>" for note in (*notes, made))
