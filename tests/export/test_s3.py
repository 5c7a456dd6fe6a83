"""Objects in a store that speaks S3: moto's own server, in a process of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store
from pydantic import SecretStr

from tests.export.receiver import receiving
from tests.export.stock import settled, with_export
from tests.store.laws import T0
from tproxy.export.s3 import S3Sink
from tproxy.export.sink import NotTaken
from tproxy.setting_tables import S3
from tproxy.tomlfile import SettingsFault

DAY_US = 86_400_000_000
TODAY = T0 - T0 % DAY_US
SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
import boto3
boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
             aws_access_key_id="id", aws_secret_access_key="secret").create_bucket(Bucket="books")
print(port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A store with the bucket `books`."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()
            server.kill()


def table(endpoint: str, **changes: Any) -> S3:
    said: dict[str, Any] = {
        "bucket": "books",
        "access_key_id": SecretStr("id"),
        "secret_access_key": SecretStr("secret"),
    }
    return S3(endpoint=endpoint, **(said | changes))


def objects(endpoint: str, prefix: str) -> dict[str, list[int]]:
    """The numbers in each object."""
    store = S3Store(
        "books",
        config={"endpoint": endpoint, "access_key_id": "id", "secret_access_key": "secret", "region": "us-east-1"},
        client_options={"allow_http": True},
    )
    found = {}
    for one in obstore.list(store, prefix).collect():
        text = gzip.decompress(bytes(obstore.get(store, one["path"]).bytes())).decode()
        found[one["path"]] = [json.loads(line)["seq"] for line in text.splitlines()]
    return found


async def test_objects_by_day_that_may_be_written_again(endpoint: str) -> None:
    sink = S3Sink(table(endpoint, prefix="/one/"))
    batch = [settled(1, ended_us=TODAY), settled(2, ended_us=TODAY + DAY_US - 1), settled(3, ended_us=TODAY + DAY_US)]
    for _ in range(2):
        await sink.send(batch)
    await sink.send([settled(4, ended_us=TODAY + DAY_US)])
    await sink.aclose()
    assert objects(endpoint, "one") == {
        "one/2025/11/24/000000000001-000000000002.jsonl.gz": [1, 2],
        "one/2025/11/25/000000000003-000000000003.jsonl.gz": [3],
        "one/2025/11/25/000000000004-000000000004.jsonl.gz": [4],
    }


async def test_the_machines_own_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    sink = S3Sink(table(endpoint, prefix="", access_key_id=None, secret_access_key=None))
    await sink.send([settled(9, ended_us=TODAY)])
    assert objects(endpoint, "2025") == {"2025/11/24/000000000009-000000000009.jsonl.gz": [9]}


async def test_no_such_bucket_is_final(endpoint: str) -> None:
    sink = S3Sink(table(endpoint, bucket="nobodys"))
    with pytest.raises(NotTaken) as caught:
        await sink.send([settled(1)])
    assert (caught.value.why, caught.value.final) == ("there is no such bucket", True)


@pytest.mark.parametrize(("status", "final"), [(403, True), (401, True), (500, False), (503, False), (429, False)])
async def test_what_a_store_says_is_not_told_on(status: int, final: bool) -> None:
    async with receiving() as receiver:
        receiver.status, receiver.answer = status, b"<Error>secret</Error>"
        sink = S3Sink(table(f"http://127.0.0.1:{receiver.port}"))
        with pytest.raises(NotTaken) as caught:
            await sink.send([settled(1)])
        assert caught.value.final is final
        assert "secret" not in str(caught.value)
        assert receiver.asked == 1
        receiver.status = 200
        await sink.send([settled(1)])
    (put,) = receiver.taken
    assert (put.method, put.path) == ("PUT", "/books/exchanges/2025/11/24/000000000001-000000000001.jsonl.gz")


async def test_an_object_that_is_written_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [settled(number, ended_us=TODAY) for number in (1, 2)]
    async with receiving() as receiver:
        for now in (1_800_000_000.0, 1_800_000_100.0):
            monkeypatch.setattr(time, "time", partial(float, now))
            sink = S3Sink(table(f"http://127.0.0.1:{receiver.port}"))
            await sink.send(batch)
            await sink.aclose()
    first, second = receiver.taken
    assert (first.path, first.body) == (second.path, second.body)


def test_one_credential_alone_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match="both access_key_id and secret_access_key") as caught:
        with_export(tmp_path, '[tproxy.export.s3]\nbucket = "books"\naccess_key_id = "AKIASECRET"')
    assert "AKIASECRET" not in str(caught.value)


def test_a_webhook_secret_that_is_no_key_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match="base64") as caught:
        with_export(tmp_path, '[tproxy.export.webhook]\nsecret = "whsec_***"')
    assert "***" not in str(caught.value)
