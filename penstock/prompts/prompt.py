"""One version of a prompt: it checks what it is given, becomes messages, and judges the answer's form.

It must not know which model answers, nor where its files lie.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from penstock.errors import InvalidRequestError, OutputInvalidError
from penstock.prompts.manifest import DOCUMENT, SECTIONS, Manifest, Variable
from penstock.prompts.schema import JsonSchema, canonical_json, parse_json
from penstock.prompts.template import Template, fence
from penstock.schemas import Frozen, Message, PromptReference, RenderedPrompt

_JSON_BLOCK = re.compile(r"```json[ \t]*\r?\n(.*)\n```", re.DOTALL)
_SHOWN_LENGTH = 64


class Example(Frozen):
    """A few-shot pair: the variables (the document is one of them) and the answer wished for."""

    user: dict[str, str]
    assistant: str


class Negative(Frozen):
    """A wrong answer and why it is wrong: for evals, never sent."""

    user: dict[str, str]
    assistant: str
    why: str


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that was found valid: everything about it is known and nothing is read later."""

    reference: PromptReference
    manifest: Manifest
    system: Template
    user: Template
    reduce: Template | None = None
    input: JsonSchema | None = None
    output: JsonSchema | None = None
    examples: tuple[Message, ...] = ()
    negatives: tuple[Negative, ...] = ()

    @property
    def description(self) -> str:
        """Give the one line that says what the prompt is for."""
        return self.manifest.description

    @property
    def default_tier(self) -> str:
        """Give the tier that serves the prompt unless the caller names one."""
        return self.manifest.default_tier

    def tiers_after(self, tier: str) -> tuple[str, ...]:
        """Give the tiers that may answer in place of `tier`, the first first: those behind it, if it is one of them."""
        tiers = self.manifest.fallback_tiers
        return tiers[tiers.index(tier) + 1 :] if tier in tiers else tiers

    @property
    def is_extractive(self) -> bool:
        """Tell whether sentences of the document may stand in for an answer."""
        return self.manifest.extractive and self.output is None

    @property
    def is_reducible(self) -> bool:
        """Tell whether a document that is too long for one request may be answered in parts."""
        return self.reduce is not None

    @property
    def instruction(self) -> str | None:
        """Name the variable in which a user says what he wants, if there is one."""
        return self.manifest.instruction

    @property
    def max_tokens(self) -> int:
        """Give the bound of an answer, in tokens."""
        return self.manifest.max_tokens

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Give the declared variables by name, the document among them."""
        return self.manifest.variables

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """Give the JSON Schema that an answer must keep to, if there is one."""
        return self.output.document if self.output else None

    def check(self, variables: Mapping[str, str], *, document: str | None) -> dict[str, str]:
        """Give every value by name, defaults applied; raises InvalidRequestError that names the field and the cure."""
        if DOCUMENT in variables:
            raise InvalidRequestError("variables.document", "the document is not a variable", "give it as `document`")
        given = dict(variables) if document is None else {**variables, DOCUMENT: document}
        self._refuse_surplus(given)
        values = {name: _value(name, variable, given) for name, variable in self.variables.items()}
        self._refuse_by_schema(values)
        return values

    def render(self, variables: Mapping[str, str], document: str | None = None) -> RenderedPrompt:
        """Make messages of the prompt: one system message, the examples, one user message.

        The values go in once, untrusted ones inside a fence. Raises InvalidRequestError as `check` does.
        """
        return self._rendered(self.user, self.check(variables, document=document))

    def render_reduction(self, variables: Mapping[str, str], sections: str) -> RenderedPrompt:
        """Make messages that put answers to parts of a document together, for a prompt that is reducible.

        `sections` are those answers, and go inside a fence; `variables` are what `check` has taken before.
        """
        assert self.reduce is not None
        declared = {name: variable for name, variable in self.variables.items() if name != DOCUMENT}
        values = {name: _value(name, variable, variables) for name, variable in declared.items()}
        return self._rendered(self.reduce, {**values, SECTIONS: sections})

    def parse_output(self, text: str) -> str:
        """Give the answer in its normal form: stripped text, or canonical JSON where there is an output schema.

        Raises OutputInvalidError that names the JSON path and the rule, and quotes nothing of the answer.
        """
        stripped = text.strip()
        if not stripped:
            raise self._output_error("the answer is empty")
        if self.output is None:
            return stripped
        block = _JSON_BLOCK.fullmatch(stripped)
        value, canonical = self._json(block[1] if block else stripped)
        violation = self.output.violation(value)
        if violation:
            raise self._output_error(str(violation))
        return canonical

    def with_examples(self, examples: Iterable[Example]) -> Self:
        """Give the same prompt with these examples; raises what `check` and `parse_output` raise about one."""
        messages: list[Message] = []
        for example in examples:
            user = {name: value for name, value in example.user.items() if name != DOCUMENT}
            values = self.check(user, document=example.user.get(DOCUMENT))
            self.parse_output(example.assistant)
            messages += [
                self._user_message(self.user, values, beside=()),
                Message(role="assistant", content=example.assistant),
            ]
        return replace(self, examples=tuple(messages))

    def _rendered(self, template: Template, values: Mapping[str, str]) -> RenderedPrompt:
        system = Message(role="system", content=self.system.fill(values))
        user = self._user_message(template, values, beside=(system, *self.examples))
        return RenderedPrompt(
            prompt=self.reference,
            messages=(system, *self.examples, user),
            output_schema=self.output_schema,
            max_tokens=self.max_tokens,
        )

    def _user_message(self, template: Template, values: Mapping[str, str], *, beside: Iterable[Message]) -> Message:
        taken = (template.fill(values), *(message.content for message in beside))
        untrusted = [name for name in values if name not in self.variables or self.variables[name].untrusted]
        fenced = {name: fence(name, values[name], beside=taken) for name in untrusted}
        return Message(role="user", content=template.fill({**values, **fenced}))

    def _refuse_surplus(self, given: Mapping[str, str]) -> None:
        for name in given:
            if name not in self.variables:
                takes = ", ".join(sorted(self.variables)) or "none"
                reason = f"is not taken by {self.reference.id} {self.reference.version}"
                raise InvalidRequestError(_field(name), reason, f"leave it out; the prompt takes: {takes}")

    @cached_property
    def _judged(self) -> tuple[str, ...]:
        return tuple(name for name in self.variables if self.input is not None and self.input.concerns(name))

    def _refuse_by_schema(self, values: Mapping[str, str]) -> None:
        if self.input is None:
            return
        violation = self.input.violation_of(tuple((name, values[name]) for name in self._judged))
        if violation:
            name = str(violation.path[0]) if violation.path else ""
            description = self.variables[name].description if name in self.variables else ""
            cure = f"give {description}" if description else "see input.schema.json of the prompt"
            raise InvalidRequestError(_field(name), f"breaks {violation.rule}", cure)

    def _json(self, text: str) -> tuple[Any, str]:
        try:
            value = parse_json(text)
            return value, canonical_json(value)
        except json.JSONDecodeError as error:
            problem = f"the answer is not JSON (line {error.lineno}, column {error.colno})"
        except ValueError:
            problem = "the answer is not strict JSON (a key twice, NaN, an infinity, half a surrogate, or too deep)"
        # Raised here, not inside `except`: a chained JSONDecodeError carries the whole answer.
        raise self._output_error(problem)

    def _output_error(self, problem: str) -> OutputInvalidError:
        return OutputInvalidError(f"{self.reference.id} {self.reference.version}: {problem}")


def _value(name: str, variable: Variable, given: Mapping[str, str]) -> str:
    value = given.get(name, variable.default)
    if value is None:
        what = f" ({variable.description})" if variable.description else ""
        raise InvalidRequestError(_field(name), "is missing", f"give it{what}")
    if not isinstance(value, str):
        raise InvalidRequestError(_field(name), f"is {type(value).__name__}, not text", "give it as a string")
    problem = variable.problem(value)
    if problem:
        raise InvalidRequestError(_field(name), *problem)
    return value


def _field(name: str) -> str:
    return DOCUMENT if name == DOCUMENT else f"variables.{name[:_SHOWN_LENGTH]}".rstrip(".")
