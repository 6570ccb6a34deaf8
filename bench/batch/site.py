"""Penstock with all its processes, and a loader that can be killed. It must not decide what is killed, or when."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, text

from bench.batch.plan import Plan
from bench.chaos.databases import Databases
from bench.chaos.processes import Fleet, Kept
from bench.chaos.provider import Provider
from bench.limits.texts import PROMPT, PROMPTS
from bench.limits.toml import write_toml
from penstock.client import Client
from penstock.settings import Settings
from penstock.store.db import sync_engine
from penstock.store.schema import migrate

TENANT, PERSON = "acme", "person"
TIER, MODEL = "small", "sim"
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
TPM = 600_000_000
CONCURRENCY = 2000
WINDOW, LONGEST = 200_000, 4096
LEASE_S = 10.0
START_TIMEOUT_S = 90.0
LOOK_S = 0.05
PROGRAM = "from penstock.cli import main; main()"
READY = text("SELECT count(*) FROM workers WHERE lease_until > now() AND tier = :tier")


@dataclass
class Loader:
    """`penstock batch run` as a process, and the memory that it takes."""

    process: subprocess.Popen[bytes]
    memory: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, daemon=True).start()

    def kill(self) -> None:
        """Kill it with -9."""
        self.process.kill()
        self.process.wait()

    def _watch(self) -> None:
        try:
            process = psutil.Process(self.process.pid)
            while self.process.poll() is None:
                self.memory.append((time.monotonic(), process.memory_info().rss))
                time.sleep(LOOK_S)
        except psutil.NoSuchProcess:
            return


@dataclass
class Site:
    """What runs, and doors to it."""

    plan: Plan
    home: Path
    provider: Provider
    fleet: Fleet
    engine: Engine
    client: Client
    environment: dict[str, str]
    pools: list[Kept]
    feeder: Kept
    upkeep: Kept

    def load(self, name: str, source: Path, *options: str) -> Loader:
        """Start the command that begins a batch, or goes on with it."""
        command = [sys.executable, "-c", PROGRAM, "batch", "run", name, str(source), "--tenant", TENANT]
        command += ["--tier", TIER, "--prompt", PROMPT, "--map", "document=body", "--map", "metadata.id=id", *options]
        log = (self.home / "logs" / f"load-{name}.log").open("ab")
        return Loader(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True))

    def calls(self) -> int:
        """Count the calls that the provider has answered."""
        return sum(int(model["received"]) for model in self.provider.models().values())

    def kill_all(self) -> None:
        """Kill every process but the databases and the provider."""
        for kept in (*self.pools, self.feeder, self.upkeep):
            kept.kill()


@contextmanager
def running(plan: Plan, home: Path) -> Generator[Site, None, None]:
    """Start everything and wait for the pools; leave nothing behind."""
    _write_config(home, plan)
    with Provider(home / "simulator.toml") as provider, Databases(home) as databases:
        environment = _environment(home, provider.url)
        settings = _settings(environment)
        engine = sync_engine(settings.require_database_url())
        migrate(engine)
        with Fleet(environment, home / "logs") as fleet, Client(settings) as client:
            pools = [
                fleet.keep(f"pool-{number}", "-m", "bench.chaos.worker", TIER, "--name", f"pool-{number}")
                for number in range(plan.pools)
            ]
            feeder = fleet.keep("feeder", "-m", "workers.feeder")
            upkeep = fleet.keep("upkeep", "-m", "workers.worker", "upkeep")
            site = Site(plan, home, provider, fleet, engine, client, environment, pools, feeder, upkeep)
            _wait_until_ready(site)
            assert databases.broker_url
            yield site
        engine.dispose()


def _wait_until_ready(site: Site) -> None:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at:
        with site.engine.connect() as connection:
            if connection.scalar(READY, {"tier": TIER}) == site.plan.pools:
                return
        time.sleep(LOOK_S)
    raise TimeoutError("the pools did not start")


def _write_config(home: Path, plan: Plan) -> None:
    folder = home / "config"
    folder.mkdir(parents=True)
    (home / "logs").mkdir()
    limits = {"rpm": plan.rpm, "tpm": TPM}
    tier = {
        "deployments": [MODEL],
        "processes": plan.pools,
        "concurrency": plan.slots,
        "timeout_s": 30,
        "max_failures": 5,
    }
    model: dict[str, Any] = {
        "model": f"openai/{MODEL}",
        "account": "simulator",
        "quota": MODEL,
        "api_base_env": "PENSTOCK_SIMULATOR_URL",
        "context_window": WINDOW,
        "max_output_tokens": LONGEST,
    }
    write_toml(folder / "tiers.toml", {f"tiers.{TIER}": tier})
    quota = {**limits, "concurrency": CONCURRENCY}
    write_toml(folder / "models.toml", {f"models.{MODEL}": model, f"quotas.{MODEL}": quota})
    write_toml(folder / "prices.toml", {f"[[prices.{MODEL}]]": {"starts": date(2026, 1, 1), **PRICES}})
    simulated = {
        **limits,
        "max_concurrency": CONCURRENCY,
        "context_window": WINDOW,
        "max_output": LONGEST,
        "latency": {"median_ms": plan.latency_ms, "sigma": 0.4},
        "prices": PRICES,
    }
    write_toml(home / "simulator.toml", {"seed": 1, f"models.{MODEL}": simulated})


def _environment(home: Path, simulator_url: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    ours = {
        "HOME": home,
        "CONFIG": home / "config",
        "PROMPTS": PROMPTS,
        "SIMULATOR_URL": f"{simulator_url}/v1",
        "LEASE_S": LEASE_S,
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
    }
    return clean | {f"PENSTOCK_{name}": str(value) for name, value in ours.items()}


def _settings(environment: dict[str, str]) -> Settings:
    prefix = "PENSTOCK_"
    given = {name.removeprefix(prefix).lower(): value for name, value in environment.items() if name.startswith(prefix)}
    return Settings.model_validate({name: value for name, value in given.items() if name in Settings.model_fields})


def read_log(site: Site, name: str) -> list[dict[str, Any]]:
    """Give the JSON lines that the loader of a batch has printed."""
    lines = (site.home / "logs" / f"load-{name}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
