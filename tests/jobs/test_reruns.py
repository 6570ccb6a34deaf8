"""A degraded result is replaced by a model's answer, once, on demand: it stays readable until then."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine

from penstock.client import Client
from penstock.errors import Reason
from penstock.jobs import queries, release, reruns
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.jobs.queries import Filter
from penstock.jobs.release import Allowance
from penstock.money.budgets import Budget, OnExhausted, Period, Unit, set_budget
from penstock.schemas import Job, JobState, Lane, OnUnavailable
from tests import test_cli
from tests.jobs import rows
from tests.rooms import DOCUMENT, Rooms
from tests.test_cli import Penstock

bare, penstock, client = test_cli.bare, test_cli.penstock, test_cli.client

ANSWER = "A model's own words."
EXCERPT = "Sentences of the document."


def degraded(job: ClaimedJob) -> Ending:
    """Say that no model could be asked, and that sentences of the document stand in."""
    return Ending(
        job.id,
        job.fence,
        Outcome.SUCCEEDED,
        Reason.UNAVAILABLE,
        "the breaker of sim-small is open",
        result=EXCERPT,
        degraded=True,
    )


def degraded_job(engine: Engine, **changes: Any) -> UUID:
    """Bring a job to a degraded success."""
    job = rows.running_job(engine, on_unavailable=OnUnavailable.DEGRADE, **changes)
    assert rows.finish(engine, degraded(job))
    return job.id


def rerun(engine: Engine, *ids: UUID) -> list[UUID]:
    with engine.begin() as connection:
        return reruns.rerun(connection, list(ids))


def seen(engine: Engine, job_id: UUID) -> Job:
    """Give a job as anybody outside sees it."""
    with engine.connect() as connection:
        return queries.get(connection, [job_id])[job_id]


def claim_after_release(engine: Engine, job_id: UUID) -> ClaimedJob:
    """Do what the feeder and a worker do with a queued job."""
    with engine.begin() as connection:
        released = release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(1))
    assert [found.job_id for found in released] == [job_id]
    claimed = rows.claim(engine, job_id)
    assert claimed is not None
    return claimed


def test_a_degraded_success_is_queued_anew_and_waits(engine: Engine) -> None:
    job_id = degraded_job(engine)
    rows.execute(engine, "UPDATE jobs SET failures = 2, crashes = 1, due_at = now() - interval '1 hour'")
    before = rows.row(engine, job_id)
    assert (before["state"], before["reason"], before["on_unavailable"]) == ("succeeded", "unavailable", "degrade")

    assert rerun(engine, job_id) == [job_id]

    after = rows.row(engine, job_id)
    assert after["due_at"] > before["due_at"] + timedelta(minutes=59)
    changed = {name: after[name] for name in before if after[name] != before[name]}
    assert changed | {"due_at": None} == {
        "state": "queued",
        "on_unavailable": "wait",
        "due_at": None,
        "ended_at": None,
        "reason": None,
        "detail": None,
        "failures": 0,
        "crashes": 0,
    }


def test_nothing_but_the_row_of_the_job_is_changed(engine: Engine) -> None:
    job_id = degraded_job(engine)
    before = rows.everything(engine)
    rerun(engine, job_id)
    assert {name: found for name, found in rows.everything(engine).items() if name != "jobs"} == {
        name: found for name, found in before.items() if name != "jobs"
    }


def test_the_degraded_result_stays_until_an_answer_takes_its_place(engine: Engine) -> None:
    job_id = degraded_job(engine)
    rerun(engine, job_id)
    waiting = seen(engine, job_id)
    assert (waiting.state, waiting.result, waiting.degraded) == (JobState.QUEUED, EXCERPT, True)

    claimed = claim_after_release(engine, job_id)
    assert (claimed.fence, claimed.on_unavailable) == (2, OnUnavailable.WAIT)
    running = seen(engine, job_id)
    assert (running.state, running.result, running.degraded) == (JobState.RUNNING, EXCERPT, True)

    rows.finish(engine, rows.success(claimed, ANSWER))
    answered = seen(engine, job_id)
    assert (answered.state, answered.result, answered.degraded) == (JobState.SUCCEEDED, ANSWER, False)
    assert (answered.model_asked, answered.model_served, answered.reason) == ("sim-small", "sim-small-1", None)
    assert [attempt[:1] + attempt[2:] for attempt in rows.history(engine, job_id)] == [
        (1, "succeeded", "unavailable"),
        (2, "succeeded", None),
    ]


def test_a_second_rerun_finds_nothing(engine: Engine) -> None:
    job_id = degraded_job(engine)
    assert rerun(engine, job_id) == [job_id]
    before = rows.everything(engine)
    assert rerun(engine, job_id) == []
    assert rows.everything(engine) == before
    rows.finish(engine, rows.success(claim_after_release(engine, job_id)))
    before = rows.everything(engine)
    assert rerun(engine, job_id) == []
    assert rows.everything(engine) == before


def test_of_two_reruns_at_once_one_finds_the_job(engine: Engine) -> None:
    job_id = degraded_job(engine)

    def again(connection: Connection) -> list[UUID]:
        return reruns.rerun(connection, [job_id])

    with engine.connect() as connection:
        first = again(connection)
        with rows.behind(engine, again) as second:
            connection.commit()
    assert (first, second.result()) == ([job_id], [])


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.SUCCEEDED])
def test_no_other_state_is_touched(engine: Engine, state: JobState) -> None:
    job_id = degraded_job(engine)
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state)
    before = rows.everything(engine)
    assert rerun(engine, job_id) == []
    assert rows.everything(engine) == before


def test_a_models_answer_is_not_touched(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.finish(engine, rows.success(job))
    worse = degraded_job(engine)
    before = rows.row(engine, job.id)
    assert rerun(engine, job.id, worse, uuid4()) == [worse]
    assert rows.row(engine, job.id) == before


def test_a_job_whose_text_is_gone_is_not_touched(engine: Engine) -> None:
    job_id = degraded_job(engine)
    rows.execute(engine, "DELETE FROM payloads")
    assert rerun(engine, job_id) == []
    assert rows.state(engine, job_id) == "succeeded"


@pytest.mark.parametrize(("minutes", "is_kept"), [(-1, False), (60, True)])
def test_a_deadline_that_has_passed_is_dropped_and_another_is_kept(
    engine: Engine, minutes: int, *, is_kept: bool
) -> None:
    job_id = degraded_job(engine)
    deadline = datetime.now(UTC) + timedelta(minutes=minutes)
    rows.execute(engine, "UPDATE jobs SET deadline = :deadline", deadline=deadline)
    assert rerun(engine, job_id) == [job_id]
    assert rows.row(engine, job_id)["deadline"] == (deadline if is_kept else None)


def test_a_rerun_that_dies_keeps_the_degraded_result(engine: Engine) -> None:
    job_id = degraded_job(engine)
    rerun(engine, job_id)
    rows.finish(engine, rows.death(claim_after_release(engine, job_id)))
    dead = seen(engine, job_id)
    assert (dead.state, dead.result, dead.degraded) == (JobState.DEAD, EXCERPT, True)


def test_a_model_answers_the_document_when_it_is_back(rooms: Rooms) -> None:
    job_id = rooms.submit(on_unavailable="degrade")
    rooms.fault("unauthorized")
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert (seen(rooms.engine, job_id).degraded, rooms.calls()) == (True, 1)
    assert rerun(rooms.engine, job_id) == [job_id]
    with rooms.engine.begin() as connection:
        release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(1))
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    job = seen(rooms.engine, job_id)
    assert (job.degraded, job.result, job.model_served) == (False, DOCUMENT, "sim-small")
    assert (rooms.calls(), job.cost_nanodollars) == (2, rooms.invoice())


def rerun_and_released(rooms: Rooms) -> UUID:
    """Bring a job to a degraded success, and its rerun to where a worker can take it."""
    job_id = rooms.submit(on_unavailable="degrade")
    rooms.fault("unauthorized")
    rooms.attempt(job_id)
    assert rerun(rooms.engine, job_id) == [job_id]
    with rooms.engine.begin() as connection:
        release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(1))
    return job_id


def test_a_rerun_that_a_provider_refuses_does_not_degrade_again(rooms: Rooms) -> None:
    job_id = rerun_and_released(rooms)
    rooms.fault("unauthorized")
    assert rooms.attempt(job_id).outcome is Outcome.DEAD


@pytest.mark.parametrize(("choice", "outcome"), [("degrade", Outcome.SUCCEEDED), ("refuse", Outcome.DEAD)])
def test_a_rerun_whose_budget_is_exhausted_ends_as_the_budget_says(rooms: Rooms, choice: str, outcome: Outcome) -> None:
    job_id = rerun_and_released(rooms)
    budget = Budget("acme", Period.MONTH, Unit.NANODOLLARS, hard_limit=1, on_exhausted=OnExhausted(choice))
    with rooms.engine.begin() as connection:
        set_budget(connection, budget)
    report = rooms.attempt(job_id)
    assert (report.outcome, report.reason) == (outcome, Reason.BUDGET_EXHAUSTED)
    job = seen(rooms.engine, job_id)
    assert (job.degraded, job.reason, rooms.calls()) == (True, "budget_exhausted", 1)


def test_the_client_reruns_and_waits_for_the_answer(client: Client, engine: Engine) -> None:
    job_id = degraded_job(engine)
    assert client.wait(job_id, timeout_s=0).result == EXCERPT
    assert client.rerun([job_id, uuid4()]) == [job_id]
    assert client.rerun([job_id]) == []
    rows.finish(engine, rows.success(claim_after_release(engine, job_id), ANSWER))
    assert client.wait(job_id, timeout_s=0).result == ANSWER


def test_command_reruns_by_id_and_tells_of_each(penstock: Penstock, engine: Engine) -> None:
    job_id, other = degraded_job(engine), uuid4()
    ran = penstock("jobs", "rerun", job_id, other)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [f"{job_id} queued anew", f"{other} has no degraded result"]
    assert penstock("jobs", "rerun", job_id).out == f"{job_id} has no degraded result\n"


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (["--tenant", "acme"], "mine old"),
        (["--tenant", "nobody"], ""),
        (["--tier", "large"], "large"),
        (["--reason", "unavailable"], "mine old large"),
        (["--reason", "timeout"], ""),
        (["--since", "2h"], "mine large"),
        (["--tenant", "acme", "--since", "2h"], "mine"),
        (["--all"], "mine old large"),
        (["--all", "--tenant", "acme"], "mine old"),
    ],
)
def test_command_reruns_by_filter(penstock: Penstock, engine: Engine, chosen: list[str], found: str) -> None:
    ids = {
        "mine": degraded_job(engine),
        "old": degraded_job(engine),
        "large": degraded_job(engine, tenant="other", tier="large"),
    }
    rows.execute(engine, "UPDATE jobs SET ended_at = now() - interval '3 hours' WHERE id = :id", id=ids["old"])
    answered = rows.running_job(engine)
    rows.finish(engine, rows.success(answered))
    ran = penstock("jobs", "rerun", *chosen)
    assert (ran.code, set(ran.out.splitlines())) == (0, {f"{ids[name]} queued anew" for name in found.split()})
    assert {name for name, job_id in ids.items() if rows.state(engine, job_id) == "queued"} == set(found.split())
    assert rows.state(engine, answered.id) == "succeeded"


@pytest.mark.parametrize(
    "arguments", [[], [str(uuid4()), "--all"], [str(uuid4()), "--tenant", "acme"], ["--since", ""]]
)
def test_command_wants_ids_or_a_filter(penstock: Penstock, engine: Engine, arguments: list[str]) -> None:
    degraded_job(engine)
    before = rows.everything(engine)
    ran = penstock("jobs", "rerun", *arguments)
    assert ran.code == 2
    assert ran.error().startswith("name ids, or a filter (--tenant, --tier, --reason, --since, --all), not both")
    assert rows.everything(engine) == before


def test_list_of_degraded_results_shows_no_others(penstock: Penstock, client: Client, engine: Engine) -> None:
    worse, answered = degraded_job(engine), rows.running_job(engine)
    rows.finish(engine, rows.success(answered))
    [line] = penstock("jobs", "list", "--degraded", "--json").lines
    assert (line["id"], line["state"], line["degraded"], line["result"]) == (str(worse), "succeeded", True, EXCERPT)
    table = penstock("jobs", "list", "--degraded").out
    assert (str(worse) in table, "succeeded (degraded)" in table, str(answered.id) in table) == (True, True, False)
    assert {job.id: job.degraded for job in client.find(Filter())} == {worse: True, answered.id: False}


def test_list_of_degraded_results_goes_with_the_other_filters(penstock: Penstock, engine: Engine) -> None:
    mine, other = degraded_job(engine), degraded_job(engine, tenant="other")
    assert rerun(engine, other) == [other]
    listed = partial(penstock, "jobs", "list", "--degraded", "--json")
    assert [line["id"] for line in listed("--tenant", "acme").lines] == [str(mine)]
    assert [line["id"] for line in listed("--state", "succeeded").lines] == [str(mine)]
    assert [line["id"] for line in listed("--state", "queued").lines] == [str(other)]
    assert listed("--tier", "large").lines == []
