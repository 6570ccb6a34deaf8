"""`penstock usage` and `penstock budgets`: amounts are exact, and what is wrong is one line with a cure."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from click import Choice
from sqlalchemy import Engine, text

from penstock.cli.amounts import amount, forecast, read_amount
from penstock.cli.usage import STANDING, show_breakdown, show_overview, show_standing, usage
from penstock.client import Client
from penstock.money.budgets import Budget, OnExhausted, Period, Unit
from penstock.money.usage import By, PeriodUsage, State, UsageLine
from penstock.schemas import Usage
from penstock.settings import Settings
from tests import test_cli
from tests.money.accounts import furnish, run
from tests.test_cli import ROOT, Penstock, Ran

DOLLAR = 10**9
COMPLETE = ["reconcile", str(ROOT / "README.md"), "--complete", "--account", "simulater"]
ACME = ["budgets", "set", "--tenant", "acme", "--period", "month"]

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client


def line(tenant: str, period: str, unit: str, used: int, **others: Any) -> PeriodUsage:
    """Make a line of the 11th of March, or of that month."""
    given: dict[str, Any] = {
        "tenant": tenant,
        "project": "",
        "period": Period(period),
        "unit": Unit(unit),
        "starts": datetime(2026, 3, 11 if period == "day" else 1, tzinfo=UTC),
        "ends": datetime(2026, 3, 12, tzinfo=UTC) if period == "day" else datetime(2026, 4, 1, tzinfo=UTC),
        "used": used,
        "held": 0,
        "soft_limit": None,
        "hard_limit": None,
        "state": State.OK,
        "forecast": used * 2,
    }
    return PeriodUsage(**given | others)


OF_ACME = [
    line("acme", "day", "nanodollars", 1_234_000, held=8_500_000),
    line("acme", "day", "tokens", 1_250, held=9_000),
    line(
        "acme",
        "month",
        "nanodollars",
        401_250_000_000,
        held=8_500_000,
        soft_limit=400 * DOLLAR,
        hard_limit=500 * DOLLAR,
        state=State.SOFT,
        forecast=1_184_642_857_143,
    ),
    line("acme", "month", "tokens", 98_765_432, held=9_000),
]
OF_GLOBEX = [
    line("globex", "day", "nanodollars", 0),
    line("globex", "day", "tokens", 0, hard_limit=0, state=State.HARD),
    line("globex", "month", "nanodollars", 70_000_000),
    line("globex", "month", "tokens", 7_000),
]
BY_MODEL = [
    UsageLine("sim-small", 1_200, 2, 1, Usage(input_tokens=100_000, output_tokens=2_000), 1_800, 123_456_000),
    UsageLine("sim-large", 1, 0, 0, Usage(input_tokens=10, cached_input_tokens=4), 0, 1),
]

STANDING_TABLE = """\
acme, this day and month (UTC)
┏━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━┓
┃ project        ┃ period ┃ unit    ┃ state ┃       used ┃    held ┃    soft ┃    hard ┃    forecast ┃
┡━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━┩
│ (whole tenant) │ day    │ dollars │ ok    │  $0.001234 │ $0.0085 │       - │       - │   $0.002468 │
│ (whole tenant) │ day    │ tokens  │ ok    │      1,250 │   9,000 │       - │       - │       2,500 │
│ (whole tenant) │ month  │ dollars │ soft  │    $401.25 │ $0.0085 │ $400.00 │ $500.00 │   $1,184.65 │
│ (whole tenant) │ month  │ tokens  │ ok    │ 98,765,432 │   9,000 │       - │       - │ 197,530,864 │
└────────────────┴────────┴─────────┴───────┴────────────┴─────────┴─────────┴─────────┴─────────────┘
"""
OVERVIEW_TABLE = """\
all tenants, this month (UTC)
┏━━━━━━━━┳━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━━┓
┃ tenant ┃ state ┃    used ┃    held ┃    soft ┃    hard ┃  forecast ┃     tokens ┃ tokens held ┃
┡━━━━━━━━╇━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━━┩
│ acme   │ soft  │ $401.25 │ $0.0085 │ $400.00 │ $500.00 │ $1,184.65 │ 98,765,432 │       9,000 │
│ globex │ hard  │   $0.07 │   $0.00 │       - │       - │     $0.14 │      7,000 │           0 │
├────────┼───────┼─────────┼─────────┼─────────┼─────────┼───────────┼────────────┼─────────────┤
│ total  │       │ $401.32 │ $0.0085 │         │         │ $1,184.79 │ 98,772,432 │       9,000 │
└────────┴───────┴─────────┴─────────┴─────────┴─────────┴───────────┴────────────┴─────────────┘
"""
BREAKDOWN_TABLE = """\
acme by model, this month (UTC)
┏━━━━━━━━━━━┳━━━━━━━┳━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━┓
┃ model     ┃ calls ┃ open ┃ unknown ┃   input ┃ cached ┃ cache write ┃ output ┃ reasoning ┃ bound ┃         cost ┃
┡━━━━━━━━━━━╇━━━━━━━╇━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━┩
│ sim-small │ 1,200 │    2 │       1 │ 100,000 │      0 │           0 │  2,000 │         0 │ 1,800 │    $0.123456 │
│ sim-large │     1 │    0 │       0 │      10 │      4 │           0 │      0 │         0 │     0 │ $0.000000001 │
├───────────┼───────┼──────┼─────────┼─────────┼────────┼─────────────┼────────┼───────────┼───────┼──────────────┤
│ total     │ 1,201 │    2 │       1 │ 100,010 │      4 │           0 │  2,000 │         0 │ 1,800 │ $0.123456001 │
└───────────┴───────┴──────┴─────────┴─────────┴────────┴─────────────┴────────┴───────────┴───────┴──────────────┘
"""
STANDING_JSON = """\
{"tenant": "acme", "project": "", "period": "month", "unit": "nanodollars", "starts": "2026-03-01T00:00:00+00:00", \
"ends": "2026-04-01T00:00:00+00:00", "state": "soft", "used": 401250000000, "held": 8500000, \
"soft_limit": 400000000000, "hard_limit": 500000000000, "forecast": 1184642857143}
"""
OVERVIEW_JSON = """\
{"tenant": "globex", "starts": "2026-03-01T00:00:00+00:00", "ends": "2026-04-01T00:00:00+00:00", "state": "hard", \
"used_nanodollars": 70000000, "held_nanodollars": 0, "soft_limit_nanodollars": null, "hard_limit_nanodollars": null, \
"forecast_nanodollars": 140000000, "used_tokens": 7000, "held_tokens": 0, "soft_limit_tokens": null, \
"hard_limit_tokens": null, "forecast_tokens": 14000}
"""
BREAKDOWN_JSON = """\
{"model": "sim-large", "calls": 1, "open_calls": 0, "unknown_calls": 0, "input_tokens": 10, "cached_input_tokens": 4, \
"cache_write_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0, "bound_tokens": 0, "nanodollars": 1}
"""
STANDING_CSV = """\
tenant,project,period,unit,starts,ends,state,used,held,soft_limit,hard_limit,forecast
acme,,day,nanodollars,2026-03-11T00:00:00+00:00,2026-03-12T00:00:00+00:00,ok,1234000,8500000,,,2468000
"""
OVERVIEW_CSV = """\
tenant,starts,ends,state,used_nanodollars,held_nanodollars,soft_limit_nanodollars,hard_limit_nanodollars,\
forecast_nanodollars,used_tokens,held_tokens,soft_limit_tokens,hard_limit_tokens,forecast_tokens
globex,2026-03-01T00:00:00+00:00,2026-04-01T00:00:00+00:00,hard,70000000,0,,,140000000,7000,0,,,14000
"""
BREAKDOWN_CSV = """\
model,calls,open_calls,unknown_calls,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,\
reasoning_tokens,bound_tokens,nanodollars
sim-small,1200,2,1,100000,0,0,2000,0,1800,123456000
"""


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """Give what was printed, without the blanks that fill a table's title up."""
    return "".join(f"{row.rstrip()}\n" for row in capsys.readouterr().out.splitlines())


def test_tables_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show_standing(OF_ACME, "acme, this day and month (UTC)", as_json=False, as_csv=False)
    assert printed(capsys) == STANDING_TABLE
    show_overview(OF_ACME + OF_GLOBEX, as_json=False, as_csv=False)
    assert printed(capsys) == OVERVIEW_TABLE
    show_breakdown(BY_MODEL, "model", "acme by model, this month (UTC)", as_json=False, as_csv=False)
    assert printed(capsys) == BREAKDOWN_TABLE


def test_a_project_counts_for_the_state_and_not_for_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    of_project = [replace(each, project="demo", used=1, state=State.SOFT) for each in OF_GLOBEX]
    whole = [replace(each, state=State.OK) for each in OF_GLOBEX]
    show_overview(whole + of_project, as_json=True, as_csv=False)
    assert printed(capsys) == OVERVIEW_JSON.replace('"hard"', '"soft"')


@pytest.mark.parametrize("table", [STANDING_TABLE, OVERVIEW_TABLE, BREAKDOWN_TABLE])
def test_the_page_shows_what_is_printed(table: str) -> None:
    assert f"\n{table}```\n" in (ROOT / "docs" / "budgets.md").read_text()


def test_json_has_whole_nanodollars(capsys: pytest.CaptureFixture[str]) -> None:
    show_standing(OF_ACME[2:3], "", as_json=True, as_csv=False)
    assert printed(capsys) == STANDING_JSON
    show_overview(OF_GLOBEX, as_json=True, as_csv=False)
    assert printed(capsys) == OVERVIEW_JSON
    show_breakdown(BY_MODEL[1:], "model", "", as_json=True, as_csv=False)
    assert printed(capsys) == BREAKDOWN_JSON


def test_csv_has_a_line_of_names_and_whole_nanodollars(capsys: pytest.CaptureFixture[str]) -> None:
    show_standing(OF_ACME[:1], "", as_json=False, as_csv=True)
    assert printed(capsys) == STANDING_CSV
    show_overview(OF_GLOBEX, as_json=False, as_csv=True)
    assert printed(capsys) == OVERVIEW_CSV
    show_breakdown(BY_MODEL[:1], "model", "", as_json=False, as_csv=True)
    assert printed(capsys) == BREAKDOWN_CSV


def test_a_forecast_that_there_is_not_yet_is_a_dash_and_makes_no_sum(capsys: pytest.CaptureFixture[str]) -> None:
    early = [line("initech", "month", unit, 0, forecast=None) for unit in ("nanodollars", "tokens")]
    show_overview(OF_GLOBEX + early, as_json=False, as_csv=False)
    rows = {row.split()[1]: row.split()[11:14] for row in printed(capsys).splitlines() if row.startswith("│")}
    assert (rows["globex"][2], rows["initech"][2]) == ("$0.14", "-")
    assert "$0.14" not in rows["total"]


@pytest.mark.parametrize(
    ("nanodollars", "written"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_234_000, "$0.001234"),
        (500_000_000, "$0.50"),
        (1_234_567 * DOLLAR + 100_000_000, "$1,234,567.10"),
        (2**63 - 1, "$9,223,372,036.854775807"),
        (-30_000_000, "-$0.03"),
    ],
)
def test_dollars_are_written_exactly(nanodollars: int, written: str) -> None:
    assert amount("nanodollars", nanodollars) == written
    if nanodollars >= 0:
        assert read_amount("nanodollars", written.replace(",", "").removeprefix("$")) == nanodollars


