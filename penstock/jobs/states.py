"""The state diagram of a job. It must not know how a transition is carried out."""

from penstock.schemas import JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PAUSED: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.RETRYING, JobState.CANCELLED, JobState.DEAD}
    ),
    JobState.QUEUED: frozenset({JobState.RELEASED, JobState.PAUSED, JobState.CANCELLED, JobState.DEAD}),
    JobState.RELEASED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.DEAD}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.RETRYING, JobState.CANCELLED, JobState.DEAD}
    ),
    JobState.RETRYING: frozenset({JobState.RELEASED, JobState.PAUSED, JobState.CANCELLED, JobState.DEAD}),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
    JobState.DEAD: frozenset({JobState.QUEUED, JobState.CANCELLED}),
}
"""What may follow what. Dead letters are replayed to queued, or discarded to cancelled.

A job is paused only with its batch. A running job goes back to queued when it could not be admitted, a succeeded one
when its degraded result is re-run.
"""

POISON_AFTER = 3
"""Crashes after which a job is dead."""

SUSPECT_AFTER = POISON_AFTER - 1
"""Crashes after which a job shares its worker with no other such job: its next one is most likely its own."""
