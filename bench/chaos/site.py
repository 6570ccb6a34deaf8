"""Penstock with all its processes, each of which may die. It must not decide who does, or when."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, text

from bench.chaos.databases import Databases
from bench.chaos.places import TIER, environment, write_config, write_simulator
from bench.chaos.plan import Plan
from bench.chaos.processes import Fleet, Kept
from bench.chaos.provider import Provider
from penstock.client import Client
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate

START_TIMEOUT_S = 90.0
LOOK_S = 0.1

LIVING = text("SELECT split_part(id, ':', 2)::integer FROM workers WHERE lease_until > now() AND tier = :tier")
RUNNING = text("""
    SELECT jobs.id, jobs.fence, now() AS at FROM jobs
    WHERE state = 'running' AND split_part(worker, ':', 2) = :pid
""")


@dataclass
class Site:
    """What runs, and doors to it."""

    plan: Plan
    home: Path
    databases: Databases
    provider: Provider
    fleet: Fleet
    engine: Engine
    client: Client
    pools: list[Kept]
    feeder: Kept
    upkeep: Kept
    producers: list[Kept]

    def ready(self) -> list[Kept]:
        """Give the pools that have a lease and are not frozen."""
        with self.engine.connect() as connection:
            pids = set(connection.scalars(LIVING, {"tier": TIER}))
        return [pool for pool in self.pools if pool.is_running and pool.pid in pids]

    def note(self, event: str) -> None:
        """Write down when something happened."""
        with (self.home / "events.log").open("a") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {event}\n")

    def journals(self) -> list[Path]:
        """Give the files in which producers write down what was accepted."""
        return sorted(self.home.glob("*.jsonl"))

    def produce(self, name: str, jobs: int) -> None:
        """Start producers that submit so many jobs together."""
        plan = self.plan
        for number in range(plan.producers):
            share = jobs // plan.producers + (number < jobs % plan.producers)
            label = f"{name}-{number}"
            arguments = (label, str(share), str(plan.jobs_per_s / plan.producers), str(self.home / f"{label}.jsonl"))
            producer = self.fleet.keep(label, "-m", "bench.chaos.producer", *arguments, ends=True)
            self.producers.append(producer)


@contextmanager
def running(plan: Plan, home: Path) -> Generator[Site, None, None]:
    """Start everything but the producers and wait for the pools; leave nothing behind."""
    write_config(home / "config", [TIER], plan)
    write_simulator(home / "simulator.toml", [TIER], plan)
    with Provider(home / "simulator.toml") as provider, Databases(home) as databases:
        variables = environment(home, provider.url, plan)
        settings = _settings(variables)
        engine = sync_engine(settings.require_database_url())
        migrate(engine)
        with Fleet(variables, home / "logs") as fleet, Client(settings) as client:
            site = Site(
                plan=plan,
                home=home,
                databases=databases,
                provider=provider,
                fleet=fleet,
                engine=engine,
                client=client,
                pools=[
                    fleet.keep(f"pool-{number}", "-m", "bench.chaos.worker", TIER, "--name", f"pool-{number}")
                    for number in range(plan.pools)
                ],
                feeder=fleet.keep("feeder", "-m", "workers.feeder"),
                upkeep=fleet.keep("upkeep", "-m", "workers.worker", "upkeep"),
                producers=[],
            )
            wait(lambda: len(site.ready()) == plan.pools, START_TIMEOUT_S, "the pools did not start")
            yield site
        engine.dispose()


def wait(holds: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Wait until something holds; raise TimeoutError."""
    ends_at = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > ends_at:
            raise TimeoutError(otherwise)
        time.sleep(LOOK_S)


def _settings(variables: dict[str, str]) -> Settings:
    prefix = "PENSTOCK_"
    given = {name.removeprefix(prefix).lower(): value for name, value in variables.items() if name.startswith(prefix)}
    return Settings.model_validate({name: value for name, value in given.items() if name in Settings.model_fields})
