"""Processes of Penstock that can be told to die at a named place, and what they leave behind.

One Postgres serves several rigs, each with a database, a Redis and processes of its own; one simulator serves them all,
with a model for each tier.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
import redis
from sqlalchemy import Row, text

from bench.chaos.places import TIER, environment, models_of, write_config
from bench.chaos.plan import Plan
from bench.chaos.texts import PROMPT
from penstock.client import Client
from penstock.client.doorbell import Doorbell
from penstock.jobs.release import Release
from penstock.money import ledger
from penstock.schemas import Job, JobState
from penstock.settings import PREFIX, Settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from workers.embedded import PostgresServer, RedisServer

LIGHT_WORKER = "bench.chaos.worker"
PATIENCE_S = 30.0
LOOK_S = 0.05
LONG_AGO_S = 16
"""Longer than the feeder takes a message to be on its way."""
PLAN = Plan(jobs=0, calm_jobs=0, seed=1, slots=10, lease_s=2.0, timeout_s=20.0, latency_ms=20.0)
DOCUMENT = "The agency will hold a public meeting on 4 May 2017 in Denver. Comments are due by 1 June 2017."


@dataclass
class Process:
    """A process, and what it says."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def dies(self) -> None:
        """Wait until it has killed itself."""
        code = self.popen.wait(PATIENCE_S)
        assert code == -signal.SIGKILL, f"it ended with {code}: {self.log.read_text()[-2000:]}"

    def lives(self) -> bool:
        """Tell that it runs; fail with the end of its log if it does not."""
        assert self.popen.poll() is None, f"{self.log.name}: {self.log.read_text()[-2000:]}"
        return True

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def says(self, event: str, job_id: UUID) -> int:
        """Count the lines of its log with an event of a job."""
        return sum(event in line and str(job_id) in line for line in self.log.read_text().splitlines())


