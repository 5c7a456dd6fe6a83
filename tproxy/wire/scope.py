"""The ASGI scope of a request (ASGI 3.0, HTTP specification 2.4).

It is made for every request, and looked at by the management side alone; so what costs time or memory is made when it
is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload
from urllib.parse import unquote

from tproxy.errors import Header
from tproxy.wire.opening import Opening

Message = dict[str, Any]

_ASGI = {"version": "3.0", "spec_version": "2.4"}


class LowerCased(Sequence[Header]):
    """Header fields with their names in lower case, as ASGI has them, without a copy of them."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Sequence[Header]) -> None:
        self._fields = fields

    def __len__(self) -> int:
        return len(self._fields)

    @overload
    def __getitem__(self, at: int) -> Header: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Header]: ...
    def __getitem__(self, at: int | slice) -> Header | Sequence[Header]:
        if isinstance(at, slice):
            return LowerCased(self._fields[at])
        name, value = self._fields[at]
        return name.lower(), value


def http_scope(opening: Opening, extension: object, connection: Message, state: Message) -> Message:
    """The scope of a request.

    Args:
        opening: its head.
        extension: what is offered as `scope["extensions"]["tproxy"]`.
        connection: `scheme`, `root_path`, `client` and `server`.
        state: the application's lifespan state, of which each request gets its own shallow copy.
    """
    raw_path, _, query = opening.target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": opening.http_version,
        "method": opening.method,
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": LowerCased(opening.headers),
        "state": state.copy(),
        "extensions": {"tproxy": extension},
        **connection,
    }
