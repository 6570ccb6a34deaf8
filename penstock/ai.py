"""One request to a model, through the rooms; nothing else reaches a provider. It must not know a job's states."""

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import datetime
from uuid import UUID, uuid4

from pydantic import Field

from penstock import telemetry
from penstock.errors import ConfigurationError, FencedError, OutputInvalidError, ProviderError, Reason
from penstock.house import House
from penstock.money.ledger import Intent, Settlement
from penstock.money.prices import Price
from penstock.prompts import Prompt
from penstock.providers.base import Deployment
from penstock.schemas import Frozen, ModelAnswer, ModelRequest, NanoDollars, PromptReference, RenderedPrompt, Usage

HTTP_ERROR = 400
GAVE_UP_WAITING = {408, 499, 502, 504, 524}
"""What a gateway says whose model may have answered, and billed, behind it."""
BYTES_PER_TOKEN = 4


class CallContext(Frozen):
    """For whom a request is made: the owner of the ledger row, and the run that may make the call."""

    job_id: UUID
    fence: int
    tenant: str
    deadline: datetime | None = None


class CompletionRequest(Frozen):
    """What to ask: a prompt with its variables, of a tier's model, at most `max_tokens` long."""

    prompt: PromptReference
    variables: dict[str, str]
    document: str | None
    model: str = Field(description="the tier")
    context: CallContext
    max_tokens: int | None = Field(default=None, gt=0)


class Completion(Frozen):
    """What came back. `reused` says that an earlier attempt of the same job had paid for it."""

    text: str
    model_asked: str
    model_served: str
    usage: Usage = Usage()
    cost_nanodollars: NanoDollars = 0
    reused: bool = False


class Call(Frozen):
    """One physical call, complete before it is made."""

    id: UUID
    deployment: Deployment
    rendered: RenderedPrompt
    price: Price
    request: ModelRequest
    digest: str


async def complete(house: House, request: CompletionRequest) -> Completion:
    """Answer a request, at the price of at most one call.

    Raises ProviderError with a reason class, OutputInvalidError when the answer breaks the prompt's schema, and
    FencedError when the job belongs to a later run. A cancellation leaves the call's ledger row `unknown`.
    """
    prompt = _find_prompt(house, request.prompt)
    rendered = prompt.render(request.variables, request.document)
    call = _prepare(house, request, rendered)
    known = await _recall(house, request, prompt, call)
    if known is not None:
        return known
    await _intend(house, request, call)
    answer = await _send(house, call)
    text = await _settle(house, call, prompt, answer)
    return Completion(
        text=text,
        model_asked=call.deployment.name,
        model_served=answer.model_served,
        usage=answer.usage,
        cost_nanodollars=call.price.cost(answer.usage),
    )


def _find_prompt(house: House, reference: PromptReference) -> Prompt:
    prompt = house.prompts.find(reference.id, reference.version)
    if prompt.reference.digest != reference.digest:
        raise ConfigurationError(
            f"prompts/{reference.id}/{reference.version}",
            "its digest",
            "these files are not the ones that the job was submitted with",
            "restore them, and put the change into a new version",
        )
    return prompt


def _prepare(house: House, request: CompletionRequest, rendered: RenderedPrompt) -> Call:
    tier = house.catalogue.tier(request.model)
    size = sum(len(message.content.encode()) for message in rendered.messages)
    deployment = house.catalogue.choose(request.model, size // BYTES_PER_TOKEN + rendered.max_tokens)
    max_tokens = min(request.max_tokens or rendered.max_tokens, deployment.max_output_tokens)
    now = house.clock.now()
    call_id = uuid4()
    timeout_s = tier.timeout_s
    if request.context.deadline is not None:
        timeout_s = min(timeout_s, (request.context.deadline - now).total_seconds())
    if timeout_s <= 0:
        raise ProviderError(Reason.DEADLINE, "the job's deadline has passed", sent=False)
    return Call(
        id=call_id,
        deployment=deployment,
        rendered=rendered,
        price=house.prices.price_on(deployment.name, now.date()),
        request=ModelRequest(
            call_id=call_id,
            messages=rendered.messages,
            max_tokens=max_tokens,
            output_schema=rendered.output_schema,
            timeout_s=timeout_s,
        ),
        digest=_digest(deployment, rendered, max_tokens),
    )


def _digest(deployment: Deployment, rendered: RenderedPrompt, max_tokens: int) -> str:
    """Name what is asked of whom, so that the same question finds its journaled answer."""
    asked = rendered.model_dump(mode="json") | {"model": deployment.model, "max_tokens": max_tokens}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


async def _recall(house: House, request: CompletionRequest, prompt: Prompt, call: Call) -> Completion | None:
    if request.context.fence == 1:
        return None
    known = await house.journal.recall.add((request.context.job_id, call.digest))
    if known is None:
        return None
    telemetry.emit("call.reused", call=str(known.call_id))
    return Completion(
        text=prompt.parse_output(known.text),
        model_asked=call.deployment.name,
        model_served=known.model_served,
        reused=True,
    )


async def _intend(house: House, request: CompletionRequest, call: Call) -> None:
    upper_bound = call.price.upper_bound(
        prompt_bytes=sum(len(message.content.encode()) for message in call.request.messages)
        + len(json.dumps(call.request.output_schema or {}).encode()),
        messages=len(call.request.messages),
        max_tokens=call.request.max_tokens,
    )
    intent = Intent(
        call_id=call.id,
        job_id=request.context.job_id,
        fence=request.context.fence,
        tenant=request.context.tenant,
        prompt_id=request.prompt.id,
        prompt_version=request.prompt.version,
        tier=request.model,
        deployment=call.deployment.name,
        account=call.deployment.account,
        model_asked=call.deployment.model,
        price_version=call.price.version,
        upper_bound_nanodollars=upper_bound,
    )
    if not await house.journal.intend.add(intent):
        raise FencedError(f"job {request.context.job_id} belongs to a later run than {request.context.fence}")


async def _send(house: House, call: Call) -> ModelAnswer:
    """Make the call; whatever comes of it but an answer is settled here."""
    try:
        return await house.provider.complete(call.deployment, call.request)
    except ProviderError as error:
        await _write_down(house, _settle_failure(call, error))
        telemetry.emit(
            "call.failed", call=str(call.id), deployment=call.deployment.name, reason=error.reason, detail=error.detail
        )
        raise
    except BaseException as error:
        reason = Reason.TIME_LIMIT if isinstance(error, asyncio.CancelledError) else Reason.INTERNAL
        await _write_down(house, Settlement(call.id, None, reason=reason))
        raise


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


async def _settle(house: House, call: Call, prompt: Prompt, answer: ModelAnswer) -> str:
    """State the cost, keep the answer if it can be used, and give its text; what cannot be used is paid too."""
    try:
        text = _usable(prompt, answer)
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
        deployment=call.deployment.name,
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
