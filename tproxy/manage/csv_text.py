"""Tables as CSV (RFC 4180): lines end with CR LF, the first one names the columns, the text is UTF-8.

Names of keys, tags and customers come from users, and a spreadsheet runs what begins like a formula. So text that does
gets an apostrophe before it, which a spreadsheet does not show. Numbers are written as they are: money is text that
`usd` has made, exact to the nano-dollar.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | int | None


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """The table as text. None is an empty cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([tame(cell) if isinstance(cell, str) else cell for cell in row])
    return out.getvalue()


def tame(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text
