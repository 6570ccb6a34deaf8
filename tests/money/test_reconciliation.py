"""The provider's word is what is paid: unknown calls get their truth, and a second time nothing changes."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event, text

from penstock.errors import InvalidRequestError
from penstock.money import ledger, usage
from penstock.money.export import read_export
from penstock.money.ledger import CallOutcome, Settlement
from penstock.money.reconciliation import BilledCall, Complete, Reconciliation, reconcile
from penstock.money.usage import By
from penstock.schemas import Usage
from tests.jobs import rows
from tests.jobs.rows import UPPER_BOUND
from tests.money.books import assert_balanced

PAST = datetime(2026, 1, 1, tzinfo=UTC)
USED = Usage(input_tokens=100, cached_input_tokens=20, output_tokens=30)
SCANNED = text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'ledger'")


def call(engine: Engine, nanodollars: int | None, *, is_open: bool = False, account: str = "simulator") -> UUID:
    """Make a call of a job of its own, and settle it: without an amount as unknown."""
    job = rows.running_job(engine)
    intent = replace(rows.intent(job), account=account)
    with engine.begin() as connection:
        ledger.intend(connection, [intent])
        if not is_open:
            outcome = CallOutcome.UNKNOWN if nanodollars is None else CallOutcome.ANSWERED
            usage = Usage() if nanodollars is None else USED
            ledger.settle(connection, [Settlement(intent.call_id, outcome, nanodollars, usage)])
    return intent.call_id


def run(engine: Engine, *lines: BilledCall, complete: Complete | None = None) -> Reconciliation:
    with engine.begin() as connection:
        return reconcile(connection, lines, complete)


def total(engine: Engine) -> int:
    with engine.begin() as connection:
        return ledger.totals(connection).nanodollars


def month(engine: Engine) -> dict[str, Any]:
    """Give what the tenant has spent in the month."""
    return next(row for row in rows.everything(engine)["spending"] if row["period"] == "month")


def bound_tokens(engine: Engine) -> int:
    """Give what the month's breakdown says of tokens that nobody knows."""
    with engine.begin() as connection:
        (line,) = usage.breakdown(connection, None, By.TIER, datetime(2020, 1, 1, tzinfo=UTC))
    return line.bound_tokens


def around_now(account: str = "simulator") -> Complete:
    now = datetime.now(UTC)
    return Complete(account, now - timedelta(hours=1), now)


def test_an_unknown_call_gets_its_truth_once(engine: Engine) -> None:
    unknown = call(engine, None)
    assert total(engine) == UPPER_BOUND

    outcome = run(engine, BilledCall(unknown, 400, USED))

    assert (outcome.matched, outcome.corrected, outcome.still_unknown) == (1, 1, 0)
    assert outcome.change_nanodollars == 400 - UPPER_BOUND
    assert total(engine) == 400
    assert (month(engine)["settled_nanodollars"], month(engine)["settled_tokens"]) == (400, 150)
    before = rows.everything(engine)
    assert run(engine, BilledCall(unknown, 400, USED)).corrected == 0
    assert rows.everything(engine) == before


def test_an_unknown_call_that_did_cost_its_bound_is_known_from_then_on(engine: Engine) -> None:
    unknown = call(engine, None)
    assert run(engine, BilledCall(unknown, UPPER_BOUND)).still_unknown == 0
    assert run(engine, complete=around_now()).not_billed == 1  # a later export that lacks it has the last word
    assert total(engine) == 0


def test_a_line_without_tokens_leaves_them_at_their_bound(engine: Engine) -> None:
    run(engine, BilledCall(call(engine, None), 400))
    assert (month(engine)["settled_nanodollars"], month(engine)["settled_tokens"]) == (400, 1000)


def test_tokens_that_are_told_later_than_the_cost_take_the_place_of_the_bound(engine: Engine) -> None:
    unknown = call(engine, None)
    run(engine, BilledCall(unknown, 400))
    assert bound_tokens(engine) == 1000

    assert run(engine, BilledCall(unknown, 400, USED)).corrected == 1

    assert (month(engine)["settled_nanodollars"], month(engine)["settled_tokens"]) == (400, 150)
    assert bound_tokens(engine) == 0
    assert_balanced(engine)
    assert run(engine, BilledCall(unknown, 400, USED)).corrected == 0
    assert run(engine, BilledCall(unknown, 300)).corrected == 1
    assert (month(engine)["settled_nanodollars"], month(engine)["settled_tokens"]) == (300, 150)
    assert_balanced(engine)


