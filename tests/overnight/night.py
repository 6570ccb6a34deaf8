"""A night at the desk: a batch that wishes for files, a simulator with a Batch API, and what came of it all."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from penstock.batches import rows as batches
from penstock.batches.tending import follow
from penstock.clock import SystemClock
from penstock.house import House, build_house
from penstock.intake import Intake
from penstock.jobs import leases
from penstock.jobs.submission import submit
from penstock.overnight import collecting, steps
from penstock.overnight.desk import Desk, Terms
from penstock.providers.litellm import LiteLLMProvider
from penstock.providers.litellm_batches import LiteLLMBatchProvider
from tests.rooms import DOCUMENT, WORKER, Rooms

Result = TypeVar("Result")

AT_ONCE = Terms(poll_s=0, unheard_s=0, files_s=0, cancel_s=0, rest_s=0, hold_s=0)
"""Nothing is waited for, and a turn is free again as soon as its process has stopped."""
MANY_STEPS = 60
KEY = {"authorization": "Bearer none"}

BEGIN = text("""
    INSERT INTO batches (id, tenant, name, project, prompt_id, prompt_version, prompt_digest, tier, state,
        request_digest, abort_if, is_loaded, by_provider, due_by)
    VALUES (:id, 'acme', :name, '', 'summarise_document', '1.0.0', 'd', 'small', 'running',
        'd', '{}', true, :by_provider, now() + make_interval(secs => CAST(:due_s AS float8)))
""")


@dataclass
class Night:
    """What a test does with batches, files and the simulator; one asyncio loop and one house a call."""

    rooms: Rooms
    terms: Terms = AT_ONCE

    def begin(self, count: int = 4, *, name: str = "night", due_s: float | None = None, **fields: Any) -> UUID:
        """Begin a batch of `count` documents that are all different, unless `document` is given."""
        batch_id = uuid4()
        with self.rooms.engine.begin() as connection:
            values = {"id": batch_id, "name": name, "by_provider": True, "due_s": due_s}
            connection.execute(BEGIN, values)
        self.add(batch_id, count, **fields)
        return batch_id

    def add(self, batch_id: UUID, count: int, **fields: Any) -> list[UUID]:
        """Add jobs to a batch."""
        intake = Intake.load(self.rooms.settings, SystemClock())
        first = self.rooms.row("SELECT count(*) AS it FROM jobs WHERE batch_id = :id", id=batch_id).it
        given = {"tenant": "acme", "prompt": "summarise_document", "tier": "small", "lane": "batch"}
        jobs = [
            replace(
                intake.accept(uuid4(), given | {"document": f"{DOCUMENT} It is item {number}."} | fields),
                batch_id=batch_id,
                batch_number=first + number,
            )
            for number in range(count)
        ]
        with self.rooms.engine.begin() as connection:
            return [accepted.id for accepted in submit(connection, jobs, window=0)]

    def at_desk(self, use: Callable[[Desk], Awaitable[Result]]) -> Result:
        """Run something at a desk of its own."""

        async def furnished() -> Result:
            house: House = build_house(self.rooms.settings, LiteLLMProvider(), WORKER)
            files = LiteLLMBatchProvider()
            try:
                return await use(Desk(house, files, self.terms))
            finally:
                await files.close()
                await house.close()

        return asyncio.run(furnished())

    def work(self, most: int = MANY_STEPS) -> int:
        """Take the steps that are due, `most` of them; gives how many there were."""
        return self.at_desk(lambda desk: take(desk, most))

    def follow(self, batch_id: UUID) -> None:
        """Let the jobs of a batch follow its state, as upkeep does."""
        with self.rooms.engine.begin() as connection:
            (batch,) = (each for each in batches.live(connection) if each.id == batch_id)
            follow(connection, batch)

    def answer_live(self) -> int:
        """Answer the queued and retrying jobs by live calls, and give how many there were."""
        with self.rooms.engine.begin() as connection:
            leases.renew(connection, WORKER, 60)
            waiting = "UPDATE jobs SET state = 'released', released_at = now() WHERE state = ANY(:states) RETURNING id"
            released = list(connection.scalars(text(waiting), {"states": ["queued", "retrying"]}))
        for job_id in released:
            self.rooms.attempt(job_id)
        return len(released)

    def pace(self, polls: int | None) -> None:
        """Say after how many looks batches end; None: never."""
        httpx.post(f"{self.rooms.simulator}/batch-pace", json={"polls": polls}).raise_for_status()

    def states(self) -> dict[str, int]:
        """Count the jobs by state."""
        return self.count("SELECT state, count(*) FROM jobs GROUP BY state")

    def outcomes(self) -> dict[str, int]:
        """Count the calls in the ledger by outcome; an open one is None."""
        return self.count("SELECT outcome, count(*) FROM ledger GROUP BY outcome")

    def parcels(self) -> dict[str, int]:
        """Count the parcels by state."""
        return self.count("SELECT state, count(*) FROM provider_batches GROUP BY state")

    def count(self, statement: str) -> dict[str, int]:
        """Read pairs of a name and a number."""
        with self.rooms.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(text(statement))}

    def execute(self, statement: str, **values: object) -> None:
        """Run a statement."""
        with self.rooms.engine.begin() as connection:
            connection.execute(text(statement), values)

    def paid(self) -> int:
        """Sum the ledger, in nano-dollars."""
        return int(self.rooms.row("SELECT coalesce(sum(nanodollars), 0) AS paid FROM ledger_amounts").paid)

    def invoice(self) -> dict[str, Any]:
        """Give the provider's invoice."""
        found: dict[str, Any] = httpx.get(f"{self.rooms.simulator}/invoice").json()
        return found

    def provider_batches(self) -> list[dict[str, Any]]:
        """List the batches that the provider has, the newest first."""
        found: list[dict[str, Any]] = self._get("/v1/batches?limit=100")
        return found

    def provider_files(self) -> list[dict[str, Any]]:
        """List the files that the provider keeps, the newest first."""
        found: list[dict[str, Any]] = self._get("/v1/files")
        return found

    def assert_paid_once(self) -> None:
        """Check that the ledger says what the invoice says, call by call, and that no call was made twice."""
        invoice = {line["client_request_id"]: line["nanodollars"] for line in self.invoice()["lines"]}
        ledger = self.count(
            "SELECT call_id::text, sum(nanodollars)::bigint FROM ledger_amounts GROUP BY 1 HAVING sum(nanodollars) > 0"
        )
        assert invoice == ledger
        assert len(invoice) == self.invoice()["calls"]

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self.rooms.simulator}{path}", headers=KEY).raise_for_status().json()["data"]


async def take(desk: Desk, most: int) -> int:
    """Take at most so many steps."""
    await collecting.open_parcels(desk)
    for number in range(most):
        if not await steps.advance(desk):
            return number
    return most
