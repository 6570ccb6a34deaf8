"""The life of one call: fault, key, body, limits, work, invoice, delivery. It must not know what a model says."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Literal
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from penstock.providers.simulator.bodies import BodyModel, parse_json, validate
from penstock.providers.simulator.charges import Demand
from penstock.providers.simulator.config import ModelConfig
from penstock.providers.simulator.delivery import Answer, Delivery
from penstock.providers.simulator.faults import Fault, Stage, parse_fault
from penstock.providers.simulator.headers import retry_headers
from penstock.providers.simulator.limits import Excess, Meter
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State
from penstock.providers.simulator.stats import UNKNOWN
from penstock.schemas import Usage


@dataclass
class Call:
    """One request on its way; `held` gives back what it occupies when it has been delivered."""

    account: str
    model: str
    client_request_id: str | None
    held: ExitStack
    meter: Meter | None = None
    id: str = field(default_factory=lambda: f"req_{uuid4().hex}")

    def answer_headers(self) -> dict[str, str]:
        """Give the headers that every answer carries."""
        return {"x-request-id": self.id, **(self.meter.headers() if self.meter else {})}


@dataclass(frozen=True)
class Done:
    """Work that was done: what it used, how long it takes, and what the client is to be sent."""

    usage: Usage
    wait_ms: float
    answer: Answer


class ModelEndpoint(ABC, Generic[BodyModel]):
    """An ASGI endpoint that serves one kind of models."""

    kind: Literal["chat", "embedding"]
    body: type[BodyModel]

    def __init__(self, state: State) -> None:
        """Take the simulator's state."""
        self.state = state

    @abstractmethod
    def demand(self, call: Call, body: BodyModel, model: ModelConfig) -> Demand:
        """Give what the request brings; raise Refusal when the model cannot take it."""

    @abstractmethod
    async def work(self, call: Call, body: BodyModel, model: ModelConfig, fault: Fault | None) -> Done:
        """Do the model's work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        content = parse_json(await request.body())
        with ExitStack() as held:
            call = _identify(request.headers, content, held)
            label = call.model if call.model in self.state.config.models else UNKNOWN
            held.enter_context(self.state.stats.request(label))
            delivery = await self._serve(call, request.headers, content)
            self.state.stats.answered(label, delivery.status)
            await delivery(scope, receive, send)

    async def _serve(self, call: Call, headers: Headers, content: dict[str, Any] | None) -> Delivery:
        try:
            fault = draw_fault(self.state, headers, Stage.EDGE, call.account, call.model)
            return fault.at_edge() if fault else await self._answer(call, headers, content)
        except Refusal as refusal:
            return refusal.answer(call.answer_headers())

    async def _answer(self, call: Call, headers: Headers, content: dict[str, Any] | None) -> Delivery:
        authenticate(headers)
        body = validate(content, self.body)
        model = self.find_model(call.model)
        call.meter = self.state.limits.meter(call.account, call.model)
        self._admit(call, call.meter, self.demand(call, body, model))
        fault = draw_fault(self.state, headers, Stage.ANSWER, call.account, call.model)
        done = await self.work(call, body, model, fault)
        if done.wait_ms:
            await asyncio.sleep(done.wait_ms / 1000)
        self._settle(call, call.meter, done.usage)
        return fault.deliver(done.answer) if fault else done.answer

    def find_model(self, name: str) -> ModelConfig:
        """Give a model of this kind; raise Refusal."""
        model = self.state.config.models.get(name)
        if model is None:
            message = "The model does not exist or you do not have access to it."
            raise Refusal(404, message, code="model_not_found", param="model")
        if model.kind != self.kind:
            message = f"This is not a model for {self.kind}."
            raise Refusal(404, message, code="model_not_found", param="model")
        return model

    def _admit(self, call: Call, meter: Meter, demand: Demand) -> None:
        outcome = meter.admit(demand)
        if isinstance(outcome, Excess):
            raise _refuse(outcome)
        call.held.callback(meter.release)
        self.state.charge(call.account, call.model, outcome)

    def _settle(self, call: Call, meter: Meter, usage: Usage) -> None:
        produced = meter.settle(usage.output_tokens)
        if produced:
            self.state.charge(call.account, call.model, produced)
        self.state.bill(call.account, call.model, usage, call.client_request_id)


def authenticate(headers: Headers) -> str:
    """Give the account, which is the key; raise Refusal without one."""
    key = _bearer_key(headers)
    if not key:
        raise Refusal(401, "You didn't provide an API key in an Authorization: Bearer header.", code="invalid_api_key")
    return key


def draw_fault(state: State, headers: Headers, stage: Stage, account: str, model: str) -> Fault | None:
    """Give the fault that strikes a request at this stage: the one its header names, or else the script's."""
    named = headers.get("x-simulator-fault")
    if named is None:
        return state.script.draw(stage, account, model)
    fault = parse_fault(named)
    return fault if fault.stage is stage else None


def _identify(headers: Headers, content: dict[str, Any] | None, held: ExitStack) -> Call:
    model = (content or {}).get("model")
    return Call(_bearer_key(headers), str(model), headers.get("x-client-request-id"), held)


def _bearer_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _refuse(excess: Excess) -> Refusal:
    resource = excess.resource.replace("_", " ")
    kind = "tokens" if resource.endswith("tokens") else "requests"
    numbers = f"Limit {excess.limit}, Requested {excess.requested}."
    if excess.wait_s is None:
        return Refusal(429, f"Request too large on {resource} per minute: {numbers}", kind, "rate_limit_exceeded")
    message = f"Rate limit reached on {resource}: {numbers} Please try again in {excess.wait_s:.3f}s."
    return Refusal(429, message, kind, "rate_limit_exceeded", headers=retry_headers(excess.wait_s))
