"""`penstock purge`: delete a tenant's text, and prove what is gone. It must not know where text is kept."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from penstock.cli.options import as_json, parse_time, with_client

FAILED = 1
TABLES = {
    "payloads": "payloads (variables, documents)",
    "answers": "answers (of models)",
    "results": "results",
    "labels": "jobs (document names, metadata, details)",
}


@click.command()
@click.option("--tenant", required=True)
@click.option("--before", metavar="30d|ISO", help="Only jobs that ended before then; all that have ended if not given.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@with_client
def purge(client: Any, *, tenant: str, before: str | None, yes: bool, as_json: bool) -> None:
    """Delete the text of a tenant's ended jobs for good, and prove what is gone.

    Jobs, attempts and the ledger stay, without text. A job that has not ended keeps its text: cancel it first. Ends
    with 1 if something is left that should be gone.

    \b
    penstock purge --tenant acme                         ask, then delete and count again
    penstock purge --tenant acme --before 30d --yes      what ended more than 30 days ago
    penstock purge --tenant acme --yes --json            the proof as a JSON object
    """  # noqa: D301 - click reads the backspace
    until = None if before is None else parse_before(before)
    if not yes:
        confirm(tenant, until)
    proof = client.purge(tenant, until, progress=show_progress if sys.stderr.isatty() else None)
    if as_json:
        click.echo(json.dumps(asdict(proof) | {"until": proof.until.isoformat(), "complete": proof.is_complete}))
    else:
        print_proof(proof)
    if not proof.is_complete:
        sys.exit(FAILED)


def parse_before(text: str) -> datetime:
    """Read `30d` or an ISO 8601 time."""
    return parse_time(text, "--before")


def confirm(tenant: str, until: datetime | None) -> None:
    """Ask on a terminal; elsewhere refuse, since nobody could answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError("what is purged cannot be brought back; add --yes if that is meant")
    which = "every ended job" if until is None else f"every job that ended before {until:%Y-%m-%d %H:%M:%S %Z}"
    click.confirm(f"Delete the text of {which} of tenant {tenant!r} for good?", abort=True, err=True)


def show_progress(done: int, total: int) -> None:
    """Count on one line of the terminal."""
    click.echo(f"\r{done} of {total} jobs", nl=done >= total, err=True)


def print_proof(proof: Any) -> None:
    """Print what was there, what was deleted and what is left, and what stays."""
    from rich.console import Console
    from rich.table import Table

    table = Table("rows with text", "before", "deleted", "left")
    for name, title in TABLES.items():
        table.add_row(title, *(str(getattr(rows, name)) for rows in (proof.before, proof.deleted, proof.left)))
    click.echo(f"tenant {proof.tenant}, jobs that ended until {proof.until.isoformat()}: {proof.jobs} purged now")
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    click.echo(f"ledger: {proof.ledger_rows} rows kept, without text")
    if proof.live_jobs:
        click.echo(
            f"live jobs: {proof.live_jobs} still have their text; cancel them first"
            " (`penstock jobs cancel ID...`), then purge again"
        )
    click.echo("nothing is left" if proof.is_complete else "something is left: it was in use; purge again")
