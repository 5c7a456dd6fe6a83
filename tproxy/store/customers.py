"""Customers become known when they are first named.

Anybody who may ask can make names up. So only `limit` customers are ever known together; past that, those who are new
stand in the rows of their exchanges like all others, but have no entry of their own, and no sums (`sums`).
"""

from __future__ import annotations

import sqlite3

from tproxy.store.base import Opening
from tproxy.store.subjects import CUSTOMER, Subject, to_document


class Customers:
    """Makes those who are new."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: int | None = None  # how many there are, or more; None: to be counted
        self._told = False

    def meet(self, connection: sqlite3.Connection, opening: Opening, faults: list[str]) -> None:
        """Make the customer of an exchange, if there is none of that name and there is room.

        Args:
            faults: gets one sentence when there is no room for the first time.
        """
        if (
            opening.customer is None
            or connection.execute(
                "SELECT 1 FROM subject WHERE kind = ? AND id = ?", (CUSTOMER, opening.customer)
            ).fetchone()
        ):
            return
        if self._known is None:
            (self._known,) = connection.execute("SELECT count(*) FROM subject WHERE kind = ?", (CUSTOMER,)).fetchone()
        if self._known >= self._limit:
            if not self._told:
                self._told = True
                faults.append(f"there are {self._known} customers: no new ones are made")
            return
        subject = Subject(
            kind=CUSTOMER, id=opening.customer, created_us=opening.accepted_us, updated_us=opening.accepted_us
        )
        connection.execute(
            "INSERT INTO subject (kind, id, created_us, document) VALUES (?, ?, ?, ?)",
            (CUSTOMER, subject.id, subject.created_us, to_document(subject)),
        )
        self._known += 1

    def recount(self) -> None:
        """What was made may have been undone."""
        self._known = None
