"""Degraded results that are to be replaced by a model's answer. It must not know why they are degraded."""

from uuid import UUID

from sqlalchemy import Connection

from penstock.jobs import requeueing

RERUN = requeueing.statement(
    """state = 'succeeded' AND coalesce(kept_until, '-infinity') <= now()
        AND EXISTS (SELECT 1 FROM results WHERE job_id = jobs.id AND degraded)""",
    changes="kept_until = NULL, on_unavailable = 'wait'",
)


def rerun(connection: Connection, ids: list[UUID]) -> list[UUID]:
    """Queue jobs with a degraded result anew and give the ids of those that had one: a second call finds none.

    They wait for a model now, whatever they accepted before; the degraded result stays until an answer takes its place.
    A budget decides for itself: where it is exhausted and degrades, a new degraded result takes the place of the old.
    A batch that was done goes on; of one that was cancelled nothing does.
    """
    return requeueing.requeue(connection, RERUN, ids)
