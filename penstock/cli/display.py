"""How jobs look on a terminal and in a pipe. It must not know where they come from."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click


def print_jobs(jobs: Sequence[Any], *, as_json: bool, results: bool = False) -> None:
    """Print jobs as a table, or as a JSON object a line."""
    if as_json:
        for job in jobs:
            click.echo(job.model_dump_json())
        return
    if results:
        for job in jobs:
            click.secho(f"{job.document_name or job.id}  ({_state(job)}, {job.model_served or job.reason})", bold=True)
            click.echo(f"{job.result or job.detail}\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "tenant", "tier", "lane", "prompt", "state", "attempts", "created", "reason")
    for job in jobs:
        prompt = f"{job.prompt.id}@{job.prompt.version}"
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            str(job.id),
            job.tenant,
            job.tier,
            job.lane,
            prompt,
            _state(job),
            str(job.attempts),
            created,
            job.reason or "",
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def _state(job: Any) -> str:
    """Say where a job stands, and where its result is not what a model was paid for."""
    marks = [name for name in ("degraded", "cached") if getattr(job, name)]
    return f"{job.state} ({marks[0]})" if marks else str(job.state)


def show(client: Any, job_id: UUID, *, as_json: bool) -> None:
    """Print a job and its history."""
    job, history = client.get(job_id), client.history(job_id)
    described = job.model_dump(mode="json") | {"history": [vars(attempt) for attempt in history]}
    if as_json:
        click.echo(json.dumps(described, default=str))
        return
    for name, value in described.items():
        if name not in {"history", "result", "sources"} and value not in (None, {}):
            click.echo(f"{name + ':':18} {value}")
    for attempt in history:
        until = attempt.ended_at.strftime("%H:%M:%S.%f")[:-3] if attempt.ended_at else "now"
        click.echo(
            f"attempt {attempt.fence}: {attempt.started_at:%Y-%m-%d %H:%M:%S} to {until}, {attempt.outcome}"
            f"{' ' + attempt.reason if attempt.reason else ''}{': ' + attempt.detail if attempt.detail else ''}"
            f" ({attempt.worker})"
        )
    if job.result:
        click.echo(f"\n{job.result}")
    for source in job.sources or ():
        click.echo(f"[{source.number}] characters {source.start} to {source.end}: {source.heading}")


def print_explanation(explanation: Any, *, as_json: bool) -> None:
    """Print why a job waits, in a line."""
    until = explanation.until
    if as_json:
        described = vars(explanation) | {"until": until.isoformat() if until else None}
        click.echo(json.dumps(described))
        return
    when = ""
    if until is not None:
        left_s = max(0.0, (until - datetime.now(UTC)).total_seconds())
        when = f", until {until.astimezone():%Y-%m-%d %H:%M:%S} (in {left_s:.1f} s)"
    click.echo(f"{explanation.cause}: {explanation.detail}{when}")


def report(done: Sequence[UUID], asked: Sequence[UUID], verb: str, otherwise: str) -> None:
    """Print what was done to each job."""
    found = set(done)
    for job_id in asked:
        click.echo(f"{job_id} {verb if job_id in found else otherwise}")
