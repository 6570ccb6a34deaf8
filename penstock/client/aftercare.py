"""What a client may do with jobs that have ended: run them anew, discard them, forget their text.

It must not know how they came to their end.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine

from penstock.client.tenant_view import check_name
from penstock.errors import InvalidRequestError
from penstock.jobs import dead_letters, reruns, retention
from penstock.jobs.retention import PurgeProof

PURGED_A_STATEMENT = 500


class Aftercare:
    """The part of a client that concerns jobs which have ended."""

    _engine: Engine

    def rerun(self, job_ids: Iterable[UUID]) -> list[UUID]:
        """Queue jobs with a degraded result anew, to wait for a model, and give the ids of those that had one."""
        keys = list(job_ids)
        with self._engine.begin() as connection:
            retention.hold(connection, keys)
            return reruns.rerun(connection, keys)

    def replay(self, job_ids: Iterable[UUID]) -> list[UUID]:
        """Queue dead jobs anew and give the ids of those that were dead and can run."""
        keys = list(job_ids)
        with self._engine.begin() as connection:
            retention.hold(connection, keys)
            return dead_letters.replay(connection, keys)

    def discard(self, job_ids: Iterable[UUID]) -> list[UUID]:
        """Take dead jobs out of the dead letters and give the ids of those that were dead."""
        with self._engine.begin() as connection:
            return dead_letters.discard(connection, list(job_ids))

    def purge(
        self,
        tenant: str,
        before: datetime | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> PurgeProof:
        """Delete the text of a tenant's jobs that ended before then, or until now; then count again what is left.

        `progress` is called with how many jobs are done, and of how many, after each batch. Raises InvalidRequestError
        for a tenant without jobs, and for a time without its UTC offset.
        """
        if before is not None and before.tzinfo is None:
            raise InvalidRequestError("before", f"{before.isoformat()} has no UTC offset", "give an aware datetime")
        with self._engine.begin() as connection:
            there = retention.survey(connection, check_name("tenant", tenant), before)
        if not there.has_jobs:
            raise InvalidRequestError("tenant", f"{tenant!r} has no jobs", "correct the name; nothing was deleted")
        batches: list[retention.Purged] = []
        while not batches or batches[-1].jobs:
            with self._engine.begin() as connection:
                batches.append(retention.purge(connection, tenant, there.until, most=PURGED_A_STATEMENT))
            if progress is not None:
                progress(sum(batch.jobs for batch in batches), there.unpurged_jobs)
        with self._engine.begin() as connection:
            return retention.prove(there, batches, retention.survey(connection, tenant, there.until))
