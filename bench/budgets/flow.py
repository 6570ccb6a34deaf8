"""How many calls a second are held and settled, beside statements that know no budget. It must not know a limit."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.budgets.processes import Run, empty, end, go, intent_of, make_jobs, set_all, start
from bench.report import Report
from penstock.house import Journal
from penstock.money.budgets import CALENDAR, Budget, Unit
from penstock.money.holds import Hold
from penstock.money.ledger import CallOutcome, Intent, Settlement
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.schemas import Usage
from penstock.store.gather import Gatherer

IN_FLIGHT = 400
ARRIVALS_A_SECOND = 600
TENANTS = 200
NO_LIMIT = 10**15

BARE_INSERT = text("""
    INSERT INTO ledger (call_id, job_id, fence, tenant, project, prompt_id, prompt_version, tier, deployment, account,
        model_asked, price_version, max_tokens, state, upper_bound_nanodollars, upper_bound_tokens, nanodollars)
    SELECT call_id, job_id, fence, tenant, project, prompt_id, prompt_version, tier, deployment, account, model_asked,
        price_version, max_tokens, 'intent', 1100, 1100, 1100
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
        call_id uuid, job_id uuid, fence bigint, tenant text, project text, prompt_id text, prompt_version text,
        tier text, deployment text, account text, model_asked text, price_version text, max_tokens integer)
""")
BARE_UPDATE = text("""
    UPDATE ledger SET settled_at = now(), outcome = given.outcome, state = 'settled', nanodollars = given.nanodollars,
        input_tokens = given.input_tokens, output_tokens = given.output_tokens
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS given(
        call_id uuid, outcome text, nanodollars bigint, input_tokens bigint, output_tokens bigint)
    WHERE ledger.call_id = given.call_id AND ledger.state = 'intent'
