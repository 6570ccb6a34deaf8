"""What goes wrong at a provider of files: late, lost, twice, cut, refused, or paid and never seen."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from penstock.settings import Settings
from tests.money.books import assert_balanced
from tests.overnight.night import Night

LONG_S = 1e6


def finish_live(night: Night, jobs: int) -> None:
    """Answer what is left by live calls, and check that nothing is missing and nothing was bought twice."""
    night.answer_live()
    assert night.states() == {"succeeded": jobs}
    night.assert_paid_once()
    assert_balanced(night.rooms.engine)


def test_the_part_that_was_paid_of_an_expired_batch_is_used_and_the_rest_goes_live(night: Night) -> None:
    night.rooms.fault("batch_expires", share=0.5)
    night.begin(4)
    night.work()
    assert night.states() == {"succeeded": 2, "queued": 2}
    assert night.outcomes() == {"answered": 2, "not_sent": 2}
    night.assert_paid_once()
    assert night.rooms.row("SELECT max(attempts) AS it FROM jobs WHERE state = 'queued'").it == 0
    night.work()
    assert len(night.provider_batches()) == 1
    finish_live(night, 4)


def test_a_batch_that_misses_its_window_is_cancelled_and_the_rest_goes_live(night: Night) -> None:
    night.rooms.fault("batch_stalls", share=0.25)
    night.begin(4)
    night.work(10)
    assert night.states() == {"paused": 4}
    night.terms = replace(night.terms, cancel_s=LONG_S)
    night.execute("UPDATE provider_batches SET ends_by = now()")
    night.work()
    assert [batch["status"] for batch in night.provider_batches()] == ["cancelled"]
    assert night.outcomes() == {"answered": 1, "not_sent": 3}
    finish_live(night, 4)


def test_a_provider_that_cannot_be_reached_is_given_up_and_may_have_been_paid(night: Night) -> None:
    night.begin(2)
    night.pace(None)
    night.work(8)
    night.rooms.fault("server_error", model="batches.retrieve", count=1000)
    night.work(10)
    assert night.states() == {"paused": 2}
    night.execute("UPDATE provider_batches SET ends_by = now()")
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"unknown": 2})
    night.answer_live()
    assert night.states() == {"succeeded": 2}
    assert night.paid() > night.invoice()["total_nanodollars"] > 0
    assert_balanced(night.rooms.engine)


def test_a_batch_that_may_have_been_created_is_given_up_as_one_that_was_run(night: Night) -> None:
    night.rooms.fault("lost_answer", model="batches.create")
    night.rooms.fault("server_error", model="batches.list", count=1000)
    night.begin(2)
    night.work(10)
    assert night.states() == {"paused": 2}
    night.execute("UPDATE provider_batches SET ends_by = now()")
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"unknown": 2})


def test_a_batch_that_was_done_while_nobody_looked_is_read_however_late(night: Night) -> None:
    night.begin(2)
    night.work(4)
    assert night.parcels() == {"sent": 1}
    night.execute(
        "UPDATE provider_batches SET send_by = now() - interval '9 days', ends_by = now() - interval '8 days'"
    )
    night.work()
    assert night.states() == {"succeeded": 2}
    night.assert_paid_once()


def test_a_batch_that_cannot_be_cancelled_is_given_up(night: Night) -> None:
    night.pace(None)
    night.rooms.fault("server_error", model="batches.cancel", count=1000)
    night.begin(2)
    night.work(8)
    night.execute("UPDATE provider_batches SET ends_by = now()")
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"unknown": 2})


def test_a_batch_whose_tier_is_gone_goes_live_and_is_in_nobodys_way(night: Night) -> None:
    night.begin(1, name="gone")
    night.execute("UPDATE batches SET tier = 'gone'")
    night.begin(2)
    night.work()
    assert night.states() == {"paused": 1, "succeeded": 2}
    assert night.rooms.row("SELECT by_provider FROM batches WHERE name = 'gone'").by_provider is False


def test_a_completed_batch_without_its_file_is_looked_at_again(night: Night) -> None:
    night.terms = replace(night.terms, files_s=LONG_S)
    night.rooms.fault("batch_without_file", looks=4)
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 2}
    night.assert_paid_once()


def test_a_completed_batch_whose_file_never_comes_is_unknown_and_goes_live(night: Night) -> None:
    night.rooms.fault("batch_without_file")
    night.begin(2)
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"unknown": 2})
    night.answer_live()
    assert night.states() == {"succeeded": 2}
    assert night.paid() > night.invoice()["total_nanodollars"]
    assert_balanced(night.rooms.engine)


def test_a_file_of_results_that_cannot_be_read_is_read_again(night: Night) -> None:
    night.terms = replace(night.terms, files_s=LONG_S)
    night.rooms.fault("server_error", model="files.content", count=2)
    night.rooms.fault("cut", model="files.content")
    night.rooms.fault("html", model="files.content")
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 2}
    night.assert_paid_once()


@pytest.mark.parametrize(("status", "reason"), [(429, "throttled"), (500, "server_error"), (400, "bad_request")])
def test_a_line_that_failed_costs_nothing_and_goes_live(night: Night, status: int, reason: str) -> None:
    night.rooms.fault("line_fails", status=status)
    night.begin(3)
    night.work()
    assert night.states() == {"succeeded": 2, "queued": 1}
    assert night.outcomes() == {"answered": 2, "refused": 1}
    assert night.rooms.row("SELECT reason FROM jobs WHERE state = 'queued'").reason == reason
    finish_live(night, 3)


def test_when_all_lines_failed_there_is_no_file_to_wait_for(night: Night) -> None:
    night.terms = replace(night.terms, files_s=LONG_S)
    night.rooms.fault("line_fails", count=2)
    night.begin(2)
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"refused": 2})
    finish_live(night, 2)


def test_a_line_that_is_in_neither_file_may_have_been_paid(night: Night) -> None:
    night.rooms.fault("line_lost")
    night.begin(2)
    night.work()
    assert night.outcomes() == {"answered": 1, "unknown": 1}
    night.answer_live()
    assert night.states() == {"succeeded": 2}
    assert night.paid() > night.invoice()["total_nanodollars"]


def test_lines_in_another_order_and_twice_are_each_paid_once(night: Night) -> None:
    night.rooms.fault("batch_shuffles")
    night.rooms.fault("line_twice", count=2)
    night.begin(4)
    night.work()
    assert night.states() == {"succeeded": 4}
    assert (
        night.rooms.row(
            "SELECT count(*) AS it FROM results JOIN jobs ON jobs.id = job_id"
            " WHERE text LIKE '%It is item ' || batch_number || '.'"
        ).it
        == 4
    )
    night.assert_paid_once()


def test_an_answer_that_breaks_the_schema_is_paid_and_asked_anew_by_a_live_call(night: Night) -> None:
    night.rooms.fault("wrong_schema", mode="json", model="sim-small")
    night.begin(2, prompt="extract_metadata")
    night.work()
    assert night.states() == {"succeeded": 1, "retrying": 1}
    assert night.rooms.row("SELECT reason, failures FROM jobs WHERE state = 'retrying'") == ("output_invalid", 1)
    assert night.outcomes() == {"answered": 2}
    finish_live(night, 2)


def test_an_answer_without_a_choice_is_paid(night: Night) -> None:
    night.rooms.fault("empty_choices", model="sim-small")
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 1, "retrying": 1}
    assert night.outcomes() == {"answered": 2}
    finish_live(night, 2)


def no_prompts(tmp_path: Path) -> Path:
    """Make a folder of prompts that has none."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    return folder


