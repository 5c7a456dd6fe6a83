"""Where each kind of sink puts exchanges, to be taken away and given back by a test."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.export.receiver import Receiver, receiving

KINDS = ["jsonl", "webhook", "otlp", "s3"]


class Place(Protocol):
    """
    Attributes:
        tables: what names it in the settings.
        other: the same with something else changed.
    """

    tables: str
    other: str

    def down(self) -> None: ...

    def up(self) -> None: ...

    def ids(self) -> list[str]:
        """Of the exchanges that have arrived, in the order in which they did."""


class Directory:
    def __init__(self, folder: Path) -> None:
        self._directory, self._away = folder / "exports", folder / "away"
        self.tables = '[tproxy.export.jsonl]\ndirectory = "exports"\nmax_file_bytes = 20000'
        self.other = '[tproxy.export.jsonl]\ndirectory = "exports"\nmax_file_bytes = 10'

    def down(self) -> None:
        self._directory.rename(self._away)
        self._directory.touch()

    def up(self) -> None:
        self._directory.unlink()
        self._away.rename(self._directory)

    def ids(self) -> list[str]:
        if not self._directory.is_dir():
            return []
        return [
            json.loads(line)["id"]
            for file in sorted(self._directory.iterdir())
            for line in file.read_text().splitlines()
        ]


class Hook:
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.tables = f'[tproxy.export.webhook]\nurl = "{receiver.url}"\nsecret = "whsec_c2VjcmV0"'
        self.other = f'[tproxy.export.webhook]\nurl = "{receiver.url}"'

    def down(self) -> None:
        self.receiver.status = 503

    def up(self) -> None:
        self.receiver.status = 200

    def ids(self) -> list[str]:
        return [one["id"] for taken in self.receiver.taken for one in json.loads(taken.body)["exchanges"]]


class Bucket(Hook):
    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self.tables = f"""[tproxy.export.s3]
bucket = "books"
endpoint = "http://127.0.0.1:{receiver.port}"
access_key_id = "id"
secret_access_key = "secret"
every_seconds = 2"""
        self.other = self.tables + '\nprefix = "others"'

    def ids(self) -> list[str]:
        return [
            json.loads(line)["id"]
            for taken in self.receiver.taken
            for line in gzip.decompress(taken.body).decode().splitlines()
        ]


class Collector(Hook):
    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self.tables = f'[tproxy.export.otlp]\nendpoint = "http://127.0.0.1:{receiver.port}"'
        self.other = self.tables + '\nservice_name = "other"'
        receiver.answer = b""

    def ids(self) -> list[str]:
        return [
            next(attribute.value.string_value for attribute in span.attributes if attribute.key == "tproxy.exchange.id")
            for taken in self.receiver.taken
            for resource in ExportTraceServiceRequest.FromString(gzip.decompress(taken.body)).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


PLACES = {"webhook": Hook, "otlp": Collector, "s3": Bucket}


@asynccontextmanager
async def open_place(kind: str, folder: Path) -> AsyncIterator[Place]:
    if kind == "jsonl":
        yield Directory(folder)
        return
    async with receiving() as receiver:
        yield PLACES[kind](receiver)
