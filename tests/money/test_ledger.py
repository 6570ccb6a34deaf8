"""One row a physical call: intended by the owner alone, settled once, and never below the truth."""

from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.errors import Reason
from penstock.jobs import queries
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.money import ledger, recollection
from penstock.money.holds import Hold
from penstock.money.ledger import CallOutcome, Intent, LedgerTotals, Settlement
from penstock.money.prices import PER_TOKENS, UpperBound
from penstock.money.recollection import JournaledAnswer, Question
from penstock.schemas import Usage
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND, intent

USED = Usage(input_tokens=100, cached_input_tokens=20, output_tokens=30)
NOT_WRITTEN = {"bound", "least_max_tokens", "models"}


def truth(call_id: UUID, nanodollars: int = 400, answer: str | None = "An answer.") -> Settlement:
    return Settlement(
        call_id,
        CallOutcome.ANSWERED,
        nanodollars,
        USED,
        request_digest="q" * 64,
        model_served="sim-small-1",
        finish_reason="stop",
        answer=answer,
    )


def unknown(call_id: UUID) -> Settlement:
    return Settlement(call_id, CallOutcome.UNKNOWN, None, reason=Reason.TIME_LIMIT)


def intend(engine: Engine, *intents: Intent) -> list[bool]:
    with engine.begin() as connection:
        return [isinstance(verdict, Hold) for verdict in ledger.intend(connection, intents)]


def settle(engine: Engine, *settlements: Settlement) -> None:
    with engine.begin() as connection:
        assert ledger.settle(connection, settlements) == [()] * len(settlements)


def recall(engine: Engine, *wanted: tuple[UUID, str]) -> list[JournaledAnswer | None]:
    with engine.begin() as connection:
        return [found.answer for found in recollection.recall(connection, [Question(*each) for each in wanted])]


def abandon(engine: Engine, older_than_s: float = 60.0) -> list[UUID]:
    with engine.begin() as connection:
        return ledger.abandon(connection, older_than_s=older_than_s)


def totals(engine: Engine) -> LedgerTotals:
    with engine.begin() as connection:
        return ledger.totals(connection)


def entries(engine: Engine) -> list[dict[str, Any]]:
    return rows.everything(engine)["ledger"]


def open_call(engine: Engine) -> tuple[ClaimedJob, UUID]:
    job = rows.running_job(engine)
    call = intent(job)
    assert intend(engine, call) == [True]
    return job, call.call_id


def stop(engine: Engine, job: ClaimedJob) -> None:
    rows.finish(engine, Ending(job.id, job.fence, Outcome.HANDED_BACK))


def test_an_intent_costs_its_upper_bound(engine: Engine) -> None:
    job = rows.running_job(engine)
    call = intent(job)
    assert intend(engine, call) == [True]
    (entry,) = entries(engine)
    written = {name: value for name, value in vars(call).items() if name not in NOT_WRITTEN}
    assert entry.items() >= written.items()
    assert (entry["state"], entry["nanodollars"], entry["settled_at"]) == ("intent", UPPER_BOUND, None)
    assert (entry["upper_bound_nanodollars"], entry["upper_bound_tokens"]) == (UPPER_BOUND, 1000)
    assert totals(engine) == LedgerTotals(1, UPPER_BOUND, 0, 0, open=1)


def test_an_intent_again_is_the_same_intent(engine: Engine) -> None:
    call = intent(rows.running_job(engine))
    intend(engine, call)
    before = rows.everything(engine)
    assert intend(engine, call) == [True]
    assert rows.everything(engine) == before


def test_an_intent_twice_in_one_batch_is_one_row(engine: Engine) -> None:
    call, other = intent(rows.running_job(engine)), intent(rows.running_job(engine))
    assert intend(engine, call, other, call) == [True, True, True]
    assert sorted(entry["call_id"] for entry in entries(engine)) == sorted([call.call_id, other.call_id])


