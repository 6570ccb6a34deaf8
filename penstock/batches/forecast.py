"""What a batch will cost and how long it will take, from a sample of it. It must not know where the figures come from.

Sums are those of the sample times the number of documents. Their interval is that of 95 of 100 samples: the standard
error of a mean with the correction for a finite population (Cochran, Sampling Techniques, 1977, section 2.6), and the
spread of the answers' lengths, as far as earlier calls have shown it. Where none has, an answer has from one token to
all that its prompt allows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean, stdev

from penstock.money.prices import Price
from penstock.providers.quota import Quota, Size
from penstock.schemas import NanoDollars, Resource, Usage, dollars

SURE = 1.96
ROOM = 1.2
"""How much more than the usual answer a call asks for."""
LEAST_SHARE = 0.1
"""What batch gets of each quota, however much interactive asks for."""
PLACES = "places"


@dataclass(frozen=True)
class History:
    """What earlier calls of the prompt came to: how many, the tokens of their answers, and how long each took."""

    calls: int = 0
    mean_tokens: float = 0.0
    deviation: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True)
class Sample:
    """What is known of the input: all its items, how many cannot be read, and what was found of those looked at.

    `prompt_tokens` are whole requests, prompt and document; `refused` of those looked at were no requests.
    """

    items: int
    unreadable: int
    prompt_tokens: Sequence[int]
    refused: int

    @property
    def accepted(self) -> int:
        """Say how many of all items will be jobs."""
        looked_at = len(self.prompt_tokens) + self.refused
        return round((self.items - self.unreadable) * len(self.prompt_tokens) / looked_at) if looked_at else 0


@dataclass(frozen=True)
class Interval:
    """What is expected, and between what it will be in 95 of 100 cases."""

    low: int
    expected: int
    high: int


@dataclass(frozen=True)
class Capacity:
    """What the tier of the batch has: the quotas of its deployments, and how many calls its pools make at a time.

    `interactive_jobs` and `interactive_tokens` a second are what interactive took of late: the batch gets the rest.
    """

    quotas: Sequence[Quota | None]
    places: int
    interactive_jobs: float = 0.0
    interactive_tokens: float = 0.0

    def units_a_second(self) -> dict[Resource, float]:
        """Give what is left to batch of each resource in a second, of all quotas together; missing is without limit."""
        pools = {quota.name: quota for quota in self.quotas if quota is not None}
        if None in self.quotas or not pools:
            return {}
        left = {}
        for resource in set.intersection(*(set(quota.per_minute) for quota in pools.values())):
            whole = sum(quota.rate_of(resource, quota.per_minute[resource]) for quota in pools.values())
            taken = self.interactive_jobs if resource is Resource.REQUESTS else self.interactive_tokens
            left[resource] = max(whole * LEAST_SHARE, whole - taken)
        return left

    @property
    def calls_at_a_time(self) -> int:
        """Give how many calls can be in flight."""
        bounds = [quota.concurrency if quota else None for quota in self.quotas]
        known = [bound for bound in bounds if bound is not None]
        return min(self.places, sum(known)) if len(known) == len(bounds) else self.places


@dataclass(frozen=True)
class Forecast:
    """What a batch will come to: `jobs` of its `items`, tokens, cost in nano-dollars, seconds, and what limits it.

    `limited_by` is a resource of the quotas, or `places`: the calls that its pools make at a time.
    `seconds` is 0 where nothing is known that limits it.
    """

    items: int
    jobs: int
    prompt_tokens: Interval
    answer_tokens: Interval
    nanodollars: Interval
    seconds: float
    limited_by: str | None
    answers_seen: int

    @property
    def job_nanodollars_high(self) -> NanoDollars:
        """Give the upper end of what one job costs."""
        return -(-self.nanodollars.high // self.jobs) if self.jobs else 0

    def ends_at(self, starts_at: datetime) -> datetime:
        """Say when it will have ended."""
        return starts_at + timedelta(seconds=self.seconds)

    def objections(self, starts_at: datetime, until: datetime | None, most: NanoDollars | None) -> list[str]:
        """Say why it should not be started: it cannot be done by then, or may cost more."""
        found = []
        if until is not None and self.ends_at(starts_at) > until:
            late = self.ends_at(starts_at) - until
            found.append(f"it would end {timedelta(seconds=round(late.total_seconds()))} too late")
        if most is not None and self.nanodollars.high > most:
            found.append(f"it may cost {dollars(self.nanodollars.high)}, and {dollars(most)} are allowed")
        return found


def forecast(sample: Sample, history: History, price: Price, max_tokens: int, capacity: Capacity) -> Forecast:
    """Say what a batch will come to, of whose requests `sample` has seen some; answers have at most `max_tokens`."""
    jobs = sample.accepted
    if not jobs:
        nothing = Interval(0, 0, 0)
        return Forecast(sample.items, 0, nothing, nothing, nothing, 0.0, None, history.calls)
    prompts = _total(jobs, sample.prompt_tokens)
    answers = _answers(jobs, history, max_tokens)
    costs = [price.cost(Usage(input_tokens=tokens, output_tokens=0)) for tokens in sample.prompt_tokens]
    input_cost = _total(jobs, costs)
    per_token = price.dearest_output_rate / 10**6
    nanodollars = Interval(
        input_cost.low + math.floor(answers.low * per_token),
        input_cost.expected + math.ceil(answers.expected * per_token),
        input_cost.high + math.ceil(answers.high * per_token),
    )
    seconds, limited_by = _time(jobs, sample.prompt_tokens, history, max_tokens, capacity)
    return Forecast(sample.items, jobs, prompts, answers, nanodollars, seconds, limited_by, history.calls)


def _total(jobs: int, seen: Sequence[int]) -> Interval:
    """Extrapolate a sum from a sample."""
    mean = fmean(seen)
    error = 0.0
    if 1 < len(seen) < jobs:
        error = SURE * stdev(seen) / math.sqrt(len(seen)) * math.sqrt(1 - len(seen) / jobs)
    elif len(seen) < jobs:
        error = mean  # one document says nothing about the others
    return Interval(math.floor(max(0.0, mean - error) * jobs), round(mean * jobs), math.ceil((mean + error) * jobs))


def _answers(jobs: int, history: History, max_tokens: int) -> Interval:
    if not history.calls:
        return Interval(jobs, jobs * (max_tokens + 1) // 2, jobs * max_tokens)
    of_mean = history.deviation / math.sqrt(history.calls)
    of_sum = history.deviation / math.sqrt(jobs)
    error = SURE * math.hypot(of_mean, of_sum)
    low, high = max(0.0, history.mean_tokens - error), history.mean_tokens + error
    return Interval(
        math.floor(min(low, max_tokens) * jobs),
        round(min(history.mean_tokens, max_tokens) * jobs),
        math.ceil(min(high, max_tokens) * jobs),
    )


def _time(
    jobs: int, prompts: Sequence[int], history: History, max_tokens: int, capacity: Capacity
) -> tuple[float, str | None]:
    """Give the seconds of what takes longest, and its name."""
    usual = max_tokens
    if history.calls:
        usual = min(max_tokens, math.ceil((history.mean_tokens + SURE * history.deviation) * ROOM))
    taken = _taken([Size(prompt=tokens, max_tokens=usual, output=usual) for tokens in prompts], capacity)
    seconds = {
        str(resource): jobs * taken[resource] / per_second for resource, per_second in capacity.units_a_second().items()
    }
    seconds[PLACES] = jobs * history.latency_s / capacity.calls_at_a_time
    name = max(seconds, key=lambda each: seconds[each])
    return (seconds[name], name) if seconds[name] else (0.0, None)


def _taken(sizes: Sequence[Size], capacity: Capacity) -> Mapping[Resource, float]:
    """Give what a call takes of each resource on average, as the first quota charges it."""
    quota = next((quota for quota in capacity.quotas if quota is not None), None)
    if quota is None:
        return {}
    charges = [quota.charge_of(size) for size in sizes]
    return {resource: fmean(charge[resource] for charge in charges) for resource in quota.per_minute}
