"""Takes a parcel apart: every call is settled, every job is ended or handed over. It must not know how it was sent.

Results come in any order, twice, or not at all. A call is settled before its job is ended, so that an answer which was
paid for is kept wherever this stops; a second time changes nothing.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import date, timedelta
from http import HTTPStatus

from penstock import ai, telemetry
from penstock.attempt import failed
from penstock.call import GAVE_UP_WAITING, check_finish, tell_passed
from penstock.errors import ConfigurationError, InvalidRequestError, OutputInvalidError, ProviderError, Reason
from penstock.failpoints import Failpoint, reach
from penstock.jobs import parcels
from penstock.jobs.execution import Ending, Outcome
from penstock.jobs.parcel import Parcel, ParcelState, Sent
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.overnight.desk import Desk
from penstock.providers.base import BatchResult, BatchState, Deployment
from penstock.schemas import ModelAnswer, NanoDollars, Usage

RESULTS_A_CHUNK = 200
UNANSWERED = "the provider's batch ended without its answer"


async def settle(desk: Desk, parcel: Parcel) -> None:
    """Read what the provider answered, then hand over what it did not."""
    trouble: ProviderError | None = None
    for file_id in (parcel.output_file, parcel.error_file):
        if file_id is not None:
            try:
                await _read(desk, parcel, desk.deployment(parcel), file_id)
            except ProviderError as error:
                trouble = error
    if trouble is not None:
        if parcel.over_at is not None and parcel.now < parcel.over_at + timedelta(seconds=desk.terms.files_s):
            await desk.postpone(parcel, trouble)
            return
        telemetry.emit("parcel.refused", parcel=str(parcel.id), reason=trouble.reason, detail=trouble.detail)
    await _hand_over(desk, parcel)
    await desk.keep(parcel, state=ParcelState.SETTLED)
    reach(Failpoint.PARCEL_SETTLED)


async def _read(desk: Desk, parcel: Parcel, deployment: Deployment, file_id: str) -> None:
    async with aclosing(desk.files.results(deployment, file_id)) as results:
        async for chunk in _chunks(results):
            found = await desk.transact(parcels.by_call, parcel, [result.call_id for result in chunk])
            settlements, endings = [], []
            for result in chunk:
                sent = found.get(result.call_id)
                if sent is not None and (sent.is_open or not sent.is_settled):
                    settlement, ending = await _judge(desk, sent, result)
                    settlements.append(settlement)
                    endings.append(ending)
            await _write(desk, settlements, endings)
            await desk.hold(parcel)


async def _chunks(results: AsyncIterator[BatchResult]) -> AsyncIterator[list[BatchResult]]:
    chunk: list[BatchResult] = []
    async for result in results:
        chunk.append(result)
        if len(chunk) == RESULTS_A_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _judge(desk: Desk, sent: Sent, result: BatchResult) -> tuple[Settlement, Ending]:
    """Say what a call came to, and how its job ends."""
    outcome = result.outcome
    if isinstance(outcome, ModelAnswer):
        return await _answered(desk, sent, outcome)
    if outcome.usage is not None:
        cost = _cost(desk, sent, outcome.usage)
        paid = Settlement(sent.call_id, CallOutcome.ANSWERED, cost, outcome.usage, outcome.reason)
        return paid, await failed(desk.house, sent.job, outcome.reason, str(outcome))
    detail = f"in the provider's batch: {outcome}"
    return _unanswered(sent, outcome), Ending(sent.job.id, sent.job.fence, Outcome.DEFERRED, outcome.reason, detail)


def _unanswered(sent: Sent, error: ProviderError) -> Settlement:
    """Price a line without an answer: a refusal costs nothing, as in a live call, and neither does what was not run."""
    status = error.status or 0
    if not error.sent:
        return Settlement(sent.call_id, CallOutcome.NOT_SENT, 0, reason=error.reason)
    if status >= HTTPStatus.BAD_REQUEST and status not in GAVE_UP_WAITING:
        return Settlement(sent.call_id, CallOutcome.REFUSED, 0, reason=error.reason)
    return Settlement(sent.call_id, CallOutcome.UNKNOWN, None, reason=error.reason)


async def _answered(desk: Desk, sent: Sent, answer: ModelAnswer) -> tuple[Settlement, Ending]:
    """Price an answer, and keep it if it can be used: what cannot is paid too, and judged as a live one is."""
    settlement = Settlement(sent.call_id, CallOutcome.ANSWERED, _cost(desk, sent, answer.usage), answer.usage)
    kept = replace(
        settlement,
        request_digest=sent.digest,
        model_served=answer.model_served,
        finish_reason=answer.finish_reason,
        answer=answer.text,
    )
    job = sent.job
    try:
        check_finish(answer, sent.max_tokens)
        text = ai.find_prompt(desk.house, job.prompt).parse_output(answer.text)
    except (ConfigurationError, InvalidRequestError) as error:  # its prompt is away: a live attempt finds the answer
        return kept, Ending(job.id, job.fence, Outcome.DEFERRED, detail=str(error))
    except ProviderError as error:
        ending = await failed(desk.house, job, error.reason, str(error))
        return replace(settlement, reason=error.reason), ending
    except OutputInvalidError as error:
        ending = await failed(desk.house, job, Reason.OUTPUT_INVALID, str(error))
        return replace(settlement, reason=Reason.OUTPUT_INVALID), ending
    ending = Ending(
        job.id,
        job.fence,
        Outcome.SUCCEEDED,
        result=text,
        over_soft_limit=sent.over_soft_limit,
        model_asked=sent.deployment,
        model_served=answer.model_served,
        used_tokens=answer.usage.total_tokens,
    )
    return kept, ending


def _cost(desk: Desk, sent: Sent, usage: Usage) -> NanoDollars:
    """Price an answer as its call was promised: by the price that held when it was written down."""
    price = desk.house.prices.price_on(sent.deployment, date.fromisoformat(sent.price_version))
    return price.cost(usage, is_batch=True)


async def _write(desk: Desk, settlements: Sequence[Settlement], endings: Sequence[Ending]) -> None:
    for passed in await desk.transact(ledger.settle, settlements):
        tell_passed(passed)
    reach(Failpoint.PARCEL_PAID)
    await desk.transact(parcels.end, endings)
    reach(Failpoint.PARCEL_ANSWERED)


async def _hand_over(desk: Desk, parcel: Parcel) -> None:
    """Let calls without an answer be made live; what may have been run stays at its upper bound."""
    was_heard = parcel.provider_id is not None or parcel.asked_at is not None
    was_run = was_heard and parcel.provider_state != BatchState.FAILED
    outcome, cost = (CallOutcome.UNKNOWN, None) if was_run else (CallOutcome.NOT_SENT, 0)
    count = 0
    while left := await desk.transact(parcels.unanswered, parcel, most=RESULTS_A_CHUNK):
        settlements = [
            Settlement(each.call_id, outcome, cost, reason=Reason.UNAVAILABLE) for each in left if each.call_id
        ]
        endings = [Ending(each.job_id, each.fence, Outcome.DEFERRED, Reason.UNAVAILABLE, UNANSWERED) for each in left]
        await _write(desk, settlements, endings)
        await desk.hold(parcel)
        count += len(left)
    if count:
        telemetry.emit("parcel.unanswered", parcel=str(parcel.id), requests=count)


async def clear(desk: Desk, parcel: Parcel) -> None:
    """Let repeats find the answers to what they ask, then delete the files; where that fails they expire there.

    A repeat may wait for another file of its batch, which ends later. That one never waits for this.
    """
    while repeats := await desk.transact(parcels.repeats, parcel, most=RESULTS_A_CHUNK):
        await _write(desk, [], [Ending(each.job_id, each.fence, Outcome.DEFERRED) for each in repeats])
        await desk.hold(parcel)
    if await desk.transact(parcels.is_waited_for, parcel):
        await desk.keep(parcel, delay_s=desk.terms.poll_s)
        return
    try:
        deployment = desk.deployment(parcel)
        for file_id in (parcel.input_file, parcel.output_file, parcel.error_file):
            if file_id is not None:
                await desk.files.forget(deployment, file_id)
    except ProviderError as error:
        telemetry.emit("parcel.refused", parcel=str(parcel.id), reason=error.reason, detail=error.detail)
    await desk.keep(parcel, state=ParcelState.ENDED)
