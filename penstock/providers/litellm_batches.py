"""Files of requests to a Batch API through LiteLLM, and a verdict on each result. It must not know jobs or money.

LiteLLM's handlers are called rather than its functions: those take no client, so that each call would open connections
of its own which follow redirects, and they download the output of a finished batch to price it.
"""

# Before LiteLLM: it prepares the environment that LiteLLM reads when it is imported.
from penstock.providers.litellm import (
    CONNECT_TIMEOUT_S,
    NO_KEY,
    Failure,
    examine,
    judge,
    refuse_remote_call,
    response_format,
    safe_token,
)

# isort: split
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, BinaryIO, TypeVar, cast
from uuid import UUID

import httpx
import litellm
from litellm.litellm_core_utils.llm_response_utils.convert_dict_to_response import convert_to_model_response_object
from litellm.llms.openai.openai import OpenAIBatchesAPI, OpenAIFilesAPI
from litellm.utils import get_optional_params
from openai import AsyncOpenAI

from penstock.clock import Clock, SystemClock
from penstock.errors import ProviderError, Reason
from penstock.providers.answers import provider_of, read_answer
from penstock.providers.base import BatchResult, BatchState, Deployment, ProviderBatch
from penstock.schemas import ModelAnswer, ModelRequest

__all__ = ["LiteLLMBatchProvider"]

PROVIDERS = frozenset({"openai", "hosted_vllm"})
ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
MARKER = "penstock"
CALL_S = 60.0
TRANSFER_S = 300.0
LISTED = 100
OURS = {"stream", "extra_body"}
"""What LiteLLM puts beside the parameters of a body."""
NOT_RUN = {"batch_expired", "batch_cancelled"}

Result = TypeVar("Result")


