"""The page at `/docs`: the management API described, from its OpenAPI document. It loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
h2 { margin-top: 2.5rem } code { font: 13px ui-monospace, monospace } summary { cursor: pointer; padding: .2rem 0 }
table { border-collapse: collapse; margin: .5rem 0 1rem 1rem } td { padding: .1rem .8rem .1rem 0; vertical-align: top }
.method { display: inline-block; min-width: 3.5rem; font-weight: 600 }
"""


def page(document: Mapping[str, Any]) -> str:
    """The HTML for an OpenAPI document."""
    info = document["info"]
    sections: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            section = path.split("/")[1]
            sections.setdefault(section, []).append("".join(_operation(document, method, path, operation)))
    parts = [f"<h2>{escape(name)}</h2>{''.join(entries)}" for name, entries in sections.items()]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>{escape(info.get("description", ""))}</p><p><a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(parts)}</html>"
    )


def _operation(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details><summary><span class="method">{method.upper()}</span> <code>{escape(path)}</code></summary>'
    yield f"<p>{escape(operation.get('description', ''))}</p><table>"
    for parameter in operation.get("parameters", ()):
        name = f"{parameter['name']} ({parameter['in']})"
        yield _field(document, name, parameter["schema"], required=parameter.get("required", False))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        schema = _resolved(document, body)
        for name, each in schema.get("properties", {}).items():
            yield _field(document, name, each, required=name in schema.get("required", ()))
    yield "</table></details>"


def _field(document: Mapping[str, Any], name: str, schema: Mapping[str, Any], *, required: bool) -> str:
    cells = (f"<code>{escape(name)}</code>", escape(_type(document, schema)), "required" if required else "")
    described = escape(str(schema.get("description", "")))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in (*cells, described))}</tr>"


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A schema in a few words: `list of text`, `expected | hard | soft`."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        kinds = [_type(document, each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(document, schema.get('items', {}))}"
    if kind == "object" and "title" in schema and "properties" in schema:
        return f"{{{', '.join(schema['properties'])}}}"
    return {"string": "text", "boolean": "true or false", "object": "mapping"}.get(kind, kind)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = schema
    while "$ref" in found:
        here: Any = document
        for step in found["$ref"].removeprefix("#/").split("/"):
            here = here[step]
        found = here
    return found  # type: ignore[no-any-return]