def test_a_run_may_make_several_calls(engine: Engine) -> None:
    job = rows.running_job(engine)
    assert intend(engine, intent(job), intent(job)) == [True, True]
    assert totals(engine).nanodollars == 2 * UPPER_BOUND


def test_a_run_that_was_taken_over_may_not_call(engine: Engine) -> None:
    old = rows.running_job(engine)
    stop(engine, old)
    assert intend(engine, intent(old)) == [False]
    new = rows.claim_again(engine, old.id)
    assert intend(engine, intent(old)) == [False]
    assert entries(engine) == []
    assert intend(engine, intent(new)) == [True]


@pytest.mark.parametrize("old_comes_first", [True, False])
def test_the_owners_intent_in_the_same_batch_does_not_let_an_old_run_through(
    engine: Engine, *, old_comes_first: bool
) -> None:
    old = rows.running_job(engine)
    stop(engine, old)
    new = rows.claim_again(engine, old.id)
    calls = [intent(old), intent(new)]
    assert intend(engine, *(calls if old_comes_first else calls[::-1])) == [not old_comes_first, old_comes_first]
    assert [entry["fence"] for entry in entries(engine)] == [2]


def test_no_call_is_made_for_a_job_that_does_not_run(engine: Engine) -> None:
    cancelled, ended, taken = rows.running_job(engine), rows.running_job(engine), rows.running_job(engine)
    with engine.begin() as connection:
        queries.cancel(connection, [cancelled.id])
    rows.finish(engine, rows.success(ended))
    nowhere = replace(taken, id=uuid4())
    wanted = [intent(job) for job in (cancelled, ended, taken, nowhere)]
    assert intend(engine, *wanted) == [False, False, True, False]
    assert [entry["job_id"] for entry in entries(engine)] == [taken.id]


def test_no_calls_are_no_rows(engine: Engine) -> None:
    assert intend(engine) == []
    settle(engine)
    assert recall(engine) == []
    assert totals(engine) == LedgerTotals(0, 0, 0, 0, 0)


def test_a_settlement_states_the_truth_and_keeps_the_answer(engine: Engine) -> None:
    job, call_id = open_call(engine)

    settle(engine, truth(call_id))

    (entry,) = entries(engine)
    assert (entry["state"], entry["nanodollars"], entry["upper_bound_nanodollars"]) == ("settled", 400, UPPER_BOUND)
    assert (entry["input_tokens"], entry["cached_input_tokens"], entry["output_tokens"]) == (100, 20, 30)
    assert (entry["model_served"], entry["reason"]) == ("sim-small-1", None)
    assert entry["settled_at"] is not None
    assert recall(engine, (job.id, "q" * 64)) == [
        JournaledAnswer(call_id, "sim-small", "sim-small-1", "stop", "An answer.", usage=USED)
    ]
    assert totals(engine) == LedgerTotals(1, 400, 120, 30, open=0)
    with engine.begin() as connection:
        seen = queries.get(connection, [job.id])[job.id]
    assert (seen.cost_nanodollars, seen.usage) == (
        400,
        Usage(input_tokens=100, cached_input_tokens=20, output_tokens=30),
    )


def test_a_refusal_is_settled_at_nothing_and_leaves_no_answer(engine: Engine) -> None:
    _, call_id = open_call(engine)
    settle(engine, Settlement(call_id, CallOutcome.REFUSED, 0, reason=Reason.THROTTLED))
    (entry,) = entries(engine)
    assert (entry["state"], entry["nanodollars"], entry["reason"]) == ("settled", 0, "throttled")
    assert rows.everything(engine)["answers"] == []


def test_a_settlement_above_the_bound_is_believed(engine: Engine) -> None:
    _, call_id = open_call(engine)
    settle(engine, truth(call_id, UPPER_BOUND + 1))
    assert totals(engine).nanodollars == UPPER_BOUND + 1


