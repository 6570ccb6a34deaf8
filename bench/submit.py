"""Bulk submit through the client, one process, beside Celery's `delay`. It must not know how rows are written.

`python -m bench submit [--short] [--json]`. All take the same documents, of a thousand characters each, one after the
other on an embedded Postgres (fsync on) and Redis. A job of ours is checked, fingerprinted and committed: all together
by `submit_many`, a thousand at a time by `batch`, which checks some while it writes others. A message of Celery's is in
Redis.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine, text

from bench.report import Report
from penstock.client import Client
from penstock.client.batches import BatchRequest
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate
from workers.embedded import EmbeddedServices

ROOT = Path(__file__).parents[1]
CHARACTERS = 1000
ROUNDS = 5
COUNT = text("SELECT count(*) FROM jobs")
EMPTY = text("TRUNCATE jobs, batches CASCADE")


def documents(count: int) -> Iterator[str]:
    """Cut the guide that comes with the project into texts, no two of them alike."""
    guide = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    for number in range(count):
        start = number * 997 % (len(guide) - CHARACTERS)
        yield f"{number}\n{guide[start : start + CHARACTERS]}"


def requests(count: int) -> Iterator[dict[str, Any]]:
    """Give the fields of as many jobs of a night's batch."""
    return ({"tenant": "acme", "document": document, "lane": "batch"} for document in documents(count))


def submit_many(client: Client, engine: Engine, count: int) -> None:
    """Submit, and look whether all is there."""
    client.submit_many(requests(count))
    _require(engine, count)


def batch(client: Client, engine: Engine, count: int) -> None:
    """Store the input of a batch, and look whether all is there."""
    client.batch("bulk", BatchRequest(tenant="acme"), ({"document": document} for document in documents(count)))
    _require(engine, count)


def _require(engine: Engine, count: int) -> None:
    with engine.connect() as connection:
        found = connection.scalar(COUNT)
    if found != count:
        raise RuntimeError(f"{found} of {count} jobs are there")


def delay(app: Celery, count: int) -> None:
    """Send messages as a producer of Celery does."""
    summarise = app.task(read)
    for document in documents(count):
        summarise.delay("acme", document)


def read(tenant: str, document: str) -> int:
    """Do what no worker is there to do."""
    return len(tenant + document)


def rate(count: int, work: Callable[[], None]) -> float:
    """Give how many a second."""
    began_s = time.perf_counter()
    work()
    return count / (time.perf_counter() - began_s)


def measure(report: Report, services: EmbeddedServices, *, jobs: int, rounds: int) -> None:
    """Take turns, and report the median of each."""
    settings = Settings(
        database_url=SecretStr(services.postgres.url),
        broker_url=SecretStr(services.redis.url),
        config=ROOT / "config",
        prompts=ROOT / "prompts",
    )
    engine = sync_engine(settings.require_database_url())
    migrate(engine)
    app = Celery("peer", broker=services.redis.url, set_as_current=False)
    app.conf.task_ignore_result = True
    ours: dict[str, list[float]] = {"batch": [], "submit_many": []}
    theirs = []
    with Client(settings) as client:
        for _ in range(rounds):
            for name, submit in (("batch", batch), ("submit_many", submit_many)):
                ours[name].append(rate(jobs, partial(submit, client, engine, jobs)))
                with engine.begin() as connection:
                    connection.execute(EMPTY)
            theirs.append(rate(jobs // 5, lambda: delay(app, jobs // 5)))
            app.control.purge()
    engine.dispose()
    beside = {"celery_delay": float(round(statistics.median(theirs)))}
    report.add("batch", round(statistics.median(ours["batch"])), "1/s", must=">= 10000", beside=beside)
    report.add("submit_many", round(statistics.median(ours["submit_many"])), "1/s", beside=beside)
    report.note(f"the median of {rounds} rounds of {jobs} jobs, and of a fifth as many messages")


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench submit", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one small round, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    report = Report("submit", "sqlalchemy", "psycopg", "celery")
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        services = EmbeddedServices(Path(folder))
        services.start()
        try:
            measure(report, services, jobs=10_000 if given.short else 50_000, rounds=1 if given.short else ROUNDS)
        finally:
            services.stop()
    return report.finish(as_json=given.json, short=given.short)


if __name__ == "__main__":
    sys.exit(main())
