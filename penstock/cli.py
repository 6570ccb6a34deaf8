"""The command `penstock`. It must not know the broker, and it starts workers only as other processes."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import click

from penstock.errors import JobError, PenstockError, Reason
from penstock.schemas import JobState, Lane

FAILED = 1
USAGE = 2
UNDEFINED_TABLE = "42P01"
MOST_ROWS = 100_000


def main() -> None:
    """Run the command; an error is one line that names the thing, the reason and the cure."""
    try:
        commands(prog_name="penstock", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context else ""
        fail(error.format_message() + hint, error.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except PenstockError as error:
        fail(str(error), FAILED if isinstance(error, JobError) else USAGE)
    except Exception as error:
        trouble = database_trouble(error)
        if trouble is None:
            raise
        fail(trouble, USAGE)


def fail(message: str, code: int) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"penstock: {message}", err=True)
    sys.exit(code)


def database_trouble(error: Exception) -> str | None:
    """Say what is wrong with Postgres and what to do, or None where it is not Postgres."""
    from sqlalchemy.exc import DBAPIError, OperationalError

    if isinstance(error, OperationalError):
        reason = str(error.orig).splitlines()[0]
        return f"Postgres cannot be reached: {reason}; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL"
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == UNDEFINED_TABLE:
        return "Postgres: Penstock's tables are not there; run `penstock migrate`"
    return None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock")
def commands() -> None:
    """AI requests as jobs: submit them, watch them, and run the workers that answer them.

    \b
    penstock demo                                        see all of it on the documents in samples/
    penstock up                                          run everything here until Ctrl-C
    penstock submit report.pdf --tenant acme --wait      have a document summarised
    penstock jobs list --tenant acme                     what became of it
    penstock dead list                                   what did not work
    """  # noqa: D301 - click reads the backspace


def start(module: str, *arguments: str) -> None:
    """Become another program of this deployment, found from the root of the repository or the image."""
    if not Path("workers").is_dir():
        raise click.ClickException("there is no workers/ here; run this in the root of the repository or of the image")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@commands.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards and print Flower's address.")
def demo(*, keep: bool) -> None:
    """Summarise the documents in samples/ for three tenants, and show what it cost."""
    start("workers", "demo", *(["--keep"] if keep else []))


@commands.command()
def up() -> None:
    """Run Postgres, Redis, the simulator, all pools, feeder, upkeep and Flower until Ctrl-C."""
    start("workers", "up")


@commands.command()
@click.argument("role")
@click.option("--concurrency", type=click.IntRange(min=1), help="Jobs in flight; the tier's own if not given.")
def worker(role: str, concurrency: int | None) -> None:
    """Run one worker: the pool of a tier, or `upkeep`.

    \b
    penstock worker small
    penstock worker upkeep
    """  # noqa: D301 - click reads the backspace
    start("workers.worker", role, *(["--concurrency", str(concurrency)] if concurrency else []))


@commands.command()
def feeder() -> None:
    """Run the feeder, which sends the messages of rows whose turn has come."""
    start("workers.feeder")


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flower(arguments: tuple[str, ...]) -> None:
    """Run Flower with config/flowerconfig.py; further arguments are Flower's own."""
    start("celery", "-A", "workers.app", "flower", "--conf=config/flowerconfig.py", *arguments)


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulator(arguments: tuple[str, ...]) -> None:
    """Run the simulated provider; see `penstock simulator --help`."""
    os.execv(sys.executable, [sys.executable, "-m", "penstock.providers.simulator", *arguments])


@commands.command()
def migrate() -> None:
    """Bring the schema of Postgres to the newest version."""
    from penstock.settings import load_settings
    from penstock.store.db import sync_engine
    from penstock.store.schema import migrate as bring_up

    engine = sync_engine(load_settings().require_database_url())
    bring_up(engine)
    engine.dispose()
    click.echo("the schema is up to date")


