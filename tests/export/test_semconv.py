"""The names are those of the conventions, and stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import (
    gen_ai_attributes,
    http_attributes,
    server_attributes,
    service_attributes,
    session_attributes,
    url_attributes,
    user_agent_attributes,
    user_attributes,
)
from opentelemetry.semconv.attributes import error_attributes

from tproxy.export import semconv

ROOT = Path(__file__).parent.parent.parent
MODULES = [
    error_attributes,
    gen_ai_attributes,
    http_attributes,
    server_attributes,
    service_attributes,
    session_attributes,
    url_attributes,
    user_agent_attributes,
    user_attributes,
]
KNOWN = {value for module in MODULES for value in vars(module).values() if isinstance(value, str)}
OURS = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)} - {
    semconv.VERSION,
    semconv.SCHEMA_URL,
    semconv.ANTHROPIC,
    semconv.CHAT,
    semconv.TEXT_COMPLETION,
    semconv.OTHER_ERROR,
}


def test_all_but_our_own_and_those_of_vendors_are_in_the_conventions() -> None:
    beyond = {name for name in OURS - KNOWN if not name.startswith(("tproxy.", "langfuse."))}
    assert beyond == {semconv.COST}
    assert not any(name.startswith(("tproxy.", "langfuse.")) for name in KNOWN)


def test_the_values_are_in_the_conventions() -> None:
    assert gen_ai_attributes.GenAiProviderNameValues.ANTHROPIC.value == semconv.ANTHROPIC
    assert gen_ai_attributes.GenAiOperationNameValues.CHAT.value == semconv.CHAT
    assert gen_ai_attributes.GenAiOperationNameValues.TEXT_COMPLETION.value == semconv.TEXT_COMPLETION
    assert error_attributes.ErrorTypeValues.OTHER.value == semconv.OTHER_ERROR


def test_the_version_is_a_published_one() -> None:
    assert semconv.SCHEMA_URL in {schema.value for schema in schemas.Schemas}


def test_they_stand_nowhere_else() -> None:
    name = re.compile(r"gen_ai\.|langfuse\.")
    spelled = {path.name for path in (ROOT / "tproxy").rglob("*.py") if name.search(path.read_text())}
    assert spelled == {"semconv.py"}


def test_the_document_tells_of_all_of_them() -> None:
    text = (ROOT / "docs/otlp.md").read_text()
    times = {name for name in OURS if name.startswith("tproxy.time.")}
    missing = {name for name in OURS - times if name not in text and not name.startswith("service.")}
    assert missing == set()
    assert {name for name in times if name.removeprefix("tproxy.time.") not in text} == set()
    assert semconv.VERSION in text
