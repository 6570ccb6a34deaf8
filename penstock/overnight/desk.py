"""What every step needs: the house, the provider of files, and the terms. It must not know a step."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from penstock import telemetry
from penstock.errors import InvalidRequestError, ProviderError, Reason
from penstock.house import House
from penstock.jobs import parcels
from penstock.jobs.parcel import Parcel, ParcelState
from penstock.money.prices import Price
from penstock.providers.base import BatchProvider, Deployment

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
HOUR_S = 3600


@dataclass(frozen=True)
class Terms:
    """What a provider of files allows, and how patient we are. Seconds throughout.

    `window_s` is what it takes at most to work a file off, and `patience_s` how long a file without a date may wait to
    be taken; `unheard_s` passes before a batch that was asked for without an answer is asked for again, and `files_s`
    before the file of results that is said to be there is given up. `hold_s` is longer than any one call of a step.
    """

    most_requests: int = 50_000
    most_bytes: int = 200_000_000
    window_s: float = 24 * HOUR_S
    patience_s: float = 6 * HOUR_S
    poll_s: float = 60.0
    unheard_s: float = 300.0
    files_s: float = 900.0
    cancel_s: float = 900.0
    rest_s: float = 60.0
    hold_s: float = 1200.0
    keep_s: int = 72 * HOUR_S


@dataclass(frozen=True)
class Desk:
    """Where parcels are worked on."""

    house: House
    files: BatchProvider
    terms: Terms = Terms()

    async def transact(
        self,
        work: Callable[Concatenate[Connection, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Do work in a transaction of its own."""
        async with self.house.engine.begin() as connection:
            return await connection.run_sync(work, *args, **kwargs)

    async def keep(self, parcel: Parcel, *, delay_s: float = 0.0, **changes: Any) -> Parcel:
        """Write what changed, and give the turn back until `delay_s` seconds have passed."""
        changed = replace(parcel, **changes)
        await self.transact(parcels.keep, changed, delay_s=delay_s)
        return changed

    async def hold(self, parcel: Parcel, **changes: Any) -> Parcel:
        """Write what changed, and go on with the turn."""
        changed = replace(parcel, **changes)
        await self.transact(parcels.keep, changed, hold_s=self.terms.hold_s)
        return changed

    async def postpone(self, parcel: Parcel, error: ProviderError, **changes: Any) -> None:
        """Come again when the provider has been left alone for a while."""
        delay_s = max(self.terms.poll_s, error.retry_after_s or 0.0)
        telemetry.emit(
            "parcel.postponed", parcel=str(parcel.id), reason=error.reason, detail=error.detail, delay_s=delay_s
        )
        await self.keep(parcel, delay_s=delay_s, **changes)

    async def refuse(self, parcel: Parcel, error: ProviderError) -> None:
        """Hand everything over to live calls, and send no other file of the batch: the provider takes none."""
        telemetry.emit("parcel.refused", parcel=str(parcel.id), reason=error.reason, detail=error.detail)
        await self.transact(parcels.take_live, parcel.batch_id)
        await self.give_back(parcel, error.reason)

    async def give_back(self, parcel: Parcel, reason: str) -> None:
        """Take apart a parcel that the provider never had."""
        await self.keep(parcel, state=ParcelState.OVER, reason=reason)

    def deployment(self, parcel: Parcel) -> Deployment:
        """Find where a parcel goes; raise ProviderError where the configuration has it no longer."""
        for deployment in self.deployments(parcel.tier):
            if deployment.name == parcel.deployment:
                return deployment
        raise ProviderError(Reason.MODEL_NOT_FOUND, "the deployment is no longer configured", sent=False)

    def deployments(self, tier: str) -> tuple[Deployment, ...]:
        """Give the deployments of a tier; none where the configuration has the tier no longer."""
        with suppress(InvalidRequestError):
            return self.house.catalogue.deployments(tier)
        return ()

    def price(self, deployment: str) -> Price:
        """Give the price that holds today."""
        return self.house.prices.price_on(deployment, self.house.clock.now().date())