def test_a_forecast_is_rounded_upwards_to_what_can_be_meant() -> None:
    assert forecast("nanodollars", 999_999_001) == "$1.00"
    assert forecast("nanodollars", 1_000_000_001) == "$1.01"
    assert forecast("nanodollars", 1) == "$0.000001"
    assert forecast("nanodollars", None) == "-"
    assert forecast("tokens", 1_001) == "1,001"


def test_usage_of_a_tenant_comes_from_its_own_rows(penstock: Penstock, engine: Engine) -> None:
    furnish(engine, "acme")
    furnish(engine, "globex")
    lines = penstock("usage", "--tenant", "acme", "--json").lines
    assert [(each["tenant"], each["period"], each["unit"], each["used"], each["hard_limit"]) for each in lines] == [
        ("acme", "day", "nanodollars", 1_235_000, None),
        ("acme", "day", "tokens", 125, None),
        ("acme", "month", "nanodollars", 1_235_000, 500 * DOLLAR),
        ("acme", "month", "tokens", 125, None),
    ]
    ran = penstock("usage", "--tenant", "acme", "--csv")
    assert next(tuple(row) for row in csv.reader(io.StringIO(ran.out))) == STANDING
    assert len(ran.out.splitlines()) == 5
    out = penstock("usage", "--tenant", "acme").out
    assert out.startswith("acme, this day and month (UTC)")
    assert "$0.001235" in out
    assert "globex" not in out


