"""How amounts are written and read, and how a table is printed. It must not know what they are amounts of."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import click

from penstock.schemas import dollars

NANO = 10**9
CENT = 10**7
MICRODOLLAR = 10**3
DOLLARS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")
TOKENS = re.compile(r"[0-9]{1,19}")
TABLE_WIDTH = 180
NONE = "-"


def read_amount(unit: str, written: str) -> int:
    """Read dollars into nano-dollars without their ever being a float, or tokens; raise ValueError with the cure."""
    if unit == "tokens":
        if not TOKENS.fullmatch(written):
            raise ValueError(f"{written!r} is no number of tokens; write it like 1000000")
        return int(written)
    if not DOLLARS.fullmatch(written):
        raise ValueError(f"{written!r} is no amount in dollars; write it like 500 or 0.25, with nine decimals at most")
    return int(Decimal(written) * NANO)


def amount(unit: str, value: int | None) -> str:
    """Write an amount in its unit; one that there is not is a dash."""
    if value is None:
        return NONE
    return dollars(value) if unit == "nanodollars" else f"{value:,}"


def forecast(unit: str, value: int | None) -> str:
    """Write an amount that is guessed at: dollars to the cent, upwards, or to six decimals below one dollar."""
    if value is None or unit != "nanodollars":
        return amount(unit, value)
    step = CENT if value >= NANO else MICRODOLLAR
    return dollars(-(-value // step) * step)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str, words: int) -> None:
    """Print a table whose first `words` columns are words, the others numbers; an empty row is a line across."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right")
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, markup=False).print(table)


def print_json(records: Iterable[Mapping[str, object]]) -> None:
    """Print a JSON object a line."""
    for record in records:
        click.echo(json.dumps(record))


def print_csv(columns: Sequence[str], records: Iterable[Mapping[str, object]]) -> None:
    """Print a line of names and a line a record; what there is not is empty."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
