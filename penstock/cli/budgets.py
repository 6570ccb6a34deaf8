"""`penstock budgets`: list, set and remove them. It must not know what they hold back."""

from typing import Any

import click

from penstock.cli.amounts import amount, print_json, print_table, read_amount
from penstock.cli.options import as_json, with_client

UNITS = {"dollars": "nanodollars", "tokens": "tokens"}
MOST_PERCENT = 100

tenant = click.option("--tenant", required=True)
project = click.option("--project", default="", help="One project of the tenant; the whole tenant if not given.")
period = click.option("--period", required=True, type=click.Choice(["day", "month"]), help="In UTC.")


@click.group()
def budgets() -> None:
    """List budgets, set or remove one: what a tenant or a project may spend in a day or a month."""


@budgets.command("list")
@click.option("--tenant", help="All tenants if not given.")
@as_json
@with_client
def list_budgets(client: Any, *, tenant: str | None, as_json: bool) -> None:
    """List budgets. A dash is no limit; JSON gives whole nano-dollars."""
    found = [_record(budget) for budget in client.budgets(tenant)]
    if tenant is not None and not found:
        client.check_known(tenant)
    if as_json:
        print_json(found)
        return
    columns = ("tenant", "project", "period", "unit", "when exhausted", "soft", "hard")
    rows = [
        (
            line["tenant"],
            line["project"] or "(whole tenant)",
            line["period"],
            line["unit"].removeprefix("nano"),
            line["on_exhausted"],
            amount(line["unit"], line["soft_limit"]),
            amount(line["unit"], line["hard_limit"]),
        )
        for line in found
    ]
    print_table(columns, rows, title="budgets", words=5)
    if not found:
        click.echo(f"{'nobody has one' if tenant is None else f'{tenant} has none'}: any amount may be spent", err=True)


@budgets.command("set")
@tenant
@project
@period
@click.option("--dollars", help="The hard limit in dollars, like 500 or 0.25; 0 forbids everything.")
@click.option("--tokens", help="The hard limit in tokens; 0 forbids everything.")
@click.option("--unlimited", is_flag=True, help="No hard limit; for a soft one alone.")
@click.option(
    "--unit",
    type=click.Choice(list(UNITS)),
    help="Without --dollars and --tokens: of which budget.  [default: dollars]",
)
@click.option("--soft", help="Mark results above this, in the unit of the hard limit.")
@click.option("--soft-percent", type=click.IntRange(0, MOST_PERCENT), help="The same, of the hard limit.")
@click.option("--no-soft", is_flag=True, help="Mark nothing.")
@click.option(
    "--on-exhausted",
    type=click.Choice(["refuse", "degrade"]),
    help="What becomes of a job that the hard limit leaves no room for.  [default: refuse]",
)
@with_client
def set_budget(
    client: Any, *, tenant: str, project: str, period: str, no_soft: bool, on_exhausted: str | None, **limits: Any
) -> None:
    """Set a budget, or change it; it holds from the next call on.

    What is not given of a budget that is there stays as it is.

    \b
    penstock budgets set --tenant acme --period month --dollars 500 --soft-percent 80
    penstock budgets set --tenant acme --project demo --period day --tokens 1000000 --on-exhausted degrade
    penstock budgets set --tenant acme --period month --unlimited --soft 400
    penstock budgets set --tenant acme --period month --no-soft
    """  # noqa: D301 - click reads the backspace
    from penstock.money.budgets import Budget, OnExhausted, Period, Unit

    says_hard = [limits["dollars"] is not None, limits["tokens"] is not None, limits["unlimited"]]
    says_soft = [limits["soft"] is not None, limits["soft_percent"] is not None, no_soft]
    if says_hard.count(True) > 1:
        raise click.UsageError("give one of --dollars, --tokens and --unlimited")
    if says_soft.count(True) > 1:
        raise click.UsageError("give one of --soft, --soft-percent and --no-soft")
    given = {"hard_limit": any(says_hard), "soft_limit": any(says_soft), "on_exhausted": on_exhausted is not None}
    if not any(given.values()):
        raise click.UsageError("say what it is to be: --dollars, --tokens, --unlimited, --soft or --on-exhausted")
    unit, hard_limit = _hard_limit(limits["dollars"], limits["tokens"], limits["unit"])
    soft_limit = _soft_limit(limits["soft"], limits["soft_percent"], UNITS[unit], hard_limit)
    kept = [name for name, is_given in given.items() if not is_given]
    budget = Budget(
        tenant=tenant,
        project=project,
        period=Period(period),
        unit=Unit(UNITS[unit]),
        soft_limit=soft_limit,
        hard_limit=hard_limit,
        on_exhausted=OnExhausted(on_exhausted or "refuse"),
    )
    click.echo(_said(_record(client.set_budget(budget, kept=kept))))


@budgets.command("remove")
@tenant
@project
@period
@click.option("--unit", required=True, type=click.Choice(list(UNITS)))
@with_client
def remove_budget(client: Any, *, tenant: str, project: str, period: str, unit: str) -> None:
    """Remove a budget, soft and hard: any amount may be spent."""
    from penstock.money.budgets import Period, Unit

    whose = f"{tenant} {project}".strip()
    if not client.remove_budget(tenant, Period(period), Unit(UNITS[unit]), project):
        raise click.ClickException(
            f"{whose} has no budget in {unit} a {period}; `penstock budgets list --tenant {tenant}` shows what it has"
        )
    click.echo(f"{whose}, in {unit} a {period}: removed")


def _hard_limit(dollars: str | None, tokens: str | None, unit: str | None) -> tuple[str, int | None]:
    """Give the unit, and the limit in nano-dollars or tokens, if it is given."""
    if dollars is None and tokens is None:
        return unit or "dollars", None
    if unit is not None:
        raise click.UsageError("--unit is for neither: --dollars and --tokens say the unit themselves")
    if tokens is not None:
        return "tokens", _read("--tokens", "tokens", tokens)
    return "dollars", _read("--dollars", "nanodollars", dollars or "")


def _soft_limit(soft: str | None, percent: int | None, unit: str, hard_limit: int | None) -> int | None:
    """Give the soft limit in nano-dollars or tokens."""
    if percent is not None:
        if hard_limit is None:
            raise click.UsageError("--soft-percent is a share of the hard limit, and none is given; use --soft")
        return hard_limit * percent // MOST_PERCENT
    if soft is None:
        return None
    limit = _read("--soft", unit, soft)
    if hard_limit is not None and limit > hard_limit:
        raise click.BadParameter(
            f"{amount(unit, limit)} is above the hard limit of {amount(unit, hard_limit)}; give less, or raise that",
            param_hint="--soft",
        )
    return limit


def _read(option: str, unit: str, written: str) -> int:
    try:
        return read_amount(unit, written)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _record(budget: Any) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, str) else value for name, value in vars(budget).items()}


def _said(line: dict[str, Any]) -> str:
    whose = f"{line['tenant']} {line['project']}".strip()
    soft, hard = (amount(line["unit"], line[limit]) for limit in ("soft_limit", "hard_limit"))
    unit = "" if line["unit"] == "nanodollars" else " tokens"
    hard_part = "any amount" if line["hard_limit"] is None else f"at most {hard}{unit}, then {line['on_exhausted']}"
    soft_part = "" if line["soft_limit"] is None else f", marked above {soft}{unit}"
    return f"{whose}, a {line['period']}: {hard_part}{soft_part}"
