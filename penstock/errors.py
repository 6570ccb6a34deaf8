"""Every error that Penstock raises. It must not know what anybody does about them.

PenstockError
├── InvalidRequestError        the caller's fault: which field, why, what to do; nothing was spent or changed
│   ├── InvalidDocumentError   the document is empty, encrypted, corrupt, oversized or of an unknown media type
│   └── IdempotencyConflictError   the key was used before, for something else
├── ConfigurationError         the operator's fault: which file, which line or key, what to do
├── ProviderError              the provider's fault or verdict, with its reason class
│   └── OutputTruncatedError   the answer was cut at `max_tokens`
├── NotAdmittedError           no deployment may be called now: why, and how long to wait
│   └── BudgetError            a hard budget has too little left for the call
├── OutputInvalidError         the model answered, and the answer breaks the prompt's output schema
├── StoreError                Postgres refused a statement, or was away for too long
├── FencedError                another run owns the job now; what this one did must not count
├── BatchTakenError            somebody else stores the input of the batch, or it was cancelled
└── JobError                   the end of a job, told to whoever waits for it
    ├── JobNotFoundError
    ├── JobDeadError
    ├── JobCancelledError
    └── WaitTimeoutError
"""

from typing import TYPE_CHECKING

from penstock.reasons import Reason

if TYPE_CHECKING:
    from penstock.schemas import ReportedLimits, Usage  # pydantic, which a parser's child process does not need

__all__ = [
    "BatchTakenError",
    "BudgetError",
    "ConfigurationError",
    "FencedError",
    "IdempotencyConflictError",
    "InvalidDocumentError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobDeadError",
    "JobError",
    "JobNotFoundError",
    "NotAdmittedError",
    "OutputInvalidError",
    "OutputTruncatedError",
    "PenstockError",
    "ProviderError",
    "Reason",
    "StoreError",
    "WaitTimeoutError",
]


class PenstockError(Exception):
    """Something went wrong in Penstock."""


class InvalidRequestError(PenstockError):
    """A request was refused at the door, and nothing was spent or changed."""

    def __init__(self, field: str, reason: str, cure: str) -> None:
        """Name the field that is wrong, why it is, and what the caller can do."""
        super().__init__(field, reason, cure)
        self.field = field
        self.reason = reason
        self.cure = cure

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.field}: {self.reason}; {self.cure}"

    def __repr__(self) -> str:
        """Say the same where an error is shown by its representation, as in Flower."""
        return f"{type(self).__name__}: {self}"


class InvalidDocumentError(InvalidRequestError):
    """A document cannot be turned into text."""


class IdempotencyConflictError(InvalidRequestError):
    """An idempotency key was used before with different content."""


class ConfigurationError(PenstockError):
    """A configuration file cannot be used as it stands."""

    def __init__(self, file: str, place: str, reason: str, cure: str) -> None:
        """Name the file, the line or key in it, why it is wrong, and what to do."""
        super().__init__(file, place, reason, cure)
        self.file = file
        self.place = place
        self.reason = reason
        self.cure = cure

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.file}, {self.place}: {self.reason}; {self.cure}"


class ProviderError(PenstockError):
    """A call to a provider gave no usable answer.

    `sent` is False only when it is certain that no byte of the request reached the provider.
    `detail` never holds text of the request or of the answer. Survives pickling.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        sent: bool = True,
        usage: "Usage | None" = None,
        limits: "ReportedLimits" = (),
    ) -> None:
        """Give the reason class, a short detail for people, and what the provider said: of waiting, bill and limits."""
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s
        self.sent = sent
        self.usage = usage
        self.limits = limits

    def __str__(self) -> str:
        """Say it in one line."""
        status = f" (HTTP {self.status})" if self.status else ""
        return f"{self.reason}{status}: {self.detail}"


class OutputTruncatedError(ProviderError):
    """The answer was cut at the `max_tokens` that the call had."""

    def __init__(self, max_tokens: int) -> None:
        """Give the bound."""
        super().__init__(Reason.OUTPUT_TRUNCATED, f"the answer was cut at max_tokens = {max_tokens}")
        self.max_tokens = max_tokens

    def __reduce__(self) -> tuple[type["OutputTruncatedError"], tuple[int]]:
        """Be made again from the bound alone."""
        return OutputTruncatedError, (self.max_tokens,)


class NotAdmittedError(PenstockError):
    """No deployment may be called now: `limited`, `unavailable`, `limiter_away`, `in_flight`, or `too_large` for ever.

    Nothing was sent or spent. `wait_s` is when to ask again; None when no waiting helps.
    """

    def __init__(self, reason: Reason, detail: str, wait_s: float | None) -> None:
        """Give the reason class, what lacks in words for people, and how long it will."""
        super().__init__(reason, detail, wait_s)
        self.reason = reason
        self.detail = detail
        self.wait_s = wait_s

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.reason}: {self.detail}"


class BudgetError(NotAdmittedError):
    """A hard budget has too little left: `budget_held` while other calls may give some back, else `budget_exhausted`.

    `degrades` says that the budget's owner wants a summary without a model then; `budget` names it by project, period
    and unit; `room` is what is not spent of it, in its unit.
    """

    def __init__(
        self, reason: Reason, detail: str, wait_s: float | None, *, degrades: bool, budget: "dict[str, str]", room: int
    ) -> None:
        """Give the reason class, which budget it is, how long to wait, and the owner's wish."""
        super().__init__(reason, detail, wait_s)
        self.degrades = degrades
        self.budget = budget
        self.room = room


class OutputInvalidError(PenstockError):
    """The model's answer breaks the output schema of the prompt."""


class StoreError(PenstockError):
    """Postgres refused a statement, or was away for too long; what it said stays in its own log."""


class FencedError(PenstockError):
    """The job belongs to a later run; this one must stop without an effect."""


class BatchTakenError(PenstockError):
    """The input of a batch is no longer this process's to store."""


class JobError(PenstockError):
    """A job did not give a result."""


class JobNotFoundError(JobError):
    """There is no job under this id."""


class JobDeadError(JobError):
    """The job is in the dead letters."""

    def __init__(self, job_id: str, reason: Reason, detail: str) -> None:
        """Name the job and why it died."""
        super().__init__(job_id, reason, detail)
        self.job_id = job_id
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """Say it in one line, with the cure."""
        return f"job {self.job_id} is dead: {self.reason}: {self.detail}; see `penstock dead show {self.job_id}`"


class JobCancelledError(JobError):
    """The job was cancelled."""


class WaitTimeoutError(JobError):
    """The job has not ended within the time given; it goes on."""