""")


@dataclass(frozen=True)
class Plan:
    """How long each load is counted, and for how long it runs before."""

    seconds: float
    warm_up_s: float


FULL, SHORT = Plan(20, 3), Plan(4, 1)


@dataclass(frozen=True)
class Load:
    """Who calls: processes of a role, for how many tenants."""

    role: str
    tenants: int
    processes: int


def measure(report: Report, engine: Engine, plan: Plan) -> None:
    """Count calls a second, of one tenant and of many, beside statements that know no budget."""
    for processes, name in ((1, "one_process"), (2, "two_processes")):
        loads = Load("floor", 1, processes), Load("held", 1, processes), Load("held", TENANTS, processes)
        floor, one, many = (rate(engine, plan, load) for load in loads)
        beside = {"without_budgets": floor}
        report.add(f"flow.{name}.one_tenant", one, "1/s", must=">= 1500" if processes == 1 else None, beside=beside)
        report.add(f"flow.{name}.{TENANTS}_tenants", many, "1/s", beside=beside)
    waits_ms = sorted(wait_of_arrivals(engine, plan))
    p50, p99 = (round(waits_ms[int(len(waits_ms) * share)], 1) for share in (0.5, 0.99))
    report.add("arrivals.two_processes.one_tenant.hold_p50", p50, "ms", must="<= 50", beside={"p99": p99})
    report.note(
        f"arrivals: {ARRIVALS_A_SECOND} calls a second of one tenant, evenly over two processes, whatever became of "
        "those before; the time from the wish to the committed hold."
    )
    report.note(
        f"flow: {IN_FLIGHT} coroutines in all, each reserving, writing the intent and settling without a pause, "
        "through the Journal of a worker process, on an embedded Postgres with fsync; no answer is stored. Every "
        "tenant has hard and soft budgets of a day and a month in both units. Without budgets: one INSERT and one "
        "UPDATE of the ledger, gathered in the same way."
    )


def rate(engine: Engine, plan: Plan, load: Load) -> float:
    """Run one load and give its calls a second."""
    return round(sum(int(said) for said in run(engine, plan, load)) / plan.seconds, 1)


def wait_of_arrivals(engine: Engine, plan: Plan) -> list[float]:
    """Run two processes to which calls come at a fixed rate, and give how long each waited for its hold, in ms."""
    return [wait_ms for said in run(engine, plan, Load("arrivals", 1, 2)) for wait_ms in json.loads(said)]


def run(engine: Engine, plan: Plan, load: Load) -> list[str]:
    """Run one load and give what its processes said."""
    empty(engine)
    names = [f"tenant-{number}" for number in range(load.tenants)]
    wide = NO_LIMIT // 2, NO_LIMIT
    set_all(engine, [Budget(name, period, unit, "", *wide) for name in names for period in CALENDAR for unit in Unit])
    runs = make_jobs(engine, [(names[number % load.tenants], "") for number in range(IN_FLIGHT)])
    url = engine.url.render_as_string(hide_password=False)
    orders = {"role": load.role, "url": url, **asdict(plan)}
    children = [start(orders | {"runs": runs[number :: load.processes]}) for number in range(load.processes)]
    go(children)
    return [end(child) for child in children]


async def call_and_count(
    intend: Gatherer[Intent, Any], settle: Gatherer[Settlement, Any], orders: dict[str, Any]
) -> int:
    """Make calls by many coroutines; give how many ended after the warm-up and in time."""
    bound = UpperBound(1000, 1000 * PER_TOKENS, PER_TOKENS)
    usage = Usage(input_tokens=250, output_tokens=60)
    counts_from_s = time.monotonic() + orders["warm_up_s"]
    ends_s = counts_from_s + orders["seconds"]

    async def work(run: Run) -> int:
        calls = 0
        while time.monotonic() < ends_s:
            call = intent_of(run, bound, 100, 50)
            assert isinstance(await intend.add(call), Hold)
            await settle.add(Settlement(call.call_id, CallOutcome.ANSWERED, 310, usage))
            calls += counts_from_s <= time.monotonic() < ends_s
        return calls

    return sum(await asyncio.gather(*(work(run) for run in orders["runs"])))


async def arrive_and_wait(journal: Journal, orders: dict[str, Any]) -> list[float]:
    """Begin calls at a fixed rate; give how long each that came after the warm-up waited for its hold, in ms."""
    bound = UpperBound(1000, 1000 * PER_TOKENS, PER_TOKENS)
    began_s = time.monotonic()
    waits_ms: list[float] = []

    async def call(run: Run, since_s: float) -> None:
        intent = intent_of(run, bound, 100, 50)
        assert isinstance(await journal.intend.add(intent), Hold)
        if since_s >= began_s + orders["warm_up_s"]:
            waits_ms.append((time.monotonic() - since_s) * 1000)
        await journal.settle.add(
            Settlement(intent.call_id, CallOutcome.ANSWERED, 310, Usage(input_tokens=250, output_tokens=60))
        )

    async with asyncio.TaskGroup() as calls:
        for number in range(int((orders["warm_up_s"] + orders["seconds"]) * ARRIVALS_A_SECOND / 2)):
            due_s = began_s + number * 2 / ARRIVALS_A_SECOND
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            calls.create_task(call(orders["runs"][number % len(orders["runs"])], due_s))
    return waits_ms


def steps(engine: AsyncEngine, role: str) -> tuple[Gatherer[Intent, Any], Gatherer[Settlement, Any]]:
    """Give the two steps of a call: the product's own, or bare statements."""
    if role == "floor":
        return Gatherer(engine, bare_intend), Gatherer(engine, bare_settle)
    journal = Journal(engine)
    return journal.intend, journal.settle


def bare_intend(connection: Connection, intents: Sequence[Intent]) -> list[Hold]:
    """Write down calls without a budget."""
    rows = [asdict(intent) | {"call_id": str(intent.call_id), "job_id": str(intent.job_id)} for intent in intents]
    connection.execute(BARE_INSERT, {"rows": json.dumps(rows)})
    return [Hold(intent.max_tokens) for intent in intents]


def bare_settle(connection: Connection, settlements: Sequence[Settlement]) -> list[None]:
    """Write down what they came to."""
    rows = [
        vars(given) | given.usage.model_dump() | {"call_id": str(given.call_id), "usage": None} for given in settlements
    ]
    connection.execute(BARE_UPDATE, {"rows": json.dumps(rows)})
    return [None] * len(settlements)
