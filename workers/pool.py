"""A Celery worker pool in which every job is a task of one asyncio loop. It must not know what a job does.

Two threads share it. The consumer's thread (Celery's main thread) starts jobs and hears how they came out: it alone
touches requests, events and the broker, and it alone decides which outcome of a job counts. The loop's thread runs the
jobs. What crosses over is a queue of calls, and a byte on a socket that the consumer's hub watches.
"""

import asyncio
import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured, WorkerLostError
from celery.platforms import EX_FAILURE
from celery.worker import state
from sqlalchemy.util import greenlet_spawn

from workers.coroutine_task import Interruption, interruption

__all__ = ["AsyncioPool"]

Result = TypeVar("Result")

logger = logging.getLogger("celery.pool")

TOTALS = ("started", "finished", "softened", "timed_out", "terminated", "handed_back", "given_up")


@dataclass(slots=True, weakref_slot=True, eq=False)
class Job:
    """A call that Celery handed over; Celery itself keeps it by weak reference only.

    `settled` belongs to the consumer's thread: Celery knows the outcome, and what comes later does not count.
    """

    pool: "AsyncioPool"
    pid: int
    call: Callable[[], Any]
    on_accepted: Callable[..., object]
    on_success: Callable[..., object]
    on_failure: Callable[..., object]
    on_timeout: Callable[..., object]
    soft_limit_s: float | None
    hard_limit_s: float | None
    interruption: Interruption = field(default_factory=Interruption)
    settled: bool = False
    task: asyncio.Task[None] | None = None
    outcome: tuple[Callable[..., object], object] | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def terminate(self, signal: object = None) -> None:
        """Cancel the job if it is running; what becomes of its message is Celery's affair."""
        self.pool.terminate_job(self.pid, signal)


def _ignore(*_: object) -> None:
    """Be the callback that nobody gave."""


def _tell(callback: Callable[..., object], *args: object) -> None:
    """Call back into Celery; what goes wrong there concerns one message and must not stop the others."""
    try:
        callback(*args)
    except Exception:
        logger.exception("A callback of the pool raised: %r", callback)


async def _run(job: Job) -> None:
    interruption.set(job.interruption)
    try:
        job.outcome = job.on_success, await greenlet_spawn(job.call)
    except BaseException as error:  # noqa: BLE001  even SystemExit ends one job and not its neighbours
        job.outcome = job.on_failure, _failure(error)


def _failure(error: BaseException) -> ExceptionInfo:
    """Describe an error to Celery; one that would have cost a process of another pool is a lost worker."""
    if not isinstance(error, Exception) or isinstance(error, MemoryError):
        error = WorkerLostError(f"the task raised {error!r}").with_traceback(error.__traceback__)
    return ExceptionInfo((type(error), error, error.__traceback__))


