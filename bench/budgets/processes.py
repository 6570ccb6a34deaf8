"""Processes that call, and the jobs and budgets that they call for. It must not know what they do."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

from penstock.money.budgets import Budget, set_budget
from penstock.money.ledger import Intent
from penstock.money.prices import UpperBound

MAKE_JOBS = text("""
    INSERT INTO jobs (id, tenant, project, state, fence, prompt_id, prompt_version, prompt_digest, tier, lane, priority,
        estimated_tokens, metadata, content_digest)
    SELECT gen_random_uuid(), tenant, project, 'running', 1, 'bench', '1.0.0', 'd', 'small', 'batch', 5, 100, '{}', 'c'
    FROM jsonb_to_recordset(CAST(:owners AS jsonb)) AS owner(tenant text, project text)
    RETURNING id, tenant, project
""")

Owner = tuple[str, str]
Run = tuple[str, str, str]
"""A job that runs, its tenant, and its project."""


def make_jobs(engine: Engine, owners: Sequence[Owner]) -> list[Run]:
    """Make jobs that run."""
    rows = json.dumps([{"tenant": tenant, "project": project} for tenant, project in owners])
    with engine.begin() as connection:
        return [(str(row.id), row.tenant, row.project) for row in connection.execute(MAKE_JOBS, {"owners": rows})]


def empty(engine: Engine) -> None:
    """Forget everything."""
    with engine.begin() as connection:
        connection.execute(
            text("TRUNCATE jobs, payloads, attempts, answers, results, ledger, ledger_corrections CASCADE")
        )
        connection.execute(text("TRUNCATE budgets, spending"))


def set_all(engine: Engine, budgets: Sequence[Budget]) -> None:
    """Set budgets."""
    with engine.begin() as connection:
        for budget in budgets:
            set_budget(connection, budget)


def start(orders: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a process and give it its orders."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-m", "bench.budgets.child"], text=True, stdin=pipe, stdout=pipe)
    assert child.stdin is not None
    child.stdin.write(json.dumps(orders) + "\n")
    child.stdin.flush()
    return child


def go(children: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until all are ready, and let them begin."""
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("a process did not start")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()


def end(child: subprocess.Popen[str]) -> str:
    """Give the last words of a process that ends by itself; raise RuntimeError if it failed."""
    words, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"a process ended with {child.returncode}")
    return words


def end_now(child: subprocess.Popen[str]) -> None:
    """Kill a process."""
    child.kill()
    child.communicate()


def ready() -> None:
    """Tell the process that measures, and wait for its word."""
    print("ready", flush=True)
    sys.stdin.readline()


def intent_of(run: Run, bound: UpperBound, most: int, least: int) -> Intent:
    """Intend a call of a run."""
    names = dict.fromkeys(("prompt_id", "prompt_version", "tier", "deployment", "account", "model_asked"), "bench")
    whose: dict[str, Any] = {**names, "tenant": run[1], "project": run[2], "price_version": "2026-01-01"}
    lengths = {"max_tokens": most, "least_max_tokens": least}
    return Intent(call_id=uuid4(), job_id=UUID(run[0]), fence=1, bound=bound, **whose | lengths)
