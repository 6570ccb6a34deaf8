"""Degraded results that are to be replaced by a model's answer. It must not know why they are degraded."""

from uuid import UUID

from sqlalchemy import Connection, text

RERUN = text("""
    UPDATE jobs SET state = 'queued', due_at = now(), ended_at = NULL, reason = NULL, detail = NULL, failures = 0,
        crashes = 0, kept_until = NULL, on_unavailable = 'wait',
        deadline = CASE WHEN deadline <= now() THEN NULL ELSE deadline END
    WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'succeeded'
        AND purged_at IS NULL AND coalesce(kept_until, '-infinity') <= now()
        AND EXISTS (SELECT 1 FROM results WHERE job_id = jobs.id AND degraded)
        AND EXISTS (SELECT 1 FROM payloads WHERE job_id = jobs.id)
    RETURNING id
""")


def rerun(connection: Connection, ids: list[UUID]) -> list[UUID]:
    """Queue jobs with a degraded result anew and give the ids of those that had one: a second call finds none.

    They wait for a model now, whatever they accepted before; the degraded result stays until an answer takes its place.
    A budget decides for itself: where it is exhausted and degrades, a new degraded result takes the place of the old.
    """
    return [row.id for row in connection.execute(RERUN, {"ids": [str(job_id) for job_id in ids]})]