@pytest.mark.parametrize("again", [truth, partial(truth, nanodollars=7, answer="Another."), unknown])
def test_a_call_is_settled_once(engine: Engine, again: Any) -> None:
    _, call_id = open_call(engine)
    settle(engine, truth(call_id))
    before = rows.everything(engine)
    settle(engine, again(call_id))
    assert rows.everything(engine) == before


def test_an_unknown_outcome_keeps_the_upper_bound_and_may_be_settled_later(engine: Engine) -> None:
    job, call_id = open_call(engine)
    settle(engine, unknown(call_id))
    (entry,) = entries(engine)
    assert (entry["state"], entry["nanodollars"], entry["reason"]) == ("unknown", UPPER_BOUND, "time_limit")
    assert totals(engine).open == 1
    before = rows.everything(engine)
    settle(engine, unknown(call_id))
    assert rows.everything(engine) == before

    settle(engine, truth(call_id))

    (entry,) = entries(engine)
    assert (entry["state"], entry["nanodollars"], entry["reason"]) == ("unknown", UPPER_BOUND, "time_limit")
    (correction,) = rows.everything(engine)["ledger_corrections"]
    assert (correction["source"], correction["nanodollars"]) == ("late_answer", 400 - UPPER_BOUND)
    assert totals(engine) == LedgerTotals(1, 400, 120, 30, open=0)
    assert recall(engine, (job.id, "q" * 64)) == [
        JournaledAnswer(call_id, "sim-small", "sim-small-1", "stop", "An answer.")
    ]
    before = rows.everything(engine)
    settle(engine, truth(call_id, 7))
    assert rows.everything(engine) == before


@pytest.mark.parametrize("change", ["UPDATE ledger SET nanodollars = 0", "DELETE FROM ledger"])
def test_a_closed_row_is_never_changed(engine: Engine, change: str) -> None:
    _, call_id = open_call(engine)
    settle(engine, truth(call_id))
    with pytest.raises(DBAPIError, match="a closed row of ledger is never changed"):
        rows.execute(engine, change)
    assert totals(engine).nanodollars == 400


@pytest.mark.parametrize("truth_comes_first", [True, False])
def test_of_a_truth_and_a_doubt_in_one_batch_the_truth_counts(engine: Engine, *, truth_comes_first: bool) -> None:
    _, call_id = open_call(engine)
    both = [truth(call_id), unknown(call_id)]
    settle(engine, *(both if truth_comes_first else both[::-1]))
    (entry,) = entries(engine)
    assert (entry["state"], entry["nanodollars"], entry["reason"]) == ("settled", 400, None)


def test_of_two_truths_in_one_batch_the_first_counts_with_its_own_answer(engine: Engine) -> None:
    job, call_id = open_call(engine)
    settle(engine, truth(call_id, 400, "first"), truth(call_id, 500, "second"))
    assert totals(engine).nanodollars == 400
    assert recall(engine, (job.id, "q" * 64)) == [
        JournaledAnswer(call_id, "sim-small", "sim-small-1", "stop", "first", usage=USED)
    ]


def test_a_settlement_of_a_call_that_was_never_intended_changes_nothing(engine: Engine) -> None:
    open_call(engine)
    before = rows.everything(engine)
    settle(engine, truth(uuid4()))
    assert rows.everything(engine) == before


def test_each_call_of_a_batch_is_settled_by_its_own_truth(engine: Engine) -> None:
    calls = [open_call(engine)[1] for _ in range(3)]
    settle(engine, truth(calls[2], 3), unknown(calls[0]), truth(calls[1], 2))
    with engine.begin() as connection:
        found = connection.execute(text("SELECT call_id, nanodollars FROM ledger"))
        costs = {row.call_id: row.nanodollars for row in found}
    assert costs == dict(zip(calls, [UPPER_BOUND, 2, 3], strict=True))