def test_a_call_of_no_tokens_has_no_bound_either_once_that_is_told(engine: Engine) -> None:
    unknown = call(engine, None)
    run(engine, BilledCall(unknown, 400))
    assert run(engine, BilledCall(unknown, 400, Usage())).corrected == 1
    assert (month(engine)["settled_tokens"], bound_tokens(engine)) == (0, 0)
    assert_balanced(engine)


def test_an_answer_that_came_late_is_not_taken_for_one_that_was_not_billed(engine: Engine) -> None:
    late, never = call(engine, None), call(engine, None)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(late, CallOutcome.ANSWERED, 300, USED)])
    outcome = run(engine, complete=around_now())
    assert (outcome.not_billed, outcome.answered_not_billed, outcome.still_unknown) == (1, 1, 0)
    assert total(engine) == 300
    corrections = rows.everything(engine)["ledger_corrections"]
    assert {row["call_id"]: row["source"] for row in corrections} == {late: "late_answer", never: "export"}
    assert run(engine, BilledCall(late, 280, USED), complete=around_now()).corrected == 1  # what is billed counts
    assert total(engine) == 280


def test_an_answer_that_came_late_stays_after_it_was_billed_too(engine: Engine) -> None:
    late = call(engine, None)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(late, CallOutcome.ANSWERED, 300, USED)])
    assert run(engine, BilledCall(late, 280)).corrected == 1
    assert run(engine, complete=around_now()).answered_not_billed == 1
    assert (total(engine), month(engine)["settled_tokens"], bound_tokens(engine)) == (280, 150, 0)


def test_tokens_told_after_a_late_answer_correct_it_and_take_no_bound_away_again(engine: Engine) -> None:
    late = call(engine, None)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(late, CallOutcome.ANSWERED, 300, USED)])
    assert run(engine, BilledCall(late, 300, Usage(input_tokens=7))).corrected == 1
    assert month(engine)["settled_tokens"] == 7
    assert_balanced(engine)


def test_an_answer_to_what_was_said_not_to_be_billed_counts_after_all(engine: Engine) -> None:
    unknown = call(engine, None)
    assert run(engine, complete=around_now()).not_billed == 1
    for _ in range(2):
        with engine.begin() as connection:
            ledger.settle(connection, [Settlement(unknown, CallOutcome.ANSWERED, 300, USED)])
        assert (total(engine), month(engine)["settled_tokens"], bound_tokens(engine)) == (300, 150, 0)
        assert_balanced(engine)
    again = run(engine, complete=around_now())
    assert (again.corrected, again.answered_not_billed) == (0, 1)


def test_an_answer_of_a_call_that_was_billed_with_nothing_counts_its_tokens_once(engine: Engine) -> None:
    unknown = call(engine, None)
    run(engine, BilledCall(unknown, 0, USED))
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(unknown, CallOutcome.ANSWERED, 0, USED)])
    assert (total(engine), month(engine)["settled_tokens"]) == (0, 150)
    assert_balanced(engine)


def test_an_answer_that_comes_after_the_bill_changes_nothing(engine: Engine) -> None:
    unknown = call(engine, None)
    run(engine, BilledCall(unknown, 400), complete=around_now())
    before = rows.everything(engine)["ledger_corrections"], month(engine)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(unknown, CallOutcome.ANSWERED, 300, USED)])
    assert (rows.everything(engine)["ledger_corrections"], month(engine)) == before
    assert_balanced(engine)


@pytest.mark.parametrize("has_usage", [False, True])
def test_a_call_of_which_the_cost_alone_was_told_is_known_but_bounded(engine: Engine, *, has_usage: bool) -> None:
    run(engine, BilledCall(call(engine, None), 400, USED if has_usage else None))
    with engine.begin() as connection:
        (line,) = usage.breakdown(connection, None, By.TIER, datetime(2020, 1, 1, tzinfo=UTC))
    assert (line.unknown_calls, line.bound_tokens, line.usage.total_tokens) == (
        (0, 0, 150) if has_usage else (0, 1000, 0)
    )


def test_what_is_still_unknown_is_told_of_all_accounts_and_by_a_trial_too(engine: Engine) -> None:
    told, _, _ = call(engine, None), call(engine, None), call(engine, None, account="another")
    with engine.connect() as connection, connection.begin() as transaction:
        trial = reconcile(connection, [BilledCall(told, 400)])
        transaction.rollback()
    assert trial.still_unknown == 2
    assert run(engine, BilledCall(told, 400)).still_unknown == 2
    assert run(engine, BilledCall(told, 300)).still_unknown == 2
    assert run(engine, complete=around_now()).still_unknown == 1


