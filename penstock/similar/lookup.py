"""One instruction through the tier: embed it, look for it, keep it. It must not know what becomes of the job.

Whatever goes wrong here, the job is answered by a model as if there were no tier.
"""

import asyncio
import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from penstock import admission, telemetry
from penstock.admission import Want
from penstock.call import Call, CallContext, make
from penstock.errors import NotAdmittedError, ProviderError
from penstock.house import House
from penstock.money.recollection import Question
from penstock.prompts import Prompt
from penstock.providers.base import Deployment
from penstock.schemas import Lane, Message, RenderedPrompt
from penstock.similar import questions
from penstock.similar.questions import Near, SimilarQuestion
from penstock.similarity import agreement, refusal
from penstock.tenants import Similar

PATIENCE_S = 5.0
"""How long an embedding may take: a model's answer takes not much longer."""


@dataclass(frozen=True)
class Search:
    """What became of a look: the instruction to keep once it is answered, and an answer that may stand in for its own.

    `is_given` says that it does; in shadow mode it is only compared.
    """

    question: SimilarQuestion | None = None
    near: Near | None = None
    is_given: bool = False


NOTHING = Search()


async def search(
    house: House,
    context: CallContext,
    lane: Lane,
    prompt: Prompt,
    values: Mapping[str, str],
    request_digest: str,
) -> Search:
    """Look for an answer to an instruction that means the same; `values` are the prompt's variables and document."""
    mode, deployment = house.tenants.entry(context.tenant).similar, house.catalogue.embeddings
    if mode is Similar.OFF or deployment is None or prompt.instruction is None or context.is_fresh:
        return NOTHING
    instruction = values.get(prompt.instruction, "").strip()
    if not instruction or not await _is_available(house):
        return NOTHING
    embedding = await _embed(house, context, lane, prompt, deployment, instruction)
    if embedding is None:
        return NOTHING
    question = SimilarQuestion(
        job_id=context.job_id,
        request_digest=request_digest,
        tenant=context.tenant,
        bucket=_bucket(context.tenant, prompt, values, deployment),
        prompt=prompt.reference,
        embedding_model=deployment.model,
        instruction=instruction,
        embedding=embedding,
    )
    near = await _nearest(house, question, context.tier)
    if near is None:
        return Search(question)
    is_given = mode is Similar.ON
    telemetry.emit("similar.found", source=str(near.job_id), distance=round(near.distance, 4), given=is_given)
    if is_given:
        async with house.engine.begin() as connection:
            await connection.run_sync(lambda sync: questions.note(sync, question, near, was_given=True))
    return Search(question, near, is_given)


async def keep(house: House, found: Search, text: str) -> None:
    """Keep an instruction that a model has answered with `text`; in shadow mode, compare with what was found."""
    question, near = found.question, found.near
    if question is None:
        return
    async with house.engine.begin() as connection:
        await connection.run_sync(questions.keep, question)
        if near is not None:
            agreed = agreement(near.answer.text, text)
            await connection.run_sync(
                lambda sync: questions.note(sync, question, near, was_given=False, agreement=agreed)
            )


async def _is_available(house: House) -> bool:
    async with house.engine.connect() as connection:
        available = await connection.run_sync(questions.is_available)
    if not available:
        telemetry.emit("similar.off", reason="Postgres has no extension vector: CREATE EXTENSION vector")
    return available


async def _nearest(house: House, question: SimilarQuestion, tier: str) -> Near | None:
    """Give the nearest answer that the guards let pass."""
    async with house.engine.connect() as connection:
        found = await connection.run_sync(questions.find, question, house.catalogue.models(tier))
    for near in found:
        guard = refusal(near.instruction, question.instruction)
        if guard is None:
            return near
        telemetry.emit("similar.refused", source=str(near.job_id), distance=round(near.distance, 4), guard=guard)
    return None


def _bucket(tenant: str, prompt: Prompt, values: Mapping[str, str], deployment: Deployment) -> str:
    """Name all that must be equal. A prompt's digest stands for its texts, its output schema and its bounds."""
    others = {name: value for name, value in values.items() if name != prompt.instruction}
    return _digest([tenant, prompt.reference.model_dump(), others, deployment.model])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


async def _embed(  # noqa: PLR0917
    house: House, context: CallContext, lane: Lane, prompt: Prompt, deployment: Deployment, instruction: str
) -> tuple[float, ...] | None:
    """Turn an instruction into a vector: one that the tenant has paid for before, or a call like any other."""
    digest = _digest([deployment.model, instruction])
    asked = Question(context.job_id, digest, context.tenant, context.tier, (deployment.model,))
    known = await house.journal.recall.add(asked)
    if known.answer is not None:
        return _unpack(known.answer.text)
    if known.is_in_flight:
        return None
    rendered = RenderedPrompt(
        prompt=prompt.reference, messages=(Message(role="user", content=instruction),), max_tokens=1
    )
    want = Want(
        tenant=context.tenant,
        lane=lane,
        prompt=prompt.reference,
        tiers=(context.tier,),
        counted=len(instruction.encode()),
        max_tokens=1,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            call = Call(
                context=context,
                prompt=replace(prompt, output=None),
                rendered=rendered,
                digest=digest,
                admission=await admission.admit_to(house, want, deployment, uuid4()),
                price=house.prices.price_on(deployment.name, house.clock.now().date()),
            )
            return _unpack((await make(house, call)).text)
    except (ProviderError, NotAdmittedError, TimeoutError) as error:
        telemetry.emit("similar.off", reason=f"no embedding: {getattr(error, 'reason', 'timeout')}")
        return None


def _unpack(text: str) -> tuple[float, ...]:
    packed = base64.b64decode(text)
    return struct.unpack(f"<{len(packed) // 4}f", packed)
