"""The end of a batch: its results, its callback, and what may still be done with it."""

import base64
import json
from dataclasses import replace
from uuid import UUID

import pytest
import redis
from sqlalchemy import Engine

from penstock.batches import rows as batches
from penstock.batches.batch import AbortIf, BatchState
from penstock.client import Client
from penstock.client.doorbell import BROKER_ERRORS, Doorbell
from penstock.errors import InvalidRequestError
from penstock.jobs import dead_letters
from penstock.jobs.execution import Outcome
from penstock.money import ledger
from penstock.money.holds import Shortfall
from penstock.reasons import Reason
from penstock.schemas import JobState
from penstock.settings import Settings
from tests.batches.conftest import REQUEST, BrokenOffError, broken_off, documents
from tests.batches.runs import end, run_some, states, succeed
from tests.jobs import rows
from workers.upkeep import tend


class TestEnd:
    def test_it_is_done_when_every_job_has_ended(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(3))
        succeed(engine, run_some(engine, 2))
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING
        end(engine, run_some(engine, 1), Outcome.DEAD, reason=Reason.BAD_REQUEST, detail="no")
        tend(engine, Doorbell(""))
        batch = client.find_batch("acme", "night")
        assert batch.state is BatchState.DONE
        assert batch.ended_at is not None

    def test_it_is_not_done_while_its_input_is_read(self, client: Client, engine: Engine) -> None:
        with pytest.raises(BrokenOffError):
            client.batch("night", REQUEST, broken_off(documents(1500), 1500))
        rows.execute(engine, "UPDATE jobs SET state = 'succeeded', ended_at = now()")
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.RUNNING

    def test_results_come_in_the_order_of_the_input_and_errors_apart(self, client: Client, engine: Engine) -> None:
        items = documents(1003)
        items[4] = {"document": ""}
        client.batch("night", REQUEST, items)
        claimed = run_some(engine, 1002)
        assert [job.id for job in claimed] == sorted(job.id for job in claimed)
        succeed(engine, claimed[::-1][:-1])
        end(engine, claimed[:1], Outcome.DEAD, reason=Reason.BAD_REQUEST, detail="no")
        results = list(client.batch_results("acme", "night"))
        assert [number for number, _ in results] == [number for number in range(2, 1004) if number != 5]
        assert {job.result for _, job in results} == {"A summary."}
        errors = [(error.number, error.reason) for error in client.batch_errors("acme", "night")]
        assert errors[0][0] == 5
        assert errors[1] == (1, "bad_request: no")


