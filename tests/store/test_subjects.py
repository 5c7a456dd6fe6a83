from __future__ import annotations

import json

import msgspec
import pytest

from tproxy.store.subjects import KEY, NO_TERMS, Budget, Member, Subject, Terms, from_document, to_document

FULL = Subject(
    kind=KEY,
    id="ab" * 32,
    alias="ü \"'\n",
    team="t",
    user="u",
    terms=Terms(
        budgets=(Budget("1mo", 10**18, 5), Budget(limit_nano=7)),
        mode="hard",
        cut=True,
        wait=2.5,
        rpm=1,
        tpm=2,
        itpm=3,
        otpm=4,
        parallel=5,
        model_rpm={"claude-*": 6},
        model_tpm={"m": 7},
    ),
    terms_of="gold",
    models=("claude-*",),
    routes=("/v1/messages",),
    tags=("a", "b"),
    metadata={"room": {"floor": [2, None, 1.5, "ß"]}},
    blocked=True,
    role="admin",
    inference=False,
    last4="wxyz",
    expires_us=1,
    replaced_by="cd" * 32,
    members=(Member("u", "admin", "u@example.com"), Member("v")),
    kept={"aliases": {}},
    created_us=2,
    created_by="master",
    updated_us=3,
    updated_by="x",
)


@pytest.mark.parametrize("subject", [FULL, Subject(kind="customer", id="c")], ids=["everything", "nothing"])
def test_a_document_says_all_of_a_subject(subject: Subject) -> None:
    assert from_document(to_document(subject)) == subject


def test_the_document_of_a_subject_with_nothing_is_short() -> None:
    assert json.loads(to_document(Subject(kind="customer", id="c"))) == {"kind": "customer", "id": "c"}


def test_a_document_of_a_later_version_is_read_but_for_terms_that_nobody_would_hold_to() -> None:
    assert from_document('{"kind":"tag","id":"t","later":1}') == Subject(kind="tag", id="t")
    for terms in ('{"tpd":5}', '{"budgets":[{"limit_tokens":5}]}'):
        with pytest.raises(msgspec.ValidationError):
            from_document('{"kind":"tag","id":"t","terms":' + terms + "}")


GOVERNS: dict[str, tuple[dict[str, object], bool]] = {
    "nothing": ({}, False),
    "only a name": ({"alias": "a", "tags": ("t",), "metadata": {"a": 1}}, False),
    "blocked": ({"blocked": True}, True),
    "a budget": ({"terms": Terms(budgets=(Budget(),))}, True),
    "requests": ({"terms": Terms(rpm=0)}, True),
    "tokens": ({"terms": Terms(otpm=5)}, True),
    "parallel": ({"terms": Terms(parallel=1)}, True),
    "of a model": ({"terms": Terms(model_tpm={"m": 1})}, True),
    "models": ({"models": ("m",)}, True),
    "routes": ({"routes": ("/v1/*",)}, True),
    "a mode alone": ({"terms": Terms(mode="hard", cut=True, wait=1)}, False),
}


@pytest.mark.parametrize(("fields", "governs"), GOVERNS.values(), ids=GOVERNS)
def test_who_has_a_say(fields: dict[str, object], governs: bool) -> None:
    subject = msgspec.structs.replace(Subject(kind="customer", id="c"), **fields)
    assert subject.governs is governs


def test_no_terms_hold_nobody_to_anything() -> None:
    assert not NO_TERMS.budgets
    assert not NO_TERMS.limited


def test_what_is_kept_beside_the_fields_is_no_part_of_them() -> None:
    terms = Terms(rpm=1)
    document = to_document(Subject(kind=KEY, id="k", terms=terms))
    assert terms.limited
    assert to_document(Subject(kind=KEY, id="k", terms=terms)) == document
    assert terms == Terms(rpm=1)
    assert not msgspec.structs.replace(terms, rpm=None).limited
