"""What a request body may say, as strictly as OpenAI. It must not know what is done with it."""

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.tokens import count_message

BodyModel = TypeVar("BodyModel", bound="Body")


class Body(BaseModel):
    """A part of a request: no field that is not known, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(Body):
    """A part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """Give the content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class NamedSchema(Body):
    """The schema of an answer, under the name that OpenAI asks for."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _have_a_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            msg = "json_schema belongs to the type 'json_schema', and to no other"
            raise ValueError(msg)
        return self


class StreamOptions(Body):
    """What a stream says beside the text."""

    include_usage: bool = False


class ChatRequest(Body):
    """The body of POST /v1/chat/completions. Sampling parameters are checked and have no effect."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    response_format: ResponseFormat = ResponseFormat(type="text")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            msg = "max_tokens and max_completion_tokens cannot be given together"
            raise ValueError(msg)
        if self.stream_options is not None and not self.stream:
            msg = "stream_options belongs to stream: true"
            raise ValueError(msg)
        if self.response_format.type == "json_object" and not self._mentions_json():
            msg = "messages must contain the word 'json' to use a response_format of type 'json_object'"
            raise ValueError(msg)
        return self

    def _mentions_json(self) -> bool:
        return any("json" in message.text.lower() for message in self.messages)

    @property
    def limit(self) -> int | None:
        """Give the most tokens that the answer may have, if the client said."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens of all messages."""
        return sum(count_message(message.text) for message in self.messages)


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | list[str] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[256] = 256
    user: str | None = None

    @model_validator(mode="after")
    def _have_text(self) -> "EmbeddingRequest":
        if not all(self.texts):
            msg = "input cannot hold an empty string"
            raise ValueError(msg)
        return self

    @property
    def texts(self) -> list[str]:
        """Give the inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def parse_json(raw: bytes) -> dict[str, Any] | None:
    """Read a JSON object, or give None where there is none."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def validate(content: dict[str, Any] | None, model: type[BodyModel]) -> BodyModel:
    """Check a body; raise Refusal with OpenAI's codes, naming the parameter but never its value."""
    if content is None:
        raise Refusal(400, "We could not parse the JSON body of your request.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise _refuse(first["type"], param, first["msg"]) from error


def _refuse(kind: str, param: str | None, reason: str) -> Refusal:
    if kind == "extra_forbidden":
        return Refusal(400, f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if kind == "missing":
        return Refusal(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return Refusal(400, f"Invalid '{param}': {reason}." if param else reason, code=code, param=param)
