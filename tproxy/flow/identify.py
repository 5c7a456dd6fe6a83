"""Who asks, and with which real credential the upstream is asked.

| access | who is let in | upstream credential |
|---|---|---|
| `keys` | the master key, and the virtual keys | one of `api_keys` |
| `open` | everybody (loopback only) | one of `api_keys` |
| `own` | whoever brings an Anthropic credential | that credential |

Keys are found by the SHA-256 of their whole text; the text itself is kept nowhere. A client's own credential leaves
this file only inside a `Credential`, whose repr is masked, and only in access mode `own`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from tproxy.errors import Header, KeyBlocked, KeyExpired, KeyMissing, KeyUnknown, RouteNotAllowed
from tproxy.protocol.headers import Credential, anthropic_token, deciding_credential, is_anthropic
from tproxy.protocol.keys import is_misspelt
from tproxy.store import subjects
from tproxy.store.subjects import Subject


class Directory(Protocol):
    """Who is known; see `store/directory.py`. Nothing here waits."""

    @property
    def version(self) -> int:
        """Another number whenever somebody may be known otherwise than before."""

    def key(self, digest: str) -> Subject | None:
        """The key with this SHA-256."""

    def holder(self, key: Subject) -> Subject:
        """The key whose money and limits a key counts against: its own, or those of the one that replaced it."""

    def find(self, kind: str, id: str) -> Subject | None:
        """A team, user, tag or the proxy; a customer only if it has a say in whether an exchange is let in."""


class Caller(Struct, frozen=True):
    """Who asks.

    `id` is what the ledger keeps: `key:<sha256 hex>`, `master`, `own:<sha256 hex>` or `anonymous`. `subjects` are the
    key, its team and its user, as far as they are known: what each of them forbids is forbidden. Nothing is refused
    to `master` for money or limits.
    """

    id: str
    alias: str | None = None
    team: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    subjects: tuple[Subject, ...] = ()

    @property
    def is_master(self) -> bool:
        return self.id == "master"


MASTER = Caller("master", alias="master")
ANONYMOUS = Caller("anonymous")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """What the proxy lets in, and what it asks the upstream with.

    Args:
        access: `keys`, `open` or `own`.
        master: SHA-256 hex of the master key, or None.
        directory: the virtual keys, and whose they are.
        api_keys: real Anthropic keys; empty only with `own`.
    """

    access: str
    master: str | None
    directory: Directory
    api_keys: Sequence[str] = field(repr=False)

    def identify(self, headers: Sequence[Header], now_us: int) -> tuple[Caller, Credential]:
        """Tell the caller and the credential to send upstream.

        Raises:
            BadRequest: contradicting credentials.
            KeyMissing, KeyUnknown, KeyExpired, KeyBlocked: not let in.
            RouteNotAllowed: the key is for the management API alone.
        """
        deciding = deciding_credential(headers)
        caller = self._known(deciding[1], now_us) if deciding else None
        if self.access == "own":
            return self._own(headers, deciding, caller)
        if caller is None:
            if self.access == "keys":
                raise self._refusal(deciding)
            caller = ANONYMOUS
        return caller, self._credential(caller, deciding[0] if deciding else b"")

    def name_of(self, credential: Credential) -> str:
        """How a credential of the upstream is called where it must not be seen: by its place in the settings, or that
        it is the client's own."""
        for place, key in enumerate(self.api_keys):
            if key.encode() == credential.value:
                return f"api_keys[{place}]"
        return "own"

    def _known(self, presented: bytes, now_us: int) -> Caller | None:
        digest = hashlib.sha256(presented).hexdigest()
        if self.master is not None and hmac.compare_digest(digest, self.master):
            return MASTER
        key = None if is_misspelt(presented) else self.directory.key(digest)
        return None if key is None else self._let_in(key, now_us)

    def _let_in(self, key: Subject, now_us: int) -> Caller:
        holder = self.directory.holder(key)
        team = self.directory.find(subjects.TEAM, holder.team) if holder.team else None
        user = self.directory.find(subjects.USER, holder.user) if holder.user else None
        for each in (key, holder, team, user):
            if each is not None and each.blocked:
                raise KeyBlocked(f"The {each.kind} {shown(each)!r} is blocked. Ask whoever runs this proxy.")
        for each in (key, holder):
            if each.expires_us is not None and each.expires_us <= now_us:
                raise KeyExpired(f"The key {shown(each)!r} has expired. Ask whoever runs this proxy for a new one.")
        if not holder.inference:
            raise RouteNotAllowed(f"The key {shown(holder)!r} is for the management API alone.")
        held_to = tuple(each for each in (holder, team, user) if each is not None)
        tags = (*holder.tags, *team.tags) if team is not None else holder.tags
        tags = tuple(dict.fromkeys(tags)) if tags else ()
        return Caller("key:" + holder.id, holder.alias, holder.team, holder.user, tags, held_to)

    def _own(
        self, headers: Sequence[Header], deciding: tuple[bytes, bytes] | None, caller: Caller | None
    ) -> tuple[Caller, Credential]:
        if caller is None and deciding is not None and deciding[1] and not is_anthropic(deciding[1]):
            raise KeyUnknown(f"The key in {deciding[0].decode()} is not known to this proxy, and is not Anthropic's.")
        token = anthropic_token(headers)
        if token is None or self._is_ours(token.value):
            raise KeyMissing(
                "This proxy forwards your own Anthropic credential (sk-ant-...), and the request has none. "
                "Send it as x-api-key or as Authorization: Bearer."
            )
        if caller is None:
            caller = Caller("own:" + hashlib.sha256(token.value).hexdigest())
        return caller, token

    def _is_ours(self, value: bytes) -> bool:
        digest = hashlib.sha256(value).hexdigest()
        return self.directory.key(digest) is not None or (
            self.master is not None and hmac.compare_digest(digest, self.master)
        )

    def _credential(self, caller: Caller, presented_in: bytes) -> Credential:
        # One caller always gets the same key: its files, batches and threads live in that key's workspace. Rendezvous
        # hashing keeps it so for all but a few when a key is added or taken away.
        key = self.api_keys[0]
        if len(self.api_keys) > 1:
            key = max(self.api_keys, key=lambda each: hashlib.sha256(f"{caller.id} {each}".encode()).digest())
        # As the caller would have sent it: newer SDKs as a bearer token, older ones as x-api-key. An OAuth token
        # is a bearer token only.
        bearer = presented_in == b"authorization" or key.startswith("sk-ant-oat")
        return Credential("bearer" if bearer else "x-api-key", key.encode())

    @staticmethod
    def _refusal(deciding: tuple[bytes, bytes] | None) -> KeyMissing | KeyUnknown:
        if deciding is None or not deciding[1]:
            return KeyMissing(
                "The request has no key. Send one of this proxy's keys as Authorization: Bearer, as x-api-key "
                "or as x-litellm-api-key."
            )
        why = "is misspelt: its checksum does not fit" if is_misspelt(deciding[1]) else "is not known to this proxy"
        return KeyUnknown(f"The key in {deciding[0].decode()} {why}.")


def shown(subject: Subject) -> str:
    """A subject's name for people. A key without an alias goes by its last four characters."""
    if subject.alias is None and subject.kind == subjects.KEY:
        return f"…{subject.last4 or ''}"
    return subject.alias or subject.id


def check_open(is_local: bool, origin: bytes | None) -> None:
    """What holds where everybody is let in: the request came from this machine, and not from some web page.

    Args:
        is_local: it came to a loopback address. The settings see to it, but hypercorn's own command can be told to
            bind elsewhere.
        origin: its Origin header. Browsers send it with every request that a page makes to another site and with
            every POST, and a page on the web can reach a loopback address.

    Raises:
        KeyMissing, RouteNotAllowed: it is not so.
    """
    if not is_local:
        raise KeyMissing('This proxy lets everybody in (access = "open"), and so serves loopback addresses only.')
    if origin is not None and not _is_local_origin(origin):
        raise RouteNotAllowed(
            'This proxy lets everybody in (access = "open"), and so serves no web page of another origin. '
            'Use access = "keys".'
        )


def _is_local_origin(origin: bytes) -> bool:
    try:
        host = urlsplit(origin.decode("ascii")).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
