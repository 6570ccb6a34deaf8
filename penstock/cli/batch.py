"""`penstock batch`: plan one, run it, watch it, stop it, fetch its results. It must not know how a job is run."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, time
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from penstock.cli import batch_display as display
from penstock.cli.batch_options import Asked, Clock, Dollars, Window, what_is_asked
from penstock.cli.options import as_json, with_client

FAILED = 1
REFUSED = 3
"""The exit code of a batch that was not begun, since it cannot end in time or may cost too much."""
LOOK_S = 1.0


@click.group()
def batch() -> None:
    """Run many documents under one name: at a known price, resumable by the same command.

    \b
    penstock batch plan archive/ --tenant acme --until 06:00
    penstock batch run re-summarise-2.0 archive/ --tenant acme --start 22:00 --until 06:00 --max-cost 40
    penstock batch status re-summarise-2.0 --tenant acme --watch
    penstock batch export re-summarise-2.0 --tenant acme --output results.jsonl --errors errors.jsonl
    """  # noqa: D301 - click reads the backspace


start = click.option("--start", type=Clock(), help="When it begins; now if not given.")
until = click.option("--until", type=Clock(), help="When it has to have ended.")
max_cost = click.option("--max-cost", type=Dollars(), help="What it may cost at most, in dollars.")
of_tenant = click.option("--tenant", required=True)


@batch.command("plan")
@what_is_asked
@start
@until
@max_cost
@as_json
@with_client
def plan(
    client: Any,
    *,
    asked: Asked,
    start: datetime | time | None,
    until: datetime | time | None,
    max_cost: int | None,
    as_json: bool,
) -> None:
    """Say what a batch would come to, before the first cent: nothing is stored, no model is asked.

    The source is a .jsonl or .csv file, a folder, a glob or one document. Tokens are counted in a sample.

    \b
    penstock batch plan archive/ --tenant acme --until 06:00 --max-cost 40
    penstock batch plan rows.csv --tenant acme --map document=body --map metadata.id=id
    penstock batch plan --query "SELECT body AS document FROM notes" --source-url postgresql://... --tenant acme
    """  # noqa: D301 - click reads the backspace
    _, objections = show_plan(
        client, asked, Window.of(start, until, datetime.now().astimezone()), max_cost, as_json=as_json
    )
    if objections:
        sys.exit(REFUSED)


def show_plan(client: Any, asked: Asked, window: Window, most: int | None, *, as_json: bool) -> tuple[Any, list[str]]:
    """Print the forecast and what speaks against it, and give both."""
    with asked.items() as items, counting(client, asked) as count:
        forecast = client.plan_batch(asked.request(), items, columns=asked.mapping(), count=count)
    objections = forecast.objections(window.start, window.until, most)
    display.print_forecast(forecast, window.start, window.until, objections, as_json=as_json)
    return forecast, objections


@contextmanager
def counting(client: Any, asked: Asked) -> Iterator[Callable[[Any], int]]:
    """Give the tokenizer of the tier's first model. It takes some seconds to load."""
    deployment = client.deployments_of(asked.request())[0]
    from penstock.providers.litellm import LiteLLMProvider

    provider = LiteLLMProvider()
    with asyncio.Runner() as runner, ExitStack() as stack:
        stack.callback(lambda: runner.run(provider.close()))
        yield lambda messages: runner.run(provider.count_tokens(deployment, messages))


