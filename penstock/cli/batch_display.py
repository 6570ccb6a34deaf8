"""How a batch looks on a terminal and in a pipe. It must not know where the figures come from."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from statistics import fmean, median
from typing import Any

import click

from penstock.cli.amounts import forecast as rounded
from penstock.cli.amounts import print_table
from penstock.schemas import JobState, dollars

BAR_WIDTH = 30
MEASURES = (
    *("words", "ratio", "coverage", "verbatim_share"),
    *("is_empty", "is_poorly_covered", "has_unsupported_numbers", "is_refusal", "is_truncated"),
)
SHOWN = (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED, JobState.RUNNING, JobState.RETRYING, JobState.PAUSED)


def print_forecast(
    forecast: Any, begins: datetime, until: datetime | None, objections: Sequence[str], *, as_json: bool
) -> None:
    """Print what a batch will come to, and what speaks against it."""
    if as_json:
        parts = {name: vars(value) if hasattr(value, "low") else value for name, value in vars(forecast).items()}
        times = {"starts_at": begins.isoformat(), "ends_at": forecast.ends_at(begins).isoformat()}
        click.echo(json.dumps(parts | times | {"objections": list(objections)}))
        return
    money = forecast.nanodollars
    rows = [
        ("documents", f"{forecast.jobs:,}", f"of {forecast.items:,} items" if forecast.items != forecast.jobs else ""),
        ("tokens in", f"{forecast.prompt_tokens.expected:,}", _between(forecast.prompt_tokens)),
        ("tokens out", f"{forecast.answer_tokens.expected:,}", _between(forecast.answer_tokens)),
        ("cost", _cents(money.expected), f"{_cents(money.low)} to {_cents(money.high)}"),
        ("time", _duration(forecast.seconds), f"limited by {forecast.limited_by}" if forecast.limited_by else ""),
        ("ends", f"{forecast.ends_at(begins):%Y-%m-%d %H:%M}", f"has until {until:%Y-%m-%d %H:%M}" if until else ""),
    ]
    print_table(("", "expected", "19 in 20 times"), rows, title="forecast", words=1)
    if not forecast.answers_seen:
        click.echo("no call of this prompt was seen yet: an answer may be anything that it allows")
    for objection in objections:
        click.secho(f"not begun: {objection}; --force begins it all the same", fg="red", err=True)


@contextmanager
def loading(name: str, *, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how much of the input is stored."""
    is_terminal = sys.stderr.isatty() and not as_json
    last = (-1, -1)

    def show(stored: int, refused: int) -> None:
        nonlocal last
        last = stored, refused
        if is_terminal:
            click.echo(f"\r{name}: {stored:,} items stored, {refused:,} refused ", err=True, nl=False)

    yield show
    if last[0] >= 0 and not as_json:
        start = "\r" if is_terminal else ""
        click.echo(f"{start}{name}: {last[0]:,} items stored, {last[1]:,} refused ", err=True)


def watch(look: Callable[[], Any], *, every_s: float, as_json: bool) -> None:
    """Show how far a batch is until nothing more happens by itself."""
    from rich.live import Live
    from rich.text import Text

    if as_json or not sys.stdout.isatty():
        shown = ""
        while True:
            progress = look()
            line = _line(progress)
            if line != shown:
                click.echo(json.dumps(_record(progress)) if as_json else line)
            shown = line
            if not _goes_on(progress):
                return
            time.sleep(every_s)
    with Live(auto_refresh=False) as live:
        while True:
            progress = look()
            live.update(Text("\n".join(_lines(progress))), refresh=True)
            if not _goes_on(progress):
                return
            time.sleep(every_s)


def print_progress(progress: Any, *, as_json: bool) -> None:
    """Print how far a batch is."""
    if as_json:
        click.echo(json.dumps(_record(progress)))
        return
    for line in _lines(progress):
        click.echo(line)


def print_batches(progresses: Sequence[Any], *, as_json: bool) -> None:
    """Print a line for each batch."""
    if as_json:
        for progress in progresses:
            click.echo(json.dumps(_record(progress)))
        return
    rows = [
        (
            progress.batch.tenant,
            progress.batch.name,
            progress.batch.state,
            f"{progress.batch.created_at.astimezone():%Y-%m-%d %H:%M}",
            f"{progress.ended:,}",
            f"{progress.total:,}",
            f"{progress.jobs.get(JobState.DEAD, 0) + progress.refused:,}",
            _cents(progress.settled_nanodollars),
        )
        for progress in progresses
    ]
    columns = ("tenant", "name", "state", "begun", "ended", "jobs", "without result", "cost")
    print_table(columns, rows, title="batches", words=4)