def test_it_reads_no_more_of_the_ledger_than_it_must(engine: Engine) -> None:
    unknown = call(engine, None)
    rows.execute(
        engine,
        """
        INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,
            model_asked, price_version, state, upper_bound_nanodollars, nanodollars)
        SELECT gen_random_uuid(), gen_random_uuid(), 1, 'acme', 'p', '1', 'small', 'd', 'simulator', 'm', '1',
            'settled', 1, 1 FROM generate_series(1, 20000)
        """,
    )
    rows.execute(engine, "ANALYZE ledger")
    with engine.begin() as connection:
        before = connection.execute(SCANNED).scalar_one()
        assert reconcile(connection, [BilledCall(unknown, 400)], around_now()).corrected == 1
        assert connection.execute(SCANNED).scalar_one() == before


def test_what_is_still_unknown_is_counted_before_a_row_is_locked(engine: Engine) -> None:
    unknown = call(engine, None)
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        seen.append(str(arguments[2]))

    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", note)
        reconcile(connection, [BilledCall(unknown, 400)])
        connection.rollback()
    locks = [number for number, statement in enumerate(seen) if "FOR UPDATE" in statement]
    assert locks == [len(seen) - 1]


@pytest.mark.parametrize(
    ("complete", "field", "words"),
    [
        (Complete("simulator", PAST, PAST), "since", "is not before until"),
        (Complete("simulator", PAST, PAST - timedelta(days=1)), "since", "is not before until"),
        (Complete("simulator", PAST.replace(tzinfo=None), PAST), "since", "has no UTC offset"),
        (Complete("simulator", PAST, PAST.replace(tzinfo=None)), "until", "has no UTC offset"),
        (Complete("simulator", PAST, datetime(2999, 1, 1, tzinfo=UTC)), "until", "yet to come"),
        (Complete("simulater", PAST, PAST + timedelta(days=1)), "account", "simulator"),
    ],
)
def test_a_claim_that_cannot_be_true_is_refused(engine: Engine, complete: Complete, field: str, words: str) -> None:
    call(engine, None)
    before = rows.everything(engine)
    with pytest.raises(InvalidRequestError, match=words) as refusal:
        run(engine, complete=complete)
    assert refusal.value.field == field
    assert rows.everything(engine) == before


def test_a_settled_call_that_differs_is_corrected_and_told_apart(engine: Engine) -> None:
    right, wrong = call(engine, 400), call(engine, 400)
    outcome = run(engine, BilledCall(right, 400, USED), BilledCall(wrong, 450, USED))
    assert (outcome.matched, outcome.corrected, outcome.settled_differing) == (2, 1, 1)
    assert (total(engine), month(engine)["settled_nanodollars"]) == (850, 850)


def test_a_call_that_is_billed_in_two_lines_costs_both(engine: Engine) -> None:
    unknown = call(engine, None)
    run(engine, BilledCall(unknown, 100, USED), BilledCall(unknown, 200, USED))
    assert (total(engine), month(engine)["settled_tokens"]) == (300, 300)


def test_a_call_under_way_is_left_alone(engine: Engine) -> None:
    call_id = call(engine, None, is_open=True)
    before = rows.everything(engine)
    outcome = run(engine, BilledCall(call_id, 400), complete=around_now())
    assert (outcome.under_way, outcome.matched, outcome.corrected) == (1, 0, 0)
    assert rows.everything(engine) == before


def test_unknown_calls_that_a_complete_export_lacks_were_not_billed(engine: Engine) -> None:
    billed, lacking, settled = call(engine, None), call(engine, None), call(engine, 400)
    outcome = run(engine, BilledCall(billed, 300), complete=around_now())
    assert (outcome.not_billed, outcome.still_unknown) == (1, 0)
    assert total(engine) == 300 + 0 + 400
    corrections = {row["call_id"]: row["nanodollars"] for row in rows.everything(engine)["ledger_corrections"]}
    assert corrections == {billed: 300 - UPPER_BOUND, lacking: -UPPER_BOUND}
    assert settled not in corrections


@pytest.mark.parametrize("complete", [None, around_now("another")])
def test_an_export_says_nothing_of_what_it_does_not_claim_to_hold(engine: Engine, complete: Complete | None) -> None:
    call(engine, None)
    call(engine, 400, account="another")
    assert run(engine, complete=complete).not_billed == 0
    assert total(engine) == UPPER_BOUND + 400


def test_an_export_says_nothing_of_other_times(engine: Engine) -> None:
    call(engine, None)
    now = datetime.now(UTC)
    run(engine, complete=Complete("simulator", now - timedelta(hours=2), now - timedelta(hours=1)))
    assert total(engine) == UPPER_BOUND


