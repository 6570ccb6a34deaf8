"""A job that could not be admitted is where it was before it was released: no attempt, no history, no charge."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from penstock.errors import Reason
from penstock.jobs import execution, queries, release
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.jobs.release import Allowance
from penstock.schemas import JobState, Lane
from tests.jobs import rows


def finish_and_read_the_clock(engine: Engine, ending: Ending) -> datetime:
    """End an attempt and give Postgres's time of that."""
    with engine.begin() as connection:
        assert execution.finish(connection, [ending]) == [True]
        now = connection.scalar(text("SELECT now()"))
    assert isinstance(now, datetime)
    return now


def fed_job(engine: Engine, **changes: object) -> ClaimedJob:
    """Submit a batch job, have the feeder release it, and claim it."""
    job = rows.new_job(lane=Lane.BATCH, **changes)
    rows.start_worker(engine)
    rows.submit(engine, job)
    feed(engine)
    claimed = rows.claim(engine, job.id)
    assert claimed is not None
    return claimed


def feed(engine: Engine) -> list[UUID]:
    with engine.begin() as connection:
        retries = release.release_retries(connection, "small", Lane.BATCH, Allowance(9))
        return [
            found.job_id for found in [*retries, *release.release_fairly(connection, "small", Lane.BATCH, Allowance(9))]
        ]


def test_a_first_attempt_that_is_not_admitted_was_none(engine: Engine) -> None:
    job = rows.running_job(engine)

    now = finish_and_read_the_clock(engine, rows.deferral(job, 2.5))

    deferred = rows.row(engine, job.id)
    assert (deferred["state"], deferred["attempts"], deferred["failures"]) == ("queued", 0, 0)
    assert (deferred["reason"], deferred["detail"]) == ("limited", "tokens of quota sim")
    assert deferred["due_at"] == now + timedelta(seconds=2.5)
    assert deferred["ended_at"] is None
    assert rows.history(engine, job.id) == []
    assert rows.everything(engine)["results"] == []


def test_a_later_attempt_that_is_not_admitted_leaves_those_before_it(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.RETRIED, Reason.OVERLOADED, failed=True))
    again = rows.claim_again(engine, job.id)

    now = finish_and_read_the_clock(engine, rows.deferral(again, 0.125))

    deferred = rows.row(engine, job.id)
    assert (deferred["state"], deferred["attempts"], deferred["failures"]) == ("retrying", 1, 1)
    assert deferred["due_at"] == now + timedelta(seconds=0.125)
    assert rows.history(engine, job.id) == [(1, "w1", "retried", "overloaded")]


def test_a_job_that_is_put_off_time_and_again_never_has_an_attempt(engine: Engine) -> None:
    job = rows.running_job(engine, lane=Lane.INTERACTIVE)
    for fence in (1, 2, 3):
        assert job.fence == fence
        assert rows.finish(engine, rows.deferral(job)) is True
        with engine.begin() as connection:
            (found,) = release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(1))
        assert (found.job_id, found.is_retry) == (job.id, False)
        again = rows.claim(engine, job.id)
        assert again is not None
        job = again
    assert rows.finish(engine, rows.success(job)) is True
    ended = rows.row(engine, job.id)
    assert (ended["state"], ended["attempts"], ended["fence"]) == ("succeeded", 1, 4)
    assert rows.history(engine, job.id) == [(4, "w1", "succeeded", None)]


def test_it_is_not_released_before_it_is_due(engine: Engine) -> None:
    job = fed_job(engine)
    rows.finish(engine, rows.deferral(job, 60.0))
    before = rows.everything(engine)
    assert feed(engine) == []
    assert rows.everything(engine) == before
    rows.execute(engine, "UPDATE jobs SET due_at = now()")
    assert feed(engine) == [job.id]


def test_what_its_tenant_was_charged_is_given_back_and_charged_again(engine: Engine) -> None:
    job = fed_job(engine, estimated_tokens=700)
    assert rows.served_tokens(engine) == {"acme": 700, "": 0}

    rows.finish(engine, rows.deferral(job))

    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (0, 0)
    assert feed(engine) == [job.id]
    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (700, 700)


def test_a_tenant_pays_for_the_releases_that_its_own_calls_keep_from_its_budget(engine: Engine) -> None:
    job = fed_job(engine, estimated_tokens=700)

    rows.finish(engine, replace(rows.deferral(job), reason=Reason.BUDGET_HELD))

    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (700, 0)
    assert feed(engine) == [job.id]
    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (1400, 700)


