"""What the provider will ask to be paid for. It must not know whether anybody read the answer."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import AwareDatetime

from penstock.providers.simulator.config import Prices
from penstock.schemas import Frozen, NanoDollars, Usage

PRICED_TOKENS = 1_000_000
BATCH_PARTS = 2


def price(usage: Usage, prices: Prices, *, is_batch: bool = False) -> NanoDollars:
    """Give the nano-dollars of one call, in a batch half of it, rounded up once over all token classes."""
    exact = (
        usage.input_tokens * prices.input
        + usage.cached_input_tokens * prices.cached_input
        + usage.output_tokens * prices.output
    )
    return -(-exact // (PRICED_TOKENS * (BATCH_PARTS if is_batch else 1)))


class Line(Frozen):
    """One call for which the model did its work. `input_tokens` excludes `cached_input_tokens`."""

    client_request_id: str | None
    account: str
    model: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    nanodollars: NanoDollars
    at: AwareDatetime


class Statement(Frozen):
    """Lines and their sums; `lines` is None where only the sums were asked for."""

    lines: tuple[Line, ...] | None
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    total_nanodollars: NanoDollars


class Invoice:
    """All lines since the start or the last reset, in the order of the work."""

    def __init__(self) -> None:
        """Start empty."""
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Write one line."""
        self._lines.append(line)

    def statement(self, account: str | None, since: datetime | None, *, with_lines: bool) -> Statement:
        """Sum the lines of one account or of all, from the aware time `since` on."""
        chosen = tuple(
            line
            for line in self._lines
            if (account is None or line.account == account) and (since is None or line.at >= since)
        )
        return _statement(chosen, with_lines=with_lines)


def _statement(lines: Iterable[Line], *, with_lines: bool) -> Statement:
    chosen = tuple(lines)
    return Statement(
        lines=chosen if with_lines else None,
        calls=len(chosen),
        input_tokens=sum(line.input_tokens for line in chosen),
        cached_input_tokens=sum(line.cached_input_tokens for line in chosen),
        output_tokens=sum(line.output_tokens for line in chosen),
        total_nanodollars=sum(line.nanodollars for line in chosen),
    )