class LiteLLMBatchProvider:
    """The provider of files. One instance and one event loop a process; it opens at its first call."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Begin without a connection; the clock turns a Retry-After date into seconds."""
        self._clock = clock or SystemClock()
        self._http: httpx.AsyncClient | None = None
        self._files = OpenAIFilesAPI()
        self._batches = OpenAIBatchesAPI()

    def takes(self, deployment: Deployment) -> bool:
        """Tell whether it speaks OpenAI's protocol; whether its server has a Batch API, a call will tell."""
        return provider_of(deployment) in PROVIDERS

    def encode(self, deployment: Deployment, request: ModelRequest) -> bytes:
        """Write a line; LiteLLM knows which parameters the model takes, as in a live call."""
        provider, _, model = deployment.model.partition("/")
        parameters = get_optional_params(
            model=model,
            custom_llm_provider=provider,
            max_tokens=request.max_tokens,
            response_format=response_format(request),
        )
        body = {
            "model": model,
            "messages": [message.model_dump() for message in request.messages],
            **{name: value for name, value in parameters.items() if name not in OURS},
            **parameters.get("extra_body", {}),
        }
        line = {"custom_id": str(request.call_id), "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    async def upload(self, deployment: Deployment, name: str, content: BinaryIO, *, keep_s: int) -> str:
        """Upload a file, within TRANSFER_S."""
        asked: Any = {
            "file": (name, content, "application/jsonl"),
            "purpose": "batch",
            "expires_after": {"anchor": "created_at", "seconds": keep_s},
        }
        handler = self._files.create_file
        stored = await self._ask(deployment, handler, TRANSFER_S, create_file_data=asked)
        return str(stored.id)

    async def create(self, deployment: Deployment, file_id: str, marker: str, *, keep_s: int) -> ProviderBatch:
        """Create a batch, within CALL_S."""
        asked: Any = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": WINDOW,
            "metadata": {MARKER: marker},
            "output_expires_after": {"anchor": "created_at", "seconds": keep_s},
        }
        return _read_batch(await self._ask(deployment, self._batches.create_batch, create_batch_data=asked))

    async def find(self, deployment: Deployment, marker: str, since: datetime) -> list[ProviderBatch]:
        """Look through the account's batches, the newest first, back to `since`."""
        found: list[ProviderBatch] = []
        after: str | None = None
        while True:
            page = await self._ask(deployment, self._batches.list_batches, after=after, limit=LISTED)
            late = [each for each in page.data if datetime.fromtimestamp(each.created_at, UTC) >= since]
            found += [_read_batch(each) for each in late if (each.metadata or {}).get(MARKER) == marker]
            if not page.has_more or len(late) < len(page.data):
                return found[::-1]
            after = page.data[-1].id

    async def retrieve(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """Look at a batch, within CALL_S."""
        asked: Any = {"batch_id": batch_id}
        return _read_batch(await self._ask(deployment, self._batches.retrieve_batch, retrieve_batch_data=asked))

    async def cancel(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """Cancel a batch, within CALL_S."""
        asked: Any = {"batch_id": batch_id}
        return _read_batch(await self._ask(deployment, self._batches.cancel_batch, cancel_batch_data=asked))

    async def results(self, deployment: Deployment, file_id: str) -> AsyncGenerator[BatchResult, None]:
        """Download a file, within TRANSFER_S, beside the memory; then give its results."""
        with tempfile.TemporaryFile() as content:
            await self._download(deployment, file_id, content)
            content.seek(0)
            for result in _read_results(content, deployment, self._clock):
                yield result

    async def forget(self, deployment: Deployment, file_id: str) -> None:
        """Delete a file, within CALL_S."""
        try:
            await self._ask(deployment, self._files.delete_file, file_id=file_id)
        except ProviderError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    async def close(self) -> None:
        """Give the connections back; the next call would open new ones."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _download(self, deployment: Deployment, file_id: str, into: BinaryIO) -> None:
        async def copy(client: AsyncOpenAI) -> None:
            streaming: Any = self._files.afile_content_streaming(cast("Any", {"file_id": file_id}), client)
            async with aclosing((await streaming).stream_iterator) as chunks:
                async for chunk in chunks:
                    into.write(chunk)

        await self._judged(deployment, copy, TRANSFER_S)

    async def _ask(
        self, deployment: Deployment, handler: Callable[..., Any], timeout_s: float = CALL_S, **asked: Any
    ) -> Any:
        """Have a handler of LiteLLM make one call."""

        def call(client: AsyncOpenAI) -> Awaitable[Any]:
            asking: Awaitable[Any] = handler(
                _is_async=True,
                api_base=deployment.api_base,
                api_key=None,
                timeout=timeout_s,
                max_retries=0,
                organization=None,
                client=client,
                **asked,
            )
            return asking

        return await self._judged(deployment, call, timeout_s)

    async def _judged(
        self, deployment: Deployment, call: Callable[[AsyncOpenAI], Awaitable[Result]], timeout_s: float
    ) -> Result:
        """Make a call, and make of whatever it raises one of our errors, raised where nothing of it is attached."""
        refuse_remote_call(deployment)
        handled_by_caller = sys.exception()
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return await call(self._client(deployment))
        except Exception as error:  # noqa: BLE001 - the client library raises whatever its parsers trip over
            if deadline.expired():
                failure = ProviderError(Reason.TIMEOUT, f"no answer within {timeout_s:g} s")
            else:
                failure = judge(examine(error, handled_by_caller), self._clock)
        raise failure

    def _client(self, deployment: Deployment) -> AsyncOpenAI:
        if self._http is None:
            # A redirect would send a tenant's text to an address that nobody configured.
            timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
            self._http = httpx.AsyncClient(follow_redirects=False, timeout=timeout)
        key = deployment.api_key
        return AsyncOpenAI(
            api_key=key.get_secret_value() if key else NO_KEY if deployment.api_base else None,
            base_url=deployment.api_base,
            max_retries=0,
            http_client=self._http,
        )


def _read_batch(batch: Any) -> ProviderBatch:
    """Read a batch, some servers write an absent file as an empty name; raise ProviderError."""
    try:
        state = BatchState(batch.status)
    except ValueError:
        raise ProviderError(Reason.MALFORMED_ANSWER, "the batch is in a state that is not known") from None
    counts, errors = batch.request_counts, getattr(batch.errors, "data", None) or []
    codes = [safe_token(getattr(error, "code", None)) for error in errors]
    return ProviderBatch(
        id=batch.id,
        state=state,
        completed=counts.completed if counts else 0,
        output_file=batch.output_file_id or None,
        error_file=batch.error_file_id or None,
        errors=tuple(code for code in codes if code),
    )


def _read_results(content: BinaryIO, deployment: Deployment, clock: Clock) -> Iterator[BatchResult]:
    """Give the results that can be read; raise ProviderError at the end of a file with lines that are none."""
    unreadable = 0
    for raw in content:
        try:
            line = json.loads(raw)
            call_id = UUID(line["custom_id"])
        except (ValueError, KeyError, TypeError):
            unreadable += bool(raw.strip())
        else:
            yield BatchResult(call_id, _outcome(line, deployment, clock))
    if unreadable:
        raise ProviderError(Reason.MALFORMED_ANSWER, f"{unreadable} lines are no results", status=HTTPStatus.OK)


def _outcome(line: dict[str, Any], deployment: Deployment, clock: Clock) -> ModelAnswer | ProviderError:
    response, error = line.get("response"), line.get("error")
    try:
        if response and response["status_code"] == HTTPStatus.OK:
            body = convert_to_model_response_object(
                response_object=response["body"], model_response_object=litellm.ModelResponse()
            )
            return read_answer(body, deployment, {})
        code = safe_token((error or (response or {})["body"]["error"]).get("code"))
    except ProviderError as unusable:
        return unusable.with_traceback(None)
    except Exception:  # noqa: BLE001 - LiteLLM raises whatever its parsers trip over
        return ProviderError(Reason.MALFORMED_ANSWER, "no readable result", status=HTTPStatus.OK)
    if code in NOT_RUN:
        return ProviderError(Reason.TIMEOUT, f"code={code}", sent=False)
    status = response["status_code"] if response else None
    return judge(Failure(errors=(), status=status, code=code or "none"), clock)