def with_short_answers(night: Night, tmp_path: Path) -> Settings:
    """Give settings by which a model's answer is cut."""
    config = copytree(night.rooms.settings.config, tmp_path / "config")
    models = config / "models.toml"
    models.write_text(models.read_text().replace("max_output_tokens = 4096", "max_output_tokens = 8", 1))
    return night.rooms.settings.model_copy(update={"config": config})


def test_an_answer_that_was_cut_is_paid_and_never_passed_on(night: Night, tmp_path: Path) -> None:
    night.rooms.settings = with_short_answers(night, tmp_path)
    night.begin(1)
    night.work()
    assert night.rooms.row("SELECT state, reason FROM jobs") == ("dead", "output_truncated")
    assert night.rooms.row("SELECT reason, nanodollars > 0 AS paid FROM ledger") == ("output_truncated", True)
    assert night.rooms.row("SELECT count(*) AS it FROM results").it == 0
    night.assert_paid_once()


def test_an_answer_that_was_cut_is_not_passed_on_where_its_prompt_is_away_meanwhile(
    night: Night, tmp_path: Path
) -> None:
    settings = with_short_answers(night, tmp_path)
    night.rooms.settings = settings
    night.begin(1)
    night.work(4)
    night.rooms.settings = settings.model_copy(update={"prompts": no_prompts(tmp_path)})
    night.work()
    assert night.rooms.row("SELECT state, reason FROM jobs") == ("dead", "output_truncated")
    assert night.rooms.row("SELECT count(*) AS it FROM answers").it == 0
    night.assert_paid_once()


