"""Files and batches over HTTP: strict as OpenAI, half the price, and what can go wrong. Time stands still."""

import json
from typing import Any

import httpx
import pytest

from penstock.providers.simulator.batches import WINDOW_S
from penstock.providers.simulator.config import SimulatorConfig
from tests.hand_clock import HandClock

PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
LIMITS = {"rpm": 1, "tpm": 1, "max_concurrency": 1, "context_window": 4096, "max_output": 512}
CONFIG = SimulatorConfig.model_validate(
    {"batch_polls": 0, "models": {"sim": {**LIMITS, "prices": PRICES}, "other": {**LIMITS, "prices": PRICES}}}
)
TEXT = "The cat sat on the mat."  # 10 tokens as a prompt, 6 as an answer
FULL_PRICE = 10 * 150 + 6 * 600


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "sim", "messages": [{"role": "user", "content": TEXT}]} | changes.pop("body", {})
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def upload(client: httpx.Client, *lines: Any, **form: str) -> httpx.Response:
    content = "".join(f"{json.dumps(each) if isinstance(each, dict) else each}\n" for each in lines)
    files = {"file": ("batch.jsonl", content.encode(), "application/jsonl")}
    return client.post("/v1/files", data={"purpose": "batch"} | form, files=files)


def create(client: httpx.Client, file_id: str, **fields: Any) -> httpx.Response:
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=asked | fields)


def begin(client: httpx.Client, *lines: Any) -> str:
    return str(create(client, upload(client, *lines).json()["id"]).json()["id"])


def look(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return found


def read(client: httpx.Client, file_id: str | None) -> list[dict[str, Any]]:
    content = client.get(f"/v1/files/{file_id}/content")
    content.raise_for_status()
    return [json.loads(each) for each in content.text.splitlines()]


def fault(client: httpx.Client, name: str, **fields: Any) -> None:
    client.post("/faults", json={"faults": [{"name": name, "count": 1} | fields]}).raise_for_status()


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]


def test_a_batch_is_answered_at_half_the_price_and_takes_nothing_of_a_quota(client: httpx.Client) -> None:
    batch = look(client, begin(client, line("a"), line("b"), line("c")))
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})
    assert batch["error_file_id"] is None
    answers = read(client, batch["output_file_id"])
    assert ids(answers) == ["a", "b", "c"]
    assert (answers[0]["error"], answers[0]["response"]["status_code"]) == (None, 200)
    body = answers[0]["response"]["body"]
    assert (body["choices"][0]["message"]["content"], body["model"]) == (TEXT, "sim")
    assert body["usage"]["prompt_tokens"] == 10
    invoice = client.get("/invoice").json()
    assert [(each["client_request_id"], each["nanodollars"]) for each in invoice["lines"]] == [
        (custom_id, FULL_PRICE // 2) for custom_id in "abc"
    ]
    assert client.get("/stats").json()["models"] == {}


def test_a_file_is_described_read_listed_and_deleted_by_its_account_alone(client: httpx.Client) -> None:
    described = upload(client, line("a")).json()
    assert (described["object"], described["purpose"], described["filename"]) == ("file", "batch", "batch.jsonl")
    path = f"/v1/files/{described['id']}"
    assert client.get(path).json() == described
    assert len(client.get(f"{path}/content").content) == described["bytes"]
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [described["id"]]
    stranger = {"authorization": "Bearer initech"}
    assert client.get(path, headers=stranger).status_code == 404
    assert client.get("/v1/files", headers=stranger).json()["data"] == []
    assert client.delete(path, headers=stranger).status_code == 404
    assert client.delete(path).json() == {"id": described["id"], "object": "file", "deleted": True}
    assert client.get(path).status_code == 404


def test_a_file_expires_when_its_uploader_said(client: httpx.Client, clock: HandClock) -> None:
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    path = f"/v1/files/{upload(client, line('a'), **form).json()['id']}"
    clock.elapsed_s = 3599.0
    assert client.get(path).status_code == 200
    clock.elapsed_s = 3600.0
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"colour": "blue"}, "colour"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
        ({"expires_after[seconds]": "7200"}, "expires_after"),
    ],
)
def test_an_upload_that_is_not_as_documented_is_refused(client: httpx.Client, form: dict[str, str], param: str) -> None:
    refused = upload(client, line("a"), **form)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_batch_that_is_not_as_documented_is_refused(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused = create(client, upload(client, line("a")).json()["id"], **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert client.get("/v1/batches").json()["data"] == []


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([], "empty_file", None),
        ([line("a"), "{"], "invalid_json_line", 2),
        ([line("a", method="GET")], "invalid_request", 1),
        ([line("a", colour="blue")], "invalid_request", 1),
        ([line("a"), line("b"), line("a")], "duplicate_custom_id", 3),
        ([line("a", url="/v1/embeddings")], "invalid_url", 1),
        ([line("a"), line("b", body={"model": "other"})], "mismatched_model", 2),
        ([line("a", body={"model": "none"})], "model_not_found", None),
        ([line(str(n)) for n in range(50_001)], "too_many_tasks", None),
    ],
)
def test_a_file_with_an_error_fails_as_a_whole_and_costs_nothing(
    client: httpx.Client, lines: list[Any], code: str, number: int | None
) -> None:
    batch_id = begin(client, *lines)
    batch = look(client, batch_id)
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert (batch["errors"]["data"][0]["code"], batch["errors"]["data"][0].get("line")) == (code, number)
    assert batch["request_counts"]["total"] == 0
    assert client.get("/invoice?lines=0").json()["calls"] == 0


