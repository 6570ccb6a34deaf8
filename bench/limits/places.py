"""Where a run lives: a temporary home, a configuration, an environment. It must not know what runs there."""

import os
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from bench.limits.semantics import MODEL, PRICES, Semantics
from bench.limits.texts import PROMPTS
from bench.limits.toml import write_toml

BEGUN_S = time.monotonic()
PROCESSES = 2
SLOTS = 40


def tell(line: str) -> None:
    """Say on stderr how far the benchmark is."""
    sys.stderr.write(f"[{time.monotonic() - BEGUN_S:6.1f} s] {line}\n")
    sys.stderr.flush()


@contextmanager
def temporary_home() -> Generator[Path, None, None]:
    """Give a folder that is gone afterwards, with a name short enough for the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="limits-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def penstock_environment(home: Path, provider_url: str) -> Generator[None, None, None]:
    """Have no setting of Penstock but those of this run."""
    before = {name: value for name, value in os.environ.items() if name.startswith("PENSTOCK_")}
    for name in before:
        del os.environ[name]
    here = {"HOME": home, "CONFIG": home / "config", "PROMPTS": PROMPTS, "SIMULATOR_URL": f"{provider_url}/v1"}
    os.environ.update({f"PENSTOCK_{name}": str(value) for name, value in here.items()})
    try:
        yield
    finally:
        for name in here:
            del os.environ[f"PENSTOCK_{name}"]
        os.environ.update(before)


def write_config(folder: Path, quota: Semantics, weights: Mapping[str, float]) -> None:
    """Write tiers, models, prices and tenants: one tier of two processes, one model with one quota."""
    folder.mkdir()
    tier = {
        "deployments": [MODEL],
        "processes": PROCESSES,
        "concurrency": SLOTS,
        "timeout_s": 60,
        "max_failures": 5,
    }
    model = {
        "model": f"openai/{MODEL}",
        "account": "simulator",
        "quota": MODEL,
        "api_base_env": "PENSTOCK_SIMULATOR_URL",
        "context_window": 200_000,
        "max_output_tokens": 4096,
    }
    write_toml(folder / "tiers.toml", {"tiers.small": tier})
    write_toml(folder / "models.toml", {f"models.{MODEL}": model, f"quotas.{MODEL}": quota.as_quota()})
    write_toml(folder / "prices.toml", {f"[[prices.{MODEL}]]": {"starts": date(2026, 1, 1), **PRICES}})
    write_toml(folder / "tenants.toml", {f'tenants."{name}"': {"weight": weight} for name, weight in weights.items()})
