"""A job that was there when two workers died comes back alone, so that the one which kills takes no other with it."""

from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from penstock.jobs import leases, recovery, release
from penstock.jobs.release import Allowance
from penstock.schemas import Lane, OnUnavailable
from tests.jobs import rows


def retrying(engine: Engine, *crashes: int, **changes: Any) -> list[UUID]:
    """Make jobs that wait for a retry after so many crashes, the first due first."""
    made = []
    for count in crashes:
        job = rows.running_job(engine, **changes)
        rows.execute(
            engine,
            "UPDATE jobs SET state = 'retrying', crashes = :count, due_at = clock_timestamp() WHERE id = :id",
            count=count,
            id=job.id,
        )
        made.append(job.id)
    return made


def released(engine: Engine, lane: Lane = Lane.INTERACTIVE) -> list[UUID]:
    with engine.begin() as connection:
        return [each.job_id for each in release.release_retries(connection, "small", lane, Allowance(100))]


def test_suspects_of_one_worker_run_one_at_a_time_and_others_beside_them(engine: Engine) -> None:
    first, once, second, never = retrying(engine, 2, 1, 2, 0)
    assert released(engine) == [first, once, never]
    assert released(engine) == []
    job = rows.claim(engine, first)
    assert job is not None
    assert released(engine) == []
    rows.finish(engine, rows.success(job))
    assert released(engine) == [second]


def test_as_many_suspects_run_as_the_tier_has_live_workers_and_one_at_a_time_waits_for_its_claim(
    engine: Engine,
) -> None:
    first, second, third = retrying(engine, 2, 2, 2)
    for worker in ("a", "b"):
        with engine.begin() as connection:
            leases.renew(connection, worker, 60.0, "small")
    assert released(engine) == [first]
    assert released(engine) == []
    assert rows.claim(engine, first, "a") is not None
    assert released(engine) == [second]
    assert rows.claim(engine, second, "b") is not None
    assert released(engine) == []
    rows.execute(engine, "UPDATE jobs SET state = 'dead' WHERE id = :id", id=first)
    assert released(engine) == [third]


def test_a_worker_that_runs_a_suspect_gets_no_other_and_the_message_is_sent_again(engine: Engine) -> None:
    first, second = retrying(engine, 2, 2)
    innocent = rows.new_job()
    rows.submit(engine, innocent)
    for worker in ("a", "b"):
        with engine.begin() as connection:
            leases.renew(connection, worker, 60.0, "small")
    assert released(engine) == [first]
    assert rows.claim(engine, first, "a") is not None
    assert released(engine) == [second]
    assert rows.claim(engine, innocent.id, "a") is not None
    assert rows.claim(engine, second, "a") is None
    refused = rows.row(engine, second)
    assert (refused["state"], refused["attempts"], refused["fence"]) == ("released", 1, 1)
    assert released(engine, Lane.BATCH) == []
    assert released(engine) == [second]
    assert released(engine) == []
    assert rows.claim(engine, second, "b") is not None


def test_one_suspect_of_a_tier_runs_whatever_its_lane(engine: Engine) -> None:
    (batch,) = retrying(engine, 2)
    rows.execute(engine, "UPDATE jobs SET lane = 'batch' WHERE id = :id", id=batch)
    (interactive,) = retrying(engine, 2)
    assert released(engine, Lane.INTERACTIVE) == [interactive]
    assert released(engine, Lane.BATCH) == []
    rows.execute(engine, "UPDATE jobs SET state = 'dead' WHERE id = :id", id=interactive)
    assert released(engine, Lane.BATCH) == [batch]


def test_a_suspect_that_waits_for_a_model_keeps_no_other_from_its_turn(engine: Engine) -> None:
    """While every breaker of the tier is open only those run that accept another end."""
    _, impatient = retrying(engine, 2), retrying(engine, 2, on_unavailable=OnUnavailable.FAIL)
    with engine.begin() as connection:
        found = release.release_retries(connection, "small", Lane.INTERACTIVE, Allowance(9, only_impatient=True))
    assert [each.job_id for each in found] == impatient


def test_a_suspect_of_another_tier_is_not_waited_for(engine: Engine) -> None:
    (elsewhere,) = retrying(engine, 2, tier="large")
    rows.execute(engine, "UPDATE jobs SET state = 'released' WHERE id = :id", id=elsewhere)
    mine = retrying(engine, 2)
    assert released(engine) == mine


def test_a_job_that_kills_its_worker_runs_three_times_and_takes_nobody_with_it(engine: Engine) -> None:
    killer = rows.running_job(engine).id
    neighbours = [rows.running_job(engine).id for _ in range(5)]
    executions = 1
    while rows.state(engine, killer) != "dead":
        rows.expire_lease(engine)
        with engine.begin() as connection:
            recovery.recover_expired(connection)
        rows.start_worker(engine)
        while due := released(engine):
            running = [job for job_id in due if (job := rows.claim(engine, job_id)) is not None]
            if killer in {job.id for job in running}:
                executions += 1
                break
            for job in running:
                rows.finish(engine, rows.success(job))
    assert (executions, rows.row(engine, killer)["reason"]) == (3, "poison")
    while due := released(engine):
        for job_id in due:
            again = rows.claim(engine, job_id)
            assert again is not None
            rows.finish(engine, rows.success(again))
    assert {rows.state(engine, job_id) for job_id in neighbours} == {"succeeded"}
