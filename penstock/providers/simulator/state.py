"""Everything that one running simulator remembers. It must not know HTTP."""

import random

from penstock.clock import Clock
from penstock.providers.simulator.accepted import Accepted
from penstock.providers.simulator.answers import Summariser
from penstock.providers.simulator.batches import Batches
from penstock.providers.simulator.charges import Charge
from penstock.providers.simulator.config import SimulatorConfig
from penstock.providers.simulator.faults import Script
from penstock.providers.simulator.files import Files
from penstock.providers.simulator.invoice import Invoice, Line, price
from penstock.providers.simulator.limits import Limits
from penstock.providers.simulator.stats import Stats
from penstock.providers.simulator.tokens import PromptCache
from penstock.schemas import Usage


class State:
    """The rooms of a simulator, and the one way back to their beginning."""

    def __init__(self, config: SimulatorConfig, clock: Clock) -> None:
        """Start with full limits, no faults and an empty invoice."""
        self.config = config
        self.clock = clock
        self.summariser = Summariser()
        self.script = Script(clock, config.seed)
        self.stats = Stats()
        self.reset()

    def reset(self) -> None:
        """Forget counts, invoice, faults, limits, files, batches and cached prompts; calls in flight go on."""
        self.latencies = random.Random(self.config.seed)  # noqa: S311 - repeatable latencies are wanted
        self.limits = Limits(self.config, self.clock)
        self.accepted = Accepted()
        self.invoice = Invoice()
        self.files = Files(self.clock)
        self.batches = Batches(self.clock, self.config.batch_polls)
        self.prompt_cache = PromptCache(self.config.prompt_cache_min_tokens)
        self.script.clear()
        self.stats.clear()

    def charge(self, account: str, model: str, charge: Charge) -> None:
        """Write down what was taken from an account's quotas."""
        self.accepted.add(account, model, charge)
        self.stats.charged(account, model, charge)

    def bill(
        self, account: str, model: str, usage: Usage, client_request_id: str | None, *, is_batch: bool = False
    ) -> None:
        """Write the line of a call for which the work is done."""
        self.invoice.add(
            Line(
                client_request_id=client_request_id,
                account=account,
                model=model,
                input_tokens=usage.input_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                output_tokens=usage.output_tokens,
                nanodollars=price(usage, self.config.models[model].prices, is_batch=is_batch),
                at=self.clock.now(),
            )
        )