class TestCallback:
    def test_a_task_is_sent_once_it_has_ended(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        doorbell = Doorbell(settings.require_broker_url())
        client.batch("night", REQUEST, documents(2), callback="reports.batch_ended@reports")
        succeed(engine, run_some(engine, 1))
        tend(engine, doorbell)
        assert broker.llen("reports") == 0
        succeed(engine, run_some(engine, 1))
        for _ in range(3):
            tend(engine, doorbell)
        doorbell.close()
        [message] = [json.loads(each) for each in broker.lrange("reports", 0, -1)]
        assert message["headers"]["task"] == "reports.batch_ended"
        _, told, _ = json.loads(base64.b64decode(message["body"]))
        assert told == {"batch": "night", "tenant": "acme", "state": "done"}

    def test_a_broker_that_is_away_is_tried_again(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        client.batch("night", REQUEST, [], callback="reports.batch_ended@reports")
        with pytest.raises(BROKER_ERRORS):
            tend(engine, Doorbell("redis://127.0.0.1:1/0"))
        assert client.find_batch("acme", "night").state is BatchState.DONE
        doorbell = Doorbell(settings.require_broker_url())
        tend(engine, doorbell)
        doorbell.close()
        assert broker.llen("reports") == 1


class TestAfterTheEnd:
    def dead(self, client: Client, engine: Engine) -> list[UUID]:
        client.batch("night", REQUEST, documents(2), max_cost=1)
        jobs = run_some(engine, 2)
        end(engine, jobs, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        tend(engine, Doorbell(""))
        assert client.find_batch("acme", "night").state is BatchState.DONE
        return [job.id for job in jobs]

    def test_a_replayed_job_opens_its_batch_again_and_its_cap_still_holds(self, client: Client, engine: Engine) -> None:
        dead = self.dead(client, engine)
        assert len(client.replay(dead)) == 2
        batch = client.find_batch("acme", "night")
        assert (batch.state, batch.ended_at) == (BatchState.RUNNING, None)
        intents = [replace(rows.intent(job), batch_id=job.batch_id) for job in run_some(engine, 2)]
        with engine.begin() as connection:
            assert {type(verdict) for verdict in ledger.intend(connection, intents)} == {Shortfall}
        client.cancel_batch("acme", "night")
        assert states(client) == {JobState.CANCELLED: 2}

    def test_a_batch_does_not_end_while_a_job_of_it_is_replayed(self, client: Client, engine: Engine) -> None:
        batch = client.batch("night", REQUEST, documents(2))
        dead = run_some(engine, 2)
        end(engine, dead, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        with engine.connect() as replaying:
            assert len(dead_letters.replay(replaying, [job.id for job in dead])) == 2
            with rows.behind(engine, lambda connection: batches.close(connection, batch)):
                replaying.commit()
        assert client.find_batch("acme", "night").state is BatchState.RUNNING

    def test_the_dead_of_a_cancelled_batch_are_not_replayed(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(2))
        jobs = run_some(engine, 1)
        end(engine, jobs, Outcome.DEAD, reason=Reason.BAD_REQUEST)
        client.cancel_batch("acme", "night")
        assert client.replay([jobs[0].id]) == []

    def test_another_input_is_refused_when_the_first_is_stored_and_done(self, client: Client, engine: Engine) -> None:
        items = documents(3)
        client.batch("night", REQUEST, items)
        for other in (items[:2], [{"document": "Other."}, *items[1:]]):
            with pytest.raises(InvalidRequestError, match="its first 3 items are not those that batch 'night' was"):
                client.batch("night", REQUEST, other)
        with pytest.raises(InvalidRequestError, match="it has more items than the 3 that batch 'night' was begun with"):
            client.batch("night", REQUEST, [*items, {"document": "One more."}])
        succeed(engine, run_some(engine, 3))
        tend(engine, Doorbell(""))
        assert client.batch("night", REQUEST, items).state is BatchState.DONE

    def test_a_command_that_is_refused_changes_nothing(self, client: Client, engine: Engine) -> None:
        client.batch("night", REQUEST, documents(1), max_cost=5)
        with pytest.raises(InvalidRequestError, match="its first 1 items"):
            client.batch(
                "night", REQUEST, [{"document": "Other."}], max_cost=9, callback="c.d", abort_if=AbortIf(cost=9)
            )
        succeed(engine, run_some(engine, 1))
        tend(engine, Doorbell(""))
        before = client.find_batch("acme", "night")
        with pytest.raises(
            InvalidRequestError, match="batch 'night' is done; only one that is paused or stopped can be resumed"
        ):
            client.resume_batch("acme", "night", max_cost=7)
        assert client.find_batch("acme", "night") == before
        assert (before.max_nanodollars, before.callback, before.abort_if) == (5, None, AbortIf())

    def test_a_callback_that_is_given_after_the_end_is_sent(
        self, client: Client, engine: Engine, settings: Settings, broker: redis.Redis
    ) -> None:
        doorbell = Doorbell(settings.require_broker_url())
        client.batch("night", REQUEST, [])
        tend(engine, doorbell)
        client.batch("night", REQUEST, [], callback="reports.ended@reports")
        tend(engine, doorbell)
        doorbell.close()
        assert broker.llen("reports") == 1

    @pytest.mark.parametrize("callback", ["", "@q", "task@", "a b", "ta\0sk", "x" * 201, "\ud800", "a@b@c"])
    def test_a_callback_that_is_none_is_refused(self, client: Client, callback: str) -> None:
        with pytest.raises(InvalidRequestError, match="callback"):
            client.batch("night", REQUEST, [], callback=callback)
        assert client.batches() == []
