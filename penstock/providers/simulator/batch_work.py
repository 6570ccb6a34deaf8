"""Does the work of a batch, request by request, at half the price. It must not know who looks at it, or when."""

import asyncio
import json
import math
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

from penstock.providers.simulator.batches import ENDED, Batch, Request
from penstock.providers.simulator.bodies import validate
from penstock.providers.simulator.calls import Call, Done, ModelEndpoint
from penstock.providers.simulator.faults import Fault, Stage
from penstock.providers.simulator.models import ChatEndpoint, EmbeddingEndpoint
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State

OK = 200
PATIENCE_S = 1.0
"""How long a look waits for work that is nearly done, so that small batches end when they are looked at."""
UNUSABLE = {"wrong_schema", "empty_choices"}
"""Faults of a live answer that an answer in a file can have, too."""
NOT_RUN = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: its batch was cancelled."),
}


class BatchWork:
    """What becomes of a batch between two looks at it."""

    def __init__(self, state: State) -> None:
        """Take the simulator's state."""
        self.state = state
        self.endpoints: dict[str, ModelEndpoint[Any]] = {
            "/v1/chat/completions": ChatEndpoint(state),
            "/v1/embeddings": EmbeddingEndpoint(state),
        }

    def begin(self, batch: Batch) -> None:
        """Draw what will be wrong with a batch, and start it if it is to end some day."""
        model = str(batch.requests[0].body.get("model")) if batch.requests else ""
        batch.fault = self.state.script.draw(Stage.BATCH, batch.account, model)
        if not batch.errors and model not in self.state.config.models:
            batch.errors = [{"code": "model_not_found", "message": "There is no such model.", "param": "body.model"}]
        if batch.fault and batch.fault.name == "batch_token_limit":
            batch.errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}]
        if batch.errors:
            batch.requests = []

    async def look(self, batch: Batch) -> None:
        """Go on with a batch because somebody looks at it."""
        batch.polls += 1
        if batch.status in ENDED:
            self._show_file(batch)
        elif batch.errors:
            self._end(batch, "failed")
        elif batch.status == "cancelling":
            await self._end_early(batch, "cancelled")
        elif self.state.clock.now().timestamp() >= batch.expires_at:
            await self._end_early(batch, "expired")
        else:
            await self._go_on(batch)

    def cancel(self, batch: Batch) -> None:
        """Ask a batch to end; what is being answered is answered."""
        if batch.status in ENDED:
            raise Refusal(409, f"Cannot cancel a batch with status '{batch.status}'.", code="invalid_value")
        self._enter(batch, "cancelling")

    async def _go_on(self, batch: Batch) -> None:
        stalls = batch.fault is not None and batch.fault.name == "batch_stalls"
        polls = None if stalls else self.state.batches.polls
        if polls is not None or stalls:
            await self._wait(batch)
        if polls is None or batch.polls <= polls or not self._is_done(batch):
            self._enter(batch, "finalizing" if polls and batch.polls == polls else "in_progress")
        elif batch.fault and batch.fault.name == "batch_expires":
            await self._end_early(batch, "expired")
        else:
            self._end(batch, "completed")

    async def _wait(self, batch: Batch) -> None:
        if batch.work is None:
            batch.work = asyncio.ensure_future(self._work(batch))
        await asyncio.wait([batch.work], timeout=PATIENCE_S)

    @staticmethod
    def _is_done(batch: Batch) -> bool:
        return batch.work is not None and batch.work.done()

    async def _work(self, batch: Batch) -> None:
        share = 1.0
        if batch.fault and batch.fault.name in {"batch_expires", "batch_stalls"}:
            share = batch.fault.share
        for request in batch.requests[: math.floor(len(batch.requests) * share)]:
            if batch.status == "cancelling":
                return
            await self._answer(batch, request)
            await asyncio.sleep(0)

    async def _answer(self, batch: Batch, request: Request) -> None:
        account, model = batch.account, str(request.body.get("model"))
        fault = self.state.script.draw(Stage.LINE, account, model)
        try:
            status, body = OK, await self._say(batch, request, fault)
            batch.completed += 1
        except Refusal as refusal:
            status, body = refusal.status, json.loads(b"".join(refusal.answer({}).pieces))
            batch.failed += 1
        response = {"status_code": status, "request_id": f"req_{uuid4().hex}", "body": body}
        line = _line(request, response=response)
        copies = {"line_lost": 0, "line_twice": 2}.get(fault.name if fault else "", 1)
        (batch.answered if status == OK else batch.refused).extend([line] * copies)

    async def _say(self, batch: Batch, request: Request, fault: Fault | None) -> Any:
        """Answer by the code that answers live calls, and bill it; no quota is charged."""
        if fault and fault.name == "line_fails":
            raise Refusal(fault.status, "The request failed.", "server_error")
        endpoint = self.endpoints[batch.asked.endpoint]
        body = validate(request.body, endpoint.body)
        if getattr(body, "stream", False):
            raise Refusal(400, "Invalid 'stream': a batch has no streams.", code="invalid_value", param="stream")
        model = endpoint.find_model(body.model)
        with ExitStack() as held:
            call = Call(batch.account, body.model, request.custom_id, held)
            endpoint.demand(call, body, model)
            done: Done = await endpoint.work(call, body, model, self._unusable(batch, body.model))
        self.state.bill(batch.account, body.model, done.usage, request.custom_id, is_batch=True)
        return json.loads(b"".join(done.answer.pieces))

    def _unusable(self, batch: Batch, model: str) -> Fault | None:
        fault = self.state.script.draw(Stage.ANSWER, batch.account, model)
        return fault if fault and fault.name in UNUSABLE else None

    async def _end_early(self, batch: Batch, status: str) -> None:
        if batch.work is not None:
            await batch.work
        code, message = NOT_RUN[status]
        for request in batch.requests[batch.completed + batch.failed :]:
            batch.refused.append(_line(request, error={"code": code, "message": message}))
        self._end(batch, status)

    def _end(self, batch: Batch, status: str) -> None:
        self._enter(batch, status)
        if batch.fault and batch.fault.name == "batch_shuffles":
            batch.answered.reverse()
        if batch.refused:
            batch.error_file_id = self._store(batch, "error", batch.refused)
        self._show_file(batch)

    def _show_file(self, batch: Batch) -> None:
        """Name the output file, unless a fault hides it from this look."""
        hides = batch.fault is not None and batch.fault.name == "batch_without_file"
        if hides and batch.fault and (batch.fault.looks is None or batch.polls <= batch.fault.looks):
            return
        if batch.answered and batch.output_file_id is None:
            batch.output_file_id = self._store(batch, "output", batch.answered)

    def _store(self, batch: Batch, kind: str, lines: list[str]) -> str:
        content = "".join(f"{line}\n" for line in lines).encode()
        expiry = batch.asked.output_expires_after
        name = f"{batch.id}_{kind}.jsonl"
        stored = self.state.files.add(
            batch.account, name, "batch_output", content, None if expiry is None else expiry.seconds
        )
        return stored.id

    def _enter(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.times.setdefault(status, int(self.state.clock.now().timestamp()))


def _line(request: Request, *, response: object = None, error: object = None) -> str:
    return json.dumps(
        {"id": f"batch_req_{uuid4().hex}", "custom_id": request.custom_id, "response": response, "error": error},
        ensure_ascii=False,
    )
