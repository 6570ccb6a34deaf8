"""What the jobs of a run ask for. It must not know who runs them.

Each document is its job's own and at most 120 words long, so that the simulator's answer is the document itself: a
result shows whose it is.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.limits.texts import PROMPT, PROMPTS

__all__ = ["BUDGETED", "POISON", "PROMPT", "PROMPTS", "TENANTS", "Ask", "poison"]

POISON = "Whoever reads this line is gone."
BUDGETED = "dune"
"""The tenant whose hard budget ends during the run."""
TENANTS = ("acme", "birch", "cedar", "elder", BUDGETED)
WORDS = ("water", "gate", "level", "river", "valve", "pump", "basin", "flood", "meter", "canal", "lock", "weir")
LENGTH = 90
INTERACTIVE_OF_TEN = 3


@dataclass(frozen=True)
class Ask:
    """The job `number` of a producer: always the same one, however often it is submitted."""

    producer: str
    number: int

    @property
    def key(self) -> str:
        """Name it, for the door that knows repeats."""
        return f"{self.producer}-{self.number}"

    @property
    def tenant(self) -> str:
        """Say whose it is."""
        return TENANTS[self.number % len(TENANTS)]

    @property
    def lane(self) -> str:
        """Say whether somebody waits for it."""
        return "interactive" if self.number * 7 % 10 < INTERACTIVE_OF_TEN else "batch"

    @property
    def document(self) -> str:
        """Give the text."""
        words = random.Random(self.key).choices(WORDS, k=LENGTH)
        return f"Record {self.key} of {self.tenant}: {' '.join(words)}."

    def fields(self) -> Mapping[str, Any]:
        """Give the request as `Client.submit_many` takes it."""
        return {
            "tenant": self.tenant,
            "prompt": PROMPT,
            "document": self.document,
            "lane": self.lane,
            "idempotency_key": self.key,
        }


def poison(number: int) -> Mapping[str, Any]:
    """Give a request that kills the process which is about to ask it."""
    key = f"poison-{number}"
    document = f"Record {key}. {POISON}"
    return {"tenant": TENANTS[0], "prompt": PROMPT, "document": document, "lane": "batch", "idempotency_key": key}
