"""What has been received, and how it was answered. It must not know why."""

from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from penstock.providers.simulator.charges import Charge, Resource

UNKNOWN = "unknown"
CLOSED = "closed"


class Stats:
    """Counts per model; a request that gets no status line counts as `closed`."""

    def __init__(self) -> None:
        """Start at zero."""
        self._in_flight: Counter[str] = Counter()
        self.clear()

    def clear(self) -> None:
        """Forget everything but what is in flight."""
        self._received: Counter[str] = Counter()
        self._answered: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._peak: Counter[str] = Counter(self._in_flight)
        self._charged: defaultdict[str, defaultdict[str, Counter[Resource]]] = defaultdict(lambda: defaultdict(Counter))

    @contextmanager
    def request(self, model: str) -> Generator[None, None, None]:
        """Count a request as received, and as in flight while the context is open."""
        self._received[model] += 1
        self._in_flight[model] += 1
        self._peak[model] = max(self._peak[model], self._in_flight[model])
        try:
            yield
        finally:
            self._in_flight[model] -= 1

    def answered(self, model: str, status: int | None) -> None:
        """Count how a request is answered."""
        self._answered[model][CLOSED if status is None else str(status)] += 1

    def charged(self, account: str, model: str, charge: Charge) -> None:
        """Add up what an account was charged."""
        self._charged[model][account].update(charge.amounts)

    def report(self) -> dict[str, object]:
        """Give all counts."""
        return {
            "received": sum(self._received.values()),
            "models": {
                model: {
                    "received": count,
                    "statuses": dict(self._answered[model]),
                    "in_flight": self._in_flight[model],
                    "peak_in_flight": self._peak[model],
                    "charged": self._charged[model],
                }
                for model, count in self._received.items()
            },
        }