def test_usage_of_all_has_a_line_a_tenant(penstock: Penstock, engine: Engine) -> None:
    for tenant in ("globex", "acme"):
        furnish(engine, tenant)
    lines = penstock("usage", "--json").lines
    assert [(each["tenant"], each["used_nanodollars"], each["used_tokens"]) for each in lines] == [
        ("acme", 1_235_000, 125),
        ("globex", 1_235_000, 125),
    ]
    table = penstock("usage").out
    for word in ("acme", "globex", "total", "$0.00247", "250"):
        assert word in table


def test_usage_by_day_tier_prompt_and_model(penstock: Penstock, engine: Engine) -> None:
    furnish(engine, "acme")
    furnish(engine, "globex")
    today = datetime.now(UTC).date()
    days = {str(today), str(today - timedelta(days=1))}
    for by, keys in (("tier", {"small"}), ("prompt", {"summarise_document"}), ("model", {"sim-small"}), ("day", days)):
        (one,) = penstock("usage", "--tenant", "acme", "--by", by, "--since", "1d", "--json").lines
        assert one[by] in keys
        assert (one["calls"], one["input_tokens"], one["nanodollars"]) == (1, 105, 1_235_000)
        (both,) = penstock("usage", "--by", by, "--since", "1d", "--json").lines
        assert (both["calls"], both["input_tokens"], both["nanodollars"]) == (2, 210, 2_470_000)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert penstock("usage", "--by", "day", "--since", soon, "--json") == Ran(0, "", "")
    assert "since" in penstock("usage", "--by", "day", "--since", soon).out


