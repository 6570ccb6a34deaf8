"""Jobs as others see them, and cancelling, which is all that others may do to a live one."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from penstock.errors import Reason
from penstock.jobs import execution, queries
from penstock.jobs.execution import Claim, Ending, Outcome
from penstock.jobs.queries import Filter
from penstock.schemas import JobState
from tests.jobs import rows


def find(engine: Engine, most: int = 100, **which: Any) -> list[UUID]:
    with engine.begin() as connection:
        return [job.id for job in queries.find(connection, Filter(**which), most=most)]


def cancel(engine: Engine, *ids: UUID) -> list[UUID]:
    with engine.begin() as connection:
        return queries.cancel(connection, list(ids))


def test_ids_that_do_not_exist_are_missing_from_the_answer(engine: Engine) -> None:
    job = rows.new_job()
    rows.submit(engine, job)
    with engine.begin() as connection:
        assert list(queries.get(connection, [job.id, uuid4()])) == [job.id]
        assert queries.states(connection, [job.id, uuid4()]) == {job.id: JobState.RELEASED}
        assert (queries.get(connection, []), queries.states(connection, [])) == ({}, {})


def test_jobs_are_found_by_each_part_of_a_filter_and_by_all_together(engine: Engine) -> None:
    acme, globex, large = rows.new_job(), rows.new_job(tenant="globex"), rows.new_job(tier="large")
    rows.submit(engine, acme, globex, large)
    dead = rows.dead_job(engine)
    assert set(find(engine)) == {acme.id, globex.id, large.id, dead}
    assert find(engine, tenant="globex") == [globex.id]
    assert find(engine, tier="large") == [large.id]
    assert find(engine, state=JobState.DEAD) == [dead]
    assert find(engine, reason=Reason.BAD_REQUEST) == [dead]
    everything: dict[str, Any] = {
        "tenant": "acme",
        "state": JobState.DEAD,
        "tier": "small",
        "reason": Reason.BAD_REQUEST,
    }
    assert find(engine, **everything) == [dead]
    assert find(engine, **everything | {"tenant": "globex"}) == []
    assert find(engine, tenant="' OR true --") == []


def test_the_newest_jobs_come_first_and_no_more_than_asked(engine: Engine) -> None:
    jobs = [rows.new_job() for _ in range(4)]
    for job in jobs:
        rows.submit(engine, job)
    assert find(engine, most=3) == [jobs[3].id, jobs[2].id, jobs[1].id]


def test_since_means_the_end_of_a_job_or_its_creation_while_it_lives(engine: Engine) -> None:
    old, ended_late = rows.new_job(), rows.running_job(engine)
    rows.submit(engine, old)
    rows.finish(engine, rows.success(ended_late))
    rows.execute(engine, "UPDATE jobs SET created_at = now() - interval '1 day'")
    young = rows.new_job()
    rows.submit(engine, young)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert set(find(engine, since=since)) == {ended_late.id, young.id}


@pytest.mark.parametrize("state", ["queued", "released", "running", "retrying"])
def test_a_live_job_is_cancelled(engine: Engine, state: str) -> None:
    job = rows.new_job()
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state)
    assert cancel(engine, job.id) == [job.id]
    cancelled = rows.row(engine, job.id)
    assert (cancelled["state"], cancelled["ended_at"] is not None) == ("cancelled", True)


@pytest.mark.parametrize("state", ["succeeded", "dead", "cancelled"])
def test_what_has_ended_is_not_cancelled(engine: Engine, state: str) -> None:
    rows.submit(engine, job := rows.new_job())
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state)
    before = rows.everything(engine)
    assert cancel(engine, job.id, uuid4()) == []
    assert rows.everything(engine) == before


def test_a_cancellation_ends_the_attempt_in_flight_and_leaves_earlier_ones(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.RETRIED, Reason.TIMEOUT))
    rows.claim_again(engine, job.id)
    cancel(engine, job.id)
    assert rows.history(engine, job.id) == [(1, "w1", "retried", "timeout"), (2, "w1", "cancelled", None)]


def test_a_cancelled_retry_keeps_its_history(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.RETRIED, Reason.TIMEOUT))
    assert cancel(engine, job.id) == [job.id]
    assert rows.history(engine, job.id) == [(1, "w1", "retried", "timeout")]


def test_a_cancelled_job_is_never_claimed(engine: Engine) -> None:
    rows.submit(engine, job := rows.new_job())
    rows.start_worker(engine)
    with engine.connect() as connection:
        queries.cancel(connection, [job.id])
        with rows.behind(engine, partial(execution.claim, claims=[Claim(job.id, "w1")])) as claimed:
            connection.commit()
    assert claimed.result() == [None]


def test_a_cancellation_that_waits_for_a_success_comes_too_late(engine: Engine) -> None:
    job = rows.running_job(engine)
    with engine.connect() as connection:
        execution.finish(connection, [rows.success(job)])
        with rows.behind(engine, partial(queries.cancel, ids=[job.id])) as cancelled:
            connection.commit()
    assert cancelled.result() == []
    assert rows.history(engine, job.id) == [(1, "w1", "succeeded", None)]
