"""`penstock cache report`: what the semantic tier did, or would have done. It must not know how anything is found."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from penstock.cli.options import as_json, with_client

OFF = "the semantic tier is off: Postgres has no extension vector; have a superuser run CREATE EXTENSION vector"


@click.group()
def cache() -> None:
    """Look at the answers that were given again."""


@cache.command()
@click.option("--tenant", help="Whose; all tenants, a line each, if not given.")
@as_json
@with_client
def report(client: Any, *, tenant: str | None, as_json: bool) -> None:
    """Show how often an answer was given again to an instruction that means the same.

    In shadow mode it would have been: a model answered all the same, and both answers were compared by their words.
    `different` are those of which fewer than 70 % of the words are the same: read some before you turn the tier on.

    \b
    penstock cache report                    every tenant
    penstock cache report --tenant acme      one tenant
    """  # noqa: D301 - click reads the backspace
    found = client.similar(tenant)
    if as_json:
        for count in found.counts:
            click.echo(json.dumps(asdict(count) | {"available": found.is_available}))
        if not found.counts:
            click.echo(json.dumps({"available": found.is_available}))
        return
    if not found.is_available:
        click.echo(OFF, err=True)
    print_counts(found.counts)


def print_counts(counts: Any) -> None:
    """Print a line a tenant."""
    from rich.console import Console
    from rich.table import Table

    table = Table("tenant", "given again", "would have been", "compared", "different", "share")
    for count in counts:
        share = f"{count.different / count.judged:.1%}" if count.judged else "-"
        row = (count.given, count.would_be, count.judged, count.different)
        table.add_row(count.tenant, *map(str, row), share)
    Console(width=None if sys.stdout.isatty() else 180).print(table)
