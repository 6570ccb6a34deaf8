"""Sends a parcel and looks how far it is. It must not know what a result says, or what it costs.

Only the creation of a batch may not happen twice. It is written down before it is asked for; where the answer was not
heard, the provider's list is searched for the parcel's marker before it is asked for again.
"""

import tempfile
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import Connection

from penstock import ai, telemetry
from penstock.errors import ConfigurationError, InvalidRequestError, ProviderError
from penstock.failpoints import Failpoint, reach
from penstock.jobs import parcels
from penstock.jobs.execution import Ending, Outcome
from penstock.jobs.parcel import Parcel, ParcelState, Sent
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.overnight.collecting import request_of
from penstock.overnight.desk import Desk
from penstock.providers.base import BatchState, Deployment, ProviderBatch
from penstock.retry import TREATMENTS, Kind

LINES_A_CHUNK = 200
BEFORE_ALL = UUID(int=0)
CLOCKS_APART = timedelta(hours=1)
TOKEN_LIMIT = "token_limit_exceeded"  # noqa: S105 - a code of OpenAI's
GAVE_UP = "given up"


async def upload(desk: Desk, parcel: Parcel) -> None:
    """Upload the file; nothing of it is worked off yet, and a file that was uploaded twice expires by itself."""
    if parcel.requests == 0 or parcel.returns or parcel.now >= parcel.send_by:
        await desk.give_back(parcel, "nothing to send" if parcel.requests == 0 else "not sent in time")
        return
    if not parcel.may_go:
        await desk.keep(parcel, delay_s=desk.terms.poll_s)
        return
    try:
        deployment = desk.deployment(parcel)
        with tempfile.TemporaryFile() as content:
            calls = await _write_file(desk, parcel, deployment, content)
            content.seek(0)
            name = f"{parcel.id}.jsonl"
            file_id = await desk.files.upload(deployment, name, content, keep_s=desk.terms.keep_s) if calls else None
    except ProviderError as error:
        await _not_sent(desk, parcel, error)
        return
    reach(Failpoint.PARCEL_UPLOADED)
    if file_id is None:
        await desk.give_back(parcel, "nothing to send")
        return
    changed = replace(parcel, state=ParcelState.UPLOADED, input_file=file_id)
    await desk.transact(_stored, changed, calls)
    reach(Failpoint.PARCEL_STORED)


def _stored(connection: Connection, parcel: Parcel, calls: list[UUID]) -> None:
    """Keep the id of the file; jobs that were cancelled before it was written are in no file."""
    parcels.keep(connection, parcel)
    missing = parcels.left_out(connection, parcel, calls)
    ledger.settle(connection, [Settlement(each.call_id, CallOutcome.NOT_SENT, 0) for each in missing if each.call_id])
    parcels.end(connection, [Ending(each.job_id, each.fence, Outcome.DEFERRED) for each in missing])


async def _write_file(desk: Desk, parcel: Parcel, deployment: Deployment, content: BinaryIO) -> list[UUID]:
    """Write the lines of all jobs that still wait for the file, and name their calls."""
    calls: list[UUID] = []
    after = BEFORE_ALL
    while chunk := await desk.transact(parcels.to_send, parcel, after=after, most=LINES_A_CHUNK):
        for sent in chunk:
            line = _line(desk, deployment, sent)
            if line is not None:
                content.write(line)
                calls.append(sent.call_id)
        after = chunk[-1].call_id
    return calls


def _line(desk: Desk, deployment: Deployment, sent: Sent) -> bytes | None:
    """Write a request as a line; None where its prompt is gone since its call was written down."""
    job = sent.job
    try:
        rendered = ai.find_prompt(desk.house, job.prompt).render(job.variables, job.document)
    except (ConfigurationError, InvalidRequestError):
        return None
    return desk.files.encode(deployment, request_of(sent.call_id, rendered, sent.max_tokens, desk.terms.window_s))


async def _not_sent(desk: Desk, parcel: Parcel, error: ProviderError) -> None:
    """Try again where that may help and the window is still open."""
    if TREATMENTS[error.reason].kind is Kind.PERMANENT:
        await desk.refuse(parcel, error)
    else:
        await desk.postpone(parcel, error)


async def create(desk: Desk, parcel: Parcel) -> None:
    """Have the file worked off, once."""
    try:
        deployment = desk.deployment(parcel)
        if parcel.asked_at is None:
            await _create(desk, parcel, deployment)
        else:
            await _look_for(desk, parcel, deployment)
    except ProviderError as error:
        if parcel.asked_at is None:
            await _not_sent(desk, parcel, error)
        else:
            await _not_seen(desk, parcel, error)


async def _create(desk: Desk, parcel: Parcel, deployment: Deployment) -> None:
    if parcel.returns or parcel.now >= parcel.send_by or parcel.input_file is None:
        await desk.give_back(parcel, "not sent in time")
        return
    if not parcel.may_go:
        await desk.keep(parcel, delay_s=desk.terms.poll_s)
        return
    asked = await desk.hold(parcel, asked_at=parcel.now)
    reach(Failpoint.PARCEL_ASKED)
    try:
        batch = await desk.files.create(deployment, parcel.input_file, parcel.marker, keep_s=desk.terms.keep_s)
    except ProviderError as error:
        if _may_have_been_heard(error):
            await desk.postpone(asked, error)
            return
        raise
    reach(Failpoint.PARCEL_CREATED)
    await _created(desk, asked, batch)


