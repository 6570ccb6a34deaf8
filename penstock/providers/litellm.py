"""One call to any provider through LiteLLM, and one verdict on it. It must not know jobs, prices or retry policy.

The only file that imports LiteLLM (4 to 5 s, 180 MB): only worker processes import it, and never before a fork.
Nothing of LiteLLM's own judgement is used where the HTTP response itself can be read: it guesses classes from texts
that may echo the prompt, and puts status 429 on a refusal that speaks of a "rate limit".
"""

import asyncio
import ipaddress
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

# A background thread would fetch prices, and the mode "DEV" would read a .env file into this process.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_MODE"] = "PRODUCTION"

import aiohttp
import httpcore
import httpx
import litellm
import openai.resources  # noqa: F401 - the client loads it in its first call otherwise, which a job would wait for
from litellm._internal_context import is_internal_call  # no public way; a test holds it
from litellm.exceptions import (
    BadRequestError,
    ContentPolicyViolationError,
    ContextWindowExceededError,
    Timeout,
    UnsupportedParamsError,
)
from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport

from penstock.clock import Clock, SystemClock
from penstock.errors import ConfigurationError, ProviderError, Reason
from penstock.providers.answers import read_answer, read_embedding, read_limits, seconds
from penstock.providers.base import Deployment
from penstock.schemas import Message, ModelAnswer, ModelRequest

__all__ = ["FORBID_REMOTE_CALLS", "VERDICTS", "LiteLLMProvider", "Verdict"]

FORBID_REMOTE_CALLS = "PENSTOCK_FORBID_REMOTE_CALLS"
CONNECT_TIMEOUT_S = 10.0
MAX_EXCEPTION_DEPTH = 20
LONG_CHARACTERS = 32_000
"""Some 3 ms of counting: what takes longer is done in a thread, beside the other jobs of the loop."""
NOISE = ("Pydantic serializer warnings", "Item '.*' on TypedDict class")
SAFE_TOKEN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table: it matches a failure when all that it names does."""

    reason: Reason
    codes: tuple[str, ...] = ()
    statuses: tuple[int, ...] | range = ()
    errors: tuple[type[BaseException], ...] = ()
    sent: bool = True

    def matches(self, failure: "Failure") -> bool:
        """Tell whether this line speaks about `failure`."""
        return (
            (not self.codes or failure.code in self.codes)
            and (not self.statuses or failure.status in self.statuses)
            and (not self.errors or any(isinstance(error, self.errors) for error in failure.errors))
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known for certain about a call that gave no answer: the HTTP response, and the exceptions."""

    errors: tuple[BaseException, ...]
    status: int | None = None
    code: str | None = None
    param: str | None = None
    headers: httpx.Headers | None = None

    def describe(self) -> str:
        """Name what happened in words that cannot be the request's or the answer's."""
        named = {"status": self.status, "code": self.code, "param": self.param}
        facts = [f"{name}={value}" for name, value in named.items() if value is not None]
        return " ".join(facts) or type(self.errors[-1]).__name__


REFUSALS = (400, 413, 422)

# The first line that matches decides: what the body says, then the status, then what happened to the connection.
VERDICTS = (
    Verdict(Reason.QUOTA_EXHAUSTED, codes=("insufficient_quota", "billing_hard_limit_reached")),
    Verdict(Reason.CONTEXT_LENGTH, codes=("context_length_exceeded",)),
    Verdict(Reason.CONTENT_POLICY, codes=("content_filter", "content_policy_violation")),
    Verdict(Reason.MODEL_NOT_FOUND, codes=("model_not_found", "DeploymentNotFound")),
    Verdict(Reason.AUTHENTICATION, codes=("invalid_api_key",)),
    Verdict(Reason.THROTTLED, codes=("rate_limit_exceeded",)),
    # Providers without codes say it in words only; LiteLLM knows the words, and the status keeps it honest.
    Verdict(Reason.CONTEXT_LENGTH, statuses=REFUSALS, errors=(ContextWindowExceededError,)),
    Verdict(Reason.CONTENT_POLICY, statuses=REFUSALS, errors=(ContentPolicyViolationError,)),
    Verdict(Reason.AUTHENTICATION, statuses=(401, 403)),
    Verdict(Reason.QUOTA_EXHAUSTED, statuses=(402,)),
    Verdict(Reason.MODEL_NOT_FOUND, statuses=(404,)),
    Verdict(Reason.TIMEOUT, statuses=(408, 504)),
    # A lock that the provider could not take on its own side: OpenAI's client, too, tries such a call again.
    Verdict(Reason.SERVER_ERROR, statuses=(409,)),
    Verdict(Reason.THROTTLED, statuses=(429,)),
    Verdict(Reason.OVERLOADED, statuses=(503, 529)),
    Verdict(Reason.SERVER_ERROR, statuses=range(500, 600)),
    Verdict(Reason.BAD_REQUEST, statuses=range(300, 500)),
    # Raised before the connection exists. Not httpx.ConnectError: LiteLLM makes it of a reset, too.
    Verdict(Reason.CONNECTION, errors=(aiohttp.ClientConnectorError, httpcore.ConnectError), sent=False),
    Verdict(
        Reason.CONNECTION,
        errors=(aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, httpcore.ConnectTimeout),
        sent=False,
    ),
    Verdict(Reason.TIMEOUT, errors=(TimeoutError, httpx.TimeoutException, Timeout)),
    Verdict(Reason.CONNECTION, errors=(aiohttp.ClientError, httpx.TransportError)),
    Verdict(Reason.BAD_REQUEST, errors=(UnsupportedParamsError,), sent=False),
    Verdict(Reason.BAD_REQUEST, errors=(BadRequestError,)),
    # No status, no broken connection: an answer came, and LiteLLM could not read it (HTML, no JSON, no choices).
    Verdict(Reason.MALFORMED_ANSWER),
)


