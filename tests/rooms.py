"""A furnished house for tests: real Postgres, the simulator over HTTP, the project's own prompts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import redis
from sqlalchemy import Engine, Row, text

from penstock.attempt import Report, run
from penstock.clock import SystemClock
from penstock.house import House, build_house
from penstock.intake import Intake
from penstock.jobs import leases
from penstock.jobs.submission import submit
from penstock.providers.litellm import LiteLLMProvider
from penstock.settings import Settings

Result = TypeVar("Result")

WORKER = "test-worker"
DOCUMENT = "The agency will hold a public meeting on 4 May 2017 in Denver. Comments are due by 1 June 2017."


@dataclass
class Rooms:
    """What a test does with a house, one asyncio loop a call."""

    settings: Settings
    engine: Engine
    gates: redis.Redis
    simulator: str

    def submit(self, **fields: Any) -> UUID:
        """Make the row of a job that is released; it is answered anew, unless `fresh` is False."""
        intake = Intake.load(self.settings, SystemClock())
        job = intake.accept(
            uuid4(),
            {"tenant": "acme", "prompt": "summarise_document", "document": DOCUMENT, "tier": "small", "fresh": True}
            | fields,
        )
        with self.engine.begin() as connection:
            leases.renew(connection, WORKER, 60)
            return submit(connection, [job], window=1000)[0].id

    def release(self, job_id: UUID) -> None:
        """Do what the feeder does with a retry whose time has come."""
        with self.engine.begin() as connection:
            connection.execute(
                text("UPDATE jobs SET state = 'released', released_at = now() WHERE id = :id AND state = 'retrying'"),
                {"id": job_id},
            )

    def attempt(self, job_id: UUID) -> Report:
        """Run one attempt."""
        return self.with_house(lambda house: run(house, job_id))

    def with_house(self, use: Callable[[House], Awaitable[Result]]) -> Result:
        """Run something on a loop with a house of its own."""

        async def furnished() -> Result:
            house = build_house(self.settings, LiteLLMProvider(), WORKER)
            try:
                return await use(house)
            finally:
                await house.close()

        return asyncio.run(furnished())

    def forget_gates(self) -> None:
        """Empty Redis: no breaker has opened, no quota is used or frozen, nothing was learnt of any model."""
        self.gates.flushall()

    def fault(self, name: str, **parameters: Any) -> None:
        """Have the simulator misbehave once."""
        script = {"faults": [{"name": name, "count": 1, **parameters}]}
        httpx.post(f"{self.simulator}/faults", json=script).raise_for_status()

    def calls(self) -> int:
        """Count the requests that reached the provider."""
        models = httpx.get(f"{self.simulator}/stats").json()["models"]
        return sum(int(model["received"]) for model in models.values())

    def invoice(self) -> int:
        """Give what the provider asks for, in nano-dollars."""
        return int(httpx.get(f"{self.simulator}/invoice?lines=0").json()["total_nanodollars"])

    def row(self, statement: str, **values: Any) -> Row[Any]:
        """Read one row."""
        with self.engine.connect() as connection:
            return connection.execute(text(statement), values).one()

    def job(self, job_id: UUID) -> Row[Any]:
        """Read the row of a job."""
        return self.row("SELECT * FROM jobs WHERE id = :id", id=job_id)

    def ledger(self, job_id: UUID) -> list[Row[Any]]:
        """Read the ledger of a job, the oldest call first."""
        with self.engine.connect() as connection:
            statement = text("SELECT * FROM ledger WHERE job_id = :id ORDER BY intended_at")
            return list(connection.execute(statement, {"id": job_id}))
