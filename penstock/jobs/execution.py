"""One attempt of a job: claim it, then end it in exactly one way. It must not know what the attempt does.

`claim` and `finish` take many rows at once, because a pool's jobs share their statements; each answers row by row.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.errors import Reason
from penstock.jobs.states import SUSPECT_AFTER
from penstock.schemas import JobState, Lane, OnUnavailable, PromptReference, Source
from penstock.store.text import storable_row


@dataclass(frozen=True)
class Claim:
    """The wish of a worker to run a job."""

    job_id: UUID
    worker: str


@dataclass(frozen=True)
class ClaimedJob:
    """A job that this worker runs now, and nobody else: everything its attempt needs to know."""

    id: UUID
    fence: int
    worker: str
    tenant: str
    prompt: PromptReference
    tier: str
    lane: Lane
    failures: int
    on_unavailable: OnUnavailable
    deadline: datetime | None
    created_at: datetime
    started_at: datetime
    waited_s: float
    ends_in_s: float | None
    variables: dict[str, str]
    document: str | None
    project: str = ""
    batch_id: UUID | None = None
    is_fresh: bool = False


REFUSED_AGE_S = 60
"""What marks the row of a suspect that a worker was refused: no message is waited for so long."""

# A worker that runs a suspect gets no other; the feeder sends the message of the one that was refused again.
CLAIM = text(
    """
    WITH wanted AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(job_id uuid, worker text)
    ), taken AS (
        SELECT DISTINCT worker FROM jobs WHERE crashes >= {suspect} AND state = 'running'
    ), claimed AS (
        UPDATE jobs SET state = 'running', fence = fence + 1, attempts = attempts + 1, worker = wanted.worker,
            started_at = now()
        FROM wanted JOIN workers ON workers.id = wanted.worker AND workers.lease_until > now()
        WHERE jobs.id = wanted.job_id AND jobs.state = 'released'
            AND (jobs.deadline IS NULL OR jobs.deadline > now())
            AND (jobs.crashes < {suspect} OR wanted.worker NOT IN (SELECT worker FROM taken))
        RETURNING jobs.*
    ), refused AS (
        UPDATE jobs SET released_at = now() - make_interval(secs => {age_s}) FROM wanted
        WHERE jobs.id = wanted.job_id AND jobs.state = 'released' AND jobs.crashes >= {suspect}
            AND wanted.worker IN (SELECT worker FROM taken)
    ), history AS (
        INSERT INTO attempts (job_id, fence, worker, released_at) SELECT id, fence, worker, released_at FROM claimed
    )
    SELECT id, fence, claimed.worker, tenant, project, batch_id, prompt_id, prompt_version, prompt_digest,
        tier, lane, failures,
        on_unavailable, is_fresh, deadline, created_at, started_at, payloads.variables, payloads.document,
        extract(epoch FROM now() - released_at)::float8 AS waited_s,
        extract(epoch FROM deadline - now())::float8 AS ends_in_s
    FROM claimed JOIN payloads ON payloads.job_id = claimed.id
