"""JSON read strictly, and JSON Schema 2020-12 over it. It must not quote a value that it judged."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import islice
from typing import Any, NoReturn

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BY_NAME = frozenset({"$comment", "$defs", "$id", "$schema", "description", "properties", "required", "title", "type"})
"""A schema of these keywords alone says nothing of properties that it does not name."""
KEPT_VERDICTS = 256
_RULE_LENGTH = 120


def parse_json(text: str) -> Any:
    """Read one JSON value; raises ValueError also for NaN, infinities, a key that occurs twice, and deep nesting."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def canonical_json(value: Any) -> str:
    """Write JSON with sorted keys and no spaces; raises ValueError for what neither JSON nor UTF-8 can hold."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    text.encode()
    return text


@dataclass(frozen=True)
class Violation:
    """Where a value breaks a schema (steps from the root; None is a key the schema does not name), and which rule."""

    path: tuple[str | int | None, ...]
    rule: str

    def __str__(self) -> str:
        """Say it in one line, as a JSON path and the rule."""
        return f"{''.join(map(_step, ('$', *self.path)))} breaks {self.rule}"


class JsonSchema:
    """A JSON Schema that was found valid."""

    def __init__(self, document: Any) -> None:
        """Take the parsed schema; raises ValueError when it is not a valid 2020-12 schema that stands by itself."""
        if not isinstance(document, dict):
            raise ValueError("a schema must be a JSON object")  # noqa: TRY004 - it is the file's content that is wrong
        if document.get("$schema", DIALECT) != DIALECT:
            raise ValueError(f"$schema must be {DIALECT}")
        self.document: dict[str, Any] = document
        self._verdicts: dict[bytes, Violation | None] = {}
        self._refuse_invalid()

    def violation(self, value: Any) -> Violation | None:
        """Give the most relevant rule that the value breaks, or None. Nothing of the value is in it."""
        error = _import("jsonschema.exceptions").best_match(self._validator.iter_errors(value))
        if error is None:
            return None
        path = (step if isinstance(step, int) or step in self._names else None for step in error.absolute_path)
        return Violation(tuple(path), f"{error.validator} = {canonical_json(error.validator_value)[:_RULE_LENGTH]}")

    def concerns(self, name: str) -> bool:
        """Tell whether a property can matter for the verdict on an object; where it is hard to tell, it can."""
        named = {*self.document.get("properties", ()), *self.document.get("required", ())}
        return name in named or not self.document.keys() <= BY_NAME

    def violation_of(self, items: tuple[tuple[str, str], ...]) -> Violation | None:
        """Judge an object of strings, given as its items: many requests share the same few values.

        Verdicts are kept by a digest: what tenants wrote is not.
        """
        digest = hashlib.sha256(repr(items).encode()).digest()
        if digest in (verdicts := self._verdicts):
            return verdicts[digest]
        violation = self.violation(dict(items))
        self._verdicts = {**dict(islice(verdicts.items(), KEPT_VERDICTS - 1)), digest: violation}
        return violation

    def _refuse_invalid(self) -> None:
        try:
            # With the format checker, a `pattern` that does not compile is found here and not at the first answer.
            self._validator.check_schema(self.document, format_checker=self._validator.FORMAT_CHECKER)
        except _import("jsonschema.exceptions").SchemaError as error:
            raise ValueError(f"at {error.json_path}: {error.message}") from error
        self._refuse_dangling()

    def _refuse_dangling(self) -> None:
        resource = _import("referencing.jsonschema").DRAFT202012.create_resource(self.document)
        resolver = _import("referencing").Registry().resolver_with_root(resource)
        for reference in _references(self.document):
            try:
                resolver.lookup(reference)
            except _import("referencing.exceptions").Unresolvable as error:
                raise ValueError(f"$ref {reference!r} leads to no place in the same file") from error

    @cached_property
    def _validator(self) -> Any:
        # An empty registry: without it, a foreign $ref would be fetched over the network.
        return _import("jsonschema").Draft202012Validator(self.document, registry=_import("referencing").Registry())

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(_keys(self.document))


def _import(name: str) -> Any:
    # jsonschema costs 80 ms, which the import of a producer must not pay.
    return import_module(name)


def _step(step: str | int | None) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if step is None:
        return ".*"
    return step if step == "$" else f".{step}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(child)


def _keys(schema: dict[str, Any]) -> Iterator[str]:
    for found in _objects(schema):
        yield from found


def _references(schema: dict[str, Any]) -> Iterator[str]:
    for found in _objects(schema):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(found.get(keyword), str):
                yield found[keyword]
