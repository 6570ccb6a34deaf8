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
from datetime import timedelta
from typing import Any
from uuid import uuid4

from penstock import admission, telemetry
from penstock.admission import Want
from penstock.call import Call, CallContext, make
from penstock.errors import NotAdmittedError, ProviderError
from penstock.house import House
from penstock.money.recollection import JournaledAnswer, Question
from penstock.prompts import Prompt
from penstock.providers.base import Deployment
from penstock.schemas import Lane, Message, RenderedPrompt
from penstock.similar import questions
from penstock.similar.questions import Near, SimilarQuestion
from penstock.similarity import agreement, refusal
from penstock.tenants import Similar

PATIENCE_S = 5.0
"""How long an embedding may take: a model's answer takes not much longer."""
WAIT_S = 1.0
"""How much longer it may wait to be asked for."""


@dataclass(frozen=True)
class Asked:
    """What a job asks: a prompt and all that it was given, its document among `values`; `request_digest` names it."""

    context: CallContext
    lane: Lane
    prompt: Prompt
    values: Mapping[str, str]
    request_digest: str

    @property
    def instruction(self) -> str:
        """Give what the user wants, or nothing where the prompt does not ask for it."""
        return self.values[self.prompt.instruction].strip() if self.prompt.instruction else ""


@dataclass(frozen=True)
class Search:
    """What became of a look: the instruction to keep once it is answered, and an answer that may stand in for its own.

    `is_given` says that it does; in shadow mode it is only compared.
    """

    question: SimilarQuestion | None = None
    near: Near | None = None
    is_given: bool = False

    @property
    def given(self) -> JournaledAnswer | None:
        """Give the answer that stands in for the instruction's own, if there is one."""
        return self.near.answer if self.near is not None and self.is_given else None


NOTHING = Search()


async def search(house: House, asked: Asked) -> Search:
    """Look for an answer to an instruction that means the same."""
    mode, deployment = house.tenants.entry(asked.context.tenant).similar, house.catalogue.embeddings
    if mode is Similar.OFF or deployment is None or not asked.instruction or asked.context.is_fresh:
        return NOTHING
    if not await _is_available(house):
        return NOTHING
    embedding = await _embed(house, asked, deployment)
    if embedding is None:
        return NOTHING
    question = SimilarQuestion(
        job_id=asked.context.job_id,
        request_digest=asked.request_digest,
        tenant=asked.context.tenant,
        bucket=_bucket(asked, deployment),
        prompt=asked.prompt.reference,
        embedding_model=deployment.model,
        instruction=asked.instruction,
        embedding=embedding,
    )
    near = await _nearest(house, question, asked.context.tier)
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


def _bucket(asked: Asked, deployment: Deployment) -> str:
    """Name all that must be equal. A prompt's digest stands for its texts, its output schema and its bounds."""
    others = {name: value for name, value in asked.values.items() if name != asked.prompt.instruction}
    return _digest([asked.context.tenant, asked.prompt.reference.model_dump(), others, deployment.model])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


async def _embed(house: House, asked: Asked, deployment: Deployment) -> tuple[float, ...] | None:
    """Turn an instruction into a vector: one that the tenant has paid for before, or a call like any other."""
    context, prompt = asked.context, asked.prompt
    digest = _digest([deployment.model, asked.instruction])
    known = await house.journal.recall.add(
        Question(context.job_id, digest, context.tenant, context.tier, (deployment.model,))
    )
    if known.answer is not None:
        return _unpack(known.answer.text)
    if known.is_in_flight:
        return None
    message = Message(role="user", content=asked.instruction)
    want = Want(
        tenant=context.tenant,
        lane=asked.lane,
        prompt=prompt.reference,
        tiers=(context.tier,),
        counted=await house.provider.count_tokens(deployment, [message]),
        max_tokens=1,
    )
    ends_by = house.clock.now() + timedelta(seconds=PATIENCE_S)
    try:
        async with asyncio.timeout(PATIENCE_S + WAIT_S):
            call = Call(
                context=context.model_copy(update={"deadline": min(context.deadline or ends_by, ends_by)}),
                prompt=replace(prompt, output=None),
                rendered=RenderedPrompt(prompt=prompt.reference, messages=(message,), max_tokens=1),
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
