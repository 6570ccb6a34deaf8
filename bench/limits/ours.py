"""One run of Penstock: real processes, real Postgres and Redis, load from outside. It must not work out figures."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import text

from bench.limits.figures import Run, Window
from bench.limits.load import INTERACTIVE
from bench.limits.places import penstock_environment, tell, temporary_home, write_config
from bench.limits.plan import Plan
from bench.limits.provider import Provider
from bench.limits.texts import PROMPT
from penstock.client import Client
from penstock.settings import load_settings
from penstock.store.db import sync_engine
from workers.stack import Stack

CALLS = text("SELECT ledger.call_id::text, ledger.job_id::text FROM ledger")
TENANTS = text("SELECT id::text, tenant FROM jobs")
FAILED = text("SELECT count(*) FROM jobs WHERE state = 'dead'")


@dataclass(frozen=True)
class Site:
    """Penstock and its provider, running."""

    plan: Plan
    provider: Provider
    stack: Stack
    client: Client


@contextmanager
def running(plan: Plan) -> Generator[Site, None, None]:
    """Start all processes, and stop them however the block ends."""
    with temporary_home() as home, Provider(plan.semantics, home) as provider:
        write_config(home / "config", plan.semantics.times(plan.configured), plan.load.weights)
        with (
            penstock_environment(home, provider.url),
            Stack(flower=False, tell=lambda _: None) as stack,
            Client(load_settings()) as client,
        ):
            yield Site(plan, provider, stack, client)


def run(plan: Plan, *, meanwhile: Callable[[Site, Window], None] | None = None) -> Run:
    """Make a run; `meanwhile` is called once when the window begins."""
    with running(plan) as site:
        submit_batch(site)
        return watch(site, meanwhile=meanwhile)


def submit_batch(site: Site) -> None:
    """Hand in the whole night batch."""
    load, plan = site.plan.load, site.plan
    batch = load.batch(plan.semantics.tokens_per_s * plan.longest_s)
    site.client.submit_many(
        {"tenant": tenant, "prompt": PROMPT, "document": document.text, "lane": "batch", "fresh": True}
        for tenant, document in batch
    )


def watch(site: Site, *, meanwhile: Callable[[Site, Window], None] | None = None) -> Run:
    """Ask for interactive jobs until the window ends, then read what the provider saw."""
    started_s = time.monotonic()
    window = site.plan.window(started_s)
    tell(site.plan.announcement("penstock", started_s))
    asked: dict[str, float] = {}
    for at_s, document in site.plan.load.interactive(started_s):
        if meanwhile is not None and at_s >= window[0]:
            meanwhile(site, window)
            meanwhile = None
        if at_s >= window[1]:
            break
        time.sleep(max(0.0, at_s - time.monotonic()))
        site.stack.check()
        asked_s = time.monotonic()
        job_id = site.client.submit(tenant=INTERACTIVE, prompt=PROMPT, document=document.text, fresh=True)
        asked[str(job_id)] = asked_s
    time.sleep(max(0.0, window[1] + site.plan.after_s - time.monotonic()))
    return _read(site, window, asked)


def _read(site: Site, window: Window, asked: dict[str, float]) -> Run:
    engine = sync_engine(load_settings().require_database_url())
    ended_s, seen = time.monotonic(), site.provider.look()
    with engine.connect() as connection:
        calls = {row[0]: row[1] for row in connection.execute(CALLS)}
        tenants = {row[0]: row[1] for row in connection.execute(TENANTS)}
        failed = int(connection.scalar(FAILED) or 0)
    engine.dispose()
    return Run(site.plan.semantics, seen, window, ended_s, calls, tenants, asked, failed)
