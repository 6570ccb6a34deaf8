"""One of the processes: `python -m bench.budgets.child` reads its orders, says `ready`, and waits for a word."""

import asyncio
import json
import sys
from typing import Any

from bench.budgets import flow, race
from bench.budgets.processes import ready
from penstock.house import Journal
from penstock.store.db import async_engine


async def follow(orders: dict[str, Any]) -> None:
    """Do what was ordered."""
    engine = async_engine(orders["url"])
    async with engine.connect():
        ready()
    if orders["role"] == "race":
        await race.spend(Journal(engine), orders)
    elif orders["role"] == "arrivals":
        print(json.dumps(await flow.arrive_and_wait(Journal(engine), orders)))
    else:
        print(await flow.call_and_count(*flow.steps(engine, orders["role"]), orders))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(follow(json.loads(sys.stdin.readline())))
