"""Lets `AsyncResult(job_id).get()` read the jobs table. It writes nothing: workers keep results as rows themselves.

Celery("app", broker=..., backend="penstock.client.result_backend:JobsBackend")
"""

import weakref
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TaskRevokedError
from sqlalchemy import Engine

from penstock.errors import JobDeadError, Reason
from penstock.jobs import queries
from penstock.reception import row_id
from penstock.schemas import Job, JobState
from penstock.settings import default_settings
from penstock.store.db import sync_engine

CELERY_STATES = {
    JobState.PAUSED: states.PENDING,
    JobState.QUEUED: states.PENDING,
    JobState.RELEASED: states.PENDING,
    JobState.RUNNING: states.STARTED,
    JobState.RETRYING: states.RETRY,
    JobState.SUCCEEDED: states.SUCCESS,
    JobState.DEAD: states.FAILURE,
    JobState.CANCELLED: states.REVOKED,
}


class JobsBackend(BaseBackend):  # type: ignore[misc]
    """Celery's result backend over the jobs table, for reading."""

    supports_native_join = False
    persistent = True

    _engine: Engine | None = None

    def store_result(self, _task_id: str, result: Any, _state: str, *_: Any, **__: Any) -> Any:
        """Store nothing: the row was written in the transaction that ended the attempt."""
        return result

    def _forget(self, task_id: str) -> None:
        """Keep the job: its row is not a cached result."""

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        if self._engine is None:
            self._engine = sync_engine(default_settings().require_database_url())
            weakref.finalize(self, self._engine.dispose)  # Celery tells a backend nothing of its app's end
        with self._engine.connect() as connection:
            job_id = row_id(task_id)
            job = queries.get(connection, [job_id]).get(job_id)
        if job is None:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        return {
            "task_id": task_id,
            "status": CELERY_STATES[job.state],
            "result": _result(job),
            "date_done": job.ended_at.isoformat() if job.ended_at else None,
            "traceback": None,
            "children": [],
        }


def _result(job: Job) -> str | Exception | None:
    if job.state is JobState.DEAD:
        return JobDeadError(str(job.id), job.reason or Reason.INTERNAL, job.detail or "")
    return TaskRevokedError("cancelled") if job.state is JobState.CANCELLED else job.result
