"""What is done about workers that die, are away for a while, or forget a job; and about deadlines."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from penstock.errors import Reason
from penstock.jobs import execution, leases, queries, recovery, submission
from penstock.jobs.execution import Ending, Outcome
from penstock.jobs.recovery import Recovered
from penstock.schemas import JobState
from tests.jobs import rows

LIVE_BUT_WAITING = ("queued", "released", "retrying")


def recover(engine: Engine, most: int = 1000) -> list[Recovered]:
    with engine.begin() as connection:
        return recovery.recover_expired(connection, most=most)


def bury(engine: Engine, most: int = 1000) -> list[Recovered]:
    with engine.begin() as connection:
        return recovery.bury_overdue(connection, most=most)


def lost(engine: Engine, *running: tuple[UUID, int]) -> list[tuple[UUID, int]]:
    with engine.begin() as connection:
        return leases.lost(connection, running)


def adrift(engine: Engine, *running: UUID, worker: str = "w1", older_than_s: float = 10.0) -> int:
    with engine.begin() as connection:
        return leases.release_adrift(connection, worker, running, older_than_s=older_than_s)


def crash(engine: Engine, job_id: UUID) -> list[Recovered]:
    rows.expire_lease(engine)
    return recover(engine)


def test_only_workers_whose_lease_runs_are_counted_as_alive(engine: Engine) -> None:
    with engine.begin() as connection:
        assert leases.count_alive(connection) == 0
    for worker in ("w1", "w2", "expired", "retired"):
        rows.start_worker(engine, worker)
    rows.expire_lease(engine, "expired")
    with engine.begin() as connection:
        leases.retire(connection, "retired")
    with engine.begin() as connection:
        assert leases.count_alive(connection) == 2


def test_a_worker_keeps_the_tier_that_it_began_with(engine: Engine) -> None:
    with engine.begin() as connection:
        leases.renew(connection, "w1", 60.0, "small")
        leases.renew(connection, "w2", 60.0)
    with engine.begin() as connection:
        leases.renew(connection, "w1", 60.0, "small")
    assert {worker["id"]: worker["tier"] for worker in rows.everything(engine)["workers"]} == {"w1": "small", "w2": ""}


def test_a_job_whose_worker_died_is_tried_again_at_once(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.expire_lease(engine)

    assert recover(engine) == [Recovered(job.id, "acme", Reason.WORKER_LOST, dead=False)]

    recovered = rows.row(engine, job.id)
    assert (recovered["state"], recovered["reason"]) == ("retrying", "worker_lost")
    assert (recovered["crashes"], recovered["failures"], recovered["ended_at"]) == (1, 0, None)
    assert rows.history(engine, job.id) == [(1, "w1", "unknown", "worker_lost")]
    assert rows.claim_again(engine, job.id, "w2").fence == 2


def test_jobs_of_live_workers_are_left_alone(engine: Engine) -> None:
    rows.running_job(engine)
    rows.submit(engine, rows.new_job())
    before = rows.everything(engine)
    assert recover(engine) == []
    assert rows.everything(engine) == before


def test_only_running_jobs_are_recovered(engine: Engine) -> None:
    ended, waiting = rows.running_job(engine), rows.running_job(engine)
    rows.finish(engine, rows.success(ended))
    rows.finish(engine, Ending(waiting.id, waiting.fence, Outcome.RETRIED, Reason.OVERLOADED))
    rows.expire_lease(engine)
    before = rows.everything(engine)
    assert recover(engine) == []
    assert rows.everything(engine) == before


def test_jobs_of_a_worker_without_a_row_are_recovered(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.execute(engine, "DELETE FROM workers")
    assert [recovered.job_id for recovered in recover(engine)] == [job.id]


def test_jobs_of_a_worker_that_retired_need_not_wait_for_its_lease(engine: Engine) -> None:
    job = rows.running_job(engine)
    with engine.begin() as connection:
        leases.retire(connection, "w1")
    assert [recovered.job_id for recovered in recover(engine)] == [job.id]


def test_a_job_that_killed_three_workers_is_dead_with_all_three_in_its_history(engine: Engine) -> None:
    job = rows.running_job(engine)
    assert [recovered.dead for recovered in crash(engine, job.id)] == [False]
    rows.claim_again(engine, job.id)
    assert [recovered.dead for recovered in crash(engine, job.id)] == [False]
    rows.claim_again(engine, job.id)

    assert crash(engine, job.id) == [Recovered(job.id, "acme", Reason.POISON, dead=True)]

    dead = rows.row(engine, job.id)
    assert (dead["state"], dead["reason"], dead["detail"]) == ("dead", "poison", "3 workers died while they ran it")
    assert (dead["crashes"], dead["attempts"], dead["announced"]) == (3, 3, False)
    assert dead["ended_at"] is not None
    assert rows.history(engine, job.id) == [(n, "w1", "unknown", "worker_lost") for n in (1, 2, 3)]
    assert crash(engine, job.id) == []


def test_other_ends_between_crashes_do_not_count_as_crashes(engine: Engine) -> None:
    job = rows.running_job(engine)
    crash(engine, job.id)
    again = rows.claim_again(engine, job.id)
    rows.finish(engine, Ending(job.id, again.fence, Outcome.RETRIED, Reason.OVERLOADED, failed=True))
    rows.claim_again(engine, job.id)
    crash(engine, job.id)
    assert (rows.state(engine, job.id), rows.row(engine, job.id)["crashes"]) == ("retrying", 2)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_zombie_can_end_nothing_after_the_recovery(engine: Engine, outcome: Outcome) -> None:
    job = rows.running_job(engine)
    crash(engine, job.id)
    late = Ending(job.id, 1, outcome, Reason.TIMEOUT, result="late", model_asked="m", model_served="m")
    before = rows.everything(engine)
    assert rows.finish(engine, late) is False
    assert rows.everything(engine) == before

    rows.claim_again(engine, job.id, "w2")
    before = rows.everything(engine)
    assert rows.finish(engine, late) is False
    assert rows.everything(engine) == before


def test_a_worker_that_was_away_keeps_what_nobody_took_and_loses_the_rest(engine: Engine) -> None:
    kept, taken = rows.running_job(engine), rows.running_job(engine)
    rows.expire_lease(engine)
    recover(engine, most=1)
    rows.start_worker(engine)
    states = {job.id: rows.state(engine, job.id) for job in (kept, taken)}
    assert sorted(states.values()) == ["retrying", "running"]
    assert recover(engine) == []
    gone = [job_id for job_id, state in states.items() if state == "retrying"]
    assert lost(engine, (kept.id, 1), (taken.id, 1)) == [(job_id, 1) for job_id in gone]
    assert rows.finish(engine, rows.success(kept)) is (kept.id not in gone)


def test_a_sweep_takes_no_more_than_it_was_told(engine: Engine) -> None:
    for _ in range(5):
        rows.running_job(engine)
    rows.expire_lease(engine)
    assert [len(recover(engine, most=2)) for _ in range(4)] == [2, 2, 1, 0]


def test_two_sweeps_at_once_recover_each_job_once_and_do_not_wait(engine: Engine) -> None:
    jobs = [rows.running_job(engine) for _ in range(6)]
    rows.expire_lease(engine)
    with engine.connect() as first, engine.connect() as second:
        some = recovery.recover_expired(first, most=4)
        rest = recovery.recover_expired(second)
        second.commit()
        first.commit()
    assert (len(some), len(rest)) == (4, 2)
    assert {recovered.job_id for recovered in [*some, *rest]} == {job.id for job in jobs}
    assert {rows.row(engine, job.id)["crashes"] for job in jobs} == {1}


def test_sweeps_in_a_race_recover_each_job_once(engine: Engine) -> None:
    rows.start_worker(engine)
    jobs = [rows.new_job() for _ in range(200)]
    rows.submit(engine, *jobs)
    with engine.begin() as connection:
        execution.claim(connection, [execution.Claim(job.id, "w1") for job in jobs])
    rows.expire_lease(engine)
    sweep = recovery.recover_expired
    found = [recovered.job_id for swept in rows.at_once(engine, sweep, sweep, sweep) for recovered in swept]
    assert sorted(found) == sorted(job.id for job in jobs)


def test_a_finish_that_commits_first_is_not_recovered(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.expire_lease(engine)
    with engine.connect() as connection:
        assert execution.finish(connection, [rows.success(job)]) == [True]
        assert recover(engine) == []
        connection.commit()
    assert recover(engine) == []
    assert rows.state(engine, job.id) == "succeeded"


def test_a_finish_that_waits_for_a_recovery_is_refused(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.expire_lease(engine)
    with engine.connect() as connection:
        recovery.recover_expired(connection)
        with rows.behind(engine, lambda other: execution.finish(other, [rows.success(job)])) as ended:
            connection.commit()
    assert ended.result() == [False]
    assert rows.state(engine, job.id) == "retrying"


@pytest.mark.parametrize("state", LIVE_BUT_WAITING)
def test_a_waiting_job_past_its_deadline_is_buried(engine: Engine, state: str) -> None:
    job = rows.new_job()
    rows.submit(engine, job)
    rows.execute(engine, "UPDATE jobs SET state = :state, deadline = now()", state=state)

    assert bury(engine) == [Recovered(job.id, "acme", Reason.DEADLINE, dead=True)]

    dead = rows.row(engine, job.id)
    assert (dead["state"], dead["reason"], dead["announced"]) == ("dead", "deadline", False)
    assert dead["ended_at"] is not None
    assert bury(engine) == []


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState(name) for name in LIVE_BUT_WAITING}))
def test_a_deadline_buries_neither_what_runs_nor_what_has_ended(engine: Engine, state: JobState) -> None:
    rows.submit(engine, rows.new_job())
    rows.execute(engine, "UPDATE jobs SET state = :state, deadline = now()", state=state.value)
    before = rows.everything(engine)
    assert bury(engine) == []
    assert rows.everything(engine) == before


def test_jobs_before_their_deadline_or_without_one_are_not_buried(engine: Engine) -> None:
    early, free = rows.new_job(), rows.new_job()
    rows.submit(engine, early, free)
    rows.execute(engine, "UPDATE jobs SET deadline = now() + interval '1 minute' WHERE id = :id", id=early.id)
    before = rows.everything(engine)
    assert bury(engine) == []
    assert rows.everything(engine) == before


def test_a_burial_takes_no_more_than_it_was_told(engine: Engine) -> None:
    rows.submit(engine, *[rows.new_job() for _ in range(5)])
    rows.execute(engine, "UPDATE jobs SET deadline = now()")
    assert [len(bury(engine, most=2)) for _ in range(4)] == [2, 2, 1, 0]


def test_two_burials_at_once_bury_each_job_once(engine: Engine) -> None:
    jobs = [rows.new_job() for _ in range(6)]
    rows.submit(engine, *jobs)
    rows.execute(engine, "UPDATE jobs SET deadline = now()")
    with engine.connect() as first, engine.connect() as second:
        some, rest = recovery.bury_overdue(first, most=4), recovery.bury_overdue(second)
        second.commit()
        first.commit()
    assert (len(some), len(rest)) == (4, 2)
    assert {buried.job_id for buried in [*some, *rest]} == {job.id for job in jobs}


def test_lost_names_what_was_cancelled_taken_over_ended_or_never_was(engine: Engine) -> None:
    mine, cancelled, ended, moved = (rows.running_job(engine) for _ in range(4))
    with engine.begin() as connection:
        queries.cancel(connection, [cancelled.id])
    rows.finish(engine, rows.success(ended))
    rows.finish(engine, Ending(moved.id, moved.fence, Outcome.HANDED_BACK))
    rows.claim_again(engine, moved.id)
    unknown = uuid4()

    gone = lost(engine, (mine.id, 1), (cancelled.id, 1), (ended.id, 1), (moved.id, 1), (unknown, 1))

    assert sorted(gone) == sorted((job_id, 1) for job_id in (cancelled.id, ended.id, moved.id, unknown))
    assert lost(engine, (moved.id, 2)) == []
    assert lost(engine) == []


def test_a_job_that_its_worker_does_not_run_is_given_back_as_after_a_crash(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.execute(engine, "UPDATE jobs SET started_at = now() - interval '11 seconds'")

    assert adrift(engine) == 1

    back = rows.row(engine, job.id)
    assert (back["state"], back["reason"]) == ("retrying", "worker_lost")
    assert (back["crashes"], back["failures"], back["ended_at"]) == (1, 0, None)
    assert rows.history(engine, job.id) == [(1, "w1", "unknown", "worker_lost")]
    assert rows.finish(engine, rows.success(job)) is False
    assert rows.claim_again(engine, job.id).fence == 2
    assert adrift(engine) == 0


def test_a_job_is_not_adrift_while_it_runs_is_young_or_belongs_to_another(engine: Engine) -> None:
    runs, young, other = rows.running_job(engine), rows.running_job(engine), rows.running_job(engine, "w2")
    ended = rows.running_job(engine)
    rows.finish(engine, rows.success(ended))
    rows.execute(engine, "UPDATE jobs SET started_at = now() - interval '1 hour' WHERE NOT id = :young", young=young.id)
    before = rows.everything(engine)
    assert adrift(engine, runs.id) == 0
    assert rows.everything(engine) == before
    assert rows.state(engine, other.id) == "running"


def test_a_heartbeat_extends_the_lease_and_keeps_the_birthday(engine: Engine) -> None:
    rows.start_worker(engine)
    rows.expire_lease(engine)
    born = rows.everything(engine)["workers"][0]["started_at"]
    with engine.begin() as connection:
        leases.renew(connection, "w1", 30.0)
    worker = rows.everything(engine)["workers"][0]
    assert worker["started_at"] == born
    with engine.begin() as connection:
        still_s = connection.exec_driver_sql("SELECT extract(epoch FROM lease_until - now())::float8 FROM workers")
        assert still_s.scalar_one() == pytest.approx(30, abs=15)


def test_workers_are_forgotten_an_hour_after_their_end(engine: Engine) -> None:
    for worker, minutes in {"old": 61, "late": 59}.items():
        rows.start_worker(engine, worker)
        rows.execute(
            engine,
            "UPDATE workers SET lease_until = now() - make_interval(mins => :minutes) WHERE id = :worker",
            worker=worker,
            minutes=minutes,
        )
    rows.start_worker(engine, "live")
    with engine.begin() as connection:
        recovery.forget_workers(connection)
    assert [worker["id"] for worker in rows.everything(engine)["workers"]] == ["late", "live"]


def test_a_refused_request_is_not_a_job_to_recover(engine: Engine) -> None:
    with engine.begin() as connection:
        submission.bury_refused(connection, uuid4(), tenant="acme", prompt="x", detail="no")
    before = rows.everything(engine)
    assert (recover(engine), bury(engine)) == ([], [])
    assert rows.everything(engine) == before
