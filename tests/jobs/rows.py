"""Jobs brought to a state by the house's own verbs, and what the tables hold. It must not assert anything."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, text

from penstock.errors import Reason
from penstock.jobs import execution, leases, queries, release, submission
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome
from penstock.jobs.release import Allowance
from penstock.jobs.submission import NewJob
from penstock.money.ledger import Intent
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.schemas import Lane, OnUnavailable, PromptReference

PROMPT = PromptReference(id="summarise_document", version="1.0.0", digest="d" * 64)
TABLES = (
    "jobs",
    "payloads",
    "attempts",
    "answers",
    "results",
    "ledger",
    "ledger_corrections",
    "budgets",
    "spending",
    "tenant_shares",
    "workers",
    "batches",
    "batch_errors",
)
UPPER_BOUND = 1_000
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
BLOCK_TIMEOUT_S = 20.0

Result = TypeVar("Result")


def new_job(**changes: Any) -> NewJob:
    """Make a job of tenant `acme`, tier `small`, interactive, 100 tokens."""
    given: dict[str, Any] = {
        "id": uuid4(),
        "tenant": "acme",
        "prompt": PROMPT,
        "tier": "small",
        "lane": Lane.INTERACTIVE,
        "priority": 5,
        "estimated_tokens": 100,
        "variables": {"language": "English"},
        "document": "Once upon a time.",
        "document_name": "tale.txt",
        "metadata": {"order": "17"},
        "idempotency_key": None,
        "content_digest": "c" * 64,
        "deadline": None,
        "on_unavailable": OnUnavailable.WAIT,
    }
    return NewJob(**given | changes)


def submit(engine: Engine, *jobs: NewJob, window: int = 1_000) -> None:
    """Insert the jobs; interactive ones are released."""
    with engine.begin() as connection:
        submission.submit(connection, jobs, window=window)


def start_worker(engine: Engine, worker: str = "w1") -> None:
    """Begin the lease of a worker."""
    with engine.begin() as connection:
        leases.renew(connection, worker, 60.0)


def claim(engine: Engine, job_id: UUID, worker: str = "w1") -> ClaimedJob | None:
    """Claim one job in a transaction of its own."""
    with engine.begin() as connection:
        return execution.claim(connection, [Claim(job_id, worker)])[0]


def running_job(engine: Engine, worker: str = "w1", **changes: Any) -> ClaimedJob:
    """Submit a job and claim it."""
    job = new_job(**changes)
    start_worker(engine, worker)
    submit(engine, job)
    claimed = claim(engine, job.id, worker)
    assert claimed is not None
    return claimed


def finish(engine: Engine, ending: Ending) -> bool:
    """End one attempt in a transaction of its own."""
    with engine.begin() as connection:
        return execution.finish(connection, [ending])[0]


def success(job: ClaimedJob, result: str = "A tale.") -> Ending:
    """Say that the attempt succeeded."""
    return Ending(
        job.id, job.fence, Outcome.SUCCEEDED, result=result, model_asked="sim-small", model_served="sim-small-1"
    )


def death(job: ClaimedJob, reason: Reason = Reason.BAD_REQUEST) -> Ending:
    """Say that the attempt was the job's last."""
    return Ending(job.id, job.fence, Outcome.DEAD, reason=reason, detail="HTTP 400", failed=True)


def intent(job: ClaimedJob, **changes: Any) -> Intent:
    """Intend a call of the job that costs at most UPPER_BOUND nano-dollars: one for each token."""
    given = Intent(
        call_id=uuid4(),
        job_id=job.id,
        fence=job.fence,
        tenant=job.tenant,
        project=job.project,
        prompt_id="summarise_document",
        prompt_version="1.0.0",
        tier="small",
        deployment="sim-small",
        account="simulator",
        model_asked="openai/sim-small",
        price_version="2026-01-01",
        bound=UpperBound(prompt_tokens=900, prompt_amount=900 * PER_TOKENS, output_rate=PER_TOKENS),
        max_tokens=100,
        least_max_tokens=100,
    )
    return replace(given, **changes)