def quieten() -> None:
    """Turn off all that LiteLLM does beside the call: it must not log, remember, repeat or redirect anything."""
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.redact_messages_in_exceptions = True
    litellm.suppress_debug_info = True
    litellm.disable_streaming_logging = True
    litellm.drop_params = False  # dropping one repeats a call that was answered with 422
    litellm.modify_params = False
    litellm.enable_json_schema_validation = False
    litellm.cache = None
    litellm.num_retries = None
    litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]  # a call for a vector takes it in place of a 0
    litellm.model_fallbacks = None
    # Where warnings are errors the second would fail every call; the first prints parts of the answer.
    for warning in NOISE:
        warnings.filterwarnings("ignore", warning, UserWarning)
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


quieten()


NO_KEY = "none"
"""What a server of one's own is sent that asks for no key: the client library refuses to send nothing."""


class LiteLLMProvider:
    """The provider that calls real models. One instance and one event loop a process; it opens at its first call."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Take the clock that turns a Retry-After date into seconds."""
        self._clock = clock or SystemClock()
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer:
        """Make one call and give its answer within `request.timeout_s` seconds.

        An answer that was cut ("length") or filtered ("content_filter") was paid for: it is an answer, and its
        `finish_reason` says so. Raises ProviderError, and ConfigurationError if remote calls are forbidden.
        """
        refuse_remote_call(deployment)
        outcome = await self._attempt(deployment, request)
        if isinstance(outcome, ProviderError):
            # Raised here, not where it was caught: the exceptions behind it hold the prompt, and would stay attached.
            raise outcome
        return outcome

    async def count_tokens(self, deployment: Deployment, messages: Sequence[Message]) -> int:
        """Count with LiteLLM's tokenizer for the model, which for models that it does not know is OpenAI's."""
        texts = [message.model_dump() for message in messages]
        if sum(len(message.content) for message in messages) < LONG_CHARACTERS:
            return count(deployment.model, texts)
        return await asyncio.to_thread(count, deployment.model, texts)

    def counter(self, deployment: Deployment) -> Callable[[str], int]:
        """Count with the same tokenizer; for threads."""
        return lambda text: count(deployment.model, [{"role": "user", "content": text}])

    async def close(self) -> None:
        """Give the connections back; the next call would open new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None
            litellm.aclient_session = None
            clients: Any = litellm.in_memory_llm_clients_cache
            clients.flush_cache()

    async def _attempt(self, deployment: Deployment, request: ModelRequest) -> ModelAnswer | ProviderError:
        handled_by_caller = sys.exception()
        try:
            async with asyncio.timeout(request.timeout_s) as deadline:
                if deployment.is_embedding:
                    response = await self._embed(deployment, request)
                    return read_embedding(response, deployment, response_headers(response))
                response = await self._call(deployment, request)
            return read_answer(response, deployment, response_headers(response))
        except ProviderError as error:
            return error
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its parsers trip over
            if deadline.expired():
                return ProviderError(Reason.TIMEOUT, f"no answer within {request.timeout_s:g} s")
            return judge(examine(error, handled_by_caller), self._clock)

    async def _call(self, deployment: Deployment, request: ModelRequest) -> Any:
        key = deployment.api_key
        is_internal_call.set(True)  # or it prices and logs every call in a queue that keeps the prompts alive
        return await litellm.acompletion(
            model=deployment.model,
            messages=[message.model_dump() for message in request.messages],
            api_base=deployment.api_base,
            api_key=key.get_secret_value() if key else NO_KEY if deployment.api_base else None,
            max_tokens=request.max_tokens,
            response_format=response_format(request),
            extra_headers={"X-Client-Request-Id": str(request.call_id)},
            # LiteLLM keeps one client for each value of timeout: a constant, the deadline is around the call.
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            max_retries=0,
            num_retries=0,
            shared_session=self._open_session(),
        )

    async def _embed(self, deployment: Deployment, request: ModelRequest) -> Any:
        key = deployment.api_key
        is_internal_call.set(True)
        return await litellm.aembedding(
            model=deployment.model,
            input=[message.content for message in request.messages],
            encoding_format="float",
            api_base=deployment.api_base,
            api_key=key.get_secret_value() if key else NO_KEY if deployment.api_base else None,
            extra_headers={"X-Client-Request-Id": str(request.call_id)},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            max_retries=0,
            num_retries=0,
            shared_session=self._open_session(),
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit here: the gates decide how many calls are in flight; LiteLLM's own session stops at 500 a host.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
            transport = LiteLLMAiohttpTransport(self._session, owns_session=False)
            # A redirect would send a tenant's text to an address that nobody configured.
            litellm.aclient_session = httpx.AsyncClient(transport=transport, follow_redirects=False)
        return self._session


def judge(failure: Failure, clock: Clock) -> ProviderError:
    """Make a verdict of what is known, by the first line of the table that matches."""
    verdict = next(verdict for verdict in VERDICTS if verdict.matches(failure))
    return ProviderError(
        verdict.reason,
        failure.describe(),
        status=failure.status,
        retry_after_s=retry_after_s(failure.headers, clock),
        sent=verdict.sent,
        limits=read_limits(failure.headers or {}),
    )


def retry_after_s(headers: httpx.Headers | None, clock: Clock) -> float | None:
    """Read how long the provider wants to be left alone, in seconds from now."""
    if headers is None:
        return None
    wait_ms = seconds(headers.get("retry-after-ms"))
    if wait_ms is not None:
        return wait_ms / 1000
    value = headers.get("retry-after")
    wait_s = seconds(value)
    return wait_s if wait_s is not None else seconds_until(value, clock)


def seconds_until(date: str | None, clock: Clock) -> float | None:
    """Give the seconds until a date in HTTP's form; None if it is not a date, or one without a zone."""
    try:
        return max(0.0, (parsedate_to_datetime(date or "") - clock.now()).total_seconds())
    except (TypeError, ValueError):
        return None