def test_a_retry_that_is_put_off_keeps_its_charge_until_its_end(engine: Engine) -> None:
    job = fed_job(engine, estimated_tokens=700)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.RETRIED, Reason.OVERLOADED, failed=True))
    again = rows.claim_again(engine, job.id)

    rows.finish(engine, rows.deferral(again))

    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (700, 700)


def test_a_deferral_of_an_earlier_run_changes_nothing(engine: Engine) -> None:
    job = fed_job(engine)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.RETRIED, Reason.OVERLOADED))
    rows.claim_again(engine, job.id)
    before = rows.everything(engine)
    assert rows.finish(engine, rows.deferral(job)) is False
    assert rows.everything(engine) == before


def test_a_job_is_put_off_once_a_run(engine: Engine) -> None:
    job = fed_job(engine)
    rows.finish(engine, rows.deferral(job))
    before = rows.everything(engine)
    assert rows.finish(engine, rows.deferral(job)) is False
    assert rows.finish(engine, rows.success(job)) is False
    assert rows.everything(engine) == before


def test_a_cancelled_job_stays_cancelled(engine: Engine) -> None:
    job = fed_job(engine)
    with engine.begin() as connection:
        assert queries.cancel(connection, [job.id]) == [job.id]
    before = rows.everything(engine)
    assert rows.finish(engine, rows.deferral(job)) is False
    assert rows.everything(engine) == before
    assert rows.history(engine, job.id) == [(1, "w1", "cancelled", None)]


def test_a_deferral_that_waits_for_a_cancellation_is_refused(engine: Engine) -> None:
    job = fed_job(engine)
    with engine.connect() as connection:
        queries.cancel(connection, [job.id])
        with rows.behind(engine, lambda other: execution.finish(other, [rows.deferral(job)])) as ended:
            connection.commit()
    assert ended.result() == [False]
    assert rows.state(engine, job.id) == "cancelled"
    assert rows.served_tokens(engine)["acme"] == 100


def test_a_cancellation_that_waits_for_a_deferral_finds_a_job_that_lives(engine: Engine) -> None:
    job = fed_job(engine)
    with engine.connect() as connection:
        assert execution.finish(connection, [rows.deferral(job)]) == [True]
        with rows.behind(engine, lambda other: queries.cancel(other, [job.id])) as cancelled:
            connection.commit()
    assert cancelled.result() == [job.id]
    assert (rows.state(engine, job.id), rows.history(engine, job.id)) == ("cancelled", [])


def test_of_a_batch_each_job_goes_its_own_way(engine: Engine) -> None:
    first, later, done = (fed_job(engine, tenant=tenant) for tenant in ("first", "later", "done"))
    rows.finish(engine, Ending(later.id, later.fence, Outcome.HANDED_BACK))
    later = rows.claim_again(engine, later.id)
    endings = [rows.deferral(later, 3.0), rows.success(done), rows.deferral(first, 2.0)]
    with engine.begin() as connection:
        assert execution.finish(connection, endings) == [True, True, True]
    assert [rows.state(engine, job.id) for job in (first, later, done)] == ["queued", "retrying", "succeeded"]
    assert [rows.row(engine, job.id)["attempts"] for job in (first, later, done)] == [0, 1, 1]
    assert rows.history(engine, done.id) == [(1, "w1", "succeeded", None)]
    assert rows.history(engine, later.id) == [(1, "w1", "handed_back", None)]


@pytest.mark.parametrize("deferral_comes_first", [True, False])
def test_of_a_deferral_and_a_success_of_one_run_in_one_batch_the_first_counts(
    engine: Engine, *, deferral_comes_first: bool
) -> None:
    job = fed_job(engine)
    endings = [rows.deferral(job), rows.success(job)]
    with engine.begin() as connection:
        ended = execution.finish(connection, endings if deferral_comes_first else endings[::-1])
    assert ended == [True, False]
    assert rows.state(engine, job.id) == ("queued" if deferral_comes_first else "succeeded")
    assert len(rows.everything(engine)["results"]) == (0 if deferral_comes_first else 1)
    assert len(rows.history(engine, job.id)) == (0 if deferral_comes_first else 1)


def test_others_see_it_as_a_job_that_waits(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, rows.deferral(job, 30.0))
    with engine.begin() as connection:
        seen = queries.get(connection, [job.id])[job.id]
    assert (seen.state, seen.attempts, seen.reason, seen.result) == (JobState.QUEUED, 0, Reason.LIMITED, None)
    assert seen.due_at - seen.created_at > timedelta(seconds=30)