def dead_job(engine: Engine, **changes: Any) -> UUID:
    """Submit a job, claim it and bury it."""
    job = running_job(engine, **changes)
    finish(engine, death(job))
    return job.id


def claim_again(engine: Engine, job_id: UUID, worker: str = "w1") -> ClaimedJob:
    """Release a retrying job of tier `small` and claim it."""
    start_worker(engine, worker)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET due_at = now() WHERE id = :id"), {"id": job_id})
        for lane in Lane:
            release.release_retries(connection, "small", lane, Allowance(100))
    claimed = claim(engine, job_id, worker)
    assert claimed is not None
    return claimed


def expire_lease(engine: Engine, worker: str = "w1") -> None:
    """Let the worker's lease have run out a minute ago."""
    execute(engine, "UPDATE workers SET lease_until = now() - interval '1 minute' WHERE id = :worker", worker=worker)


def execute(engine: Engine, statement: str, **values: object) -> None:
    """Run a statement in a transaction of its own."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def row(engine: Engine, job_id: UUID) -> dict[str, Any]:
    """Read the whole row of a job."""
    with engine.begin() as connection:
        found = connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id})
        return dict(found.mappings().one())


def state(engine: Engine, job_id: UUID) -> str:
    """Read where a job stands."""
    return str(row(engine, job_id)["state"])


def history(engine: Engine, job_id: UUID) -> list[tuple[int, str, str, str | None]]:
    """Give fence, worker, outcome and reason of each attempt."""
    with engine.begin() as connection:
        return [
            (attempt.fence, attempt.worker, attempt.outcome, attempt.reason)
            for attempt in queries.attempts(connection, job_id)
        ]


def served_tokens(engine: Engine, lane: Lane = Lane.BATCH, tier: str = "small") -> dict[str, int]:
    """Give what each tenant's share has been charged; the tenant '' has the virtual time."""
    shares = everything(engine)["tenant_shares"]
    return {
        share["tenant"]: share["served_tokens"] for share in shares if (share["lane"], share["tier"]) == (lane, tier)
    }


def deferral(job: ClaimedJob, delay_s: float = 0.0) -> Ending:
    """Say that the job could not be admitted."""
    return Ending(job.id, job.fence, Outcome.DEFERRED, Reason.LIMITED, "tokens of quota sim", delay_s=delay_s)


def everything(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Read every row of every table, in a fixed order."""
    with engine.begin() as connection:
        return {
            table: [
                dict(found) for found in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2")).mappings()
            ]
            for table in TABLES
        }


@contextmanager
def behind(engine: Engine, work: Callable[[Connection], Result]) -> Iterator[Future[Result]]:
    """Start `work` in a transaction of another thread; the block begins once it waits for a lock.

    The future holds its result after the block, in which the lock must have been given back.
    """

    def in_transaction() -> Result:
        with engine.begin() as connection:
            return work(connection)

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(in_transaction)
        _wait_for_a_blocked_backend(engine, future)
        yield future


def at_once(engine: Engine, *works: Callable[[Connection], Result]) -> list[Result]:
    """Run each in a transaction and a thread of its own, all together."""

    def in_transaction(work: Callable[[Connection], Result]) -> Result:
        with engine.begin() as connection:
            return work(connection)

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(in_transaction, works))


def _wait_for_a_blocked_backend(engine: Engine, future: Future[Any]) -> None:
    ends_at = time.monotonic() + BLOCK_TIMEOUT_S
    while time.monotonic() < ends_at and not future.done():
        with engine.begin() as connection:
            if connection.scalar(BLOCKED):
                return
    raise AssertionError("nothing waited for a lock: " + ("it ended at once" if future.done() else "it is too slow"))
