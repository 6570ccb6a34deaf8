"""What a tenant has paid for is not asked again, by no job of its own, and is of no use to any other tenant."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from penstock.attempt import Report, run
from penstock.cli.display import print_jobs, show
from penstock.client import Client
from penstock.clock import SystemClock
from penstock.errors import InvalidRequestError, Reason
from penstock.house import House
from penstock.intake import Intake
from penstock.jobs.execution import Outcome
from penstock.money.budgets import Budget, Period, Unit
from penstock.schemas import Job
from tests.rooms import DOCUMENT, Rooms
from tests.test_attempt import expire_worker, revive_worker

TOGETHER = 12


@pytest.fixture
def client(rooms: Rooms) -> Iterator[Client]:
    with Client(rooms.settings) as client:
        yield client


def ask(rooms: Rooms, **fields: Any) -> UUID:
    return rooms.submit(**{"fresh": False} | fields)


def answered(rooms: Rooms, client: Client, **fields: Any) -> Job:
    """Submit a job, run it, and give it."""
    job_id = ask(rooms, **fields)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    return client.get(job_id)


def release(rooms: Rooms) -> None:
    """Let everything that waits be due."""
    with rooms.engine.begin() as connection:
        statement = "UPDATE jobs SET state = 'released', released_at = now() WHERE state IN ('queued', 'retrying')"
        connection.execute(text(statement))


class TestHit:
    """The same question again."""

    def test_it_is_answered_without_a_call_and_costs_nothing(self, rooms: Rooms, client: Client) -> None:
        first, second = answered(rooms, client), answered(rooms, client)
        assert (first.cached, second.cached) == (False, True)
        assert (second.result, second.model_asked, second.model_served) == (
            first.result,
            first.model_asked,
            first.model_served,
        )
        assert first.cost_nanodollars == rooms.invoice() > 0
        assert (second.cost_nanodollars, second.usage.total_tokens) == (0, 0)
        assert (rooms.calls(), rooms.ledger(second.id)) == (1, [])

    def test_it_takes_nothing_of_a_quota_or_a_budget(self, rooms: Rooms, client: Client) -> None:
        answered(rooms, client)
        rooms.forget_gates()
        client.set_budget(Budget("acme", Period.DAY, Unit.TOKENS, hard_limit=0))
        assert answered(rooms, client).cached
        assert rooms.gates.keys() == []
        assert rooms.attempt(ask(rooms, document="Another.")).reason is Reason.BUDGET_EXHAUSTED

    def test_the_question_is_the_text_that_was_taken_out_of_the_document(self, rooms: Rooms, client: Client) -> None:
        answered(rooms, client)
        page = f"<html><body><p>{DOCUMENT}</p></body></html>"
        assert answered(rooms, client, document=DOCUMENT + " \n", document_name="another.txt").cached
        assert answered(rooms, client, document=page, media_type="text/html").cached

    def test_a_project_takes_what_another_of_its_tenant_has_paid_for(self, rooms: Rooms, client: Client) -> None:
        answered(rooms, client, project="north")
        assert answered(rooms, client, project="south").cached

    @pytest.mark.parametrize(
        "fields",
        [
            {"tenant": "globex"},
            {"document": DOCUMENT + " More."},
            {"variables": {"language": "French"}},
            {"prompt_version": "1.1.0"},
            {"prompt": "extract_metadata", "prompt_version": None},
            {"tier": "medium", "prompt_version": "1.2.0"},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_another_question_or_tenant_is_another_call(
        self, rooms: Rooms, client: Client, fields: dict[str, Any]
    ) -> None:
        answered(rooms, client, prompt_version="1.2.0")
        assert not answered(rooms, client, **({"prompt_version": "1.2.0"} | fields)).cached
        assert rooms.calls() == 2

    def test_what_was_purged_is_asked_anew(self, rooms: Rooms, client: Client) -> None:
        answered(rooms, client)
        assert client.purge("acme").is_complete
        assert not answered(rooms, client).cached

    def test_a_result_that_no_model_wrote_is_none(self, rooms: Rooms, client: Client) -> None:
        rooms.fault("insufficient_quota")
        degraded = answered(rooms, client, on_unavailable="degrade", prompt_version="1.2.0")
        assert (degraded.degraded, degraded.cached) == (True, False)
        assert not answered(rooms, client, prompt_version="1.2.0").cached

    def test_an_answer_that_cannot_be_used_is_none(self, rooms: Rooms, client: Client) -> None:
        rooms.fault("wrong_schema", mode="json")
        assert rooms.attempt(ask(rooms, prompt="extract_metadata")).reason is Reason.OUTPUT_INVALID
        assert not answered(rooms, client, prompt="extract_metadata").cached

    def test_it_shows_as_cached(self, rooms: Rooms, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = [answered(rooms, client), answered(rooms, client)]
        told = []
        for job in jobs:
            capsys.readouterr()
            print_jobs([job], as_json=False)
            print_jobs([job], as_json=False, results=True)
            show(client, job.id, as_json=False)
            told.append(capsys.readouterr().out)
        assert ["succeeded (cached)" in each for each in told] == [False, True]
        assert ["(succeeded, sim-small)" in each for each in told] == [True, False]
        assert [f"{'cached:':18} True" in each for each in told] == [False, True]


class TestFresh:
    """A job that wants an answer of its own."""

    def test_it_is_asked_whatever_was_paid_for_and_others_take_its_answer(self, rooms: Rooms, client: Client) -> None:
        answered(rooms, client)
        fresh = answered(rooms, client, fresh=True)
        later = answered(rooms, client)
        assert (fresh.cached, later.cached, rooms.calls()) == (False, True, 2)

    def test_it_does_not_wait_for_another_and_none_waits_for_it(self, rooms: Rooms) -> None:
        jobs = [ask(rooms), ask(rooms, fresh=True), ask(rooms, fresh=True)]
        rooms.fault("latency", extra_ms=300)
        assert [report.outcome for report in together(rooms, jobs)] == [Outcome.SUCCEEDED] * 3
        assert rooms.calls() == 3

    def test_it_takes_its_own_answer_after_a_crash(self, rooms: Rooms, client: Client) -> None:
        job_id = ask(rooms, fresh=True)
        rooms.attempt(job_id)
        with rooms.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET state = 'retrying', ended_at = NULL"))
        rooms.release(job_id)
        assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert (client.get(job_id).cached, rooms.calls()) == (False, 1)

    @pytest.mark.parametrize("count", [1, 100])
    def test_it_is_asked_for_by_every_way_that_rows_are_made(self, rooms: Rooms, client: Client, count: int) -> None:
        ids = client.submit_many({"tenant": "acme", "document": DOCUMENT, "fresh": n > 0} for n in range(count + 1))
        assert [rooms.job(job_id).is_fresh for job_id in ids] == [False] + [True] * count

    @pytest.mark.parametrize("project", ["", "north"])
    def test_under_a_key_it_is_another_request_and_without_it_the_same_as_ever(
        self, rooms: Rooms, project: str
    ) -> None:
        intake = Intake.load(rooms.settings, SystemClock())
        fields = {"tenant": "acme", "prompt": "summarise_document", "document": DOCUMENT, "project": project}
        plain, told, fresh = (
            intake.accept(uuid4(), fields | more).content_digest for more in ({}, {"fresh": False}, {"fresh": True})
        )
        assert plain == told != fresh

    @pytest.mark.parametrize("value", ["yes", 1, None])
    def test_anything_but_true_and_false_is_refused(self, client: Client, value: Any) -> None:
        with pytest.raises(InvalidRequestError, match=r"^fresh: .*; use true or false$"):
            client.submit(tenant="acme", document=DOCUMENT, fresh=value)


def together(rooms: Rooms, jobs: list[UUID]) -> list[Report]:
    async def all_at_once(house: House) -> list[Report]:
        return await asyncio.gather(*(run(house, job_id) for job_id in jobs))

    return rooms.with_house(all_at_once)


class TestSingleFlight:
    """The same question while it is being asked."""

    def test_jobs_that_come_together_share_one_call(self, rooms: Rooms, client: Client) -> None:
        jobs = [ask(rooms) for _ in range(TOGETHER)]
        rooms.fault("latency", extra_ms=300)
        reports = together(rooms, jobs)
        waiting = [report for report in reports if report.outcome is Outcome.DEFERRED]
        assert len(waiting) == TOGETHER - 1
        assert {report.reason for report in waiting} == {Reason.IN_FLIGHT}
        assert all(0.5 <= report.delay_s < 1.0 for report in waiting)
        release(rooms)
        together(rooms, [report.job_id for report in waiting])
        assert sorted(client.get(job_id).cached for job_id in jobs) == [False] + [True] * (TOGETHER - 1)
        assert (rooms.calls(), {client.get(job_id).attempts for job_id in jobs}) == (1, {1})

    def test_when_the_one_that_asks_fails_the_next_does(self, rooms: Rooms, client: Client) -> None:
        jobs = [ask(rooms) for _ in range(3)]
        rooms.fault("server_error")
        assert sorted(str(report.reason) for report in together(rooms, jobs)) == [
            "in_flight",
            "in_flight",
            "server_error",
        ]
        for _ in range(2):
            release(rooms)
            together(rooms, jobs)
        assert [client.get(job_id).result for job_id in jobs] == [DOCUMENT] * 3
        assert rooms.calls() == 2

    def test_the_wait_grows_with_the_jobs_age_and_leaves_half_of_what_its_deadline_does(self, rooms: Rooms) -> None:
        first = ask(rooms)
        old, urgent = (ask(rooms, deadline=end) for end in (None, SystemClock().now() + timedelta(seconds=20)))
        with rooms.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET created_at = now() - interval '1 hour'"))
        rooms.fault("latency", extra_ms=600)

        async def meanwhile(house: House) -> list[Report]:
            asking = asyncio.create_task(run(house, first))
            while rooms.calls() == 0:
                await asyncio.sleep(0.01)
            return [await run(house, old), await run(house, urgent), await asking]

        *waiting, asked = rooms.with_house(meanwhile)
        assert asked.outcome is Outcome.SUCCEEDED
        assert [report.reason for report in waiting] == [Reason.IN_FLIGHT] * 2
        assert 30.0 <= waiting[0].delay_s <= 33.0
        assert 9.0 <= waiting[1].delay_s <= 11.0

    def test_a_run_that_was_lost_with_its_call_is_waited_for_by_nobody(self, rooms: Rooms, client: Client) -> None:
        lost, same = ask(rooms), ask(rooms)
        rooms.fault("hang", hold_s=30)

        async def lose_and_go_on(house: House) -> list[Outcome | None]:
            running = asyncio.create_task(run(house, lost))
            while rooms.calls() == 0:
                await asyncio.sleep(0.01)
            expire_worker(rooms)
            revive_worker(rooms)
            rooms.release(lost)
            reports = [await run(house, same), await run(house, lost)]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return [report.outcome for report in reports]

        assert rooms.with_house(lose_and_go_on) == [Outcome.SUCCEEDED] * 2
        (call,) = rooms.ledger(lost)
        assert (call.state, call.reason, call.nanodollars) == ("unknown", "worker_lost", call.upper_bound_nanodollars)
        assert (client.get(lost).cached, rooms.calls()) == (True, 2)
