"""The one documented exception to byte exactness: where a message batch says that its results are.

`results_url` is an absolute URL, and the official SDKs fetch it as it stands, with the key that they have.
Left alone it leads a client past tproxy: its proxy key goes to the upstream, which refuses it, and the only
place where the usage of a batch is told goes unseen (API reference, "Message Batches").

So the origin in that URL is replaced by our own, and nothing else: not another byte of the URL, the object
or the white space. This holds for string values called `results_url`, in a batch object and in the objects
of a list's `data`, and only where they start with the upstream's own origin. The body is never written anew:
the spans of those values are found in it, and the bytes around them are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from urllib.parse import unquote_to_bytes

_BATCHES = re.compile(rb"/v1/messages/batches(?P<id>/[^/]+(?P<cancel>/cancel)?)?/?")
_ORIGIN = re.compile(r"https?://[^/]*", re.IGNORECASE)
_DEFAULT_PORT = {"http": ":80", "https": ":443"}
_SPACE = re.compile(r"[ \t\n\r]*")
# One character of a JSON string as it is written.
_CHARACTER = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)

# Numbers are of no interest: as floats, none is too long to be read.
_JSON = json.JSONDecoder(parse_int=float)


def is_batch_object(method: str, path: bytes) -> bool:
    """Whether the answer is a batch object or a list of them: create, list, retrieve, cancel.

    Args:
        method: as sent, upper-case.
        path: the upstream's path, such as `/v1/messages/batches`, in any spelling, without the query.
    """
    found = _BATCHES.fullmatch(unquote_to_bytes(path))
    if found is None:
        return False
    if found["cancel"]:
        return method == "POST"
    return method == "GET" or (method == "POST" and not found["id"])


def rewrite_results_url(body: bytes, upstream_origin: bytes, own_base: bytes) -> bytes:
    """Put our own address into the `results_url` of a batch object, or of each in a list.

    Args:
        body: the decoded body (no content coding).
        upstream_origin: what is replaced, such as `https://api.anthropic.com`. Scheme and host count in any
            case, with or without the scheme's own port. It may have a path (an upstream behind a prefix).
        own_base: what it is replaced by, such as `http://127.0.0.1:4000/anthropic`.

    Returns:
        The body, with every other byte as it was; the very same object where there is nothing to replace or
        the body is not JSON in UTF-8.
    """
    try:
        text = body.decode()
        start = _skip_space(text, 0)
        if not isinstance(_JSON.decode(text), dict):
            return body
    except (ValueError, RecursionError):
        return body
    ours = json.dumps(own_base.decode().rstrip("/"))[1:-1]
    upstream = upstream_origin.decode().rstrip("/")
    pieces: list[str] = []
    done = 0
    for quote, url in _results_urls(text, start):
        if length := _length_of_base(url, upstream):
            pieces += (text[done : quote + 1], ours)
            done = _offset(text, quote + 1, length)
    return "".join((*pieces, text[done:])).encode() if pieces else body


def _results_urls(text: str, at: int, *, in_list: bool = False) -> Iterator[tuple[int, str]]:
    """The offset of the opening quote and the value of each `results_url` that counts, in the object at `at`.

    `text` is known to be JSON, so neither this nor what it calls looks for faults.
    """
    for name, value, start in _children(text, at):
        if name == "results_url" and isinstance(value, str):
            yield start, value
        elif name == "data" and isinstance(value, list) and not in_list:
            for _, item, item_start in _children(text, start):
                if isinstance(item, dict):
                    yield from _results_urls(text, item_start, in_list=True)


def _children(text: str, at: int) -> Iterator[tuple[object, object, int]]:
    """Name, value and offset of the value, for each member of the object or element of the array at `at`.

    The name of an element is `None`. A repeated member comes as often as it is written: readers differ in
    which of them they take.
    """
    end = "}" if text[at] == "{" else "]"
    at = _skip_space(text, at + 1)
    while text[at] != end:
        name: object = None
        if end == "}":
            name, at = _JSON.raw_decode(text, at)
            at = _skip_space(text, _skip_space(text, at) + 1)  # over the colon
        value, after = _JSON.raw_decode(text, at)
        yield name, value, at
        at = _skip_space(text, after)
        if text[at] == ",":
            at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _length_of_base(url: str, base: str) -> int:
    """How many characters of `url` spell `base`, if a "/" follows them; else 0."""
    theirs, ours = _ORIGIN.match(url), _ORIGIN.match(base)
    if theirs is None or ours is None or _canonical(theirs[0]) != _canonical(ours[0]):
        return 0
    path = base[ours.end() :]
    return theirs.end() + len(path) if url.startswith(path + "/", theirs.end()) else 0


def _canonical(origin: str) -> tuple[str, str]:
    """Scheme and authority as they are compared (RFC 3986 section 6.2)."""
    scheme, _, authority = origin.lower().partition("://")
    return scheme, authority.removesuffix(_DEFAULT_PORT[scheme])


def _offset(text: str, at: int, characters: int) -> int:
    """The offset after so many characters, at least one, of the JSON string whose content starts at `at`."""
    *_, last = islice(_CHARACTER.finditer(text, at), characters)
    return last.end()
