"""The whole system on the documents in `samples/`: what a newcomer sees first. It must not know how a job is run."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.live import Live
from rich.table import Table

from penstock.client import Client
from penstock.errors import PenstockError
from penstock.jobs.queries import Attempt
from penstock.money.prices import NANO
from penstock.schemas import Job, JobState
from workers.stack import Stack, invoice

TENANTS = ("acme", "globex", "initech")
SAMPLES = Path("samples")
TIMEOUT_S = 180.0
SMALL_BYTES = 12_000
MEDIUM_BYTES = 50_000
SUMMARY_WIDTH = 60
BAR_WIDTH = 30


class DemoFailedError(PenstockError):
    """The demonstration did not show what it should."""


@dataclass(frozen=True)
class Shown:
    """A job of the demonstration with its history."""

    job: Job
    history: list[Attempt]


def run(console: Console, *, keep: bool) -> None:
    """Start the stack, summarise the samples, print what came of them; with `keep`, stay up until Ctrl-C."""
    with Stack(tell=lambda line: console.print(f"[dim]{line}[/dim]")) as stack, Client() as client:
        before = client.ledger_totals()
        job_ids = submit(client, documents())
        console.print(f"submitted {len(job_ids)} documents for {len(TENANTS)} tenants; Flower is at {stack.flower_url}")
        watch(console, stack, client, job_ids)
        shown = [Shown(client.get(job_id), client.history(job_id)) for job_id in job_ids]
        console.print(table(shown))
        console.print(totals(shown))
        compare(console, client, stack, before.nanodollars)
        require_success(shown)
        if keep:
            console.print(f"staying up: Flower is at [bold]{stack.flower_url}[/bold]; Ctrl-C stops everything")
            stack.wait()


def documents() -> list[Path]:
    """List the samples; raise DemoFailedError when there are none here."""
    found = sorted(path for path in SAMPLES.glob("*") if path.suffix != ".toml" and path.name != "README.md")
    if not found:
        raise DemoFailedError(f"there is nothing in {SAMPLES.resolve()}; run this in the root of the repository")
    return found


def submit(client: Client, paths: Sequence[Path]) -> list[UUID]:
    """Submit the documents, each for the next tenant and to a tier that fits its size."""
    return client.submit_many(
        {
            "tenant": TENANTS[number % len(TENANTS)],
            "prompt": "summarise_document",
            "document": path,
            "tier": tier_for(path.stat().st_size),
            "metadata": {"source": "demo"},
            "fresh": True,
        }
        for number, path in enumerate(paths)
    )


def tier_for(size: int) -> str:
    """Choose a tier by the size of a file in bytes."""
    if size <= SMALL_BYTES:
        return "small"
    return "medium" if size <= MEDIUM_BYTES else "large"


def watch(console: Console, stack: Stack, client: Client, job_ids: list[UUID]) -> None:
    """Show the states of the jobs until all have ended: a bar on a terminal, a line a change in a pipe."""
    shown = ""
    with Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:

        def show(states: dict[UUID, JobState]) -> None:
            nonlocal shown
            stack.check()
            line = progress(states)
            if live is not None:
                live.update(line, refresh=True)
            elif line != shown:
                console.print(line)
            shown = line

        client.wait_all(job_ids, timeout_s=TIMEOUT_S, progress=show)


def progress(states: dict[UUID, JobState]) -> str:
    """Draw how many jobs stand where."""
    counts = Counter(states.values())
    ended = sum(count for state, count in counts.items() if state.is_terminal)
    filled = BAR_WIDTH * ended // len(states)
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    return f"[bold]{ended:2}[/bold] of {len(states)}  {bar}  " + "  ".join(
        f"{state} {counts[state]}" for state in JobState if counts[state]
    )


def table(shown: Sequence[Shown]) -> Table:
    """Make the table: a row a document."""
    columns = ("document", "tenant", "tier", "model", "att.", "in", "out", "cost", "queue wait", "latency", "summary")
    result = Table(title="what came out", expand=False)
    for column in columns:
        numeric = column in {"att.", "in", "out", "cost", "queue wait", "latency"}
        result.add_column(
            column,
            justify="right" if numeric else "left",
            no_wrap=column != "document",
            overflow="ellipsis",
            max_width=SUMMARY_WIDTH if column == "summary" else None,
        )
    for item in shown:
        result.add_row(*row(item))
    return result


def row(item: Shown) -> list[str]:
    """Make the cells of a job."""
    job = item.job
    first_line = (job.result or f"[red]{job.state}: {job.reason} {job.detail}[/red]").strip().split("\n", 1)[0]
    ended = job.ended_at or job.created_at
    return [
        job.document_name or "",
        job.tenant,
        job.tier,
        job.model_served or "",
        str(job.attempts),
        f"{job.usage.prompt_tokens:,}",
        f"{job.usage.completion_tokens:,}",
        dollars(job.cost_nanodollars),
        f"{(item.history[0].started_at - job.created_at).total_seconds():.2f} s" if item.history else "",
        f"{(ended - job.created_at).total_seconds():.2f} s",
        first_line,
    ]


def totals(shown: Sequence[Shown]) -> str:
    """Say in a line what all of it came to."""
    jobs = [item.job for item in shown]
    succeeded = sum(job.state is JobState.SUCCEEDED for job in jobs)
    tokens_in = sum(job.usage.prompt_tokens for job in jobs)
    tokens_out = sum(job.usage.completion_tokens for job in jobs)
    cost = sum(job.cost_nanodollars for job in jobs)
    attempts = sum(job.attempts for job in jobs)
    return (
        f"total: {succeeded} of {len(jobs)} succeeded in {attempts} attempts, "
        f"{tokens_in:,} tokens in, {tokens_out:,} out, {dollars(cost)}"
    )


def compare(console: Console, client: Client, stack: Stack, before: int) -> None:
    """Print the ledger beside the provider's invoice; raise DemoFailedError if it is below."""
    if stack.simulator_url is None:
        return
    ours = client.ledger_totals().nanodollars - before
    theirs = invoice(stack.simulator_url)["total_nanodollars"]
    verdict = "[green]equal[/green]" if ours == theirs else f"[yellow]{ours - theirs:+,} nano-dollars apart[/yellow]"
    console.print(f"ledger {ours:,} nano-dollars, the simulator's invoice {theirs:,}: {verdict}")
    if ours < theirs:
        raise DemoFailedError("the ledger is below the provider's invoice; this must never be: please report it")


def require_success(shown: Sequence[Shown]) -> None:
    """Raise DemoFailedError that names the documents that did not succeed."""
    failed = [item.job for item in shown if item.job.state is not JobState.SUCCEEDED]
    if failed:
        names = ", ".join(f"{job.document_name} ({job.state}: {job.reason})" for job in failed)
        raise DemoFailedError(f"{len(failed)} documents were not summarised: {names}; see .penstock/logs/")


def dollars(nanodollars: int) -> str:
    """Write an amount of nano-dollars in dollars, rounded up to the next millionth."""
    whole, millionths = divmod(-(-nanodollars // 1000), NANO // 1000)
    return f"${whole}.{millionths:06d}"
