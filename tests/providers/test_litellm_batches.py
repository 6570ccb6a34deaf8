"""The adapter of files against the simulator, and against a server that answers exactly what a test says, over HTTP."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr

from penstock.errors import ConfigurationError, ProviderError, Reason
from penstock.providers.base import BatchResult, BatchState, Deployment, ProviderBatch
from penstock.providers.litellm import FORBID_REMOTE_CALLS, NOISE
from penstock.providers.litellm_batches import LISTED, LiteLLMBatchProvider
from penstock.providers.simulator.config import SimulatorConfig
from penstock.schemas import Message, ModelAnswer, ModelRequest, Usage
from tests.hand_clock import HandClock

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}:UserWarning") for warning in NOISE]

Result = TypeVar("Result")

PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
LIMITS = {"rpm": 1, "tpm": 1, "max_concurrency": 1, "context_window": 4096, "max_output": 512}
CONFIG = SimulatorConfig.model_validate({"batch_polls": 0, "models": {"sim": {**LIMITS, "prices": PRICES}}})
SECRET = "Q3-MERGER-MEMO"
KEEP_S = 7200
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "completed",
    "created_at": 1,
    "output_file_id": "",
    "error_file_id": "",
}


def deployment(url: str, model: str = "openai/sim") -> Deployment:
    return Deployment(
        name="sim",
        model=model,
        account="acme",
        api_base=f"{url}/v1",
        api_key=SecretStr("acme"),
        context_window=4096,
        max_output_tokens=512,
    )


def request(call_id: UUID | None = None, text: str = "The cat sat on the mat.", **fields: Any) -> ModelRequest:
    messages = (Message(role="user", content=text),)
    return ModelRequest(call_id=call_id or uuid4(), messages=messages, max_tokens=100, timeout_s=60, **fields)


def ask(use: Callable[[LiteLLMBatchProvider], Awaitable[Result]]) -> Result:
    """Use an adapter on a loop of its own."""

    async def opened() -> Result:
        provider = LiteLLMBatchProvider()
        try:
            return await use(provider)
        finally:
            await provider.close()

    return asyncio.run(opened())


async def send(provider: LiteLLMBatchProvider, where: Deployment, *requests: ModelRequest) -> ProviderBatch:
    """Send a file, and look at its batch once."""
    lines = b"".join(provider.encode(where, each) for each in requests)
    file_id = await provider.upload(where, "a.jsonl", BytesIO(lines), keep_s=KEEP_S)
    batch = await provider.create(where, file_id, "m", keep_s=KEEP_S)
    return await provider.retrieve(where, batch.id)


async def read(provider: LiteLLMBatchProvider, where: Deployment, file_id: str | None) -> list[BatchResult]:
    return [result async for result in provider.results(where, file_id or "")]


@dataclass
class Told:
    """One answer to every request, and what was asked."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def told() -> Iterator[Told]:
    """Serve what the test says."""
    answer = Told()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            answer.asked.append(f"{self.command} {self.path}")
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"content-length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - as the library calls them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answer.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_sent_worked_off_read_and_forgotten(client: httpx.Client) -> None:
    where = deployment(str(client.base_url))
    first, second = request(), request(text="naïve ✓ " * 3)

    async def use(provider: LiteLLMBatchProvider) -> None:
        batch = await send(provider, where, first, second)
        assert (batch.state, batch.completed, batch.error_file) == (BatchState.COMPLETED, 2, None)
        one, two = await read(provider, where, batch.output_file)
        assert (one.call_id, two.call_id) == (first.call_id, second.call_id)
        assert one.outcome == ModelAnswer(
            text="The cat sat on the mat.",
            model_served="sim",
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=6),
        )
        assert isinstance(two.outcome, ModelAnswer)
        assert two.outcome.text == ("naïve ✓ " * 3).strip()

    ask(use)
    for file in client.get("/v1/files").json()["data"] * 2:
        assert file["expires_at"] == file["created_at"] + KEEP_S
        ask(lambda provider, file=file: provider.forget(where, file["id"]))  # type: ignore[misc]
    assert client.get("/v1/files").json()["data"] == []


def test_a_line_says_what_a_live_call_would(client: httpx.Client) -> None:
    provider = LiteLLMBatchProvider()
    schema = {"type": "object"}
    line = json.loads(
        provider.encode(deployment("http://127.0.0.1", "openai/gpt-5-mini"), request(output_schema=schema))
    )
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"] == {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": "The cat sat on the mat."}],
        "max_completion_tokens": 100,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema, "strict": True},
        },
    }
    other = json.loads(provider.encode(deployment("http://127.0.0.1"), request(text="two\nlines")))
    assert (other["body"]["max_tokens"], "response_format" in other["body"]) == (100, False)


