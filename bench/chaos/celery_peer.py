"""One run of plain Celery: the same kills of workers and restarts of Redis. It must not say what is good enough.

It has no row before the message, so nothing but the broker's memory says which jobs there are: what was published
without an error is what was accepted.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from bench.chaos.celery_app import OPTIONS, TASK
from bench.chaos.celery_table import PeerBooks, Table
from bench.chaos.conductor import Action, Conductor
from bench.chaos.databases import Databases
from bench.chaos.events import Events
from bench.chaos.places import TIER, write_simulator
from bench.chaos.plan import Plan
from bench.chaos.processes import Fleet, Kept
from bench.chaos.provider import Provider
from bench.chaos.site import START_TIMEOUT_S, wait
from bench.chaos.texts import Ask, poison
from bench.limits.places import tell

DONE_SHARE = 0.7
QUIET_S = 75.0
"""So long without a new result, twice the time after which a message comes again, is the end."""
LOOK_S = 0.5
PAUSE_S = 0.2
SHARED = ("kill_worker", "freeze_worker", "restart_redis")
POISON = "poison"


@dataclass(frozen=True)
class Peer:
    """What came of a run; `waits_s` are those of runs whose worker was killed."""

    books: PeerBooks
    waits_s: list[float]
    happened: Counter[str]
    poison_executions: int


@dataclass
class Scene:
    """The workers, and what they use."""

    plan: Plan
    home: Path
    databases: Databases
    provider: Provider
    fleet: Fleet
    table: Table
    workers: list[Kept]
    producers: list[Kept] = field(default_factory=list)

    def ready(self) -> list[Kept]:
        """Give the workers that take jobs."""
        pids = self.table.pids()
        return [worker for worker in self.workers if worker.is_running and worker.pid in pids]

    def note(self, event: str) -> None:
        """Write down when something happened."""
        with (self.home / "events.log").open("a") as file:
            file.write(f"{time.time():.3f} {event}\n")


class CeleryEvents(Events):
    """Those that can happen to it, and when which process was killed."""

    def __init__(self, scene: Scene, later: Callable[[float, Callable[[], None]], None], *, flushes: bool) -> None:
        """Begin; `flushes` says that Redis is emptied, too."""
        super().__init__(scene, later)
        self.kills: list[tuple[int, float]] = []
        self._named = (*SHARED, "flush_redis") if flushes else SHARED

    def actions(self) -> dict[str, Action]:
        """Name them."""
        return {name: action for name, action in super().actions().items() if name in self._named}

    def killed(self, pid: int) -> None:
        """Write it down."""
        self.kills.append((pid, time.time()))


class Producer(threading.Thread):
    """Publishes the jobs at the plan's pace; what raised is published again, under the same name."""

    def __init__(self, plan: Plan, broker: str) -> None:
        """Publish nothing yet."""
        super().__init__(name="producer", daemon=True)
        self.accepted: list[str] = []
        self._plan = plan
        self._app = Celery(broker=broker, set_as_current=False)
        self._app.conf.update(broker_transport_options=OPTIONS)

    def run(self) -> None:
        """Publish everything."""
        begun_s = time.monotonic()
        for number in range(self._plan.peer_jobs):
            ask = Ask("celery", number)
            self.send(ask.key, ask.document)
            self.accepted.append(ask.key)
            time.sleep(max(0.0, begun_s + number / self._plan.jobs_per_s - time.monotonic()))

    def send(self, job: str, document: str) -> None:
        """Publish one job, however often it takes."""
        while True:
            try:
                self._app.send_task(TASK, (job, document), task_id=job, ignore_result=True)
            except (OperationalError, RedisError, OSError):
                time.sleep(PAUSE_S)
            else:
                return


def run(plan: Plan, home: Path, *, flushes: bool) -> Peer:
    """Make a run."""
    with _running(plan, home) as scene:
        tell(f"celery: {plan.peer_jobs} jobs, {'Redis is emptied, too' if flushes else 'Redis is never emptied'}")
        conductor = Conductor(plan, scene.note)
        events = CeleryEvents(scene, conductor.later, flushes=flushes)
        conductor.actions = events.actions()
        producer = Producer(plan, scene.databases.broker_url)
        producer.start()
        enough = DONE_SHARE * plan.peer_jobs
        conductor.run(lambda: not producer.is_alive() and scene.table.done() >= enough)
        _wait_for_quiet(scene)
        books = PeerBooks(frozenset(producer.accepted), tuple(scene.table.runs()), _invoice(scene))
        tell(f"celery: {books.lost} lost, {books.repeated_calls} calls repeated, {dict(conductor.happened)}")
        executions = _poison(scene, producer)
    return Peer(books, books.recoveries_s(events.kills), conductor.happened, executions)


def _wait_for_quiet(scene: Scene) -> None:
    """Wait until every job has a result, or nothing has come for long."""
    done, quiet_since_s = -1, time.monotonic()
    while done < scene.plan.peer_jobs and time.monotonic() < quiet_since_s + QUIET_S:
        if (now_done := scene.table.done()) > done:
            done, quiet_since_s = now_done, time.monotonic()
        time.sleep(LOOK_S)


def _invoice(scene: Scene) -> dict[str, int]:
    return {line["client_request_id"]: line["nanodollars"] for line in scene.provider.invoice()}


def _poison(scene: Scene, producer: Producer) -> int:
    """Send a job that kills its worker, and count its executions in the plan's time."""
    producer.send(POISON, str(poison(0)["document"]))
    time.sleep(scene.plan.poison_s)
    return sum(run.job == POISON for run in scene.table.runs())


@contextmanager
def _running(plan: Plan, home: Path) -> Generator[Scene, None, None]:
    """Start everything and wait for the workers; leave nothing behind."""
    home.mkdir()
    write_simulator(home / "simulator.toml", [TIER], plan)
    with Provider(home / "simulator.toml") as provider, Databases(home, postgres=False) as databases:
        variables = {
            "BENCH_BROKER": databases.broker_url,
            "BENCH_PROVIDER": f"{provider.url}/v1",
            "BENCH_TABLE": str(home / "table.sqlite"),
            "BENCH_TIMEOUT_S": str(plan.timeout_s),
        }
        table = Table(variables["BENCH_TABLE"])
        with Fleet({**os.environ, **variables}, home / "logs") as fleet:
            command = ("-m", "celery", "-A", "bench.chaos.celery_app", "worker", "-P", "threads", "-l", "WARNING")
            names = [f"worker-{number}" for number in range(plan.pools)]
            workers = [fleet.keep(name, *command, "-c", str(plan.slots), "-n", f"{name}@chaos") for name in names]
            scene = Scene(plan, home, databases, provider, fleet, table, workers)
            wait(lambda: len(scene.ready()) == plan.pools, START_TIMEOUT_S, "the Celery workers did not start")
            yield scene
