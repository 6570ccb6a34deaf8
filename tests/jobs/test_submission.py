"""Jobs become rows: the window, repeats, conflicts, and what a transaction that fails leaves behind."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.errors import IdempotencyConflictError
from penstock.jobs import queries, submission
from penstock.jobs.submission import Accepted, NewJob
from penstock.schemas import JobState, Lane, OnUnavailable, Usage
from tests.jobs import rows

AWKWARD = 'it\'s "quoted" \\ \\u0041 \\\\n \n\t\r 日本語 🎉 \u202e \x7f %s %(x)s :name $1 {} {{x}} \u2028'
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


class Way:
    """How jobs become rows: by parameters, or through COPY. Every test holds for both."""

    write = staticmethod(submission.submit)


@pytest.fixture(params=[submission.submit, submission.copy], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Way, "write", staticmethod(request.param))


def submit(connection: Connection, *jobs: NewJob, window: int = 3) -> list[Accepted]:
    return Way.write(connection, jobs, window=window)


def accept(engine: Engine, *jobs: NewJob, window: int = 3) -> list[Accepted]:
    with engine.begin() as connection:
        return submit(connection, *jobs, window=window)


def test_a_job_is_stored_as_it_was_given(engine: Engine) -> None:
    deadline = datetime(2099, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
    job = rows.new_job(
        idempotency_key="k",
        deadline=deadline,
        priority=9,
        lane=Lane.BATCH,
        on_unavailable=OnUnavailable.FAIL,
        fallback_tiers=("medium", "large"),
        is_fresh=True,
    )

    assert accept(engine, job) == [Accepted(job.id, JobState.QUEUED, "small", Lane.BATCH, created=True)]

    with engine.begin() as connection:
        stored = queries.get(connection, [job.id])[job.id]
    assert (stored.tenant, stored.prompt, stored.tier, stored.lane) == ("acme", rows.PROMPT, "small", Lane.BATCH)
    assert (stored.priority, stored.document_name, stored.metadata) == (9, "tale.txt", {"order": "17"})
    assert (stored.deadline, stored.attempts, stored.reason, stored.result) == (deadline, 0, None, None)
    assert (stored.usage, stored.cost_nanodollars, stored.ended_at) == (Usage(), 0, None)
    assert (stored.on_unavailable, stored.degraded) == (OnUnavailable.FAIL, False)
    assert rows.row(engine, job.id)["fallback_tiers"] == ["medium", "large"]
    assert rows.row(engine, job.id)["is_fresh"]
    assert rows.row(engine, job.id)["idempotency_key"] == "k"
    assert rows.everything(engine)["payloads"] == [
        {"job_id": job.id, "variables": {"language": "English"}, "document": "Once upon a time."}
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(storable, storable, storable)
def test_any_text_comes_back_as_it_went_in(engine: Engine, document: str, name: str, value: str) -> None:
    job = rows.new_job(document=document + AWKWARD, variables={name: value + AWKWARD}, metadata={value: name})
    rows.start_worker(engine)

    rows.submit(engine, job)

    claimed = rows.claim(engine, job.id)
    assert claimed is not None
    assert (claimed.document, claimed.variables) == (document + AWKWARD, {name: value + AWKWARD})
    assert rows.row(engine, job.id)["metadata"] == {value: name}


def test_a_job_without_document_has_none(engine: Engine) -> None:
    job = rows.new_job(document=None, document_name=None)
    accept(engine, job)
    assert rows.everything(engine)["payloads"][0]["document"] is None


def test_interactive_jobs_are_released_up_to_the_window_and_answers_keep_the_order(engine: Engine) -> None:
    jobs = [rows.new_job() for _ in range(5)]
    accepted = accept(engine, *jobs, window=3)
    assert [answer.id for answer in accepted] == [job.id for job in jobs]
    assert [answer.state.value for answer in accepted] == ["released"] * 3 + ["queued"] * 2


def test_the_time_of_release_is_noted_only_for_what_is_released(engine: Engine) -> None:
    first, second = rows.new_job(), rows.new_job()
    accept(engine, first, second, window=1)
    assert rows.row(engine, first.id)["released_at"] is not None
    assert rows.row(engine, second.id)["released_at"] is None


def test_the_window_is_of_a_tenant_and_a_tier(engine: Engine) -> None:
    jobs = [rows.new_job(), rows.new_job(), rows.new_job(tenant="globex"), rows.new_job(tier="large")]
    assert [answer.state.value for answer in accept(engine, *jobs, window=1)] == [
        "released",
        "queued",
        "released",
        "released",
    ]


def test_released_and_running_jobs_fill_the_window_and_ended_ones_do_not(engine: Engine) -> None:
    job = rows.running_job(engine)
    assert accept(engine, rows.new_job(), window=2)[0].state is JobState.RELEASED
    assert accept(engine, rows.new_job(), window=2)[0].state is JobState.QUEUED
    rows.finish(engine, rows.success(job))
    rows.execute(engine, "DELETE FROM jobs WHERE state = 'queued'")
    assert accept(engine, rows.new_job(), window=2)[0].state is JobState.RELEASED


def test_no_tenant_passes_another_that_has_to_queue(engine: Engine) -> None:
    accept(engine, rows.new_job(), rows.new_job(), window=1)
    assert accept(engine, rows.new_job(tenant="other"), window=1)[0].state is JobState.QUEUED
    assert accept(engine, rows.new_job(tenant="other", tier="large"), window=1)[0].state is JobState.RELEASED


def test_batch_jobs_are_never_released_at_the_door_and_take_nothing_of_the_window(engine: Engine) -> None:
    batch = [rows.new_job(lane=Lane.BATCH) for _ in range(3)]
    accepted = accept(engine, *batch, rows.new_job(), window=1)
    assert [answer.state.value for answer in accepted] == ["queued", "queued", "queued", "released"]


def test_a_window_of_nothing_releases_nothing(engine: Engine) -> None:
    assert accept(engine, rows.new_job(), window=0)[0].state is JobState.QUEUED


def test_a_repeat_takes_nothing_of_the_window_of_later_submissions(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    accept(engine, first, *[replace(first, id=uuid4()) for _ in range(3)])
    assert accept(engine, rows.new_job(), window=2)[0].state is JobState.RELEASED


def test_a_repeat_of_a_key_gets_the_first_job_as_it_stands_and_changes_nothing(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    accept(engine, first)
    rows.start_worker(engine)
    rows.claim(engine, first.id)
    before = rows.everything(engine)

    again = accept(engine, replace(first, id=uuid4()))

    assert again == [Accepted(first.id, JobState.RUNNING, "small", Lane.INTERACTIVE, created=False)]
    assert rows.everything(engine) == before


def test_repeats_among_new_jobs_are_answered_in_order(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    accept(engine, first)
    new, repeat, last = rows.new_job(), replace(first, id=uuid4()), rows.new_job(idempotency_key="l")
    accepted = accept(engine, new, repeat, last)
    assert [(answer.id, answer.created) for answer in accepted] == [(new.id, True), (first.id, False), (last.id, True)]


def test_a_repeat_within_one_submission_gets_the_first_of_them(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    accepted = accept(engine, first, replace(first, id=uuid4()))
    assert [(answer.id, answer.created) for answer in accepted] == [(first.id, True), (first.id, False)]
    assert [found["id"] for found in rows.everything(engine)["jobs"]] == [first.id]


def test_a_key_belongs_to_its_tenant(engine: Engine) -> None:
    mine = rows.new_job(idempotency_key="k")
    theirs = rows.new_job(idempotency_key="k", tenant="globex", content_digest="e" * 64)
    assert [answer.id for answer in accept(engine, mine, theirs)] == [mine.id, theirs.id]


def test_a_key_used_for_other_content_is_a_conflict_and_nothing_is_left(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="it's mine")
    accept(engine, first)
    before = rows.everything(engine)

    with pytest.raises(IdempotencyConflictError, match=r"it's mine.*'acme'") as refusal:
        accept(engine, rows.new_job(), replace(first, id=uuid4(), content_digest="e" * 64), rows.new_job())

    assert refusal.value.field == "idempotency_key"
    assert rows.everything(engine) == before


def test_a_conflict_within_one_submission_is_found(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    with pytest.raises(IdempotencyConflictError):
        accept(engine, first, replace(first, id=uuid4(), content_digest="e" * 64))
    assert rows.everything(engine)["jobs"] == []


def test_the_same_id_again_gets_the_job_that_has_it(engine: Engine) -> None:
    job = rows.new_job()
    assert [answer.created for answer in accept(engine, job)] == [True]
    before = rows.everything(engine)
    assert accept(engine, job) == [Accepted(job.id, JobState.RELEASED, "small", Lane.INTERACTIVE, created=False)]
    assert rows.everything(engine) == before


def test_the_same_id_twice_in_one_submission_is_one_job(engine: Engine) -> None:
    job = rows.new_job()
    assert [(answer.id, answer.created) for answer in accept(engine, job, job)] == [(job.id, True), (job.id, False)]
    assert [found["job_id"] for found in rows.everything(engine)["payloads"]] == [job.id]


def test_the_same_id_for_other_content_is_a_conflict(engine: Engine) -> None:
    job = rows.new_job()
    accept(engine, job)
    before = rows.everything(engine)
    with pytest.raises(IdempotencyConflictError, match=str(job.id)):
        accept(engine, replace(job, content_digest="e" * 64))
    assert rows.everything(engine) == before


def test_the_same_id_for_other_content_in_one_submission_is_a_conflict(engine: Engine) -> None:
    job = rows.new_job()
    with pytest.raises(IdempotencyConflictError, match=str(job.id)):
        accept(engine, job, replace(job, content_digest="e" * 64))
    assert rows.everything(engine)["jobs"] == []


def test_an_id_of_another_tenant_is_a_conflict_and_never_that_tenants_job(engine: Engine) -> None:
    theirs = rows.new_job(tenant="globex")
    accept(engine, theirs)
    before = rows.everything(engine)
    with pytest.raises(IdempotencyConflictError) as refusal:
        accept(engine, replace(theirs, tenant="acme"))
    assert "globex" not in str(refusal.value)
    assert rows.everything(engine) == before


def test_a_key_and_an_id_of_two_jobs_are_a_conflict(engine: Engine) -> None:
    keyed, named = rows.new_job(idempotency_key="k"), rows.new_job()
    accept(engine, keyed, named)
    before = rows.everything(engine)
    with pytest.raises(IdempotencyConflictError):
        accept(engine, replace(named, idempotency_key="k"))
    assert rows.everything(engine) == before


def test_a_transaction_that_is_rolled_back_leaves_nothing(engine: Engine) -> None:
    before = rows.everything(engine)
    with engine.connect() as connection:
        submit(connection, rows.new_job(), rows.new_job(idempotency_key="k"))
        connection.rollback()
    assert rows.everything(engine) == before


def test_a_job_is_invisible_until_its_transaction_commits(engine: Engine) -> None:
    job = rows.new_job()
    rows.start_worker(engine)
    with engine.connect() as connection:
        submit(connection, job)
        assert rows.claim(engine, job.id) is None
        connection.commit()
    assert rows.claim(engine, job.id) is not None


def test_of_two_at_once_with_one_key_the_second_waits_and_gets_the_first(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    second = replace(first, id=uuid4())
    with engine.connect() as connection:
        submit(connection, first)
        with rows.behind(engine, lambda other: submit(other, second)) as answer:
            connection.commit()
    assert [(accepted.id, accepted.created) for accepted in answer.result()] == [(first.id, False)]
    assert [found["id"] for found in rows.everything(engine)["jobs"]] == [first.id]


def test_of_two_at_once_with_one_key_the_second_is_made_when_the_first_is_rolled_back(engine: Engine) -> None:
    first = rows.new_job(idempotency_key="k")
    second = replace(first, id=uuid4(), content_digest="e" * 64)
    with engine.connect() as connection:
        submit(connection, first)
        with rows.behind(engine, lambda other: submit(other, second)) as answer:
            connection.rollback()
    assert [(accepted.id, accepted.created) for accepted in answer.result()] == [(second.id, True)]
    assert [found["job_id"] for found in rows.everything(engine)["payloads"]] == [second.id]


def test_a_row_that_postgres_refuses_is_an_error_of_sqlalchemy_that_quotes_nothing(engine: Engine) -> None:
    job = rows.new_job(priority=10**6, document="a secret")
    with pytest.raises(DBAPIError) as caught:
        accept(engine, job)
    said = f"{caught.value} {caught.value.orig}"
    assert "out of range" in said
    assert [word for word in ("CONTEXT", "line 1", "secret") if word in said] == []
    assert rows.everything(engine)["jobs"] == []


def test_two_at_once_with_the_same_keys_in_opposite_orders_do_not_deadlock(engine: Engine) -> None:
    keys = [f"key {number}" for number in range(500)]

    def batch(tenant: str, names: list[str]) -> list[NewJob]:
        return [rows.new_job(tenant=tenant, idempotency_key=name, lane=Lane.BATCH) for name in names]

    for number in range(3):
        tenant = f"tenant-{number}"
        forth, back = batch(tenant, keys), batch(tenant, keys[::-1])
        one, other = rows.at_once(
            engine, partial(Way.write, jobs=forth, window=0), partial(Way.write, jobs=back, window=0)
        )
        assert [answer.id for answer in one] == [answer.id for answer in other][::-1]
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 3 * len(keys)


def bury(engine: Engine, job_id: UUID, detail: str = "prompt: there is no prompt 'x'; see `penstock prompts`") -> None:
    with engine.begin() as connection:
        submission.bury_refused(connection, job_id, tenant="acme", prompt="x", detail=detail)


def test_a_refused_request_is_dead_with_its_reason_and_without_content(engine: Engine) -> None:
    job_id = uuid4()
    bury(engine, job_id)
    buried = rows.row(engine, job_id)
    assert (buried["state"], buried["reason"], buried["tenant"]) == ("dead", "invalid", "acme")
    assert buried["detail"] == "prompt: there is no prompt 'x'; see `penstock prompts`"
    assert (buried["attempts"], buried["announced"]) == (0, False)
    assert buried["ended_at"] is not None
    assert rows.everything(engine)["payloads"] == []


def test_a_refusal_that_is_delivered_twice_is_buried_once(engine: Engine) -> None:
    job_id = uuid4()
    bury(engine, job_id)
    before = rows.everything(engine)
    bury(engine, job_id, "another time")
    assert rows.everything(engine) == before


def test_a_refusal_never_touches_a_job_that_has_its_id(engine: Engine) -> None:
    job = rows.new_job()
    accept(engine, job)
    before = rows.everything(engine)
    bury(engine, job.id)
    assert rows.everything(engine) == before


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_refusal_is_recorded_even_when_it_names_a_field_that_is_no_text(engine: Engine, name: str) -> None:
    job_id = uuid4()
    bury(engine, job_id, f"{name}: there is no such field")
    assert rows.row(engine, job_id)["detail"] == "a\N{REPLACEMENT CHARACTER}b: there is no such field"