def test_a_request_that_a_live_call_would_refuse_is_a_line_of_the_error_file(client: httpx.Client) -> None:
    too_long = line("b", body={"max_tokens": 513})
    batch = look(client, begin(client, line("a"), too_long, line("c", body={"stream": True})))
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 1, "failed": 2})
    assert ids(read(client, batch["output_file_id"])) == ["a"]
    refused = read(client, batch["error_file_id"])
    assert ids(refused) == ["b", "c"]
    assert (refused[0]["response"]["status_code"], refused[0]["response"]["body"]["error"]["param"]) == (
        400,
        "max_tokens",
    )
    assert client.get("/invoice?lines=0").json()["calls"] == 1


def test_a_batch_ends_after_as_many_looks_as_the_pace_says(client: httpx.Client) -> None:
    client.post("/batch-pace", json={"polls": 2}).raise_for_status()
    batch_id = begin(client, line("a"))
    assert [look(client, batch_id)["status"] for _ in range(4)] == [
        "in_progress",
        "finalizing",
        "completed",
        "completed",
    ]


def test_a_cancelled_batch_pays_for_nothing_that_was_not_run(client: httpx.Client) -> None:
    client.post("/batch-pace", json={"polls": None}).raise_for_status()
    batch_id = begin(client, line("a"), line("b"))
    assert look(client, batch_id)["status"] == "in_progress"
    assert client.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
    batch = look(client, batch_id)
    assert (batch["status"], batch["output_file_id"]) == ("cancelled", None)
    errors = read(client, batch["error_file_id"])
    assert [(each["custom_id"], each["response"], each["error"]["code"]) for each in errors] == [
        ("a", None, "batch_cancelled"),
        ("b", None, "batch_cancelled"),
    ]
    assert client.post(f"/v1/batches/{batch_id}/cancel").status_code == 409
    assert client.get("/invoice?lines=0").json()["calls"] == 0


def test_a_batch_expires_by_the_clock(client: httpx.Client, clock: HandClock) -> None:
    client.post("/batch-pace", json={"polls": None}).raise_for_status()
    batch_id = begin(client, line("a"))
    clock.elapsed_s = WINDOW_S - 1.0
    assert look(client, batch_id)["status"] == "in_progress"
    clock.elapsed_s = float(WINDOW_S)
    assert look(client, batch_id)["status"] == "expired"


