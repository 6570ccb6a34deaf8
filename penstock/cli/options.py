"""What several commands take: a client, `--json`, and the choice of jobs. It must not know any command."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import click

from penstock.errors import Reason
from penstock.schemas import JobState

MOST_ROWS = 100_000


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a client as its first argument."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        from penstock.client import Client

        with Client() as client:
            command(client, *args, **options)

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
limit = click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=50, show_default=True)


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
        since=None if since is None else parse_time(since, "--since"),
    )


def parse_time(text: str, option: str) -> datetime:
    """Read `30m`, `2h`, `3d` ago or an ISO 8601 time, in UTC if it does not say another offset."""
    units = {"m": "minutes", "h": "hours", "d": "days"}
    try:
        if text[-1:] in units and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is neither like 30m, 2h, 3d nor an ISO time", param_hint=option) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
