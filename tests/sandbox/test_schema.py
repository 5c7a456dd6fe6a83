from __future__ import annotations

from typing import Any

import pytest

from tproxy.sandbox.schema import example


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        pytest.param({"type": "string"}, "harbour", id="string"),
        pytest.param({"type": "string", "minLength": 9}, "harbourharbour", id="long string"),
        pytest.param({"type": "string", "maxLength": 3}, "har", id="short string"),
        pytest.param({"type": "string", "minLength": 8, "maxLength": 9}, "harbourha", id="string in between"),
        pytest.param({"type": "string", "format": "date"}, "2026-11-23", id="format"),
        pytest.param({"type": "integer"}, 4, id="integer"),
        pytest.param({"type": "integer", "minimum": 10, "maximum": 12}, 10, id="minimum"),
        pytest.param({"type": "integer", "exclusiveMinimum": 10}, 11, id="exclusive minimum"),
        pytest.param({"type": "integer", "maximum": 2}, 2, id="maximum"),
        pytest.param({"type": "integer", "exclusiveMaximum": 2}, 1, id="exclusive maximum"),
        pytest.param({"type": "integer", "multipleOf": 5}, 20, id="multiple"),
        pytest.param({"type": "boolean"}, True, id="boolean"),
        pytest.param({"type": "null"}, None, id="null"),
        pytest.param({"type": ["string", "null"]}, "harbour", id="several types"),
        pytest.param({"enum": ["celsius", "kelvin"]}, "celsius", id="enum"),
        pytest.param({"const": 7}, 7, id="const"),
        pytest.param({"type": "string", "default": "x"}, "x", id="default"),
        pytest.param({"type": "string", "examples": ["Oslo"]}, "Oslo", id="examples"),
        pytest.param({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [4, 4], id="array"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 4, id="anyOf"),
        pytest.param(
            {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["b"]},
            {"b": "harbour"},
            id="required members only",
        ),
        pytest.param({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 4}, id="all members"),
        pytest.param({"type": "object"}, {}, id="no members"),
        pytest.param(
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
                ]
            },
            {"a": 4, "b": True},
            id="allOf",
        ),
        pytest.param(
            {"properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"type": "boolean"}}},
            {"a": True},
            id="reference",
        ),
        pytest.param({"$ref": "#/$defs/gone"}, None, id="reference to nowhere"),
        pytest.param(True, None, id="no schema"),
    ],
)
def test_the_example_fits(schema: Any, value: object) -> None:
    assert example(schema) == value
    assert type(example(schema)) is type(value)


def test_a_schema_that_holds_itself_has_an_end() -> None:
    assert example({"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]})
