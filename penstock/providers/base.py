"""What a provider is to the rest of the house. It must not know any provider's library.

An adapter makes exactly one physical call and classifies what came of it. It never sleeps, retries, logs or prices.
"""

from collections.abc import Sequence
from typing import Protocol

from pydantic import Field, SecretStr

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


class Provider(Protocol):
    """Anything that can answer a request."""

    async def complete(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer:
        """Make one call and give its answer within `request.timeout_s` seconds.

        Raises ProviderError with a reason class for everything that is not an answer. A cancellation of the caller
        closes the connection.
        """
        ...

    async def count_tokens(self, deployment: Deployment, messages: Sequence[Message]) -> int:
        """Count the tokens of messages with a local tokenizer, which may not be the model's own."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...
