"""One of many processes that spend a tenant's budgets with calls of random cost, until nothing is left or it dies.

`python -m tests.money.budget_process` reads a line of orders, says `ready`, and begins at the next line. It says which
call it has in hand when it kills itself.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from penstock.money import ledger
from penstock.money.holds import Hold
from penstock.money.ledger import CallOutcome, Intent, Settlement
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.schemas import Usage
from penstock.store.db import sync_engine

SHORTFALLS_IN_A_ROW = 20
UNKNOWN_SHARE = 0.05


class Place(StrEnum):
    """Where a process dies: in the transaction of an intent, behind it, or in the transaction of a settlement."""

    INTENDING = "intending"
    HELD = "held"
    SETTLING = "settling"


@dataclass(frozen=True)
class Run:
    """A run of a job, and whose money it spends."""

    job_id: str
    fence: int
    tenant: str
    project: str


class Spender:
    """Makes calls, the smallest possible one after each that was refused."""

    def __init__(self, engine: Engine, seed: int, dies_at: int | None, dies_in: str | None) -> None:
        self.engine = engine
        self.random = Random(seed)
        self.dies_at = dies_at
        self.dies_in = dies_in
        self.calls = 0

    def spend(self, runs: list[Run]) -> None:
        """Call until the last SHORTFALLS_IN_A_ROW calls did not fit, every other one being the smallest there is."""
        refused = 0
        for run in cycle(runs):
            call = smallest(run, self.call_id()) if refused % 4 > 1 else self.any_call(run)
            hold = self.intend(call)
            if hold is None:
                refused += 1
            else:
                refused = 0
                self.settle(call, hold)
            if refused == SHORTFALLS_IN_A_ROW:
                return

    def call_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128))

    def any_call(self, run: Run) -> Intent:
        prompt = self.random.randint(1, 200)
        rate = self.random.choice([PER_TOKENS // 3, PER_TOKENS, 5 * PER_TOKENS])
        most = self.random.randint(1, 300)
        return intent_of(run, self.call_id(), UpperBound(prompt, prompt * rate + 1, 2 * rate), most, most // 2 or 1)

    def intend(self, call: Intent) -> Hold | None:
        with self.engine.begin() as connection:
            (verdict,) = ledger.intend(connection, [call])
            if isinstance(verdict, Hold):
                self.calls += 1
                self.reach(Place.INTENDING, call, connection)
        if not isinstance(verdict, Hold):
            return None
        self.reach(Place.HELD, call)
        return verdict

    def settle(self, call: Intent, hold: Hold) -> None:
        """Say that some share of the bound was the truth, or that nobody knows."""
        share = self.random.random()
        cost = int(call.bound.nanodollars(hold.max_tokens) * share)
        usage = Usage(input_tokens=int(call.bound.tokens(hold.max_tokens) * share))
        settlement = Settlement(call.call_id, CallOutcome.ANSWERED, cost, usage)
        if self.random.random() < UNKNOWN_SHARE:
            settlement = Settlement(call.call_id, CallOutcome.UNKNOWN, None)
        with self.engine.begin() as connection:
            ledger.settle(connection, [settlement])
            self.reach(Place.SETTLING, call, connection)

    def reach(self, place: Place, call: Intent, _open: Connection | None = None) -> None:
        """Die here, if that is what was ordered."""
        if self.calls == self.dies_at and place == self.dies_in:
            say(str(call.call_id))
            os.kill(os.getpid(), signal.SIGKILL)


def smallest(run: Run, call_id: UUID) -> Intent:
    """Intend a call of a nano-dollar and two tokens."""
    return intent_of(run, call_id, UpperBound(1, 1, 1), 1, 1)


def intent_of(run: Run, call_id: UUID, bound: UpperBound, max_tokens: int, least_max_tokens: int) -> Intent:
    """Intend a call of a run."""
    names = dict.fromkeys(("prompt_id", "prompt_version", "tier", "deployment", "account", "model_asked"), "race")
    whose: dict[str, Any] = names | {"tenant": run.tenant, "project": run.project, "price_version": "2026-01-01"}
    lengths = {"max_tokens": max_tokens, "least_max_tokens": least_max_tokens}
    return Intent(call_id=call_id, job_id=UUID(run.job_id), fence=run.fence, bound=bound, **whose | lengths)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Follow the orders."""
    orders = json.loads(sys.stdin.readline())
    engine = sync_engine(orders["url"], connections=1)
    with engine.connect():
        say("ready")
    sys.stdin.readline()
    spender = Spender(engine, orders["seed"], orders["dies_at"], orders["dies_in"])
    spender.spend([Run(**run) for run in orders["runs"]])


if __name__ == "__main__":
    main()