def test_a_settlement_and_its_answer_stand_or_fall_together(engine: Engine) -> None:
    job, call_id = open_call(engine)
    with engine.connect() as connection:
        ledger.settle(connection, [truth(call_id)])
        connection.rollback()
    assert totals(engine).open == 1
    assert recall(engine, (job.id, "q" * 64)) == [None]


def test_a_zombies_call_is_paid_and_its_answer_kept_for_the_next_run(engine: Engine) -> None:
    job, call_id = open_call(engine)
    stop(engine, job)
    rows.claim_again(engine, job.id)
    settle(engine, truth(call_id))
    assert totals(engine).nanodollars == 400
    assert recall(engine, (job.id, "q" * 64)) != [None]


def test_the_first_answer_to_a_question_stays_and_both_calls_are_paid(engine: Engine) -> None:
    job, first = open_call(engine)
    second = intent(job)
    intend(engine, second)
    settle(engine, truth(first, 400, "first"))
    settle(engine, truth(second.call_id, 300, "second"))
    assert recall(engine, (job.id, "q" * 64)) == [
        JournaledAnswer(first, "sim-small", "sim-small-1", "stop", "first", usage=USED)
    ]
    assert totals(engine).nanodollars == 700


def test_text_that_postgres_cannot_hold_does_not_keep_a_call_from_being_settled(engine: Engine) -> None:
    job, call_id = open_call(engine)
    settle(engine, truth(call_id, 400, "half a \ud83d, a NUL\0, a 'quote' and a \\u0000 🎉"))
    assert totals(engine) == LedgerTotals(1, 400, 120, 30, open=0)
    (answer,) = recall(engine, (job.id, "q" * 64))
    assert answer is not None
    assert answer.text == "half a \ufffd, a NUL\ufffd, a 'quote' and a \\u0000 🎉"


def test_answers_are_recalled_in_order_and_only_to_their_own_job_and_question(engine: Engine) -> None:
    (mine, call_id), (other, _) = open_call(engine), open_call(engine)
    settle(engine, truth(call_id))
    before = rows.everything(engine)
    answers = recall(engine, (other.id, "q" * 64), (mine.id, "q" * 64), (mine.id, "another"), (mine.id, "q" * 64))
    assert [answer and answer.call_id for answer in answers] == [None, call_id, None, call_id]
    assert rows.everything(engine) == before


def test_only_old_open_calls_of_runs_that_are_over_are_abandoned(engine: Engine) -> None:
    (over, _), (runs, _), (young, _), (settled, settled_call) = (open_call(engine) for _ in range(4))
    rows.execute(
        engine,
        "UPDATE ledger SET intended_at = now() - interval '61 seconds' WHERE NOT job_id = :young",
        young=young.id,
    )
    settle(engine, truth(settled_call))
    for job in (over, young, settled):
        stop(engine, job)
    over_call = next(entry for entry in entries(engine) if entry["job_id"] == over.id)

    assert abandon(engine) == [over_call["call_id"]]

    after = {entry["job_id"]: entry for entry in entries(engine)}
    assert (after[over.id]["state"], after[over.id]["reason"]) == ("unknown", "worker_lost")
    assert after[over.id]["nanodollars"] == UPPER_BOUND
    assert after[over.id]["settled_at"] is not None
    assert [after[job.id]["state"] for job in (runs, young, settled)] == ["intent", "intent", "settled"]
    assert abandon(engine) == []


def test_a_call_of_an_earlier_run_is_abandoned_while_a_later_one_runs(engine: Engine) -> None:
    job, call_id = open_call(engine)
    stop(engine, job)
    again = intent(rows.claim_again(engine, job.id))
    intend(engine, again)
    rows.execute(engine, "UPDATE ledger SET intended_at = now() - interval '1 hour'")
    assert abandon(engine) == [call_id]


