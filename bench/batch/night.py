"""The run: a warm batch, the night's batch with its kills, one with a cap, one from the cache. It must not judge."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.batch import passages
from bench.batch.plan import Plan
from bench.batch.site import LOOK_S, MODEL, PERSON, TENANT, TIER, Loader, Site, read_log, running
from bench.limits.places import tell
from bench.limits.texts import PROMPT
from penstock.batches.batch import Progress
from penstock.batches.forecast import Forecast
from penstock.batches.reading import Columns
from penstock.client.batches import BatchRequest
from penstock.money import ledger

REQUEST = BatchRequest(tenant=TENANT, prompt=PROMPT, tier=TIER)
COLUMNS = Columns.parse(("document=body", "metadata.id=id"))
OPTIONS = ("--force", "--json", "--abort-if", "never")
"""Kills cost their upper bound: so many of them are a reason to stop."""
TELL_S = 10.0
DISTURBED_S = 30.0
"""Around a kill of everything, nobody's wait says how a batch delays a person."""
QUIET_S = 20.0
"""How long nothing is killed where the quota is measured."""
TWICE = text("""
    SELECT count(*) FROM (
        SELECT job_id FROM ledger WHERE outcome = 'answered' GROUP BY job_id HAVING count(*) > 1) AS repeated
""")
UNKNOWN = text("""
    SELECT count(*) AS calls, coalesce(sum(nanodollars), 0)::bigint AS nanodollars
    FROM ledger WHERE state = 'unknown' AND NOT EXISTS (
        SELECT 1 FROM ledger_corrections WHERE ledger_corrections.call_id = ledger.call_id)
""")
LEDGER = text("SELECT coalesce(sum(nanodollars), 0)::bigint FROM ledger_amounts")
NUMBERS = text("SELECT count(DISTINCT batch_number) FROM jobs JOIN batches ON batches.id = batch_id WHERE name = :name")
WAITS = text("""
    SELECT extract(epoch FROM created_at)::float8 AS asked_s,
        extract(epoch FROM started_at - created_at)::float8 AS wait_s
    FROM jobs WHERE tenant = :tenant AND started_at IS NOT NULL
""")
ANSWERED = text("""
    SELECT coalesce(sum(nanodollars), 0)::bigint FROM ledger JOIN batches ON batches.id = ledger.batch_id
    WHERE name = :name AND outcome = 'answered'
""")
LONGEST_BOUND = text("""
    SELECT max(upper_bound_nanodollars) FROM ledger JOIN batches ON batches.id = ledger.batch_id WHERE name = :name
""")


@dataclass
class Night:
    """What came of the run; money in nano-dollars, memory in bytes."""

    plan: Plan
    bad: int = 0
    forecast: Forecast | None = None
    progress: dict[str, Progress] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    answered: int = 0
    twice: int = 0
    unknown_calls: int = 0
    unexplained: int = 0
    below_invoice: int = 0
    killed_at_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    waits_undisturbed_s: list[float] = field(default_factory=list)
    asked: int = 0
    cap: int = 0
    cap_bound: int = 0
    cached_calls: int = 0
    throttled: int = 0


def run(plan: Plan, home: Path) -> Night:
    """Make the run."""
    made = Night(plan)
    source = home / "night.jsonl"
    with running(plan, home) as site:
        made.bad = passages.write(source, plan.jobs, "night")
        warm(site)
        made.forecast = site.client.plan_batch(REQUEST, str(source), columns=COLUMNS)
        with asking(site, made):
            night(site, made, source)
        made.numbers = _scalar(site, NUMBERS, name="night")
        made.answered = _scalar(site, ANSWERED, name="night")
        capped(site, made)
        cached(site, made, source)
        close(site, made)
    return made


def warm(site: Site) -> None:
    """Run a small batch, so that answers have been seen and the limiter has learnt."""
    documents = passages.documents(site.plan.warm_jobs, "warm")
    site.client.batch("warm", REQUEST, ({"document": document} for document in documents))
    wait_for_end(site, "warm")


def night(site: Site, made: Night, source: Path) -> None:
    """Load the batch with two kills of its loader, and run it with two kills of everything."""
    tell(f"night: {site.plan.jobs} documents and {made.bad} items that are none")
    began_s = time.monotonic()
    items = site.plan.jobs + made.bad
    for share in site.plan.loader_killed_at:
        loader = site.load("night", source, *OPTIONS)
        wait(site, partial(_is_stored, site, loader, share * items))
        made.kills["loader"] += loader.process.poll() is None
        loader.kill()
    loader = site.load("night", source, *OPTIONS)
    kills = [share * site.plan.jobs for share in site.plan.workers_killed_at]
    quiet_from, calls = time.monotonic() + QUIET_S / 2, 0
    next_s = time.monotonic()
    while not (progress := site.client.batch_progress(TENANT, "night")).batch.state.has_ended:
        if kills and progress.ended >= kills[0]:
            kills.pop(0)
            site.kill_all()
            made.kills["everything"] += 1
            made.killed_at_s.append(time.time())
            tell(f"night: killed every process with {progress.ended} jobs ended")
            quiet_from, calls = time.monotonic() + QUIET_S / 2, 0
        now = time.monotonic()
        if now >= quiet_from and not calls:
            calls = site.calls()
        if now >= quiet_from + QUIET_S:
            made.rates.append((site.calls() - calls) / (now - quiet_from))
            quiet_from, calls = now, site.calls()
        if now >= next_s:
            next_s = now + TELL_S
            tell(f"night: {progress.ended} of {progress.total} ended, {progress.refused} refused")
        if now - began_s > site.plan.patience_s:
            raise TimeoutError("the batch did not end")
        time.sleep(LOOK_S)
    loader.process.wait(10)
    made.memory = [rss for _, rss in loader.memory]
    made.seconds["night"] = time.monotonic() - began_s
    made.progress["night"] = progress
    assert read_log(site, "night")


