"""The adapter against the simulator's faults, and against a server that answers exactly what a test says.

Both are reached over HTTP, and both count what reaches them.
"""

import asyncio
import gc
import json
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from penstock.errors import ConfigurationError, ProviderError, Reason
from penstock.providers.base import Deployment
from penstock.providers.litellm import FORBID_REMOTE_CALLS, NOISE, LiteLLMProvider
from penstock.schemas import Message, ModelAnswer, ModelRequest, Usage

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}:UserWarning") for warning in NOISE]

CALL_ID = UUID("018f3e1c-0000-7000-8000-000000000001")
SECRET = "Q3-MERGER-MEMO"
ECHO = f"{SECRET}: rate limit 429, this text repeats the prompt"
NOW = datetime(2025, 1, 1, tzinfo=UTC)
MARGIN_S = 2.0
LINGER_ZERO = struct.pack("ii", 1, 0)


class FrozenClock:
    """New Year, for ever."""

    def now(self) -> datetime:
        """Give the one moment."""
        return NOW

    def monotonic_s(self) -> float:
        """Give the one moment."""
        return 0.0


@dataclass(frozen=True)
class Reply:
    """What the server does with a request: an HTTP answer, or one of the ways not to give one."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    def encode(self) -> bytes:
        """Make the bytes of the answer."""
        body = self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Told", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Server:
    """One reply to every request; `departed` is set when a client goes while it waits for an answer."""

    reply: Reply
    url: str = ""
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    departed: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client leaves it."""
        try:
            while True:
                await self.read_request(reader)
                await getattr(self, self.reply.fault or "answer")(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def read_request(self, reader: asyncio.StreamReader) -> None:
        """Read one request and keep it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((headers, json.loads(body)))
        self.arrived.set()

    async def answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Give the whole reply."""
        writer.write(self.reply.encode())
        await writer.drain()

    async def hang(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """Answer never."""
        await reader.read()
        self.departed.set()
        raise ConnectionError

    async def drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a byte at a time, so that no single read is slow."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(b" ")
            await asyncio.wait([gone], timeout=0.02)
        raise ConnectionError

    async def cut(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Promise more than is sent."""
        writer.write(self.reply.encode()[:-10])
        await writer.drain()
        raise ConnectionError

    async def lose(self, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """Close in order, without an answer."""
        raise ConnectionError

    async def reset(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Close by a TCP reset."""
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        writer.transport.abort()
        raise ConnectionError


@asynccontextmanager
async def serving(reply: Reply) -> AsyncGenerator[Server]:
    """Serve on a free port."""
    server = Server(reply)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()


@asynccontextmanager
async def calling() -> AsyncGenerator[LiteLLMProvider]:
    """Open an adapter and close it, and let the server's tasks see that."""
    provider = LiteLLMProvider(FrozenClock())
    try:
        yield provider
    finally:
        await provider.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=5)


def deployment(url: str | None, model: str = "openai/small-1") -> Deployment:
    """Point at a server."""
    return Deployment(
        name="small",
        model=model,
        account="acme",
        api_base=url,
        api_key=SecretStr("sk-test"),
        context_window=8192,
        max_output_tokens=1024,
    )


def request(*, timeout_s: float = 5.0, output_schema: dict[str, Any] | None = None) -> ModelRequest:
    """Ask something."""
    messages = (Message(role="system", content="Summarise."), Message(role="user", content=SECRET))
    return ModelRequest(
        call_id=CALL_ID, messages=messages, max_tokens=50, timeout_s=timeout_s, output_schema=output_schema
    )


def completion(**changes: Any) -> dict[str, Any]:
    """Make OpenAI's answer: 10 tokens in, 4 of them from the cache, 3 out."""
    message = {"role": "assistant", "content": "A summary."}
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "small-1-2025-01-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage,
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def choice(finish_reason: str, content: str | None, **more: Any) -> list[dict[str, Any]]:
    """Make the `choices` of an answer."""
    return [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content, **more}}]


USAGE = Usage(input_tokens=6, cached_input_tokens=4, output_tokens=3)


@dataclass(frozen=True)
class Observed:
    """What a call came to, and what the server saw of it."""

    outcome: ModelAnswer | ProviderError
    requests: list[tuple[dict[str, str], dict[str, Any]]]
    elapsed_s: float

    @property
    def answer(self) -> ModelAnswer:
        """Give the answer that there must be."""
        assert isinstance(self.outcome, ModelAnswer), self.outcome
        return self.outcome

    @property
    def error(self) -> ProviderError:
        """Give the error that there must be."""
        assert isinstance(self.outcome, ProviderError), self.outcome
        return self.outcome


