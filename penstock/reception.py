"""What a message at Celery's door becomes: a job, or a dead letter that says why not. It must not know Celery."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from penstock import telemetry
from penstock.clock import SystemClock
from penstock.errors import InvalidRequestError
from penstock.intake import Intake
from penstock.jobs.submission import bury_refused, submit
from penstock.schemas import TENANT_PATTERN
from penstock.settings import Settings
from penstock.store.db import async_engine, is_away

Result = TypeVar("Result")

PROMPT_PATTERN = r"[a-z0-9_]{1,64}"
RETRY_S = 0.5


@dataclass(frozen=True)
class Reception:
    """What a process needs that takes requests in: no prices, and no provider's key."""

    settings: Settings
    engine: AsyncEngine
    intake: Intake

    @classmethod
    def open(cls, settings: Settings) -> "Reception":
        """Read the configuration and connect; raise ConfigurationError."""
        return cls(settings, async_engine(settings.require_database_url()), Intake.load(settings, SystemClock()))

    async def close(self) -> None:
        """Give the connections back."""
        await self.engine.dispose()

    async def receive(self, job_id: UUID, fields: Mapping[str, Any]) -> UUID:
        """Make the row of a request; the feeder releases it. Raises InvalidRequestError.

        Gives the id of the job that stands for the request: an earlier one if its idempotency key was used before.

        The check runs in a thread, since a parser may take seconds. A path is refused: it would name a file of ours.
        """
        document = fields.get("document")
        if document is not None and not isinstance(document, str):
            raise InvalidRequestError("document", "a message carries text only", "send a string, or use the client")
        most = self.settings.max_inline_bytes
        if document is not None and len(document.encode("utf-8", "replace")) > most:
            raise InvalidRequestError("document", f"a message carries at most {most} bytes", "use the client")
        job = await asyncio.to_thread(self.intake.accept, job_id, fields)
        (accepted,) = await self._write(partial(submit, jobs=[job], window=0))
        telemetry.emit("job.submitted", job=str(accepted.id), tenant=job.tenant, tier=job.tier, lane=job.lane)
        return accepted.id

    async def refuse(self, job_id: UUID, fields: Mapping[str, Any], error: InvalidRequestError) -> None:
        """Record a refused request as dead with reason `invalid`, without its content."""
        refusal = partial(
            bury_refused,
            job_id=job_id,
            tenant=_named(fields.get("tenant"), TENANT_PATTERN),
            prompt=_named(fields.get("prompt"), PROMPT_PATTERN),
            detail=str(error),
        )
        await self._write(refusal)
        telemetry.emit("job.refused", job=str(job_id), field=error.field, reason=error.reason)

    async def _write(self, write: Callable[[Connection], Result]) -> Result:
        """Commit; wait for a Postgres that is away, since the message is gone once its task has ended.

        Safe to repeat when a broken connection hides whether it was done: the row's id is the message's.
        """
        while True:
            try:
                async with self.engine.begin() as connection:
                    return await connection.run_sync(write)
            except DBAPIError as error:
                if not is_away(error):
                    raise
            telemetry.emit("service.unavailable", service="postgres", error="OperationalError", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)


def row_id(task_id: str) -> UUID:
    """Give the id of the row that stands for a message: its task's, or one made of it where that is no UUID."""
    try:
        return UUID(task_id)
    except ValueError:
        return uuid5(NAMESPACE_URL, task_id)


def _named(value: object, pattern: str) -> str:
    """Keep a name that looks like one: what was refused may hold anything."""
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else ""
