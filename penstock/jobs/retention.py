"""What is forgotten, and when: the text of jobs that have ended. It must not know who asks, or how often.

Rows of jobs, attempts and the ledger stay, without text. A job is taken only while its row is locked and says that it
has ended, so that one which is replayed or re-run keeps its payload.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

RESULT_EXPIRES_S = 3600.0
"""How long a result waits to be fetched where nothing is to be kept."""
BATCH_EXPIRES_S = 172_800.0
"""How long a result then waits at most for the end of its batch."""

ENDED = "state IN ('succeeded', 'dead', 'cancelled')"
LABELLED = "(document_name IS NOT NULL OR metadata <> '{}' OR (detail IS NOT NULL AND purged_at IS NULL))"

KEPT_TO = f"""(greatest(ended_at, (
        SELECT least(jobs.ended_at + make_interval(secs => {BATCH_EXPIRES_S}), coalesce(batches.ended_at, now()))
        FROM batches WHERE batches.id = batch_id))
    + make_interval(secs => :result_expires_s))"""  # noqa: S608 - a constant
"""A result of a batch is fetched with all others of it, when the batch has ended."""

KEEPS_RESULT = f"""(days = 0 AND state = 'succeeded' AND kept_until IS DISTINCT FROM ended_at
    AND {KEPT_TO} > now()
    AND EXISTS (SELECT 1 FROM results WHERE job_id = jobs.id AND fetched_at IS NULL))"""  # noqa: S608 - a constant

FORGET = f"""
    payloads_gone AS (
        DELETE FROM payloads USING due WHERE job_id = due.id RETURNING job_id
    ), answers_gone AS (
        DELETE FROM answers USING due WHERE job_id = due.id RETURNING job_id
    ), results_gone AS (
        DELETE FROM results USING due WHERE job_id = due.id AND NOT keeps_result RETURNING job_id
    ), purged AS (
        UPDATE jobs SET purged_at = now(), document_name = NULL, metadata = '{{}}', detail = NULL
        FROM due WHERE jobs.id = due.id AND NOT keeps_result
    ), kept AS (
        UPDATE jobs SET kept_until = {KEPT_TO}
        FROM due WHERE jobs.id = due.id AND keeps_result
    )
    SELECT (SELECT count(*) FROM due) AS jobs,
        (SELECT count(*) FROM payloads_gone) AS payloads,
        (SELECT count(*) FROM answers_gone) AS answers,
        (SELECT count(*) FROM results_gone) AS results,
        (SELECT count(*) FROM due WHERE is_labelled AND NOT keeps_result) AS labels
"""  # noqa: S608 - a constant

# Tenants without a period of their own are walked by index, one step each: a list of all jobs may be long.
PURGE_EXPIRED = text(f"""
    WITH RECURSIVE periods AS (
        SELECT * FROM jsonb_to_recordset(CAST(:periods AS jsonb)) AS row(tenant text, days float8)
    ), found AS (
        (SELECT tenant FROM jobs WHERE {ENDED} AND purged_at IS NULL ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant FROM jobs WHERE {ENDED} AND purged_at IS NULL AND tenant > found.tenant
            ORDER BY tenant LIMIT 1)
        FROM found WHERE found.tenant IS NOT NULL
    ), tenants AS (
        SELECT tenant, days FROM periods WHERE days IS NOT NULL
        UNION ALL
        SELECT tenant, CAST(:default AS float8) FROM found
        WHERE CAST(:default AS float8) IS NOT NULL AND tenant IS NOT NULL AND tenant NOT IN (SELECT tenant FROM periods)
        ORDER BY days
    ), due AS (
        SELECT expired.* FROM tenants CROSS JOIN LATERAL (
            SELECT id, {KEEPS_RESULT} AS keeps_result, {LABELLED} AS is_labelled FROM jobs
            WHERE {ENDED} AND purged_at IS NULL AND jobs.tenant = tenants.tenant
                AND coalesce(kept_until, ended_at) <= now() - make_interval(secs => days * 86400)
            ORDER BY coalesce(kept_until, ended_at) LIMIT :most FOR UPDATE SKIP LOCKED
        ) AS expired LIMIT :most
    ), {FORGET}
""")  # noqa: S608 - no value is interpolated

PURGE = text(f"""
    WITH due AS (
        SELECT id, false AS keeps_result, {LABELLED} AS is_labelled FROM jobs
        WHERE {ENDED} AND purged_at IS NULL AND tenant = :tenant AND ended_at <= :until
        ORDER BY coalesce(kept_until, ended_at) LIMIT :most FOR UPDATE SKIP LOCKED
    ), {FORGET}
""")  # noqa: S608 - no value is interpolated

SURVEY = text(f"""
    WITH bound AS (
        SELECT least(CAST(:until AS timestamptz), now()) AS until
    ), ended AS (
        SELECT id, purged_at, {LABELLED} AS is_labelled FROM jobs, bound
        WHERE {ENDED} AND tenant = :tenant AND ended_at <= until
    )
    SELECT until,
        (SELECT count(*) FROM jobs WHERE tenant = :tenant AND NOT {ENDED}) AS live,
        (SELECT count(*) FROM ended WHERE purged_at IS NULL) AS unpurged,
        (SELECT count(*) FROM payloads JOIN ended ON job_id = id) AS payloads,
        (SELECT count(*) FROM answers JOIN ended ON job_id = id) AS answers,
        (SELECT count(*) FROM results JOIN ended ON job_id = id) AS results,
        (SELECT count(*) FROM ended WHERE is_labelled) AS labels,
        (SELECT count(*) FROM ledger WHERE tenant = :tenant) AS ledger,
        EXISTS (SELECT 1 FROM jobs WHERE tenant = :tenant) AS has_jobs
    FROM bound
