"""Which request goes wrong, and how. It must not know how an answer is made.

A fault strikes at the edge (nothing was admitted, no work was done, nothing is invoiced), at the answer (the work was
done and is invoiced), or it strikes a whole batch, or a line of one.
"""

import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from penstock.clock import Clock
from penstock.providers.simulator.delivery import Answer, Closed, Delivery, Hung
from penstock.providers.simulator.refusals import Refusal
from penstock.schemas import Frozen

HTML = b"<!doctype html><html><head><title>Proxy</title></head><body><h1>Please log in</h1></body></html>"


class Stage(StrEnum):
    """When a fault strikes."""

    EDGE = "edge"
    ANSWER = "answer"
    BATCH = "batch"
    LINE = "line"


@dataclass(frozen=True)
class Kind:
    """What one name means: when it strikes, what it takes, and the error that it answers with, if it does."""

    stage: Stage
    parameters: frozenset[str] = frozenset()
    refusal: Refusal | None = None


def _error(status: int, message: str, type_: str, code: str | None, *parameters: str) -> Kind:
    return Kind(Stage.EDGE, frozenset(parameters), Refusal(status, message, type_, code))


INVALID = "invalid_request_error"
UNAVAILABLE = "The engine is currently overloaded, please try again later"

KINDS = {
    "throttled": _error(429, "Rate limit reached", "requests", "rate_limit_exceeded", "retry_after"),
    "insufficient_quota": _error(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
    "server_error": _error(500, "The server had an error", "server_error", None),
    "bad_gateway": _error(502, "Bad gateway", "server_error", None),
    "unavailable": _error(503, UNAVAILABLE, "server_error", None, "retry_after"),
    "overloaded": _error(529, "Overloaded", "overloaded_error", "overloaded", "retry_after"),
    "gateway_timeout": _error(504, "Gateway timeout", "server_error", None),
    "request_timeout": _error(408, "Request timeout", "server_error", "request_timeout"),
    "conflict": _error(409, "Another request is changing this resource", INVALID, "conflict"),
    "payment_required": _error(402, "Payment required", "billing_error", "payment_required"),
    "forbidden": _error(403, "Country or region not supported", "request_forbidden", "unsupported_country"),
    "unauthorized": _error(401, "Incorrect API key provided", INVALID, "invalid_api_key"),
    "bad_request": _error(400, "Invalid request", INVALID, "invalid_value"),
    "content_filter": _error(400, "The prompt was refused by the content policy", INVALID, "content_filter"),
    "context_length": _error(400, "This model's context is too short", INVALID, "context_length_exceeded"),
    "model_not_found": _error(404, "The model does not exist", INVALID, "model_not_found"),
    "enqueued_tokens": _error(429, "Enqueued token limit reached", "tokens", "token_limit_exceeded"),
    "outage": _error(503, UNAVAILABLE, "server_error", None, "mode", "retry_after"),
    "hang": Kind(Stage.EDGE, frozenset({"hold_s"})),
    "reset": Kind(Stage.EDGE),
    "html": Kind(Stage.EDGE),
    "drip": Kind(Stage.ANSWER, frozenset({"interval_ms"})),
    "cut": Kind(Stage.ANSWER),
    "lost_answer": Kind(Stage.ANSWER),
    "empty_choices": Kind(Stage.ANSWER),
    "wrong_schema": Kind(Stage.ANSWER, frozenset({"mode"})),
    "latency": Kind(Stage.ANSWER, frozenset({"extra_ms"})),
    "batch_expires": Kind(Stage.BATCH, frozenset({"share"})),
    "batch_stalls": Kind(Stage.BATCH, frozenset({"share"})),
    "batch_without_file": Kind(Stage.BATCH, frozenset({"looks"})),
    "batch_shuffles": Kind(Stage.BATCH),
    "batch_token_limit": Kind(Stage.BATCH),
    "line_fails": Kind(Stage.LINE, frozenset({"status"})),
    "line_lost": Kind(Stage.LINE),
    "line_twice": Kind(Stage.LINE),
}
MODES = {"outage": {"unavailable", "refuse"}, "wrong_schema": {"null", "json"}}
PARAMETERS = frozenset({"retry_after", "hold_s", "interval_ms", "extra_ms", "mode", "share", "looks", "status"})


class Fault(Frozen):
    """One fault and whom it strikes; None strikes everybody, every time, for ever."""

    name: str
    model: str | None = None
    account: str | None = None
    count: int | None = Field(default=None, ge=1)
    probability: float | None = Field(default=None, gt=0, le=1)
    from_s: float = Field(default=0.0, ge=0, description="seconds after the script was posted")
    until_s: float | None = Field(default=None, gt=0)
    retry_after: int | None = Field(default=None, ge=0, description="seconds, sent as Retry-After")
    hold_s: float | None = Field(default=None, ge=0)
    interval_ms: float = Field(default=50.0, ge=0)
    extra_ms: float = Field(default=1000.0, ge=0)
    share: float = Field(default=0.5, ge=0, le=1, description="of a batch's requests, which is answered")
    looks: int | None = Field(default=None, ge=1, description="how often a batch is looked at without its file")
    status: int = Field(default=500, ge=400, lt=600)
    mode: Literal["unavailable", "refuse", "null", "json"] | None = None

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        if self.name not in KINDS:
            msg = f"there is no such fault; known are {', '.join(sorted(KINDS))}"
            raise ValueError(msg)
        foreign = (self.model_fields_set & PARAMETERS) - KINDS[self.name].parameters
        if foreign:
            msg = f"{self.name} takes no {', '.join(sorted(foreign))}"
            raise ValueError(msg)
        if self.mode is not None and self.mode not in MODES[self.name]:
            msg = f"a mode of {self.name} is one of {', '.join(sorted(MODES[self.name]))}"
            raise ValueError(msg)
        return self

    @property
    def stage(self) -> Stage:
        """Tell when it strikes."""
        return KINDS[self.name].stage

    def at_edge(self) -> Delivery:
        """Give what a request gets that this fault strikes at the edge; raise Refusal where that is an error."""
        if self.name == "hang":
            return Hung(self.hold_s)
        if self.name == "reset" or self.mode == "refuse":
            return Closed(reset=True)
        refusal = KINDS[self.name].refusal
        if refusal is None:
            return Answer.whole(HTML, "text/html; charset=utf-8")
        retry = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        raise replace(refusal, headers=retry)

    def deliver(self, answer: Answer) -> Delivery:
        """Give what becomes of an answer on its way."""
        if self.name == "drip":
            return answer.dripped(self.interval_ms)
        if self.name == "cut":
            return answer.cut()
        if self.name == "lost_answer":
            return Closed()
        return answer


@dataclass
class Scripted:
    """A fault of a script, with what is left of it."""

    fault: Fault
    posted_s: float
    struck: int = 0

    def matches(self, stage: Stage, account: str, model: str, now_s: float) -> bool:
        """Tell whether it may strike this request now; chance has not been asked yet."""
        fault, age_s = self.fault, now_s - self.posted_s
        return (
            fault.stage is stage
            and fault.account in {None, account}
            and fault.model in {None, model}
            and fault.from_s <= age_s
            and (fault.until_s is None or age_s < fault.until_s)
            and (fault.count is None or self.struck < fault.count)
        )


class Script:
    """The faults that were posted, in order; the first that matches strikes."""

    def __init__(self, clock: Clock, seed: int) -> None:
        """Start empty."""
        self._clock = clock
        self._seed = seed
        self.clear()

    def clear(self) -> None:
        """Forget all faults, and begin the seeded chances again."""
        self._scripted: list[Scripted] = []
        self._chance = random.Random(self._seed)  # noqa: S311 - repeatable chances are wanted

    def add(self, faults: list[Fault]) -> None:
        """Append faults; their windows begin now."""
        now_s = self._clock.monotonic_s()
        self._scripted += [Scripted(fault, now_s) for fault in faults]

    def draw(self, stage: Stage, account: str, model: str) -> Fault | None:
        """Give the fault that strikes a request at this stage, and count it."""
        now_s = self._clock.monotonic_s()
        for scripted in self._scripted:
            if scripted.matches(stage, account, model, now_s) and self._happens(scripted.fault.probability):
                scripted.struck += 1
                return scripted.fault
        return None

    def listed(self) -> list[dict[str, object]]:
        """Give every fault as it was posted, with how often it struck."""
        return [
            {**scripted.fault.model_dump(exclude_unset=True), "struck": scripted.struck} for scripted in self._scripted
        ]

    def _happens(self, probability: float | None) -> bool:
        return probability is None or self._chance.random() < probability


def parse_fault(header: str) -> Fault:
    """Read `NAME[;key=value...]`; raise Refusal."""
    name, *pairs = (part.strip() for part in header.split(";"))
    parameters = dict(pair.partition("=")[::2] for pair in pairs if pair)
    try:
        return Fault.model_validate({"name": name, **parameters})
    except ValidationError as error:
        raise Refusal(400, f"X-Simulator-Fault: {error.errors()[0]['msg']}", param="X-Simulator-Fault") from error
