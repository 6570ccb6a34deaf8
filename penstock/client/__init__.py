"""The producer's door. It must not import LiteLLM, and it is quick to import.

from penstock.client import Client

client = Client()
job_id = client.submit(tenant="acme", prompt="summarise_document", document=Path("report.pdf"))
print(client.wait(job_id, timeout_s=120).result)
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

from sqlalchemy import Connection

from penstock.client.accounts import Accounts
from penstock.client.aftercare import Aftercare
from penstock.client.batches import Batches
from penstock.client.doorbell import Doorbell
from penstock.client.tenant_view import found, job_key
from penstock.clock import SystemClock
from penstock.errors import (
    InvalidRequestError,
    JobCancelledError,
    JobDeadError,
    JobNotFoundError,
    Reason,
    WaitTimeoutError,
)
from penstock.failpoints import Failpoint, reach
from penstock.intake import Intake
from penstock.jobs import queries, retention
from penstock.jobs.queries import Attempt, Filter
from penstock.jobs.release import Release
from penstock.jobs.submission import Accepted, NewJob, copy, submit
from penstock.schemas import Job, JobState, Lane, OnUnavailable
from penstock.settings import Settings, default_settings
from penstock.store.db import sync_engine
from penstock.tenants import Tenants

if TYPE_CHECKING:
    from penstock.waiting import Explanation

__all__ = ["Client"]

FIRST_POLL_S = 0.02
SLOWEST_POLL_S = 0.5
ROWS_A_STATEMENT = 1000
CHARACTERS_A_STATEMENT = 16_000_000
COPY_FROM = 100
"""From how many rows on COPY is worth its round trips."""
FETCHES_A_PAGE = 1000


class Client(Accounts, Aftercare, Batches):
    """Submits jobs and gives their results. Safe to share between threads."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect as the environment says; raise ConfigurationError for a setting or file that is wrong."""
        self._settings = settings or default_settings()
        self._intake = Intake.load(self._settings, SystemClock())
        self._tenants = Tenants.load(self._settings.config)
        self._engine = sync_engine(self._settings.require_database_url())
        self._doorbell = Doorbell(self._settings.require_broker_url())

    def __enter__(self) -> Self:
        """Use the client for the length of a block."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._doorbell.close()
        self._engine.dispose()

    def submit(
        self,
        *,
        tenant: str,
        project: str = "",
        prompt: str = "summarise_document",
        document: str | bytes | Path | None = None,
        media_type: str | None = None,
        document_name: str | None = None,
        variables: Mapping[str, str] | None = None,
        prompt_version: str | None = None,
        tier: str | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        priority: int = 5,
        idempotency_key: str | None = None,
        deadline: datetime | None = None,
        on_unavailable: OnUnavailable | str = OnUnavailable.WAIT,
        fresh: bool = False,
        metadata: Mapping[str, str] | None = None,
        connection: Connection | None = None,
    ) -> UUID:
        """Accept one job and give its id; raise InvalidRequestError, with nothing stored, when it is refused.

        With a `connection`, the job is part of the caller's transaction: it exists when the caller commits.
        """
        fields = {
            "tenant": tenant,
            "project": project,
            "prompt": prompt,
            "document": document,
            "media_type": media_type,
            "document_name": document_name,
            "variables": {} if variables is None else variables,
            "prompt_version": prompt_version,
            "tier": tier,
            "lane": lane,
            "priority": priority,
            "idempotency_key": idempotency_key,
            "deadline": deadline,
            "on_unavailable": on_unavailable,
            "fresh": fresh,
            "metadata": {} if metadata is None else metadata,
        }
        return self._store([self._accept(fields)], connection)[0]

    def submit_many(self, requests: Iterable[Mapping[str, Any]], *, connection: Connection | None = None) -> list[UUID]:
        """Accept many jobs, each given as a mapping of the fields of `submit`: all of them, or none.

        The InvalidRequestError of a refused one says which by its number, from 0, as in `requests[3].tenant`; an
        IdempotencyConflictError says which by its key.
        """
        return self._store([self._accept_nth(number, fields) for number, fields in enumerate(requests)], connection)

    def _store(self, jobs: list[NewJob], connection: Connection | None) -> list[UUID]:
        """Write when all are checked: the transaction holds keys that others may want. The feeder finds a caller's."""
        if connection is not None:
            with connection.begin_nested():
                return [row.id for chunk in _chunks(jobs) for row in submit(connection, chunk, window=0)]
        accepted: list[Accepted] = []
        with self._engine.begin() as own:
            for chunk in _chunks(jobs):
                write = copy if len(chunk) >= COPY_FROM else submit
                accepted += write(own, chunk, window=self._settings.interactive_window)
        reach(Failpoint.PRODUCER_COMMITTED)
        self._doorbell.ring(_born_released(jobs, accepted))
        return [row.id for row in accepted]

    def get(self, job_id: UUID | str) -> Job:
        """Look a job up; raise JobNotFoundError.

        Where nothing of a tenant is kept, its result can be read once: it is gone some seconds later.
        """
        with self._engine.connect() as connection:
            job = found(connection, job_id)
        if job.result is not None and job.ended_at is not None:
            self.note_fetched(job.tenant, [(job.id, job.ended_at)])
        return job

    def note_fetched(self, tenant: str, fetched: Sequence[tuple[UUID, datetime]]) -> None:
        """Let results of a tenant without retention go, now that they are safe elsewhere: job ids, and when each ended.

        A job that ended anew meanwhile keeps its result.
        """
        if self._tenants.entry(tenant).retention_days != 0:
            return
        for start in range(0, len(fetched), FETCHES_A_PAGE):
            with self._engine.begin() as connection:
                retention.note_fetched(connection, fetched[start : start + FETCHES_A_PAGE])

    def wait(self, job_id: UUID | str, timeout_s: float | None = None) -> Job:
        """Wait for a job to succeed and give it.

        Raises JobDeadError with its reason, JobCancelledError, JobNotFoundError, or WaitTimeoutError after
        `timeout_s` seconds, which leaves the job as it is.
        """
        key = job_key(job_id)
        self.wait_all([key], timeout_s=timeout_s)
        return succeeded(self.get(key))

    def wait_all(
        self,
        job_ids: Iterable[UUID],
        *,
        timeout_s: float | None = None,
        progress: Callable[[dict[UUID, JobState]], None] | None = None,
    ) -> dict[UUID, JobState]:
        """Wait until every job has ended, however it did; `progress` is called with the states after each look."""
        keys = list(job_ids)
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = FIRST_POLL_S
        while True:
            with self._engine.connect() as connection:
                states = queries.states(connection, keys)
            missing = [key for key in keys if key not in states]
            if missing:
                raise JobNotFoundError(f"there is no job {missing[0]}")
            if progress is not None:
                progress(states)
            if all(state.is_terminal for state in states.values()):
                return states
            left_s = math.inf if ends_at is None else ends_at - time.monotonic()
            if left_s <= 0:
                waiting = sum(not state.is_terminal for state in states.values())
                raise WaitTimeoutError(f"{waiting} of {len(keys)} jobs had not ended after {timeout_s} s; they go on")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, SLOWEST_POLL_S)

    def cancel(self, *job_ids: UUID | str) -> list[UUID]:
        """Cancel jobs that have not ended and give the ids of those; a call in flight is stopped."""
        with self._engine.begin() as connection:
            cancelled = queries.cancel(connection, [job_key(job_id) for job_id in job_ids])
        self._doorbell.revoke(cancelled)
        return cancelled

    def find(self, which: Filter, *, most: int = 50) -> list[Job]:
        """List jobs, the newest first."""
        with self._engine.connect() as connection:
            return queries.find(connection, which, most=most)

    def history(self, job_id: UUID | str) -> list[Attempt]:
        """Give every attempt of a job, the oldest first."""
        with self._engine.connect() as connection:
            return queries.attempts(connection, job_key(job_id))

    def why(self, job_id: UUID | str) -> "Explanation":
        """Say why a job is not running: what it waits for, and until when where that is known.

        Raises JobNotFoundError, and ConfigurationError if models.toml is not here.
        """
        from penstock.gates.scripts import SyncScripts
        from penstock.jobs.waiting import standing
        from penstock.routing import Catalogue
        from penstock.store.redis import sync_redis
        from penstock.waiting import Gates, explain

        with self._engine.connect() as connection:
            job = standing(connection, job_key(job_id))
        if job is None:
            raise JobNotFoundError(f"there is no job {job_id}")
        folder = self._settings.config
        with sync_redis(self._settings.require_redis_url()) as redis:
            return explain(job, Gates(SyncScripts(redis), Catalogue.load(folder, with_keys=False), self._tenants))

    def _accept(self, fields: Mapping[str, Any]) -> NewJob:
        return self._intake.accept(uuid4(), {"prompt": "summarise_document", **fields})

    def _accept_nth(self, number: int, fields: Mapping[str, Any]) -> NewJob:
        try:
            return self._accept(fields)
        except InvalidRequestError as error:
            raise type(error)(f"requests[{number}].{error.field}", error.reason, error.cure) from error


def _born_released(jobs: Sequence[NewJob], accepted: Sequence[Accepted]) -> list[Release]:
    """Give the messages to be sent; one that gets lost is sent again by the feeder."""
    return [
        Release(row.id, job.tenant, row.tier, row.lane, job.prompt, is_retry=False)
        for job, row in zip(jobs, accepted, strict=True)
        if row.created and row.state is JobState.RELEASED
    ]


def _chunks(jobs: Iterable[NewJob]) -> Iterator[list[NewJob]]:
    """Put together what one statement can carry."""
    chunk: list[NewJob] = []
    characters = 0
    for job in jobs:
        chunk.append(job)
        characters += len(job.document or "")
        if len(chunk) == ROWS_A_STATEMENT or characters > CHARACTERS_A_STATEMENT:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def succeeded(job: Job) -> Job:
    """Give the job back if it succeeded; raise what its end means if it did not."""
    if job.state is JobState.DEAD:
        raise JobDeadError(str(job.id), job.reason or Reason.INTERNAL, job.detail or "")
    if job.state is JobState.CANCELLED:
        raise JobCancelledError(f"job {job.id} was cancelled")
    return job