def print_quality(
    name: str, after: Sequence[Any], against: str | None, before: Sequence[Any], moved: Sequence[Any], *, as_json: bool
) -> None:
    """Print what results are like: the median of each quantity, the share of each fault, and what moved."""
    flagged = {each.name: each for each in moved}
    if as_json:
        record = {
            "name": name,
            "results": len(after),
            "against": against,
            "measures": {measure: typical(measure, after) for measure in MEASURES},
            "before": {measure: typical(measure, before) for measure in MEASURES} if against else None,
            "moved": [vars(each) for each in moved],
        }
        click.echo(json.dumps(record))
        return
    rows = [
        (
            measure.replace("_", " "),
            *((_figure(measure, typical(measure, before)),) if against else ()),
            _figure(measure, typical(measure, after)),
            "moved" if measure in flagged else "",
        )
        for measure in MEASURES
    ]
    columns = ("", *((against,) if against else ()), name, "")
    print_table(columns, rows, title=f"{len(after):,} results", words=1)


def typical(measure: str, qualities: Sequence[Any]) -> float | None:
    """Give the median of a quantity where it is known, or the share of results that have a fault."""
    known = [value for each in qualities if (value := getattr(each, measure)) is not None]
    if not known:
        return None
    return fmean(known) if measure.startswith(("is_", "has_")) else median(known)


def _figure(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if measure.startswith(("is_", "has_")) else f"{value:,.3g}"


def _goes_on(progress: Any) -> bool:
    return bool(progress.batch.state == "running")


def _record(progress: Any) -> dict[str, Any]:
    batch = progress.batch
    left_s = progress.left_s
    return {
        "tenant": batch.tenant,
        "name": batch.name,
        "state": batch.state,
        "reason": batch.reason,
        "items": batch.items,
        "is_loaded": batch.is_loaded,
        "refused": progress.refused,
        "jobs": {str(state): count for state, count in progress.jobs.items()},
        "at_provider": progress.at_provider,
        "nanodollars": progress.settled_nanodollars,
        "held_nanodollars": progress.held_nanodollars,
        "max_nanodollars": batch.max_nanodollars,
        "tokens": progress.settled_tokens,
        "a_second": round(progress.rate, 3),
        "left_s": None if left_s is None else round(left_s),
        "starts_at": batch.starts_at.isoformat(),
        "ended_at": batch.ended_at.isoformat() if batch.ended_at else None,
        "forecast": batch.forecast,
    }


def _line(progress: Any) -> str:
    counts = ", ".join(f"{progress.jobs[state]:,} {state}" for state in SHOWN if progress.jobs.get(state))
    return (
        f"{progress.batch.name} {progress.batch.state}: {progress.ended:,} of {progress.total:,} jobs ended"
        f"{f' ({counts})' if counts else ''}, {_cents(progress.settled_nanodollars)}"
    )


def _lines(progress: Any) -> list[str]:
    batch = progress.batch
    total, ended = progress.total, progress.ended
    filled = BAR_WIDTH * ended // total if total else 0
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    lines = [
        f"{batch.name}  {batch.state}{f': {batch.reason}' if batch.reason else ''}",
        f"{bar}  {ended:,} of {total:,} jobs{'' if batch.is_loaded else ', its input is still read'}",
        "  ".join(f"{state} {progress.jobs[state]:,}" for state in JobState if progress.jobs.get(state))
        + (f"  ({progress.at_provider:,} wait for the provider's files)" if progress.at_provider else ""),
    ]
    if progress.refused:
        lines.append(f"refused {progress.refused:,} items of the input; `penstock batch export --errors` names them")
    cap = f" of {dollars(batch.max_nanodollars)}" if batch.max_nanodollars is not None else ""
    held = f", {_cents(progress.held_nanodollars)} held" if progress.held_nanodollars else ""
    lines.append(f"cost {_cents(progress.settled_nanodollars)}{cap}{held}")
    left_s = progress.left_s
    if _goes_on(progress) and batch.starts_at > progress.now:
        lines.append(f"begins {batch.starts_at.astimezone():%Y-%m-%d %H:%M}")
    elif _goes_on(progress) and left_s is not None:
        lines.append(f"{progress.rate:,.1f} jobs a second, {_duration(left_s)} left")
    if batch.forecast:
        lines += _beside_the_truth(progress, batch.forecast)
    return lines


def _beside_the_truth(progress: Any, forecast: dict[str, Any]) -> list[str]:
    batch = progress.batch
    spent_s = ((batch.ended_at or progress.now) - batch.starts_at).total_seconds()
    tokens = [sum(pair) for pair in zip(forecast["prompt_tokens"], forecast["answer_tokens"], strict=True)]
    low, expected, high = forecast["nanodollars"]
    cost = f"{_cents(expected)} ({_cents(low)} to {_cents(high)})"
    spent, took = _cents(progress.settled_nanodollars), _duration(max(0.0, spent_s))
    return [
        f"forecast: {forecast['jobs']:,} jobs, {tokens[1]:,} tokens, {cost}, {_duration(forecast['seconds'])}",
        f" in truth: {progress.ended:,} jobs, {progress.settled_tokens:,} tokens, {spent}, {took}",
    ]


def _between(interval: Any) -> str:
    return f"{interval.low:,} to {interval.high:,}"


def _cents(nanodollars: int) -> str:
    return rounded("nanodollars", nanodollars)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