def test_an_answer_that_turns_out_to_be_of_no_use_is_bought_anew_and_once(night: Night, tmp_path: Path) -> None:
    settings = night.rooms.settings
    night.rooms.fault("wrong_schema", mode="json", model="sim-small")
    batch_id = night.begin(3, prompt="extract_metadata", document="The same for all of them.")
    night.work(4)
    night.rooms.settings = settings.model_copy(update={"prompts": no_prompts(tmp_path)})
    night.work()
    night.rooms.settings = settings
    assert night.rooms.row("SELECT count(*) AS it FROM answers").it == 1
    night.follow(batch_id)
    finish_live(night, 3)
    assert night.outcomes() == {"answered": 2}
    night.execute("UPDATE jobs SET state = 'retrying', ended_at = NULL")
    night.answer_live()
    assert night.outcomes() == {"answered": 2}


@pytest.mark.parametrize("fault", ["throttled", "server_error", "unavailable", "lost_answer"])
def test_an_upload_that_fails_is_made_again(night: Night, fault: str) -> None:
    night.rooms.fault(fault, model="files.create")
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 2}
    night.assert_paid_once()


@pytest.mark.parametrize("operation", ["files.create", "batches.create"])
@pytest.mark.parametrize("fault", ["unauthorized", "model_not_found", "insufficient_quota"])
def test_a_provider_that_takes_no_files_gets_live_calls(night: Night, operation: str, fault: str) -> None:
    night.rooms.fault(fault, model=operation)
    night.terms = replace(night.terms, most_requests=2)
    batch_id = night.begin(4)
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2, "paused": 2}, {"not_sent": 2})
    night.follow(batch_id)
    night.work()
    assert night.states() == {"queued": 4}
    assert night.provider_batches() == []
    finish_live(night, 4)


def test_a_full_queue_at_the_provider_is_waited_for(night: Night) -> None:
    night.rooms.fault("enqueued_tokens", model="batches.create", count=3)
    night.rooms.fault("batch_token_limit")
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 2}
    assert [batch["status"] for batch in night.provider_batches()] == ["completed", "failed"]
    night.assert_paid_once()


def test_a_queue_that_stays_full_until_the_window_is_missed_is_left_to_live_calls(night: Night) -> None:
    night.rooms.fault("enqueued_tokens", model="batches.create", count=1000)
    night.begin(2)
    night.work(10)
    assert night.states() == {"paused": 2}
    night.execute("UPDATE provider_batches SET send_by = now()")
    night.work()
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"not_sent": 2})
    finish_live(night, 2)


def test_a_batch_that_failed_as_a_whole_costs_nothing_and_goes_live(night: Night) -> None:
    night.rooms.fault("batch_token_limit")
    night.begin(2)
    night.work(4)
    night.execute("UPDATE provider_batches SET send_by = now()")
    night.work()
    assert [batch["status"] for batch in night.provider_batches()] == ["failed"]
    assert (night.states(), night.outcomes()) == ({"queued": 2}, {"not_sent": 2})
    finish_live(night, 2)


def test_a_batch_whose_creation_was_not_heard_of_is_found_and_not_made_again(night: Night) -> None:
    night.rooms.fault("lost_answer", model="batches.create")
    night.rooms.fault("server_error", model="batches.list")
    night.begin(2)
    night.work()
    assert night.states() == {"succeeded": 2}
    assert len(night.provider_batches()) == 1
    night.assert_paid_once()


def test_a_batch_that_was_not_created_is_asked_for_again_when_it_cannot_be_late(night: Night) -> None:
    night.terms = replace(night.terms, unheard_s=LONG_S)
    night.rooms.fault("server_error", model="batches.create")
    night.begin(2)
    night.work(12)
    assert (night.states(), night.provider_batches()) == ({"paused": 2}, [])
    night.terms = replace(night.terms, unheard_s=0)
    night.work()
    assert night.states() == {"succeeded": 2}
    assert len(night.provider_batches()) == 1
    night.assert_paid_once()


def test_a_file_that_cannot_be_deleted_keeps_nothing_from_ending(night: Night) -> None:
    night.rooms.fault("server_error", model="files.delete")
    night.begin(1)
    night.work()
    assert night.parcels() == {"ended": 1}
    assert len(night.provider_files()) == 2
