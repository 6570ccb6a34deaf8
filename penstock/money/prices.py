"""Prices as integers, and the one place where a cost is rounded. It must not know who pays.

A price is given in dollars per million tokens, which is the same number in nano-dollars per thousand tokens times
1,000: it is kept as nano-dollars per million tokens, so that every price of up to nine decimals is a whole number.
"""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from penstock.errors import ConfigurationError
from penstock.schemas import Frozen, NanoDollars, Usage
from penstock.settings import read_toml

NANO = 10**9
PER_TOKENS = 10**6
MESSAGE_OVERHEAD_TOKENS = 16
UNLIMITED_TOKENS = 2**53
"""More than any answer has: what a given sum buys where tokens cost nothing."""

RULE = "a price is a string of dollars per million tokens, below a billion, with at most nine decimals"
DISCOUNT_RULE = "a batch discount is a string from '0' to below '1', with at most nine decimals: '0.5' takes half off"


def _text(rule: str, value: object) -> object:
    if not isinstance(value, str | Decimal):
        raise ValueError(rule)  # noqa: TRY004 - pydantic takes a ValueError
    return value


def _exact(rule: str, limit: int, value: Decimal) -> Decimal:
    if not 0 <= value < limit or (value * NANO) % 1 != 0:
        raise ValueError(rule)
    return value


DollarsPerMillion = Annotated[
    Decimal, BeforeValidator(partial(_text, RULE)), AfterValidator(partial(_exact, RULE, NANO))
]
Discount = Annotated[
    Decimal, BeforeValidator(partial(_text, DISCOUNT_RULE)), AfterValidator(partial(_exact, DISCOUNT_RULE, 1))
]


class TokenPrices(Frozen):
    """What a million tokens of each class cost, in dollars."""

    input: DollarsPerMillion
    cached_input: DollarsPerMillion
    output: DollarsPerMillion
    cache_write: DollarsPerMillion | None = Field(default=None, description="None: the price of input")
    reasoning: DollarsPerMillion | None = Field(default=None, description="None: the price of output")

    def amount(self, usage: Usage) -> int:
        """Price the usage in nano-dollars times a million, exactly."""
        return (
            usage.input_tokens * _rate(self.input)
            + usage.cached_input_tokens * _rate(self.cached_input)
            + usage.cache_write_tokens * self._cache_write_rate
            + usage.output_tokens * _rate(self.output)
            + usage.reasoning_tokens * self._reasoning_rate
        )

    @property
    def dearest_prompt_rate(self) -> int:
        """Give the most that a million prompt tokens cost, in nano-dollars, whatever their class."""
        return max(_rate(self.input), _rate(self.cached_input), self._cache_write_rate)

    @property
    def dearest_output_rate(self) -> int:
        """Give the most that a million tokens of an answer cost, in nano-dollars, whatever their class."""
        return max(_rate(self.output), self._reasoning_rate)

    @property
    def _cache_write_rate(self) -> int:
        return _rate(self.input if self.cache_write is None else self.cache_write)

    @property
    def _reasoning_rate(self) -> int:
        return _rate(self.output if self.reasoning is None else self.reasoning)


class ContextTier(TokenPrices):
    """The prices of a call with a longer prompt: of all its tokens, not only of those beyond the limit."""

    above: int = Field(gt=0, strict=True, description="it holds for prompts of more tokens than this, of all classes")


def _ascending(tiers: tuple[ContextTier, ...]) -> tuple[ContextTier, ...]:
    limits = [tier.above for tier in tiers]
    if any(later <= earlier for earlier, later in pairwise(limits)):
        raise ValueError(f"context tiers stand in the order of 'above', each only once, and here it is {limits}")
    return tiers


@dataclass(frozen=True, slots=True)
class UpperBound:
    """The most that one call can take, by its `max_tokens`. Plain numbers, so that it can be stored and sent.

    `prompt_tokens` are tokens of all classes, `prompt_amount` is what they cost in nano-dollars times a million, and
    `output_rate` is in nano-dollars per million tokens.
    """

    prompt_tokens: int
    prompt_amount: int
    output_rate: int

    def nanodollars(self, max_tokens: int) -> NanoDollars:
        """Price the most that a call can cost, rounded up once."""
        return _round_up(self.prompt_amount + max_tokens * self.output_rate, PER_TOKENS)

    def tokens(self, max_tokens: int) -> int:
        """Count the most tokens that a call can take, of all classes."""
        return self.prompt_tokens + max_tokens

    def max_tokens_within(self, nanodollars: NanoDollars) -> int:
        """Give the largest `max_tokens` that costs no more; 0 or less where even one token of an answer is too dear."""
        left = nanodollars * PER_TOKENS - self.prompt_amount
        if self.output_rate == 0:
            return UNLIMITED_TOKENS if left >= 0 else 0
        return left // self.output_rate


class Price(TokenPrices):
    """What one deployment charges from a day on."""

    starts: date = Field(description="the first day (UTC) on which it holds")
    batch_discount: Discount | None = Field(
        default=None, description="the share that the provider's batch API takes off; None: it has no batch price"
    )
    context_tiers: Annotated[tuple[ContextTier, ...], AfterValidator(_ascending)] = ()

    @property
    def version(self) -> str:
        """Name the price in a ledger row."""
        return self.starts.isoformat()

    def cost(self, usage: Usage, *, is_batch: bool = False) -> NanoDollars:
        """Price the usage in nano-dollars, rounded once, upwards.

        Raises ConfigurationError for a call in a batch if the price has no batch discount.
        """
        amount = self._prices_at(usage.prompt_tokens).amount(usage)
        if not is_batch:
            return _round_up(amount, PER_TOKENS)
        return _round_up(amount * self._batch_share, PER_TOKENS * NANO)

    def upper_bound(self, *, prompt_bytes: int, messages: int, is_batch: bool = False) -> UpperBound:
        """Bound what a call can cost: no tokenizer makes more tokens than there are bytes.

        Raises ConfigurationError for a call in a batch if the price has no batch discount.
        """
        most = prompt_bytes + messages * MESSAGE_OVERHEAD_TOKENS
        within_reach: list[TokenPrices] = [self, *(tier for tier in self.context_tiers if tier.above < most)]
        prompt_amount = most * max(prices.dearest_prompt_rate for prices in within_reach)
        output_rate = max(prices.dearest_output_rate for prices in within_reach)
        if is_batch:
            prompt_amount = _round_up(prompt_amount * self._batch_share, NANO)
            output_rate = _round_up(output_rate * self._batch_share, NANO)
        return UpperBound(prompt_tokens=most, prompt_amount=prompt_amount, output_rate=output_rate)

    def _prices_at(self, prompt_tokens: int) -> TokenPrices:
        return next((tier for tier in reversed(self.context_tiers) if prompt_tokens > tier.above), self)

    @property
    def _batch_share(self) -> int:
        """Give what is left of the price, in parts of 10^9."""
        if self.batch_discount is None:
            raise ConfigurationError(
                "prices.toml",
                f"the price from {self.version} on",
                "it has no batch discount, and a call in a batch cannot be priced",
                "add batch_discount: '0' if a batch costs as much as single calls",
            )
        return NANO - _rate(self.batch_discount)


def _rate(dollars: Decimal) -> int:
    return int(dollars * NANO)


def _round_up(amount: int, parts: int) -> int:
    return -(-amount // parts)


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
