"""The door for any Celery producer: a message with its text becomes a row. It must not know how it is checked."""

import asyncio
from typing import Any
from uuid import UUID

from celery.exceptions import Ignore, Reject

from penstock import telemetry
from penstock.errors import InvalidRequestError
from penstock.reception import Reception, row_id
from tasks.declaration import IdentifiersOnly, task

REQUEUE_S = 0.5


@task(name="penstock.summarise", throws=(InvalidRequestError,), request=IdentifiersOnly)
async def summarise(self: Any, /, *args: Any, **fields: Any) -> dict[str, str]:
    """Accept a document to be summarised. Safe to run twice: the row's id is the task's."""
    return await _take_in(self, args, {"prompt": "summarise_document"} | fields)


@task(name="penstock.complete", throws=(InvalidRequestError,), request=IdentifiersOnly)
async def complete(self: Any, /, *args: Any, **fields: Any) -> dict[str, str]:
    """Accept a request for any prompt. Safe to run twice: the row's id is the task's."""
    return await _take_in(self, args, fields)


async def _take_in(self: Any, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, str]:
    """Make the row, and leave the task's end to its attempts; a repeat of an idempotency key ends with the first id."""
    try:
        job_id = await _receive(self.app.reception, self.request.id, args, fields)
    except InvalidRequestError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the request is in this message and nowhere else
        telemetry.failed(error)
        await asyncio.sleep(REQUEUE_S)
        raise Reject(type(error).__name__, requeue=True) from None
    if job_id != UUID(self.request.id):
        return {"job_id": str(job_id)}
    raise Ignore("the job is a row now; its first attempt will run under the same id")


async def _receive(reception: Reception, task_id: str, args: tuple[Any, ...], fields: dict[str, Any]) -> UUID:
    try:
        if args:
            raise InvalidRequestError("args", "they have no names", "send keyword arguments")  # noqa: TRY301
        return await reception.receive(_job_id(task_id), fields)
    except InvalidRequestError as error:
        await reception.refuse(row_id(task_id), fields, error)
        raise


def _job_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        raise InvalidRequestError("task_id", f"{task_id[:64]!r} is not a UUID", "leave the id to Celery") from None
