"""Celery tasks whose bodies are `async def`, wherever they run. It must not know which work exists.

The steps of a coroutine run in the greenlet of its job, so `self.request` and `current_task` are the job's own.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import wraps
from inspect import isawaitable, iscoroutine
from typing import Any

from celery import Task
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.util import await_
from sqlalchemy.util.concurrency import in_greenlet

__all__ = ["CoroutineTask", "Interruption", "interruption", "wait"]


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):  # type: ignore[misc]  # celery has no types
    """The soft limit as a body sees it: an error to catch, and to TaskGroup and its like a cancellation to clean up."""


class Interruption:
    """What a cancellation of the current job means: its soft limit, its end, or nothing that the pool did."""

    __slots__ = ("final", "soft")

    def __init__(self) -> None:
        """Begin without a reason to cancel."""
        self.final = False
        self.soft = False

    def translate(self, error: BaseException) -> BaseException:
        """Give what the body shall see of an error that was thrown at its await."""
        if not (isinstance(error, asyncio.CancelledError) and self.soft) or self.final:
            return error
        self.soft = False
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return SoftLimit()


interruption: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


class _Suspension:
    """One suspension of a coroutine, handed as it is to the asyncio task that drives the greenlet."""

    __slots__ = ("_waiter",)

    def __init__(self, waiter: object) -> None:
        self._waiter = waiter

    def __await__(self) -> Generator[object, object, object]:
        return (yield self._waiter)


class CoroutineTask(Task):  # type: ignore[misc]  # celery has no types
    """The `task_cls` of an app: bodies may be `async def`.

    On the asyncio pool a body waits without blocking anybody; elsewhere (eager, called directly, another pool) it has
    a loop of its own. A synchronous body runs too, but on the asyncio pool it stops every other job while it does.
    The waiting happens in `run`, inside of what Celery wraps around it: `autoretry_for` sees the body's exceptions.
    """

    abstract = True

    def __init_subclass__(cls, **options: object) -> None:
        """Let `run` give the result of a coroutine instead of the coroutine."""
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        if isinstance(run, staticmethod):
            cls.run = staticmethod(_waiting(run.__func__))
        elif run is not None:
            cls.run = _waiting(run)


def wait(awaitable: Any) -> Any:
    """Wait for an awaitable from synchronous code and give its result.

    Raises what the awaitable raises; RuntimeError in a thread whose loop is running, outside of a job's greenlet.
    """
    coroutine = awaitable if iscoroutine(awaitable) else _await(awaitable)
    if in_greenlet():
        return _drive(coroutine, interruption.get() or Interruption())
    try:
        return asyncio.run(coroutine)
    finally:
        coroutine.close()


def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return wait(result) if isawaitable(result) else result

    return run


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _drive(coroutine: Coroutine[Any, Any, Any], reason: Interruption) -> Any:
    """Run a coroutine to its end in this greenlet, suspending the greenlet whenever the coroutine waits.

    A job that is cancelled for good ends with CancelledError whatever its body makes of it, so that Celery records
    no second outcome; a cancellation that nobody asked for is an ordinary failure.
    """
    try:
        result = _steps(coroutine, reason)
    except asyncio.CancelledError as error:
        if reason.final:
            raise
        if isinstance(error, SoftLimit):
            raise SoftTimeLimitExceeded from error
        raise RuntimeError("the body of the task was cancelled from within") from error
    except Exception as error:
        if reason.final:
            raise asyncio.CancelledError from error
        raise
    if reason.final:
        raise asyncio.CancelledError
    return result


def _steps(coroutine: Coroutine[Any, Any, Any], reason: Interruption) -> Any:
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            waiter = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return stop.value
        value, error = None, None
        try:
            value = await_(_Suspension(waiter))
        except BaseException as thrown:  # noqa: BLE001  whatever it is, it belongs to the body
            error = reason.translate(thrown)
