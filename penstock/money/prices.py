"""Prices as integers, and the one place where a cost is rounded. It must not know who pays.

A price is given in dollars per million tokens, which is the same number in nano-dollars per thousand tokens times
1,000: it is kept as nano-dollars per million tokens, so that every price of up to nine decimals is a whole number.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from penstock.errors import ConfigurationError
from penstock.schemas import Frozen, NanoDollars, Usage
from penstock.settings import read_toml

NANO = 10**9
PER_TOKENS = 10**6
MESSAGE_OVERHEAD_TOKENS = 16


RULE = "a price is a string of dollars per million tokens, below a billion, with at most nine decimals"


def _text(dollars: object) -> object:
    if not isinstance(dollars, str | Decimal):
        raise ValueError(RULE)  # noqa: TRY004 - pydantic takes a ValueError
    return dollars


def _nanodollars_per_million(dollars: Decimal) -> Decimal:
    if not 0 <= dollars < NANO or (dollars * NANO) % 1 != 0:
        raise ValueError(RULE)
    return dollars


DollarsPerMillion = Annotated[Decimal, BeforeValidator(_text), AfterValidator(_nanodollars_per_million)]


class Price(Frozen):
    """What one deployment charges from a day on, in dollars per million tokens of each class."""

    starts: date = Field(description="the first day (UTC) on which it holds")
    input: DollarsPerMillion
    cached_input: DollarsPerMillion
    output: DollarsPerMillion

    @property
    def version(self) -> str:
        """Name the price in a ledger row."""
        return self.starts.isoformat()

    def cost(self, usage: Usage) -> NanoDollars:
        """Price the usage in nano-dollars, rounded once, upwards."""
        amount = (
            usage.input_tokens * _rate(self.input)
            + usage.cached_input_tokens * _rate(self.cached_input)
            + usage.output_tokens * _rate(self.output)
        )
        return -(-amount // PER_TOKENS)

    def upper_bound(self, *, prompt_bytes: int, messages: int, max_tokens: int) -> NanoDollars:
        """Price the most that a call can cost: no tokenizer makes more tokens than there are bytes."""
        most = prompt_bytes + messages * MESSAGE_OVERHEAD_TOKENS
        dearest_input = max(_rate(self.input), _rate(self.cached_input))
        return -(-(most * dearest_input + max_tokens * _rate(self.output)) // PER_TOKENS)


def _rate(dollars: Decimal) -> int:
    return int(dollars * NANO)


def _one_a_day(prices: tuple[Price, ...]) -> tuple[Price, ...]:
    days = [price.starts for price in prices]
    twice = {day.isoformat() for day in days if days.count(day) > 1}
    if twice:
        raise ValueError(f"two prices start on {min(twice)}, and only one can hold")
    return prices


class PriceFile(Frozen):
    """The shape of prices.toml: `[[prices.NAME]]` tables, one a change of price, by deployment name."""

    prices: dict[str, Annotated[tuple[Price, ...], AfterValidator(_one_a_day)]]


class PriceList:
    """The prices of every deployment, by day."""

    def __init__(self, path: Path, prices: dict[str, tuple[Price, ...]]) -> None:
        """Keep the prices of a file that has been read."""
        self._path = path
        self._prices = {name: sorted(rows, key=lambda row: row.starts) for name, rows in prices.items()}

    @classmethod
    def load(cls, path: Path) -> "PriceList":
        """Read prices.toml; raise ConfigurationError that names the key."""
        return cls(path, read_toml(path, PriceFile).prices)

    def require(self, deployment: str) -> None:
        """Refuse a deployment that has no price today."""
        self.price_on(deployment, datetime.now(UTC).date())

    def price_on(self, deployment: str, day: date) -> Price:
        """Give the price that holds on a day; an unknown price is an error, it is never zero."""
        held = [price for price in self._prices.get(deployment, []) if price.starts <= day]
        if not held:
            raise ConfigurationError(
                str(self._path),
                f"key 'prices.{deployment}'",
                f"there is no price for deployment {deployment!r} on {day.isoformat()}",
                "add one: a call whose price is unknown is never made",
            )
        return held[-1]
