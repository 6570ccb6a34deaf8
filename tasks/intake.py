"""The door for any Celery producer: a message with the text inline becomes a row. It must not know how it is checked."""

from typing import Any, NoReturn
from uuid import NAMESPACE_URL, UUID, uuid5

from celery.exceptions import Ignore

from penstock.errors import InvalidRequestError
from tasks.declaration import IdentifiersOnly, task


@task(name="penstock.summarise", throws=(InvalidRequestError,), request=IdentifiersOnly)
async def summarise(self: Any, *args: Any, **fields: Any) -> NoReturn:
    """Accept a document to be summarised. Safe to run twice: the row's id is the task's."""
    await _take_in(self, args, {"prompt": "summarise_document"} | fields)


@task(name="penstock.complete", throws=(InvalidRequestError,), request=IdentifiersOnly)
async def complete(self: Any, *args: Any, **fields: Any) -> NoReturn:
    """Accept a request for any prompt. Safe to run twice: the row's id is the task's."""
    await _take_in(self, args, fields)


async def _take_in(self: Any, args: tuple[Any, ...], fields: dict[str, Any]) -> NoReturn:
    reception = self.app.reception
    try:
        if args:
            raise InvalidRequestError("args", "positional arguments have no names", "send keyword arguments")
        await reception.receive(_job_id(self.request.id), fields)
    except InvalidRequestError as error:
        await reception.refuse(_row_id(self.request.id), fields, error)
        raise
    raise Ignore("the job is a row now; its first attempt will run under the same id")


def _job_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        raise InvalidRequestError("task_id", f"{task_id[:64]!r} is not a UUID", "leave the id to Celery") from None


def _row_id(task_id: str) -> UUID:
    try:
        return UUID(task_id)
    except ValueError:
        return uuid5(NAMESPACE_URL, task_id)
