"""An instruction that means the same gets the answer that was paid for, and no other does. Over HTTP."""

import asyncio
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from penstock.attempt import Report, run
from penstock.gates.breaker import BreakerSettings, read_status
from penstock.gates.scripts import SyncScripts
from penstock.house import House
from penstock.jobs import retention
from penstock.jobs.execution import Outcome
from penstock.money.budgets import Budget, Period, Unit, set_budget
from penstock.prompts import PromptLibrary
from penstock.similar import questions
from penstock.similar.questions import Count
from tests.money.books import assert_balanced
from tests.rooms import DOCUMENT, Rooms

INSTRUCTION = (
    "List the deadlines of the meeting in Denver that the agency will hold, and who must send comments to whom."
)
SAME = (
    "Please list the deadlines of the meeting in Denver that the agency will hold, and who must send comments to whom!"
)
OTHER = "List the deadlines of the meeting in Dallas that the agency will hold, and who must send comments to whom."
UNLIKE = "How many people are invited?"
MODEL = """
[models.sim-embedding]
model = "openai/sim-embedding"
account = "simulator"
api_base_env = "PENSTOCK_SIMULATOR_URL"
context_window = 8192
max_output_tokens = 1
"""
PRICE = """
[[prices.sim-embedding]]
starts = 2026-01-01
input = "0.02"
cached_input = "0.02"
output = "0"
"""


@pytest.fixture
def tier(rooms: Rooms, tmp_path: Path) -> Rooms:
    """Rooms in which acme has the tier, globex has it in shadow mode, and initech has nothing."""
    config = tmp_path / "config"
    shutil.copytree(rooms.settings.config, config)
    models = config / "models.toml"
    models.write_text('embeddings = "sim-embedding"\n' + models.read_text() + MODEL)
    with (config / "prices.toml").open("a") as prices:
        prices.write(PRICE)
    (config / "tenants.toml").write_text('[tenants.acme]\nsimilar = "on"\n[tenants.globex]\nsimilar = "shadow"\n')
    return Rooms(rooms.settings.model_copy(update={"config": config}), rooms.engine, rooms.gates, rooms.simulator)


def ask(rooms: Rooms, instruction: str, *, language: str = "English", **fields: Any) -> UUID:
    """Have an instruction followed, and give the job."""
    variables = {"instruction": instruction, "language": language}
    job_id = rooms.submit(**{"prompt": "follow_instruction", "variables": variables, "fresh": False} | fields)
    assert rooms.attempt(job_id).outcome is Outcome.SUCCEEDED
    return job_id


def result(rooms: Rooms, job_id: UUID) -> tuple[str, bool]:
    """Give the text of a result, and whether another job had paid for it."""
    row = rooms.row("SELECT text, cached FROM results WHERE job_id = :id", id=job_id)
    return row.text, row.cached


def received(rooms: Rooms) -> dict[str, int]:
    """Count the requests that reached the provider, by model."""
    models = httpx.get(f"{rooms.simulator}/stats").json()["models"]
    return {name: model["received"] for name, model in models.items()}


def kept(rooms: Rooms) -> int:
    return int(rooms.row("SELECT count(*) AS found FROM similar_questions").found)


def counts(rooms: Rooms) -> list[Count]:
    with rooms.engine.connect() as connection:
        return list(questions.report(connection, None).counts)


def paid(rooms: Rooms) -> int:
    """Give what the ledger says, which must be the invoice."""
    assert_balanced(rooms.engine)
    total = int(rooms.row("SELECT coalesce(sum(nanodollars), 0)::bigint AS total FROM ledger").total)
    assert total == rooms.invoice()
    return total


def test_an_instruction_that_means_the_same_gets_the_answer_that_was_paid_for(tier: Rooms) -> None:
    first = ask(tier, INSTRUCTION)
    second = ask(tier, SAME)
    assert received(tier) == {"sim-small": 1, "sim-embedding": 2}
    assert result(tier, first) == (result(tier, second)[0], False)
    assert result(tier, second)[1] is True
    assert [row.deployment for row in tier.ledger(first)] == ["sim-embedding", "sim-small"]
    (embedding,) = tier.ledger(second)
    assert (embedding.deployment, embedding.state, embedding.output_tokens) == ("sim-embedding", "settled", 0)
    assert embedding.nanodollars == 20 * embedding.input_tokens > 0
    assert paid(tier) > 0
    assert counts(tier) == [Count("acme", given=1, would_be=0, judged=0, different=0)]


