"""The steps of a parcel, in order. It must not know how often they are taken, or by whom."""

import asyncio
from collections.abc import Awaitable, Callable

from penstock.errors import FencedError
from penstock.jobs import parcels
from penstock.jobs.parcel import Parcel, ParcelState
from penstock.overnight import collecting, sending, settling
from penstock.overnight.desk import Desk

Step = Callable[[Desk, Parcel], Awaitable[None]]

STEPS: dict[ParcelState, Step] = {
    ParcelState.COLLECTING: collecting.collect,
    ParcelState.SEALED: sending.upload,
    ParcelState.UPLOADED: sending.create,
    ParcelState.SENT: sending.poll,
    ParcelState.OVER: settling.settle,
    ParcelState.SETTLED: settling.clear,
}


async def work(desk: Desk, *, looks_for_wishes: bool = True) -> int:
    """Begin the parcels that are wanted and take every step that is due; gives their number. Any number may run."""
    steps = await collecting.open_parcels(desk) if looks_for_wishes else 0
    while await advance(desk):
        steps += 1
    return steps


async def advance(desk: Desk) -> bool:
    """Take one step of one parcel, and tell whether there was one to take.

    A step that fails keeps its parcel from being due for a while, and raises what it raised; of one that is stopped
    another process takes the turn at once.
    """
    parcel = await desk.transact(parcels.take_turn, hold_s=desk.terms.hold_s)
    if parcel is None:
        return False
    try:
        await STEPS[parcel.state](desk, parcel)
    except asyncio.CancelledError:
        await asyncio.shield(desk.transact(parcels.give_up_turn, parcel, delay_s=0.0))
        raise
    except FencedError:  # it took so long that another process has gone on
        return True
    except Exception:
        await desk.transact(parcels.give_up_turn, parcel, delay_s=desk.terms.poll_s)
        raise
    return True
