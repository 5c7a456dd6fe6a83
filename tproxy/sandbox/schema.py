"""An example that fits a JSON schema: what the sandbox gives a tool as its input."""

from __future__ import annotations

from typing import Any

_DEEPEST = 8
_FORMATS = {
    "date": "2026-11-23",
    "date-time": "2026-11-23T06:40:00Z",
    "time": "06:40:00Z",
    "email": "keeper@example.com",
    "uri": "https://example.com/",
    "uuid": "018f4e2a-7c3b-7d10-9a51-6b0f2c9d4e11",
    "ipv4": "192.0.2.1",
}


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value that `schema` allows.

    Args:
        schema: a JSON schema (draft 2020-12); what is not understood (patterns, conditions) is passed over.
        root: the schema that `$ref` looks into; by default `schema` itself.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return example(_referred(root, schema["$ref"]), root, depth + 1)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    for listed in ("enum", "examples"):
        if schema.get(listed):
            return schema[listed][0]
    if schema.get("allOf"):
        merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            merged = _joined(merged, part)
        return example(merged, root, depth + 1)
    for either in ("anyOf", "oneOf"):
        if schema.get(either):
            return example(schema[either][0], root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0]
    match kind:
        case "object":
            return _object(schema, root, depth)
        case "array":
            return [example(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 1))]
        case "string":
            return _string(schema)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
    return None


def _object(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    """The required members, or all where none is required."""
    members = schema.get("properties", {})
    names = schema.get("required") or list(members)
    return {name: example(members.get(name, {"type": "string"}), root, depth + 1) for name in names}


def _string(schema: dict[str, Any]) -> str:
    text: str = _FORMATS.get(schema.get("format", ""), "harbour")
    least, most = schema.get("minLength", 0), schema.get("maxLength", len(text) + schema.get("minLength", 0))
    return (text * (least // len(text) + 1))[:most] if len(text) < least else text[:most]


def _number(schema: dict[str, Any]) -> int | float:
    if "minimum" in schema:
        return schema["minimum"]  # type: ignore[no-any-return]
    if "exclusiveMinimum" in schema:
        return schema["exclusiveMinimum"] + 1  # type: ignore[no-any-return]
    step = schema.get("multipleOf", 1)
    return min(4 * step, schema.get("maximum", schema.get("exclusiveMaximum", 5 * step + 1) - step))  # type: ignore[no-any-return]


def _joined(one: dict[str, Any], other: Any) -> dict[str, Any]:
    """Two object schemas as one that asks for what both ask for."""
    if not isinstance(other, dict):
        return one
    both = one | other
    both["properties"] = one.get("properties", {}) | other.get("properties", {})
    both["required"] = [*one.get("required", ()), *other.get("required", ())]
    return both


def _referred(root: Any, pointer: str) -> Any:
    """What a local JSON pointer (`#/$defs/x`, RFC 6901) names; None where it leads nowhere."""
    at = root
    for step in pointer.removeprefix("#").split("/")[1:]:
        if not isinstance(at, dict):
            return None
        at = at.get(step.replace("~1", "/").replace("~0", "~"))
    return at
