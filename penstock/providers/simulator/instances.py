"""JSON that is valid against a schema, filled with text from a document. It must not know what the schema is for."""

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import cycle
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from penstock.providers.simulator.refusals import Refusal

DEFAULT_ITEMS = 3
MAX_DEPTH = 32
NO_REMOTE_SCHEMAS: Registry[Any] = Registry()
SAMPLE = "This is one sentence. This is another one. And a third one ends the sample."
FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class _Unsupported(Exception):  # noqa: N818 - it says what the schema is, and never leaves this file
    """The schema asks for something that is not made here."""


class Instance:
    """One walk through a schema: strings take the sentences of a text in turn, in the order of the properties."""

    def __init__(self, schema: dict[str, Any], text: str) -> None:
        """Take the whole schema, for its references, and the text."""
        self._root = schema
        self._text = text
        self._sentences: Iterator[str] = cycle(_SENTENCE_END.split(text.strip()))

    def build(self, schema: Any, depth: int = 0) -> Any:
        """Give a value for one schema."""
        if depth > MAX_DEPTH:
            raise _Unsupported
        if not isinstance(schema, dict):
            return self._string({})
        for keyword in ("const", "enum", "$ref", "allOf", "anyOf", "oneOf"):
            if keyword in schema:
                return self._choose(schema, keyword, depth)
        return self._typed(schema, depth)

    def _choose(self, schema: dict[str, Any], keyword: str, depth: int) -> Any:
        choice = schema[keyword]
        if keyword == "const":
            return choice
        if keyword == "enum":
            return choice[0]
        if keyword == "$ref":
            return self.build(self._resolve(choice), depth + 1)
        if keyword == "allOf" and len(choice) > 1:
            raise _Unsupported
        return self.build(choice[0], depth + 1)

    def _resolve(self, reference: str) -> Any:
        target: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")] if step else target
        return target

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            properties = schema.get("properties", {})
            asked = {**properties, **{name: properties.get(name, {}) for name in schema.get("required", [])}}
            return {name: self._property(name, part, depth) for name, part in asked.items()}
        if kind == "array":
            return self._array(schema, depth)
        if kind in {"integer", "number"}:
            return _number(schema, integer=kind == "integer")
        return {"boolean": True, "null": None}[kind] if kind != "string" else self._string(schema)

    def _property(self, name: str, schema: Any, depth: int) -> Any:
        if "summary" in name.lower() and isinstance(schema, dict) and _is_free_text(schema):
            return self._string(schema, self._text)
        return self.build(schema, depth + 1)

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        size = max(schema.get("minItems", 0), min(DEFAULT_ITEMS, schema.get("maxItems", DEFAULT_ITEMS)))
        items = [self.build(schema.get("items", {}), depth + 1) for _ in range(size)]
        if not schema.get("uniqueItems"):
            return items
        return list({json.dumps(item, sort_keys=True): item for item in items}.values())

    def _string(self, schema: dict[str, Any], text: str | None = None) -> str:
        if schema.get("format") in FORMATS:
            return FORMATS[schema["format"]]
        shown = text if text is not None else next(self._sentences)
        return shown[: schema.get("maxLength")].rstrip().ljust(schema.get("minLength", 0), ".")


def _is_free_text(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "string" and not schema.keys() & {"const", "enum", "format"}


def _number(schema: dict[str, Any], *, integer: bool) -> int | float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    candidates = [step]
    if low is not None:
        candidates += [math.ceil(low / step) * step, (math.ceil(low / step) + 1) * step]
    if high is not None:
        candidates += [math.floor(high / step) * step, (math.floor(high / step) - 1) * step]
    if low is not None and high is not None and not integer:
        candidates.append((low + high) / 2)
    chosen = next((value for value in candidates if _within(schema, value)), step)
    return int(chosen) if integer else chosen


def _within(schema: dict[str, Any], value: float) -> bool:
    return bool(
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
    )


@lru_cache(maxsize=256)
def _validator(canonical: str) -> Draft202012Validator:
    schema = json.loads(canonical)
    try:
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema, registry=NO_REMOTE_SCHEMAS)
        if validator.is_valid(Instance(schema, SAMPLE).build(schema)):
            return validator
    except (_Unsupported, SchemaError, Unresolvable, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _refuse() from error
    raise _refuse()


def _refuse() -> Refusal:
    message = "Invalid schema for response_format: it is no JSON schema, or asks for what this model cannot make"
    return Refusal(400, message, code="invalid_json_schema", param="response_format.json_schema.schema")


def check_schema(schema: dict[str, Any]) -> None:
    """Raise Refusal when a schema is not valid, or beyond what `make_instance` can fill."""
    _validator(json.dumps(schema))


def make_instance(schema: dict[str, Any], text: str) -> Any:
    """Give a value that is valid against the schema, with strings from the text; raise Refusal."""
    made = Instance(schema, text).build(schema)
    if not _validator(json.dumps(schema)).is_valid(made):
        raise _refuse()
    return made


def break_schema(schema: dict[str, Any]) -> Any:
    """Give a value that is not valid against the schema, or None where the schema allows everything tried."""
    validator = _validator(json.dumps(schema))
    wrong: tuple[Any, ...] = ({"unexpected": True}, [], 42, "")
    return next((value for value in wrong if not validator.is_valid(value)), None)