@commands.command()
def check() -> None:
    """Check the configuration and the prompts as a pool does when it starts."""
    from penstock.configuration import read_configuration
    from penstock.settings import load_settings

    catalogue, _, prompts = read_configuration(load_settings())
    click.echo(
        f"{len(catalogue.tiers)} tiers, {len(catalogue.deployment_names)} deployments, "
        f"{len(list(prompts))} prompt versions: all of it holds together"
    )


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a client as its first argument."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        from penstock.client import Client

        with Client() as client:
            command(client, *args, **options)

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@commands.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tenant", required=True)
@click.option("--prompt", default="summarise_document", show_default=True)
@click.option("--prompt-version", help="The newest if not given.")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the prompt.")
@click.option("--tier", help="The prompt's own if not given.")
@click.option("--lane", default=Lane.INTERACTIVE.value, type=click.Choice([lane.value for lane in Lane]))
@click.option("--priority", default=5, show_default=True, help="0 to 9; 9 goes first.")
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


def print_jobs(jobs: Sequence[Any], *, as_json: bool, results: bool = False) -> None:
    """Print jobs as a table, or as a JSON object a line."""
    if as_json:
        for job in jobs:
            click.echo(job.model_dump_json())
        return
    if results:
        for job in jobs:
            click.secho(f"{job.document_name or job.id}  ({job.state}, {job.model_served or job.reason})", bold=True)
            click.echo(f"{job.result or job.detail}\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "tenant", "tier", "lane", "prompt", "state", "attempts", "created", "reason")
    for job in jobs:
        prompt = f"{job.prompt.id}@{job.prompt.version}"
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            str(job.id), job.tenant, job.tier, job.lane, prompt, job.state, str(job.attempts), created, job.reason or ""
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which jobs are chosen."""
    for option in (
        click.option("--tenant"),
        click.option("--tier"),
        click.option("--reason", type=click.Choice([reason.value for reason in Reason])),
        click.option("--since", metavar="2h|3d|ISO", help="Only what ended since then."),
    ):
        command = option(command)
    return command


def make_filter(state: str | None, tenant: str | None, tier: str | None, reason: str | None, since: str | None) -> Any:
    """Make the filter that the options describe."""
    from penstock.jobs.queries import Filter

    return Filter(
        tenant=tenant,
        state=JobState(state) if state else None,
        tier=tier,
        reason=Reason(reason) if reason else None,
        since=parse_since(since) if since else None,
    )


def parse_since(text: str) -> datetime:
    """Read `30m`, `2h`, `3d` or an ISO 8601 time."""
    units = {"m": "minutes", "h": "hours", "d": "days"}
    try:
        if text[-1] in units and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither like 30m, 2h, 3d nor an ISO time", param_hint="--since"
        ) from None
    return moment if moment.tzinfo else moment.astimezone()


@commands.group()
def jobs() -> None:
    """List jobs, show one, cancel some."""


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in JobState]))
@filters
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True)
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


def show(client: Any, job_id: UUID, *, as_json: bool) -> None:
    """Print a job and its history."""
    job, history = client.get(job_id), client.history(job_id)
    described = job.model_dump(mode="json") | {"history": [vars(attempt) for attempt in history]}
    if as_json:
        click.echo(json.dumps(described, default=str))
        return
    for name, value in described.items():
        if name not in {"history", "result"} and value not in (None, {}):
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


@jobs.command("cancel")
@click.argument("job_ids", nargs=-1, required=True, type=click.UUID)
@with_client
def cancel_jobs(client: Any, *, job_ids: tuple[UUID, ...]) -> None:
    """Cancel jobs that have not ended; a call in flight is stopped."""
    report(client.cancel(*job_ids), job_ids, "cancelled", "had ended already, or does not exist")


def report(done: Sequence[UUID], asked: Sequence[UUID], verb: str, otherwise: str) -> None:
    """Print what was done to each job."""
    found = set(done)
    for job_id in asked:
        click.echo(f"{job_id} {verb if job_id in found else otherwise}")


@commands.group()
def dead() -> None:
    """Look at the dead letters, replay or discard them, by id or by filter."""


@dead.command("list")
@filters
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True)
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
    report(client.replay(ids), ids, "queued anew", "is not dead, or was refused at the door and has no content")


@dead.command("discard")
@click.argument("job_ids", nargs=-1, type=click.UUID)
@filters
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@with_client
def discard_dead(client: Any, *, job_ids: tuple[UUID, ...], everything: bool, **chosen: Any) -> None:
    """Take jobs out of the dead letters; their rows stay, as cancelled."""
    ids = chosen_ids(client, job_ids, everything=everything, chosen=chosen)
    report(client.discard(ids), ids, "discarded", "is not dead")


if __name__ == "__main__":
    main()
