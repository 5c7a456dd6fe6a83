"""From a request to its reply: who asks, what is asked, what the script says. No I/O.

The order is that of the API as far as it shows: credential, version, path, body. A script that refuses (`status`,
`fail`) does so once the request is known to be authentic.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from tproxy.sandbox import asked as requests
from tproxy.sandbox.batches import Batch, Batches, Line, requests_of
from tproxy.sandbox.body import Body
from tproxy.sandbox.books import Books, Entry
from tproxy.sandbox.cache import PromptCache, size
from tproxy.sandbox.catalogue import MODELS, find, info
from tproxy.sandbox.coding import decoded
from tproxy.sandbox.errors import ApiError, invalid, scripted
from tproxy.sandbox.events import streamed
from tproxy.sandbox.files import KEPT_BYTES, Files
from tproxy.sandbox.messages import Answer, answer
from tproxy.sandbox.multipart import MultipartReader
from tproxy.sandbox.paging import by_cursor, by_ids
from tproxy.sandbox.received import MIB, Head, Intake
from tproxy.sandbox.reply import Reply, reply
from tproxy.sandbox.script import TAG, Script
from tproxy.sandbox.shelf import Shelf
from tproxy.sandbox.text import count, prose

_VERSION = re.compile(rb"\d{4}-\d{2}-\d{2}")
_LETTERS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LARGEST = {"/v1/messages/batches": 256 * MIB, "/v1/files": 500 * MIB}
_METHODS = {"GET", "HEAD", "POST", "DELETE"}


@dataclass(slots=True, kw_only=True)
class Call:
    """One request on its way to its reply. `clock` is monotonic, `now` is seconds since the epoch."""

    head: Head
    intake: Intake
    script: Script
    entry: Entry
    clock: float
    now: float

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        coding = self.head.get(b"content-encoding")
        return requests.read_json(decoded(self.intake.body, coding, most=256 * MIB))

    def reply(self, value: object) -> Reply:
        return self.send(Body.whole(msgspec.json.encode(value)))

    def send(self, body: Body, content_type: bytes = b"application/json", *, streamed: bool = False) -> Reply:
        return reply(self.head, self.script, self.entry, content_type=content_type, body=body, streamed=streamed)

    def refuse(self, fault: ApiError) -> Reply:
        return reply(
            self.head,
            self.script,
            self.entry,
            status=fault.status,
            content_type=fault.content_type,
            body=Body.whole(fault.body(self.entry.request_id)),
            headers=fault.headers,
        )


class Api:
    """The endpoints and what they remember.

    Args:
        origin: the sandbox's own, `http://host:port`.
        books: where each request gets an entry.
        keys: the credentials that are accepted; None: any.
        default: the script of a request that brings none.
    """

    def __init__(self, *, origin: str, books: Books, keys: frozenset[str] | None, default: Script) -> None:
        self._books = books
        self._keys = keys
        self._default = default
        self._cache = PromptCache()
        self._files = Files()
        self._batches = Batches(origin, books)
        self._failed: Shelf[str, int] = Shelf(count=1024)

    def intake(self, head: Head) -> Intake:
        """What takes a request's body."""
        most = _LARGEST.get(head.path, 32 * MIB)
        if head.method == "POST" and head.path == "/v1/files":
            try:
                reader = MultipartReader(head.get(b"content-type") or b"", keep=KEPT_BYTES)
            except ApiError:
                return Intake(most=most, keep=0)
            return Intake(most=most, keep=KEPT_BYTES, reader=reader)
        return Intake(most=most, keep=most)

    def early(self, head: Head, now: float) -> Reply | None:
        """The refusal of a request whose script wants it before its body is read."""
        call = self._call(head, self.intake(head), now, 0)
        try:
            call.script = self._told(head)
        except ApiError:
            return None  # it is refused when it has been read
        if not call.script.early_answer:
            return None
        fault = scripted(call.script.early_answer, call.script.retry_after)
        call.script = Script()  # nothing else of it holds
        self._books.open(call.entry)
        return call.refuse(fault)

    def answer(self, head: Head, intake: Intake, *, now: float, clock: float) -> Reply:
        """The reply to a request that has been read. Never raises an ApiError: that is a reply, too."""
        call = self._call(head, intake, now, clock)
        private = head.path.startswith("/sandbox/")
        if not private:
            self._books.open(call.entry)
        try:
            call.script = self._told(head)
            if not private and not (head.method == "HEAD" and head.path == "/"):
                self._authenticate(head)
            return self._route(call)
        except ApiError as fault:
            return call.refuse(fault)

    def refuse(self, head: Head, fault: ApiError, *, now: float) -> Reply:
        """The refusal of a request that has not been read to its end."""
        call = self._call(head, Intake(most=0, keep=0), now, 0)
        self._books.open(call.entry)
        return call.refuse(fault)

    def _call(self, head: Head, intake: Intake, now: float, clock: float) -> Call:
        request_id = "req_011C" + _letters(secrets.token_bytes(16))
        entry = Entry(request_id=request_id, method=head.method, path=head.path, received_at=now)
        return Call(head=head, intake=intake, script=self._default, entry=entry, clock=clock, now=now)

    def _told(self, head: Head) -> Script:
        """The script that a request brings in its header."""
        return _changed(self._default, (head.get(b"x-sandbox") or b"").decode("latin-1"))

    def _authenticate(self, head: Head) -> None:
        """Some credential, and where keys are named, no other one: a second, unknown one would be a leak."""
        shown = [value.decode("latin-1") for name, value in head.headers if name.lower() == b"x-api-key"]
        for name, value in head.headers:
            if name.lower() == b"authorization":
                scheme, _, token = value.decode("latin-1").partition(" ")
                shown.append(token.strip() if scheme.lower() == "bearer" else "")
        if not any(shown):
            raise ApiError(401, "x-api-key header is required")
        if self._keys is not None and not self._keys.issuperset(shown):
            raise ApiError(401)
        version = head.get(b"anthropic-version")
        if version is not None and not _VERSION.fullmatch(version):
            raise invalid(f'anthropic-version: "{version.decode("latin-1")}" is not a valid version')

    def _obey(self, script: Script) -> None:
        """Refuse, if the script says so."""
        if script.fail:
            before = self._failed.get(script.id) or 0
            self._failed.put(script.id, before + 1)
            if before < script.fail:
                raise scripted(script.status or 529, script.retry_after)
        elif script.status:
            raise scripted(script.status, script.retry_after)

    def _route(self, call: Call) -> Reply:
        method = "GET" if call.head.method == "HEAD" else call.head.method
        path = call.head.path.split("/")[1:]
        if (method, path) == ("POST", ["v1", "messages"]):
            return self._messages(call)  # which may bring its script in its text
        self._obey(call.script)
        query = call.head.query
        match method, path:
            case "POST", ["v1", "messages", "count_tokens"]:
                asked = requests.read(call.json(), counting=True)
                tokens: dict[str, Any] = {"input_tokens": size(asked)}
                if asked.context_management:
                    tokens["context_management"] = {"original_input_tokens": tokens["input_tokens"]}
                return call.reply(tokens)
            case "POST", ["v1", "messages", "batches"]:
                return call.reply(self._batches.add(self._batch(call)))
            case "GET", ["v1", "messages", "batches"]:
                return call.reply(by_ids(self._batches.newest(call.now), query))
            case "GET", ["v1", "messages", "batches", id_]:
                return call.reply(self._batches.show(id_, call.now))
            case "DELETE", ["v1", "messages", "batches", id_]:
                return call.reply(self._batches.delete(id_, call.now))
            case "POST", ["v1", "messages", "batches", id_, "cancel"]:
                return call.reply(self._batches.cancel(id_, call.now))
            case "GET", ["v1", "messages", "batches", id_, "results"]:
                return call.send(self._batches.results(id_, call.now), b"application/x-jsonl", streamed=True)
            case "POST", ["v1", "files"]:
                MultipartReader(call.head.get(b"content-type") or b"", keep=0)  # raises for what is no upload
                id_ = "file_011C" + _letters(secrets.token_bytes(16))
                return call.reply(self._files.add(call.intake.parts(), id_, call.now).as_json())
            case "GET", ["v1", "files"]:
                return call.reply(by_cursor([file.as_json() for file in self._files.newest()], query))
            case "GET", ["v1", "files", id_]:
                return call.reply(self._files.get(id_).as_json())
            case "DELETE", ["v1", "files", id_]:
                return call.reply(self._files.delete(id_))
            case "GET", ["v1", "files", id_, "content"]:
                file = self._files.content(id_)
                return call.send(Body.whole(file.content or b""), file.mime_type.encode("latin-1", "replace"))
            case "GET", ["v1", "models"]:
                shown = query.get("lifecycle") or query.get("lifecycle[]") or ["active", "deprecated"]
                return call.reply(by_ids([info(model) for model in MODELS if model.lifecycle in shown], query))
            case "GET", ["v1", "models", id_]:
                model = find(id_)
                if model is None:
                    raise ApiError(404, f"model: {id_}")
                return call.reply(info(model))
            case "POST", ["v1", "complete"]:
                return self._complete(call)
            case "GET", [""] if call.head.method == "HEAD":
                return call.send(Body.whole(b""))
            case "GET", ["sandbox", "books"]:
                return call.reply(self._books.as_json())
            case "DELETE", ["sandbox", "books"]:
                self._books.reset()
                return call.reply({})
        if call.head.method not in _METHODS:
            raise ApiError(405, "Method Not Allowed", headers=((b"allow", b"GET, HEAD, POST, DELETE"),))
        raise ApiError(404)

    def _messages(self, call: Call) -> Reply:
        try:
            asked = requests.read(call.json())
        except ApiError:
            self._obey(call.script)
            raise
        if tag := next((tag for block in asked.last_blocks if (tag := TAG.search(block.get("text") or ""))), None):
            told = (call.head.get(b"x-sandbox") or b"").decode("latin-1")
            call.script = _changed(_changed(self._default, tag[1]), told)
        call.entry.model, call.entry.stream = asked.model, asked.stream
        self._obey(call.script)
        made = self._made(asked, call.script, call.intake.body, call.clock)
        call.entry.model, call.entry.bills = made.model_served, made.bills
        if asked.stream:
            body = streamed(made, call.script, call.entry.request_id)
            return call.send(body, b"text/event-stream; charset=utf-8", streamed=True)
        if call.script.tps:  # in one piece, an answer takes as long as its tokens would
            wait = call.script.ttft + made.output_tokens / call.script.tps
            call.script = dataclasses.replace(call.script, ttft=wait, tps=0)
        return call.send(Body.whole(msgspec.json.encode(made.message()), made.output_tokens))

    def _made(self, asked: requests.Asked, script: Script, body: bytes, clock: float, tier: str = "standard") -> Answer:
        """The answer to a request; the same bytes and the same cache give the same answer."""
        name = "01" + _letters(hashlib.sha256(b"%d %b" % (script.seed or 0, body)).digest()[:16])
        return answer(asked, script, self._cache.account(asked, clock), name, tier=tier)

    def _batch(self, call: Call) -> Batch:
        lines = []
        for custom_id, params in requests_of(call.json()):
            try:
                asked = requests.read(params)
                if asked.stream:
                    raise invalid("stream: streaming is not supported in batches")
            except ApiError as fault:
                error = {"type": "errored", "error": fault.envelope(None)}
                lines.append(Line(custom_id, "errored", msgspec.json.encode(error)))
                continue
            made = self._made(asked, call.script, msgspec.json.encode([custom_id, params]), call.clock, "batch")
            result = {"type": "succeeded", "message": made.message()}
            lines.append(Line(custom_id, "succeeded", msgspec.json.encode(result), made.bills))
        return Batch(
            id="msgbatch_01" + _letters(secrets.token_bytes(16)),
            created_at=call.now,
            ends_at=call.now + call.script.batch_seconds,
            lines=lines,
        )

    def _complete(self, call: Call) -> Reply:
        """Text Completions, the API before Messages: enough of it to be told apart."""
        value = call.json()
        for name, type_ in (("model", str), ("prompt", str), ("max_tokens_to_sample", int)):
            if type(value.get(name)) is not type_:
                raise invalid(f"{name}: Field required")
        call.entry.model = value["model"]
        tokens = min(call.script.tokens, value["max_tokens_to_sample"])
        said = "".join(piece for piece, _ in prose(count(value["prompt"]), tokens))
        return call.reply(
            {
                "type": "completion",
                "id": "compl_01" + _letters(hashlib.sha256(call.intake.body).digest()[:16]),
                "completion": " " + said,
                "stop_reason": "stop_sequence" if tokens == call.script.tokens else "max_tokens",
                "stop": None,
                "model": value["model"],
                "log_id": call.entry.request_id,
            }
        )


def _changed(script: Script, text: str) -> Script:
    try:
        return script.with_(text)
    except ValueError as fault:
        raise invalid(f"x-sandbox: {fault}") from fault


def _letters(data: bytes) -> str:
    """Bytes as letters and digits that are hard to mistake for each other; 22 for 16 bytes."""
    number = int.from_bytes(data, "big")
    return "".join(_LETTERS[number // 58**place % 58] for place in range(22))
