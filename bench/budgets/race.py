"""Processes that use up one tenant's budgets and are killed meanwhile. It must not know how a hold is decided."""

import asyncio
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from bench.budgets.processes import empty, end_now, go, intent_of, make_jobs, set_all, start
from bench.report import Report
from penstock.house import Journal
from penstock.money import ledger
from penstock.money.budgets import Budget, Period, Unit, set_budget
from penstock.money.holds import Hold
from penstock.money.ledger import CallOutcome, Intent, Settlement
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.schemas import Usage

PROCESSES = 16
CALLERS = 25
UNKNOWN_SHARE = 0.02
STARVED_S = 0.05
LOOK_S = 0.02
KILL_S = 2.0
STEPS = {
    ("", Unit.NANODOLLARS): 400_000,
    ("", Unit.TOKENS): 400_000,
    ("north", Unit.NANODOLLARS): 250_000,
    ("south", Unit.TOKENS): 250_000,
}
"""By how much each limit of the race is raised whenever it has been reached."""
PERIODS = dict(zip(STEPS, (Period.DAY, Period.MONTH, Period.MONTH, Period.DAY), strict=True))

END_RUNS = text(
    "UPDATE jobs SET state = 'retrying' WHERE CAST(:ids AS uuid[]) IS NULL OR id = ANY(CAST(:ids AS uuid[]))"
)
SPENT = text("""
    SELECT budgets.project, budgets.period, budgets.unit, hard_limit, CASE unit
            WHEN 'tokens' THEN settled_tokens + held_tokens ELSE settled_nanodollars + held_nanodollars END AS used
    FROM budgets JOIN spending USING (tenant, project, period)
    WHERE starts = date_trunc(period, now() AT TIME ZONE 'UTC')::date
""")
BOOKS = text("""
    SELECT (SELECT count(*) FROM ledger) AS calls,
        (SELECT sum(held_nanodollars) FROM spending)::bigint AS held_nanodollars,
        (SELECT sum(held_tokens) FROM spending)::bigint AS held_tokens,
        (SELECT sum(settled_nanodollars) FROM spending WHERE period = 'month' AND project = '')::bigint AS settled,
        (SELECT sum(nanodollars) FROM ledger_amounts)::bigint AS ledger
""")


@dataclass
class Race:
    """Processes that use up a tenant's budgets, some of which die; what was seen of it."""

    engine: Engine
    url: str
    seconds: float
    lasted_s: float = 0.0
    over: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    living: dict[subprocess.Popen[str], list[str]] = field(default_factory=dict)
    killed: int = 0
    swept: int = 0
    raised: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def add_process(self) -> None:
        """Start a process with a run for each of two projects."""
        runs = make_jobs(self.engine, [("race", "north"), ("race", "south")])
        orders = {"role": "race", "url": self.url, "runs": runs, "seed": self.chance.getrandbits(64)}
        self.living[start(orders)] = [job for job, _, _ in runs]

    def look(self) -> None:
        """Note what is above a limit, and raise the limits that have been reached."""
        with self.engine.begin() as connection:
            for row in connection.execute(SPENT):
                self.over[row.unit] = max(self.over[row.unit], row.used - row.hard_limit)
                step = STEPS[row.project, Unit(row.unit)]
                if row.used > row.hard_limit - step // 100:
                    raised = Budget(
                        "race", Period(row.period), Unit(row.unit), row.project, None, row.hard_limit + step
                    )
                    set_budget(connection, raised)
                    self.raised += 1

    def look_until(self, ends_s: float) -> None:
        """Look again and again."""
        while time.monotonic() < ends_s:
            self.look()
            time.sleep(LOOK_S)

    def kill(self) -> None:
        """Kill a process wherever it is, and start another; raise RuntimeError if one has failed."""
        if any(child.poll() is not None for child in self.living):
            raise RuntimeError("a process has ended by itself")
        victim = self.chance.choice(list(self.living))
        end_now(victim)
        with self.engine.begin() as connection:
            connection.execute(END_RUNS, {"ids": self.living.pop(victim)})
        self.killed += 1
        self.add_process()
        go([list(self.living)[-1]])

    def sweep(self) -> None:
        """Close the calls of those that are dead."""
        with self.engine.begin() as connection:
            self.swept += len(ledger.abandon(connection, older_than_s=-1))

    def run(self) -> None:
        """Have them spend, killed and swept from time to time, and kill them all in the end."""
        for _ in range(PROCESSES):
            self.add_process()
        go(list(self.living))
        began_s = time.monotonic()
        ends_s = began_s + self.seconds
        with ThreadPoolExecutor(1) as threads:
            looking = threads.submit(self.look_until, ends_s)
            while time.monotonic() < ends_s:
                time.sleep(KILL_S / 2)
                self.sweep()
                time.sleep(KILL_S / 2)
                self.kill()
            looking.result()
        self.killed += len(self.living)
        while self.living:
            end_now(self.living.popitem()[0])
        self.lasted_s = time.monotonic() - began_s
        self.look()
        with self.engine.begin() as connection:
            connection.execute(END_RUNS, {"ids": None})
        while not is_quiet(self.engine):
            time.sleep(LOOK_S)
        self.sweep()
        self.look()


