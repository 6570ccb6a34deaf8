"""The simulator over HTTP: its bodies, faults, invoice and limits. Time stands still but where a test moves it."""

import base64
import json
import struct
from datetime import timedelta
from typing import Any

import httpx
import pytest

from penstock.providers.simulator.config import SimulatorConfig
from tests.hand_clock import START, HandClock

PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
CHAT = {"rpm": 60, "tpm": 60_000, "max_concurrency": 2, "context_window": 5000, "max_output": 1000, "prices": PRICES}
CONFIG = SimulatorConfig.model_validate(
    {
        "models": {
            "sim-small": CHAT,
            "sim-large": {**CHAT, "rpm": 600},
            "sim-embedding": {**CHAT, "kind": "embedding", "context_window": 100},
        }
    }
)
SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def body(text: str = "The cat sat on the mat.", **fields: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": text}], **fields}


def chat(client: httpx.Client, fields: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/chat/completions", json=fields or body(), headers=named)


def invoice(client: httpx.Client, query: str = "") -> dict[str, Any]:
    statement: dict[str, Any] = client.get(f"/invoice{query}").json()
    return statement


def statuses(client: httpx.Client, model: str = "sim-small") -> dict[str, int]:
    counts: dict[str, int] = client.get("/stats").json()["models"][model]["statuses"]
    return counts


def test_an_answer_has_the_form_of_openai(client: httpx.Client) -> None:
    answer = chat(client)
    content = answer.json()
    assert answer.headers["x-request-id"].startswith("req_")
    assert content.pop("id").startswith("chatcmpl-")
    assert content == {
        "object": "chat.completion",
        "created": int(START.timestamp()),
        "model": "sim-small",
        "system_fingerprint": "fp_simulator",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The cat sat on the mat.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 6,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_the_longest_fenced_document_of_the_last_user_message_is_summarised(client: httpx.Client) -> None:
    fenced = 'Do it. <document a="1">Short.</document> <document fence="x">\nThe long one.\n</document fence="x"> Now.'
    messages = [
        {"role": "user", "content": "<document>An earlier and much longer example document.</document>"},
        {"role": "assistant", "content": "Its summary."},
        {"role": "user", "content": [{"type": "text", "text": fenced}]},
    ]
    answer = chat(client, {"model": "sim-small", "messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == "The long one."


def test_a_long_document_is_summarised_in_its_own_sentences(client: httpx.Client) -> None:
    sentences = [f"Turbine number {number} turned {number * 7} times in the river's flood." for number in range(40)]
    content = chat(client, body(" ".join(sentences))).json()["choices"][0]["message"]["content"]
    chosen = [sentence for sentence in sentences if sentence in content]
    assert content == " ".join(chosen)
    assert 1 <= len(content.split()) <= 120


def test_max_tokens_cuts_the_answer(client: httpx.Client) -> None:
    answer = chat(client, body(max_tokens=2)).json()
    assert answer["choices"][0]["message"]["content"] == "The cat "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_max_tokens_that_just_suffice_do_not_cut(client: httpx.Client) -> None:
    assert chat(client, body(max_completion_tokens=6)).json()["choices"][0]["finish_reason"] == "stop"


def test_a_schema_is_answered_with_json_that_is_valid(client: httpx.Client) -> None:
    answer = chat(client, body("One sentence. Another.", response_format=JSON_SCHEMA)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"title": "One sentence."}


def test_json_object_is_answered_with_an_object(client: httpx.Client) -> None:
    answer = chat(client, body("Say it in JSON.", response_format={"type": "json_object"})).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"summary": "Say it in JSON."}


def test_a_stream_ends_with_its_usage(client: httpx.Client) -> None:
    answer = chat(client, body(stream=True, stream_options={"include_usage": True}))
    *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert done == "[DONE]"
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        == body()["messages"][0]["content"]
    )
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 16)


def test_a_stream_without_include_usage_says_nothing_of_it_and_is_invoiced(client: httpx.Client) -> None:
    assert "usage" not in chat(client, body(stream=True)).text
    assert invoice(client)["calls"] == 1


REFUSED = {
    "unknown field": (body(tools=[]), 400, "unknown_parameter", "tools"),
    "no messages": ({"model": "sim-small"}, 400, "missing_required_parameter", "messages"),
    "empty messages": (body() | {"messages": []}, 400, "invalid_value", "messages"),
    "role": (body() | {"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
    "max_tokens 0": (body(max_tokens=0), 400, "invalid_value", "max_tokens"),
    "max_tokens text": (body(max_tokens="9"), 400, "invalid_type", "max_tokens"),
    "both limits": (body(max_tokens=9, max_completion_tokens=9), 400, "invalid_value", None),
    "beyond max_output": (body(max_tokens=1001), 400, "invalid_value", "max_tokens"),
    "n": (body(n=2), 400, "invalid_value", "n"),
    "stream_options alone": (body(stream_options={"include_usage": True}), 400, "invalid_value", None),
    "json unmentioned": (body(response_format={"type": "json_object"}), 400, "invalid_value", None),
    "schema missing": (body(response_format={"type": "json_schema"}), 400, "invalid_value", "response_format"),
    "schema wrong": (
        body(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}),
        400,
        "invalid_json_schema",
        "response_format.json_schema.schema",
    ),
    "unknown model": (body() | {"model": "gpt"}, 404, "model_not_found", "model"),
    "embedding model": (body() | {"model": "sim-embedding"}, 404, "model_not_found", "model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_body_is_refused_with_the_parameter_and_costs_nothing(client: httpx.Client, case: str) -> None:
    fields, status, code, param = REFUSED[case]
    answer = chat(client, fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert invoice(client)["calls"] == 0
    assert chat(client).headers["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(client: httpx.Client, raw: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "We could not parse the JSON body of your request."


@pytest.mark.parametrize("key", ["", "Bearer", "Basic acme"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_request_without_a_key_is_unauthorized(client: httpx.Client, key: str, path: str) -> None:
    answer = client.post(path, json=body(), headers={"authorization": key})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_an_error_never_repeats_the_text(client: httpx.Client) -> None:
    answer = chat(client, body() | {"messages": [{"role": "SECRET", "content": "SECRET"}]})
    assert answer.status_code == 400
    assert "SECRET" not in answer.text


def test_a_prompt_and_answer_that_fill_the_context_window_are_taken_and_one_token_more_is_not(
    client: httpx.Client,
) -> None:
    fitting = body("x" * 4 * 3996, max_tokens=1000)
    assert chat(client, fitting).json()["usage"]["prompt_tokens"] == 4000
    answer = chat(client, body("x" * (4 * 3996 + 1), max_tokens=1000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert invoice(client)["calls"] == 1


def test_embeddings_are_repeatable_unit_vectors_in_both_encodings(client: httpx.Client) -> None:
    asked = {"model": "sim-embedding", "input": ["a river", "river a"]}
    first, second = client.post("/v1/embeddings", json=asked).json()["data"]
    coded = client.post("/v1/embeddings", json={**asked, "encoding_format": "base64"}).json()
    assert first["embedding"] == second["embedding"]
    assert len(first["embedding"]) == 256
    assert sum(value**2 for value in first["embedding"]) == pytest.approx(1.0)
    decoded = struct.unpack("<256f", base64.b64decode(coded["data"][0]["embedding"]))
    assert decoded == pytest.approx(first["embedding"])
    assert coded["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert invoice(client)["total_nanodollars"] == 2 * 4 * 150


@pytest.mark.parametrize("given", [[], "", ["a", ""], [[1, 2]], "x" * 401, ["x"] * 2049])
def test_an_embedding_of_nothing_or_too_much_is_refused(client: httpx.Client, given: object) -> None:
    assert client.post("/v1/embeddings", json={"model": "sim-embedding", "input": given}).status_code == 400
    assert invoice(client)["calls"] == 0


def test_models_are_listed(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["sim-small", "sim-large", "sim-embedding"]
    assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401


STATUS_FAULTS = {
    "throttled": (429, "rate_limit_exceeded"),
    "insufficient_quota": (429, "insufficient_quota"),
    "server_error": (500, None),
    "bad_gateway": (502, None),
    "unavailable": (503, None),
    "overloaded": (529, "overloaded"),
    "gateway_timeout": (504, None),
    "request_timeout": (408, "request_timeout"),
    "conflict": (409, "conflict"),
    "payment_required": (402, "payment_required"),
    "forbidden": (403, "unsupported_country"),
    "unauthorized": (401, "invalid_api_key"),
    "bad_request": (400, "invalid_value"),
    "content_filter": (400, "content_filter"),
    "context_length": (400, "context_length_exceeded"),
    "model_not_found": (404, "model_not_found"),
    "outage": (503, None),
}


@pytest.mark.parametrize("name", STATUS_FAULTS)
def test_a_status_fault_answers_with_its_error_and_is_not_invoiced(client: httpx.Client, name: str) -> None:
    status, code = STATUS_FAULTS[name]
    answer = chat(client, x_simulator_fault=name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "retry-after" not in answer.headers
    assert invoice(client)["calls"] == 0
    assert statuses(client) == {str(status): 1}
    assert chat(client).headers["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize("name", ["throttled", "unavailable", "overloaded", "outage"])
def test_a_fault_can_say_when_to_come_back(client: httpx.Client, name: str) -> None:
    assert chat(client, x_simulator_fault=f"{name}; retry_after=7").headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset", httpx.ReadError),
        ("outage;mode=refuse", httpx.ReadError),
        ("hang;hold_s=0", httpx.RemoteProtocolError),
    ],
)
def test_a_connection_closed_at_the_edge_is_not_invoiced(
    client: httpx.Client, fault: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        chat(client, x_simulator_fault=fault)
    assert invoice(client)["calls"] == 0
    assert statuses(client) == {"closed": 1}


def test_a_hanging_request_ends_when_the_client_goes(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body(), headers={"x-simulator-fault": "hang"}, timeout=0.05)
    looks = (client.get("/stats").json()["models"]["sim-small"]["in_flight"] for _ in range(1000))
    assert next(in_flight for in_flight in looks if in_flight == 0) == 0
    assert invoice(client)["calls"] == 0


def test_html_is_a_success_that_says_nothing_and_is_not_invoiced(client: httpx.Client) -> None:
    answer = chat(client, x_simulator_fault="html")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert invoice(client)["calls"] == 0


def test_a_cut_answer_declares_its_length_sends_half_and_is_invoiced(client: httpx.Client) -> None:
    whole = len(chat(client).content)
    with pytest.raises(httpx.RemoteProtocolError, match=f"received {whole // 2} bytes, expected {whole}"):
        chat(client, x_simulator_fault="cut")
    assert invoice(client)["calls"] == 2


def test_a_cut_stream_ends_without_its_end(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        chat(client, body(stream=True), x_simulator_fault="cut")
    assert invoice(client)["calls"] == 1


def test_a_lost_answer_is_invoiced(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        chat(client, x_simulator_fault="lost_answer", x_client_request_id="call-1")
    assert [line["client_request_id"] for line in invoice(client)["lines"]] == ["call-1"]
    assert statuses(client) == {"closed": 1}


def test_a_dripped_answer_is_whole_and_invoiced(client: httpx.Client) -> None:
    answer = chat(client, x_simulator_fault="drip;interval_ms=0")
    assert answer.json()["choices"][0]["message"]["content"] == "The cat sat on the mat."
    assert invoice(client)["calls"] == 1


def test_a_dripping_answer_outlasts_the_read_timeout_of_a_single_byte(client: httpx.Client) -> None:
    headers = {"x-simulator-fault": "drip;interval_ms=1"}
    with client.stream("POST", "/v1/chat/completions", json=body(), headers=headers) as answer:
        sizes = [len(piece) for piece in answer.iter_raw()]
    assert len(sizes) > 50


@pytest.mark.parametrize("stream", [False, True])
def test_empty_choices_are_invoiced(client: httpx.Client, *, stream: bool) -> None:
    answer = chat(client, body(stream=stream), x_simulator_fault="empty_choices")
    assert answer.status_code == 200
    assert '"choices": []' in answer.text
    assert invoice(client)["calls"] == 1


@pytest.mark.parametrize(
    ("fault", "form", "content"),
    [
        ("wrong_schema", {"type": "text"}, None),
        ("wrong_schema", JSON_SCHEMA, '{"unexpected": true}'),
        ("wrong_schema;mode=null", JSON_SCHEMA, None),
    ],
)
def test_a_wrong_schema_is_invoiced(
    client: httpx.Client, fault: str, form: dict[str, Any], content: str | None
) -> None:
    answer = chat(client, body(response_format=form), x_simulator_fault=fault)
    assert answer.json()["choices"][0]["message"]["content"] == content
    assert invoice(client)["calls"] == 1


def test_latency_delays_an_answer_and_is_invoiced(client: httpx.Client) -> None:
    answer = chat(client, x_simulator_fault="latency;extra_ms=60")
    assert answer.elapsed >= timedelta(milliseconds=60)
    assert invoice(client)["calls"] == 1


def test_a_call_is_invoiced_even_when_its_client_has_gone(client: httpx.Client) -> None:
    late = {"x-simulator-fault": "latency;extra_ms=150"}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body(), headers=late, timeout=0.05)
    looks = (client.get("/stats").json()["models"]["sim-small"]["in_flight"] for _ in range(5000))
    assert next(in_flight for in_flight in looks if in_flight == 0) == 0
    assert invoice(client)["calls"] == 1


@pytest.mark.parametrize("fault", ["nope", "cut;hold_s=1", "hang;hold_s=soon", "outage;mode=json", ""])
def test_a_fault_that_is_not_known_is_refused(client: httpx.Client, fault: str) -> None:
    answer = chat(client, x_simulator_fault=fault)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Simulator-Fault")
    assert client.post("/faults", json={"faults": [{"name": "cut"}, {"name": fault}]}).status_code == 400
    assert client.get("/faults").json() == {"faults": []}


def test_a_scripted_fault_strikes_as_often_as_it_was_told(client: httpx.Client) -> None:
    client.post("/faults", json={"faults": [{"name": "server_error", "count": 2}]}).raise_for_status()
    assert [chat(client).status_code for _ in range(3)] == [500, 500, 200]
    assert client.get("/faults").json() == {"faults": [{"name": "server_error", "count": 2, "struck": 2}]}


def test_a_scripted_fault_strikes_its_model_and_account_only(client: httpx.Client) -> None:
    script = [{"name": "overloaded", "model": "sim-large"}, {"name": "conflict", "account": "other"}]
    client.post("/faults", json={"faults": script}).raise_for_status()
    assert chat(client).status_code == 200
    assert chat(client, body() | {"model": "sim-large"}).status_code == 529
    assert chat(client, authorization="Bearer other").status_code == 409


def test_an_outage_lasts_for_its_window(client: httpx.Client, clock: HandClock) -> None:
    client.post("/faults", json={"faults": [{"name": "outage", "from_s": 5, "until_s": 30}]}).raise_for_status()
    seen = []
    for second in (0.0, 4.9, 5.0, 29.9, 30.0):
        clock.elapsed_s = second
        seen.append(chat(client).status_code)
    assert seen == [200, 200, 503, 503, 200]


def test_chances_are_the_same_after_every_reset(client: httpx.Client) -> None:
    def strike() -> list[int]:
        client.post("/reset")
        client.post("/faults", json={"faults": [{"name": "bad_gateway", "probability": 0.5}]})
        return [chat(client).status_code for _ in range(10)]

    first = strike()
    assert sorted(set(first)) == [200, 502]
    assert strike() == first


def test_deleted_faults_strike_no_more(client: httpx.Client) -> None:
    client.post("/faults", json={"faults": [{"name": "reset"}]})
    assert client.delete("/faults").json() == {"faults": []}
    assert chat(client).status_code == 200


def test_a_fault_of_the_answer_is_not_spent_on_a_request_that_is_refused(client: httpx.Client) -> None:
    client.post("/faults", json={"faults": [{"name": "empty_choices", "count": 1}]})
    assert chat(client, body(max_tokens=0)).status_code == 400
    assert chat(client).json()["choices"] == []


def test_an_invoice_line_is_exact(client: httpx.Client) -> None:
    chat(client, body("x" * 4 * 1020), x_client_request_id="call-1")
    chat(client, body("x" * 4 * 1020), x_client_request_id="call-2")
    expected = {
        "account": "acme",
        "model": "sim-small",
        "output_tokens": 1000,
        "at": "2026-01-31T12:00:00Z",
    }
    first = {"client_request_id": "call-1", "input_tokens": 1024, "cached_input_tokens": 0, "nanodollars": 753_600}
    second = {"client_request_id": "call-2", "input_tokens": 0, "cached_input_tokens": 1024, "nanodollars": 676_800}
    assert invoice(client) == {
        "lines": [expected | first, expected | second],
        "calls": 2,
        "input_tokens": 1024,
        "cached_input_tokens": 1024,
        "output_tokens": 2000,
        "total_nanodollars": 1_430_400,
    }


def test_another_account_finds_no_cached_prompt_of_mine(client: httpx.Client) -> None:
    for key in ("acme", "other"):
        usage = chat(client, body("x" * 8000), authorization=f"Bearer {key}").json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_an_invoice_can_be_asked_by_account_and_time_and_for_its_totals(client: httpx.Client, clock: HandClock) -> None:
    chat(client)
    clock.elapsed_s = 60
    chat(client)
    chat(client, authorization="Bearer other")
    assert invoice(client, "?account=acme")["calls"] == 2
    assert invoice(client, "?account=acme&since=2026-01-31T12:01:00Z")["calls"] == 1
    assert invoice(client, "?since=2026-01-31T12:01:01Z")["calls"] == 0
    assert "lines" not in invoice(client, "?lines=0")
    assert client.get("/invoice?since=2026-01-31T12:01:00").status_code == 400


def test_requests_beyond_the_burst_are_refused_until_the_bucket_has_one_again(
    client: httpx.Client, clock: HandClock
) -> None:
    first = chat(client)
    assert {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "9990",
        "x-ratelimit-reset-tokens": "10ms",
    }
    assert [chat(client).status_code for _ in range(10)] == [200] * 9 + [429]
    clock.elapsed_s = 0.25
    refused = chat(client)
    assert refused.json()["error"]["type"] == "requests"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "750")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.elapsed_s = 1.0
    assert [chat(client).status_code for _ in range(2)] == [200, 429]
    assert invoice(client)["calls"] == 11
    assert statuses(client) == {"200": 11, "429": 3}


def test_tokens_are_charged_at_admission_by_the_larger_of_prompt_and_max_tokens(
    client: httpx.Client, clock: HandClock
) -> None:
    assert chat(client, body(max_tokens=1000)).headers["x-ratelimit-remaining-tokens"] == "9000"
    assert chat(client, body("x" * 4 * 3996, max_tokens=10)).headers["x-ratelimit-remaining-tokens"] == "5000"
    assert chat(client, body("x" * 4 * 3996)).headers["x-ratelimit-remaining-tokens"] == "1000"
    refused = chat(client, body("x" * 4 * 2996))
    assert refused.json()["error"]["type"] == "tokens"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("2", "2000")
    clock.elapsed_s = 2.0
    assert chat(client, body("x" * 4 * 2996)).headers["x-ratelimit-remaining-tokens"] == "0"


def test_every_account_and_model_has_limits_of_its_own(client: httpx.Client) -> None:
    assert [chat(client).status_code for _ in range(11)][-1] == 429
    assert chat(client, authorization="Bearer other").status_code == 200
    assert chat(client, body() | {"model": "sim-large"}).status_code == 200


def test_more_calls_at_once_than_allowed_are_refused(client: httpx.Client) -> None:
    drip = {"x-simulator-fault": "drip;interval_ms=1"}
    held = [client.stream("POST", "/v1/chat/completions", json=body(), headers=drip) for _ in range(2)]
    with held[0], held[1]:
        refused = chat(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "on concurrency" in refused.json()["error"]["message"]
    assert client.get("/stats").json()["models"]["sim-small"]["peak_in_flight"] == 3
    assert invoice(client)["calls"] == 2


def test_a_reset_forgets_everything(client: httpx.Client) -> None:
    client.post("/faults", json={"faults": [{"name": "empty_choices"}]})
    chat(client)
    client.post("/reset").raise_for_status()
    assert invoice(client)["calls"] == 0
    assert client.get("/stats").json() == {"received": 0, "models": {}}
    assert client.get("/faults").json() == {"faults": []}
    assert chat(client).headers["x-ratelimit-remaining-requests"] == "9"


def test_it_says_that_it_is_there(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
