"""What a tenant is told of its money: exact sums, in the right period, that agree with what budgets are held to."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from penstock.money import ledger, usage
from penstock.money.budgets import CALENDAR, Budget, Period, Unit, set_budget
from penstock.money.ledger import CallOutcome, Intent, Settlement
from penstock.money.prices import UpperBound
from penstock.money.usage import By, PeriodUsage, State, UsageLine
from penstock.schemas import Usage
from tests.jobs import rows
from tests.money.accounts import run

NOON = datetime(2026, 3, 11, 12, tzinfo=UTC)
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
CALL = """
    INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, state, upper_bound_nanodollars, nanodollars, upper_bound_tokens, input_tokens,
        cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, intended_at)
    VALUES (:call_id, :job_id, 1, :tenant, :prompt_id, '1.0.0', :tier, :deployment, 'simulator', 'm', '2026-01-01',
        :state, 1000, :nanodollars, 500, :input, :cached, :written, :output, :reasoning, :at)
"""
CORRECTION = """
    INSERT INTO ledger_corrections (call_id, number, source, nanodollars, input_tokens, output_tokens)
    VALUES (:call_id, :number, :source, :nanodollars, :input, :output)
"""
SPENDING = """
    INSERT INTO spending VALUES (:tenant, :project, :period, :starts, :nanodollars, :held_nanodollars, :tokens, :held)
