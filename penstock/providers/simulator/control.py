"""How a test or a bench looks at the simulator and tells it what to do. It must not know how a call is served."""

from collections.abc import Awaitable, Callable, Container

from pydantic import AwareDatetime, Field, FiniteFloat, TypeAdapter, ValidationError
from starlette.requests import Request

from penstock.providers.simulator.bodies import Body, parse_json, validate
from penstock.providers.simulator.calls import authenticate, draw_fault
from penstock.providers.simulator.delivery import Answer, Delivery
from penstock.providers.simulator.faults import Fault, Stage
from penstock.providers.simulator.limits import LimitChange
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State

Handler = Callable[[Request], Awaitable[Delivery]]


class PostedFaults(Body):
    """The body of POST /faults."""

    faults: list[Fault]


class Pace(Body):
    """The body of POST /batch-pace."""

    polls: int | None = Field(ge=0)


class Control:
    """The endpoints beside the models."""

    def __init__(self, state: State) -> None:
        """Take the simulator's state."""
        self.state = state

    async def models(self, request: Request) -> Delivery:
        """List the models, as OpenAI does; needs a key, and edge faults strike here too."""
        key = authenticate(request.headers)
        fault = draw_fault(self.state, request.headers, Stage.EDGE, key, "")
        if fault:
            return fault.at_edge()
        created = int(self.state.clock.now().timestamp())
        data = [
            {"id": name, "object": "model", "created": created, "owned_by": "simulator"}
            for name in self.state.config.models
        ]
        return Answer.json({"object": "list", "data": data})

    async def invoice(self, request: Request) -> Delivery:
        """Give the invoice of an account or of all, with lines unless `lines=0`."""
        asked = request.query_params
        with_lines = asked.get("lines", "1") != "0"
        since = _parse_since(asked.get("since"))
        statement = self.state.invoice.statement(asked.get("account"), since, with_lines=with_lines)
        return Answer.json(statement.model_dump(mode="json", exclude_none=not with_lines))

    async def stats(self, _request: Request) -> Delivery:
        """Give the counts."""
        return Answer.json(self.state.stats.report())

    async def accepted(self, request: Request) -> Delivery:
        """Give the newest charges, of a model and from a monotonic time on, if asked."""
        model = request.query_params.get("model")
        if model is not None:
            _check_model(model, self.state.config.models)
        since_s = _parse_since_s(request.query_params.get("since", "0"))
        return Answer.json(self.state.accepted.rows(since_s, model))

    @staticmethod
    async def health(_request: Request) -> Delivery:
        """Say that the server is there."""
        return Answer.json({"status": "ok"})

    async def reset(self, _request: Request) -> Delivery:
        """Go back to the beginning."""
        self.state.reset()
        return Answer.json({"status": "reset"})

    async def post_limits(self, request: Request) -> Delivery:
        """Change limits: all that were given, or none; answer with those that hold now."""
        change = validate(parse_json(await request.body()), LimitChange)
        _check_model(change.model, self.state.config.models)
        for foreign in sorted(change.limits.keys() - self.state.config.models[change.model].limits.keys()):
            message = f"Invalid '{foreign}': this model has no such limit."
            raise Refusal(400, message, code="invalid_value", param=foreign)
        limits = self.state.limits.change(change).limits
        return Answer.json({"model": change.model, "account": change.account, **limits})

    async def post_batch_pace(self, request: Request) -> Delivery:
        """Say how often batches are looked at before they end; null: they never do."""
        pace = validate(parse_json(await request.body()), Pace)
        self.state.batches.polls = pace.polls
        return Answer.json({"polls": pace.polls})

    async def post_faults(self, request: Request) -> Delivery:
        """Append faults to the script: all of them or none."""
        self.state.script.add(_parse_faults(parse_json(await request.body())))
        return Answer.json({"faults": self.state.script.listed()}, status=201)

    async def list_faults(self, _request: Request) -> Delivery:
        """Give the script."""
        return Answer.json({"faults": self.state.script.listed()})

    async def clear_faults(self, _request: Request) -> Delivery:
        """Forget the script."""
        self.state.script.clear()
        return Answer.json({"faults": []})


def _parse_since(text: str | None) -> AwareDatetime | None:
    try:
        return TypeAdapter(AwareDatetime | None).validate_python(text)
    except ValidationError as error:
        message = "Invalid 'since': give an ISO 8601 time with its offset, such as 2026-01-31T12:00:00Z."
        raise Refusal(400, message, code="invalid_value", param="since") from error


def _parse_since_s(text: str) -> float:
    try:
        return TypeAdapter(FiniteFloat).validate_python(text)
    except ValidationError as error:
        message = "Invalid 'since': give seconds of the simulator's monotonic clock, such as 12.5."
        raise Refusal(400, message, code="invalid_value", param="since") from error


def _check_model(name: str, models: Container[str]) -> None:
    if name not in models:
        raise Refusal(400, "Invalid 'model': there is no such model.", code="invalid_value", param="model")


def _parse_faults(content: object) -> list[Fault]:
    try:
        return PostedFaults.model_validate(content, strict=False).faults
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refusal(400, f"Invalid {place!r}: {first['msg']}.", code="invalid_value", param=place) from error
