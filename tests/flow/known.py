"""Who a test's proxy knows: a directory without a database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from tproxy.store import subjects
from tproxy.store.subjects import Subject


class Known:
    """A `flow.identify.Directory` of the given subjects."""

    def __init__(self, found: Sequence[Subject] = ()) -> None:
        self._found = {(each.kind, each.id): each for each in found}
        self.version = 0

    def put(self, subject: Subject) -> None:
        self.version += 1
        self._found[subject.kind, subject.id] = subject

    def key(self, digest: str) -> Subject | None:
        return self._found.get((subjects.KEY, digest))

    def holder(self, key: Subject) -> Subject:
        return self._found[subjects.KEY, key.replaced_by] if key.replaced_by else key

    def find(self, kind: str, id: str) -> Subject | None:
        return self._found.get((kind, id))


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key(text: str, alias: str | None = None, **more: Any) -> Subject:
    """A virtual key as the directory has it."""
    return Subject(kind=subjects.KEY, id=digest(text), alias=alias, last4=text[-4:], **more)
