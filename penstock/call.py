"""One physical call: written down before it is made, settled after it. It must not know why it is made, or of whom.

Nothing else reaches a provider. Every end of a call is settled twice: in the ledger, and at the gates.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from penstock import admission, telemetry
from penstock.admission import Admission
from penstock.errors import (
    BudgetError,
    FencedError,
    NotAdmittedError,
    OutputInvalidError,
    OutputTruncatedError,
    ProviderError,
    Reason,
)
from penstock.failpoints import Failpoint, reach
from penstock.house import House
from penstock.money.budgets import OnExhausted, Period
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import CallOutcome, InFlight, Intent, Settlement, SoftLimitPassed
from penstock.money.prices import Price, UpperBound
from penstock.prompts import Prompt
from penstock.schemas import Frozen, ModelAnswer, ModelRequest, RenderedPrompt, Usage

HTTP_ERROR = 400
GAVE_UP_WAITING = {408, 499, 502, 504, 524}
"""What a gateway says whose model may have answered, and billed, behind it."""
HELD_PAUSE_S = 1.0
"""How long a job waits for what other calls hold of its budget."""
IN_FLIGHT_PAUSE_S = 0.5
"""How long a job waits for an answer that another one has asked for."""


class CallContext(Frozen):
    """For whom a call is made: the owner of the ledger row, and the run that may make the call.

    `is_fresh`: what another job asks, or was answered, does not stand in for it.
    """

    job_id: UUID
    fence: int
    tenant: str
    tier: str
    project: str = ""
    batch_id: UUID | None = None
    deadline: datetime | None = None
    is_fresh: bool = False


@dataclass(frozen=True)
class Call:
    """One physical call before it is made. `digest` names the question, whoever answers it."""

    context: CallContext
    prompt: Prompt
    rendered: RenderedPrompt
    digest: str
    admission: Admission
    price: Price

    @property
    def id(self) -> UUID:
        """Name the call: in the ledger, at the gates, and on the provider's invoice."""
        return self.admission.call_id


@dataclass(frozen=True)
class Answered:
    """A call that gave a usable answer: its text in normal form, and what the provider said."""

    text: str
    answer: ModelAnswer
    over_soft_limit: bool


async def make(house: House, call: Call) -> Answered:
    """Make the call and give its answer.

    Raises ProviderError with a reason class, OutputInvalidError when the answer breaks the prompt's schema, BudgetError
    when a hard budget has too little left, NotAdmittedError when another job is asking the same, and FencedError when
    the job belongs to a later run. A cancellation leaves the ledger row `unknown`.
    """
    try:
        await asyncio.sleep(call.admission.wait_s)
        hold = await _intend(house, call)
    except BaseException:
        await admission.unsent(house, call.admission)
        raise
    reach(Failpoint.AFTER_HOLD)
    if hold.max_tokens < call.admission.size.max_tokens:
        call = _cut(call, hold.max_tokens)
    answer = await _send(house, call)
    reach(Failpoint.AFTER_ANSWER)
    try:
        text = await _settle(house, call, answer)
        reach(Failpoint.AFTER_SETTLEMENT)
        return Answered(text, answer, hold.over_soft_limit)
    finally:
        await admission.answered(house, call.admission, answer)


def _cut(call: Call, max_tokens: int) -> Call:
    """Ask for no more than what is paid for."""
    size = call.admission.size
    smaller = size.model_copy(update={"max_tokens": max_tokens, "output": min(size.output, max_tokens)})
    return replace(call, admission=replace(call.admission, size=smaller))


def _request(house: House, call: Call) -> ModelRequest:
    timeout_s = house.catalogue.tier(call.admission.tier).timeout_s
    if call.context.deadline is not None:
        timeout_s = min(timeout_s, (call.context.deadline - house.clock.now()).total_seconds())
    if timeout_s <= 0:
        raise ProviderError(Reason.DEADLINE, "the job's deadline has passed", sent=False)
    return ModelRequest(
        call_id=call.id,
        messages=call.rendered.messages,
        max_tokens=call.admission.size.max_tokens,
        output_schema=call.rendered.output_schema,
        timeout_s=timeout_s,
    )