def capped(site: Site, made: Night) -> None:
    """Run a batch whose cap is half of what it would cost: it stops itself."""
    tell("capped")
    assert made.forecast is not None
    jobs = site.plan.capped_jobs
    made.cap = made.forecast.nanodollars.expected * jobs // made.forecast.jobs // 2
    documents = ({"document": document} for document in passages.documents(jobs, "capped"))
    site.client.batch("capped", REQUEST, documents, max_cost=made.cap)
    wait(site, lambda: site.client.find_batch(TENANT, "capped").state == "stopped")
    wait(site, lambda: site.client.batch_progress(TENANT, "capped").held_nanodollars == 0)
    made.progress["capped"] = site.client.batch_progress(TENANT, "capped")
    made.cap_bound = _scalar(site, LONGEST_BOUND, name="capped")
    site.client.cancel_batch(TENANT, "capped")


def cached(site: Site, made: Night, source: Path) -> None:
    """Run the same input under another name: every answer is there."""
    tell("cached")
    before, began_s = site.calls(), time.monotonic()
    site.client.batch("again", REQUEST, str(source), columns=COLUMNS)
    wait_for_end(site, "again")
    made.seconds["again"] = time.monotonic() - began_s
    made.progress["again"] = site.client.batch_progress(TENANT, "again")
    made.cached_calls = site.calls() - before


def close(site: Site, made: Night) -> None:
    """Compare the books with the invoice."""
    wait(site, lambda: site.provider.in_flight() == 0)
    with site.engine.begin() as connection:
        ledger.abandon(connection, older_than_s=0)
    invoice: Counter[str] = Counter()
    for line in site.provider.invoice():
        invoice[str(line["client_request_id"])] += line["nanodollars"]
    with site.engine.connect() as connection:
        made.twice = int(connection.scalar(TWICE) or 0)
        unknown = connection.execute(UNKNOWN).one()
        booked = int(connection.scalar(LEDGER) or 0)
        waits = connection.execute(WAITS, {"tenant": PERSON}).all()
        open_calls = connection.scalars(text("SELECT call_id::text FROM ledger WHERE state = 'unknown'")).all()
    made.waits_s = [row.wait_s for row in waits]
    made.waits_undisturbed_s = [
        row.wait_s for row in waits if not any(-DISTURBED_S < row.asked_s - at < DISTURBED_S for at in made.killed_at_s)
    ]
    made.unknown_calls = unknown.calls
    billed_open = sum(invoice[call] for call in open_calls)
    made.below_invoice = max(0, sum(invoice.values()) - booked)
    made.unexplained = booked - sum(invoice.values()) - (unknown.nanodollars - billed_open)
    made.throttled = int(site.provider.models()[MODEL]["statuses"].get("429", 0))


class asking:  # noqa: N801 - it is used as a function
    """Submit an interactive job of another tenant now and then for the length of a block."""

    def __init__(self, site: Site, made: Night) -> None:
        """Ask nothing yet."""
        self._site, self._made = site, made
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> None:
        """Begin."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        for document in passages.documents(10**6, "person"):
            if self._stop.wait(self._site.plan.asks_every_s):
                return
            self._site.client.submit(tenant=PERSON, prompt=PROMPT, document=document, tier=TIER)
            self._made.asked += 1


def wait(site: Site, holds: Callable[[], bool]) -> None:
    """Wait until something holds; raise TimeoutError."""
    ends_at = time.monotonic() + site.plan.patience_s
    while not holds():
        if time.monotonic() > ends_at:
            raise TimeoutError
        time.sleep(LOOK_S)


def wait_for_end(site: Site, name: str) -> None:
    """Wait until a batch has ended."""
    wait(site, lambda: site.client.find_batch(TENANT, name).state.has_ended)


def _is_stored(site: Site, loader: Loader, items: float) -> bool:
    found = [batch for batch in site.client.batches(TENANT) if batch.name == "night"]
    return loader.process.poll() is not None or (found[0].items if found else 0) >= items


def _scalar(site: Site, statement: Any, **values: object) -> int:
    with site.engine.connect() as connection:
        return int(connection.scalar(statement, values) or 0)