@pytest.mark.parametrize(
    "changed",
    [
        {"instruction": OTHER},
        {"instruction": UNLIKE},
        {"document": DOCUMENT + " Bring a copy."},
        {"language": "German"},
        {"tenant": "globex"},
        {"tier": "medium"},
        {"fresh": True},
    ],
)
def test_what_differs_in_anything_else_is_answered_by_a_model(tier: Rooms, changed: dict[str, Any]) -> None:
    ask(tier, INSTRUCTION)
    answered = sum(count for model, count in received(tier).items() if model != "sim-embedding")
    job_id = ask(tier, **{"instruction": SAME} | changed)
    assert sum(count for model, count in received(tier).items() if model != "sim-embedding") == answered + 1
    assert result(tier, job_id)[1] is False
    assert counts(tier) == []
    paid(tier)


def test_a_near_instruction_is_told_apart_by_a_guard(tier: Rooms) -> None:
    first = ask(tier, INSTRUCTION)
    with capture_logs() as logs:
        ask(tier, OTHER)
    (refused,) = [line for line in logs if line["event"] == "similar.refused"]
    assert (refused["source"], refused["guard"]) == (str(first), "names")
    assert 0 < refused["distance"] < questions.MAX_DISTANCE
    assert not any("Dallas" in str(line) or "Denver" in str(line) for line in logs)


def test_who_did_not_ask_for_it_has_no_embedding_made_and_nothing_kept(tier: Rooms) -> None:
    for instruction in (INSTRUCTION, SAME):
        assert result(tier, ask(tier, instruction, tenant="initech"))[1] is False
    assert received(tier) == {"sim-small": 2}
    assert kept(tier) == 0


def test_a_prompt_without_an_instruction_has_no_tier(tier: Rooms) -> None:
    job_id = tier.submit(fresh=False)
    assert tier.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert received(tier) == {"sim-small": 1}


def test_in_shadow_mode_a_model_answers_and_the_answers_are_compared(tier: Rooms) -> None:
    ask(tier, INSTRUCTION, tenant="globex")
    with capture_logs() as logs:
        assert result(tier, ask(tier, SAME, tenant="globex"))[1] is False
    (found,) = [line for line in logs if line["event"] == "similar.found"]
    assert found["given"] is False
    assert received(tier)["sim-small"] == 2
    assert counts(tier) == [Count("globex", given=0, would_be=1, judged=1, different=0)]
    rows_with_text = tier.row("SELECT count(*) AS found FROM similar_answers AS row WHERE row::text ILIKE '%denver%'")
    assert rows_with_text.found == 0


def test_answers_that_are_unlike_are_counted_as_different(tier: Rooms) -> None:
    first = ask(tier, INSTRUCTION, tenant="globex")
    with tier.engine.begin() as connection:
        connection.execute(
            text("UPDATE answers SET text = 'Something else entirely.' WHERE job_id = :id AND model LIKE '%small'"),
            {"id": first},
        )
    ask(tier, SAME, tenant="globex")
    assert counts(tier) == [Count("globex", given=0, would_be=1, judged=1, different=1)]


def test_what_is_purged_is_not_found_again(tier: Rooms) -> None:
    first = ask(tier, INSTRUCTION)
    ask(tier, SAME)
    assert kept(tier) == 1
    ended_at = tier.job(first).ended_at
    with tier.engine.begin() as connection:
        assert retention.purge(connection, "acme", ended_at, most=10).jobs == 1
    assert kept(tier) == 0
    assert result(tier, ask(tier, SAME + " Please."))[1] is False


