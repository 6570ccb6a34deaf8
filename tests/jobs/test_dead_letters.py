"""What may be done with the dead: each thing once, and to nobody else."""

from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine

from penstock.errors import Reason
from penstock.jobs import dead_letters, queries, release, submission
from penstock.jobs.dead_letters import DeadLetter
from penstock.jobs.release import Allowance
from penstock.money import ledger
from penstock.money.holds import Hold
from penstock.money.ledger import CallOutcome, Settlement
from penstock.money.recollection import JournaledAnswer, Question, recall
from penstock.schemas import JobState, Lane
from tests.jobs import rows


def replay(engine: Engine, *ids: UUID) -> list[UUID]:
    with engine.begin() as connection:
        return dead_letters.replay(connection, list(ids))


def discard(engine: Engine, *ids: UUID) -> list[UUID]:
    with engine.begin() as connection:
        return dead_letters.discard(connection, list(ids))


def take(engine: Engine, most: int = 500) -> list[DeadLetter]:
    with engine.begin() as connection:
        return dead_letters.take_unannounced(connection, most=most)


def refused_job(engine: Engine) -> UUID:
    job_id = uuid4()
    with engine.begin() as connection:
        submission.bury_refused(connection, job_id, tenant="acme", prompt="x", detail="no")
    return job_id


def test_a_replayed_job_waits_in_its_queue_with_a_clean_slate(engine: Engine) -> None:
    job_id = rows.dead_job(engine, priority=7)
    rows.execute(engine, "UPDATE jobs SET crashes = 2, failures = 3, announced = true")

    assert replay(engine, job_id) == [job_id]

    back = rows.row(engine, job_id)
    assert (back["state"], back["failures"], back["crashes"]) == ("queued", 0, 0)
    assert (back["reason"], back["detail"], back["ended_at"], back["announced"]) == (None, None, None, False)
    assert (back["attempts"], back["fence"], back["priority"]) == (1, 1, 7)
    assert rows.history(engine, job_id) == [(1, "w1", "dead", "bad_request")]


def test_a_second_replay_finds_nothing_to_do(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    replay(engine, job_id)
    before = rows.everything(engine)
    assert replay(engine, job_id) == []
    assert rows.everything(engine) == before


def test_an_id_twice_is_replayed_once(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    assert replay(engine, job_id, job_id) == [job_id]


def test_of_two_replays_at_once_one_finds_the_job_dead(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as connection:
        first = dead_letters.replay(connection, [job_id])
        with rows.behind(engine, partial(dead_letters.replay, ids=[job_id])) as second:
            connection.commit()
    assert (first, second.result()) == ([job_id], [])


def test_a_replayed_job_runs_again_with_its_history_and_the_next_fence(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    replay(engine, job_id)
    with engine.begin() as connection:
        (found,) = release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(5))
    assert (found.job_id, found.is_retry) == (job_id, True)
    again = rows.claim(engine, job_id)
    assert again is not None
    assert (again.fence, again.document) == (2, "Once upon a time.")
    assert rows.finish(engine, rows.success(again)) is True
    assert rows.history(engine, job_id) == [(1, "w1", "dead", "bad_request"), (2, "w1", "succeeded", None)]


def test_a_replay_keeps_answers_that_were_paid_for(engine: Engine) -> None:
    job = rows.running_job(engine)
    call_id = uuid4()
    intent = rows.intent(job, call_id=call_id)
    answer = Settlement(
        call_id,
        CallOutcome.ANSWERED,
        40,
        request_digest="q",
        model_served="m",
        finish_reason="stop",
        answer="An answer.",
    )
    with engine.begin() as connection:
        assert ledger.intend(connection, [intent]) == [Hold(intent.max_tokens)]
        ledger.settle(connection, [answer])
    rows.finish(engine, rows.death(job))

    replay(engine, job.id)

    with engine.begin() as connection:
        (kept,) = recall(connection, [Question(job.id, "q")])
        assert kept.answer == JournaledAnswer(call_id, "sim-small", "m", "stop", "An answer.")
        assert ledger.totals(connection).nanodollars == 40


def test_a_deadline_that_has_passed_is_dropped_and_one_to_come_is_kept(engine: Engine) -> None:
    past, future = rows.dead_job(engine), rows.dead_job(engine)
    rows.execute(engine, "UPDATE jobs SET deadline = now() - interval '1 second' WHERE id = :id", id=past)
    rows.execute(engine, "UPDATE jobs SET deadline = now() + interval '1 hour' WHERE id = :id", id=future)
    deadline = rows.row(engine, future)["deadline"]
    replay(engine, past, future)
    assert rows.row(engine, past)["deadline"] is None
    assert rows.row(engine, future)["deadline"] == deadline


def test_a_refused_request_stays_dead(engine: Engine) -> None:
    refused, dead = refused_job(engine), rows.dead_job(engine)
    before = rows.row(engine, refused)
    assert replay(engine, refused, dead) == [dead]
    assert rows.row(engine, refused) == before


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.INVALID}))
def test_a_job_that_died_of_anything_but_a_refusal_can_be_replayed(engine: Engine, reason: Reason) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, rows.death(job, reason))
    assert replay(engine, job.id) == [job.id]


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.DEAD}))
def test_only_the_dead_are_replayed_or_discarded(engine: Engine, state: JobState) -> None:
    job = rows.running_job(engine)
    rows.execute(engine, "UPDATE jobs SET state = :state, reason = 'timeout'", state=state.value)
    before = rows.everything(engine)
    assert (replay(engine, job.id, uuid4()), discard(engine, job.id, uuid4())) == ([], [])
    assert rows.everything(engine) == before


