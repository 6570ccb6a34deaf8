"""Tasks that exercise the pool, for a worker process of the tests. It must not know what the tests expect of them.

A task tells what it does by pushing to lists in Redis (POOL_APP_NOTES), and waits there for what it is told.
"""

import asyncio
import os
import time
from contextvars import ContextVar
from functools import cache
from typing import Any

from celery import Celery, current_task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.signals import worker_ready
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from workers.coroutine_task import CoroutineTask
from workers.reconnection import RedisReconnection

NOTES_URL = os.environ.get("POOL_APP_NOTES", "redis://127.0.0.1:6379/15")

app = Celery("pool_app", task_cls=CoroutineTask)
app.conf.update(
    broker_url=os.environ.get("POOL_APP_BROKER", "redis://127.0.0.1:6379/0"),
    result_backend=NOTES_URL,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": float(os.environ.get("POOL_APP_VISIBILITY_S", "3600")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    penstock_drain_timeout_s=float(os.environ.get("POOL_APP_DRAIN_S", "30")),
    penstock_cancel_grace_s=0.5,
)
app.steps["consumer"].add(RedisReconnection)
traveller: ContextVar[str] = ContextVar("traveller", default="nobody")


@cache
def notes() -> AsyncRedis:
    """Give the connection of this process's loop."""
    return AsyncRedis.from_url(NOTES_URL, decode_responses=True, max_connections=1000)


@worker_ready.connect
def tell_ready(**_: Any) -> None:
    """Say that the worker consumes."""
    Redis.from_url(NOTES_URL).rpush(f"ready:{os.environ['POOL_APP_NAME']}", os.getpid())


@app.task
async def echo(value: Any) -> Any:
    """Give the argument back."""
    return value


@app.task
async def fail() -> None:
    """Raise an ordinary exception after an await."""
    await asyncio.sleep(0)
    raise ValueError("as told")


@app.task
async def hold(gate: str) -> str:
    """Run until somebody opens the gate; tell of the start and of the end, whatever it is."""
    try:
        await notes().rpush(f"started:{gate}", current_task.request.id)
        await notes().blpop([f"gate:{gate}"])
    except asyncio.CancelledError:
        await notes().rpush(f"ended:{gate}", "cancelled")
        raise
    await notes().rpush(f"ended:{gate}", "opened")
    return gate


@app.task
async def hold_for_ever(gate: str) -> None:
    """Refuse to be cancelled."""
    await notes().rpush(f"started:{gate}", current_task.request.id)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await notes().rpush(f"ended:{gate}", "refused")


@app.task(acks_late=False)
async def hold_early(gate: str) -> str:
    """Run until somebody opens the gate, acknowledged when it starts."""
    await notes().rpush(f"started:{gate}", current_task.request.id)
    await notes().blpop([f"gate:{gate}"])
    return gate


@app.task
async def swallow_cancellation(gate: str) -> str:
    """Give a result in spite of being cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await notes().rpush(f"ended:{gate}", "swallowed")
    return "as if nothing had happened"


@app.task
async def gather_under_soft_limit(gate: str) -> str:
    """Have children in a task group when the soft limit strikes."""

    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await notes().rpush(f"ended:{gate}", "child")

    try:
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(child()) for _ in range(3)]
    except SoftTimeLimitExceeded:
        return f"caught, {sum(one.done() for one in children)} children done"
    return "not interrupted"


@app.task
async def feel_soft_limit(*, catch: bool) -> str:
    """Wait for a soft limit to strike at the await."""
    try:
        await asyncio.Event().wait()
    except SoftTimeLimitExceeded:
        if not catch:
            raise
    await asyncio.sleep(0)
    return f"caught, {asyncio.current_task().cancelling()} cancellations pending"  # type: ignore[union-attr]


@app.task(bind=True, max_retries=3)
async def retry_twice(self: Any) -> int:
    """Succeed at the third attempt."""
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(bind=True, autoretry_for=(OSError,), retry_kwargs={"countdown": 0, "max_retries": 3})
async def retry_by_itself(self: Any) -> int:
    """Succeed at the second attempt, by Celery's own wrapping of the body."""
    await asyncio.sleep(0)
    if self.request.retries < 1:
        raise OSError("not yet")
    return int(self.request.retries)


@app.task
async def ask_for_retry() -> None:
    """Raise Retry without publishing one."""
    raise Retry("somebody else will")


@app.task
async def ignore() -> None:
    """Leave no outcome."""
    raise Ignore


@app.task
async def reject(name: str, *, requeue: bool) -> str:
    """Reject the message the first time."""
    if await notes().incr(f"rejected:{name}") == 1:
        raise Reject("as told", requeue=requeue)
    return "the second time"


@app.task
async def give_unserialisable() -> object:
    """Give what JSON cannot hold."""
    return object()


@app.task
async def leave(code: int) -> None:
    """Exit, as a misbehaving library would."""
    await asyncio.sleep(0)
    raise SystemExit(code)


@app.task
async def cancel_itself() -> None:
    """End with a CancelledError that nobody asked for."""
    raise asyncio.CancelledError


@app.task
async def kill_loop(gate: str) -> None:
    """Stop the loop under everybody's feet."""
    await notes().rpush(f"started:{gate}", current_task.request.id)
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


@app.task(bind=True)
async def travel(self: Any, rounds: int) -> int:
    """Count the awaits after which the surroundings are still this job's own."""
    traveller.set(self.request.id)
    kept = 0
    for _ in range(rounds):
        await asyncio.sleep(0)
        at_home = (traveller.get(), current_task.request.id, current_task.name, self.request.retries)
        kept += at_home == (self.request.id, self.request.correlation_id, self.name, 0)
    return kept


@app.task
def block(duration_s: float) -> str:
    """Run without a coroutine; the loop waits with it."""
    time.sleep(duration_s)
    return "done"


@app.task
async def count_run(gate: str, name: str) -> None:
    """Count how often `name` has run to its end, after the gate was opened."""
    await notes().rpush(f"started:{gate}", name)
    await notes().blpop([f"gate:{gate}"])
    await notes().hincrby(f"runs:{gate}", name, 1)