def test_lines_that_are_in_no_row_are_counted_and_change_nothing(engine: Engine) -> None:
    outcome = run(engine, BilledCall(None, 5), BilledCall(uuid4(), 7))
    assert (outcome.lines, outcome.foreign, outcome.foreign_nanodollars, outcome.matched) == (2, 2, 12, 0)


def test_a_late_answer_and_an_export_do_not_count_twice(engine: Engine) -> None:
    unknown = call(engine, None)
    with engine.begin() as connection:
        ledger.settle(connection, [Settlement(unknown, CallOutcome.ANSWERED, 400, USED)])
    assert run(engine, BilledCall(unknown, 400, USED)).corrected == 0
    assert (total(engine), month(engine)["settled_nanodollars"]) == (400, 400)


@pytest.mark.parametrize("where", ["two calls", "one call", "no call"])
def test_amounts_that_cannot_be_kept_are_refused_and_change_nothing(engine: Engine, where: str) -> None:
    ours = [call(engine, None), call(engine, None)]
    named = {"two calls": (ours[0], ours[1]), "one call": (ours[0], ours[0]), "no call": (None, None)}
    before = rows.everything(engine)
    with pytest.raises(InvalidRequestError) as refusal:
        run(engine, *(BilledCall(call_id, 2**63 - 1) for call_id in named[where]))
    assert str(refusal.value) == (
        "export: its lines come to more than the ledger can keep, $9,223,372,036.854775807; "
        "look for an amount that is written in another unit"
    )
    assert rows.everything(engine) == before


CALL = "0a7f8f0e-1f0a-4a53-9d0e-3f6a1d0c9b11"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"call_id,dollars,input_tokens,output_tokens\n{CALL},0.0000004,100,\n"),
        ("a.csv", f"\ufeffcall_id,nanodollars,input_tokens,colour\n{CALL},400,100,red\n"),
        ("a.jsonl", f'{{"call_id": "{CALL}", "dollars": 4e-7, "input_tokens": 100}}\n\n'),
        ("a.json", json.dumps([{"call_id": CALL, "nanodollars": 400, "input_tokens": 100}])),
        ("a.json", json.dumps({"lines": [{"client_request_id": CALL, "nanodollars": 400, "input_tokens": 100}]})),
    ],
)
def test_an_export_may_have_any_of_these_forms(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert list(read_export(tmp_path / name)) == [BilledCall(UUID(CALL), 400, Usage(input_tokens=100))]


def test_a_line_that_is_not_of_ours_has_no_call(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("call_id,nanodollars\n,1\nreq_17,2\n")
    assert list(read_export(tmp_path / "a.csv")) == [BilledCall(None, 1), BilledCall(None, 2)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "neither .csv, .json nor .jsonl"),
        ("a.csv", "call_id,cost\nx,1\n", "line 2: a line has either nanodollars or dollars"),
        ("a.csv", "call_id,nanodollars,dollars\nx,1,1\n", "line 2: a line has either nanodollars or dollars"),
        ("a.csv", "call_id,nanodollars\nx,1\nx,-1\n", "line 3, nanodollars"),
        ("a.csv", "call_id,nanodollars\nx,1.5\n", "line 2, nanodollars"),
        ("a.csv", "call_id,dollars\nx,NaN\n", "line 2, dollars"),
        ("a.csv", "call_id,nanodollars\nx,99999999999999999999\n", "line 2, nanodollars"),
        ("a.jsonl", "{}\n", "line 1: a line has either"),
        ("a.jsonl", "[]\n", "line 1"),
        ("a.jsonl", "{\n", "it is no JSON"),
        ("a.jsonl", f'{{"nanodollars": 1{"0" * 5000}}}\n', "it is no JSON that can be read"),
        ("a.jsonl", '{"dollars": 1e99999999999999999999}\n', "it is no JSON that can be read"),
        ("a.json", "[" * 100_000, "it is no JSON that can be read"),
        ("a.json", "17", "line 1"),
        ("a.csv", "call_id,nanodollars\n\x80,1\n".encode("latin-1"), "cannot be read"),
    ],
)
def test_a_bad_export_is_refused_by_its_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequestError, match=words):
        list(read_export(tmp_path / name))


def test_a_bad_line_at_the_end_leaves_the_ledger_as_it_was(engine: Engine, tmp_path: Path) -> None:
    unknown = call(engine, None)
    path = tmp_path / "a.csv"
    path.write_text(f"call_id,nanodollars\n{unknown},400\nx,-1\n")
    with pytest.raises(InvalidRequestError), engine.begin() as connection:
        reconcile(connection, read_export(path))
    assert total(engine) == UPPER_BOUND
