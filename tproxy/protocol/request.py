"""What is read from a request body, and the one member that may be taken out of it.

A body is looked at by its top-level members alone: their names are read, their values stay unbuilt spans of the
body until one of them is asked for. So a body of 1 MB costs about as much as one pass over its bytes.

The rule that matters is: never read another model than the upstream will read. What counts as JSON is therefore
judged as strictly as the Messages API does it (no lone surrogates, no NaN, no byte order mark, no endless nesting),
and a member that occurs twice, in any spelling of its name, has no value here: parsers differ on which one counts.
Whatever is in doubt is left `None`, and `RequestFacts.problem` says why. A doubtful body is still relayed as it
came: what to do about it is the upstream's affair, or the caller's limits'.

`litellm_metadata` is not Anthropic's: it is read for the books and removed on the way (`strip_litellm_metadata`).
What it and `metadata` hold is used to attribute an exchange and for nothing else, so a wrong type there is no
problem: it is passed over. Texts taken for attribution are cut off at 256 characters and NUL, which no database
takes, is left out of them; tags after the 64th are dropped. What is spelled at far greater length is passed over
unread, so that no body costs more than that one pass.

Not known here: which requests have such a body, and whether the body was compressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import Raw

_MAX_MEMBERS = 1_000
_MAX_TEXT = 256
_MAX_TAGS = 64
_MAX_TAG_BYTES = 256 * 1024  # 64 tags of 256 characters, each spelled as two \uXXXX, with room to spare
_MAX_INTEGER = 2**53
_MAX_TEXT_BYTES = 16 * 1024
_MAX_METADATA_BYTES = 1024 * 1024

# The members that decide what is served and what it costs: each must stand alone.
_DECISIVE = frozenset({"model", "stream", "max_tokens", "service_tier", "speed", "inference_geo"})
_NULL = Raw(b"null")

T = TypeVar("T")


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request body says of itself; `None` where it says nothing, or nothing that can be relied upon.

    `user_id` is `metadata.user_id`, `session` the session named inside it (the form of Claude Code).
    `service_tier`, `speed` and `inference_geo` are as asked; the answer has the last word on them.
    `problem` is one sentence on why a value in doubt was left out; it holds nothing of the body.
    """

    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    user_id: str | None = None
    session: str | None = None
    litellm_user: str | None = None
    litellm_tags: tuple[str, ...] = ()
    has_litellm_metadata: bool = False
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    problem: str | None = None


class _Metadata(msgspec.Struct):
    user_id: Raw = Raw()


class _LitellmMetadata(msgspec.Struct):
    user: Raw = Raw()
    tags: Raw = Raw()


class _ClaudeCodeUser(msgspec.Struct):
    session_id: Raw = Raw()


_decode_text = msgspec.json.Decoder(str).decode
_decode_int = msgspec.json.Decoder(int).decode
_decode_bool = msgspec.json.Decoder(bool).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_decode_litellm_metadata = msgspec.json.Decoder(_LitellmMetadata).decode
_decode_claude_code_user = msgspec.json.Decoder(_ClaudeCodeUser).decode