async def _intend(house: House, call: Call) -> Hold:
    """Write the call down and hold what it can cost; of `max_tokens` at least what the answer is expected to take.

    A run that is stopped meanwhile gives the hold back: the row may be written, and nothing will be sent.
    """
    deployment, context, prompt = call.admission.deployment, call.context, call.rendered.prompt
    intent = Intent(
        call_id=call.id,
        job_id=context.job_id,
        fence=context.fence,
        tenant=context.tenant,
        project=context.project,
        prompt_id=prompt.id,
        prompt_version=prompt.version,
        tier=context.tier,
        deployment=deployment.name,
        account=deployment.account,
        model_asked=deployment.model,
        price_version=call.price.version,
        bound=bound_of(call.rendered, call.price),
        max_tokens=call.admission.size.max_tokens,
        least_max_tokens=max(1, call.admission.size.output),
        request_digest=None if context.is_fresh else call.digest,
        models=house.catalogue.models(context.tier),
        batch_id=context.batch_id,
    )
    writing = asyncio.ensure_future(house.journal.intend.add(intent))
    if await _was_stopped(writing):
        if writing.exception() is None and isinstance(writing.result(), Hold):
            await _write_down(house, Settlement(call.id, CallOutcome.NOT_SENT, 0, reason=Reason.TIME_LIMIT))
        raise asyncio.CancelledError
    match writing.result():
        case Hold() as hold:
            return hold
        case Shortfall() as shortfall:
            raise _budget_error(shortfall)
        case InFlight():
            raise in_flight()
        case None:
            raise FencedError(f"job {context.job_id} belongs to a later run than {context.fence}")


def bound_of(rendered: RenderedPrompt, price: Price, *, is_batch: bool = False) -> UpperBound:
    """Say what a call can cost at most: its messages, and the output schema, count by their bytes."""
    schema = json.dumps(rendered.output_schema or {})
    return price.upper_bound(
        prompt_bytes=sum(len(message.content.encode()) for message in rendered.messages) + len(schema.encode()),
        messages=len(rendered.messages),
        is_batch=is_batch,
    )


def in_flight() -> NotAdmittedError:
    """Say that a job waits for the answer to another one's call."""
    return NotAdmittedError(Reason.IN_FLIGHT, "another job of its tenant is asking the same", IN_FLIGHT_PAUSE_S)


def _budget_error(shortfall: Shortfall) -> BudgetError:
    budget = shortfall.budget
    whose = f"project {budget.project!r}" if budget.project else "its tenant"
    name = "what its batch may cost" if budget.period is Period.BATCH else f"the {budget.period}'s budget of {whose}"
    limit = f"{name}, {budget.written(budget.hard_limit or 0)}"
    reason, detail, wait_s = Reason.BUDGET_EXHAUSTED, f"too little is left of {limit}", None
    if shortfall.may_pass:
        reason, detail, wait_s = Reason.BUDGET_HELD, f"calls under way hold what is left of {limit}", HELD_PAUSE_S
    degrades = budget.on_exhausted is OnExhausted.DEGRADE
    key = {"project": budget.project, "period": budget.period.value, "unit": budget.unit.value}
    return BudgetError(reason, detail, wait_s, degrades=degrades, budget=key, room=shortfall.room)


async def _send(house: House, call: Call) -> ModelAnswer:
    """Send it; whatever comes of it but an answer is settled here."""
    deployment = call.admission.deployment
    reach(Failpoint.BEFORE_SEND)
    try:
        return await house.provider.complete(deployment, _request(house, call))
    except ProviderError as error:
        await _settle_both(house, call, _settle_failure(call, error), error)
        telemetry.emit(
            "call.failed", call=str(call.id), deployment=deployment.name, reason=error.reason, detail=error.detail
        )
        raise
    except BaseException as error:
        reason = Reason.TIME_LIMIT if isinstance(error, asyncio.CancelledError) else Reason.INTERNAL
        failure = ProviderError(reason, type(error).__name__)
        await _settle_both(house, call, Settlement(call.id, CallOutcome.UNKNOWN, None, reason=reason), failure)
        raise