""".replace("{suspect}", str(SUSPECT_AFTER)).replace("{age_s}", str(REFUSED_AGE_S))
)


def claim(connection: Connection, claims: Sequence[Claim]) -> list[ClaimedJob | None]:
    """Take released jobs for live workers; None where there is nothing to take: a second delivery, a cancelled job.

    Nor does a worker get a second job that has seen SUSPECT_AFTER crashes while it runs one.
    """
    rows = json.dumps([{"job_id": str(claim.job_id), "worker": claim.worker} for claim in claims])
    taken = {}
    for row in connection.execute(CLAIM, {"rows": rows}):
        run = {name: getattr(row, name) for name in ("fence", "worker", "started_at", "waited_s", "ends_in_s")}
        taken[row.id, row.worker] = claimed(row, **run)
    return [taken.pop((claim.job_id, claim.worker), None) for claim in claims]


def claimed(row: Any, **run: Any) -> ClaimedJob:
    """Make a job of its row; `run` is what that says of no run, or not of this one. A purged job has lost its text."""
    return ClaimedJob(
        id=row.id,
        tenant=row.tenant,
        project=row.project,
        batch_id=row.batch_id,
        prompt=PromptReference(id=row.prompt_id, version=row.prompt_version, digest=row.prompt_digest),
        tier=row.tier,
        lane=Lane(row.lane),
        failures=row.failures,
        on_unavailable=OnUnavailable(row.on_unavailable),
        deadline=row.deadline,
        created_at=row.created_at,
        variables=row.variables or {},
        document=row.document,
        is_fresh=row.is_fresh,
        **run,
    )


class Outcome(StrEnum):
    """How an attempt ended. A deferred one was none: the job waits as if it had not been released."""

    SUCCEEDED = "succeeded"
    RETRIED = "retried"
    DEFERRED = "deferred"
    DEAD = "dead"
    HANDED_BACK = "handed_back"

    @property
    def state(self) -> JobState:
        """The state that the job goes to."""
        return {
            Outcome.SUCCEEDED: JobState.SUCCEEDED,
            Outcome.DEAD: JobState.DEAD,
            Outcome.RETRIED: JobState.RETRYING,
            Outcome.DEFERRED: JobState.QUEUED,
            Outcome.HANDED_BACK: JobState.RETRYING,
        }[self]


@dataclass(frozen=True)
class Ending:
    """How one attempt ends. `delay_s` is for a retry; `failed` says that it counts against the tier's limit.

    `used_tokens` is what the tenant's share pays for a success in place of the estimate, divided by the tenant's
    `weight`; a death has paid the estimate, and so has a run that its own tenant's calls kept from its budget: it took
    a release from the others.
    """

    job_id: UUID
    fence: int
    outcome: Outcome
    reason: Reason | None = None
    detail: str | None = None
    delay_s: float = 0.0
    failed: bool = False
    result: str | None = None
    degraded: bool = False
    cached: bool = False
    over_soft_limit: bool = False
    model_asked: str = ""
    model_served: str = ""
    used_tokens: int = 0
    sources: tuple[Source, ...] | None = None
    weight: float = 1.0


FINISH = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            job_id uuid, fence bigint, outcome text, state text, reason text, detail text, delay_s float8,
            failed boolean, result text, degraded boolean, cached boolean, over_soft_limit boolean,
            model_asked text, model_served text, used_tokens bigint, sources jsonb, weight float8)
    ), judged AS (
        SELECT given.*, jobs.charged_tokens,
            CASE WHEN given.state = 'queued' AND jobs.attempts > 1 THEN 'retrying' ELSE given.state END AS becomes
        FROM given JOIN jobs ON jobs.id = given.job_id AND jobs.fence = given.fence
    ), ended AS (
        UPDATE jobs SET state = becomes, reason = judged.reason, detail = judged.detail,
            failures = failures + judged.failed::integer,
            attempts = attempts - (judged.outcome = 'deferred')::integer,
            charged_tokens = CASE WHEN becomes = 'retrying' THEN jobs.charged_tokens ELSE 0 END,
            due_at = CASE WHEN becomes IN ('queued', 'retrying')
                THEN now() + make_interval(secs => judged.delay_s) ELSE due_at END,
            ended_at = CASE WHEN becomes IN ('queued', 'retrying') THEN NULL ELSE now() END
        FROM judged
        WHERE jobs.id = judged.job_id AND jobs.fence = judged.fence AND jobs.state = 'running'
        RETURNING jobs.id, jobs.fence, jobs.tier, jobs.lane, jobs.tenant, judged.outcome, judged.reason,
            judged.charged_tokens AS charged,
            (judged.used_tokens - judged.charged_tokens) / judged.weight AS correction, becomes
    ), shares AS (
        INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens)
        SELECT tier, lane, tenant, round(sum(correction)) FROM ended
        WHERE charged > 0 AND (outcome = 'succeeded' OR (becomes = 'queued' AND reason IS DISTINCT FROM 'budget_held'))
        GROUP BY tier, lane, tenant
        ORDER BY tier, lane DESC, tenant  -- one order for all: two processes, or one and a feeder, cannot deadlock
        ON CONFLICT (tier, lane, tenant) DO UPDATE SET served_tokens = share.served_tokens + excluded.served_tokens
    ), no_attempt AS (
        DELETE FROM attempts USING given
        WHERE attempts.job_id = given.job_id AND attempts.fence = given.fence AND given.outcome = 'deferred'
            AND (given.job_id, given.fence) IN (SELECT id, fence FROM ended)
    ), history AS (
        UPDATE attempts SET ended_at = now(), outcome = given.outcome, reason = given.reason, detail = given.detail
        FROM given
        WHERE attempts.job_id = given.job_id AND attempts.fence = given.fence AND given.outcome <> 'deferred'
            AND (given.job_id, given.fence) IN (SELECT id, fence FROM ended)
    ), stored AS (
        INSERT INTO results (job_id, text, degraded, cached, over_soft_limit, model_asked, model_served, sources)
        SELECT job_id, result, degraded, cached, over_soft_limit, model_asked, model_served, sources FROM given
        WHERE outcome = 'succeeded' AND (job_id, fence) IN (SELECT id, fence FROM ended)
        ON CONFLICT (job_id) DO UPDATE SET text = excluded.text, degraded = excluded.degraded,
            cached = excluded.cached, over_soft_limit = excluded.over_soft_limit, fetched_at = NULL,
            model_asked = excluded.model_asked, model_served = excluded.model_served, sources = excluded.sources
    )
    SELECT id, fence FROM ended
""")


def finish(connection: Connection, endings: Sequence[Ending]) -> list[bool]:
    """End attempts; False where the job belongs to a later run or was cancelled, and nothing was changed.

    Of several endings of one attempt the first counts: a run that is stopped while its end is written has two.
    """
    first = {(ending.job_id, ending.fence): ending for ending in reversed(endings)}
    rows = [_row(first[key]) for key in sorted(first)]  # one order for all: two cannot deadlock
    ended = {(row.id, row.fence) for row in connection.execute(FINISH, {"rows": json.dumps(rows)})}
    return [
        (ending.job_id, ending.fence) in ended and first.pop((ending.job_id, ending.fence), None) is not None
        for ending in endings
    ]


def _row(ending: Ending) -> dict[str, object]:
    sources = None if ending.sources is None else [source.model_dump() for source in ending.sources]
    ours = {"job_id": str(ending.job_id), "state": ending.outcome.state.value, "sources": sources}
    return storable_row(asdict(ending)) | ours
