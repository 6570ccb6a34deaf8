"""Budgets under those who spend them side by side: transactions, threads, and processes that are killed."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from penstock.jobs.execution import ClaimedJob
from penstock.money import ledger
from penstock.money.budgets import Budget, Period, Unit
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import Intent, SoftLimitPassed, Verdict
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND, intent
from tests.money.books import assert_balanced, booked, used_of
from tests.money.budget_process import Place, Run, smallest
from tests.money.test_spending import OLD_CALL, abandon, intend, keep, settle, stop, today, truth, unknown

ROOT = Path(__file__).parents[2]
TENANTS = ("acme", "beta")
KEYS = [(tenant, project, period) for tenant in TENANTS for project in ("", "north") for period in ("day", "month")]
ORDER = "ORDER BY tenant, project, period, starts"
LOCK = text("SELECT * FROM spending WHERE (tenant, project, period) = (:tenant, :project, :period) FOR UPDATE")
FREE = text(f"SELECT tenant, project, period FROM spending {ORDER} FOR UPDATE SKIP LOCKED")
BACKENDS = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'budget_process'")
Step = Callable[[Connection], object]


def five_calls(unit: Unit = Unit.NANODOLLARS) -> Budget:
    return Budget("acme", Period.DAY, unit, hard_limit=5 * UPPER_BOUND)


def calls(engine: Engine, count: int, **job: Any) -> list[Intent]:
    run = rows.running_job(engine, **job)
    return [intent(run) for _ in range(count)]


def lock(connection: Connection, key: tuple[str, str, str]) -> None:
    connection.execute(LOCK, dict(zip(("tenant", "project", "period"), key, strict=True)))


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("projects", [("", ""), ("north", "south"), ("north", "")])
@pytest.mark.parametrize("is_kept", [True, False])
def test_exactly_what_fits_gets_through_beside_a_transaction_that_is_open(
    engine: Engine, unit: Unit, projects: tuple[str, str], *, is_kept: bool
) -> None:
    budget = five_calls(unit)
    keep(engine, budget)
    first, second = calls(engine, 3, project=projects[0]), calls(engine, 4, project=projects[1])

    def intend_second(connection: Connection) -> list[Verdict]:
        return ledger.intend(connection, second)

    with engine.connect() as holder:
        assert ledger.intend(holder, first) == [Hold(100)] * 3
        with rows.behind(engine, intend_second) as verdicts:
            (holder.commit if is_kept else holder.rollback)()
    held = 2 if is_kept else 4
    assert verdicts.result() == [Hold(100)] * held + [Shortfall(budget, may_pass=True)] * (4 - held)
    assert used_of(assert_balanced(engine), budget, today(engine)) == (5 if is_kept else 4) * UPPER_BOUND


def test_of_calls_in_many_transactions_at_once_as_many_hold_as_fit(engine: Engine) -> None:
    keep(engine, five_calls())
    each = [call for _ in range(4) for call in calls(engine, 4)]
    works = [partial(lambda connection, call: ledger.intend(connection, [call])[0], call=call) for call in each]
    verdicts: list[Verdict] = rows.at_once(engine, *works)
    assert sorted(isinstance(verdict, Hold) for verdict in verdicts) == [False] * 11 + [True] * 5
    assert used_of(assert_balanced(engine), five_calls(), today(engine)) == 5 * UPPER_BOUND


def test_a_settlement_that_is_being_written_makes_room_for_the_call_that_waits_for_it(engine: Engine) -> None:
    keep(engine, five_calls())
    open_calls = calls(engine, 5)
    intend(engine, *open_calls)
    (call,) = calls(engine, 1)

    def intend_it(connection: Connection) -> list[Verdict]:
        return ledger.intend(connection, [call])

    with engine.connect() as holder:
        ledger.settle(holder, [truth(open_calls[0].call_id, 0)])
        with rows.behind(engine, intend_it) as verdicts:
            holder.commit()
    assert verdicts.result() == [Hold(100)]


def test_an_intent_that_comes_again_while_it_is_being_committed_holds_once_and_may_be_made(engine: Engine) -> None:
    keep(engine, five_calls())
    (call,) = calls(engine, 1)

    def intend_again(connection: Connection) -> list[Verdict]:
        return ledger.intend(connection, [call])

    with engine.connect() as holder:
        assert ledger.intend(holder, [call]) == [Hold(100)]
        with rows.behind(engine, intend_again) as verdicts:
            holder.commit()
    assert used_of(assert_balanced(engine), five_calls(), today(engine)) == UPPER_BOUND
    assert verdicts.result() == [Hold(100)]


def test_of_settlements_at_once_one_tells_of_a_soft_limit(engine: Engine) -> None:
    keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, soft_limit=1000))
    each = [call for _ in range(4) for call in calls(engine, 4)]
    intend(engine, *each)
    works = [partial(ledger.settle, settlements=[truth(call.call_id)]) for call in each]
    told: list[list[tuple[SoftLimitPassed, ...]]] = rows.at_once(engine, *works)
    assert [passed for ((*passed,),) in told if passed] == [
        [SoftLimitPassed("acme", "", Period.DAY, Unit.NANODOLLARS, 1000, 1200)]
    ]


def test_tenants_do_not_wait_for_one_another(engine: Engine) -> None:
    mine, theirs = calls(engine, 1), calls(engine, 1, tenant="beta")
    with engine.connect() as holder:
        ledger.intend(holder, mine)
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            assert ledger.intend(connection, theirs) == [Hold(100)]
            ledger.settle(connection, [truth(theirs[0].call_id)])


@pytest.mark.parametrize("place", range(len(KEYS)))
@pytest.mark.parametrize("name", ["intend", "settle", "abandon"])
def test_rows_are_taken_in_the_order_of_their_key_whatever_the_order_of_the_calls(
    engine: Engine, name: str, place: int
) -> None:
    jobs = [rows.running_job(engine, tenant=tenant, project="north") for tenant in reversed(TENANTS)]
    made, more = [intent(job) for job in jobs], [intent(job) for job in jobs]
    intend(engine, *made)
    steps: dict[str, Step] = {
        "intend": partial(ledger.intend, intents=more),
        "settle": partial(ledger.settle, settlements=[truth(call.call_id) for call in made]),
        "abandon": partial(ledger.abandon, older_than_s=-1),
    }
    if name == "abandon":
        for job in jobs:
            stop(engine, job)
    with engine.connect() as holder:
        lock(holder, KEYS[place])
        with rows.behind(engine, steps[name]) as ended:
            with engine.begin() as connection:
                free = [tuple(row) for row in connection.execute(FREE)]
            holder.commit()
    assert ended.result() is not None
    assert free == KEYS[place + 1 :]


def test_batches_of_many_tenants_in_any_order_do_not_deadlock(engine: Engine) -> None:
    jobs = [rows.running_job(engine, tenant=tenant, project="north") for tenant in ("acme", "beta", "gamma")]
    zombies = [
        intent(job) for job in (rows.running_job(engine, tenant=tenant) for tenant in TENANTS) for _ in range(30)
    ]
    intend(engine, *zombies)
    rows.execute(engine, "UPDATE jobs SET state = 'retrying' WHERE project = ''")

    def spend(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            batch = [intent(job) for job in chance.sample(jobs, 3)]
            intend(engine, *batch)
            chance.shuffle(batch)
            settle(engine, *(truth(call.call_id) if chance.random() < 0.5 else unknown(call.call_id) for call in batch))
            settle(engine, *(truth(call.call_id) for call in chance.sample(zombies, 3)))
            abandon(engine)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(spend, range(4)))
    assert {sums.held for sums in assert_balanced(engine).values()} == {(0, 0)}


@contextmanager
def waiting(engine: Engine, *steps: Step) -> Iterator[Callable[[], list[object]]]:
    """Start each step behind the one before; the block begins when all wait, and the call in it gives what came."""

    def in_transaction(step: Step) -> object:
        with engine.begin() as connection:
            return step(connection)

    with ThreadPoolExecutor(len(steps)) as threads:
        futures = []
        for count, step in enumerate(steps, 1):
            futures.append(threads.submit(in_transaction, step))
            until(lambda count=count: scalar(engine, rows.BLOCKED) == count)  # type: ignore[misc]
        yield lambda: [future.result() for future in futures]


def until(condition: Callable[[], bool]) -> None:
    ends_at_s = time.monotonic() + rows.BLOCK_TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_at_s, "it did not come true in time"


def scalar(engine: Engine, statement: Any) -> int:
    with engine.connect() as connection:
        return int(connection.execute(statement).scalar_one())


@pytest.mark.parametrize("new_tenant", TENANTS)
@pytest.mark.parametrize("closed_by", ["settle", "abandon"])
def test_a_call_that_opens_its_tenants_rows_does_not_deadlock_with_one_that_closes_an_old_versions(
    engine: Engine, closed_by: str, new_tenant: str
) -> None:
    known_tenant = next(tenant for tenant in TENANTS if tenant != new_tenant)
    old = uuid4()
    rows.execute(engine, OLD_CALL, call_id=old, job_id=uuid4(), tenant=new_tenant)
    jobs = [rows.running_job(engine, tenant=tenant) for tenant in TENANTS]
    crashed = rows.running_job(engine, tenant=known_tenant)
    lost = intent(crashed)
    intend(engine, lost)
    stop(engine, crashed)
    opens: Step = partial(ledger.intend, intents=[intent(job) for job in jobs])
    closes: dict[str, Step] = {
        "settle": partial(ledger.settle, settlements=[truth(old), truth(lost.call_id)]),
        "abandon": partial(ledger.abandon, older_than_s=-1),
    }
    steps = [opens, closes[closed_by]] if new_tenant < known_tenant else [closes[closed_by], opens]
    with engine.connect() as holder:
        lock(holder, (known_tenant, "", "month"))
        with waiting(engine, *steps) as results:
            holder.commit()
            assert [Hold(100), Hold(100)] in results()
    assert_balanced(engine)


def test_first_calls_of_two_projects_do_not_deadlock(engine: Engine) -> None:
    first, second, third = (calls(engine, 1, project=project) for project in ("", "south", "south"))
    opening = text("""
        INSERT INTO spending (tenant, project, period, starts)
        VALUES ('acme', 'south', 'month', date_trunc('month', now() AT TIME ZONE 'UTC'))
    """)
    with engine.connect() as tenants_first, engine.connect() as projects_first:
        ledger.intend(tenants_first, first)
        projects_first.execute(opening)  # another's first call of this project, which comes to nothing
        pid = projects_first.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        behind_it = text("SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))")
        with ThreadPoolExecutor(2) as threads:
            seconds = threads.submit(intend, engine, *second)
            until(lambda: scalar(engine, rows.BLOCKED) == 1)
            tenants_first.commit()
            tenants_first.close()  # the engine has no fifth connection
            until(lambda: scalar(engine, behind_it.bindparams(pid=pid)) == 1)
            thirds = threads.submit(intend, engine, *third)
            until(lambda: scalar(engine, rows.BLOCKED) == 2)
            projects_first.rollback()
            assert [seconds.result(), thirds.result()] == [[Hold(100)], [Hold(100)]]
    assert_balanced(engine)


@dataclass
class Race:
    """Sixteen processes that spend two projects' share of one tenant's money; five kill themselves, two are killed."""

    engine: Engine
    url: str
    budgets: list[Budget]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    jobs: list[ClaimedJob] = field(default_factory=list)
    most: dict[Budget, int] = field(default_factory=dict)
    DEATHS = ((3, Place.INTENDING), (10, Place.INTENDING), (5, Place.HELD), (15, Place.HELD), (7, Place.SETTLING))
    COUNT = 16

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.money.budget_process"]
        pipe = subprocess.PIPE
        for seed in range(self.COUNT):
            process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe)
            self.processes.append(process)
            mine = [rows.running_job(self.engine, project=project) for project in ("north", "south")]
            self.jobs += mine
            dies_at, dies_in = self.DEATHS[seed] if seed < len(self.DEATHS) else (None, None)
            orders = {"url": self.url, "seed": seed, "dies_at": dies_at, "dies_in": dies_in}
            self.tell(process, json.dumps(orders | {"runs": [vars(run_of(job)) for job in mine]}))
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            self.tell(process, "go")

    @staticmethod
    def tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def watch(self) -> None:
        """Look at what is used until all have ended; kill two when a third of the money is gone."""
        victims = self.processes[-2:]
        while living := [process for process in self.processes if process.poll() is None]:
            books, day = booked(self.engine), today(self.engine)
            for budget in self.budgets:
                self.most[budget] = max(self.most.get(budget, 0), used_of(books, budget, day))
            if victims and used_of(books, self.budgets[0], day) > (self.budgets[0].hard_limit or 0) // 3:
                victims.pop().kill()
            try:
                living[0].wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        until(lambda: scalar(self.engine, BACKENDS) == 0)

    def last_words(self, process: subprocess.Popen[str]) -> list[UUID]:
        assert process.stdout is not None
        return [UUID(line.strip()) for line in process.stdout]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def run_of(job: ClaimedJob) -> Run:
    return Run(str(job.id), job.fence, job.tenant, job.project)


@pytest.fixture
def race(engine: Engine) -> Iterator[Race]:
    budgets = [
        Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=100_000),
        Budget("acme", Period.MONTH, Unit.TOKENS, hard_limit=40_000),
        Budget("acme", Period.MONTH, Unit.NANODOLLARS, "north", hard_limit=40_000),
        Budget("acme", Period.DAY, Unit.TOKENS, "south", hard_limit=20_000),
    ]
    keep(engine, *budgets)
    url = engine.url.update_query_dict({"application_name": "budget_process"}).render_as_string(hide_password=False)
    made = Race(engine, url, budgets)
    try:
        yield made
    finally:
        made.end()


def test_sixteen_processes_that_are_killed_anywhere_spend_all_of_a_budget_and_never_more(race: Race) -> None:
    race.start()
    race.watch()

    endings = [process.returncode for process in race.processes]
    assert endings == [-9] * 5 + [0] * 9 + [-9] * 2
    for budget in race.budgets:
        assert budget.hard_limit is not None
        assert budget.hard_limit * 0.5 < race.most[budget] <= budget.hard_limit
    last = [rows.running_job(race.engine, project=project) for project in ("north", "south")]
    verdicts = intend(race.engine, *(smallest(run_of(job), uuid4()) for job in last))
    assert [type(verdict) for verdict in verdicts] == [Shortfall, Shortfall]
    assert any(sums.held > (0, 0) for sums in assert_balanced(race.engine).values())

    for job in race.jobs:
        stop(race.engine, job)
    abandoned = set(abandon(race.engine))

    says = assert_balanced(race.engine)
    assert {sums.held for sums in says.values()} == {(0, 0)}
    for budget in race.budgets:
        assert used_of(says, budget, today(race.engine)) <= (budget.hard_limit or 0)
    calls = {entry["call_id"]: entry["state"] for entry in rows.everything(race.engine)["ledger"]}
    assert set(calls.values()) == {"settled", "unknown"}
    died_in: dict[Place, set[UUID]] = {place: set() for place in Place}
    for process, (_, place) in zip(race.processes, race.DEATHS, strict=False):
        died_in[place] |= set(race.last_words(process))
    assert not died_in[Place.INTENDING] & calls.keys()
    assert (died_in[Place.HELD] | died_in[Place.SETTLING]) <= abandoned
    assert [len(found) for found in died_in.values()] == [2, 2, 1]
