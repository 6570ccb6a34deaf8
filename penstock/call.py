"""One physical call: written down before it is made, settled after it. It must not know why it is made, or of whom.

Nothing else reaches a provider. Every end of a call is settled twice: in the ledger, and at the gates.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from penstock import admission, telemetry
from penstock.admission import Admission
from penstock.errors import FencedError, OutputInvalidError, ProviderError, Reason
from penstock.house import House
from penstock.money.ledger import Intent, Settlement
from penstock.money.prices import Price
from penstock.prompts import Prompt
from penstock.schemas import Frozen, ModelAnswer, ModelRequest, RenderedPrompt, Usage

HTTP_ERROR = 400
GAVE_UP_WAITING = {408, 499, 502, 504, 524}
"""What a gateway says whose model may have answered, and billed, behind it."""


class CallContext(Frozen):
    """For whom a call is made: the owner of the ledger row, and the run that may make the call."""

    job_id: UUID
    fence: int
    tenant: str
    tier: str
    deadline: datetime | None = None


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


async def make(house: House, call: Call) -> Answered:
    """Make the call and give its answer.

    Raises ProviderError with a reason class, OutputInvalidError when the answer breaks the prompt's schema, and
    FencedError when the job belongs to a later run. A cancellation leaves the ledger row `unknown`.
    """
    try:
        await asyncio.sleep(call.admission.wait_s)
        request = _request(house, call)
        await _intend(house, call, request)
    except BaseException:
        await admission.unsent(house, call.admission)
        raise
    answer = await _send(house, call, request)
    try:
        return Answered(await _settle(house, call, answer), answer)
    finally:
        await admission.answered(house, call.admission, answer)


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


async def _intend(house: House, call: Call, request: ModelRequest) -> None:
    deployment, context, prompt = call.admission.deployment, call.context, call.rendered.prompt
    upper_bound = call.price.upper_bound(
        prompt_bytes=sum(len(message.content.encode()) for message in request.messages)
        + len(json.dumps(request.output_schema or {}).encode()),
        messages=len(request.messages),
        max_tokens=request.max_tokens,
    )
    intent = Intent(
        call_id=call.id,
        job_id=context.job_id,
        fence=context.fence,
        tenant=context.tenant,
        prompt_id=prompt.id,
        prompt_version=prompt.version,
        tier=context.tier,
        deployment=deployment.name,
        account=deployment.account,
        model_asked=deployment.model,
        price_version=call.price.version,
        upper_bound_nanodollars=upper_bound,
    )
    if not await house.journal.intend.add(intent):
        raise FencedError(f"job {context.job_id} belongs to a later run than {context.fence}")


async def _send(house: House, call: Call, request: ModelRequest) -> ModelAnswer:
    """Send it; whatever comes of it but an answer is settled here."""
    deployment = call.admission.deployment
    try:
        return await house.provider.complete(deployment, request)
    except ProviderError as error:
        await _settle_both(house, call, _settle_failure(call, error), error)
        telemetry.emit(
            "call.failed", call=str(call.id), deployment=deployment.name, reason=error.reason, detail=error.detail
        )
        raise
    except BaseException as error:
        reason = Reason.TIME_LIMIT if isinstance(error, asyncio.CancelledError) else Reason.INTERNAL
        failure = ProviderError(reason, type(error).__name__)
        await _settle_both(house, call, Settlement(call.id, None, reason=reason), failure)
        raise


async def _settle_both(house: House, call: Call, settlement: Settlement, error: ProviderError) -> None:
    try:
        await _write_down(house, settlement)
    finally:
        await admission.failed(house, call.admission, error)


def _settle_failure(call: Call, error: ProviderError) -> Settlement:
    """Price a failure: a refusal costs nothing, what was sent and never heard of again up to the bound."""
    if error.usage is not None:
        return _settlement(call, error.usage, error.reason)
    status = error.status or 0
    refused = not error.sent or (status >= HTTP_ERROR and status not in GAVE_UP_WAITING)
    return Settlement(call.id, 0 if refused else None, reason=error.reason)


def _settlement(call: Call, usage: Usage, reason: Reason | None) -> Settlement:
    return Settlement(
        call.id,
        call.price.cost(usage),
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
        reason=reason,
    )


async def _settle(house: House, call: Call, answer: ModelAnswer) -> str:
    """State the cost, keep the answer if it can be used, and give its text; what cannot be used is paid too."""
    try:
        text = _usable(call.prompt, answer)
    except (ProviderError, OutputInvalidError) as error:
        reason = error.reason if isinstance(error, ProviderError) else Reason.OUTPUT_INVALID
        await _write_down(house, _settlement(call, answer.usage, reason))
        raise
    await _write_down(
        house,
        replace(
            _settlement(call, answer.usage, None),
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
        input_tokens=answer.usage.input_tokens + answer.usage.cached_input_tokens,
        output_tokens=answer.usage.output_tokens,
    )
    return text


async def _write_down(house: House, settlement: Settlement) -> None:
    """Settle, even if the run is cancelled meanwhile: the job may be handed back only when its answer is kept."""
    writing = asyncio.ensure_future(house.journal.settle.add(settlement))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await writing
        raise


def _usable(prompt: Prompt, answer: ModelAnswer) -> str:
    if answer.finish_reason == "length":
        raise ProviderError(Reason.OUTPUT_TRUNCATED, "the answer was cut at max_tokens; raise it in a new version")
    if answer.finish_reason == "content_filter":
        raise ProviderError(Reason.CONTENT_POLICY, "the provider withheld its answer")
    return prompt.parse_output(answer.text)
