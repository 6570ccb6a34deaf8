"""`penstock reconcile`: hold the ledger against a provider's own export. It must not know how they are compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import as_json, parse_time, with_client
from penstock.schemas import dollars

MEANINGS = {
    "lines": "lines of the export",
    "matched": "of calls in the ledger",
    "corrected": "corrections written",
    "settled_differing": "of these, of calls that were thought to be settled",
    "not_billed": "unknown calls that the export lacks, and that cost nothing",
    "answered_not_billed": "calls that it lacks though an answer came late: left as they are, ask the provider",
    "under_way": "lines of calls that are still under way here: reconcile again later",
    "foreign": "lines that are in no row of the ledger",
    "still_unknown": "calls whose outcome is still unknown, at their upper bound",
}


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--complete", is_flag=True, help="It holds every call of --account sent from --since up to --until.")
@click.option("--account", help="As models.toml names it.")
@click.option("--since", metavar="2h|3d|ISO", help="When the export begins; UTC.")
@click.option("--until", metavar="2h|3d|ISO", help="When it ends; UTC.")
@click.option("--dry-run", is_flag=True, help="Change nothing, and say what would be.")
@as_json
@with_client
def reconcile(
    client: Any,
    *,
    file: Path,
    complete: bool,
    account: str | None,
    since: str | None,
    until: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Correct the ledger by what a provider says it billed; a second time it changes nothing.

    FILE is .csv with a header, .json (a list, or an object with a list `lines`) or .jsonl. A line has `call_id` (the
    X-Client-Request-Id that was sent), `nanodollars` or `dollars`, and, if known, tokens by class: `input_tokens`,
    `cached_input_tokens`, `cache_write_tokens`, `output_tokens`, `reasoning_tokens`, each token in one of them.

    With --complete, calls of unknown outcome that the export lacks are set to nothing: the provider did not bill them.

    \b
    penstock reconcile usage.csv --dry-run
    penstock reconcile invoice.json --complete --account simulator --since 2026-01-01 --until 2026-02-01
    """  # noqa: D301 - click reads the backspace
    from penstock.money.export import read_export
    from penstock.money.reconciliation import Complete

    window = None
    if complete:
        if account is None or since is None or until is None:
            raise click.UsageError("--complete needs --account, --since and --until: for what is it complete?")
        window = Complete(account, parse_time(since, "--since"), parse_time(until, "--until"))
    elif (account, since, until) != (None, None, None):
        raise click.UsageError("--account, --since and --until say what an export is --complete for")
    outcome = client.reconcile(read_export(file), window, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(outcome)))
        return
    for name, meaning in MEANINGS.items():
        click.echo(f"{getattr(outcome, name):>10,}  {meaning}")
    verb = "would change" if dry_run else "changed"
    click.echo(f"the ledger {verb} by {dollars(outcome.change_nanodollars)}")
    if outcome.foreign:
        click.echo(f"what is in no row comes to {dollars(outcome.foreign_nanodollars)}")
