"""Takes a parcel apart: every call is settled, every job is ended or handed over. It must not know how it was sent.

Results come in any order, twice, or not at all. A call is settled before its job is ended, so that an answer which was
paid for is kept wherever this stops; a second time changes nothing.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from http import HTTPStatus
from itertools import chain

from penstock import ai, telemetry
from penstock.attempt import failed
from penstock.call import GAVE_UP_WAITING, tell_passed, usable
from penstock.errors import ConfigurationError, InvalidRequestError, OutputInvalidError, ProviderError, Reason
from penstock.failpoints import Failpoint, reach
from penstock.jobs import parcels
from penstock.jobs.execution import Ending, Outcome
from penstock.jobs.parcels import Parcel, ParcelState, Request, Sent
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.overnight.desk import Desk
from penstock.providers.base import BatchResult, BatchState, Deployment
from penstock.schemas import ModelAnswer

RESULTS_A_CHUNK = 200
Verdict = tuple[Settlement | None, Ending]


async def settle(desk: Desk, parcel: Parcel) -> None:
    """Read what the provider answered, then hand over what it did not."""
    try:
        deployment = desk.deployment(parcel)
        for file_id in (parcel.output_file, parcel.error_file):
            if file_id is not None:
                await _read(desk, parcel, deployment, file_id)
    except ProviderError as error:
        if parcel.over_at is not None and parcel.now < parcel.over_at + timedelta(seconds=desk.terms.files_s):
            await desk.postpone(parcel, error)
            return
        telemetry.emit("parcel.refused", parcel=str(parcel.id), reason=error.reason, detail=error.detail)
    await _hand_over(desk, parcel)
    await desk.keep(parcel, state=ParcelState.SETTLED)
    reach(Failpoint.PARCEL_SETTLED)


async def _read(desk: Desk, parcel: Parcel, deployment: Deployment, file_id: str) -> None:
    async for chunk in _chunks(desk.files.results(deployment, file_id)):
        found = await desk.transact(_Lookup(parcel, chunk))
        verdicts = [
            await _judge(desk, found[result.call_id], result)
            for result in chunk
            if result.call_id in found and (found[result.call_id].is_open or not found[result.call_id].is_settled)
        ]
        await _write(desk, verdicts)
        await desk.hold(parcel)
