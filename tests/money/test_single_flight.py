"""One call at a time asks a question of a tenant's tier, and nobody waits for a call whose run is over."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text

from penstock.errors import Reason
from penstock.jobs import queries
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.money import ledger, recollection, spending
from penstock.money.budgets import Budget, Period, Unit
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import CallOutcome, InFlight, Intent, Settlement, Verdict
from penstock.money.recollection import JournaledAnswer, Question, Recollection
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND
from tests.money.books import assert_balanced
from tests.money.test_spending import keep

MODELS = ("openai/sim-small", "openai/sim-spare")
ASKED = "q" * 64
TOGETHER = 8
CLOSE = text("UPDATE ledger SET state = 'unknown', outcome = 'unknown', settled_at = now() WHERE call_id = :id")


def intent(job: ClaimedJob, **changes: Any) -> Intent:
    return rows.intent(job, **{"request_digest": ASKED, "models": MODELS} | changes)


def question(job: ClaimedJob, **changes: Any) -> Question:
    return replace(Question(job.id, ASKED, job.tenant, job.tier, MODELS), **changes)


def intend(engine: Engine, *intents: Intent) -> list[Verdict]:
    with engine.begin() as connection:
        return ledger.intend(connection, intents)


def settle(engine: Engine, call: Intent, text: str = "An answer.") -> None:
    with engine.begin() as connection:
        ledger.settle(connection, [answered(call, text)])


def answered(call: Intent, text: str = "An answer.") -> Settlement:
    return Settlement(
        call.call_id,
        CallOutcome.ANSWERED,
        400,
        request_digest=ASKED,
        model_served="m",
        finish_reason="stop",
        answer=text,
    )


def recall(engine: Engine, *questions: Question) -> list[Recollection]:
    with engine.begin() as connection:
        return recollection.recall(connection, questions)


def journaled(call: Intent, text: str = "An answer.", *, is_own: bool = False) -> Recollection:
    return Recollection(JournaledAnswer(call.call_id, call.deployment, "m", "stop", text, is_own=is_own))


def calls(engine: Engine) -> dict[UUID, tuple[str, str | None]]:
    """Give state and reason of each call."""
    return {row["call_id"]: (row["state"], row["reason"]) for row in rows.everything(engine)["ledger"]}


def hand_back(engine: Engine, job: ClaimedJob) -> None:
    assert rows.finish(engine, Ending(job.id, job.fence, Outcome.HANDED_BACK))


def cancel(engine: Engine, job: ClaimedJob) -> None:
    with engine.begin() as connection:
        assert queries.cancel(connection, [job.id]) == [job.id]


def bury(engine: Engine, job: ClaimedJob) -> None:
    assert rows.finish(engine, rows.death(job))


class TestIntents:
    """What is written down of calls that ask the same."""

    def test_the_second_is_not_written_and_holds_nothing(self, engine: Engine) -> None:
        first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))
        assert intend(engine, first) == [Hold(100)]
        before = rows.everything(engine)
        assert intend(engine, second) == [InFlight()]
        assert rows.everything(engine) == before
        assert_balanced(engine)

    def test_of_several_at_once_the_first_is_written(self, engine: Engine) -> None:
        several = [intent(rows.running_job(engine)) for _ in range(3)]
        assert intend(engine, *several) == [Hold(100), InFlight(), InFlight()]
        assert list(calls(engine)) == [several[0].call_id]
        assert_balanced(engine)

    def test_one_of_a_run_that_is_over_is_not_in_the_way(self, engine: Engine) -> None:
        gone, job = rows.running_job(engine), rows.running_job(engine)
        hand_back(engine, gone)
        assert intend(engine, intent(gone), intent(job)) == [None, Hold(100)]

    def test_again_it_is_the_same_intent(self, engine: Engine) -> None:
        first = intent(rows.running_job(engine))
        intend(engine, first)
        assert intend(engine, intent(rows.running_job(engine)), first) == [InFlight(), Hold(100)]

    @pytest.mark.parametrize(
        "changes",
        [{"tenant": "globex"}, {"tier": "large"}, {"request_digest": "r" * 64}, {"request_digest": None}],
        ids=["tenant", "tier", "question", "fresh"],
    )
    def test_another_question_is_another_call(self, engine: Engine, changes: dict[str, Any]) -> None:
        intend(engine, intent(rows.running_job(engine)))
        assert intend(engine, intent(rows.running_job(engine), **changes)) == [Hold(100)]

    def test_fresh_calls_stand_beside_one_another(self, engine: Engine) -> None:
        fresh = [intent(rows.running_job(engine), request_digest=None) for _ in range(2)]
        assert intend(engine, *fresh) == [Hold(100), Hold(100)]

    def test_a_budget_that_has_room_for_one_pays_for_one(self, engine: Engine) -> None:
        budget = Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=UPPER_BOUND)
        keep(engine, budget)
        first, second, other = (intent(rows.running_job(engine)) for _ in range(3))
        assert intend(engine, first, second) == [Hold(100), Shortfall(budget, may_pass=True)]
        assert_balanced(engine)
        settle(engine, first)
        assert intend(engine, replace(other, request_digest="r" * 64)) == [Shortfall(budget, may_pass=False)]

    @pytest.mark.parametrize("with_budget", [False, True])
    def test_of_many_transactions_at_once_one_writes(self, engine: Engine, *, with_budget: bool) -> None:
        if with_budget:
            keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=10**9))
        each = [intent(rows.running_job(engine)) for _ in range(TOGETHER)]
        works = [partial(lambda connection, call: ledger.intend(connection, [call])[0], call=call) for call in each]
        verdicts: list[Verdict] = rows.at_once(engine, *works)
        assert sorted(map(str, verdicts)) == sorted([str(Hold(100))] + [str(InFlight())] * (TOGETHER - 1))
        assert len(calls(engine)) == 1
        assert_balanced(engine)

    @pytest.mark.parametrize("is_kept", [True, False])
    def test_beside_one_that_is_being_written_it_waits_for_what_becomes_of_that(
        self, engine: Engine, *, is_kept: bool
    ) -> None:
        first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))

        def intend_second(connection: Connection) -> list[Verdict]:
            return ledger.intend(connection, [second])

        with engine.connect() as holder:
            ledger.intend(holder, [first])
            with rows.behind(engine, intend_second) as verdicts:
                (holder.commit if is_kept else holder.rollback)()
        assert verdicts.result() == [InFlight() if is_kept else Hold(100)]

    def test_the_database_refuses_a_second_one(self, engine: Engine) -> None:
        """It is the last line of defence, whatever a statement has seen."""
        first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine), request_digest="r" * 64)
        intend(engine, first, second)
        with pytest.raises(Exception, match="ledger_in_flight"):
            rows.execute(
                engine, "UPDATE ledger SET request_digest = :q WHERE call_id = :id", q=ASKED, id=second.call_id
            )


class TestAnswered:
    """A call that has just been answered by another job."""

    def test_what_was_answered_since_it_was_looked_for_is_not_asked_again(self, engine: Engine) -> None:
        first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))
        intend(engine, first)
        settle(engine, first)
        assert intend(engine, second) == [InFlight()]
        assert len(calls(engine)) == 1

    def test_one_that_is_being_settled_is_not_waited_for_by_who_holds_the_budget(self, engine: Engine) -> None:
        """The other way round they would wait for one another."""
        keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=10**9))
        first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))
        intend(engine, first)

        def intend_second(connection: Connection) -> list[Verdict]:
            return ledger.intend(connection, [second])

        with engine.connect() as settler:
            ledger.settle(settler, [answered(first)])
            with rows.behind(engine, intend_second) as verdicts:
                settler.commit()
        assert verdicts.result() == [InFlight()]

    @pytest.mark.parametrize(
        "settlement",
        [
            lambda call: Settlement(call.call_id, CallOutcome.REFUSED, 0, reason=Reason.THROTTLED),
            lambda call: Settlement(call.call_id, CallOutcome.UNKNOWN, None, reason=Reason.TIMEOUT),
            lambda call: Settlement(call.call_id, CallOutcome.ANSWERED, 400, reason=Reason.OUTPUT_TRUNCATED),
        ],
        ids=["refused", "unknown", "cut"],
    )
    def test_after_a_failure_the_next_becomes_the_caller(self, engine: Engine, settlement: Any) -> None:
        first, second, third = (intent(rows.running_job(engine)) for _ in range(3))
        intend(engine, first)
        with engine.begin() as connection:
            ledger.settle(connection, [settlement(first)])
        assert intend(engine, second, third) == [Hold(100), InFlight()]

    def test_a_smaller_models_answer_does_not_stand_in_for_a_larger_ones(self, engine: Engine) -> None:
        small = intent(rows.running_job(engine), model_asked="openai/tiny")
        intend(engine, small)
        settle(engine, small)
        job = rows.running_job(engine)
        assert recall(engine, question(job)) == [Recollection()]
        assert intend(engine, intent(job)) == [Hold(100)]


class TestRecall:
    """What a job is told of its question before it asks."""

    def test_the_own_answer_comes_before_anothers_and_a_preferred_models_before_a_newer_one(
        self, engine: Engine
    ) -> None:
        jobs = [rows.running_job(engine) for _ in range(3)]
        models = (MODELS[0], MODELS[1], "openai/tiny")
        made = [intent(job, model_asked=model, request_digest=None) for job, model in zip(jobs, models, strict=True)]
        intend(engine, *made)
        for call, model in zip(made, models, strict=True):
            settle(engine, call, model)
        asking = rows.running_job(engine)
        found = recall(engine, question(jobs[2]), question(jobs[1]), question(asking))
        assert found == [
            journaled(made[2], models[2], is_own=True),
            journaled(made[1], models[1], is_own=True),
            journaled(made[0], models[0]),
        ]

    def test_of_two_answers_of_a_model_the_newer_is_taken(self, engine: Engine) -> None:
        made = [intent(rows.running_job(engine), request_digest=None) for _ in range(2)]
        intend(engine, *made)
        settle(engine, made[1], "old")
        settle(engine, made[0], "new")
        assert recall(engine, question(rows.running_job(engine))) == [journaled(made[0], "new")]

    def test_a_tenant_is_never_given_anothers_answer(self, engine: Engine) -> None:
        call = intent(rows.running_job(engine))
        intend(engine, call)
        settle(engine, call)
        theirs, ours = rows.running_job(engine, tenant="globex"), rows.running_job(engine)
        assert recall(engine, question(theirs), question(ours)) == [Recollection(), journaled(call)]

    def test_without_models_a_job_takes_its_own_answers_alone_and_waits_for_nobody(self, engine: Engine) -> None:
        first, second = rows.running_job(engine), rows.running_job(engine)
        call = intent(first)
        intend(engine, call)
        assert recall(engine, question(second, models=()), question(second)) == [
            Recollection(),
            Recollection(is_in_flight=True),
        ]
        settle(engine, call)
        assert recall(engine, question(second, models=()), question(first, models=())) == [
            Recollection(),
            journaled(call, is_own=True),
        ]

    def test_what_a_purge_took_is_asked_anew(self, engine: Engine) -> None:
        call = intent(rows.running_job(engine))
        intend(engine, call)
        settle(engine, call)
        rows.execute(engine, "DELETE FROM answers")
        job = rows.running_job(engine)
        assert recall(engine, question(job)) == [Recollection()]
        assert intend(engine, intent(job)) == [Hold(100)]

    def test_what_an_older_version_wrote_down_is_only_its_own_jobs(self, engine: Engine) -> None:
        job, other = rows.running_job(engine), rows.running_job(engine)
        call = intent(job)
        intend(engine, call)
        settle(engine, call)
        rows.execute(engine, "UPDATE answers SET tenant = DEFAULT, model = DEFAULT")
        assert recall(engine, question(job), question(other)) == [journaled(call, is_own=True), Recollection()]


class TestLost:
    """A call that nobody will settle."""

    @dataclass
    class Lost:
        """A call, and the job whose run made it and is over."""

        call: Intent
        job: ClaimedJob

    @pytest.fixture(params=[hand_back, cancel, bury], ids=["handed_back", "cancelled", "dead"])
    def lost(self, engine: Engine, request: pytest.FixtureRequest) -> Iterator[Lost]:
        job = rows.running_job(engine)
        call = intent(job)
        intend(engine, call)
        request.param(engine, job)
        yield self.Lost(call, job)
        assert_balanced(engine)

    def test_it_is_closed_by_the_next_who_asks_the_same_and_waited_for_by_nobody(
        self, engine: Engine, lost: Lost
    ) -> None:
        job, other = rows.running_job(engine), rows.running_job(engine)
        assert recall(engine, question(job), question(other)) == [Recollection(), Recollection()]
        assert calls(engine) == {lost.call.call_id: ("unknown", "worker_lost")}
        assert intend(engine, intent(job), intent(other)) == [Hold(100), InFlight()]

    def test_its_late_answer_is_paid_for(self, engine: Engine, lost: Lost) -> None:
        job = rows.running_job(engine)
        recall(engine, question(job))
        settle(engine, lost.call)
        assert [row["source"] for row in rows.everything(engine)["ledger_corrections"]] == ["late_answer"]
        assert recall(engine, question(job)) == [journaled(lost.call)]

    def test_another_tenants_is_left_alone(self, engine: Engine, lost: Lost) -> None:
        recall(engine, question(rows.running_job(engine, tenant="globex")))
        assert calls(engine)[lost.call.call_id] == ("intent", None)

    def test_one_that_somebody_settles_meanwhile_is_waited_for(self, engine: Engine, lost: Lost) -> None:
        job = rows.running_job(engine)
        with engine.connect() as settler:
            ledger.settle(settler, [answered(lost.call)])
            assert recall(engine, question(job)) == [Recollection(is_in_flight=True)]
            settler.commit()
        assert recall(engine, question(job)) == [journaled(lost.call)]

    def test_the_next_run_of_the_same_job_does_not_wait_for_it_either(self, engine: Engine) -> None:
        job = rows.running_job(engine)
        call = intent(job)
        intend(engine, call)
        hand_back(engine, job)
        again = rows.claim_again(engine, job.id)
        assert recall(engine, question(again)) == [Recollection()]
        assert intend(engine, intent(again)) == [Hold(100)]
        assert calls(engine)[call.call_id] == ("unknown", "worker_lost")
        assert_balanced(engine)


def test_who_holds_accounts_does_not_wait_for_a_settlement_that_wants_them(engine: Engine) -> None:
    """A settlement has the row of its call first, and then asks for the accounts."""
    first, second = intent(rows.running_job(engine)), intent(rows.running_job(engine))
    intend(engine, first)
    with engine.connect() as settler:
        settler.execute(CLOSE, {"id": first.call_id})
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
            assert ledger.intend(connection, [second]) == [InFlight()]
        settler.rollback()


def test_who_waits_for_accounts_is_not_waited_for_by_who_holds_them(engine: Engine) -> None:
    """It has written nothing yet: else of two that ask the same each would have what the other wants."""
    first, second, third = (intent(rows.running_job(engine)) for _ in range(3))
    intend(engine, replace(third, request_digest="r" * 64))  # it opens the accounts

    def intend_second(connection: Connection) -> list[Verdict]:
        return ledger.intend(connection, [second])

    with engine.connect() as holder:
        spending.lock(holder, [("acme", "", None)])
        with rows.behind(engine, intend_second) as verdicts:
            assert ledger.intend(holder, [first]) == [Hold(100)]
            holder.commit()
    assert verdicts.result() == [InFlight()]


def test_batches_of_many_tenants_in_any_order_do_not_deadlock(engine: Engine) -> None:
    """Some have a budget, some have none, and all ask the same questions while others are answered."""
    keep(engine, Budget("acme", Period.DAY, Unit.NANODOLLARS, hard_limit=10**9))
    tenants = ["acme", "beta", "globex"]
    jobs = {tenant: rows.running_job(engine, tenant=tenant) for tenant in tenants}
    digests = [letter * 64 for letter in "qrs"]
    for _ in range(5):
        batches = [
            [intent(jobs[tenant], request_digest=digest) for tenant in order for digest in digests[::way]]
            for order in (tenants, tenants[::-1], tenants[1:], tenants[:2], tenants[2:])
            for way in (1, -1)
        ]
        works = [partial(ledger.intend, intents=batch) for batch in batches]
        verdicts: list[list[Verdict]] = rows.at_once(engine, *works)
        made = [
            call
            for batch, of_batch in zip(batches, verdicts, strict=True)
            for call, verdict in zip(batch, of_batch, strict=True)
            if isinstance(verdict, Hold)
        ]
        assert len(made) == len(tenants) * len(digests)
        failed = [Settlement(call.call_id, CallOutcome.REFUSED, 0, reason=Reason.THROTTLED) for call in made]
        rows.at_once(engine, *[partial(ledger.settle, settlements=each) for each in (failed[:5], failed[:3:-1])])
    assert_balanced(engine)
