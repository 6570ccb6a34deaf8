"""Instances of JSON schemas, made from a text."""

from typing import Any

import pytest

from penstock.providers.simulator.instances import break_schema, check_schema, make_instance
from penstock.providers.simulator.refusals import Refusal

TEXT = "The first sentence. The second one! Is this a third?"

MADE: dict[str, tuple[dict[str, Any], Any]] = {
    "string": ({"type": "string"}, "The first sentence."),
    "maxLength": ({"type": "string", "maxLength": 9}, "The first"),
    "minLength": ({"type": "string", "minLength": 22}, "The first sentence...."),
    "date": ({"type": "string", "format": "date"}, "2026-01-31"),
    "enum": ({"enum": ["low", "high"]}, "low"),
    "const": ({"const": 7}, 7),
    "integer": ({"type": "integer"}, 1),
    "minimum": ({"type": "integer", "minimum": 10}, 10),
    "exclusive": ({"type": "integer", "exclusiveMinimum": 10, "maximum": 11}, 11),
    "multipleOf": ({"type": "integer", "minimum": 10, "multipleOf": 7}, 14),
    "negative": ({"type": "integer", "maximum": -3}, -3),
    "between": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
    "boolean": ({"type": "boolean"}, True),
    "null": ({"type": "null"}, None),
    "nullable": ({"type": ["string", "null"]}, "The first sentence."),
    "array": ({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1}, ["The first sentence."]),
    "minItems": ({"type": "array", "items": {"type": "integer"}, "minItems": 4}, [1, 1, 1, 1]),
    "unique": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
    "reference": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "boolean"}}}, True),
    "summary": (
        {"type": "object", "properties": {"summary": {"type": "string"}, "point": {"type": "string"}}},
        {"summary": TEXT, "point": "The first sentence."},
    ),
    "required alone": ({"type": "object", "required": ["a"]}, {"a": "The first sentence."}),
}

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "no schema": {"type": "strin"},
    "no value": {"enum": []},
    "pattern": {"type": "string", "pattern": "^[0-9]+$"},
    "contradiction": {"type": "string", "minLength": 5, "maxLength": 4},
    "endless": {"$ref": "#"},
    "dangling": {"$ref": "#/$defs/nowhere"},
    "remote": {"$ref": "http://127.0.0.1:9/schema"},
    "too unique": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},
}


@pytest.mark.parametrize("case", MADE)
def test_an_instance_is_made_from_the_sentences_of_the_text(case: str) -> None:
    schema, expected = MADE[case]
    check_schema(schema)
    assert make_instance(schema, TEXT) == expected


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_schema_that_cannot_be_filled_is_refused(case: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_schema(UNSUPPORTED[case])
    assert (refused.value.status, refused.value.code) == (400, "invalid_json_schema")


def test_a_broken_instance_is_not_valid() -> None:
    assert break_schema({"type": "object", "required": ["title"]}) == {"unexpected": True}
    assert break_schema({"type": "object"}) == []
    assert break_schema({}) is None