"""
MIXED = Usage(input_tokens=10, cached_input_tokens=20, cache_write_tokens=30, output_tokens=40, reasoning_tokens=50)


def spend(engine: Engine, tenant: str, period: str, starts: str, nanodollars: int = 0, **others: Any) -> None:
    """Book what a tenant has spent in a period."""
    given = {"project": "", "held_nanodollars": 0, "tokens": 0, "held": 0} | others
    run(engine, SPENDING, tenant=tenant, period=period, starts=starts, nanodollars=nanodollars, **given)


def call(engine: Engine, at: datetime = NOON, **changes: Any) -> UUID:
    """Write down a call that cost 400 nano-dollars."""
    given = {
        "call_id": uuid4(),
        "job_id": uuid4(),
        "tenant": "acme",
        "prompt_id": "summarise_document",
        "tier": "small",
        "deployment": "sim-small",
        "state": "settled",
        "nanodollars": 400,
        "input": 0,
        "cached": 0,
        "written": 0,
        "output": 0,
        "reasoning": 0,
    } | changes
    run(engine, CALL, at=at, **given)
    return UUID(str(given["call_id"]))


def correct(engine: Engine, call_id: UUID, nanodollars: int, number: int = 1, tokens: int = 0) -> None:
    """Add to what a call came to."""
    given = {"number": number, "source": "export", "nanodollars": nanodollars, "input": tokens, "output": tokens}
    run(engine, CORRECTION, call_id=call_id, **given)


def standing(engine: Engine, tenant: str | None = "acme", now: datetime = NOON) -> list[PeriodUsage]:
    with engine.connect() as connection:
        return usage.standing(connection, tenant, now)


def breakdown(engine: Engine, by: By = By.MODEL, tenant: str | None = "acme", **times: datetime) -> list[UsageLine]:
    with engine.connect() as connection:
        return usage.breakdown(connection, tenant, by, **{"since": BEGINNING} | times)


def short(lines: list[UsageLine]) -> list[tuple[str, int, int]]:
    """Give key, calls and nano-dollars of each line."""
    return [(line.key, line.calls, line.nanodollars) for line in lines]


@pytest.mark.parametrize(
    ("now", "day", "month", "day_ends", "month_ends"),
    [
        ("2026-03-11T12:00Z", "2026-03-11", "2026-03-01", "2026-03-12", "2026-04-01"),
        ("2026-12-31T23:59:59.999999Z", "2026-12-31", "2026-12-01", "2027-01-01", "2027-01-01"),
        ("2027-01-01T00:00Z", "2027-01-01", "2027-01-01", "2027-01-02", "2027-02-01"),
        ("2028-02-29T08:00Z", "2028-02-29", "2028-02-01", "2028-03-01", "2028-03-01"),
        ("2026-03-01T00:30+02:00", "2026-02-28", "2026-02-01", "2026-03-01", "2026-03-01"),
        ("2026-03-31T22:00-05:00", "2026-04-01", "2026-04-01", "2026-04-02", "2026-05-01"),
    ],
)
def test_days_and_months_begin_at_midnight_utc(now: str, day: str, month: str, day_ends: str, month_ends: str) -> None:
    for period, starts, ends in ((Period.DAY, day, day_ends), (Period.MONTH, month, month_ends)):
        began = usage.start_of(period, datetime.fromisoformat(now))
        assert began == datetime.fromisoformat(f"{starts}T00:00Z")
        assert usage.end_of(period, began) == datetime.fromisoformat(f"{ends}T00:00Z")


def test_a_tenant_that_spent_nothing_is_told_so(engine: Engine) -> None:
    lines = standing(engine)
    assert [(line.project, line.period, line.unit) for line in lines] == [
        ("", "day", "nanodollars"),
        ("", "day", "tokens"),
        ("", "month", "nanodollars"),
        ("", "month", "tokens"),
    ]
    assert {(line.used, line.held, line.soft_limit, line.hard_limit, line.state, line.forecast) for line in lines} == {
        (0, 0, None, None, State.OK, 0)
    }


def test_a_line_says_what_was_used_held_and_is_left_and_where_it_leads(engine: Engine) -> None:
    spend(engine, "acme", "day", "2026-03-11", 1_000, held_nanodollars=300, tokens=70, held=20)
    spend(engine, "acme", "month", "2026-03-01", 5_000, held_nanodollars=301, tokens=71, held=21)
    with engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.MONTH, Unit.NANODOLLARS, soft_limit=5_300, hard_limit=9_000))
    day, day_tokens, month, month_tokens = standing(engine)
    assert day == PeriodUsage(
        tenant="acme",
        project="",
        period=Period.DAY,
        unit=Unit.NANODOLLARS,
        starts=datetime(2026, 3, 11, tzinfo=UTC),
        ends=datetime(2026, 3, 12, tzinfo=UTC),
        used=1_000,
        held=300,
        soft_limit=None,
        hard_limit=None,
        state=State.OK,
        forecast=2_000,
    )
    assert (month.starts, month.ends) == (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert (month.used, month.held, month.soft_limit, month.hard_limit) == (5_000, 301, 5_300, 9_000)
    assert (month.state, month.forecast) == (State.SOFT, 14_762)  # 5,000 x 31 / 10.5, rounded up
    assert (day_tokens.used, day_tokens.held, day_tokens.forecast) == (70, 20, 140)
    assert (month_tokens.used, month_tokens.held, month_tokens.state) == (71, 21, State.OK)


@pytest.mark.parametrize(
    ("elapsed", "forecast"),
    [
        (timedelta(0), None),
        (timedelta(seconds=59.999999), None),
        (timedelta(minutes=1), 1_440_000),
        (timedelta(days=1) - timedelta(microseconds=1), 1_001),
    ],
)
def test_there_is_no_forecast_in_the_first_minute(engine: Engine, elapsed: timedelta, forecast: int | None) -> None:
    spend(engine, "acme", "day", "2026-03-11", 1_000)
    assert standing(engine, now=datetime(2026, 3, 11, tzinfo=UTC) + elapsed)[0].forecast == forecast


def test_a_forecast_of_the_largest_amount_is_exact(engine: Engine) -> None:
    spend(engine, "acme", "day", "2026-03-11", 2**63 - 1)
    assert standing(engine)[0].forecast == 2**64 - 2


@pytest.mark.parametrize(
    ("spent", "limits", "state"),
    [
        ((0, 0), (None, None), State.OK),
        ((10**12, 10**12), (None, None), State.OK),
        ((60, 20), (80, 100), State.OK),
        ((60, 21), (80, 100), State.SOFT),
        ((81, 0), (80, None), State.SOFT),
        ((79, 20), (80, 100), State.SOFT),
        ((80, 20), (80, 100), State.HARD),
        ((120, 0), (80, 100), State.HARD),
        ((99, 0), (None, 100), State.OK),
        ((0, 100), (None, 100), State.HARD),
        ((0, 0), (None, 0), State.HARD),
        ((0, 0), (0, None), State.OK),
        ((1, 0), (0, None), State.SOFT),
    ],
)
def test_the_state_is_what_the_next_call_would_meet(
    engine: Engine, spent: tuple[int, int], limits: tuple[int | None, int | None], state: State
) -> None:
    spend(engine, "acme", "day", "2026-03-11", tokens=spent[0], held=spent[1])
    with engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.DAY, Unit.TOKENS, soft_limit=limits[0], hard_limit=limits[1]))
    assert [line.state for line in standing(engine)] == [State.OK, state, State.OK, State.OK]


def test_projects_are_there_once_they_spend_or_have_a_budget(engine: Engine) -> None:
    spend(engine, "acme", "month", "2026-03-01", 7, project="spent")
    spend(engine, "acme", "month", "2026-02-01", 7, project="past")
    with engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.DAY, Unit.TOKENS, project="limited", hard_limit=5))
    lines = standing(engine)
    assert [line.project for line in lines] == [""] * 4 + ["limited"] * 4 + ["spent"] * 4
    assert [line.used for line in lines if line.project == "spent"] == [0, 0, 7, 0]
    assert [line.hard_limit for line in lines if line.project == "limited"] == [None, 5, None, None]


def test_other_tenants_days_and_months_do_not_count(engine: Engine) -> None:
    spend(engine, "acme", "day", "2026-03-11", 1)
    spend(engine, "acme", "day", "2026-03-10", 10)
    spend(engine, "acme", "day", "2026-03-01", 100)
    spend(engine, "acme", "month", "2026-03-01", 2)
    spend(engine, "acme", "month", "2025-03-01", 1_000)
    spend(engine, "globex", "day", "2026-03-11", 10_000)
    assert [line.used for line in standing(engine)] == [1, 0, 2, 0]


def test_all_tenants_stand_side_by_side(engine: Engine) -> None:
    spend(engine, "globex", "day", "2026-03-11", 1)
    spend(engine, "old", "month", "2026-02-01", 1)
    with engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.DAY, Unit.TOKENS, project="demo", hard_limit=5))
    lines = standing(engine, tenant=None)
    assert [(line.tenant, line.project) for line in lines[::4]] == [("acme", ""), ("acme", "demo"), ("globex", "")]
    assert sum(line.used for line in lines) == 1


def test_the_gravest_state_counts() -> None:
    assert usage.worst([State.OK, State.HARD, State.SOFT]) is State.HARD
    assert usage.worst([State.SOFT, State.OK]) is State.SOFT
    assert usage.worst([]) is State.OK


def test_a_line_of_a_breakdown_has_every_class_of_tokens_and_every_correction(engine: Engine) -> None:
    tokens: dict[str, Any] = {"input": 10, "cached": 20, "written": 30, "output": 40, "reasoning": 50}
    corrected = call(engine, **tokens)
    correct(engine, corrected, -100, tokens=3)
    correct(engine, corrected, 25, number=2, tokens=-1)
    call(engine, **tokens)
    assert breakdown(engine) == [
        UsageLine(
            key="sim-small",
            calls=2,
            open_calls=0,
            unknown_calls=0,
            usage=MIXED + MIXED + Usage(input_tokens=2, output_tokens=2),
            bound_tokens=0,
            nanodollars=725,
        )
    ]


def test_calls_without_a_known_outcome_are_counted_at_their_upper_bound(engine: Engine) -> None:
    call(engine, input=10)
    call(engine, state="intent", nanodollars=1_000)
    call(engine, state="unknown", nanodollars=1_000)
    found_out = call(engine, state="unknown", nanodollars=1_000)
    correct(engine, found_out, -700, tokens=5)
    (line,) = breakdown(engine)
    assert (line.calls, line.open_calls, line.unknown_calls) == (4, 1, 1)
    assert (line.nanodollars, line.bound_tokens) == (400 + 1_000 + 1_000 + 300, 2 * 500)
    assert line.usage == Usage(input_tokens=15, output_tokens=5)


def test_tiers_prompts_and_models_come_with_the_dearest_first(engine: Engine) -> None:
    call(engine, tier="small", prompt_id="one", deployment="a")
    call(engine, tier="large", prompt_id="two", deployment="b", nanodollars=900)
    call(engine, tier="small", prompt_id="two", deployment="c")
    call(engine, tenant="globex", tier="medium", prompt_id="three", deployment="d")
    assert short(breakdown(engine, By.TIER)) == [("large", 1, 900), ("small", 2, 800)]
    assert short(breakdown(engine, By.PROMPT)) == [("two", 2, 1_300), ("one", 1, 400)]
    assert short(breakdown(engine, By.MODEL)) == [("b", 1, 900), ("a", 1, 400), ("c", 1, 400)]
    assert short(breakdown(engine, By.TIER, tenant=None)) == [("large", 1, 900), ("small", 2, 800), ("medium", 1, 400)]
    assert breakdown(engine, tenant="initech") == []


def test_a_day_is_the_utc_day_on_which_the_call_was_intended(engine: Engine) -> None:
    east = timezone(timedelta(hours=9))
    call(engine, at=datetime(2026, 3, 11, 23, 59, 59, 999_999, tzinfo=UTC))
    call(engine, at=datetime(2026, 3, 12, tzinfo=UTC), nanodollars=1)
    call(engine, at=datetime(2026, 3, 12, 8, 59, tzinfo=east), nanodollars=20)
    assert short(breakdown(engine, By.DAY)) == [("2026-03-11", 2, 420), ("2026-03-12", 1, 1)]


def test_since_is_included_and_until_is_not(engine: Engine) -> None:
    second = timedelta(seconds=1)
    for number in range(4):
        call(engine, at=NOON + number * second, nanodollars=10**number)
    assert short(breakdown(engine, since=NOON + second, until=NOON + 3 * second)) == [("sim-small", 2, 110)]
    assert short(breakdown(engine, since=NOON + second)) == [("sim-small", 3, 1_110)]
    assert breakdown(engine, since=NOON + 4 * second) == []


def make_calls(engine: Engine, tenant: str, project: str, tier: str) -> None:
    """Make a call of each fate: open, answered, refused, unknown, and unknown until its answer came late."""

    def intent(deployment: str) -> Intent:
        job = rows.running_job(engine, tenant=tenant, project=project, tier=tier)
        return Intent(
            call_id=uuid4(),
            job_id=job.id,
            fence=job.fence,
            tenant=tenant,
            project=project,
            prompt_id="summarise_document",
            prompt_version="1.0.0",
            tier=tier,
            deployment=deployment,
            account="simulator",
            model_asked="m",
            price_version="2026-01-01",
            bound=UpperBound(prompt_tokens=1_000, prompt_amount=1_000_000_000, output_rate=4_000_000),
            max_tokens=200,
            least_max_tokens=1,
        )

    intents = [intent(deployment) for deployment in ("a", "a", "b", "b", "c")]
    _, answered, refused, unknown, late = (given.call_id for given in intents)
    settlements = [
        Settlement(answered, CallOutcome.ANSWERED, 777, MIXED),
        Settlement(refused, CallOutcome.REFUSED, 0),
        Settlement(unknown, CallOutcome.UNKNOWN, None),
        Settlement(late, CallOutcome.UNKNOWN, None),
    ]
    with engine.begin() as connection:
        assert len(ledger.intend(connection, intents)) == len(intents)
    with engine.begin() as connection:
        ledger.settle(connection, settlements)
    with engine.begin() as connection:
        ledger.settle(connection, [replace(settlements[0], call_id=late, nanodollars=555)])


@pytest.mark.parametrize("by", list(By))
def test_the_breakdown_of_a_month_is_what_budgets_are_held_to(engine: Engine, by: By) -> None:
    make_calls(engine, "acme", "", "small")
    make_calls(engine, "acme", "demo", "large")
    make_calls(engine, "globex", "demo", "small")
    with engine.connect() as connection:
        now = connection.execute(text("SELECT now()")).scalar_one()
    month = usage.start_of(Period.MONTH, now)
    for tenant, times in (("acme", 2), ("globex", 1)):
        lines = breakdown(engine, by, tenant, since=month)
        nanodollars = sum(line.nanodollars for line in lines)
        tokens = sum(line.usage.total_tokens + line.bound_tokens for line in lines)
        assert (nanodollars, tokens) == (times * (2 * 1_800 + 777 + 555), times * (2 * 1_200 + 2 * 150))
        whole = {(line.period, line.unit): line for line in standing(engine, tenant, now) if not line.project}
        for period in CALENDAR:
            dollars, in_tokens = whole[period, Unit.NANODOLLARS], whole[period, Unit.TOKENS]
            assert (dollars.used + dollars.held, in_tokens.used + in_tokens.held) == (nanodollars, tokens)
            assert (dollars.held, in_tokens.held) == (times * 1_800, times * 1_200)
