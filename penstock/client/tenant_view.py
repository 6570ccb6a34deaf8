"""What may be shown to a tenant's own user. Postgres itself hides everybody else's rows; see docs/isolation.md.

It must not know how a row is found to be the tenant's: that stands in the policies of the tables.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import overload
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from penstock.batches import rows
from penstock.batches.batch import Batch, Progress
from penstock.errors import InvalidRequestError, JobNotFoundError
from penstock.jobs import queries
from penstock.jobs.queries import Attempt, Filter
from penstock.money import usage
from penstock.money.budgets import Period
from penstock.money.usage import By, PeriodUsage, UsageLine
from penstock.schemas import TENANT_PATTERN, Job

TENANT_ROLE = "penstock_tenant"
BECOME = text(f"""
    SELECT set_config('transaction_read_only', 'on', true), set_config('role', '{TENANT_ROLE}', true),
        set_config('penstock.tenant', :tenant, true)
""")
"""The same as SET TRANSACTION READ ONLY, SET LOCAL ROLE and SET LOCAL, in one round trip and with a parameter."""
NOW = text("SELECT now()")


class TenantView:
    """Reads of one tenant, each a transaction of its own that cannot see or change anything else."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        """Look on behalf of `tenant`; raise InvalidRequestError for what is no name of one."""
        self._engine = engine
        self.tenant = check_name("tenant", tenant)

    def get(self, job_id: UUID | str) -> Job:
        """Look a job up; raise JobNotFoundError, for another tenant's exactly as for one that does not exist."""
        with self.reading() as connection:
            return found(connection, job_id)

    def find(self, which: Filter | None = None, *, most: int = 50) -> list[Job]:
        """List jobs of the tenant, the newest first."""
        with self.reading() as connection:
            return queries.find(connection, which or Filter(), most=most)

    def history(self, job_id: UUID | str) -> list[Attempt]:
        """Give every attempt of a job, the oldest first; raise JobNotFoundError."""
        with self.reading() as connection:
            return queries.attempts(connection, found(connection, job_id).id)

    def batches(self, *, most: int = 50) -> list[Batch]:
        """List batches of the tenant, the newest first."""
        with self.reading() as connection:
            return rows.find_all(connection, self.tenant, most=most)

    def batch_progress(self, name: str) -> Progress:
        """Say how far a batch is and what it has cost; raise InvalidRequestError."""
        with self.reading() as connection:
            return rows.progress(connection, rows.find(connection, self.tenant, name))

    @overload
    def usage(self, by: None = None) -> list[PeriodUsage]: ...

    @overload
    def usage(self, by: By | str, since: datetime | None = None) -> list[UsageLine]: ...

    def usage(self, by: By | str | None = None, since: datetime | None = None) -> list[PeriodUsage] | list[UsageLine]:
        """Say how the tenant stands in the current day and month, or `by` what it has spent since then.

        `by` is `day`, `tier`, `prompt` or `model`; `since` is a time with its UTC offset, and the beginning of the
        current month (UTC) if not given. Raises InvalidRequestError.
        """
        with self.reading() as connection:
            return used(connection, self.tenant, by, since)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Be the tenant until the transaction ends; the connection goes back to the pool as it was."""
        with self._engine.begin() as connection:
            connection.execute(BECOME, {"tenant": self.tenant})
            yield connection


def used(
    connection: Connection, tenant: str | None, by: By | str | None, since: datetime | None
) -> list[PeriodUsage] | list[UsageLine]:
    """Read the usage of a tenant, or of all that the connection may see; raise InvalidRequestError."""
    now = connection.execute(NOW).scalar_one()
    if by is None:
        if since is not None:
            raise InvalidRequestError(
                "since", "the current day and month begin by themselves", "leave it out, or give `by` too"
            )
        return usage.standing(connection, tenant, now)
    if by not in list(By):
        raise InvalidRequestError("by", f"there is no usage by {by!r}", f"use one of {', '.join(By)}")
    if since is not None and since.tzinfo is None:
        raise InvalidRequestError("since", f"{since.isoformat()} has no UTC offset", "give an aware datetime")
    return usage.breakdown(connection, tenant, By(by), since or usage.start_of(Period.MONTH, now))


def found(connection: Connection, job_id: UUID | str) -> Job:
    """Give the job that the connection may see under an id; raise JobNotFoundError."""
    key = job_key(job_id)
    jobs = queries.get(connection, [key])
    if key not in jobs:
        raise JobNotFoundError(f"there is no job {job_id}")
    return jobs[key]


def job_key(job_id: UUID | str) -> UUID:
    """Read the id of a job; raise JobNotFoundError for what cannot be one."""
    try:
        return UUID(str(job_id))
    except ValueError:
        raise JobNotFoundError(f"there is no job {str(job_id)!r}: that is not the id of one") from None


def check_name(field: str, name: str) -> str:
    """Give the name of a tenant or a project back; raise InvalidRequestError where it is none."""
    if isinstance(name, str) and re.fullmatch(TENANT_PATTERN, name):
        return name
    raise InvalidRequestError(
        field,
        f"{name!r} is no name",
        "use lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most",
    )
