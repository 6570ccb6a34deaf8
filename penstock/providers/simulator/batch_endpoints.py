"""The endpoints of batches, and the faults of all that belongs to batches. It must not know how one is worked off."""

from dataclasses import dataclass

from starlette.requests import Request

from penstock.providers.simulator.batch_work import BatchWork
from penstock.providers.simulator.batches import Batch, BatchRequest
from penstock.providers.simulator.bodies import parse_json, validate
from penstock.providers.simulator.calls import authenticate, draw_fault
from penstock.providers.simulator.control import Handler
from penstock.providers.simulator.delivery import Answer, Delivery
from penstock.providers.simulator.faults import Stage
from penstock.providers.simulator.files import check_expiry
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State

MOST_LISTED = 100
DEFAULT_LISTED = 20
LONGEST_KEY, LONGEST_VALUE = 64, 512


@dataclass(frozen=True)
class Faulty:
    """An operation, such as `files.create`, with the faults that name it as their model."""

    state: State
    operation: str
    handler: Handler

    async def __call__(self, request: Request) -> Delivery:
        """Serve one request."""
        account = authenticate(request.headers)
        fault = draw_fault(self.state, request.headers, Stage.EDGE, account, self.operation)
        if fault:
            return fault.at_edge()
        answer = await self.handler(request)
        fault = draw_fault(self.state, request.headers, Stage.ANSWER, account, self.operation)
        return fault.deliver(answer) if fault and isinstance(answer, Answer) else answer


class BatchEndpoints:
    """What can be done with batches."""

    def __init__(self, state: State) -> None:
        """Take the simulator's state."""
        self.state = state
        self.work = BatchWork(state)

    async def create(self, request: Request) -> Answer:
        """Make a batch of an uploaded file."""
        account = authenticate(request.headers)
        asked = validate(parse_json(await request.body()), BatchRequest)
        _check_metadata(asked.metadata or {})
        if asked.output_expires_after is not None:
            check_expiry(asked.output_expires_after.seconds, "output_expires_after.seconds")
        file = self.state.files.find(account, asked.input_file_id)
        if file is None or file.purpose != "batch":
            message = "Invalid 'input_file_id': there is no such file with the purpose 'batch'."
            raise Refusal(400, message, code="invalid_value", param="input_file_id")
        batch = self.state.batches.add(account, asked, file)
        self.work.begin(batch)
        return Answer.json(batch.object())

    async def retrieve(self, request: Request) -> Answer:
        """Describe a batch; to look at it is what makes it go on."""
        batch = self._named(request)
        await self.work.look(batch)
        return Answer.json(batch.object())

    async def cancel(self, request: Request) -> Answer:
        """Cancel a batch."""
        batch = self._named(request)
        self.work.cancel(batch)
        return Answer.json(batch.object())

    async def list(self, request: Request) -> Answer:
        """List an account's batches, the newest first."""
        batches = self.state.batches.of(authenticate(request.headers))
        after, limit = request.query_params.get("after"), request.query_params.get("limit", str(DEFAULT_LISTED))
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
            raise Refusal(400, f"Invalid 'limit': from 1 to {MOST_LISTED}.", code="invalid_value", param="limit")
        ids = [batch.id for batch in batches]
        if after is not None and after not in ids:
            raise Refusal(400, "Invalid 'after': there is no such batch.", code="invalid_value", param="after")
        begin = 0 if after is None else ids.index(after) + 1
        page = batches[begin : begin + int(limit)]
        return Answer.json(
            {
                "object": "list",
                "data": [batch.object() for batch in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": begin + len(page) < len(batches),
            }
        )

    def _named(self, request: Request) -> Batch:
        batch = self.state.batches.find(authenticate(request.headers), request.path_params["id"])
        if batch is None:
            raise Refusal(404, "No batch found with this id.", param="batch_id")
        return batch


def _check_metadata(metadata: dict[str, str]) -> None:
    if any(len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE for key, value in metadata.items()):
        message = f"Invalid 'metadata': keys to {LONGEST_KEY} characters, values to {LONGEST_VALUE}."
        raise Refusal(400, message, code="invalid_value", param="metadata")