async def _settle_both(house: House, call: Call, settlement: Settlement, error: ProviderError) -> None:
    try:
        await _write_down(house, settlement)
    finally:
        await admission.failed(house, call.admission, error)


def _settle_failure(call: Call, error: ProviderError) -> Settlement:
    """Price a failure: a refusal costs nothing, what was sent and never heard of again up to the bound."""
    if error.usage is not None:
        return _answered(call, error.usage, error.reason)
    status = error.status or 0
    if not error.sent:
        return Settlement(call.id, CallOutcome.NOT_SENT, 0, reason=error.reason)
    if status >= HTTP_ERROR and status not in GAVE_UP_WAITING:
        return Settlement(call.id, CallOutcome.REFUSED, 0, reason=error.reason)
    return Settlement(call.id, CallOutcome.UNKNOWN, None, reason=error.reason)


def _answered(call: Call, usage: Usage, reason: Reason | None = None) -> Settlement:
    return Settlement(call.id, CallOutcome.ANSWERED, call.price.cost(usage), usage, reason)


async def _settle(house: House, call: Call, answer: ModelAnswer) -> str:
    """State the cost, keep the answer if it can be used, and give its text; what cannot be used is paid too."""
    try:
        text = usable(call.prompt, answer, call.admission.size.max_tokens)
    except (ProviderError, OutputInvalidError) as error:
        reason = error.reason if isinstance(error, ProviderError) else Reason.OUTPUT_INVALID
        await _write_down(house, _answered(call, answer.usage, reason))
        raise
    await _write_down(
        house,
        replace(
            _answered(call, answer.usage),
            request_digest=call.digest,
            model_served=answer.model_served,
            finish_reason=answer.finish_reason,
            answer=answer.text,
        ),
    )
    telemetry.emit(
        "call.settled",
        call=str(call.id),
        deployment=call.admission.deployment.name,
        cost_nanodollars=call.price.cost(answer.usage),
        input_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
    )
    return text


async def _write_down(house: House, settlement: Settlement) -> None:
    """Settle, even if the run is cancelled meanwhile: the job may be handed back only when its answer is kept."""
    writing = asyncio.ensure_future(house.journal.settle.add(settlement))
    if await _was_stopped(writing):
        writing.exception()
        raise asyncio.CancelledError
    tell_passed(writing.result())


def tell_passed(limits: Iterable[SoftLimitPassed]) -> None:
    """Tell which soft limits were passed."""
    for limit in limits:
        telemetry.emit(
            "budget.soft_limit_passed",
            tenant=limit.tenant,
            project=limit.project,
            period=limit.period,
            unit=limit.unit,
            soft_limit=limit.soft_limit,
            settled=limit.settled,
        )


async def _was_stopped(writing: "asyncio.Future[Any]") -> bool:
    """Wait for what is being written, however often the run is cancelled meanwhile, and tell whether it was."""
    stopped = False
    while not writing.done():
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError:
            stopped = True
    return stopped


def usable(prompt: Prompt, answer: ModelAnswer, max_tokens: int) -> str:
    """Give the text of an answer in normal form; raise ProviderError or OutputInvalidError."""
    check_finish(answer, max_tokens)
    return prompt.parse_output(answer.text)


def check_finish(answer: ModelAnswer, max_tokens: int) -> None:
    """Raise ProviderError for an answer that was cut or withheld, whatever its prompt wants."""
    if answer.finish_reason == "length":
        raise OutputTruncatedError(max_tokens)
    if answer.finish_reason == "content_filter":
        raise ProviderError(Reason.CONTENT_POLICY, "the provider withheld its answer")
