"""One attempt: who may claim, who may end it, and that one batch holds many without mixing them."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine

from penstock.errors import Reason
from penstock.jobs import execution, leases, queries
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome
from penstock.schemas import JobState, Lane, OnUnavailable
from tests.jobs import rows


def claim_all(engine: Engine, *claims: Claim) -> list[ClaimedJob | None]:
    with engine.begin() as connection:
        return execution.claim(connection, claims)


def finish_all(engine: Engine, *endings: Ending) -> list[bool]:
    with engine.begin() as connection:
        return execution.finish(connection, endings)


def retry(job: ClaimedJob, delay_s: float = 0.0, *, failed: bool = True) -> Ending:
    return Ending(job.id, job.fence, Outcome.RETRIED, Reason.OVERLOADED, "HTTP 529", delay_s=delay_s, failed=failed)


def results(engine: Engine) -> list[tuple[object, ...]]:
    columns = ("job_id", "text", "model_asked", "model_served", "degraded")
    return [tuple(found[name] for name in columns) for found in rows.everything(engine)["results"]]


def test_a_live_worker_gets_all_that_an_attempt_needs(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET released_at = now() - interval '90 seconds', failures = 2")

    claimed = rows.claim(engine, job.id)

    assert claimed is not None
    stored = rows.row(engine, job.id)
    assert replace(claimed, waited_s=90.0) == ClaimedJob(
        id=job.id,
        fence=1,
        worker="w1",
        tenant="acme",
        prompt=rows.PROMPT,
        tier="small",
        lane=Lane.INTERACTIVE,
        failures=2,
        on_unavailable=OnUnavailable.WAIT,
        deadline=None,
        created_at=stored["created_at"],
        started_at=stored["started_at"],
        waited_s=90.0,
        ends_in_s=None,
        variables={"language": "English"},
        document="Once upon a time.",
    )
    assert claimed.waited_s == pytest.approx(90, abs=15)
    assert (stored["state"], stored["fence"], stored["attempts"], stored["worker"]) == ("running", 1, 1, "w1")
    assert rows.history(engine, job.id) == [(1, "w1", "running", None)]


def test_a_second_claim_finds_nothing_and_changes_nothing(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.start_worker(engine, "w2")
    before = rows.everything(engine)
    assert rows.claim(engine, job.id, "w2") is None
    assert rows.claim(engine, job.id, "w1") is None
    assert rows.everything(engine) == before


@pytest.mark.parametrize("worker", ["expired", "never seen"])
def test_only_a_live_worker_claims(engine: Engine, worker: str) -> None:
    job = rows.new_job()
    rows.submit(engine, job)
    rows.start_worker(engine, "expired")
    rows.expire_lease(engine, "expired")
    before = rows.everything(engine)
    assert rows.claim(engine, job.id, worker) is None
    assert rows.everything(engine) == before


def test_a_worker_that_retired_claims_nothing(engine: Engine) -> None:
    job = rows.new_job()
    rows.submit(engine, job)
    rows.start_worker(engine)
    with engine.begin() as connection:
        leases.retire(connection, "w1")
    assert rows.claim(engine, job.id) is None
    assert rows.state(engine, job.id) == "released"


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.RELEASED}))
def test_only_a_released_job_is_claimed(engine: Engine, state: JobState) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state.value)
    before = rows.everything(engine)
    assert rows.claim(engine, job.id) is None
    assert rows.everything(engine) == before


def test_a_job_past_its_deadline_is_not_claimed(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET deadline = now()")
    before = rows.everything(engine)
    assert rows.claim(engine, job.id) is None
    assert rows.everything(engine) == before


def test_a_job_before_its_deadline_is_claimed(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET deadline = now() + interval '1 minute'")
    claimed = rows.claim(engine, job.id)
    assert claimed is not None
    assert claimed.deadline == rows.row(engine, job.id)["deadline"]


def test_claims_are_answered_in_order_and_by_their_own_job(engine: Engine) -> None:
    rows.start_worker(engine)
    jobs = [rows.new_job(document=f"document {number}") for number in range(4)]
    rows.submit(engine, *jobs)
    rows.claim(engine, jobs[1].id)
    wanted = [jobs[3].id, uuid4(), jobs[1].id, jobs[0].id]

    claimed = claim_all(engine, *[Claim(job_id, "w1") for job_id in wanted])

    assert [job and job.document for job in claimed] == ["document 3", None, None, "document 0"]
    assert [rows.state(engine, job.id) for job in jobs] == ["running", "running", "released", "running"]


def test_no_claims_are_no_work(engine: Engine) -> None:
    assert claim_all(engine) == []
    assert finish_all(engine) == []


def test_a_message_twice_in_one_batch_runs_the_job_once(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    rows.submit(engine, job)
    claimed = claim_all(engine, Claim(job.id, "w1"), Claim(job.id, "w1"))
    assert [found and found.fence for found in claimed] == [1, None]
    assert rows.history(engine, job.id) == [(1, "w1", "running", None)]


@pytest.mark.parametrize("workers", [("w1", "w2"), ("w2", "w1"), ("gone", "w1")])
def test_of_two_workers_in_one_batch_the_one_that_the_row_names_gets_the_job(
    engine: Engine, workers: tuple[str, str]
) -> None:
    job = rows.new_job()
    rows.start_worker(engine, "w1")
    rows.start_worker(engine, "w2")
    rows.submit(engine, job)
    claimed = claim_all(engine, *[Claim(job.id, worker) for worker in workers])
    owner = rows.row(engine, job.id)["worker"]
    assert [found and found.worker for found in claimed] == [worker if worker == owner else None for worker in workers]


def test_of_two_claims_at_once_the_second_waits_and_gets_nothing(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine, "w1")
    rows.start_worker(engine, "w2")
    rows.submit(engine, job)
    with engine.connect() as connection:
        first = execution.claim(connection, [Claim(job.id, "w1")])
        with rows.behind(engine, lambda other: execution.claim(other, [Claim(job.id, "w2")])) as second:
            connection.commit()
    assert [found and found.worker for found in first] == ["w1"]
    assert second.result() == [None]
    assert rows.history(engine, job.id) == [(1, "w1", "running", None)]


def test_two_workers_that_race_for_many_jobs_share_them(engine: Engine) -> None:
    rows.start_worker(engine, "w1")
    rows.start_worker(engine, "w2")
    jobs = [rows.new_job() for _ in range(200)]
    rows.submit(engine, *jobs)

    def race(worker: str, connection: Connection) -> list[ClaimedJob | None]:
        return execution.claim(connection, [Claim(job.id, worker) for job in jobs])

    one, other = rows.at_once(engine, partial(race, "w1"), partial(race, "w2"))

    assert all((mine is None) != (theirs is None) for mine, theirs in zip(one, other, strict=True))
    assert {job.fence for job in [*one, *other] if job} == {1}


def test_each_claim_has_a_fence_that_grows(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, retry(job))
    again = rows.claim_again(engine, job.id)
    assert (job.fence, again.fence, again.failures) == (1, 2, 1)
    assert rows.history(engine, job.id) == [(1, "w1", "retried", "overloaded"), (2, "w1", "running", None)]


def test_a_success_stores_its_result_and_clears_what_went_wrong_before(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, retry(job))
    again = rows.claim_again(engine, job.id)

    assert rows.finish(engine, rows.success(again)) is True

    ended = rows.row(engine, job.id)
    assert (ended["state"], ended["reason"], ended["detail"]) == ("succeeded", None, None)
    assert (ended["attempts"], ended["failures"], ended["fence"]) == (2, 1, 2)
    assert ended["ended_at"] >= ended["started_at"]
    assert results(engine) == [(job.id, "A tale.", "sim-small", "sim-small-1", False)]
    assert rows.history(engine, job.id) == [(1, "w1", "retried", "overloaded"), (2, "w1", "succeeded", None)]
    with engine.begin() as connection:
        seen = queries.get(connection, [job.id])[job.id]
    assert (seen.result, seen.model_asked, seen.model_served) == ("A tale.", "sim-small", "sim-small-1")


def test_a_degraded_success_is_marked_with_why_it_has_no_model(engine: Engine) -> None:
    job = rows.running_job(engine, on_unavailable=OnUnavailable.DEGRADE)
    ending = Ending(
        job.id, job.fence, Outcome.SUCCEEDED, Reason.UNAVAILABLE, "all are out", result="Sentences.", degraded=True
    )

    assert rows.finish(engine, ending) is True

    with engine.begin() as connection:
        seen = queries.get(connection, [job.id])[job.id]
    assert (seen.state, seen.result, seen.degraded) == (JobState.SUCCEEDED, "Sentences.", True)
    assert (seen.reason, seen.detail, seen.on_unavailable) == ("unavailable", "all are out", OnUnavailable.DEGRADE)
    assert (seen.model_asked, seen.model_served) == ("", "")


def test_a_retry_is_due_after_its_delay(engine: Engine) -> None:
    job = rows.running_job(engine)

    assert rows.finish(engine, retry(job, 12.5)) is True

    ended = rows.row(engine, job.id)
    assert (ended["state"], ended["reason"], ended["detail"]) == ("retrying", "overloaded", "HTTP 529")
    assert (ended["failures"], ended["ended_at"]) == (1, None)
    with engine.begin() as connection:
        attempt = queries.attempts(connection, job.id)[0]
    assert attempt.ended_at is not None
    assert ended["due_at"] - attempt.ended_at == timedelta(seconds=12.5)
    assert (attempt.outcome, attempt.reason, attempt.detail) == ("retried", "overloaded", "HTTP 529")
    assert results(engine) == []


def test_a_retry_that_does_not_count_spends_no_failure(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, retry(job, failed=False))
    assert rows.row(engine, job.id)["failures"] == 0


def test_a_death_is_kept_with_its_reason_and_is_yet_to_be_announced(engine: Engine) -> None:
    job = rows.running_job(engine)
    assert rows.finish(engine, rows.death(job)) is True
    ended = rows.row(engine, job.id)
    assert (ended["state"], ended["reason"], ended["detail"]) == ("dead", "bad_request", "HTTP 400")
    assert (ended["failures"], ended["announced"]) == (1, False)
    assert ended["ended_at"] is not None
    assert rows.history(engine, job.id) == [(1, "w1", "dead", "bad_request")]


def test_a_job_that_is_handed_back_is_due_at_once_and_has_not_failed(engine: Engine) -> None:
    job = rows.running_job(engine)
    assert rows.finish(engine, Ending(job.id, job.fence, Outcome.HANDED_BACK, detail="the run was stopped")) is True
    ended = rows.row(engine, job.id)
    assert (ended["state"], ended["failures"], ended["reason"]) == ("retrying", 0, None)
    assert rows.history(engine, job.id) == [(1, "w1", "handed_back", None)]
    assert rows.claim_again(engine, job.id).fence == 2


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_ending_with_an_old_fence_changes_nothing(engine: Engine, outcome: Outcome) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, retry(job))
    rows.claim_again(engine, job.id)
    before = rows.everything(engine)
    late = Ending(
        job.id, 1, outcome, Reason.TIMEOUT, "late", failed=True, result="r", model_asked="m", model_served="m"
    )
    assert rows.finish(engine, late) is False
    assert rows.everything(engine) == before


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_ending_after_a_cancellation_changes_nothing(engine: Engine, outcome: Outcome) -> None:
    job = rows.running_job(engine)
    with engine.begin() as connection:
        assert queries.cancel(connection, [job.id]) == [job.id]
    before = rows.everything(engine)
    late = Ending(
        job.id, 1, outcome, Reason.TIMEOUT, "late", failed=True, result="r", model_asked="m", model_served="m"
    )
    assert rows.finish(engine, late) is False
    assert rows.everything(engine) == before
    assert rows.history(engine, job.id) == [(1, "w1", "cancelled", None)]


def test_an_attempt_ends_once(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, rows.success(job))
    before = rows.everything(engine)
    assert rows.finish(engine, rows.success(job, "another")) is False
    assert rows.finish(engine, rows.death(job)) is False
    assert rows.everything(engine) == before


def test_an_ending_of_a_job_that_does_not_exist_is_refused(engine: Engine) -> None:
    assert finish_all(engine, Ending(uuid4(), 1, Outcome.RETRIED)) == [False]


def test_a_mixed_batch_ends_each_job_in_its_own_way(engine: Engine) -> None:
    jobs = [rows.running_job(engine) for _ in range(5)]
    with engine.begin() as connection:
        queries.cancel(connection, [jobs[3].id])
    endings = [
        retry(jobs[0], 60.0),
        rows.success(jobs[1], "one"),
        rows.death(jobs[2]),
        rows.success(jobs[3], "three"),
        Ending(jobs[4].id, jobs[4].fence, Outcome.HANDED_BACK),
    ]

    assert finish_all(engine, *endings) == [True, True, True, False, True]

    assert [rows.state(engine, job.id) for job in jobs] == ["retrying", "succeeded", "dead", "cancelled", "retrying"]
    assert [rows.row(engine, job.id)["failures"] for job in jobs] == [1, 0, 1, 0, 0]
    assert results(engine) == [(jobs[1].id, "one", "sim-small", "sim-small-1", False)]


def test_of_two_endings_of_one_attempt_in_one_batch_the_first_counts(engine: Engine) -> None:
    job = rows.running_job(engine)
    stopped = Ending(job.id, job.fence, Outcome.HANDED_BACK, detail="the run was stopped")
    assert finish_all(engine, rows.success(job), stopped) == [True, False]
    assert rows.state(engine, job.id) == "succeeded"
    assert rows.history(engine, job.id) == [(1, "w1", "succeeded", None)]
    assert [result[1] for result in results(engine)] == ["A tale."]


def test_a_job_that_is_handed_back_leaves_no_result_of_a_success_that_came_second(engine: Engine) -> None:
    job = rows.running_job(engine)
    stopped = Ending(job.id, job.fence, Outcome.HANDED_BACK, detail="the run was stopped")
    assert finish_all(engine, stopped, rows.success(job)) == [True, False]
    assert (rows.state(engine, job.id), results(engine)) == ("retrying", [])
    again = rows.claim_again(engine, job.id)
    assert rows.finish(engine, rows.success(again, "the second run's")) is True
    assert [result[1] for result in results(engine)] == ["the second run's"]


@pytest.mark.parametrize("late_comes_first", [True, False])
def test_the_ending_of_a_later_run_in_the_same_batch_does_not_let_an_earlier_one_through(
    engine: Engine, *, late_comes_first: bool
) -> None:
    first = rows.running_job(engine)
    rows.finish(engine, retry(first))
    second = rows.claim_again(engine, first.id)
    endings = [rows.success(first, "a zombie's"), retry(second)]

    ended = finish_all(engine, *(endings if late_comes_first else endings[::-1]))

    assert ended == ([False, True] if late_comes_first else [True, False])
    assert (rows.state(engine, first.id), results(engine)) == ("retrying", [])
    assert rows.history(engine, first.id) == [(1, "w1", "retried", "overloaded"), (2, "w1", "retried", "overloaded")]


def test_an_ending_that_waits_for_a_cancellation_is_refused(engine: Engine) -> None:
    job = rows.running_job(engine)
    with engine.connect() as connection:
        queries.cancel(connection, [job.id])
        with rows.behind(engine, lambda other: execution.finish(other, [rows.success(job)])) as ended:
            connection.commit()
    assert ended.result() == [False]
    assert (rows.state(engine, job.id), results(engine)) == ("cancelled", [])


def test_text_that_postgres_cannot_hold_does_not_keep_an_attempt_from_ending(engine: Engine) -> None:
    good, bad = rows.running_job(engine), rows.running_job(engine)
    assert finish_all(
        engine,
        Ending(bad.id, bad.fence, Outcome.DEAD, Reason.BAD_REQUEST, detail="no\0text \ud83d here"),
        rows.success(good, "half a \ud83d pair, a NUL\0, and 'quotes' \\u0000 🎉"),
    ) == [True, True]
    assert rows.row(engine, bad.id)["detail"] == "no\ufffdtext \ufffd here"
    assert [result[1] for result in results(engine)] == ["half a \ufffd pair, a NUL\ufffd, and 'quotes' \\u0000 🎉"]