def test_only_what_speaks_openais_protocol_takes_files() -> None:
    provider = LiteLLMBatchProvider()
    models = ("openai/gpt-5-mini", "hosted_vllm/llama", "anthropic/claude-sonnet-4-5")
    assert [provider.takes(deployment("http://127.0.0.1", model)) for model in models] == [True, True, False]


def test_a_batch_is_found_by_its_marker_on_whatever_page(client: httpx.Client, clock: HandClock) -> None:
    where = deployment(str(client.base_url))

    mine = ask(lambda provider: send(provider, where, request()))
    file_id = client.get("/v1/files").json()["data"][-1]["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for _ in range(LISTED):
        client.post("/v1/batches", json=asked).raise_for_status()
    again = client.post("/v1/batches", json=asked | {"metadata": {"penstock": "m"}}).json()["id"]

    async def use(provider: LiteLLMBatchProvider) -> None:
        found = await provider.find(where, "m", LONG_AGO)
        assert [batch.id for batch in found] == [mine.id, again]
        assert await provider.find(where, "other", LONG_AGO) == []
        made = clock.now()
        assert len(await provider.find(where, "m", made)) == 2
        assert await provider.find(where, "m", made + timedelta(seconds=1)) == []

    ask(use)


def test_a_cancelled_batch_tells_which_requests_were_not_run(client: httpx.Client) -> None:
    where = deployment(str(client.base_url))
    client.post("/batch-pace", json={"polls": None}).raise_for_status()

    async def use(provider: LiteLLMBatchProvider) -> None:
        batch = await send(provider, where, request())
        assert batch.state is BatchState.IN_PROGRESS
        assert (await provider.cancel(where, batch.id)).state is BatchState.CANCELLING
        over = await provider.retrieve(where, batch.id)
        assert (over.state, over.state.is_over, over.output_file) == (BatchState.CANCELLED, True, None)
        (result,) = await read(provider, where, over.error_file)
        assert isinstance(result.outcome, ProviderError)
        assert (result.outcome.sent, result.outcome.status) == (False, None)

    ask(use)


def test_a_batch_that_failed_as_a_whole_says_why(client: httpx.Client) -> None:
    where = deployment(str(client.base_url))
    twice = request()
    batch = ask(lambda provider: send(provider, where, twice, twice))
    assert (batch.state, batch.errors) == (BatchState.FAILED, ("duplicate_custom_id",))


def test_an_empty_name_of_a_file_is_none(told: Told) -> None:
    told.body = BATCH
    batch = ask(lambda provider: provider.retrieve(deployment(told.url), "batch_1"))
    assert (batch.output_file, batch.error_file, batch.completed) == (None, None, 0)


def test_a_state_that_nobody_knows_is_an_answer_that_cannot_be_read(told: Told) -> None:
    told.body = BATCH | {"status": "pending"}
    with pytest.raises(ProviderError) as trouble:
        ask(lambda provider: provider.retrieve(deployment(told.url), "batch_1"))
    assert trouble.value.reason is Reason.MALFORMED_ANSWER


@pytest.mark.parametrize(
    ("fault", "reason", "status"),
    [
        ("throttled", Reason.THROTTLED, 429),
        ("enqueued_tokens", Reason.THROTTLED, 429),
        ("insufficient_quota", Reason.QUOTA_EXHAUSTED, 429),
        ("server_error", Reason.SERVER_ERROR, 500),
        ("overloaded", Reason.OVERLOADED, 529),
        ("unauthorized", Reason.AUTHENTICATION, 401),
        ("bad_request", Reason.BAD_REQUEST, 400),
        ("reset", Reason.CONNECTION, None),
        ("lost_answer", Reason.CONNECTION, None),
        ("html", Reason.MALFORMED_ANSWER, None),
    ],
)
@pytest.mark.parametrize("operation", ["files.create", "batches.create", "batches.retrieve", "files.content"])
def test_each_failure_has_its_reason_and_is_not_tried_again(
    client: httpx.Client, operation: str, fault: str, reason: Reason, status: int | None
) -> None:
    if (operation, fault) == ("files.content", "html"):
        status = 200
    client.post("/faults", json={"faults": [{"name": fault, "model": operation}]}).raise_for_status()
    where = deployment(str(client.base_url))

    async def use(provider: LiteLLMBatchProvider) -> None:
        batch = await send(provider, where, request(text=SECRET))
        await read(provider, where, batch.output_file)

    with pytest.raises(ProviderError) as caught:
        ask(use)
    error = caught.value
    assert (error.reason, error.status, error.sent) == (reason, status, True)
    assert SECRET not in str(error)
    assert (error.__cause__, error.__context__) == (None, None)
    (scripted,) = client.get("/faults").json()["faults"]
    assert scripted["struck"] == 1


def test_how_long_to_wait_is_passed_on(client: httpx.Client) -> None:
    fault = {"name": "throttled", "model": "batches.create", "retry_after": 7}
    client.post("/faults", json={"faults": [fault]}).raise_for_status()
    where = deployment(str(client.base_url))
    with pytest.raises(ProviderError) as caught:
        ask(lambda provider: send(provider, where, request()))
    assert caught.value.retry_after_s == 7


def test_a_refused_connection_has_sent_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = deployment(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ProviderError) as caught:
            ask(lambda provider: provider.retrieve(where, "batch_1"))
    assert (caught.value.reason, caught.value.sent) == (Reason.CONNECTION, False)


def test_a_redirect_is_not_followed(told: Told) -> None:
    told.status, told.headers = 307, {"location": f"{told.url}/elsewhere"}
    with pytest.raises(ProviderError) as caught:
        ask(lambda provider: provider.upload(deployment(told.url), "a.jsonl", BytesIO(b"{}\n"), keep_s=KEEP_S))
    assert (caught.value.reason, caught.value.status) == (Reason.BAD_REQUEST, 307)
    assert told.asked == ["POST /v1/files"]


def test_a_look_at_a_batch_that_is_done_asks_for_nothing_else(told: Told) -> None:
    told.body = BATCH | {"output_file_id": "file-2"}
    ask(lambda provider: provider.retrieve(deployment(told.url), "batch_1"))
    assert told.asked == ["GET /v1/batches/batch_1"]


def test_no_file_leaves_this_machine_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORBID_REMOTE_CALLS, "1")
    with pytest.raises(ConfigurationError, match=FORBID_REMOTE_CALLS):
        ask(lambda provider: provider.upload(deployment("http://example.com"), "a", BytesIO(b""), keep_s=KEEP_S))