@dataclass
class Rig:
    """A database, a Redis and the processes that use them."""

    name: str
    home: Path
    postgres: PostgresServer
    simulator: str
    tiers: Sequence[str]
    processes: list[Process] = field(default_factory=list)

    def __enter__(self) -> Self:
        home = self.home / self.name
        write_config(home / "config", [TIER, *self.tiers], PLAN)
        self.redis = RedisServer(home / "redis")
        self.redis.start()
        url = self.postgres.url
        server = sync_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
        with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {self.name}"))
        server.dispose()
        self.variables = environment(home, self.simulator, PLAN) | {
            "PENSTOCK_DATABASE_URL": url.replace("/postgres?", f"/{self.name}?", 1),
            "PENSTOCK_BROKER_URL": self.redis.url,
            "PENSTOCK_LOG_LEVEL": "INFO",
        }
        given = {name.removeprefix(PREFIX).lower(): value for name, value in self.variables.items() if PREFIX in name}
        self.settings = Settings.model_validate({name: given[name] for name in given if name in Settings.model_fields})
        self.engine = sync_engine(self.settings.require_database_url(), connections=8)
        migrate(self.engine)
        self.client = Client(self.settings)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        self.client.close()
        self.engine.dispose()
        self.redis.stop()

    def start(self, module: str, *arguments: str, failpoint: str = "") -> Process:
        """Start a process, armed with a failpoint if one is given."""
        log = self.home / f"{self.name}-{len(self.processes)}-{module}-{'-'.join(arguments)}.log"
        armed = {"PENSTOCK_FAILPOINT": failpoint} if failpoint else {}
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.variables | armed,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    def worker(self, tier: str, *, failpoint: str = "", module: str = LIGHT_WORKER) -> Process:
        """Start a pool of a tier and wait for its lease."""
        worker = self.start(module, tier, failpoint=failpoint)
        lives = text("SELECT count(*) FROM workers WHERE split_part(id, ':', 2) = :pid AND lease_until > now()")
        self.eventually(lambda: worker.lives() and self.row(lives, pid=str(worker.pid))[0] == 1)
        return worker

    def submit(self, tier: str, **fields: Any) -> UUID:
        """Submit a job of a tier, whose tenant has its name."""
        return self.client.submit(tenant=tenant(tier), prompt=PROMPT, tier=tier, document=DOCUMENT, **fields)

    def ring(self, job_id: UUID) -> None:
        """Send the job's message once more."""
        job = self.client.get(job_id)
        doorbell = Doorbell(self.redis.url)
        doorbell.ring([Release(job.id, job.tenant, job.tier, job.lane, job.prompt, is_retry=False)])
        doorbell.close()

    def messages(self, tier: str) -> int:
        """Count the messages of a tier that wait in the broker."""
        with redis.Redis(unix_socket_path=str(self.redis.socket_path)) as broker:
            return sum(int(broker.llen(f"{tier}.{queue}")) for queue in ("interactive", "retry", "batch"))

    def age(self, job_id: UUID) -> None:
        """Let the time pass after which a message is taken for lost."""
        statement = text("UPDATE jobs SET released_at = released_at - make_interval(secs => :age_s) WHERE id = :id")
        with self.engine.begin() as connection:
            connection.execute(statement, {"id": job_id, "age_s": LONG_AGO_S})

    def succeeds(self, job_id: UUID) -> Job:
        """Wait until a job has succeeded."""
        return self.client.wait(job_id, timeout_s=PATIENCE_S)

    def in_state(self, job_id: UUID, state: JobState) -> None:
        """Wait until a job is in a state."""
        self.eventually(lambda: self.client.get(job_id).state is state)

    def close_calls(self) -> None:
        """Do what upkeep does with open calls a minute later."""
        with self.engine.begin() as connection:
            ledger.abandon(connection, older_than_s=0)

    def row(self, statement: Any, **values: Any) -> Row[Any]:
        with self.engine.connect() as connection:
            return connection.execute(statement, values).one()

    def rows(self, statement: str, **values: Any) -> Sequence[Row[Any]]:
        with self.engine.connect() as connection:
            return connection.execute(text(statement), values).all()

    def eventually(self, holds: Callable[[], bool]) -> None:
        """Wait for something that another process does."""
        ends_at = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < ends_at, "it did not come to hold"
            time.sleep(LOOK_S)

    def misbehave(self, tier: str, name: str, *, count: int = 1, **parameters: Any) -> None:
        """Have the first model of a tier misbehave, once if not said otherwise."""
        fault = {"name": name, "model": models_of(tier)[0], "count": count, **parameters}
        httpx.post(f"{self.simulator}/faults", json={"faults": [fault]}).raise_for_status()

    def received(self, tier: str) -> int:
        """Count the calls that came to the models of a tier."""
        return self._count(tier, "received")

    def in_flight(self, tier: str) -> int:
        """Count those that are being answered."""
        return self._count(tier, "in_flight")

    def invoice(self, tier: str) -> dict[UUID, int]:
        """Give the invoice of the models of a tier by call."""
        lines = httpx.get(f"{self.simulator}/invoice").json()["lines"]
        mine = [line for line in lines if line["model"] in models_of(tier)]
        return {UUID(line["client_request_id"]): line["nanodollars"] for line in mine}

    def calls(self, job_id: UUID) -> Sequence[Row[Any]]:
        """Give the calls of a job as the ledger has them, corrections included, the oldest first."""
        return self.rows(
            """
            SELECT ledger.call_id, state, upper_bound_nanodollars, (
                SELECT sum(nanodollars)::bigint FROM ledger_amounts WHERE call_id = ledger.call_id) AS nanodollars
            FROM ledger WHERE job_id = :id ORDER BY intended_at
            """,
            id=job_id,
        )

    def spending(self, tier: str) -> Sequence[Row[Any]]:
        """Give what the tenant of a tier has spent, by day and by month."""
        return self.rows("SELECT * FROM spending WHERE tenant = :tenant", tenant=tenant(tier))

    def is_announced(self, job_id: UUID) -> bool:
        """Tell whether the death of a job is known to be published."""
        return bool(self.row(text("SELECT announced FROM jobs WHERE id = :id"), id=job_id)[0])

    def _count(self, tier: str, what: str) -> int:
        models = httpx.get(f"{self.simulator}/stats").json()["models"]
        return sum(int(models[name][what]) for name in models_of(tier) if name in models)


def tenant(tier: str) -> str:
    """Name the tenant of a tier."""
    return tier.replace("_", "-")