class AsyncioPool(BasePool):  # type: ignore[misc]  # celery has no types
    """Run up to `limit` jobs at once on one asyncio loop in one daemon thread.

    Selected by CELERY_CUSTOM_WORKER_POOL=workers.pool:AsyncioPool and `-P custom`. Read from the app's configuration:
    `penstock_drain_timeout_s` (30), how long a stopping worker waits for its jobs before it cancels them and leaves
    their messages to the broker; `penstock_cancel_grace_s` (5), how long a cancelled job may take to end before its
    slot is given away; it is cancelled a second time at half of it.
    """

    limit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a pool that is not running yet."""
        super().__init__(*args, **options)
        self.drain_timeout_s = float(self.app.conf.get("penstock_drain_timeout_s", 30))
        self.cancel_grace_s = float(self.app.conf.get("penstock_cancel_grace_s", 5))
        self._pids = count(1)
        self._running: dict[int, Job] = {}
        self._waiting: deque[Job] = deque()
        self._totals: Counter[str] = Counter()
        self._outcomes: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._leave = asyncio.Event()
        self._at_stop: list[Callable[[], Awaitable[object]]] = []
        self._hub: Any = None
        self._stopping = False
        self._broken = False

    # What bootsteps of the worker may use.

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def at_stop(self, function: Callable[[], Awaitable[object]]) -> None:
        """Have `function` awaited on the loop when the last job has ended; the latest comes first."""
        self._at_stop.append(function)

    # What Celery calls, on the consumer's thread.

    def on_start(self) -> None:
        """Start the loop; raise ImproperlyConfigured with a broker that has no event loop for the completions."""
        if self.options.get("threads"):
            raise ImproperlyConfigured("AsyncioPool needs a broker of redis:// or amqp://, whose consumer has a hub")
        self._hub_end, self._loop_end = socket.socketpair()
        self._hub_end.settimeout(0)
        self._loop_end.settimeout(0)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="asyncio-pool", daemon=True)
        self._thread.start()

    def register_with_event_loop(self, loop: Any) -> None:
        """Let the consumer's hub watch for outcomes; called again after every reconnection."""
        self._hub = loop
        loop.add_reader(self._hub_end.fileno(), self._on_wake_up)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """Start a job, or keep it until a slot is free."""
        job = Job(
            pool=self,
            pid=next(self._pids),
            call=partial(target, *args, **(kwargs or {})),
            on_accepted=options.get("accept_callback") or _ignore,
            on_success=options.get("callback") or _ignore,
            on_failure=options.get("error_callback") or _ignore,
            on_timeout=options.get("timeout_callback") or _ignore,
            soft_limit_s=options.get("soft_timeout") or self.options.get("soft_timeout"),
            hard_limit_s=options.get("timeout") or self.options.get("timeout"),
        )
        self._waiting.append(job)
        self._start_waiting()
        return job

    def terminate_job(self, pid: int, signal: object = None) -> None:  # noqa: ARG002  every signal means to cancel
        """Cancel the job that was accepted under `pid`; its own outcome does not count any more."""
        job = self._running.get(pid)
        if job is not None and self._settle(job, "terminated"):
            self._on_loop(self._cancel, job)

    def flush(self) -> None:
        """Forget the jobs that were not accepted: after a lost connection the broker delivers them again."""
        self._waiting.clear()

    def grow(self, n: int = 1) -> None:
        """Add `n` slots."""
        self.limit += n
        self._start_waiting()

    def shrink(self, n: int = 1) -> None:
        """Take `n` slots away as their jobs end."""
        self.limit = max(self.limit - n, 0)

    def on_stop(self) -> None:
        """Let the running jobs end, hand back those that take too long, stop the loop."""
        self._stopping = True
        self._waiting.clear()
        self._deliver_until_idle(self.drain_timeout_s)
        self.on_terminate()

    def on_terminate(self) -> None:
        """Cancel every job and stop the loop; the messages stay unacknowledged."""
        self._stopping = True
        self._waiting.clear()
        for job in list(self._running.values()):  # a signal may end some meanwhile
            if self._settle(job, "handed_back"):
                self._on_loop(self._cancel, job)
        # A job that does not end is given up after the grace, so this does not need a limit of its own, unless
        # a synchronous body blocks the loop itself.
        self._deliver_until_idle(self.cancel_grace_s + 1)
        self._stop_loop()

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "processes": [os.getpid()],
            "running": len(self._running),
            "waiting": len(self._waiting),
            "undelivered": self._outcomes.qsize(),
            "totals": {name: self._totals[name] for name in TOTALS},
        }

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self.limit and not self._stopping:
            job = self._waiting.popleft()
            self._running[job.pid] = job
            self._totals["started"] += 1
            _tell(job.on_accepted, job.pid, monotonic())
            if job.settled:
                self._running.pop(job.pid)
            else:
                self._on_loop(self._begin, job)

    def _on_wake_up(self) -> None:
        with suppress(BlockingIOError):
            self._hub_end.recv(4096)
        with suppress(Empty):
            while True:
                self._outcomes.get_nowait()()

    def _deliver_until_idle(self, timeout_s: float) -> None:
        deadline = monotonic() + timeout_s
        while self._running and not self._broken:
            try:
                self._outcomes.get(timeout=max(deadline - monotonic(), 0))()
            except Empty:
                return

    def _on_ended(self, job: Job) -> None:
        self._running.pop(job.pid, None)
        if job.outcome is not None:
            self._settle(job, "finished", *job.outcome)
        self._start_waiting()

    def _on_soft_limit(self, job: Job) -> None:
        if not job.settled:
            self._totals["softened"] += 1
            _tell(partial(job.on_timeout, soft=True, timeout=job.soft_limit_s))

    def _on_hard_limit(self, job: Job) -> None:
        self._settle(job, "timed_out", partial(job.on_timeout, soft=False, timeout=job.hard_limit_s))

    def _settle(self, job: Job, total: str, callback: Callable[..., object] = _ignore, *outcome: object) -> bool:
        """Tell Celery what became of a job, unless it knows."""
        if job.settled:
            return False
        job.settled = True
        self._totals[total] += 1
        _tell(callback, *outcome)
        return True

    def _on_given_up(self, job: Job) -> None:
        if self._running.pop(job.pid, None):
            self._totals["given_up"] += 1
            logger.error("Job %d did not end within %g s of being cancelled", job.pid, self.cancel_grace_s)
        self._start_waiting()

    def _on_loop(self, function: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing runs there any more
            self.loop.call_soon_threadsafe(function, *args)

    def _stop_loop(self) -> None:
        self._on_loop(self._leave.set)
        self._thread.join(self.cancel_grace_s + 1)
        if self._thread.is_alive():
            return
        if self._hub is not None:
            self._hub.remove_reader(self._hub_end.fileno())
            self._hub = None
        self._hub_end.close()
        self._loop_end.close()

    # What runs on the loop's thread.

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._live())
        except BaseException:
            logger.critical("The pool's loop died: the worker stops, its messages go back", exc_info=True)
            self._broken = True
            state.should_stop = EX_FAILURE
            self._hand_over(_ignore)
        else:
            self.loop.close()

    def _begin(self, job: Job) -> None:
        job.task = task = self.loop.create_task(_run(job))
        task.add_done_callback(partial(self._end, job))
        if job.soft_limit_s:
            job.timers.append(self.loop.call_later(job.soft_limit_s, self._soften, job, task))
        if job.hard_limit_s:
            job.timers.append(self.loop.call_later(job.hard_limit_s, self._expire, job))

    def _end(self, job: Job, _: object) -> None:
        for timer in job.timers:
            timer.cancel()
        self._hand_over(self._on_ended, job)

    def _soften(self, job: Job, task: asyncio.Task[None]) -> None:
        job.interruption.soft = True
        task.cancel()
        self._hand_over(self._on_soft_limit, job)

    def _expire(self, job: Job) -> None:
        self._hand_over(self._on_hard_limit, job)
        self._cancel(job)

    def _cancel(self, job: Job) -> None:
        if job.task is None or job.task.done():
            return
        job.interruption.final = True
        job.task.cancel()
        # Some code loses a cancellation, like asyncio.wait_for before Python 3.12: so there is a second one.
        job.timers.append(self.loop.call_later(self.cancel_grace_s / 2, job.task.cancel))
        job.timers.append(self.loop.call_later(self.cancel_grace_s, self._hand_over, self._on_given_up, job))

    def _hand_over(self, function: Callable[..., object], *args: object) -> None:
        self._outcomes.put(partial(function, *args))
        with suppress(OSError):  # full of bytes, or closed: the hub wakes up anyway, or never again
            self._loop_end.send(b"\0")

    async def _live(self) -> None:
        await self._leave.wait()
        for function in reversed(self._at_stop):
            try:
                await asyncio.wait_for(function(), self.cancel_grace_s)
            except Exception:
                logger.exception("Stopping %r failed", function)
