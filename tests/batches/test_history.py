"""What a forecast knows of earlier calls."""

from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from penstock.batches import rows as batches
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.schemas import Usage
from tests.jobs import rows


def test_what_has_no_output_or_came_from_a_file_says_nothing_of_live_answers(engine: Engine) -> None:
    calls = [replace(rows.intent(rows.running_job(engine)), call_id=uuid4()) for _ in range(4)]
    outputs = (100, 200, 0, 300)
    with engine.begin() as connection:
        ledger.intend(connection, calls)
    hours = "UPDATE ledger SET intended_at = intended_at - interval '8 hours' WHERE call_id = :id"
    rows.execute(engine, hours, id=calls[3].call_id)
    rows.execute(engine, hours.replace("8 hours", "3 seconds"), id=calls[0].call_id)
    with engine.begin() as connection:
        ledger.settle(
            connection,
            [
                Settlement(call.call_id, CallOutcome.ANSWERED, 1, Usage(input_tokens=9, output_tokens=output))
                for call, output in zip(calls, outputs, strict=True)
            ],
        )
        found = batches.history(connection, "acme", calls[0].prompt_id, "small")
    assert (found.calls, found.mean_tokens) == (3, 200)
    assert found.latency_s == pytest.approx(1.5, abs=0.5)
