"""Batches of requests, and what a file must be to become one. It must not know how a request is answered."""

import json
from asyncio import Task
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError

from penstock.clock import Clock
from penstock.providers.simulator.bodies import Body
from penstock.providers.simulator.faults import Fault
from penstock.providers.simulator.files import StoredFile

MOST_REQUESTS = 50_000
WINDOW_S = 24 * 3600
ENDED = {"completed", "failed", "expired", "cancelled"}


class OutputExpiry(Body):
    """How long the files are kept that a batch ends with."""

    anchor: Literal["created_at"]
    seconds: int


class BatchRequest(Body):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    output_expires_after: OutputExpiry | None = None


class Request(Body):
    """One line of an input file."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass
class Batch:
    """One batch; `answered` is the output file in the making, `refused` the error file."""

    account: str
    asked: BatchRequest
    created_at: int
    requests: list[Request] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)
    fault: Fault | None = None
    id: str = field(default_factory=lambda: f"batch_{uuid4().hex}")
    status: str = "validating"
    polls: int = 0
    times: dict[str, int] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    work: Task[None] | None = None

    @property
    def expires_at(self) -> int:
        """Give the end of its window."""
        return self.created_at + WINDOW_S

    def object(self) -> dict[str, object]:
        """Give it as OpenAI describes a batch."""
        stages = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.asked.input_file_id,
            "completion_window": self.asked.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{stage}_at": self.times.get(stage) for stage in stages},
            "request_counts": {"total": len(self.requests), "completed": self.completed, "failed": self.failed},
            "metadata": self.asked.metadata,
        }


class Batches:
    """All batches, and how many looks at one it takes until it ends."""

    def __init__(self, clock: Clock, polls: int | None) -> None:
        """Start empty; None as `polls`: none ever ends by itself."""
        self._clock = clock
        self._batches: dict[str, Batch] = {}
        self.polls = polls

    def add(self, account: str, asked: BatchRequest, file: StoredFile) -> Batch:
        """Make a batch of a file; what is wrong with that is said in `errors`."""
        batch = Batch(account, asked, int(self._clock.now().timestamp()))
        batch.requests, batch.errors = read_requests(file.content, asked.endpoint)
        self._batches[batch.id] = batch
        return batch

    def find(self, account: str, batch_id: str) -> Batch | None:
        """Find a batch of an account."""
        found = self._batches.get(batch_id)
        return found if found is not None and found.account == account else None

    def of(self, account: str) -> list[Batch]:
        """Give the batches of an account, the newest first."""
        return [batch for batch in reversed(self._batches.values()) if batch.account == account]


def read_requests(content: bytes, endpoint: str) -> tuple[list[Request], list[dict[str, object]]]:
    """Read an input file; a file with an error gives the errors, and no requests."""
    requests: list[Request] = []
    errors = list(_find_errors(content, endpoint, requests))
    return ([], errors) if errors else (requests, [])


def _find_errors(content: bytes, endpoint: str, requests: list[Request]) -> Iterator[dict[str, object]]:
    lines = content.splitlines()
    if not lines:
        yield _error("empty_file", "The input file is empty.")
    if len(lines) > MOST_REQUESTS:
        yield _error("too_many_tasks", f"The batch input file has {len(lines)} requests, and {MOST_REQUESTS} fit.")
        return
    ids: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            request = Request.model_validate(json.loads(line))
        except ValidationError as error:
            param = ".".join(str(part) for part in error.errors()[0]["loc"])
            yield _error("invalid_request", "This line is no request of a batch.", param, number)
            continue
        except ValueError:
            yield _error("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
            continue
        if request.custom_id in ids:
            yield _error("duplicate_custom_id", "The custom_id was used before.", "custom_id", number)
        if request.url != endpoint:
            yield _error("invalid_url", "The URL differs from the batch's endpoint.", "url", number)
        requests.append(request)
        ids.add(request.custom_id)
        if request.body.get("model") != requests[0].body.get("model"):
            yield _error("mismatched_model", "All requests of a batch have one model.", "body.model", number)


def _error(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, object]:
    return {"code": code, "message": message, "param": param, "line": line}
