"""Plain Celery as its guide has it: a task that retries itself with backoff and jitter. It must not know a gate.

`autoretry_for`, `retry_backoff`, `retry_jitter` and `retry_backoff_max` are those of "Automatic retry for known
exceptions" in Celery's user guide; late acknowledgement and a prefetch of 1 are what it advises for long tasks. A queue
for each lane has a worker of its own.
"""

import os
from functools import cache
from typing import Any

import httpx
from celery import Celery
from celery.signals import task_failure
from redis import Redis

from bench.limits.texts import Document
from bench.limits.wire import request_body

QUEUES = {"interactive": 16, "batch": 64}
"""Threads of the worker of each queue: together as many as the slots that Penstock has."""
FAILED = "failed"
LONGEST_BACKOFF_S = 60
MOST_RETRIES = 100
TIMEOUT_S = 60

app = Celery("bench.limits.celery_app", broker=os.environ.get("BENCH_BROKER"), set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


@app.task(
    name="bench.summarise",
    autoretry_for=(httpx.HTTPError,),
    retry_backoff=True,
    retry_backoff_max=LONGEST_BACKOFF_S,
    retry_jitter=True,
    max_retries=MOST_RETRIES,
)
def summarise(job: str, tokens: int, variant: int) -> None:
    """Ask the model; raise for every refusal. Safe to run twice: it only asks."""
    body = request_body(Document(tokens, variant))
    client().post("/chat/completions", content=body, headers={"X-Client-Request-Id": job}).raise_for_status()


@cache
def client() -> httpx.Client:
    """Make the connections of this process, which its threads share."""
    headers = {"Authorization": "Bearer celery", "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=max(QUEUES.values()))
    return httpx.Client(base_url=os.environ["BENCH_PROVIDER"], headers=headers, limits=limits, timeout=TIMEOUT_S)


@task_failure.connect
def count(**_: Any) -> None:
    """Count a job that was given up."""
    with Redis.from_url(os.environ["BENCH_REDIS"]) as redis:
        redis.incr(FAILED)