def is_quiet(engine: Engine) -> bool:
    """Tell whether the backends of the dead have gone."""
    with engine.connect() as connection:
        return not connection.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'race' AND pid <> pg_backend_pid()")
        )


def measure(report: Report, engine: Engine, *, seconds: float) -> None:
    """Let sixteen processes run into limits that are raised as often as they are reached."""
    empty(engine)
    set_all(engine, [Budget("race", PERIODS[key], key[1], key[0], None, step) for key, step in STEPS.items()])
    race = Race(engine, engine.url.update_query_dict({"application_name": "race"}).render_as_string(False), seconds)
    try:
        race.run()
    finally:
        for child in race.living:
            end_now(child)
    with engine.connect() as connection:
        books = connection.execute(BOOKS).one()
    report.add("race.overspend", race.over[Unit.NANODOLLARS], "n$", must="== 0")
    report.add("race.overspend_tokens", race.over[Unit.TOKENS], "tokens", must="== 0")
    report.add("race.held_at_the_end", books.held_nanodollars, "n$", must="== 0")
    report.add("race.held_tokens_at_the_end", books.held_tokens, "tokens", must="== 0")
    report.add("race.spending_beside_ledger", abs(books.settled - books.ledger), "n$", must="== 0")
    report.add("race.holds", round(books.calls / race.lasted_s, 1), "1/s")
    report.add("race.limits_reached", race.raised, "times")
    report.add("race.processes_killed", race.killed, "processes")
    report.add("race.calls_swept", race.swept, "calls")
    report.note(
        f"race: {PROCESSES} processes of {CALLERS} coroutines, through their Journals, on one tenant with budgets in "
        f"both units and two projects; each limit is raised when it has been reached. Every {KILL_S:g} s one process "
        f"is killed with -9 and another started, all are killed in the end; {UNKNOWN_SHARE:.0%} of the outcomes are "
        "unknown. The holds are those that fitted: what is refused is no call."
    )


async def spend(journal: Journal, orders: dict[str, Any]) -> None:
    """Make calls of random cost until somebody kills this process."""

    async def work(chance: random.Random) -> None:
        while True:
            prompt, most = chance.randint(1, 200), chance.randint(1, 300)
            rate = chance.choice((1, 3, 10)) * PER_TOKENS // 3
            bound = UpperBound(prompt, prompt * rate + 1, 2 * rate)
            call = intent_of(chance.choice(orders["runs"]), bound, most, chance.randint(1, most))
            hold = await journal.intend.add(call)
            if isinstance(hold, Hold):
                await journal.settle.add(random_end(call, hold.max_tokens, chance))
            else:
                await asyncio.sleep(STARVED_S)

    await asyncio.gather(*(work(random.Random(orders["seed"] + number)) for number in range(CALLERS)))


def random_end(call: Intent, max_tokens: int, chance: random.Random) -> Settlement:
    """Say that some share of the bound was the truth, or that nobody knows."""
    if chance.random() < UNKNOWN_SHARE:
        return Settlement(call.call_id, CallOutcome.UNKNOWN, None)
    share = chance.random()
    usage = Usage(output_tokens=int(call.bound.tokens(max_tokens) * share))
    return Settlement(call.call_id, CallOutcome.ANSWERED, int(call.bound.nanodollars(max_tokens) * share), usage)
