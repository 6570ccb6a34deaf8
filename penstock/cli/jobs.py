"""`penstock jobs`: list them, show one, cancel some. It must not know a job's life."""

from typing import Any
from uuid import UUID

import click

from penstock.cli.display import print_jobs, report, show
from penstock.cli.options import as_json, filters, limit, make_filter, with_client
from penstock.schemas import JobState


@click.group()
def jobs() -> None:
    """List jobs, show one, cancel some."""


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in JobState]))
@filters
@limit
@as_json
@with_client
def list_jobs(client: Any, *, state: str | None, limit: int, as_json: bool, **chosen: Any) -> None:
    """List jobs, the newest first."""
    print_jobs(client.find(make_filter(state, **chosen), most=limit), as_json=as_json)


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
