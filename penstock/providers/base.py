"""What a provider is to the rest of the house. It must not know any provider's library.

An adapter makes exactly one physical call and classifies what came of it. It never sleeps, retries, logs or prices.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import BinaryIO, Protocol
from uuid import UUID

from pydantic import Field, SecretStr

from penstock.errors import ProviderError
from penstock.providers.quota import Quota
from penstock.schemas import Frozen, Message, ModelAnswer, ModelRequest


class Deployment(Frozen):
    """One model at one provider under one account: where a call goes."""

    name: str
    model: str = Field(description="LiteLLM's model string, such as 'openai/gpt-5-mini'")
    account: str
    api_base: str | None = None
    api_key: SecretStr | None = None
    context_window: int = Field(gt=0)
    max_output_tokens: int = Field(gt=0)
    quota: Quota | None = Field(default=None, description="None: the provider sets no limit")
    is_embedding: bool = Field(default=False, description="it turns the one message of a request into a vector")

    @property
    def capacity(self) -> int:
        """Give the tokens of the largest call that it can take, prompt and answer together."""
        return int(min(self.context_window, self.quota.most_tokens if self.quota else self.context_window))


class Provider(Protocol):
    """Anything that can answer a request."""

    async def complete(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer:
        """Make one call and give its answer within `request.timeout_s` seconds.

        The text of an answer that is a vector is its 32-bit floats, little-endian, in base64. Raises ProviderError with
        a reason class for everything that is not an answer. A cancellation of the caller closes the connection.
        """
        ...

    async def count_tokens(self, deployment: Deployment, messages: Sequence[Message]) -> int:
        """Count the tokens of messages with a local tokenizer, which may not be the model's own."""
        ...

    def counter(self, deployment: Deployment) -> Callable[[str], int]:
        """Give a function that counts the tokens of a text in the same way; it blocks."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...


class BatchState(StrEnum):
    """Where a batch stands at its provider."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more will happen to the batch."""
        return self in {BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED}


class ProviderBatch(Frozen):
    """A batch as its provider describes it; `errors` are the codes for which it failed as a whole."""

    id: str
    state: BatchState
    completed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """What came of one request of a batch. An error with `sent=False` says that it was never run."""

    call_id: UUID
    outcome: ModelAnswer | ProviderError


class BatchProvider(Protocol):
    """A provider that answers files of requests within a day, for less. Each method but `encode` is one physical call.

    They raise ProviderError with a reason class, and ConfigurationError if remote calls are forbidden.
    """

    def takes(self, deployment: Deployment) -> bool:
        """Tell whether files can be sent to a deployment."""
        ...

    def encode(self, deployment: Deployment, request: ModelRequest) -> bytes:
        """Write one request as a line of a file; its `call_id` is the name under which the result comes back."""
        ...

    async def upload(self, deployment: Deployment, name: str, content: BinaryIO, *, keep_s: int) -> str:
        """Upload a file of such lines, which the provider forgets after `keep_s` seconds, and give its id."""
        ...

    async def create(self, deployment: Deployment, file_id: str, marker: str, *, keep_s: int) -> ProviderBatch:
        """Have an uploaded file worked off; `marker` is what `find` knows the batch by."""
        ...

    async def find(self, deployment: Deployment, marker: str, since: datetime) -> list[ProviderBatch]:
        """Find the batches with a marker that were created after `since`, the oldest first."""
        ...

    async def retrieve(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """Look how far a batch is."""
        ...

    async def cancel(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """Ask for a batch to end; what was answered until then is paid for, and can be read."""
        ...

    def results(self, deployment: Deployment, file_id: str) -> AsyncGenerator[BatchResult, None]:
        """Read an output or error file line by line; raise ProviderError at the end if lines were no results."""
        ...

    async def forget(self, deployment: Deployment, file_id: str) -> None:
        """Delete a file at the provider; one that is gone already is no error."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...
