"""`penstock usage`: what was spent, held and is left. It must not know how it is counted.

A tenant's usage is read as the tenant itself may read it; that of all tenants is the operator's.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import click

from penstock.cli.amounts import amount, forecast, print_csv, print_json, print_table
from penstock.cli.options import as_json, parse_time, with_client
from penstock.schemas import TOKEN_CLASSES, dollars

Records = list[dict[str, Any]]

UNITS = ("nanodollars", "tokens")
MEASURES = ("used", "held", "soft_limit", "hard_limit", "forecast")
STANDING = ("tenant", "project", "period", "unit", "starts", "ends", "state", *MEASURES)
OVERVIEW = (
    "tenant", "starts", "ends", "state", *(f"{measure}_{unit}" for unit in UNITS for measure in MEASURES),
)  # fmt: skip
COUNTS = ("calls", "open_calls", "unknown_calls", *TOKEN_CLASSES, "bound_tokens", "nanodollars")
COUNTED = ("calls", "open", "unknown", "input", "cached", "cache write", "output", "reasoning", "bound")
"""What a table calls them, but for the cost."""
WHOLE_TENANT = "(whole tenant)"


@click.command()
@click.option("--tenant", help="Whose; all tenants, a line each, if not given.")
@click.option("--by", type=click.Choice(["day", "tier", "prompt", "model"]), help="A line for each of these.")
@click.option("--since", metavar="2h|3d|ISO", help="With --by: from then on; from the first of the month if not given.")
@as_json
@click.option("--csv", "as_csv", is_flag=True, help="A line of names, then a line each.")
@with_client
def usage(client: Any, *, tenant: str | None, by: str | None, since: str | None, as_json: bool, as_csv: bool) -> None:
    """Show what was spent of the current day and month (UTC), what is held, the limits and a forecast.

    Held is the most that calls under way can cost. JSON and CSV give whole nano-dollars.

    \b
    penstock usage                                       every tenant
    penstock usage --tenant acme                         a tenant and its projects, day and month
    penstock usage --tenant acme --by model --since 7d   on what it was spent
    """  # noqa: D301 - click reads the backspace
    if as_json and as_csv:
        raise click.UsageError("choose --json or --csv, not both")
    if since is not None and not by:
        raise click.UsageError("--since goes with --by: the current day and month begin by themselves")
    if tenant is not None:
        client.check_known(tenant)
    whose = "all tenants" if tenant is None else tenant
    if by:
        began = None if since is None else parse_time(since, "--since")
        lines = client.usage_of_all(by, began) if tenant is None else client.usage(tenant, by, began)
        show_breakdown(lines, by, f"{whose} by {by}, {_from(began)}", as_json=as_json, as_csv=as_csv)
    elif tenant is None:
        show_overview(client.usage_of_all(), as_json=as_json, as_csv=as_csv)
    else:
        show_standing(client.usage(tenant), f"{whose}, this day and month (UTC)", as_json=as_json, as_csv=as_csv)


def _from(began: datetime | None) -> str:
    return f"since {began.isoformat(timespec='seconds')}" if began else "this month (UTC)"


def show_standing(lines: Iterable[Any], title: str, *, as_json: bool, as_csv: bool) -> None:
    """Print a line for each project, period and unit."""
    records = [_record(line) for line in lines]
    if as_json or as_csv:
        _print(STANDING, records, as_json=as_json)
        return
    columns = ("project", "period", "unit", "state", "used", "held", "soft", "hard", "forecast")
    rows = [
        (
            line["project"] or WHOLE_TENANT,
            line["period"],
            line["unit"].removeprefix("nano"),
            line["state"],
            *(_written(measure, line["unit"], line[measure]) for measure in MEASURES),
        )
        for line in records
    ]
    print_table(columns, rows, title=title, words=4)


def show_overview(lines: Iterable[Any], *, as_json: bool, as_csv: bool) -> None:
    """Print a line for each tenant, and on a table their total, of the current month.

    The state is the gravest that any budget of the tenant is in, of a day or a project too.
    """
    records = [_summary(list(group)) for _, group in groupby(lines, key=lambda line: line.tenant)]
    if as_json or as_csv:
        _print(OVERVIEW, records, as_json=as_json)
        return
    columns = ("tenant", "state", "used", "held", "soft", "hard", "forecast", "tokens", "tokens held")
    shown = (*((measure, "nanodollars") for measure in MEASURES), ("used", "tokens"), ("held", "tokens"))
    rows = [
        (
            line["tenant"],
            line["state"],
            *(_written(measure, unit, line[f"{measure}_{unit}"]) for measure, unit in shown),
        )
        for line in records
    ]
    sums = [
        "" if "limit" in measure else _written(measure, unit, _sum(line[f"{measure}_{unit}"] for line in records))
        for measure, unit in shown
    ]
    print_table(columns, [*rows, (), ("total", "", *sums)], title="all tenants, this month (UTC)", words=2)


def show_breakdown(lines: Sequence[Any], by: str, title: str, *, as_json: bool, as_csv: bool) -> None:
    """Print a line for each day, tier, prompt or model, and on a table their total."""
    records = [
        {by: line.key} | {name: getattr(line, name, None) for name in COUNTS} | line.usage.model_dump()
        for line in lines
    ]
    if as_json or as_csv:
        _print((by, *COUNTS), records, as_json=as_json)
        return
    counts = COUNTS[:-1]
    columns = (by, *COUNTED, "cost")
    total = {by: "total"} | {name: sum(line[name] for line in records) for name in COUNTS}
    rows = [
        (line[by], *(f"{line[name]:,}" for name in counts), dollars(line["nanodollars"])) for line in (*records, total)
    ]
    print_table(columns, [*rows[:-1], (), rows[-1]], title=title, words=1)


def _print(columns: Sequence[str], records: Records, *, as_json: bool) -> None:
    if as_json:
        print_json(records)
    else:
        print_csv(columns, records)


def _record(line: Any) -> dict[str, Any]:
    times = {name: getattr(line, name).isoformat() for name in ("starts", "ends")}
    return {name: str(value) if isinstance(value := getattr(line, name), str) else value for name in STANDING} | times


def _summary(lines: list[Any]) -> dict[str, Any]:
    """Put the lines of one tenant into one."""
    from penstock.money.usage import worst

    month = {line.unit: _record(line) for line in lines if not line.project and line.period == "month"}
    record = {name: month["nanodollars"][name] for name in ("tenant", "starts", "ends")}
    record["state"] = str(worst(line.state for line in lines))
    return record | {f"{measure}_{unit}": month[unit][measure] for unit in UNITS for measure in MEASURES}


def _sum(values: Iterable[int | None]) -> int | None:
    """Add; the sum with one that is not known is not known."""
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)


def _written(measure: str, unit: str, value: int | None) -> str:
    return forecast(unit, value) if measure == "forecast" else amount(unit, value)
