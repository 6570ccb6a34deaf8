"""Jobs that have ended and are to run again, their batch with them. It must not know why they ended."""

from uuid import UUID

from sqlalchemy import Connection, TextClause, text


def statement(which: str, changes: str) -> TextClause:
    """Write the statement that queues anew those of :ids of which `which` holds and whose content is still there.

    A batch that was done goes on, and is judged by what comes now, as after a resume; of one that was cancelled nothing
    runs again. Its row is taken by whoever ends it, too: no batch ends while a job of it is queued.
    """
    kept = f"{which} AND purged_at IS NULL AND EXISTS (SELECT 1 FROM payloads WHERE job_id = jobs.id)"  # noqa: S608
    return text(f"""
        WITH chosen AS (
            SELECT id, batch_id AS of_batch FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND {kept}
        ), held AS (
            SELECT id AS batch FROM batches WHERE id IN (SELECT of_batch FROM chosen) AND state <> 'cancelled'
            ORDER BY id FOR UPDATE
        ), reopened AS (
            UPDATE batches SET state = CASE state WHEN 'done' THEN 'running' ELSE state END, ended_at = NULL,
                announced = false, resumed_at = now(), ended_before = so_far.ended, dead_before = so_far.dead,
                settled_before = (SELECT coalesce(sum(settled_nanodollars), 0) FROM spending
                    WHERE spending.tenant = batches.tenant AND project = batch::text AND period = 'batch')
            FROM held CROSS JOIN LATERAL (
                SELECT count(*) AS ended, count(*) FILTER (WHERE jobs.state = 'dead') AS dead FROM jobs
                WHERE batch_id = batch AND jobs.state IN ('succeeded', 'dead', 'cancelled')
                    AND NOT EXISTS (SELECT 1 FROM chosen WHERE chosen.id = jobs.id)
            ) AS so_far
            WHERE batches.id = batch
            RETURNING batch
        )
        UPDATE jobs SET state = 'queued', due_at = now(), ended_at = NULL, reason = NULL, detail = NULL,
            failures = 0, crashes = 0, deadline = CASE WHEN deadline <= now() THEN NULL ELSE deadline END, {changes}
        FROM chosen LEFT JOIN reopened ON batch = of_batch
        WHERE jobs.id = chosen.id AND (of_batch IS NULL OR batch IS NOT NULL) AND {kept}
        RETURNING jobs.id
    """)  # noqa: S608 - constants


def requeue(connection: Connection, again: TextClause, ids: list[UUID]) -> list[UUID]:
    """Queue jobs anew, and give the ids of those that were."""
    return [row.id for row in connection.execute(again, {"ids": [str(job_id) for job_id in ids]})]