def test_batches_are_listed_newest_first_page_by_page_with_their_metadata(client: httpx.Client) -> None:
    file_id = upload(client, line("a")).json()["id"]
    made = [create(client, file_id, metadata={"n": str(n)}).json()["id"] for n in range(3)]
    page = client.get("/v1/batches?limit=2").json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    rest = client.get(f"/v1/batches?limit=2&after={page['last_id']}").json()
    assert ([each["metadata"] for each in rest["data"]], rest["has_more"]) == ([{"n": "0"}], False)
    assert client.get("/v1/batches", headers={"authorization": "Bearer initech"}).json()["data"] == []


def test_a_batch_expires_with_a_part_of_its_results_paid(client: httpx.Client) -> None:
    fault(client, "batch_expires", share=0.5)
    batch = look(client, begin(client, *(line(custom_id) for custom_id in "abcd")))
    assert (batch["status"], batch["request_counts"]["completed"]) == ("expired", 2)
    assert ids(read(client, batch["output_file_id"])) == ["a", "b"]
    errors = read(client, batch["error_file_id"])
    assert [(each["custom_id"], each["error"]["code"]) for each in errors] == [
        ("c", "batch_expired"),
        ("d", "batch_expired"),
    ]
    assert client.get("/invoice?lines=0").json()["calls"] == 2


def test_a_batch_stalls_with_a_part_of_its_results_paid_until_it_is_cancelled(client: httpx.Client) -> None:
    fault(client, "batch_stalls", share=0.25)
    batch_id = begin(client, *(line(custom_id) for custom_id in "abcd"))
    assert [look(client, batch_id)["status"] for _ in range(3)] == ["in_progress"] * 3
    client.post(f"/v1/batches/{batch_id}/cancel").raise_for_status()
    batch = look(client, batch_id)
    assert (batch["status"], ids(read(client, batch["output_file_id"]))) == ("cancelled", ["a"])


def test_a_batch_is_completed_without_its_file_for_a_while(client: httpx.Client) -> None:
    fault(client, "batch_without_file", looks=2)
    batch_id = begin(client, line("a"))
    found = [look(client, batch_id) for _ in range(3)]
    assert [(each["status"], each["output_file_id"] is None) for each in found] == [
        ("completed", True),
        ("completed", True),
        ("completed", False),
    ]


def test_lines_come_in_another_order_twice_or_not_at_all(client: httpx.Client) -> None:
    fault(client, "batch_shuffles")
    fault(client, "line_twice")
    fault(client, "line_lost")
    batch = look(client, begin(client, *(line(custom_id) for custom_id in "abc")))
    assert ids(read(client, batch["output_file_id"])) == ["c", "a", "a"]
    assert client.get("/invoice?lines=0").json()["calls"] == 3


def test_single_lines_fail_and_cost_nothing(client: httpx.Client) -> None:
    fault(client, "line_fails", status=429)
    batch = look(client, begin(client, line("a"), line("b")))
    (failed,) = read(client, batch["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("a", 429, None)
    assert client.get("/invoice?lines=0").json()["calls"] == 1


def test_the_limit_of_enqueued_tokens_is_told_at_once_or_later(client: httpx.Client) -> None:
    file_id = upload(client, line("a")).json()["id"]
    fault(client, "enqueued_tokens", model="batches.create")
    refused = create(client, file_id)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "token_limit_exceeded")
    fault(client, "batch_token_limit")
    batch = look(client, create(client, file_id).json()["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "token_limit_exceeded")


def test_a_fault_strikes_the_one_operation_that_it_names(client: httpx.Client) -> None:
    fault(client, "server_error", model="files.create")
    fault(client, "lost_answer", model="batches.create")
    assert upload(client, line("a")).status_code == 500
    file_id = upload(client, line("a")).json()["id"]
    with pytest.raises(httpx.RemoteProtocolError):
        create(client, file_id)
    (made,) = client.get("/v1/batches").json()["data"]
    assert made["input_file_id"] == file_id
