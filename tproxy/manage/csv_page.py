"""Answers as CSV, for those who ask for it: `?format=csv`, or `Accept: text/csv` where no format is named."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import Depends, Query, Request, Response

from tproxy.manage.csv_text import Cell, csv_text
from tproxy.manage.desk import Desk

_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Table:
    """What one CSV file has in it. `name` is that of the file, without its ending."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


async def _asked(
    request: Request,
    format: Annotated[Literal["json", "csv"] | None, Query(description="`csv` for a table to download.")] = None,
) -> bool:
    if format is not None:
        return format == "csv"
    first = request.headers.get("accept", "").split(",")[0].split(";")[0]
    return first.strip().lower() == "text/csv"


AsCsv = Annotated[bool, Depends(_asked)]


async def csv_told(desk: Desk, read: Callable[[sqlite3.Connection], Table]) -> Response:
    """What `read` finds, as a CSV file. It is read and written in a thread, as by `answering.told`."""

    def told(connection: sqlite3.Connection) -> tuple[str, bytes]:
        table = read(connection)
        return table.name, csv_text(table.columns, table.rows).encode()

    name, content = await desk.look(told)
    return Response(
        content,
        media_type="text/csv; charset=utf-8; header=present",
        headers={"content-disposition": f'attachment; filename="{_UNFIT.sub("-", name)}.csv"'},
    )
