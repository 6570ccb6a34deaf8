"""What a parcel is: jobs of one batch that go to one deployment as one file. It must not know how it is stored."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from penstock.jobs.execution import ClaimedJob


class ParcelState(StrEnum):
    """Where a parcel stands, in the order of its way."""

    COLLECTING = "collecting"
    SEALED = "sealed"
    UPLOADED = "uploaded"
    SENT = "sent"
    OVER = "over"
    SETTLED = "settled"
    ENDED = "ended"


@dataclass(frozen=True)
class Wish:
    """A batch that has jobs for a file, and is to have ended at `due_by`."""

    batch_id: UUID
    tier: str
    due_by: datetime | None
    now: datetime


@dataclass(frozen=True)
class Parcel:
    """A parcel as its row says, held for one turn; `now` is when that began, by the time of Postgres.

    It is sent until `send_by` and given up at `ends_by`. It `may_go` while its batch runs and wishes for files, and
    `returns` where the batch never will again; where it is cancelled, not even the answers are wanted.
    """

    id: UUID
    batch_id: UUID
    tier: str
    deployment: str
    state: ParcelState
    requests: int
    bytes: int
    looked_to: int
    created_at: datetime
    send_by: datetime
    ends_by: datetime
    turn: int
    round: int
    input_file: str | None
    asked_at: datetime | None
    provider_id: str | None
    provider_state: str | None
    over_at: datetime | None
    output_file: str | None
    error_file: str | None
    reason: str | None
    now: datetime
    may_go: bool
    returns: bool
    is_cancelled: bool

    @property
    def marker(self) -> str:
        """Name what the provider was asked in this round."""
        return f"{self.id}/{self.round}"

    @property
    def worker(self) -> str:
        """Name the parcel in the history of its jobs."""
        return f"provider-batch-{self.id}"


@dataclass(frozen=True)
class Request:
    """A job in a parcel: its call, None where none is made for it, and what it asks. A closed one waits no longer."""

    job_id: UUID
    fence: int
    call_id: UUID | None
    digest: str
    is_open: bool = True


@dataclass(frozen=True)
class Sent:
    """A request that the provider has or had, with its job as it stands and what its call was promised."""

    call_id: UUID
    digest: str
    is_open: bool
    is_settled: bool
    deployment: str
    price_version: str
    max_tokens: int
    over_soft_limit: bool
    job: ClaimedJob