def test_what_nobody_spent_is_shown_too(penstock: Penstock) -> None:
    assert penstock("usage", "--json") == Ran(0, "", "")
    assert "total" in penstock("usage").out
    assert (
        penstock("usage", "--by", "tier", "--csv").out == BREAKDOWN_CSV.splitlines()[0].replace("model", "tier") + "\n"
    )


def test_a_tenant_that_is_known_and_has_spent_nothing_is_shown(penstock: Penstock, client: Client) -> None:
    client.set_budget(Budget("acme", Period.DAY, Unit.TOKENS, soft_limit=5))
    ran = penstock("usage", "--tenant", "acme", "--json")
    assert [each["used"] for each in ran.lines] == [0, 0, 0, 0]
    assert (ran.code, ran.err) == (0, "")


def test_the_command_knows_every_breakdown() -> None:
    (by,) = [option for option in usage.params if option.name == "by"]
    assert isinstance(by.type, Choice)
    assert list(by.type.choices) == list(By)


def test_a_database_user_that_cannot_be_a_tenant_is_told_so(
    penstock: Penstock, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, "CREATE ROLE outsider LOGIN")
    try:
        url = engine.url.set(drivername="postgresql", username="outsider").render_as_string(hide_password=False)
        monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
        ran = penstock("usage", "--tenant", "acme")
    finally:
        run(engine, "DROP ROLE outsider")
    assert ran.code == 2
    assert ran.error() == (
        'Postgres: permission denied to set role "penstock_tenant"; '
        "connect as the owner of the tables, see docs/isolation.md"
    )


