"""The file prompt.toml: what a prompt takes and costs at most. It must not know the texts beside it."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from penstock.errors import ConfigurationError
from penstock.schemas import Frozen

NAME = r"^[a-z][a-z0-9_]{0,63}$"
DOCUMENT = "document"
SECTIONS = "sections"


class Variable(Frozen):
    """What a caller may put in one place. `max_length` counts characters; `choices` are compared exactly.

    An `instruction` is free text in which a user says what he wants: a tenant may have an answer given again to another
    that means the same.
    """

    model_config = ConfigDict(strict=True)

    description: str = ""
    required: bool = True
    default: str | None = None
    untrusted: bool = False
    document: bool = False
    instruction: bool = False
    max_length: int | None = Field(default=None, gt=0)
    choices: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _agree_with_itself(self) -> Self:
        if self.document and not self.untrusted:
            raise ValueError("a document is never trusted: write untrusted = true")
        if self.instruction and (self.document or self.choices):
            raise ValueError("an instruction is free text: it is no document, and has no choices")
        if self.required and self.default is not None:
            raise ValueError("a required variable takes no default: write required = false, or leave the default out")
        if not self.required and self.default is None:
            raise ValueError('an optional variable needs a default: write default = "" if it may be empty')
        if self.default is not None and (problem := self.problem(self.default)):
            raise ValueError(f"the default {problem[0]}")
        return self

    def problem(self, value: str) -> tuple[str, str] | None:
        """Tell why a value cannot be taken and what to do, or None. The value itself is in neither."""
        if self.required and not value.strip():
            return "is blank", self._cure("give some text")
        if self.max_length is not None and len(value) > self.max_length:
            reason = f"has {len(value)} characters where {self.max_length} are allowed"
            return reason, self._cure(f"shorten it by {len(value) - self.max_length}")
        if self.choices and value not in self.choices:
            return "is not one of its choices", self._cure(f"choose one of {', '.join(map(repr, self.choices))}")
        surrogate = None if value.isascii() else re.search(r"[\ud800-\udfff]", value)
        if surrogate:
            return f"has half a surrogate pair at {surrogate.start()}", "decode it from UTF-8 without surrogateescape"
        return None

    def _cure(self, cure: str) -> str:
        return f"{cure} ({self.description})" if self.description else cure


class Manifest(Frozen):
    """The content of prompt.toml. `max_tokens` bounds the answer.

    `fallback_tiers` may answer when no model of the job's own tier can be asked, the first first. With `extractive`,
    sentences of the document may stand in for an answer, for jobs that accept that.
    """

    model_config = ConfigDict(strict=True)

    description: str = Field(min_length=1)
    default_tier: str = Field(min_length=1)
    max_tokens: int = Field(gt=0)
    fallback_tiers: Annotated[tuple[str, ...], Field(strict=False)] = ()
    extractive: bool = False
    variables: dict[Annotated[str, Field(pattern=NAME)], Variable] = Field(default_factory=dict)

    @property
    def instruction(self) -> str | None:
        """Name the variable that is the user's instruction, if there is one."""
        return next((name for name, variable in self.variables.items() if variable.instruction), None)

    @model_validator(mode="after")
    def _have_one_instruction(self) -> Self:
        named = [name for name, variable in self.variables.items() if variable.instruction]
        if len(named) > 1:
            raise ValueError(f"variables: {' and '.join(named)} are instructions, and only one can be")
        return self

    @model_validator(mode="after")
    def _call_the_document_so(self) -> Self:
        for name, variable in self.variables.items():
            if variable.document != (name == DOCUMENT):
                raise ValueError(f"variables.{name}: the variable {DOCUMENT!r}, and no other, has document = true")
        if self.extractive and DOCUMENT not in self.variables:
            raise ValueError(f"extractive: there is no variable {DOCUMENT!r} to take sentences from")
        return self


def read_manifest(text: str, file: str) -> Manifest:
    """Read prompt.toml; raises ConfigurationError that names the file and the line or key."""
    try:
        return Manifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise toml_error(error, text, file) from error
    except ValidationError as error:
        raise key_error(error.errors()[0], file) from error


def toml_error(error: tomllib.TOMLDecodeError, text: str, file: str) -> ConfigurationError:
    """Say where a TOML file breaks TOML's syntax."""
    match = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
    line = match[1] if match and match[1] else str(max(1, len(text.splitlines())))
    reason = str(error)[: match.start()] if match else str(error)
    return ConfigurationError(file, f"line {line}", f"is not TOML: {reason}", "correct the syntax (https://toml.io)")


def key_error(error: Mapping[str, Any], file: str) -> ConfigurationError:
    """Say which key breaks the model, from one of pydantic's error entries."""
    place = ".".join(str(step) for step in error["loc"] if step != "[key]") or "whole file"
    if error["type"] == "extra_forbidden":
        is_inside_variable = len(error["loc"]) > len(("variables", "NAME"))
        model = Variable if is_inside_variable else Manifest
        return ConfigurationError(file, place, "unknown key", f"remove it{_nearest(str(error['loc'][-1]), model)}")
    reason = str(error.get("ctx", {}).get("error", error["msg"]))
    return ConfigurationError(file, place, reason, "see docs/prompts.md for the keys and what they take")


def _nearest(key: str, model: type[Frozen]) -> str:
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    return f", or did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(model.model_fields)}"
