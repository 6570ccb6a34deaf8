"""Which jobs are asked for, when and by whom: the same ones for everybody. It must not know who does them.

Four tenants have a night batch each, of documents of very different sizes, which lasts longer than the run; they hand
it in side by side, a document of each in turn. Beside it comes an interactive job every now and then.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from bench.limits.texts import VARIANTS, Document, prompt, prompt_tokens

SIZES = {"tenant-a": 500, "tenant-b": 1500, "tenant-c": 3000, "tenant-d": 10_000}
INTERACTIVE = "desk"
INTERACTIVE_TOKENS = 500
BACKLOG = 2.0
SEED = 7


@dataclass(frozen=True)
class Load:
    """How much is asked for: interactive jobs a second and their size, and how the tenants of the batch share."""

    interactive_per_s: float = 2.0
    interactive_tokens: int = INTERACTIVE_TOKENS
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SIZES, 1.0))

    def batch(self, tokens: float) -> list[tuple[str, Document]]:
        """Give the tenants and documents of a batch of which a provider of `tokens` tokens leaves some of each tenant.

        A call counts for no less than the prompt's bound of an answer, as most providers charge it.
        """
        queues = []
        for tenant, weight in self.weights.items():
            cost = max(prompt_tokens(Document(SIZES[tenant], 0)), prompt().max_tokens)
            calls = 1 + int(tokens * BACKLOG * weight / sum(self.weights.values()) / cost)
            queues.append([(tenant, Document(SIZES[tenant], number % VARIANTS)) for number in range(calls)])
        return [job for turn in zip_longest(*queues) for job in turn if job is not None]

    def interactive(self, from_s: float) -> Iterator[tuple[float, Document]]:
        """Give times, without end, and documents: they come as independent people do (Poisson)."""
        source, at_s, number = random.Random(SEED), from_s, 0
        while True:
            at_s += source.expovariate(self.interactive_per_s)
            yield at_s, Document(self.interactive_tokens, number % VARIANTS)
            number += 1


EVEN = Load()
WEIGHTED = Load(weights={"tenant-a": 1.0, "tenant-b": 2.0, "tenant-c": 3.0, "tenant-d": 4.0})
