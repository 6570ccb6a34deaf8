"""A provider's adapter that starts quickly: OpenAI's protocol over aiohttp. It must not know jobs or prices.

It stands in for the one on LiteLLM, whose import takes seconds, where processes are killed by the dozen. Its verdicts
are the same for what the simulator does in these runs. A request with POISON in it ends the process, as a parser with
a fault in it would.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp

from bench.chaos.texts import POISON
from penstock.errors import ProviderError, Reason
from penstock.providers.base import Deployment
from penstock.schemas import Message, ModelAnswer, ModelRequest, Usage

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
IDLE_S = 2.0
"""Shorter than a server keeps a connection: none is used that is just being closed."""
HTTP_ERROR = 400
REASONS = {
    429: Reason.THROTTLED,
    503: Reason.OVERLOADED,
    529: Reason.OVERLOADED,
    408: Reason.TIMEOUT,
    504: Reason.TIMEOUT,
}


class LightProvider:
    """Calls a model at `api_base`; one instance and one event loop a process."""

    def __init__(self) -> None:
        """Connect when the first call comes."""
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer:
        """Make one call; raise ProviderError for what is no answer."""
        if any(POISON in message.content for message in request.messages):
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._call(deployment, request)
        except TimeoutError:
            raise ProviderError(Reason.TIMEOUT, f"no answer within {request.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise ProviderError(Reason.CONNECTION, type(error).__name__, sent=False) from None
        except aiohttp.ClientError as error:
            raise ProviderError(Reason.CONNECTION, type(error).__name__) from None

    async def count_tokens(self, deployment: Deployment, messages: Sequence[Message]) -> int:  # noqa: ARG002
        """Count as the simulator does."""
        sizes = [len(message.content.encode()) for message in messages]
        return sum(-(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for size in sizes)

    def counter(self, deployment: Deployment) -> Callable[[str], int]:  # noqa: ARG002
        """Count as the simulator does."""
        return lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN)

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        body = {
            "model": deployment.model.removeprefix("openai/"),
            "messages": [message.model_dump() for message in request.messages],
            "max_tokens": request.max_tokens,
        }
        headers = {"Authorization": f"Bearer {deployment.account}", "X-Client-Request-Id": str(request.call_id)}
        async with self._session.post(f"{deployment.api_base}/chat/completions", json=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status >= HTTP_ERROR:
                raise _refusal(answer.status, answer.headers)
        return _answer(json.loads(content))


def _refusal(status: int, headers: Mapping[str, str]) -> ProviderError:
    reason = REASONS.get(status, Reason.SERVER_ERROR if status >= 500 else Reason.BAD_REQUEST)
    asked = headers.get("retry-after")
    return ProviderError(reason, f"status={status}", status=status, retry_after_s=float(asked) if asked else None)


def _answer(content: dict[str, Any]) -> ModelAnswer:
    choice, usage = content["choices"][0], content["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return ModelAnswer(
        text=choice["message"]["content"],
        model_served=content["model"],
        finish_reason=choice["finish_reason"],
        usage=Usage(
            input_tokens=usage["prompt_tokens"] - cached,
            cached_input_tokens=cached,
            output_tokens=usage["completion_tokens"],
        ),
    )