def refuse_remote_call(deployment: Deployment) -> None:
    """Raise ConfigurationError if the environment forbids calls that leave this machine, and this one would."""
    if os.environ.get(FORBID_REMOTE_CALLS) == "1" and not is_loopback(deployment.api_base):
        raise ConfigurationError(
            "environment",
            FORBID_REMOTE_CALLS,
            f"deployment {deployment.name!r} would call a provider outside this machine",
            "give it a loopback api_base, or unset the variable",
        )


def is_loopback(address: str | None) -> bool:
    """Tell whether a URL names this machine; None is the provider's own address."""
    host = urlsplit(address or "").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def count(model: str, messages: list[dict[str, Any]]) -> int:
    """Count the tokens of a prompt; blocks."""
    return int(litellm.token_counter(model=model, messages=messages))


def response_headers(response: Any) -> httpx.Headers:
    """Give the provider's own headers, which LiteLLM keeps beside the answer under names of its own."""
    kept = (getattr(response, "_hidden_params", None) or {}).get("additional_headers") or {}
    prefix = "llm_provider-"
    return httpx.Headers({name.removeprefix(prefix): str(value) for name, value in kept.items()})


def response_format(request: ModelRequest) -> dict[str, Any] | None:
    """Give the output schema in the form of a chat completion."""
    if request.output_schema is None:
        return None
    schema = {"name": "output", "schema": request.output_schema, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def examine(error: BaseException, handled_by_caller: BaseException | None = None) -> Failure:
    """Find the HTTP response behind whatever LiteLLM made of it.

    Python also chains the exception that the caller was handling when it called: that one is of another call.
    """
    errors = tuple(unwrap(error, handled_by_caller))
    response = next((e.response for e in errors if isinstance(e, httpx.HTTPStatusError)), None)
    if response is not None:
        code, param = read_error_body(response)
        return Failure(errors, response.status_code, code, param, response.headers)
    # An error inside an HTTP 200, as OpenRouter sends it: LiteLLM makes a bare Exception of it, with its code.
    inner = next((getattr(e, "status_code", None) for e in errors if type(e) is Exception), None)
    if isinstance(inner, int):
        return Failure(errors, inner)
    return Failure(errors, code=safe_token(inner))


def unwrap(error: BaseException, end: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and all that it was raised from, the outermost first, as far as `end`."""
    current: BaseException | None = error
    for _ in range(MAX_EXCEPTION_DEPTH):
        if current is None or current is end:
            return
        yield current
        current = current.__cause__ or current.__context__


def read_error_body(response: httpx.Response) -> tuple[str | None, str | None]:
    """Give the code (else the type) and the parameter that a provider's error body names."""
    try:
        error = response.json()["error"]
        return safe_token(error.get("code")) or safe_token(error.get("type")), safe_token(error.get("param"))
    except (ValueError, LookupError, TypeError, AttributeError, httpx.StreamError):
        return None, None


def safe_token(value: object) -> str | None:
    """Let an identifier through, and nothing that could be a text of the request."""
    return value if isinstance(value, str) and SAFE_TOKEN.fullmatch(value) else None