def observe(reply: Reply, asked: ModelRequest | None = None, model: str = "openai/small-1") -> Observed:
    """Make one call to a server that replies so."""

    async def call() -> Observed:
        async with serving(reply) as server, calling() as provider:
            started = time.monotonic()
            try:
                outcome: ModelAnswer | ProviderError = await provider.complete(
                    deployment(server.url, model), asked or request()
                )
            except ProviderError as error:
                outcome = error
            return Observed(outcome, server.requests, time.monotonic() - started)

    return asyncio.run(call())


def scenario(body: Callable[[Server, LiteLLMProvider], Awaitable[None]], reply: Reply) -> None:
    """Run a test's own steps against a server."""

    async def run() -> None:
        async with serving(reply) as server, calling() as provider:
            await body(server, provider)

    asyncio.run(run())


def refusal(status: int, code: str | None = None, message: str = ECHO, **headers: str) -> Reply:
    """Make a provider's error; the message repeats the prompt, as some do."""
    error = {"message": message, "type": None, "param": None, "code": code}
    return Reply(status, {"error": error}, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture(scope="module", autouse=True)
def warm_up() -> None:
    """Let LiteLLM finish its lazy imports, so that no test's time holds them."""
    observe(Reply(body=completion()), request(timeout_s=60))


REFUSALS = {
    "throttled, in seconds": (refusal(429, retry_after="7"), Reason.THROTTLED, 7.0),
    "throttled, in milliseconds": (refusal(429, retry_after="2", retry_after_ms="1500"), Reason.THROTTLED, 1.5),
    "throttled, until a date": (refusal(429, retry_after="Wed, 01 Jan 2025 00:00:30 GMT"), Reason.THROTTLED, 30.0),
    "throttled, until a date gone by": (refusal(429, retry_after="Tue, 31 Dec 2024 00:00:00 GMT"), Reason.THROTTLED, 0),
    "throttled, without a wait": (refusal(429), Reason.THROTTLED, None),
    "throttled, with nonsense": (refusal(429, retry_after="soon"), Reason.THROTTLED, None),
    "throttled, with no number": (refusal(429, retry_after="nan"), Reason.THROTTLED, None),
    "insufficient_quota": (refusal(429, "insufficient_quota", retry_after="7"), Reason.QUOTA_EXHAUSTED, 7.0),
    "payment required": (refusal(402), Reason.QUOTA_EXHAUSTED, None),
    "unauthorized": (refusal(401, "invalid_api_key"), Reason.AUTHENTICATION, None),
    "forbidden": (refusal(403), Reason.AUTHENTICATION, None),
    "model not found": (refusal(404, "model_not_found"), Reason.MODEL_NOT_FOUND, None),
    "bad request": (refusal(400), Reason.BAD_REQUEST, None),
    "too large": (refusal(413), Reason.BAD_REQUEST, None),
    "unprocessable": (refusal(422), Reason.BAD_REQUEST, None),
    "another 4xx": (refusal(418), Reason.BAD_REQUEST, None),
    "redirect": (refusal(307, location="/elsewhere"), Reason.BAD_REQUEST, None),
    "context length by code": (refusal(400, "context_length_exceeded"), Reason.CONTEXT_LENGTH, None),
    "context length by words": (
        refusal(400, message="This model's maximum context length is 8192 tokens"),
        Reason.CONTEXT_LENGTH,
        None,
    ),
    "content filter by code": (refusal(400, "content_filter"), Reason.CONTENT_POLICY, None),
    "content filter by words": (
        refusal(400, message="Your request was rejected as a result of the safety system"),
        Reason.CONTENT_POLICY,
        None,
    ),
    "request timeout": (refusal(408), Reason.TIMEOUT, None),
    "gateway timeout": (refusal(504), Reason.TIMEOUT, None),
    "conflict": (refusal(409), Reason.SERVER_ERROR, None),
    "server error": (refusal(500), Reason.SERVER_ERROR, None),
    "bad gateway": (Reply(502, "<html>nginx</html>", {"content-type": "text/html"}), Reason.SERVER_ERROR, None),
    "another 5xx": (refusal(599), Reason.SERVER_ERROR, None),
    "unavailable": (refusal(503, retry_after="20"), Reason.OVERLOADED, 20.0),
    "overloaded": (refusal(529), Reason.OVERLOADED, None),
}


@pytest.mark.parametrize(("reply", "reason", "retry_after_s"), REFUSALS.values(), ids=REFUSALS)
def test_an_http_error_is_classified_by_status_and_code_after_one_request(
    reply: Reply, reason: Reason, retry_after_s: float | None
) -> None:
    observed = observe(reply)
    error = observed.error
    assert (error.reason, error.status, error.retry_after_s) == (reason, reply.status, retry_after_s)
    assert (error.sent, error.usage, len(observed.requests)) == (True, None, 1)
    assert observed.elapsed_s < MARGIN_S
    assert SECRET not in str(error)
    assert error.__cause__ is error.__context__ is None


BREAKAGES = {
    "hang": (Reply(fault="hang"), Reason.TIMEOUT),
    "drip": (Reply(fault="drip"), Reason.TIMEOUT),
    "cut": (Reply(body=completion(), fault="cut"), Reason.CONNECTION),
    "lost answer": (Reply(fault="lose"), Reason.CONNECTION),
    "reset": (Reply(fault="reset"), Reason.CONNECTION),
    "html": (Reply(body=f"<html>{SECRET}</html>", headers={"content-type": "text/html"}), Reason.MALFORMED_ANSWER),
    "html that says it is json": (Reply(body=f"<html>{SECRET}</html>"), Reason.MALFORMED_ANSWER),
    "empty body": (Reply(body=""), Reason.MALFORMED_ANSWER),
    "a list": (Reply(body=[SECRET]), Reason.MALFORMED_ANSWER),
    "no choices at all": (Reply(body=completion(choices=None)), Reason.MALFORMED_ANSWER),
    "a choice without a message": (Reply(body=completion(choices=[{"index": 0}])), Reason.MALFORMED_ANSWER),
}


@pytest.mark.parametrize(("reply", "reason"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_delivery_is_classified_within_the_deadline_after_one_request(reply: Reply, reason: Reason) -> None:
    observed = observe(reply, request(timeout_s=0.5))
    error = observed.error
    assert (error.reason, error.status, error.sent, len(observed.requests)) == (reason, None, True, 1)
    assert observed.elapsed_s < 0.5 + MARGIN_S
    assert SECRET not in str(error)


UNUSABLE = {
    "empty choices": (completion(choices=[]), USAGE),
    "null content": (completion(choices=choice("stop", None)), USAGE),
    "tool calls in place of text": (completion(choices=choice("tool_calls", None)), USAGE),
    "no usage": (completion(usage=None), None),
    "no prompt tokens": (completion(usage={"completion_tokens": 3}), None),
    "no output tokens": (completion(usage={"prompt_tokens": 10}), None),
    "negative tokens": (completion(usage={"prompt_tokens": -1, "completion_tokens": 3}), None),
    "more from the cache than there was": (
        completion(
            usage={"prompt_tokens": 3, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
        ),
        None,
    ),
}


@pytest.mark.parametrize(("body", "usage"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_answer_is_malformed_and_carries_the_usage_that_it_bills(
    body: dict[str, Any], usage: Usage | None
) -> None:
    observed = observe(Reply(body=body))
    error = observed.error
    assert (error.reason, error.status, error.usage) == (Reason.MALFORMED_ANSWER, 200, usage)
    assert len(observed.requests) == 1


def test_an_answer_names_who_served_it_and_counts_cached_input_apart() -> None:
    assert observe(Reply(body=completion())).answer == ModelAnswer(
        text="A summary.", model_served="small-1-2025-01-01", finish_reason="stop", usage=USAGE
    )


@pytest.mark.parametrize(
    ("choices", "text", "finish_reason"),
    [
        (choice("length", "A sum"), "A sum", "length"),
        (choice("length", None), "", "length"),
        (choice("content_filter", None), "", "content_filter"),
        (choice("stop", None, refusal="I cannot."), "", "content_filter"),
    ],
    ids=["cut", "cut before the first word", "filtered", "refused"],
)
def test_what_was_paid_for_comes_back_with_its_finish_reason(
    choices: list[dict[str, Any]], text: str, finish_reason: str
) -> None:
    answer = observe(Reply(body=completion(choices=choices))).answer
    assert (answer.text, answer.finish_reason, answer.usage) == (text, finish_reason, USAGE)


def test_usage_that_litellm_guesses_for_a_refused_max_tokens_is_not_taken_for_an_answer() -> None:
    message = "Could not finish the message because max_tokens or model output limit was reached."
    error = observe(refusal(400, message=message)).error
    assert (error.reason, error.usage) == (Reason.OUTPUT_TRUNCATED, None)


def test_an_error_inside_a_200_is_classified_by_its_own_code() -> None:
    error = observe(Reply(body={"error": {"code": 429, "message": ECHO}})).error
    assert (error.reason, error.status) == (Reason.THROTTLED, 429)
    assert SECRET not in str(error)


def test_the_request_carries_the_call_the_messages_and_the_schema_and_nothing_else() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    [(headers, body)] = observe(Reply(body=completion()), request(output_schema=schema)).requests
    assert headers["x-client-request-id"] == str(CALL_ID)
    assert headers["authorization"] == "Bearer sk-test"
    assert body == {
        "model": "small-1",
        "messages": [{"role": "system", "content": "Summarise."}, {"role": "user", "content": SECRET}],
        "max_tokens": 50,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema, "strict": True},
        },
    }


def test_anthropics_cache_reads_are_no_input_and_its_errors_go_by_the_same_table() -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "A summary."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 3},
    }
    answer = observe(Reply(body=message), model="anthropic/claude-sonnet-4-5").answer
    assert answer.usage == Usage(input_tokens=10, cached_input_tokens=5, output_tokens=3)
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    error = observe(Reply(529, overloaded, {"retry-after": "3"}), model="anthropic/claude-sonnet-4-5").error
    assert (error.reason, error.status, error.retry_after_s) == (Reason.OVERLOADED, 529, 3.0)


def test_nothing_was_sent_where_nobody_listens() -> None:
    async def call() -> ProviderError:
        async with calling() as provider:
            with pytest.raises(ProviderError) as caught:
                await provider.complete(deployment(f"http://127.0.0.1:{free_port()}/v1"), request())
            return caught.value

    error = asyncio.run(call())
    assert (error.reason, error.status, error.sent) == (Reason.CONNECTION, None, False)


def test_nothing_was_sent_where_no_tls_is_spoken() -> None:
    def speak_plainly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is no TLS\r\n")
        writer.close()

    async def call() -> ProviderError:
        listener = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
        async with listener, calling() as provider:
            port = listener.sockets[0].getsockname()[1]
            with pytest.raises(ProviderError) as caught:
                await provider.complete(deployment(f"https://127.0.0.1:{port}/v1"), request())
            return caught.value

    error = asyncio.run(call())
    assert (error.reason, error.sent) == (Reason.CONNECTION, False)


def free_port() -> int:
    """Find a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_call_made_while_another_failure_is_handled_is_judged_by_its_own() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        try:
            raise TimeoutError  # noqa: TRY301 - as a caller that falls back in its handler
        except TimeoutError:
            with pytest.raises(ProviderError) as caught:
                await provider.complete(deployment(server.url), request())
        assert caught.value.reason is Reason.MALFORMED_ANSWER

    scenario(steps, Reply(body=""))


def test_cancelling_the_caller_closes_the_connection() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        call = asyncio.create_task(provider.complete(deployment(server.url), request(timeout_s=30)))
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.departed.wait(), 2)
        assert len(server.requests) == 1

    scenario(steps, Reply(fault="hang"))


def test_the_deadline_closes_the_connection() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        with pytest.raises(ProviderError, match=r"timeout: no answer within 0\.2 s"):
            await provider.complete(deployment(server.url), request(timeout_s=0.2))
        await asyncio.wait_for(server.departed.wait(), 2)

    scenario(steps, Reply(fault="hang"))


def test_two_hundred_calls_with_as_many_deadlines_leave_no_descriptor_and_no_task() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        await provider.complete(deployment(server.url), request())
        gc.collect()
        descriptors, tasks = count_descriptors(), len(asyncio.all_tasks())
        for number in range(200):
            await provider.complete(deployment(server.url), request(timeout_s=5 + number / 100))
        assert (count_descriptors(), len(asyncio.all_tasks())) == (descriptors, tasks)
        assert len(server.requests) == 201

    scenario(steps, Reply(body=completion()))


def test_fifty_failed_calls_leave_no_descriptor() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        descriptors = count_descriptors()
        for _ in range(50):
            with pytest.raises(ProviderError):
                await provider.complete(deployment(server.url), request())
        await provider.close()
        assert count_descriptors() <= descriptors
        assert len(server.requests) == 50

    scenario(steps, Reply(fault="lose"))


def count_descriptors() -> int:
    """Count what this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def test_a_closed_adapter_gives_its_connections_back_and_opens_again() -> None:
    async def steps(server: Server, provider: LiteLLMProvider) -> None:
        await provider.complete(deployment(server.url), request())
        await provider.close()
        await provider.close()
        answer = await provider.complete(deployment(server.url), request())
        assert answer.text == "A summary."

    scenario(steps, Reply(body=completion()))


@pytest.mark.parametrize("api_base", [None, "https://api.openai.com/v1", "http://10.0.0.1/v1", "http://127.0.0.1.evil"])
def test_forbidden_remote_calls_are_refused_before_anything_is_sent(
    api_base: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORBID_REMOTE_CALLS, "1")
    with pytest.raises(ConfigurationError, match=r"PENSTOCK_FORBID_REMOTE_CALLS: deployment 'small'"):
        asyncio.run(LiteLLMProvider().complete(deployment(api_base), request()))


def test_loopback_is_allowed_where_remote_calls_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORBID_REMOTE_CALLS, "1")
    assert observe(Reply(body=completion())).answer.text == "A summary."


SIMULATED = {
    "throttled": (Reason.THROTTLED, 429, True),
    "insufficient_quota": (Reason.QUOTA_EXHAUSTED, 429, True),
    "payment_required": (Reason.QUOTA_EXHAUSTED, 402, True),
    "unauthorized": (Reason.AUTHENTICATION, 401, True),
    "forbidden": (Reason.AUTHENTICATION, 403, True),
    "model_not_found": (Reason.MODEL_NOT_FOUND, 404, True),
    "bad_request": (Reason.BAD_REQUEST, 400, True),
    "content_filter": (Reason.CONTENT_POLICY, 400, True),
    "context_length": (Reason.CONTEXT_LENGTH, 400, True),
    "request_timeout": (Reason.TIMEOUT, 408, True),
    "gateway_timeout": (Reason.TIMEOUT, 504, True),
    "conflict": (Reason.SERVER_ERROR, 409, True),
    "server_error": (Reason.SERVER_ERROR, 500, True),
    "bad_gateway": (Reason.SERVER_ERROR, 502, True),
    "unavailable": (Reason.OVERLOADED, 503, True),
    "overloaded": (Reason.OVERLOADED, 529, True),
    "outage": (Reason.OVERLOADED, 503, True),
    "hang": (Reason.TIMEOUT, None, True),
    "drip": (Reason.TIMEOUT, None, True),
    "latency": (Reason.TIMEOUT, None, True),
    "cut": (Reason.CONNECTION, None, True),
    "lost_answer": (Reason.CONNECTION, None, True),
    "reset": (Reason.CONNECTION, None, True),
    "html": (Reason.MALFORMED_ANSWER, None, True),
    "empty_choices": (Reason.MALFORMED_ANSWER, 200, True),
}

SIMULATOR = """
[models.sim]
rpm = 600000
tpm = 60000000
max_concurrency = 100
context_window = 8192
max_output = 1024
prices = { input = "1", cached_input = "1", output = "1" }
"""


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the simulator as a process of its own; give its address."""
    config = tmp_path_factory.mktemp("simulator") / "simulator.toml"
    config.write_text(SIMULATOR)
    command = [sys.executable, "-m", "penstock.providers.simulator", "--port", "0", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().split()[-1]
        process.terminate()


def call_simulator(url: str) -> ModelAnswer:
    """Make one call within 0.5 s."""

    async def call() -> ModelAnswer:
        async with calling() as provider:
            return await provider.complete(deployment(f"{url}/v1", "openai/sim"), request(timeout_s=0.5))

    return asyncio.run(call())


@pytest.mark.parametrize("name", SIMULATED)
def test_every_fault_of_the_simulator_is_classified_after_one_request(simulator: str, name: str) -> None:
    httpx.post(f"{simulator}/reset").raise_for_status()
    httpx.post(f"{simulator}/faults", json={"faults": [{"name": name}]}).raise_for_status()
    started = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        call_simulator(simulator)
    assert time.monotonic() - started < 0.5 + MARGIN_S
    assert (caught.value.reason, caught.value.status, caught.value.sent) == SIMULATED[name]
    assert httpx.get(f"{simulator}/stats").json()["received"] == 1


def test_usage_is_what_the_simulator_invoices(simulator: str) -> None:
    httpx.post(f"{simulator}/reset").raise_for_status()
    answer = call_simulator(simulator)
    [line] = httpx.get(f"{simulator}/invoice").json()["lines"]
    used = answer.usage
    assert line["client_request_id"] == str(CALL_ID)
    assert (line["input_tokens"], line["output_tokens"]) == (used.input_tokens, used.output_tokens)


def test_a_verdict_survives_pickling() -> None:
    error = observe(refusal(429, retry_after="7")).error
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (ProviderError, error.args, vars(error))