@pytest.mark.parametrize("fault", ["server_error", "empty_choices", "lost_answer", "wrong_schema", "unauthorized"])
def test_without_an_embedding_a_model_answers_as_if_there_were_no_tier(tier: Rooms, fault: str) -> None:
    tier.fault(fault, model="sim-embedding")
    ask(tier, INSTRUCTION)
    assert received(tier) == {"sim-embedding": 1, "sim-small": 1}
    assert kept(tier) == 0
    total = tier.row("SELECT sum(nanodollars)::bigint AS total FROM ledger").total
    assert total >= tier.invoice()
    assert tier.row("SELECT count(*) AS found FROM ledger WHERE state = 'intent'").found == 0


def test_an_embedding_that_hangs_is_given_up_and_its_breaker_hears_of_it(tier: Rooms) -> None:
    tier.fault("hang", model="sim-embedding", hold_s=30)
    ask(tier, INSTRUCTION)
    embedding = tier.row("SELECT outcome, reason FROM ledger WHERE deployment = 'sim-embedding'")
    assert (embedding.outcome, embedding.reason) == ("unknown", "timeout")
    assert read_status(SyncScripts(tier.gates), "sim-embedding", BreakerSettings()).failures_in_a_row == 1


def test_a_retry_does_not_pay_for_the_embedding_again(tier: Rooms) -> None:
    tier.fault("server_error", model="sim-small")
    job_id = tier.submit(prompt="follow_instruction", fresh=False, variables={"instruction": INSTRUCTION})
    assert tier.attempt(job_id).outcome is Outcome.RETRIED
    tier.release(job_id)
    assert tier.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert received(tier) == {"sim-embedding": 1, "sim-small": 2}
    assert kept(tier) == 1


def test_jobs_that_ask_at_the_same_moment_pay_for_one_embedding(tier: Rooms) -> None:
    fields = {"prompt": "follow_instruction", "variables": {"instruction": INSTRUCTION}, "fresh": False}
    jobs = [tier.submit(**fields, document=f"{DOCUMENT} Annex {number}.") for number in range(5)]

    async def all_of_them(house: House) -> list[Report]:
        return await asyncio.gather(*(run(house, job_id) for job_id in jobs))

    assert {report.outcome for report in tier.with_house(all_of_them)} == {Outcome.SUCCEEDED}
    assert received(tier) == {"sim-embedding": 1, "sim-small": 5}
    assert kept(tier) >= 1
    paid(tier)


def test_a_budget_that_is_used_up_pays_for_no_embedding(tier: Rooms) -> None:
    with tier.engine.begin() as connection:
        set_budget(connection, Budget("acme", Period.MONTH, Unit.NANODOLLARS, hard_limit=0))
    job_id = tier.submit(prompt="follow_instruction", fresh=False, variables={"instruction": INSTRUCTION})
    assert tier.attempt(job_id).outcome is Outcome.DEAD
    assert tier.calls() == 0
    assert tier.ledger(job_id) == []


def test_without_the_extension_the_tier_says_that_it_is_off_and_buys_nothing(tier: Rooms) -> None:
    with tier.engine.begin() as connection:
        connection.execute(text("DROP EXTENSION vector"))
    try:
        with capture_logs() as logs:
            ask(tier, INSTRUCTION)
    finally:
        with tier.engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION vector"))
    assert [line["reason"] for line in logs if line["event"] == "similar.off"] == [
        "Postgres has no extension vector: CREATE EXTENSION vector"
    ]
    assert received(tier) == {"sim-small": 1}
    ask(tier, INSTRUCTION + "!")
    assert kept(tier) == 1


def test_questions_of_a_prompt_or_a_model_that_is_gone_are_forgotten(tier: Rooms) -> None:
    ask(tier, INSTRUCTION)
    library = [prompt.reference for prompt in PromptLibrary.load(tier.settings.prompts)]
    others = [reference for reference in library if reference.id != "follow_instruction"]
    with tier.engine.begin() as connection:
        assert questions.forget_stale(connection, library, "openai/sim-embedding") == 0
    for prompts, model in ((others, "openai/sim-embedding"), (library, "openai/other"), (library, None)):
        with tier.engine.connect() as connection:
            assert questions.forget_stale(connection, prompts, model) == 1
            connection.rollback()
    assert kept(tier) == 1
