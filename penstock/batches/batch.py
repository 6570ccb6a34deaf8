"""What a batch is. It must not know how it is stored.

A batch has a name that its tenant uses once: whoever runs it again goes on with it, and does only what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from penstock.errors import InvalidRequestError
from penstock.schemas import JobState, NanoDollars, PromptReference

LEAST_FOR_A_VERDICT = 50
"""Jobs that must have ended before their share of errors, or their cost, stops a batch."""

UNDER_WAY = (JobState.QUEUED, JobState.RELEASED, JobState.RUNNING, JobState.RETRYING)


class BatchState(StrEnum):
    """Where a batch stands. A stopped one stopped itself, for its reason; it is resumed as a paused one is."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DONE = "done"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing more happens to the batch."""
        return self in {BatchState.DONE, BatchState.CANCELLED}


@dataclass(frozen=True)
class AbortIf:
    """When a batch stops itself; None means never.

    `errors` is the share of dead jobs among those that ended, `cost` the factor by which a job that ended may cost more
    than the upper end of the forecast.
    """

    errors: float | None = 0.25
    cost: float | None = 1.5

    @classmethod
    def parse(cls, written: tuple[str, ...]) -> "AbortIf":
        """Read `errors>0.1`, `cost>2` or `never`; raise InvalidRequestError."""
        if not written:
            return cls()
        values: dict[str, float | None] = {"errors": None, "cost": None}
        for each in written:
            name, _, limit = (part.strip() for part in each.partition(">"))
            if each.strip() == "never":
                continue
            if name not in values or not _is_limit(name, limit):
                raise InvalidRequestError(
                    "abort_if", f"{each!r} is no rule", "write 'errors>0.1' (a share), 'cost>2' (a factor), or 'never'"
                )
            values[name] = float(limit)
        return cls(**values)


def _is_limit(name: str, limit: str) -> bool:
    try:
        value = float(limit)
    except ValueError:
        return False
    return 0 <= value < 1 if name == "errors" else 0 < value < float("inf")


@dataclass(frozen=True)
class NewBatch:
    """A batch as it is asked for, everything looked up. `digest` names what each of its items is asked.

    It must have ended by `due_by`. `by_provider` wishes that its jobs go to the provider as files, at the price of a
    batch there, where it has the time for that.
    """

    tenant: str
    name: str
    project: str
    prompt: PromptReference
    tier: str
    digest: str
    forecast: dict[str, Any] | None = None
    abort_if: AbortIf = field(default_factory=AbortIf)
    max_nanodollars: NanoDollars | None = None
    starts_at: datetime | None = None
    due_by: datetime | None = None
    by_provider: bool = False
    callback: str | None = None

    @property
    def id(self) -> UUID:
        """Name the batch by its tenant and name, so that it is the same one each time."""
        return uuid5(NAMESPACE_URL, f"penstock:batch:{self.tenant}:{self.name}")


@dataclass(frozen=True)
class Batch:
    """A batch as its row says. `items` of its input are stored, as jobs and errors; `items_digest` names those.

    When it was last resumed, `ended_before` of its jobs had ended, `dead_before` were dead, and its calls had cost
    `settled_before`.
    """

    id: UUID
    tenant: str
    name: str
    project: str
    prompt: PromptReference
    tier: str
    state: BatchState
    reason: str | None
    digest: str
    forecast: dict[str, Any] | None
    abort_if: AbortIf
    callback: str | None
    items: int
    items_digest: str
    is_loaded: bool
    created_at: datetime
    starts_at: datetime
    has_begun: bool
    resumed_at: datetime | None
    ended_at: datetime | None
    max_nanodollars: NanoDollars | None
    ended_before: int
    dead_before: int
    settled_before: NanoDollars

    @property
    def goes_on_at(self) -> datetime:
        """Give when it began, or was last resumed: what is said of its rate, and judged, is what came after."""
        return max(self.starts_at, self.resumed_at or self.starts_at)


@dataclass(frozen=True)
class Progress:
    """How far a batch is: its jobs by state, the items that were refused, and what its calls came to so far.

    Of the paused ones `at_provider` wait for a file that the provider has.
    """

    batch: Batch
    jobs: dict[JobState, int]
    refused: int
    settled_nanodollars: NanoDollars
    held_nanodollars: NanoDollars
    settled_tokens: int
    now: datetime
    at_provider: int = 0

    @property
    def ended(self) -> int:
        """Count the jobs that have ended, however."""
        return sum(count for state, count in self.jobs.items() if state.is_terminal)

    @property
    def waiting(self) -> int:
        """Count the jobs that have not begun, or not yet begun anew."""
        return sum(self.jobs.get(state, 0) for state in (JobState.PAUSED, JobState.QUEUED, JobState.RETRYING))

    @property
    def total(self) -> int:
        """Count all jobs."""
        return sum(self.jobs.values())

    @property
    def is_whole(self) -> bool:
        """Tell whether every item of the input has a result."""
        return self.batch.is_loaded and self.refused == 0 and self.jobs.get(JobState.SUCCEEDED, 0) == self.total

    @property
    def rate(self) -> float:
        """Give how many jobs ended in a second, on average since the batch began or was last resumed."""
        seconds = ((self.batch.ended_at or self.now) - self.batch.goes_on_at).total_seconds()
        return max(0, self.ended - self.batch.ended_before) / seconds if seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Give how many seconds are left at that rate; None where it does not run, or nothing has ended yet."""
        if self.batch.state is not BatchState.RUNNING or not self.rate:
            return None
        return (self.total - self.ended) / self.rate

    def fault(self, paid_a_job: Callable[[], float]) -> str | None:
        """Say why the batch should stop itself, or None; `paid_a_job` is asked where what was settled looks too much.

        That counts calls that were lost at the most they may have cost, and those of jobs that are about to end.
        """
        rules, batch = self.batch.abort_if, self.batch
        ended = self.ended - batch.ended_before
        if ended < LEAST_FOR_A_VERDICT:
            return None
        errors = max(0, self.jobs.get(JobState.DEAD, 0) - batch.dead_before) / ended
        if rules.errors is not None and errors > rules.errors:
            return f"{errors:.1%} of the jobs that ended are dead, where {rules.errors:.1%} are allowed"
        most = (batch.forecast or {}).get("job_nanodollars_high")
        if rules.cost is None or not most:
            return None
        allowed = rules.cost * most
        if (self.settled_nanodollars - batch.settled_before) / ended > allowed and (cost := paid_a_job()) > allowed:
            return f"a job costs {cost / most:.2f} times the most that was forecast, where {rules.cost:g} are allowed"
        return None