def answer_line(**changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": SECRET}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "sim", "choices": [choice], "usage": usage}
    return {"status_code": 200, "request_id": "r", "body": body | changes}


@pytest.mark.parametrize(
    ("response", "error", "reason", "sent", "usage"),
    [
        (answer_line(choices=[]), None, Reason.MALFORMED_ANSWER, True, Usage(input_tokens=5, output_tokens=2)),
        (answer_line(usage=None), None, Reason.MALFORMED_ANSWER, True, None),
        (answer_line(choices=None), None, Reason.MALFORMED_ANSWER, True, None),
        ({"status_code": 200, "body": SECRET}, None, Reason.MALFORMED_ANSWER, True, None),
        ({"status_code": 500, "body": {}}, None, Reason.MALFORMED_ANSWER, True, None),
        (
            {"status_code": 400, "body": {"error": {"code": "content_filter", "message": SECRET}}},
            None,
            Reason.CONTENT_POLICY,
            True,
            None,
        ),
        ({"status_code": 500, "body": {"error": {"message": SECRET}}}, None, Reason.SERVER_ERROR, True, None),
        (None, {"code": "batch_expired", "message": SECRET}, Reason.TIMEOUT, False, None),
        (None, {"code": "what_is_this", "message": SECRET}, Reason.MALFORMED_ANSWER, True, None),
        (None, None, Reason.MALFORMED_ANSWER, True, None),
    ],
)
def test_a_line_without_a_usable_answer_is_an_error_of_its_own(  # noqa: PLR0917
    told: Told,
    response: Any,
    error: Any,
    reason: Reason,
    sent: bool,  # noqa: FBT001 - pytest gives it by name
    usage: Usage | None,
) -> None:
    call_id = uuid4()
    bad = {"id": "b", "custom_id": str(call_id), "response": response, "error": error}
    good = {"id": "b", "custom_id": str(call_id), "response": answer_line(), "error": None}
    lines = ["", json.dumps(bad), json.dumps(good)]
    told.body = "\n".join(lines).encode()
    first, second = ask(lambda provider: read(provider, deployment(told.url), "file-2"))
    assert isinstance(first.outcome, ProviderError)
    outcome = first.outcome
    assert (outcome.reason, outcome.sent, outcome.usage) == (reason, sent, usage)
    assert SECRET not in str(outcome)
    assert isinstance(second.outcome, ModelAnswer)


@pytest.mark.parametrize("line", ["{", "[]", '{"custom_id": "not ours"}', "<html>"])
def test_a_file_with_a_line_that_is_no_result_is_told_after_its_results(told: Told, line: str) -> None:
    call_id = uuid4()
    good = {"id": "b", "custom_id": str(call_id), "response": answer_line(), "error": None}
    told.body = f"{line}\n{json.dumps(good)}\n".encode()
    found: list[UUID] = []

    async def use(provider: LiteLLMBatchProvider) -> None:
        async for result in provider.results(deployment(told.url), "file-2"):
            found.append(result.call_id)  # noqa: PERF401 - what came before the error is kept

    with pytest.raises(ProviderError, match="1 lines are no results"):
        ask(use)
    assert found == [call_id]
