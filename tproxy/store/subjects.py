"""Those who can be let in, held to terms and billed: values, and how they are written as one document.

| kind | id |
|---|---|
| `proxy` | the empty text: all that goes through |
| `key` | SHA-256 of the key, as 64 lowercase hex digits |
| `team`, `user`, `customer`, `tag` | the name that programs use for it |
| `terms` | the id of a set of terms that others refer to (LiteLLM: a budget) |

A key is never held, only its hash and, so that people recognise it, its last four characters.

Not known here: the database, and LiteLLM's names for the same things (`manage/translation.py`).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

PROXY = "proxy"
KEY = "key"
TEAM = "team"
USER = "user"
CUSTOMER = "customer"
TAG = "tag"
TERMS = "terms"

# What a caller may do on the management side (`Subject.role`); None: ask about itself.
ADMIN = "admin"
VIEWER = "viewer"


class Budget(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """So much in each `period` (see `tproxy/period.py`; None: for ever). `soft_nano` warns and refuses nothing.

    `further` is True of a first budget that is not what people call *the* budget, for there is none: see `Terms`.
    """

    period: str | None = None
    limit_nano: int | None = None
    soft_nano: int | None = None
    further: bool = False


class Terms(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """What a subject is held to; a figure that is None or missing holds nobody to anything.

    `budgets` have each period once; the first is what people call *the* budget, unless it is a `further` one. `mode` is
    EXPECTED, HARD or SOFT of `store/base.py`, None the setting's default; `wait` is in seconds, None the setting's.
    `rpm`, `tpm`, `itpm`, `otpm` are requests, tokens, input tokens and output tokens in any 60 seconds, `parallel`
    requests at a time; `model_rpm` and `model_tpm` the same for one model.
    """

    budgets: tuple[Budget, ...] = ()
    mode: str | None = None
    cut: bool = False
    wait: float | None = None
    rpm: int | None = None
    tpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    parallel: int | None = None
    model_rpm: dict[str, int] = {}
    model_tpm: dict[str, int] = {}

    @cached_property
    def limited(self) -> bool:
        """Is there a limit on requests or tokens? Kept beside the fields, and so no part of the document."""
        figures = (self.rpm, self.tpm, self.itpm, self.otpm, self.parallel)
        return any(figure is not None for figure in figures) or bool(self.model_rpm or self.model_tpm)


NO_TERMS = Terms()


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody in a team. `role` is `admin` or `user`."""

    user: str
    role: str = "user"
    email: str | None = None


class Subject(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One of the table above.

    Attributes:
        alias: a name for people; of keys, no two have the same.
        terms_of: the id of the TERMS that `terms` were taken from, and that change them when they change.
        models, routes: names or patterns with `*`; none means all.
        role: ADMIN, VIEWER or None.
        inference: whether a key opens the passthrough; False for one that is for the management side only.
        last4: the last four characters of a key.
        expires_us: from then on a key opens nothing.
        replaced_by: the hash of the key that took the place of this one, which goes on until `expires_us` as another
            name of it, with nothing of its own.
        members: of a team.
        in_file: it stands in the key file, and is changed there only.
        kept: what LiteLLM's API was told and gives back, and tproxy does not act upon.
    """

    kind: str
    id: str
    alias: str | None = None
    team: str | None = None
    user: str | None = None
    terms: Terms = NO_TERMS
    terms_of: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    blocked: bool = False
    role: str | None = None
    inference: bool = True
    last4: str | None = None
    expires_us: int | None = None
    replaced_by: str | None = None
    members: tuple[Member, ...] = ()
    in_file: bool = False
    kept: dict[str, Any] = {}
    created_us: int = 0
    created_by: str | None = None
    updated_us: int = 0
    updated_by: str | None = None

    @property
    def governs(self) -> bool:
        """Does it have a say in whether an exchange is let in?"""
        return self.blocked or bool(self.terms.budgets) or self.terms.limited or bool(self.models or self.routes)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Subject).decode


def to_document(subject: Subject) -> str:
    """The subject as JSON."""
    return _encode(subject).decode()


def from_document(document: str) -> Subject:
    """The subject that `to_document` wrote.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: it is none.
    """
    return _decode(document)
