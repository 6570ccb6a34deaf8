"""One run of Penstock: first calm, then everything breaks, then it is mended. It must not say what is good enough."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy import TextClause, text

from bench.chaos import books
from bench.chaos.books import Books
from bench.chaos.conductor import Conductor
from bench.chaos.overspend import Overspend
from bench.chaos.penstock_events import Notes, PenstockEvents
from bench.chaos.plan import Plan
from bench.chaos.producer import read
from bench.chaos.site import Site, running, wait
from bench.chaos.texts import BUDGETED, TENANTS
from bench.limits.places import tell
from penstock.money import ledger
from penstock.money.budgets import Budget, Period, Unit, set_budget

DONE_SHARE = 0.7
TELL_S = 10.0
BUDGET_SHARE = 0.5
"""Of what the tenant's jobs would cost."""
LIVING = text("SELECT count(*) FROM jobs WHERE state IN ('queued', 'released', 'running', 'retrying')")
STATES = text("""
    SELECT state || coalesce('/' || CASE WHEN state IN ('queued', 'retrying') THEN reason END, '')
        || CASE WHEN crashes > 1 THEN '/suspect' ELSE '' END AS state, count(*) AS jobs FROM jobs GROUP BY 1 ORDER BY 1
""")
ENDED = text("SELECT count(*) FROM jobs WHERE state IN ('succeeded', 'dead', 'cancelled')")


@dataclass
class Run:
    """What came of a run; times in seconds, money in nano-dollars."""

    plan: Plan
    accepted: set[UUID] = field(default_factory=set)
    notes: Notes = field(default_factory=Notes)
    books: Books | None = None
    calm_difference: int = 0
    overspend: int = 0
    budget_left: int = 0
    looks: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    internal_errors: int = 0
    chaos_s: float = 0.0
    mending_s: float = 0.0
    ended_in_chaos: int = 0
    rounds: int = 0


def run(plan: Plan, home: Path) -> Run:
    """Make a run."""
    made = Run(plan)
    with running(plan, home) as site, Overspend(site.engine) as overspend:
        calm(site, made)
        limit(site)
        conduct(site, made)
        mend(site, made)
        overspend.look()
        made.overspend, made.looks = overspend.nanodollars, overspend.looks
        made.budget_left = overspend.least_left or 0
        close_calls(site)
        made.accepted = {UUID(line["id"]) for journal in site.journals() for line in read(journal)}
        made.books = look(site)
        made.exits, made.internal_errors = site.fleet.exits, site.fleet.count_in_logs('"internal_error"')
    return made


def calm(site: Site, made: Run) -> None:
    """Run jobs while nothing breaks: the ledger must be what the invoice says."""
    tell(f"penstock: {site.plan.calm_jobs} jobs in calm")
    site.produce("calm", site.plan.calm_jobs)
    wait_for_producers(site)
    wait_for_end(site)
    made.calm_difference = look(site).difference


def limit(site: Site) -> None:
    """Give one tenant a hard budget that ends in the middle of the run."""
    seen = look(site)
    cost = sum(call.nanodollars for call in seen.calls) / max(1, len(seen.calls))
    spent = sum(call.nanodollars for call in seen.calls if call.tenant == BUDGETED)
    hard_limit = int(spent + BUDGET_SHARE * cost * site.plan.jobs / len(TENANTS))
    with site.engine.begin() as connection:
        set_budget(connection, Budget(BUDGETED, Period.DAY, Unit.NANODOLLARS, hard_limit=hard_limit))


def conduct(site: Site, made: Run) -> None:
    """Break things until everything is accepted and most of it has ended."""
    tell(f"penstock: {site.plan.jobs} jobs while everything breaks")
    begun_s, ended_before = time.monotonic(), count(site, ENDED)
    site.produce("chaos", site.plan.jobs)
    conductor = Conductor(site.plan, site.note)
    events = PenstockEvents(site, conductor.later)
    conductor.actions = events.actions()
    events.poison()
    enough = ended_before + DONE_SHARE * site.plan.jobs
    progress = Progress(site)
    conductor.run(lambda: progress.told() and all_submitted(site) and count(site, ENDED) >= enough)
    made.chaos_s = time.monotonic() - begun_s
    made.ended_in_chaos = count(site, ENDED) - ended_before
    made.notes, made.happened = events.notes, conductor.happened
    tell(f"penstock: {made.ended_in_chaos} jobs ended in {made.chaos_s:.0f} s; {json.dumps(made.happened)}")


