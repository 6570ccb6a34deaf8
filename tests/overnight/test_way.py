"""The way of a parcel: which jobs go into a file, which do not, and what is left behind."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from penstock.money.budgets import Budget, Period, Unit, set_budget
from penstock.money.ledger import abandon
from tests.money.books import assert_balanced
from tests.overnight.night import AT_ONCE, Night
from tests.rooms import DOCUMENT


def test_a_batch_is_answered_by_one_file_at_half_the_price_and_leaves_no_file_behind(night: Night) -> None:
    batch_id = night.begin(4)
    assert night.states() == {"paused": 4}
    night.work()
    assert night.states() == {"succeeded": 4}
    assert night.outcomes() == {"answered": 4}
    night.assert_paid_once()
    full_price = night.rooms.row("SELECT sum(input_tokens * 150 + output_tokens * 600) AS it FROM ledger").it
    assert night.paid() == full_price // 2
    assert night.rooms.row("SELECT count(*) AS it FROM results WHERE text LIKE '%It is item%'").it == 4
    assert [batch["request_counts"]["total"] for batch in night.provider_batches()] == [4]
    assert night.parcels() == {"ended": 1}
    assert night.provider_files() == []
    assert night.rooms.calls() == 0
    assert night.rooms.row("SELECT count(*) AS it FROM provider_requests").it == 0
    assert night.rooms.row("SELECT count(*) AS it FROM ledger WHERE batch_id = :id", id=batch_id).it == 4
    assert_balanced(night.rooms.engine)


def test_the_history_of_a_job_names_the_parcel(night: Night) -> None:
    night.begin(1)
    night.work()
    attempt = night.rooms.row("SELECT attempts.*, provider_batches.id FROM attempts, provider_batches")
    assert (attempt.worker, attempt.outcome) == (f"provider-batch-{attempt.id}", "succeeded")


def test_while_the_provider_has_them_jobs_wait_and_their_calls_are_held(night: Night) -> None:
    night.pace(None)
    batch_id = night.begin(2)
    night.work(8)
    assert night.parcels() == {"sent": 1}
    night.follow(batch_id)
    assert night.states() == {"paused": 2}
    with night.rooms.engine.begin() as connection:
        assert abandon(connection, older_than_s=0) == []
    assert night.outcomes() == {None: 2}
    bound = night.rooms.row("SELECT sum(upper_bound_nanodollars) AS it FROM ledger").it
    assert {sums.held_nanodollars for sums in assert_balanced(night.rooms.engine).values()} == {bound}


def test_jobs_wait_for_a_file_while_their_batch_runs_and_go_live_with_it_afterwards(night: Night) -> None:
    night.rooms.fault("batch_expires", share=0.5)
    batch_id = night.begin(2)
    night.follow(batch_id)
    assert night.states() == {"paused": 2}
    night.work()
    assert night.states() == {"succeeded": 1, "queued": 1}
    night.execute("UPDATE batches SET state = 'paused'")
    night.follow(batch_id)
    assert night.states() == {"succeeded": 1, "paused": 1}
    night.work()
    night.execute("UPDATE batches SET state = 'running'")
    night.follow(batch_id)
    assert night.states() == {"succeeded": 1, "queued": 1}


def test_what_the_provider_has_stays_there_when_the_rest_of_its_batch_goes_live(night: Night) -> None:
    night.pace(None)
    batch_id = night.begin(2)
    night.work(8)
    night.execute("UPDATE batches SET by_provider = false")
    night.add(batch_id, 1, document="Late.")
    night.follow(batch_id)
    assert night.states() == {"paused": 2, "queued": 1}
    night.pace(0)
    night.work()
    assert night.states() == {"succeeded": 2, "queued": 1}


def test_nobody_is_sent_to_a_provider_who_did_not_wish_it(night: Night) -> None:
    batch_id = night.begin(2)
    night.execute("UPDATE batches SET by_provider = false")
    night.work()
    night.follow(batch_id)
    assert (night.states(), night.parcels()) == ({"queued": 2}, {})


@pytest.mark.parametrize(("due_s", "sent"), [(23 * 3600, 0), (25 * 3600, 1)])
def test_what_is_due_before_the_window_ends_takes_the_way_of_live_calls(night: Night, due_s: int, sent: int) -> None:
    batch_id = night.begin(2, due_s=due_s)
    night.work()
    night.follow(batch_id)
    night.answer_live()
    assert night.states() == {"succeeded": 2}
    assert len(night.provider_batches()) == sent
    night.assert_paid_once()


def test_a_full_file_is_followed_by_the_next(night: Night) -> None:
    night.terms = replace(night.terms, most_requests=2)
    night.begin(5)
    for _ in range(3):
        night.work()
    assert night.states() == {"succeeded": 5}
    assert sorted(batch["request_counts"]["total"] for batch in night.provider_batches()) == [1, 2, 2]
    night.assert_paid_once()


def test_a_file_is_full_by_its_bytes(night: Night) -> None:
    night.begin(1)
    night.work()
    line = night.rooms.row("SELECT bytes AS it FROM provider_batches").it
    night.terms = replace(night.terms, most_bytes=line * 5 // 2)
    night.begin(3, name="second", variables={"language": "French"})
    for _ in range(2):
        night.work()
    assert night.states() == {"succeeded": 4}
    assert sorted(batch["request_counts"]["total"] for batch in night.provider_batches()) == [1, 1, 2]


def test_jobs_that_ask_the_same_share_one_call(night: Night) -> None:
    batch_id = night.begin(1)
    night.add(batch_id, 1)
    night.add(batch_id, 1, fresh=True)
    night.work()
    assert night.states() == {"succeeded": 2, "queued": 1}
    night.answer_live()
    assert night.states() == {"succeeded": 3}
    assert night.invoice()["calls"] == 2
    assert night.rooms.row("SELECT count(*) AS it FROM results WHERE cached").it == 1


def test_what_another_file_of_the_batch_asks_is_waited_for_however_much_later_that_ends(night: Night) -> None:
    night.terms = replace(AT_ONCE, most_requests=1)
    night.pace(None)
    batch_id = night.begin(1, document="The same for all.")
    night.work(3)
    night.add(batch_id, 2, document="The same for all.")
    night.add(batch_id, 1, document="Another one.")
    night.work(6)
    assert night.rooms.row("SELECT count(*) AS it FROM provider_batches WHERE requests = 1").it == 2
    first = night.rooms.row("SELECT id FROM provider_batches ORDER BY created_at LIMIT 1").id
    night.execute("UPDATE provider_batches SET due_at = now() + interval '1 hour' WHERE id = :id", id=first)
    night.pace(0)
    night.work()
    assert night.states() == {"paused": 3, "succeeded": 1}
    assert night.answer_live() == 0
    night.execute("UPDATE provider_batches SET due_at = now()")
    night.work()
    assert night.parcels() == {"ended": 2}
    night.follow(batch_id)
    night.answer_live()
    assert night.states() == {"succeeded": 4}
    assert night.invoice()["calls"] == 2
    night.assert_paid_once()
    assert night.provider_files() == []


def test_what_was_answered_before_is_not_asked_again(night: Night) -> None:
    night.begin(2)
    night.work()
    night.begin(2, name="again")
    night.work()
    assert night.states() == {"succeeded": 2, "queued": 2}
    night.answer_live()
    assert night.states() == {"succeeded": 4}
    assert night.invoice()["calls"] == 2


def test_a_job_that_cannot_wait_or_is_too_long_for_one_call_takes_the_way_of_live_calls(night: Night) -> None:
    batch_id = night.begin(1)
    (soon,) = night.add(batch_id, 1, document="Soon.", deadline=datetime.now(UTC) + timedelta(hours=1))
    (long,) = night.add(batch_id, 1, document=f"{DOCUMENT}\n\n" * 7_500)
    night.work()
    assert night.states() == {"succeeded": 1, "queued": 2}
    assert {night.rooms.job(job_id).state for job_id in (soon, long)} == {"queued"}
    assert night.outcomes() == {"answered": 1}


def test_a_prompt_that_is_not_here_is_for_a_live_attempt_to_judge(night: Night) -> None:
    night.begin(2)
    night.execute("UPDATE jobs SET prompt_digest = 'another' WHERE batch_number = 0")
    night.work()
    assert night.states() == {"queued": 1, "succeeded": 1}


def test_a_budget_that_others_hold_leaves_jobs_for_a_later_file(night: Night) -> None:
    night.begin(1)
    night.work(2)
    bound = night.rooms.row("SELECT upper_bound_nanodollars AS it FROM ledger").it
    budget = Budget("acme", Period.MONTH, Unit.NANODOLLARS, hard_limit=bound * 7 // 2)
    with night.rooms.engine.begin() as connection:
        set_budget(connection, budget)
    night.begin(4, name="second", variables={"language": "French"})
    night.work()
    assert night.states() == {"succeeded": 3, "paused": 2}
    assert night.rooms.row("SELECT max(attempts) AS it FROM jobs WHERE state = 'paused'").it == 0
    night.work()
    assert night.states() == {"succeeded": 5}
    night.assert_paid_once()
    assert_balanced(night.rooms.engine)


def test_a_budget_that_is_used_up_is_for_a_live_attempt_to_judge(night: Night) -> None:
    with night.rooms.engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.MONTH, Unit.NANODOLLARS, hard_limit=1))
    night.begin(2)
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {})
    assert night.provider_batches() == []


def test_a_batch_that_is_paused_sends_nothing_until_it_goes_on(night: Night) -> None:
    batch_id = night.begin(2)
    night.work(1)
    night.execute("UPDATE batches SET state = 'paused'")
    night.work(10)
    night.follow(batch_id)
    assert (night.parcels(), night.provider_files()) == ({"sealed": 1}, [])
    night.execute("UPDATE batches SET state = 'running'")
    night.work()
    assert night.states() == {"succeeded": 2}
    night.assert_paid_once()


def test_a_batch_that_is_cancelled_is_cancelled_at_the_provider(night: Night) -> None:
    night.pace(None)
    batch_id = night.begin(2)
    night.work(8)
    night.execute("UPDATE batches SET state = 'cancelled'")
    night.follow(batch_id)
    night.work()
    assert night.states() == {"cancelled": 2}
    assert [batch["status"] for batch in night.provider_batches()] == ["cancelled"]
    assert night.outcomes() == {"not_sent": 2}
    assert night.paid() == 0


def test_a_job_that_is_cancelled_before_its_file_is_written_is_in_no_file(night: Night) -> None:
    night.begin(3)
    night.work(1)
    night.execute("UPDATE jobs SET state = 'cancelled', ended_at = now() WHERE batch_number = 1")
    night.work()
    assert night.states() == {"cancelled": 1, "succeeded": 2}
    assert night.outcomes() == {"not_sent": 1, "answered": 2}
    night.assert_paid_once()


def test_an_answer_to_a_job_that_was_cancelled_meanwhile_is_paid_and_not_delivered(night: Night) -> None:
    night.pace(1)
    night.begin(2)
    night.work(4)
    assert night.parcels() == {"sent": 1}
    night.execute("UPDATE jobs SET state = 'cancelled', ended_at = now() WHERE batch_number = 1")
    night.work()
    assert night.states() == {"cancelled": 1, "succeeded": 1}
    assert night.rooms.row("SELECT count(*) AS it FROM results").it == 1
    night.assert_paid_once()


@pytest.mark.parametrize("state", ["running", "paused", "queued"])
def test_a_late_end_changes_nothing_in_a_later_run(night: Night, state: str) -> None:
    night.pace(1)
    night.begin(1)
    night.work(4)
    night.execute("UPDATE jobs SET state = :state, fence = fence + 1, worker = 'w1'", state=state)
    night.work()
    assert night.states() == {state: 1}
    assert night.rooms.row("SELECT count(*) AS it FROM results").it == 0
    night.assert_paid_once()
