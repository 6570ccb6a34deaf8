"""One run of plain Celery under the same load, at the same provider. It must not know how its tasks retry."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis

from bench.limits.celery_app import FAILED, QUEUES
from bench.limits.figures import Run
from bench.limits.load import INTERACTIVE
from bench.limits.places import tell, temporary_home
from bench.limits.plan import Plan
from bench.limits.provider import Provider
from bench.limits.texts import Document
from workers.embedded import RedisServer

START_TIMEOUT_S = 60.0


def run(plan: Plan) -> Run:
    """Make a run."""
    with temporary_home() as home, Provider(plan.semantics, home) as provider:
        redis = RedisServer(home / "redis")
        redis.start()
        try:
            return _run(plan, provider, redis, home)
        finally:
            redis.stop()


def _run(plan: Plan, provider: Provider, redis: RedisServer, home: Path) -> Run:
    store = f"unix://{redis.socket_path}"
    environment = {"BENCH_BROKER": redis.url, "BENCH_PROVIDER": f"{provider.url}/v1", "BENCH_REDIS": store}
    with Redis.from_url(store) as client, _producer(redis.url) as producer:
        batch = plan.load.batch(plan.semantics.tokens_per_s * plan.longest_s)
        tenants: dict[str, str] = {}
        for number, (tenant, document) in enumerate(batch):
            tenants[f"batch-{number}"] = tenant
            _send(producer, f"batch-{number}", document, "batch")
        with _workers(environment, home / "celery.log"):
            _wait_for_first(provider)
            asked, window = _ask(plan, producer, tenants)
            ended_s, seen = time.monotonic(), provider.look()
            failed = int(client.get(FAILED) or 0)
    return Run(plan.semantics, seen, window, ended_s, {job: job for job in tenants}, tenants, asked, failed)


def _ask(plan: Plan, producer: Any, tenants: dict[str, str]) -> tuple[dict[str, float], tuple[float, float]]:
    started_s = time.monotonic()
    window = plan.window(started_s)
    tell(plan.announcement("celery", started_s))
    asked: dict[str, float] = {}
    for number, (at_s, document) in enumerate(plan.load.interactive(started_s)):
        if at_s >= window[1]:
            break
        time.sleep(max(0.0, at_s - time.monotonic()))
        job = f"interactive-{number}"
        tenants[job], asked[job] = INTERACTIVE, time.monotonic()
        _send(producer, job, document, "interactive")
    time.sleep(max(0.0, window[1] + plan.after_s - time.monotonic()))
    return asked, window


def _send(producer: Any, job: str, document: Document, queue: str) -> None:
    producer.send_task("bench.summarise", (job, document.tokens, document.variant), queue=queue, ignore_result=True)


@contextmanager
def _producer(broker: str) -> Generator[Any, None, None]:
    from celery import Celery

    producer = Celery(broker=broker, set_as_current=False)
    try:
        yield producer
    finally:
        producer.close()


@contextmanager
def _workers(environment: dict[str, str], log: Path) -> Generator[None, None, None]:
    """Run a worker for each queue."""
    processes = []
    with log.open("wb") as output:
        try:
            for queue, threads in QUEUES.items():
                options = ["-P", "threads", "-c", str(threads), "-Q", queue, "-n", f"{queue}@bench", "-l", "ERROR"]
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "celery", "-A", "bench.limits.celery_app", "worker", *options],
                        env={**os.environ, **environment},
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
            yield
        finally:
            for process in processes:
                process.kill()  # a warm shutdown would wait for what is in flight, and nothing of it is needed
            for process in processes:
                process.wait()


def _wait_for_first(provider: Provider) -> None:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while not provider.get("/stats")["received"]:
        if time.monotonic() > ends_at:
            raise TimeoutError("the Celery workers did not start")
        time.sleep(0.2)
