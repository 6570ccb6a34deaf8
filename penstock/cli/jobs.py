"""`penstock jobs`: list them, show one, say why it waits, cancel or re-run some. It must not know a job's life."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import click

from penstock.cli.display import print_explanation, print_jobs, report, show
from penstock.cli.options import MOST_ROWS, as_json, filters, limit, make_filter, with_client
from penstock.schemas import JobState


@click.group()
def jobs() -> None:
    """List jobs, show one, say why it waits, cancel or re-run some."""


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in JobState]))
@filters
@click.option("--degraded", is_flag=True, help="Only those whose result no model wrote.")
@limit
@as_json
@with_client
def list_jobs(client: Any, *, state: str | None, degraded: bool, limit: int, as_json: bool, **chosen: Any) -> None:
    """List jobs, the newest first."""
    which = replace(make_filter(state, **chosen), only_degraded=degraded)
    print_jobs(client.find(which, most=limit), as_json=as_json)


@jobs.command("show")
@click.argument("job_id", type=click.UUID)
@as_json
@with_client
def show_job(client: Any, *, job_id: UUID, as_json: bool) -> None:
    """Show a job with its result and every attempt."""
    show(client, job_id, as_json=as_json)


@jobs.command("cancel")
@click.argument("job_ids", nargs=-1, required=True, type=click.UUID)
@with_client
def cancel_jobs(client: Any, *, job_ids: tuple[UUID, ...]) -> None:
    """Cancel jobs that have not ended; a call in flight is stopped."""
    report(client.cancel(*job_ids), job_ids, "cancelled", "had ended already, or does not exist")


@jobs.command("why")
@click.argument("job_id", type=click.UUID)
@as_json
@with_client
def why(client: Any, *, job_id: UUID, as_json: bool) -> None:
    """Say why a job is not running: a limit, a breaker, its tenant's share, a backoff, no worker.

    \b
    penstock jobs why 5b0c2f6e-...
    limited: tokens of quota openai-gpt-5-mini, until 2026-01-31 12:00:07 (in 6.2 s)
    """  # noqa: D301 - click reads the backspace
    print_explanation(client.why(job_id), as_json=as_json)


@jobs.command("rerun")
@click.argument("job_ids", nargs=-1, type=click.UUID)
@filters
@click.option("--all", "everything", is_flag=True, help="All degraded results.")
@with_client
def rerun(client: Any, *, job_ids: tuple[UUID, ...], everything: bool, **chosen: Any) -> None:
    """Have a model answer jobs whose result is degraded; it stays until the answer takes its place.

    \b
    penstock jobs rerun 5b0c2f6e-...
    penstock jobs rerun --tenant acme --since 2h
    """  # noqa: D301 - click reads the backspace
    by_filter = everything or any(chosen.values())
    if bool(job_ids) == by_filter:
        raise click.UsageError("name ids, or a filter (--tenant, --tier, --reason, --since, --all), not both")
    if by_filter:
        which = replace(make_filter("succeeded", **chosen), only_degraded=True)
        job_ids = tuple(job.id for job in client.find(which, most=MOST_ROWS))
    report(client.rerun(job_ids), job_ids, "queued anew", "has no degraded result")