@batch.command("run")
@click.argument("name")
@what_is_asked
@start
@until
@max_cost
@click.option(
    "--abort-if",
    multiple=True,
    metavar="RULE",
    help="Stop at 'errors>0.1' (share of jobs) or 'cost>2' (times the forecast); 'never'.  [errors>0.25 cost>1.5]",
)
@click.option("--callback", metavar="TASK[@QUEUE]", help="A Celery task that is sent when it has ended.")
@click.option("--by-provider", is_flag=True, help="As files, at the provider's price for batches, if there is time.")
@click.option("--force", is_flag=True, help="Begin whatever the forecast says.")
@click.option("--wait", is_flag=True, help="Watch it until it ends; exit 1 if a document has no result.")
@as_json
@with_client
def run(
    client: Any,
    *,
    name: str,
    asked: Asked,
    start: datetime | time | None,
    until: datetime | time | None,
    max_cost: int | None,
    abort_if: tuple[str, ...],
    callback: str | None,
    by_provider: bool,
    force: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Begin a batch after its forecast, or go on with the one of that name: the same command resumes after any crash.

    It is not begun if it cannot end before --until or may cost more than --max-cost, unless forced (exit 3). Of
    --max-cost nothing is ever overspent: calls are reserved before they are made. A batch that stopped itself is not
    resumed by it (exit 1): see `penstock batch resume`.

    \b
    penstock batch run night-7 archive/ --tenant acme --start 22:00 --until 06:00 --max-cost 40
    penstock batch run night-7 rows.csv --tenant acme --map document=body --abort-if 'errors>0.05' --wait
    """  # noqa: D301 - click reads the backspace
    from penstock.batches.batch import AbortIf, BatchState
    from penstock.client.batches import check_batch_name, check_callback

    rules = AbortIf.parse(abort_if)
    check_batch_name(name)
    if callback is not None:
        check_callback(callback)
    window = Window.of(start, until, datetime.now().astimezone())
    forecast = None
    if not is_begun(client, asked.fields["tenant"], name):
        forecast, objections = show_plan(client, asked, window, max_cost, as_json=as_json)
        if objections and not force:
            sys.exit(REFUSED)
    with asked.items() as items, display.loading(name, as_json=as_json) as progress:
        begun = client.batch(
            name,
            asked.request(),
            items,
            columns=asked.mapping(),
            forecast=forecast,
            max_cost=max_cost,
            abort_if=rules,
            start=None if start is None else window.start,
            until=window.until,
            by_provider=by_provider,
            callback=callback,
            progress=progress,
        )
    if wait:
        watch(client, begun.tenant, name, as_json=as_json)
        ended = client.batch_progress(begun.tenant, name)
        sys.exit(0 if ended.is_whole else FAILED)
    display.print_progress(client.batch_progress(begun.tenant, name), as_json=as_json)
    if begun.state is BatchState.STOPPED:
        sys.exit(FAILED)


def is_begun(client: Any, tenant: str, name: str) -> bool:
    """Tell whether there is a batch of that name."""
    from penstock.errors import InvalidRequestError

    try:
        client.find_batch(tenant, name)
    except InvalidRequestError:
        return False
    return True


def watch(client: Any, tenant: str, name: str, *, as_json: bool) -> None:
    """Show how far a batch is until it ends, or stops: live on a terminal, a line when something changed in a pipe."""
    display.watch(lambda: client.batch_progress(tenant, name), every_s=LOOK_S, as_json=as_json)


@batch.command("list")
@click.option("--tenant", help="All tenants if not given.")
@as_json
@with_client
def list_batches(client: Any, *, tenant: str | None, as_json: bool) -> None:
    """List batches, the newest first."""
    progresses = [client.batch_progress(each.tenant, each.name) for each in client.batches(tenant)]
    display.print_batches(progresses, as_json=as_json)


@batch.command("status")
@click.argument("name")
@of_tenant
@click.option("--watch", "live", is_flag=True, help="Until it ends, or stops.")
@as_json
@with_client
def status(client: Any, *, name: str, tenant: str, live: bool, as_json: bool) -> None:
    """Show how far a batch is, what it has cost, and what was forecast."""
    if live:
        watch(client, tenant, name, as_json=as_json)
    else:
        display.print_progress(client.batch_progress(tenant, name), as_json=as_json)


@batch.command("pause")
@click.argument("name")
@of_tenant
@with_client
def pause(client: Any, *, name: str, tenant: str) -> None:
    """Let no further document of a batch begin; those under way go on."""
    client.pause_batch(tenant, name)
    click.echo(f"{name} is paused; `penstock batch resume {name} --tenant {tenant}` lets it go on")


@batch.command("resume")
@click.argument("name")
@of_tenant
@click.option("--max-cost", type=Dollars(), help="What it may cost at most from now on, all in all.")
@with_client
def resume(client: Any, *, name: str, tenant: str, max_cost: int | None) -> None:
    """Let a batch go on that was paused or has stopped itself."""
    client.resume_batch(tenant, name, max_cost=max_cost)
    click.echo(f"{name} goes on")


@batch.command("cancel")
@click.argument("name")
@of_tenant
@with_client
def cancel(client: Any, *, name: str, tenant: str) -> None:
    """Cancel what has not ended of a batch; results that are there stay."""
    client.cancel_batch(tenant, name)
    click.echo(f"{name} is cancelled")


@batch.command("report")
@click.argument("name")
@of_tenant
@click.option("--against", metavar="NAME", help="Another batch of the tenant: what moved since then.")
@as_json
@with_client
def report(client: Any, *, name: str, tenant: str, against: str | None, as_json: bool) -> None:
    """Say what the results are like, without a model, and what moved since another batch.

    Looks at results whose documents are still kept. A measure that moved by more than chance is flagged.

    \b
    penstock batch report night-8 --tenant acme --against night-7
    """  # noqa: D301 - click reads the backspace
    from penstock.quality import compare

    after = [quality for _, quality in client.batch_quality(tenant, name)]
    before = [quality for _, quality in client.batch_quality(tenant, against)] if against else []
    display.print_quality(name, after, against, before, compare(before, after) if against else [], as_json=as_json)


@batch.command("export")
@click.argument("name")
@of_tenant
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Standard output if not given.")
@click.option("--errors", type=click.Path(dir_okay=False, path_type=Path), help="Where items without a result go.")
@click.option("--format", "form", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@with_client
def export(client: Any, *, name: str, tenant: str, output: Path | None, errors: Path | None, form: str) -> None:
    """Write the results of a batch in the order of its input, and the items without one to a file of their own.

    \b
    penstock batch export night-7 --tenant acme -o results.jsonl --errors errors.jsonl
    penstock batch export night-7 --tenant acme -o results.parquet --format parquet
    """  # noqa: D301 - click reads the backspace
    from penstock.cli.batch_export import write_errors, write_jsonl, write_parquet

    if form == "parquet" and output is None:
        raise click.UsageError("Parquet needs --output")
    if output and errors and output.resolve() == errors.resolve():
        raise click.UsageError("--output and --errors name the same file")
    progress = client.batch_progress(tenant, name)
    given: list[tuple[UUID, datetime]] = []
    results = noting(client.batch_results(tenant, name), given)
    written = write_parquet(results, output) if form == "parquet" else write_jsonl(results, output)
    told = f"{written} results"
    if errors:
        told += f", {write_errors(client.batch_errors(tenant, name), errors)} items without one"
    if progress.batch.ended_at is not None:
        sys.stdout.flush()
        client.note_fetched(tenant, given)
    else:
        told += f"; {name} is {progress.batch.state} and has not ended: there may be more"
    click.echo(told, err=True)


def noting(results: Iterator[Any], given: list[tuple[UUID, datetime]]) -> Iterator[Any]:
    """Pass results on, and note which they were."""
    for number, job in results:
        yield number, job
        given.append((job.id, job.ended_at))