def mend(site: Site, made: Run) -> None:
    """Let everything live, and replay what is dead and does not kill, until nothing is left to be done."""
    begun_s = time.monotonic()
    site.provider.behave()
    events = PenstockEvents(site, lambda _delay_s, _what: None)
    events.notes = made.notes
    wait_for_end(site)
    while made.rounds < site.plan.rounds and events.replay():
        made.rounds += 1
        while events.replay():
            pass
        wait_for_end(site)
    made.mending_s = time.monotonic() - begun_s
    tell(f"penstock: mended after {made.mending_s:.0f} s and {made.rounds} rounds of replays")


def close_calls(site: Site) -> None:
    """Do what upkeep does with calls that nobody will settle, without waiting for their time."""
    wait(lambda: site.provider.in_flight() == 0, site.plan.patience_s, "calls are still on their way")
    with site.engine.begin() as connection:
        ledger.abandon(connection, older_than_s=0)


def look(site: Site) -> Books:
    """Read ledger and invoice."""
    with site.engine.connect() as connection:
        return books.read(connection, site.provider.invoice())


def count(site: Site, statement: TextClause, **values: object) -> int:
    """Count rows."""
    with site.engine.connect() as connection:
        return int(connection.scalar(statement, values) or 0)


@dataclass
class Progress:
    """Says now and then how far it is."""

    site: Site
    next_s: float = field(default_factory=lambda: time.monotonic() + TELL_S)

    def told(self) -> bool:
        """Say it if it is time."""
        if time.monotonic() >= self.next_s:
            self.next_s += TELL_S
            with self.site.engine.connect() as connection:
                states = {row.state: row.jobs for row in connection.execute(STATES)}
            tell(f"penstock: {states}, {len(self.site.ready())} pools ready")
        return True


def all_submitted(site: Site) -> bool:
    """Tell whether the producers are done."""
    return all(producer.has_ended for producer in site.producers)


def wait_for_producers(site: Site) -> None:
    """Wait until everything is submitted."""
    wait(lambda: all_submitted(site), site.plan.patience_s, "the producers are not done")


def close_early(site: Site) -> bool:
    """Close calls of dead workers before upkeep does, if the plan says so: what they hold of a budget is waited for."""
    if site.plan.open_call_s is not None:
        with site.engine.begin() as connection:
            ledger.abandon(connection, older_than_s=site.plan.open_call_s)
    return True


def wait_for_end(site: Site) -> None:
    """Wait until no job lives; what does then is lost, and counted by whoever reads the books."""
    try:
        progress = Progress(site)
        wait(
            lambda: close_early(site) and progress.told() and count(site, LIVING) == 0,
            site.plan.patience_s,
            "jobs still live",
        )
    except TimeoutError:
        tell(f"penstock: {count(site, LIVING)} jobs still live after {site.plan.patience_s:.0f} s")


@dataclass(frozen=True)
class Recovery:
    """How a run was taken up again whose worker was killed.

    `wait_s` runs from the kill to the next claim, or to the end of the job; `again` says that the job had lost a worker
    before; `interrupted` that Postgres or upkeep, too, was killed within the wait.
    """

    wait_s: float
    again: bool
    interrupted: bool


def recoveries(made: Run) -> list[Recovery]:
    """Give how each run of a killed worker was taken up again."""
    assert made.books is not None
    replayed: defaultdict[UUID, list[datetime]] = defaultdict(list)
    for job_id, at in made.notes.replayed:
        replayed[job_id].append(at)
    seen: Counter[UUID] = Counter()
    found = []
    for each in made.notes.killed:
        wait_s = made.books.recovered_after_s(each.job_id, each.fence, each.at, replayed[each.job_id])
        outages = [(at - each.at).total_seconds() for at in made.notes.outages]
        found.append(Recovery(wait_s, seen[each.job_id] > 0, any(0 <= after_s <= wait_s for after_s in outages)))
        seen[each.job_id] += 1
    return found
