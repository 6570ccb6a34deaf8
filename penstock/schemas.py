"""The data that crosses a room. It must not know where it is stored or sent."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, Strict, StringConstraints

from penstock.reasons import Reason

TENANT_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"


def _storable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no text") from None
    if "\0" in value:
        raise ValueError("it holds a NUL character, which Postgres cannot store")
    return value


Tenant = Annotated[str, StringConstraints(strict=True, pattern=f"^{TENANT_PATTERN}$")]
Project = Annotated[str, StringConstraints(strict=True, pattern=f"^({TENANT_PATTERN})?$")]
Text = Annotated[str, Strict(), AfterValidator(_storable)]
DocumentName = Annotated[str, StringConstraints(strict=True, max_length=255), AfterValidator(_storable)]
IdempotencyKey = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200), AfterValidator(_storable)]
NanoDollars = int
NANO = 10**9


def dollars(nanodollars: NanoDollars) -> str:
    """Write nano-dollars as dollars, exactly, with two decimals at least: `$0.001234`."""
    whole, rest = divmod(abs(nanodollars), NANO)
    decimals = f"{rest:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanodollars < 0 else ''}${whole:,}.{decimals}"


class Frozen(BaseModel):
    """A value: it cannot be changed, and it takes no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # so that imports are quick


class Lane(StrEnum):
    """Who is waiting: a person, or nobody before the morning."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class OnUnavailable(StrEnum):
    """What a job accepts when no model can be asked: to wait, a summary without a model, or to fail at once."""

    WAIT = "wait"
    DEGRADE = "degrade"
    FAIL = "fail"


class JobState(StrEnum):
    """Where a job stands; the diagram is in docs/jobs.md."""

    PAUSED = "paused"
    QUEUED = "queued"
    RELEASED = "released"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Tell whether nothing more happens to a job in this state, unless somebody asks for it."""
        return self in {JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED}


class Usage(Frozen):
    """Tokens of one provider call, by price class. Each token is in exactly one class.

    `input_tokens` excludes what was read from the provider's cache and what was written to it; `output_tokens` excludes
    `reasoning_tokens`.
    """

    input_tokens: int = Field(default=0, ge=0)
    cached_input_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)

    @property
    def prompt_tokens(self) -> int:
        """Give the tokens that went in, of all classes."""
        return self.input_tokens + self.cached_input_tokens + self.cache_write_tokens

    @property
    def completion_tokens(self) -> int:
        """Give the tokens that came out, of all classes."""
        return self.output_tokens + self.reasoning_tokens

    @property
    def total_tokens(self) -> int:
        """Give the tokens of all classes together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Add class by class."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in TOKEN_CLASSES})


TOKEN_CLASSES = tuple(Usage.model_fields)
"""The price classes, by the names that columns and prices of them have."""


class Message(Frozen):
    """One message of a chat: roles are structure, never text."""

    role: Literal["system", "user", "assistant"]
    content: str


class PromptReference(Frozen):
    """Exactly which prompt was used: id, semantic version, and the digest of its files."""

    id: str
    version: str
    digest: str


class RenderedPrompt(Frozen):
    """A prompt made into messages, ready for any provider."""

    prompt: PromptReference
    messages: tuple[Message, ...]
    output_schema: dict[str, Any] | None = None
    max_tokens: int = Field(gt=0)


class ModelRequest(Frozen):
    """One physical call: what a provider adapter is given."""

    call_id: UUID
    messages: tuple[Message, ...]
    max_tokens: int = Field(gt=0)
    output_schema: dict[str, Any] | None = None
    timeout_s: float = Field(gt=0)


class Resource(StrEnum):
    """What a provider limits by the minute."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"


class ReportedLimit(Frozen):
    """What the headers of an answer say about one resource, as of when the call was taken."""

    resource: Resource
    per_minute: float | None = None
    remaining: float | None = None


ReportedLimits = tuple[ReportedLimit, ...]


class ModelAnswer(Frozen):
    """What a provider adapter gives back: the text, who served it, what it used, and what is left of the quota."""

    text: str
    model_served: str
    finish_reason: str
    usage: Usage
    limits: ReportedLimits = ()


class JobRequest(Frozen):
    """A request as it comes to a door: well formed, and nothing looked up yet.

    A `document` is text, bytes with their `media_type`, or a path; text is plain unless `media_type` says otherwise.
    Without a `tier` the prompt's own is used, without a `prompt_version` the newest.
    """

    tenant: Tenant
    project: Project = ""
    prompt: Text = Field(min_length=1)
    prompt_version: Text | None = None
    variables: dict[Text, Text] = Field(default_factory=dict)
    document: Text | Annotated[bytes, Strict()] | Annotated[Path, Strict()] | None = None
    media_type: Text | None = None
    document_name: DocumentName | None = None
    tier: Annotated[Text, Field(max_length=64)] | None = None
    lane: Lane = Lane.INTERACTIVE
    priority: int = Field(default=5, ge=0, le=9, strict=True)
    idempotency_key: IdempotencyKey | None = None
    deadline: AwareDatetime | None = None
    on_unavailable: OnUnavailable = OnUnavailable.WAIT
    fresh: bool = Field(default=False, strict=True)
    metadata: dict[Text, Text] = Field(default_factory=dict)


class Source(Frozen):
    """A section of a long document that a result cites: the characters from `start` up to, not including, `end`."""

    number: int = Field(ge=1)
    start: int = Field(ge=0)
    end: int
    heading: str


class Job(Frozen):
    """A job as anybody outside sees it. `cost_nanodollars` sums every call that was made for it.

    `degraded` says that no model wrote the result: sentences of the document stand in for an answer. `cached` says that
    another job of the tenant had paid for it. `sources` are the sections of a long document that the result cites; None
    where the document was read at once. `over_soft_limit` says that a soft budget had been passed when the result was
    paid for. Since `purged_at` no text of the job is kept.
    """

    id: UUID
    tenant: str
    project: str
    batch_id: UUID | None
    state: JobState
    prompt: PromptReference
    tier: str
    lane: Lane
    priority: int
    document_name: str | None
    metadata: dict[str, str]
    attempts: int
    created_at: datetime
    due_at: datetime
    deadline: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    reason: Reason | None
    detail: str | None
    on_unavailable: OnUnavailable
    result: str | None
    degraded: bool
    sources: tuple[Source, ...] | None
    cached: bool
    over_soft_limit: bool
    purged_at: datetime | None
    model_asked: str | None
    model_served: str | None
    usage: Usage
    cost_nanodollars: NanoDollars