def test_nothing_is_replayed_or_discarded_without_an_id(engine: Engine) -> None:
    rows.dead_job(engine)
    before = rows.everything(engine)
    assert (replay(engine), discard(engine)) == ([], [])
    assert rows.everything(engine) == before


def test_a_discarded_job_is_cancelled_and_keeps_its_history(engine: Engine) -> None:
    dead, refused, kept = rows.dead_job(engine), refused_job(engine), rows.dead_job(engine)
    assert sorted(discard(engine, dead, refused)) == sorted([dead, refused])
    assert [rows.state(engine, job_id) for job_id in (dead, refused, kept)] == ["cancelled", "cancelled", "dead"]
    assert rows.row(engine, dead)["detail"] == "discarded from the dead letters"
    assert rows.history(engine, dead) == [(1, "w1", "dead", "bad_request")]
    assert discard(engine, dead) == []
    assert replay(engine, dead) == []


def test_a_death_is_announced_once_without_any_text(engine: Engine) -> None:
    job_id = rows.dead_job(engine, lane=Lane.INTERACTIVE)
    assert take(engine) == [DeadLetter(job_id, "acme", "small", "interactive", "bad_request", 1)]
    assert take(engine) == []


def test_a_refusal_is_announced_too(engine: Engine) -> None:
    job_id = refused_job(engine)
    assert take(engine) == [DeadLetter(job_id, "acme", "", "interactive", "invalid", 0)]


def test_a_job_that_dies_again_is_announced_again(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    take(engine)
    replay(engine, job_id)
    assert take(engine) == []
    with engine.begin() as connection:
        release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(5))
    again = rows.claim(engine, job_id)
    assert again is not None
    rows.finish(engine, rows.death(again, Reason.CONTENT_POLICY))
    assert take(engine) == [DeadLetter(job_id, "acme", "small", "interactive", "content_policy", 2)]


def test_only_the_dead_are_announced(engine: Engine) -> None:
    rows.finish(engine, rows.success(rows.running_job(engine)))
    discard(engine, rows.dead_job(engine))
    cancelled = rows.running_job(engine)
    with engine.begin() as connection:
        queries.cancel(connection, [cancelled.id])
    assert take(engine) == []


def test_a_publisher_that_fails_leaves_the_deaths_to_the_next(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as connection:
        assert [letter.job_id for letter in dead_letters.take_unannounced(connection)] == [job_id]
        connection.rollback()
    assert [letter.job_id for letter in take(engine)] == [job_id]


def test_deaths_are_taken_the_oldest_first_and_no_more_than_told(engine: Engine) -> None:
    ids = [rows.dead_job(engine) for _ in range(5)]
    for age_s, job_id in enumerate(ids):
        rows.execute(
            engine,
            "UPDATE jobs SET ended_at = now() - make_interval(secs => :age) WHERE id = :id",
            age=age_s,
            id=job_id,
        )
    taken = [{letter.job_id for letter in take(engine, most=2)} for _ in range(4)]
    assert taken == [{ids[4], ids[3]}, {ids[2], ids[1]}, {ids[0]}, set()]


def test_two_publishers_at_once_share_the_deaths_without_waiting(engine: Engine) -> None:
    ids = [rows.dead_job(engine) for _ in range(6)]
    with engine.connect() as first, engine.connect() as second:
        some = dead_letters.take_unannounced(first, most=4)
        rest = dead_letters.take_unannounced(second)
        second.commit()
        first.commit()
    assert (len(some), len(rest)) == (4, 2)
    assert {letter.job_id for letter in [*some, *rest]} == set(ids)


def test_publishers_in_a_race_take_each_death_once(engine: Engine) -> None:
    rows.submit(engine, *[rows.new_job() for _ in range(300)])
    rows.execute(engine, "UPDATE jobs SET state = 'dead', reason = 'timeout', ended_at = now()")

    def publish(connection: Connection) -> list[UUID]:
        letters = [letter for _ in range(10) for letter in dead_letters.take_unannounced(connection, most=20)]
        return [letter.job_id for letter in letters]

    taken = [job_id for published in rows.at_once(engine, publish, publish, publish) for job_id in published]
    assert (len(taken), len(set(taken))) == (300, 300)
