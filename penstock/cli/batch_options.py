"""What the commands of a batch are told: where its items come from, what they are asked, when, and for how much.

It must not know what a command does with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import wraps
from typing import Any

import click

from penstock.cli.amounts import read_amount
from penstock.cli.submission import parse_variable
from penstock.schemas import OnUnavailable

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


class Clock(click.ParamType[datetime | time]):
    """A time of day, or an ISO 8601 time; without an offset it is local."""

    name = "HH:MM|ISO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | time:
        """Read it; the day of a time of day is not known here."""
        try:
            if len(value) == len("HH:MM") and value[2] == ":":
                return time.fromisoformat(value)
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither like 22:00 nor an ISO 8601 time", param, ctx)


def first_after(given: datetime | time, after: datetime) -> datetime:
    """Give the moment that was written: a time of day is the first one after `after`, which is local."""
    if isinstance(given, datetime):
        return given
    same_day = datetime.combine(after.date(), given).astimezone()
    return same_day if same_day > after else datetime.combine(after.date() + DAY, given).astimezone()


@dataclass(frozen=True)
class Window:
    """When a batch begins, now at the earliest, and when it has to have ended."""

    start: datetime
    until: datetime | None

    @classmethod
    def of(cls, start: datetime | time | None, until: datetime | time | None, now: datetime) -> "Window":
        """Read both; 22:00 is this minute if it is 22:00 now, and 06:00 that of the morning after it has begun."""
        begins = now if start is None else max(now, first_after(start, now - MINUTE))
        return cls(begins, None if until is None else first_after(until, begins))


class Dollars(click.ParamType[int]):
    """An amount in dollars, kept in nano-dollars."""

    name = "DOLLARS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it without its ever being a float."""
        try:
            return read_amount("nanodollars", value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class Asked:
    """The options that say what all items are asked, and where they come from."""

    source: str | None
    query: str | None
    source_url: str | None
    columns: tuple[str, ...]
    variables: tuple[str, ...]
    fields: dict[str, Any]

    def request(self) -> Any:
        """Make the request of all items."""
        from penstock.client.batches import BatchRequest

        return BatchRequest(variables=dict(parse_variable(pair) for pair in self.variables), **self.fields)

    def mapping(self) -> Any:
        """Make the mapping of columns to fields."""
        from penstock.batches.reading import Columns

        return Columns.parse(self.columns)

    @contextmanager
    def items(self) -> Iterator[Any]:
        """Open the input: what a client takes as a source."""
        if (self.source is None) == (self.query is None):
            raise click.UsageError("name a source, or a --query with its --source-url")
        if self.query is None:
            yield self.source
            return
        if self.source_url is None:
            raise click.UsageError("--query needs --source-url, the database that it is for")
        from penstock.batches.reading import query

        engine = engine_of(self.source_url)
        try:
            yield query(engine, self.query, self.mapping())
        finally:
            engine.dispose()


def engine_of(url: str) -> Any:
    """Make an engine of the address of a Postgres."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from penstock.store.db import sync_engine

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername.partition("+")[0] not in {"postgres", "postgresql"}:
        raise click.UsageError("--source-url is no address of a Postgres; write it like postgresql://user@host/name")
    return sync_engine(parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))


def what_is_asked(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a batch's input and request, and give them as one argument."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        names = ("source", "query", "source_url", "columns", "variables")
        asked = {name: options.pop(name) for name in names}
        fields = {name: options.pop(name) for name in FIELDS}
        command(*args, asked=Asked(fields=fields, **asked), **options)

    for option in reversed(OPTIONS):
        run = option(run)
    return run


FIELDS = ("tenant", "project", "prompt", "prompt_version", "tier", "priority", "on_unavailable")
OPTIONS = (
    click.argument("source", required=False),
    click.option("--query", metavar="SQL", help="Items are the rows of a query, in place of a source."),
    click.option("--source-url", envvar="PENSTOCK_SOURCE_URL", help="The Postgres of the query."),
    click.option("--map", "columns", multiple=True, metavar="FIELD=COLUMN", help="As document=body, metadata.id=id."),
    click.option("--tenant", required=True),
    click.option("--project", default="", help="Whose budget pays, beside the tenant's."),
    click.option("--prompt", default="summarise_document", show_default=True),
    click.option("--prompt-version", help="The newest if not given."),
    click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the prompt."),
    click.option("--tier", help="The prompt's own if not given."),
    click.option("--priority", default=5, show_default=True, help="0 to 9, among the tenant's own; 9 goes first."),
    click.option(
        "--on-unavailable",
        default=OnUnavailable.WAIT.value,
        type=click.Choice([choice.value for choice in OnUnavailable]),
        help="What to do when no model can be asked.",
        show_default=True,
    ),
)