""")  # noqa: S608 - no value is interpolated

# `kept_until` is set whatever it was: a purge and a fetch that meet see each other in the row of the job alone.
FETCHED = text("""
    WITH given AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:ends AS timestamptz[])) AS given(id, ended_at)
    ), job AS (
        SELECT jobs.id FROM jobs JOIN given USING (id, ended_at) WHERE state = 'succeeded'
        ORDER BY id FOR UPDATE OF jobs
    ), fetched AS (
        UPDATE results SET fetched_at = now() FROM job WHERE job_id = job.id AND fetched_at IS NULL RETURNING job_id
    )
    UPDATE jobs SET kept_until = ended_at FROM fetched WHERE jobs.id = job_id
""")

HOLD = text(
    f"SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND {ENDED} ORDER BY id FOR UPDATE"  # noqa: S608
)


@dataclass(frozen=True)
class TextRows:
    """Rows with text; `labels` are rows of jobs with a document's name, metadata or a detail."""

    payloads: int = 0
    answers: int = 0
    results: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Purged:
    """What one batch took: `jobs` lost text, in so many rows."""

    jobs: int
    rows: TextRows


@dataclass(frozen=True)
class Survey:
    """What there is of a tenant: text of jobs that ended until `until`, and what no purge takes."""

    tenant: str
    until: datetime
    has_jobs: bool
    unpurged_jobs: int
    live_jobs: int
    ledger_rows: int
    rows: TextRows


@dataclass(frozen=True)
class PurgeProof:
    """What a purge found, what it deleted, and what a later look found to be left.

    It is about jobs that ended until `until`. `live_jobs` have not ended and still have their text; `ledger_rows` stay.
    """

    tenant: str
    until: datetime
    jobs: int
    before: TextRows
    deleted: TextRows
    left: TextRows
    ledger_rows: int
    live_jobs: int

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left that should be gone."""
        return self.left == TextRows()


def purge_expired(
    connection: Connection, periods: Mapping[str, float | None], default: float | None, *, most: int = 1000
) -> int:
    """Delete the text of jobs that ended longer ago than their tenant's period, and give how many lost some.

    Periods are in days, None is for ever; `default` is for tenants that `periods` does not name. Where the period is 0
    the result of a success stays until it was fetched, or for RESULT_EXPIRES_S from its end or that of its batch. Safe
    to run twice and beside itself.
    """
    if default is None and all(days is None for days in periods.values()):
        return 0
    values = {
        "periods": json.dumps([{"tenant": tenant, "days": days} for tenant, days in periods.items()]),
        "default": default,
        "result_expires_s": RESULT_EXPIRES_S,
        "most": most,
    }
    return int(connection.execute(PURGE_EXPIRED, values).one().jobs)


def purge(connection: Connection, tenant: str, until: datetime, *, most: int) -> Purged:
    """Delete all text of at most `most` jobs of a tenant that ended until then; 0 jobs: there are no more."""
    values = {"tenant": tenant, "until": until, "most": most, "result_expires_s": RESULT_EXPIRES_S}
    row = connection.execute(PURGE, values).one()
    return Purged(row.jobs, _text_rows(row))


def survey(connection: Connection, tenant: str, until: datetime | None) -> Survey:
    """Count what there is of a tenant; without `until`, or with one to come, until now."""
    row = connection.execute(SURVEY, {"tenant": tenant, "until": until}).one()
    return Survey(tenant, row.until, row.has_jobs, row.unpurged, row.live, row.ledger, _text_rows(row))


def prove(before: Survey, batches: list[Purged], after: Survey) -> PurgeProof:
    """Put together what was found, taken and left."""
    return PurgeProof(
        tenant=after.tenant,
        until=after.until,
        jobs=sum(batch.jobs for batch in batches),
        before=before.rows,
        deleted=TextRows(**{name: sum(getattr(batch.rows, name) for batch in batches) for name in asdict(TextRows())}),
        left=after.rows,
        ledger_rows=after.ledger_rows,
        live_jobs=after.live_jobs,
    )


def note_fetched(connection: Connection, fetched: Sequence[tuple[UUID, datetime]]) -> None:
    """Note that the results of successes which ended then were read, and may go now; the first time counts."""
    values = {"ids": [str(job_id) for job_id, _ in fetched], "ends": [ended_at for _, ended_at in fetched]}
    connection.execute(FETCHED, values)


def hold(connection: Connection, ids: list[UUID]) -> None:
    """Wait for a purge of these jobs, so that the next statement sees what it has left, and let none begin.

    A statement that itself waited for the row would still see the payloads that were there when it began.
    """
    connection.execute(HOLD, {"ids": [str(job_id) for job_id in ids]})


def _text_rows(row: object) -> TextRows:
    return TextRows(**{name: getattr(row, name) for name in asdict(TextRows())})
