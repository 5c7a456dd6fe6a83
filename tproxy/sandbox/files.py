"""The Files API: metadata of what was uploaded, and the content of what is small (API reference, "Files")."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from tproxy.sandbox.errors import ApiError, invalid
from tproxy.sandbox.multipart import Part
from tproxy.sandbox.shelf import Shelf

KEPT_BYTES = 1024 * 1024


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as the API writes times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One uploaded file. `content` is None where it was too large to keep; `sha256` is of all of it."""

    id: str
    filename: str
    mime_type: str
    size: int
    sha256: str
    created_at: float
    expires_at: float | None
    content: bytes | None

    def as_json(self) -> dict[str, Any]:
        """FileMetadata. Unlike the API, the sandbox hands small uploads out again."""
        return {
            "type": "file",
            "id": self.id,
            "filename": self.filename,
            "mime_type": self.mime_type,
            "size_bytes": self.size,
            "created_at": rfc3339(self.created_at),
            "expires_at": None if self.expires_at is None else rfc3339(self.expires_at),
            "downloadable": self.content is not None,
        }


class Files:
    """What was uploaded, newest first: at most 1,000 files, of whose content at most 64 MiB."""

    def __init__(self) -> None:
        self._files: Shelf[str, File] = Shelf(count=1000, weight=64 * KEPT_BYTES)

    def add(self, parts: list[Part], id_: str, now: float) -> File:
        """Take an upload: its part `file`, and `expires_in_seconds` if it is there.

        Raises:
            ApiError: 400.
        """
        form = {part.name: part for part in parts}
        upload = form.get("file")
        if upload is None:
            raise invalid("file: Field required")
        expires = None
        if "expires_in_seconds" in form:
            text = form["expires_in_seconds"].content.decode("latin-1")
            if not text.isdigit() or not 3600 <= int(text) <= 7_776_000:
                raise invalid("expires_in_seconds: Input should be between 3600 and 7776000")
            expires = now + int(text)
        whole = upload.size <= KEPT_BYTES
        file = File(
            id=id_,
            filename=(upload.filename or "unnamed").rpartition("/")[2],
            mime_type=upload.mime_type,
            size=upload.size,
            sha256=upload.sha256,
            created_at=now,
            expires_at=expires,
            content=bytes(upload.content) if whole else None,
        )
        self._files.put(file.id, file, upload.size if whole else 0)
        return file

    def get(self, id_: str) -> File:
        file = self._files.get(id_)
        if file is None:
            raise ApiError(404, f"File not found: {id_}")
        return file

    def content(self, id_: str) -> File:
        """A file whose content is there."""
        file = self.get(id_)
        if file.content is None:
            raise ApiError(400, f"File is not downloadable: {id_}", code="file_not_downloadable")
        return file

    def delete(self, id_: str) -> dict[str, Any]:
        self.get(id_)
        self._files.pop(id_)
        return {"type": "file_deleted", "id": id_}

    def newest(self) -> list[File]:
        return self._files.values()[::-1]
