"""`penstock dead`: look at the dead letters, replay or discard them. It must not know why they died."""

from typing import Any
from uuid import UUID

import click

from penstock.cli.display import print_jobs, report, show
from penstock.cli.options import MOST_ROWS, as_json, filters, limit, make_filter, with_client


@click.group()
def dead() -> None:
    """Look at the dead letters, replay or discard them, by id or by filter."""


@dead.command("list")
@filters
@limit
@as_json
@with_client
def list_dead(client: Any, *, limit: int, as_json: bool, **chosen: Any) -> None:
    """List dead letters, the newest first."""
    print_jobs(client.find(make_filter("dead", **chosen), most=limit), as_json=as_json)


@dead.command("show")
@click.argument("job_id", type=click.UUID)
@as_json
@with_client
def show_dead(client: Any, *, job_id: UUID, as_json: bool) -> None:
    """Show a dead letter with every attempt."""
    show(client, job_id, as_json=as_json)


def chosen_ids(client: Any, job_ids: tuple[UUID, ...], *, everything: bool, chosen: dict[str, Any]) -> list[UUID]:
    """Give the ids that were named, or those that the filter finds; a bare command chooses nothing."""
    by_filter = everything or any(chosen.values())
    if job_ids and by_filter:
        raise click.UsageError("name ids or a filter, not both")
    if job_ids:
        return list(job_ids)
    if not by_filter:
        raise click.UsageError("name ids, a filter (--tenant, --tier, --reason, --since), or --all")
    return [job.id for job in client.find(make_filter("dead", **chosen), most=MOST_ROWS)]


@dead.command("replay")
@click.argument("job_ids", nargs=-1, type=click.UUID)
@filters
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@with_client
def replay_dead(client: Any, *, job_ids: tuple[UUID, ...], everything: bool, **chosen: Any) -> None:
    """Queue dead jobs anew; what was paid for is not bought again, and a second replay does nothing.

    \b
    penstock dead replay 5b0c...
    penstock dead replay --tenant acme --reason server_error --since 2h
    """  # noqa: D301 - click reads the backspace
    ids = chosen_ids(client, job_ids, everything=everything, chosen=chosen)
    otherwise = "is not dead, has no content (refused at the door, or purged), or its batch was cancelled"
    report(client.replay(ids), ids, "queued anew", otherwise)


@dead.command("discard")
@click.argument("job_ids", nargs=-1, type=click.UUID)
@filters
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@with_client
def discard_dead(client: Any, *, job_ids: tuple[UUID, ...], everything: bool, **chosen: Any) -> None:
    """Take jobs out of the dead letters; their rows stay, as cancelled."""
    ids = chosen_ids(client, job_ids, everything=everything, chosen=chosen)
    report(client.discard(ids), ids, "discarded", "is not dead")
