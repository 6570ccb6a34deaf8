"""The configuration and the environment of a run. It must not know what runs there."""

import os
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from bench.chaos.plan import Plan
from bench.chaos.texts import PROMPTS
from bench.limits.toml import write_toml

ROOT = Path(__file__).parent.parent.parent
TIER = "small"
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
LIMITS = {"rpm": 600_000, "tpm": 600_000_000}
"""So high that they never bind: the limiter runs, and nothing waits for it."""
CONCURRENCY = 1000
WINDOW = 200_000
LONGEST = 4096


MODELS = ("one", "two")


def models_of(tier: str) -> list[str]:
    """Name the models of a tier, the preferred one first."""
    return [f"{tier}-{name}" for name in MODELS]


def write_config(folder: Path, tiers: Iterable[str], plan: Plan) -> None:
    """Write tiers, each with models of its own, models, quotas and prices."""
    folder.mkdir(parents=True)
    tables, models, prices = {}, {}, {}
    for tier in tiers:
        tables[f"tiers.{tier}"] = {
            "deployments": models_of(tier),
            "processes": plan.pools,
            "concurrency": plan.slots,
            "timeout_s": plan.timeout_s,
            "max_failures": 5,
        }
        for model in models_of(tier):
            models[f"models.{model}"] = {
                "model": f"openai/{model}",
                "account": "simulator",
                "quota": model,
                "api_base_env": "PENSTOCK_SIMULATOR_URL",
                "context_window": WINDOW,
                "max_output_tokens": LONGEST,
            }
            models[f"quotas.{model}"] = {**LIMITS, "concurrency": CONCURRENCY}
            prices[f"[[prices.{model}]]"] = {"starts": date(2026, 1, 1), **PRICES}
    write_toml(folder / "tiers.toml", tables)
    write_toml(folder / "models.toml", models)
    write_toml(folder / "prices.toml", prices)


def write_simulator(path: Path, tiers: Iterable[str], plan: Plan) -> None:
    """Write what the simulator's models allow, cost and take."""
    model = {
        **LIMITS,
        "max_concurrency": CONCURRENCY,
        "context_window": WINDOW,
        "max_output": LONGEST,
        "latency": {"median_ms": plan.latency_ms, "sigma": 0.4},
        "prices": PRICES,
    }
    write_toml(path, {"seed": plan.seed, **{f"models.{name}": model for tier in tiers for name in models_of(tier)}})


def environment(home: Path, simulator_url: str, plan: Plan) -> dict[str, str]:
    """Give the environment of every process: no setting of Penstock but those of this run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    ours = {
        "HOME": home,
        "CONFIG": home / "config",
        "PROMPTS": PROMPTS,
        "SIMULATOR_URL": f"{simulator_url}/v1",
        "LEASE_S": plan.lease_s,
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
    }
    return clean | {f"PENSTOCK_{name}": str(value) for name, value in ours.items()}