def _may_have_been_heard(error: ProviderError) -> bool:
    """Tell whether a batch may be there although it was asked for without success."""
    if not error.sent:
        return False
    return error.status is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status in {200, 408, 409}


async def _look_for(desk: Desk, parcel: Parcel, deployment: Deployment) -> None:
    """Find the batch that was asked for without an answer; of several, which none but a stopped process makes, one."""
    assert parcel.asked_at is not None
    found = await desk.files.find(deployment, parcel.marker, parcel.asked_at - CLOCKS_APART)
    if found:
        for surplus in found[1:]:
            if not surplus.state.is_over:
                await desk.files.cancel(deployment, surplus.id)
        await _created(desk, parcel, found[0])
    elif parcel.now < parcel.asked_at + timedelta(seconds=desk.terms.unheard_s):
        await desk.keep(parcel, delay_s=desk.terms.poll_s)
    else:
        await _create(desk, replace(parcel, asked_at=None), deployment)


async def _created(desk: Desk, parcel: Parcel, batch: ProviderBatch) -> None:
    telemetry.emit("parcel.sent", parcel=str(parcel.id), deployment=parcel.deployment, requests=parcel.requests)
    changes = {"state": ParcelState.SENT, "provider_id": batch.id, "provider_state": batch.state.value}
    await desk.keep(parcel, delay_s=desk.terms.poll_s, **changes)
    reach(Failpoint.PARCEL_SENT)


async def poll(desk: Desk, parcel: Parcel) -> None:
    """Look how far the batch is; one that takes longer than it may is cancelled, and one that hangs is given up."""
    try:
        batch = await _look(desk, parcel)
    except ProviderError as error:
        await _not_seen(desk, parcel, error)
        return
    seen = replace(
        parcel,
        provider_state=batch.state.value,
        output_file=batch.output_file,
        error_file=batch.error_file,
        over_at=parcel.over_at or (parcel.now if batch.state.is_over else None),
    )
    hangs = BatchState.CANCELLING.value == seen.provider_state == parcel.provider_state
    if hangs and _is_hopeless(desk, parcel):
        await _give_up(desk, seen)
    elif not batch.state.is_over or _lacks_its_file(desk, seen, batch):
        await desk.keep(seen, delay_s=desk.terms.poll_s)
    elif batch.state is BatchState.FAILED and TOKEN_LIMIT in batch.errors and parcel.now < parcel.send_by:
        await _again(desk, parcel)
    else:
        await _over(desk, seen, batch)


async def _look(desk: Desk, parcel: Parcel) -> ProviderBatch:
    assert parcel.provider_id is not None
    deployment = desk.deployment(parcel)
    batch = await desk.files.retrieve(deployment, parcel.provider_id)
    is_late = parcel.is_cancelled or parcel.now >= parcel.ends_by
    if not is_late or batch.state.is_over or batch.state is BatchState.CANCELLING:
        return batch
    return await desk.files.cancel(deployment, parcel.provider_id)


async def _not_seen(desk: Desk, parcel: Parcel, error: ProviderError) -> None:
    """Look again later, as long as there is time; what the provider may have run is never thought of as not sent."""
    if _is_hopeless(desk, parcel):
        await _give_up(desk, parcel)
    else:
        await desk.postpone(parcel, error)


def _is_hopeless(desk: Desk, parcel: Parcel) -> bool:
    return parcel.now >= parcel.ends_by + timedelta(seconds=desk.terms.cancel_s)


async def _give_up(desk: Desk, parcel: Parcel) -> None:
    await desk.keep(parcel, state=ParcelState.OVER, reason=GAVE_UP)


def _lacks_its_file(desk: Desk, parcel: Parcel, batch: ProviderBatch) -> bool:
    """Tell whether there are answers whose file may yet come: it can take a while after the batch says it is done."""
    assert parcel.over_at is not None
    waited = parcel.now - parcel.over_at
    return batch.completed > 0 and batch.output_file is None and waited < timedelta(seconds=desk.terms.files_s)


async def _again(desk: Desk, parcel: Parcel) -> None:
    """Have the file worked off anew when other batches have ended: nothing was run of this one."""
    again = {"state": ParcelState.UPLOADED, "provider_id": None, "provider_state": None, "asked_at": None}
    await desk.keep(parcel, delay_s=desk.terms.poll_s, round=parcel.round + 1, **again)


async def _over(desk: Desk, parcel: Parcel, batch: ProviderBatch) -> None:
    telemetry.emit("parcel.over", parcel=str(parcel.id), state=batch.state.value, answered=batch.completed)
    await desk.keep(parcel, state=ParcelState.OVER, reason=next(iter(batch.errors), None))
    reach(Failpoint.PARCEL_OVER)
