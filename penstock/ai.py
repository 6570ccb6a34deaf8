"""One request to a model, through the rooms, as a list of verbs. It must not know a job's states."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from uuid import uuid4

from pydantic import Field

from penstock import telemetry
from penstock.admission import Admission, Want, admit
from penstock.call import Answered, Call, CallContext, bound_of, in_flight, make
from penstock.errors import (
    BudgetError,
    ConfigurationError,
    NotAdmittedError,
    OutputInvalidError,
    OutputTruncatedError,
    ProviderError,
)
from penstock.house import House
from penstock.money.budgets import Unit
from penstock.money.prices import UpperBound
from penstock.money.recollection import JournaledAnswer, Question, Recollection, forget
from penstock.prompts import Prompt
from penstock.retry import TREATMENTS, Kind
from penstock.schemas import Frozen, Lane, NanoDollars, PromptReference, RenderedPrompt, Source, Usage
from penstock.similar import lookup
from penstock.similar.lookup import Asked, Search

__all__ = ["CallContext", "Completion", "CompletionRequest", "complete", "find_prompt"]


class CompletionRequest(Frozen):
    """What to ask: a prompt with its variables, of a tier's model.

    With `sections`, which are answers to parts of a document, it is asked to put them together.
    """

    prompt: PromptReference
    variables: dict[str, str]
    document: str | None
    sections: str | None = None
    lane: Lane = Lane.INTERACTIVE
    context: CallContext


class Completion(Frozen):
    """What came back. `reused` says that an earlier attempt of the same job had paid for it, `cached` that another job.

    `usage` is what this job's calls had, those of earlier attempts too; `cost_nanodollars` is of this attempt alone.
    `over_soft_limit` says that a soft budget had been passed when it was paid for. Of a document that was answered in
    parts, `sources` are those that the text cites.
    """

    text: str
    model_asked: str
    model_served: str
    usage: Usage = Usage()
    cost_nanodollars: NanoDollars = Field(default=0, ge=0)
    reused: bool = False
    cached: bool = False
    over_soft_limit: bool = False
    sources: tuple[Source, ...] | None = None


async def complete(house: House, request: CompletionRequest) -> Completion:
    """Answer a request, by the first deployment that may be called and does answer.

    Each deployment is called at most once, and again only where an answer was cut at a `max_tokens` that was lower than
    the prompt allows; none where the answer was paid for before. Raises NotAdmittedError when none may be called now or
    be paid for, or another job is asking the same, ProviderError with the reason class of the last call,
    OutputInvalidError when an answer breaks the prompt's schema, and FencedError when the job belongs to a later run.
    """
    prompt = find_prompt(house, request.prompt)
    rendered = _render(prompt, request)
    digest = digest_of(rendered)
    question = _question(house, request, digest)
    while (known := await _recall(house, request, question)).answer is not None:
        if (reused := _reuse(known.answer, prompt)) is not None:
            return reused
        async with house.engine.begin() as connection:
            await connection.run_sync(forget, question, known.answer.call_id)
    found = await _search(house, request, prompt, digest)
    if found.given is not None and (reused := _reuse(found.given, prompt)) is not None:
        return reused
    want = await _measure(house, request, prompt, rendered)
    if known.was_cut:
        want = replace(want, is_repeat=True)
    tried: dict[str, ProviderError | NotAdmittedError] = {}
    while True:
        admission = await _admit(house, want, tried)
        call = Call(
            context=request.context,
            prompt=prompt,
            rendered=rendered,
            digest=digest,
            admission=admission,
            price=house.prices.price_on(admission.deployment.name, house.clock.now().date()),
        )
        try:
            completion = _completion(call, await make(house, call))
        except (ProviderError, NotAdmittedError) as error:
            if _was_cut_short(admission, error):
                want = replace(want, is_repeat=True)
            elif TREATMENTS[error.reason].elsewhere:
                tried = _too_dear(house, want, rendered, error) | tried | {admission.deployment.name: error}
            else:
                raise
        else:
            await lookup.keep(house, found, completion.text)
            return completion


async def _search(house: House, request: CompletionRequest, prompt: Prompt, digest: str) -> Search:
    """Look for an answer to an instruction that means the same, where the tenant wants that."""
    if request.sections is not None:
        return lookup.NOTHING
    values = prompt.check(request.variables, document=request.document)
    return await lookup.search(house, Asked(request.context, request.lane, prompt, values, digest))


def _completion(call: Call, answered: Answered) -> Completion:
    return Completion(
        text=answered.text,
        model_asked=call.admission.deployment.name,
        model_served=answered.answer.model_served,
        usage=answered.answer.usage,
        cost_nanodollars=call.price.cost(answered.answer.usage),
        over_soft_limit=answered.over_soft_limit,
    )


def _too_dear(
    house: House, want: Want, rendered: RenderedPrompt, error: ProviderError | NotAdmittedError
) -> dict[str, ProviderError | NotAdmittedError]:
    """Name the deployments that the budget which refused a call cannot pay either: none of them is worth a wait."""
    if not isinstance(error, BudgetError):
        return {}
    deployments = [each for tier in want.tiers for each in house.catalogue.deployments(tier)]
    today = house.clock.now().date()
    bounds = {each.name: bound_of(rendered, house.prices.price_on(each.name, today)) for each in deployments}
    least = UpperBound.tokens if error.budget["unit"] == Unit.TOKENS else UpperBound.nanodollars
    return {name: error for name, bound in bounds.items() if least(bound, 1) > error.room}


def find_prompt(house: House, reference: PromptReference) -> Prompt:
    """Find exactly the prompt that a job was submitted with; raise ConfigurationError or InvalidRequestError."""
    prompt = house.prompts.find(reference.id, reference.version)
    if prompt.reference.digest != reference.digest:
        raise ConfigurationError(
            f"prompts/{reference.id}/{reference.version}",
            "its digest",
            "these files are not the ones that the job was submitted with",
            "restore them, and put the change into a new version",
        )
    return prompt


def _render(prompt: Prompt, request: CompletionRequest) -> RenderedPrompt:
    if request.sections is not None:
        return prompt.render_reduction(request.variables, request.sections)
    return prompt.render(request.variables, request.document)


def digest_of(rendered: RenderedPrompt) -> str:
    """Name what is asked, so that the same question finds its journaled answer, whichever model gave it."""
    return hashlib.sha256(json.dumps(rendered.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _question(house: House, request: CompletionRequest, digest: str) -> Question:
    context = request.context
    models = () if context.is_fresh else house.catalogue.models(context.tier)
    return Question(context.job_id, digest, context.tenant, context.tier, models)


async def _recall(house: House, request: CompletionRequest, question: Question) -> Recollection:
    """Look for what was paid for before; raise NotAdmittedError where another job is asking the same right now."""
    if request.context.is_fresh and request.context.fence == 1:
        return Recollection()
    known = await house.journal.recall.add(question)
    if known.is_in_flight:
        raise in_flight()
    return known


def _reuse(known: JournaledAnswer, prompt: Prompt) -> Completion | None:
    """Give an answer that was paid for before; None where it was kept unseen, and is of no use."""
    try:
        text = prompt.parse_output(known.text)
    except OutputInvalidError:
        return None
    telemetry.emit("call.reused" if known.is_own else "call.cached", call=str(known.call_id))
    return Completion(
        text=text,
        model_asked=known.deployment,
        model_served=known.model_served,
        usage=known.usage if known.is_own else Usage(),
        over_soft_limit=known.is_own and known.over_soft_limit,
        reused=known.is_own,
        cached=not known.is_own,
    )


async def _measure(house: House, request: CompletionRequest, prompt: Prompt, rendered: RenderedPrompt) -> Want:
    tier = request.context.tier
    counter = house.catalogue.deployments(tier)[0]
    return Want(
        tenant=request.context.tenant,
        lane=request.lane,
        prompt=request.prompt,
        tiers=(tier, *prompt.tiers_after(tier)),
        counted=await house.provider.count_tokens(counter, rendered.messages),
        max_tokens=rendered.max_tokens,
    )


async def _admit(house: House, want: Want, tried: Mapping[str, ProviderError | NotAdmittedError]) -> Admission:
    """Find who may be called next; where the rest cannot, the caller hears of what gives the job the best chance.

    That is the last failure that may pass; then that another deployment is only busy or out; then the last failure.
    """
    try:
        return await admit(house, want, uuid4(), {name: error.reason for name, error in tried.items()})
    except NotAdmittedError as denied:
        passing = [error for error in tried.values() if TREATMENTS[error.reason].kind is not Kind.PERMANENT]
        passing.sort(key=lambda error: isinstance(error, ProviderError))  # what was called must be told
        final = list(tried.values())
        if not tried or (not passing and denied.wait_s is not None):
            raise
        raise (passing or final)[-1] from None


def _was_cut_short(admission: Admission, error: ProviderError | NotAdmittedError) -> bool:
    """Tell whether an answer was cut at a bound that was learnt or paid for, not at that of the prompt or the model."""
    most = min(admission.want.max_tokens, admission.deployment.max_output_tokens)
    return isinstance(error, OutputTruncatedError) and error.max_tokens < most and not admission.want.is_repeat
