"""Where a waiting job stands: who of its own tenant goes first, who takes turns with it, who could run it."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from penstock.jobs import leases, waiting
from penstock.jobs.waiting import Standing
from penstock.schemas import JobState, Lane
from tests.jobs import rows


def standing(engine: Engine, job_id: UUID) -> Standing:
    with engine.connect() as connection:
        found = waiting.standing(connection, job_id)
    assert found is not None
    return found


def queued(engine: Engine, number: int = 1, **changes: object) -> list[UUID]:
    """Submit jobs of lane batch, one after the other."""
    jobs = [rows.new_job(lane=Lane.BATCH, **changes) for _ in range(number)]
    for job in jobs:
        rows.submit(engine, job)
    return [job.id for job in jobs]


def test_a_job_alone_stands_before_nobody(engine: Engine) -> None:
    [job_id] = queued(engine)
    row = rows.row(engine, job_id)
    assert standing(engine, job_id) == Standing(
        id=job_id,
        tenant="acme",
        state=JobState.QUEUED,
        tier="small",
        lane=Lane.BATCH,
        due_at=row["due_at"],
        is_put_off=False,
        reason=None,
        detail=None,
        attempts=0,
        estimated_tokens=100,
        released_at=None,
        started_at=None,
        workers=0,
        own_before=0,
        others_waiting=0,
        outstanding=0,
    )


def test_an_unknown_job_stands_nowhere(engine: Engine) -> None:
    queued(engine)
    with engine.connect() as connection:
        assert waiting.standing(connection, uuid4()) is None


def test_of_its_tenants_own_jobs_the_older_go_first(engine: Engine) -> None:
    ids = queued(engine, 5)
    assert [standing(engine, job_id).own_before for job_id in ids] == [0, 1, 2, 3, 4]


def test_of_its_tenants_own_jobs_those_of_higher_priority_go_first(engine: Engine) -> None:
    [usual], [urgent], [idle] = queued(engine), queued(engine, priority=9), queued(engine, priority=0)
    assert [standing(engine, job_id).own_before for job_id in (urgent, usual, idle)] == [0, 1, 2]


def test_jobs_that_came_together_are_told_apart_as_the_feeder_does(engine: Engine) -> None:
    ids = sorted(queued(engine, 4))
    rows.execute(engine, "UPDATE jobs SET created_at = now()")
    assert [standing(engine, job_id).own_before for job_id in ids] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "elsewhere", [{"lane": "interactive"}, {"tier": "large"}, {"state": "retrying"}, {"state": "succeeded"}]
)
def test_who_waits_elsewhere_or_has_ended_is_not_counted(engine: Engine, elsewhere: dict[str, str]) -> None:
    own, other, [last] = queued(engine, 2), queued(engine, 3, tenant="other"), queued(engine)
    assert (standing(engine, last).own_before, standing(engine, last).others_waiting) == (2, 3)
    [(column, value)] = elsewhere.items()
    for job_id in (own[0], *other[:2]):
        rows.execute(engine, f"UPDATE jobs SET {column} = :value WHERE id = :id", value=value, id=job_id)
    assert (standing(engine, last).own_before, standing(engine, last).others_waiting) == (1, 1)


def test_outstanding_are_the_tenants_jobs_of_the_tier_in_both_lanes(engine: Engine) -> None:
    rows.running_job(engine)
    rows.submit(engine, rows.new_job(), rows.new_job(tier="large"), rows.new_job(tenant="other"))
    [job_id] = queued(engine)
    assert standing(engine, job_id).outstanding == 2


@pytest.mark.parametrize(
    ("away", "workers"),
    [
        ([], 2),
        (["w1"], 1),
        (["w1", "w2"], 0),
    ],
)
def test_workers_are_those_of_the_tier_that_live(engine: Engine, away: list[str], workers: int) -> None:
    with engine.begin() as connection:
        for name, tier in {"w1": "small", "w2": "small", "w3": "large"}.items():
            leases.renew(connection, name, 60, tier)
    for name in away:
        rows.expire_lease(engine, name)
    [job_id] = queued(engine)
    assert standing(engine, job_id).workers == workers


@pytest.mark.parametrize(("due_at", "is_put_off"), [("now() + interval '1 minute'", True), ("now()", False)])
def test_a_job_that_is_due_later_is_put_off(engine: Engine, due_at: str, *, is_put_off: bool) -> None:
    [job_id] = queued(engine)
    rows.execute(engine, f"UPDATE jobs SET due_at = {due_at}")
    found = standing(engine, job_id)
    assert found.is_put_off is is_put_off
    assert (found.due_at > datetime.now(UTC)) is is_put_off


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_in_any_state_has_a_standing(engine: Engine, state: JobState) -> None:
    [job_id] = queued(engine)
    rows.execute(engine, "UPDATE jobs SET state = :state, attempts = 3, reason = 'timeout', detail = 'x'", state=state)
    found = standing(engine, job_id)
    assert (found.state, found.attempts, found.reason, found.detail) == (state, 3, "timeout", "x")


def test_looking_changes_nothing(engine: Engine) -> None:
    ids = queued(engine, 3)
    rows.start_worker(engine)
    before = rows.everything(engine)
    for job_id in ids:
        standing(engine, job_id)
    assert rows.everything(engine) == before
