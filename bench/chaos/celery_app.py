"""Plain Celery as its guide and kombu's options have it for work that must not be lost. It must not know the events.

Late acknowledgement, rejection when a worker is lost, a prefetch of 1, and messages restored 30 to 35 s after they were
taken. A task writes down that it began and, at its end, its result; both are in the file when the process dies.
"""

import os
import signal
import threading
from functools import cache
from typing import Any
from uuid import uuid4

import httpx
from celery import Celery
from celery.signals import worker_ready

from bench.chaos.celery_table import Table
from bench.chaos.places import TIER, models_of
from bench.chaos.texts import POISON

TASK = "bench.ask"
LONGEST_BACKOFF_S = 8
MOST_RETRIES = 100
MAX_TOKENS = 512
VISIBILITY_S = 30
OPTIONS = {
    "visibility_timeout": VISIBILITY_S,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_restore_limit": 1000,
}

app = Celery("bench.chaos.celery_app", broker=os.environ.get("BENCH_BROKER"), set_as_current=False)
app.conf.update(
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    broker_transport_options=OPTIONS,
    task_acks_late=True,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)


@app.task(
    name=TASK,
    autoretry_for=(httpx.HTTPError,),
    retry_backoff=True,
    retry_backoff_max=LONGEST_BACKOFF_S,
    retry_jitter=True,
    max_retries=MOST_RETRIES,
)
def ask(job: str, document: str) -> None:
    """Ask the model and keep the answer. Run twice, it asks and pays twice: a task of its own knows no better."""
    call = str(uuid4())
    table().begin(job, call, os.getpid())
    if POISON in document:
        os.kill(os.getpid(), signal.SIGKILL)
    body = {
        "model": models_of(TIER)[0],
        "messages": [{"role": "user", "content": document}],
        "max_tokens": MAX_TOKENS,
    }
    answer = client().post("/chat/completions", json=body, headers={"X-Client-Request-Id": call})
    answer.raise_for_status()
    table().end(job, call, answer.json()["choices"][0]["message"]["content"] == document)


@cache
def client() -> httpx.Client:
    """Make the connections of this process, which its threads share."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    return httpx.Client(
        base_url=os.environ["BENCH_PROVIDER"],
        headers={"Authorization": "Bearer celery"},
        limits=limits,
        timeout=float(os.environ["BENCH_TIMEOUT_S"]),
    )


def table() -> Table:
    """Open the file of the results, once a thread."""
    if not hasattr(_local, "table"):
        _local.table = Table(os.environ["BENCH_TABLE"])
    table: Table = _local.table
    return table


@worker_ready.connect
def note_ready(**_: Any) -> None:
    """Write down that this worker takes jobs."""
    table().ready(os.getpid())


_local = threading.local()
