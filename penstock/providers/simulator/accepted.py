"""Which calls were admitted lately, and what they were charged. It must not know what was allowed."""

from collections import deque
from dataclasses import dataclass
from itertools import takewhile

from penstock.providers.simulator.charges import Charge

NEWEST = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One charge."""

    account: str
    model: str
    charge: Charge

    def row(self) -> list[float | str]:
        """Give [monotonic seconds, account, requests, tokens...], the amounts in the order of the model's quotas."""
        return [self.charge.at_s, self.account, *self.charge.amounts.values()]


class Accepted:
    """The newest 100,000 charges of all models, in the order of their times."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: deque[Entry] = deque(maxlen=NEWEST)

    def add(self, account: str, model: str, charge: Charge) -> None:
        """Write one charge; the oldest one goes when there are too many."""
        self._entries.append(Entry(account, model, charge))

    def rows(self, since_s: float, model: str | None) -> list[list[float | str]]:
        """Give the rows of one model or of all, from the monotonic time `since_s` on, the oldest first."""
        late = takewhile(lambda entry: entry.charge.at_s >= since_s, reversed(self._entries))
        return [entry.row() for entry in late if model in {None, entry.model}][::-1]