def test_an_abandoned_call_may_still_be_settled(engine: Engine) -> None:
    job, call_id = open_call(engine)
    stop(engine, job)
    rows.execute(engine, "UPDATE ledger SET intended_at = now() - interval '1 hour'")
    abandon(engine)
    settle(engine, truth(call_id))
    assert totals(engine) == LedgerTotals(1, 400, 120, 30, open=0)


def test_a_call_whose_job_is_gone_is_abandoned_and_stays_in_the_ledger(engine: Engine) -> None:
    job, call_id = open_call(engine)
    rows.execute(engine, "UPDATE ledger SET intended_at = now() - interval '1 hour'")
    rows.execute(engine, "DELETE FROM jobs WHERE id = :id", id=job.id)
    assert abandon(engine) == [call_id]
    assert totals(engine).nanodollars == UPPER_BOUND


class Spending(RuleBasedStateMachine):
    """Runs that call, crash and settle in any order; `billed` is the provider's own invoice."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.runs: list[ClaimedJob] = []
        self.billed: dict[UUID, int] = {}
        self.settled: set[UUID] = set()
        rows.execute(engine, f"TRUNCATE {', '.join(rows.TABLES)} CASCADE")

    @initialize()
    def begin(self) -> None:
        self.runs += [rows.running_job(self.engine), rows.running_job(self.engine)]

    @rule(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=3), costs=st.lists(st.integers(0, 9), min_size=3))
    def call(self, numbers: list[int], costs: list[int]) -> None:
        """Make calls by any runs, even those that are over; the provider bills what was allowed."""
        runs = [self.runs[-1 - number % len(self.runs)] for number in numbers]
        wanted = [
            intent(run, bound=UpperBound(1, cost * PER_TOKENS, PER_TOKENS), max_tokens=run.fence, least_max_tokens=1)
            for run, cost in zip(runs, costs, strict=False)
        ]
        latest = {run.id: run.fence for run in self.runs}
        allowed = intend(self.engine, *wanted)
        assert allowed == [run.fence == latest[run.id] for run in runs]
        self.billed |= {call.call_id: cost for call, cost, made in zip(wanted, costs, allowed, strict=False) if made}

    @precondition(lambda self: self.billed)
    @rule(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=4), known=st.lists(st.booleans(), min_size=4))
    def settle(self, numbers: list[int], known: list[bool]) -> None:
        calls = list(self.billed)
        chosen = [calls[-1 - number % len(calls)] for number in numbers]
        both = list(zip(chosen, known, strict=False))
        settle(self.engine, *[truth(c, self.billed[c]) if is_known else unknown(c) for c, is_known in both])
        self.settled |= {call_id for call_id, is_known in both if is_known}

    @rule(number=st.integers(0, 3))
    def lose_the_worker(self, number: int) -> None:
        run = self.runs[-1 - number % len(self.runs)]
        stop(self.engine, run)
        if rows.state(self.engine, run.id) == "retrying":
            self.runs.append(rows.claim_again(self.engine, run.id))

    @rule()
    def abandon(self) -> None:
        abandoned = abandon(self.engine, older_than_s=-1)
        latest = {run.id: run.fence for run in self.runs}
        over = {entry["call_id"] for entry in entries(self.engine) if entry["fence"] < latest[entry["job_id"]]}
        assert set(abandoned) <= over - self.settled

    @invariant()
    def the_ledger_is_never_below_the_invoice(self) -> None:
        found = totals(self.engine)
        assert found.calls == len(self.billed)
        assert found.open == len(self.billed.keys() - self.settled)
        assert found.nanodollars >= sum(self.billed.values())
        if not found.open:
            assert found.nanodollars == sum(self.billed.values())


def test_no_sequence_of_calls_and_crashes_puts_the_ledger_below_the_invoice(schema: Engine) -> None:
    run_state_machine_as_test(
        lambda: Spending(schema),  # type: ignore[arg-type] # any maker of one will do
        settings=settings(max_examples=20, stateful_step_count=15, deadline=None),
    )