@pytest.mark.parametrize(
    ("options", "budget", "says"),
    [
        (
            ["--dollars", "500", "--soft", "400"],
            {"unit": Unit.NANODOLLARS, "soft_limit": 400 * DOLLAR, "hard_limit": 500 * DOLLAR},
            "acme, a month: at most $500.00, then refuse, marked above $400.00",
        ),
        (
            ["--dollars", "0.000000003", "--soft-percent", "80"],
            {"unit": Unit.NANODOLLARS, "soft_limit": 2, "hard_limit": 3},
            "acme, a month: at most $0.000000003, then refuse, marked above $0.000000002",
        ),
        (
            ["--tokens", "1000000", "--on-exhausted", "degrade", "--project", "demo"],
            {"unit": Unit.TOKENS, "hard_limit": 10**6, "on_exhausted": OnExhausted.DEGRADE, "project": "demo"},
            "acme demo, a month: at most 1,000,000 tokens, then degrade",
        ),
        (
            ["--dollars", "0"],
            {"unit": Unit.NANODOLLARS, "hard_limit": 0},
            "acme, a month: at most $0.00, then refuse",
        ),
        (
            ["--unlimited", "--soft", "0.1"],
            {"unit": Unit.NANODOLLARS, "soft_limit": DOLLAR // 10},
            "acme, a month: any amount, marked above $0.10",
        ),
        (
            ["--unlimited", "--unit", "tokens", "--soft", "7"],
            {"unit": Unit.TOKENS, "soft_limit": 7},
            "acme, a month: any amount, marked above 7 tokens",
        ),
    ],
)
def test_a_budget_that_was_set_is_there(
    penstock: Penstock, client: Client, options: list[str], budget: dict[str, Any], says: str
) -> None:
    assert penstock(*ACME, *options) == Ran(0, says + "\n", "")
    assert client.budgets() == [Budget(**{"tenant": "acme", "period": Period.MONTH} | budget)]


def test_what_is_not_given_of_a_budget_stays(penstock: Penstock) -> None:
    penstock(*ACME, "--dollars", "500", "--soft", "400", "--on-exhausted", "degrade")
    changed = penstock(*ACME, "--dollars", "450")
    assert changed.out == "acme, a month: at most $450.00, then degrade, marked above $400.00\n"
    refused = penstock(*ACME, "--dollars", "300")
    assert (refused.code, refused.error()) == (
        2,
        "soft_limit: $400.00 is above the hard limit of $300.00; lower the one, raise the other, or have no soft limit",
    )
    assert penstock("budgets", "list", "--json").lines[0]["hard_limit"] == 450 * DOLLAR
    fewer = penstock(*ACME, "--dollars", "300", "--no-soft", "--on-exhausted", "refuse")
    assert fewer.out == "acme, a month: at most $300.00, then refuse\n"


def test_a_budget_is_changed_without_its_hard_limit(penstock: Penstock) -> None:
    penstock(*ACME, "--dollars", "500", "--soft", "400")
    penstock(*ACME, "--tokens", "9")
    soft = penstock(*ACME, "--soft", "300")
    assert soft.out == "acme, a month: at most $500.00, then refuse, marked above $300.00\n"
    degrade = penstock(*ACME, "--unit", "tokens", "--on-exhausted", "degrade")
    assert degrade.out == "acme, a month: at most 9 tokens, then degrade\n"
    assert penstock(*ACME, "--no-soft").out == "acme, a month: at most $500.00, then refuse\n"
    assert penstock(*ACME, "--unlimited").out == "acme, a month: any amount\n"


def test_a_budget_that_is_not_there_cannot_be_changed(penstock: Penstock, client: Client) -> None:
    penstock(*ACME, "--dollars", "500")
    ran = penstock(*ACME, "--unit", "tokens", "--soft", "3")
    assert (ran.code, ran.error()) == (
        2,
        "hard_limit: acme has no budget in tokens a month to be changed; give its hard limit too",
    )
    assert penstock(*ACME, "--soft", "3", "--project", "demo").error().startswith("hard_limit: acme demo has no budget")
    assert [(each.unit, each.soft_limit) for each in client.budgets()] == [(Unit.NANODOLLARS, None)]


@pytest.mark.parametrize(
    "command",
    [
        ["usage", "--tenant", "acne"],
        ["usage", "--tenant", "acne", "--json"],
        ["usage", "--tenant", "acne", "--by", "day", "--csv"],
        ["budgets", "list", "--tenant", "acne"],
        ["budgets", "list", "--tenant", "acne", "--json"],
    ],
)
def test_a_tenant_of_whom_nothing_is_known_is_told(penstock: Penstock, engine: Engine, command: list[str]) -> None:
    furnish(engine, "acme")
    ran = penstock(*command)
    assert (ran.code, ran.error()) == (
        2,
        "tenant: 'acne' has no jobs and no budget, and has spent nothing; correct the name",
    )


@pytest.mark.parametrize("left", ["jobs", "spending", "budgets"])
def test_a_tenant_with_one_trace_is_known(penstock: Penstock, engine: Engine, left: str) -> None:
    furnish(engine, "acme")
    for table in {"jobs", "spending", "budgets"} - {left}:
        run(engine, f"TRUNCATE {table} CASCADE")
    assert penstock("usage", "--tenant", "acme").err == ""
    assert penstock("budgets", "list", "--tenant", "acme").err == (
        "" if left == "budgets" else "acme has none: any amount may be spent\n"
    )


def test_a_tenant_of_the_configuration_is_known(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    copytree(settings.config, tmp_path / "config")
    (tmp_path / "config" / "tenants.toml").write_text("[tenants.acme]\nweight = 2\n")
    monkeypatch.setenv("PENSTOCK_CONFIG", str(tmp_path / "config"))
    assert penstock("usage", "--tenant", "acme").err == ""
    assert penstock("usage", "--tenant", "acne").code == 2


def test_where_there_is_no_budget_that_is_told(penstock: Penstock) -> None:
    assert penstock("budgets", "list").err == "nobody has one: any amount may be spent\n"


def test_budgets_are_changed_listed_and_removed(penstock: Penstock, client: Client) -> None:
    client.set_budget(Budget("globex", Period.DAY, Unit.TOKENS, hard_limit=5))
    penstock(*ACME, "--dollars", "500")
    penstock(*ACME, "--dollars", "300", "--on-exhausted", "degrade")
    penstock(*ACME, "--tokens", "10", "--project", "demo")
    assert penstock("budgets", "list", "--json").lines == [
        {
            "tenant": "acme",
            "period": "month",
            "unit": "nanodollars",
            "project": "",
            "soft_limit": None,
            "hard_limit": 300 * DOLLAR,
            "on_exhausted": "degrade",
        },
        {
            "tenant": "acme",
            "period": "month",
            "unit": "tokens",
            "project": "demo",
            "soft_limit": None,
            "hard_limit": 10,
            "on_exhausted": "refuse",
        },
        {
            "tenant": "globex",
            "period": "day",
            "unit": "tokens",
            "project": "",
            "soft_limit": None,
            "hard_limit": 5,
            "on_exhausted": "refuse",
        },
    ]
    rows = penstock("budgets", "list", "--tenant", "acme").out.splitlines()[4:6]
    assert [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows] == [
        ["acme", "(whole tenant)", "month", "dollars", "degrade", "-", "$300.00"],
        ["acme", "demo", "month", "tokens", "refuse", "-", "10"],
    ]
    remove = ["budgets", "remove", "--tenant", "acme", "--period", "month", "--unit", "dollars"]
    assert penstock(*remove) == Ran(0, "acme, in dollars a month: removed\n", "")
    again = penstock(*remove)
    assert again.code == 1
    assert again.error() == (
        "acme has no budget in dollars a month; `penstock budgets list --tenant acme` shows what it has"
    )
    assert [(budget.tenant, budget.project) for budget in client.budgets()] == [("acme", "demo"), ("globex", "")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*ACME, "--dollars", "-5"], "'-5' is no amount in dollars; write it like 500 or 0.25"),
        ([*ACME, "--dollars", "nan"], "'nan' is no amount in dollars"),
        ([*ACME, "--dollars", "Infinity"], "'Infinity' is no amount in dollars"),
        ([*ACME, "--dollars", "1e3"], "'1e3' is no amount in dollars"),
        ([*ACME, "--dollars", "1_000"], "'1_000' is no amount in dollars"),
        ([*ACME, "--dollars", "1,000"], "'1,000' is no amount in dollars"),
        ([*ACME, "--dollars", ""], "'' is no amount in dollars"),
        ([*ACME, "--dollars", "\N{FULLWIDTH DIGIT FIVE}"], "is no amount in dollars"),
        ([*ACME, "--dollars", "5\n"], "is no amount in dollars"),
        ([*ACME, "--dollars", "0.1234567891"], "with nine decimals at most"),
        ([*ACME, "--dollars", "99999999999"], "'99999999999' is no amount in dollars"),
        (
            [*ACME, "--dollars", "9999999999"],
            "hard_limit: $9,999,999,999.00 cannot be kept; use an amount from $0.00 to $9,223,372,036.854775807",
        ),
        ([*ACME, "--tokens", "-1"], "'-1' is no number of tokens; write it like 1000000"),
        ([*ACME, "--tokens", "1.5"], "'1.5' is no number of tokens"),
        ([*ACME, "--tokens", "9999999999999999999"], "hard_limit: 9,999,999,999,999,999,999 tokens cannot be kept"),
        ([*ACME, "--dollars", "3", "--soft", "4"], "--soft: $4.00 is above the hard limit of $3.00; give less"),
        ([*ACME, "--dollars", "3", "--soft", "-1"], "--soft: '-1' is no amount in dollars"),
        ([*ACME, "--tokens", "3", "--soft", "0.5"], "--soft: '0.5' is no number of tokens"),
        ([*ACME, "--dollars", "3", "--soft-percent", "101"], "101 is not in the range 0<=x<=100"),
        ([*ACME, "--dollars", "3", "--soft-percent", "50", "--soft", "1"], "give one of --soft, --soft-percent and"),
        ([*ACME, "--dollars", "3", "--soft-percent", "50", "--no-soft"], "give one of --soft, --soft-percent and"),
        ([*ACME, "--unlimited", "--soft-percent", "50"], "none is given; use --soft"),
        ([*ACME, "--soft-percent", "50"], "none is given; use --soft"),
        ([*ACME], "say what it is to be: --dollars, --tokens, --unlimited, --soft or --on-exhausted"),
        (
            [*ACME, "--unit", "tokens"],
            "say what it is to be: --dollars, --tokens, --unlimited, --soft or --on-exhausted",
        ),
        ([*ACME, "--soft", "1"], "hard_limit: acme has no budget in dollars a month to be changed"),
        ([*ACME, "--on-exhausted", "degrade"], "hard_limit: acme has no budget in dollars a month to be changed"),
        ([*ACME, "--dollars", "1", "--tokens", "1"], "give one of --dollars, --tokens and --unlimited"),
        ([*ACME, "--dollars", "1", "--unlimited"], "give one of --dollars, --tokens and --unlimited"),
        ([*ACME, "--dollars", "1", "--unit", "tokens"], "--dollars and --tokens say the unit themselves"),
        ([*ACME, "--dollars", "1", "--on-exhausted", "panic"], "'panic' is not one of 'refuse', 'degrade'"),
        ([*ACME, "--dollars", "1", "--project", "Demo"], "project: 'Demo' is no name; use lower-case letters"),
        (["budgets", "set", "--tenant", "ACME", "--period", "day", "--dollars", "1"], "tenant: 'ACME' is no name"),
        (["budgets", "set", "--tenant", "", "--period", "day", "--dollars", "1"], "tenant: '' is no name"),
        (
            ["budgets", "set", "--tenant", "acme", "--period", "week", "--dollars", "1"],
            "'week' is not one of 'day', 'mon",
        ),
        (["budgets", "set", "--tenant", "acme", "--dollars", "1"], "Missing option '--period'"),
        (["budgets", "remove", "--tenant", "acme", "--period", "day"], "Missing option '--unit'"),
        (["budgets", "remove", "--tenant", "A", "--period", "day", "--unit", "tokens"], "tenant: 'A' is no name"),
        (["budgets", "list", "--tenant", "A"], "tenant: 'A' is no name"),
        (["usage", "--tenant", "acme'; RESET ROLE; --"], "is no name; use lower-case letters"),
        (["usage", "--by", "hour"], "'hour' is not one of 'day', 'tier', 'prompt', 'model'"),
        (["usage", "--since", "2h"], "--since goes with --by"),
        (["usage", "--by", "day", "--since", "yesterday"], "'yesterday' is neither like 30m, 2h, 3d nor an ISO time"),
        (["usage", "--by", "day", "--since", ""], "--since: '' is neither like 30m"),
        (["jobs", "list", "--since", ""], "--since: '' is neither like 30m"),
        (["purge", "--tenant", "acme", "--yes", "--before", ""], "--before: '' is neither like 30m"),
        ([*COMPLETE[:2], "--since", ""], "--account, --since and --until say what an export is --complete for"),
        ([*COMPLETE, "--since", "1d"], "--complete needs --account, --since and --until"),
        (["usage", "--since", ""], "--since goes with --by"),
        ([*COMPLETE, "--since", "1d", "--until", "later"], "--until: 'later' is neither like 30m"),
        ([*COMPLETE, "--since", "", "--until", "1d"], "--since: '' is neither like 30m"),
        (
            [*COMPLETE, "--since", "2026-01-02", "--until", "2026-01-01T00:00Z"],
            "since: 2026-01-02T00:00:00+00:00 is not before",
        ),
        ([*COMPLETE, "--since", "1d", "--until", "2d"], "give the earlier time first"),
        ([*COMPLETE, "--since", "1d", "--until", "2999-01-01"], "until: 2999-01-01T00:00:00+00:00 is yet to come"),
        ([*COMPLETE, "--since", "2d", "--until", "1d"], "account: no call was ever made of 'simulater'"),
        (["usage", "--json", "--csv"], "choose --json or --csv, not both"),
    ],
)
def test_wrong_use_ends_with_2_and_one_line_and_changes_nothing(
    penstock: Penstock, engine: Engine, arguments: list[str], says: str
) -> None:
    ran = penstock(*arguments)
    assert ran.code == 2
    assert says in ran.error()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM budgets")) == 0


def test_limits_of_the_largest_amount_are_kept(penstock: Penstock, client: Client) -> None:
    penstock(*ACME, "--dollars", "9223372036.854775807")
    penstock(*ACME, "--tokens", str(2**63 - 1))
    assert [budget.hard_limit for budget in client.budgets("acme")] == [2**63 - 1] * 2