class _Name:
    """A member's name, equal to no other: in a dict keyed by it, a member that occurs twice is there twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Unreadable(Exception):
    """The body has no members that can be relied upon; the message is the `problem`."""


def read_request(body: bytes) -> RequestFacts:
    """Read what the proxy needs from the body of a request. Never raises.

    Args:
        body: the whole body, without its content coding.
    """
    try:
        members = _members(body)
    except _Unreadable as error:
        return RequestFacts(problem=str(error))
    values: dict[str, Raw] = {}
    repeated: list[str] = []
    for name, value in members:
        if name in values and name in _DECISIVE:
            repeated.append(name)
        values[name] = value
    for name in repeated:
        values[name] = _NULL

    problem = None
    model = _value(values.get("model"), _decode_text, _MAX_TEXT_BYTES)
    if repeated:
        problem = f"The member {repeated[0]!r} occurs more than once."
    elif "model" in values and (model is None or len(model) > _MAX_TEXT or "\0" in model):
        model = None
        problem = f"The member 'model' is not a text of at most {_MAX_TEXT} characters."
    max_tokens = _value(values.get("max_tokens"), _decode_int)
    user_id, session = _metadata(values.get("metadata"))
    litellm_user, litellm_tags = _litellm_metadata(values.get("litellm_metadata"))
    return RequestFacts(
        model=model,
        stream=_value(values.get("stream"), _decode_bool) or False,
        max_tokens=max_tokens if max_tokens is not None and 0 <= max_tokens <= _MAX_INTEGER else None,
        user_id=user_id,
        session=session,
        litellm_user=litellm_user,
        litellm_tags=litellm_tags,
        has_litellm_metadata="litellm_metadata" in values,
        service_tier=_text(values.get("service_tier")),
        speed=_text(values.get("speed")),
        inference_geo=_text(values.get("inference_geo")),
        problem=problem,
    )


_WHITE = rb"[ \t\n\r]*+"
_NAME = re.compile(_WHITE + rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")' + _WHITE + b":" + _WHITE, re.DOTALL)
_NEXT = re.compile(_WHITE + rb"([,}])")


def strip_litellm_metadata(body: bytes) -> bytes:
    """Return the body without its top-level `litellm_metadata`, however the name is spelled and however often.

    Each one goes with one comma and the white space between the two: the comma before it, or the one after it
    where no other member stands before. Every other byte is kept. A body that has no such member, or that
    `read_request` cannot read, is returned as the same object.
    """
    if b"litellm_metadata" not in body and b"\\u" not in body:
        return body
    try:
        members = _members(body)
    except _Unreadable:
        return body
    if all(name != "litellm_metadata" for name, _ in members):
        return body

    kept: list[bytes] = []
    copied = 0  # the end of what is copied or left out
    comma_before = 0  # where the comma before the member is
    stays = False  # whether a member that stays has been passed
    position = body.index(b"{") + 1
    for name, value in members:
        head = _NAME.match(body, position)
        end = head.end() + len(memoryview(value)) if head else 0
        tail = _NEXT.match(body, end)
        if head is None or tail is None:
            return body
        position = tail.end()
        if name != "litellm_metadata":
            stays = True
        elif stays:
            kept.append(body[copied:comma_before])
            copied = end
        else:
            kept.append(body[copied : head.start(1)])
            copied = position if tail[1] == b"," else end
        comma_before = tail.start(1)
    kept.append(body[copied:])
    return b"".join(kept)


def _members(body: bytes) -> list[tuple[str, Raw]]:
    """The top-level members in their order, repeated ones too. A value is the span of the body that holds it.

    Raises:
        _Unreadable: the body is not one JSON object, or one that has too many members.
    """
    count = 0

    def named(_: type, text: str) -> _Name:
        nonlocal count
        count += 1
        if count > _MAX_MEMBERS:
            raise ValueError("too many")
        return _Name(text)

    try:
        found = msgspec.json.decode(body, type=dict[_Name, Raw], dec_hook=named)
    except RecursionError:
        raise _Unreadable("The body is nested too deeply to be read.") from None
    except ValueError as error:
        if count > _MAX_MEMBERS:
            raise _Unreadable(f"The body has more than {_MAX_MEMBERS:,} top-level members.") from None
        if isinstance(error, msgspec.ValidationError):
            raise _Unreadable("The body is JSON, but not an object.") from None
        raise _Unreadable("The body is not valid JSON.") from None
    return [(name.text, value) for name, value in found.items()]


def _value(raw: Raw | None, decode: Callable[[Raw], T], max_bytes: int = _MAX_METADATA_BYTES) -> T | None:
    """The value of a member, or `None` where it is absent, null, not of this kind, or spelled in too many bytes."""
    if raw is None or not 0 < len(memoryview(raw)) <= max_bytes:
        return None
    try:
        return decode(raw)
    except (ValueError, RecursionError):
        return None


def _text(raw: Raw | None) -> str | None:
    """A text as it is kept for attribution: not empty, no NUL, at most 256 characters."""
    return _kept(_value(raw, _decode_text, _MAX_TEXT_BYTES)) if raw is not None else None


def _kept(text: str | None) -> str | None:
    return text.replace("\0", "")[:_MAX_TEXT] or None if text else None


# Claude Code before 2.1.78: user_<hash>_account_<uuid or nothing>_session_<uuid>.
_OLD_SESSION = re.compile(r"user_.*_session_([0-9A-Za-z-]{1,64})", re.DOTALL)


def _metadata(raw: Raw | None) -> tuple[str | None, str | None]:
    """The user and the session from `metadata`. Claude Code puts a JSON object into the user's id as a string."""
    metadata = _value(raw, _decode_metadata)
    if metadata is None:
        return None, None
    user_id = _value(metadata.user_id, _decode_text, _MAX_TEXT_BYTES)
    if not user_id:
        return None, None
    old = _OLD_SESSION.fullmatch(user_id)
    user = _value(Raw(user_id), _decode_claude_code_user)
    session = old[1] if old else _text(user.session_id) if user else None
    return _kept(user_id), session


def _litellm_metadata(raw: Raw | None) -> tuple[str | None, tuple[str, ...]]:
    """The user and the tags from `litellm_metadata`: tags that are texts, in their order, each once."""
    metadata = _value(raw, _decode_litellm_metadata)
    if metadata is None:
        return None, ()
    spelled = _value(metadata.tags, _decode_list, _MAX_TAG_BYTES) or ()
    tags = dict.fromkeys(tag for item in spelled if (tag := _text(item)))
    return _text(metadata.user), tuple(tags)[:_MAX_TAGS]
