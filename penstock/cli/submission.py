"""`penstock submit`. It must not know what is refused, or why."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from penstock.cli.display import print_jobs
from penstock.cli.options import as_json, with_client
from penstock.schemas import JobState, Lane, OnUnavailable

FAILED = 1


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tenant", required=True)
@click.option("--project", default="", help="Whose budget pays, beside the tenant's.")
@click.option("--prompt", default="summarise_document", show_default=True)
@click.option("--prompt-version", help="The newest if not given.")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the prompt.")
@click.option("--tier", help="The prompt's own if not given.")
@click.option("--lane", default=Lane.INTERACTIVE.value, type=click.Choice([lane.value for lane in Lane]))
@click.option("--priority", default=5, show_default=True, help="0 to 9; 9 goes first.")
@click.option(
    "--on-unavailable",
    default=OnUnavailable.WAIT.value,
    type=click.Choice([choice.value for choice in OnUnavailable]),
    help="What to do when no model can be asked.",
    show_default=True,
)
@click.option("--fresh", is_flag=True, help="Have a model answer anew, whatever was paid for before.")
@click.option("--wait", is_flag=True, help="Wait for the results and print them.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait at most.")
@as_json
@with_client
def submit(
    client: Any,
    *,
    files: tuple[Path, ...],
    variables: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    as_json: bool,
    **fields: Any,
) -> None:
    """Submit documents: all of them, or none if one is refused.

    \b
    penstock submit report.pdf --tenant acme --wait
    penstock submit *.md --tenant acme --prompt extract_metadata --lane batch
    """  # noqa: D301 - click reads the backspace
    given = dict(parse_variable(pair) for pair in variables)
    job_ids = client.submit_many({**fields, "document": path, "variables": given} for path in files)
    if not wait:
        for path, job_id in zip(files, job_ids, strict=True):
            click.echo(json.dumps({"id": str(job_id), "document": path.name}) if as_json else str(job_id))
        return
    client.wait_all(job_ids, timeout_s=timeout_s)
    jobs = [client.get(job_id) for job_id in job_ids]
    print_jobs(jobs, as_json=as_json, results=True)
    if any(job.state is not JobState.SUCCEEDED for job in jobs):
        sys.exit(FAILED)


def parse_variable(pair: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--var")
    return name, value
