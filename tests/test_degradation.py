"""What stands in for an answer, and when nothing does: whole attempts over HTTP."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from penstock import degradation
from penstock.attempt import Report, run
from penstock.errors import Reason
from penstock.extractive import DEFAULT_MAX_WORDS, summarise
from penstock.house import House
from penstock.jobs.execution import Outcome
from penstock.schemas import OnUnavailable
from tests import admission_rooms
from tests.admission_rooms import LONG_DOCUMENT, START_MS, AdmissionRooms, change, without_jitter
from tests.rooms import DOCUMENT

provider, told, addresses, gated = admission_rooms.FIXTURES

MEDIUM = {"tier": "medium", "prompt_version": "1.2.0"}
"""A tier of one deployment, and the prompt that is extractive and names a smaller tier behind it."""
SMALL = {"tier": "small", "prompt_version": "1.2.0"}
"""The smallest tier: nobody else is asked."""
DEGRADE = {"on_unavailable": OnUnavailable.DEGRADE}
FAIL = {"on_unavailable": OnUnavailable.FAIL}


def assert_degraded(rooms: AdmissionRooms, job_id: UUID, text: str, reason: Reason, *, calls: int) -> None:
    job = rooms.job(job_id)
    assert (job.state, job.reason) == ("succeeded", reason)
    result = rooms.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
    assert (result.text, result.degraded) == (text, True)
    assert (result.model_asked, result.model_served) == ("", "")
    assert len(rooms.ledger(job_id)) == rooms.calls() == calls
    assert rooms.count("answers", job_id) == 0


def assert_dead(rooms: AdmissionRooms, job_id: UUID, report: Report, reason: Reason) -> None:
    assert (report.outcome, report.reason) == (Outcome.DEAD, reason)
    assert (rooms.job(job_id).state, rooms.job(job_id).reason) == ("dead", reason)
    assert rooms.count("results", job_id) == 0


class TestWhenEveryBreakerIsOpen:
    """The job chooses: it waits, or takes a summary without a model, or fails."""

    @pytest.fixture(autouse=True)
    def trip(self, gated: AdmissionRooms) -> None:
        gated.trip("first", "second", now_ms=START_MS)

    def test_one_that_waits_is_deferred_until_the_time_of_the_probe(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        job_id = gated.submit(**MEDIUM)
        before = gated.now()
        report = gated.attempt_at(START_MS + 1_000, job_id)
        detail = "the breaker of first is open"
        assert report == Report(job_id, Outcome.DEFERRED, Reason.UNAVAILABLE, detail, 4.0, model="")
        job = gated.job(job_id)
        assert (job.state, job.attempts, job.failures, job.reason) == ("queued", 0, 0, "unavailable")
        assert 4.0 <= (job.due_at - before).total_seconds() < 5.0
        assert (gated.ledger(job_id), gated.calls(), gated.count("results", job_id)) == ([], 0, 0)
        gated.release(job_id)
        assert gated.attempt_at(START_MS + 5_000, job_id).model == "sim-first"

    def test_one_that_degrades_has_sentences_of_its_document_at_once(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**MEDIUM, **DEGRADE, document=LONG_DOCUMENT)
        report = gated.attempt_at(START_MS, job_id)
        assert (report.outcome, report.model, report.cost_nanodollars) == (Outcome.SUCCEEDED, "", 0)
        expected = summarise(LONG_DOCUMENT, max_words=DEFAULT_MAX_WORDS)
        assert DEFAULT_MAX_WORDS / 2 < len(expected.split()) <= DEFAULT_MAX_WORDS
        assert_degraded(gated, job_id, expected, Reason.UNAVAILABLE, calls=0)

    @pytest.mark.parametrize("words", [20, 60, 300])
    def test_it_has_no_more_words_than_the_job_asked_for(self, gated: AdmissionRooms, words: int) -> None:
        job_id = gated.submit(**MEDIUM, **DEGRADE, document=LONG_DOCUMENT, variables={"max_words": str(words)})
        gated.attempt_at(START_MS, job_id)
        text = gated.row("SELECT text FROM results WHERE job_id = :id", id=job_id).text
        assert text == summarise(LONG_DOCUMENT, max_words=words)
        assert words / 2 < len(text.split()) <= words

    def test_a_short_document_is_its_own_summary(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**SMALL, **DEGRADE)
        gated.attempt_at(START_MS, job_id)
        assert_degraded(gated, job_id, DOCUMENT, Reason.UNAVAILABLE, calls=0)

    def test_one_that_fails_is_dead_at_once(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**MEDIUM, **FAIL)
        report = gated.attempt_at(START_MS, job_id)
        assert_dead(gated, job_id, report, Reason.UNAVAILABLE)
        assert report.detail == "the breaker of first is open"
        assert (gated.job(job_id).failures, gated.ledger(job_id), gated.calls()) == (0, [], 0)

    def test_one_whose_prompt_is_not_extractive_dies_in_place_of_degrading(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="medium", prompt_version="1.1.0", **DEGRADE)
        assert_dead(gated, job_id, gated.attempt_at(START_MS, job_id), Reason.UNAVAILABLE)

    def test_one_whose_prompt_has_an_output_schema_dies_in_place_of_degrading(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="medium", prompt="extract_metadata", prompt_version=None, **DEGRADE)
        assert_dead(gated, job_id, gated.attempt_at(START_MS, job_id), Reason.UNAVAILABLE)

    @pytest.mark.parametrize("choice", OnUnavailable)
    def test_nobody_takes_that_way_while_a_smaller_tier_answers(
        self, gated: AdmissionRooms, choice: OnUnavailable
    ) -> None:
        job_id = gated.submit(**MEDIUM, on_unavailable=choice)
        gated.gates.delete("{penstock:breaker:second}")
        assert gated.attempt_at(START_MS, job_id).model == "sim-second"
        assert not gated.row("SELECT degraded FROM results WHERE job_id = :id", id=job_id).degraded

    def test_the_loop_goes_on_while_sentences_are_chosen(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loops: list[bool] = []

        def choose(document: str, *, max_words: int) -> str:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                loops.append(False)
            else:
                loops.append(True)
            return summarise(document, max_words=max_words)

        monkeypatch.setattr(degradation, "summarise", choose)
        gated.attempt_at(START_MS, gated.submit(**SMALL, **DEGRADE))
        assert loops == [False]


class TestWhenItIsOnlyBusy:
    """A quota without room, or a Redis that is away, is waited for, whatever the job accepts."""

    @pytest.mark.parametrize("choice", OnUnavailable)
    def test_a_quota_without_room_is_waited_for(self, gated: AdmissionRooms, choice: OnUnavailable) -> None:
        gated.attempt_at(START_MS, gated.submit(tier="metered"))
        job_id = gated.submit(tier="metered", prompt_version="1.2.0", on_unavailable=choice)
        report = gated.attempt_at(START_MS, job_id)
        assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.LIMITED)

    @pytest.mark.parametrize("choice", OnUnavailable)
    def test_a_429_is_waited_for(self, gated: AdmissionRooms, choice: OnUnavailable) -> None:
        gated.fault("throttled")
        job_id = gated.submit(**SMALL, on_unavailable=choice)
        report = gated.attempt(job_id)
        assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.THROTTLED)


class TestWhenCallsFail:
    """What would be a death is a summary without a model, unless the reason is the job's own."""

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("server_error", Reason.SERVER_ERROR),
            ("overloaded", Reason.OVERLOADED),
            ("gateway_timeout", Reason.TIMEOUT),
            ("reset", Reason.CONNECTION),
            ("html", Reason.MALFORMED_ANSWER),
        ],
    )
    def test_the_last_failure_that_the_tier_allows_degrades(
        self, gated: AdmissionRooms, name: str, reason: Reason
    ) -> None:
        gated.fail(name)
        job_id = gated.submit(**SMALL, **DEGRADE)
        seen = []
        for _ in range(3):
            seen.append(gated.attempt(job_id).outcome)
            gated.release(job_id) if seen[-1] is Outcome.RETRIED else None
        assert seen == [Outcome.RETRIED, Outcome.RETRIED, Outcome.SUCCEEDED]
        assert_degraded(gated, job_id, DOCUMENT, reason, calls=3)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("unauthorized", Reason.AUTHENTICATION),
            ("forbidden", Reason.AUTHENTICATION),
            ("model_not_found", Reason.MODEL_NOT_FOUND),
            ("insufficient_quota", Reason.QUOTA_EXHAUSTED),
            ("payment_required", Reason.QUOTA_EXHAUSTED),
            ("context_length", Reason.CONTEXT_LENGTH),
        ],
    )
    def test_an_account_that_needs_mending_or_a_window_too_small_degrades_at_once(
        self, gated: AdmissionRooms, name: str, reason: Reason
    ) -> None:
        gated.fail(name)
        job_id = gated.submit(**SMALL, **DEGRADE)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert_degraded(gated, job_id, DOCUMENT, reason, calls=1)

    def test_it_is_the_last_resort_after_the_smaller_tier(self, gated: AdmissionRooms) -> None:
        gated.fail("unauthorized")
        job_id = gated.submit(**MEDIUM, **DEGRADE)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert_degraded(gated, job_id, DOCUMENT, Reason.AUTHENTICATION, calls=2)
        assert gated.received() == {"sim-first": 1, "sim-second": 1}

    def test_what_never_fits_any_quota_degrades_without_a_call(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**SMALL, **DEGRADE)

        async def with_a_tiny_quota(house: House) -> Report:
            change(house, "second", quota=house.catalogue.deployments("tiny")[0].quota)
            return await run(house, job_id)

        assert gated.with_house(with_a_tiny_quota).outcome is Outcome.SUCCEEDED
        assert_degraded(gated, job_id, DOCUMENT, Reason.TOO_LARGE, calls=0)

    @pytest.mark.parametrize("choice", [OnUnavailable.WAIT, OnUnavailable.FAIL])
    def test_a_job_that_accepts_no_summary_dies(self, gated: AdmissionRooms, choice: OnUnavailable) -> None:
        gated.fault("unauthorized")
        job_id = gated.submit(**SMALL, on_unavailable=choice)
        assert_dead(gated, job_id, gated.attempt(job_id), Reason.AUTHENTICATION)

    @pytest.mark.parametrize("choice", OnUnavailable)
    @pytest.mark.parametrize(
        ("name", "reason"), [("content_filter", Reason.CONTENT_POLICY), ("bad_request", Reason.BAD_REQUEST)]
    )
    def test_what_was_refused_for_what_it_says_is_dead_whatever_the_job_accepts(
        self, gated: AdmissionRooms, name: str, reason: Reason, choice: OnUnavailable
    ) -> None:
        gated.fault(name)
        job_id = gated.submit(**SMALL, on_unavailable=choice)
        assert_dead(gated, job_id, gated.attempt(job_id), reason)

    def test_an_answer_cut_at_the_prompts_own_bound_is_dead(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="curt", prompt_version="1.2.0", **DEGRADE)
        assert_dead(gated, job_id, gated.attempt(job_id), Reason.OUTPUT_TRUNCATED)

    @pytest.mark.parametrize(
        "prompt",
        [
            {"prompt_version": "1.1.0"},
            {"prompt": "extract_metadata", "prompt_version": None},
            {"prompt": "classify_document", "prompt_version": None},
        ],
        ids=["not extractive", "metadata", "classification"],
    )
    def test_a_job_of_another_prompt_dies(self, gated: AdmissionRooms, prompt: dict[str, str | None]) -> None:
        gated.fault("unauthorized")
        job_id = gated.submit(tier="small", **prompt, **DEGRADE)
        assert_dead(gated, job_id, gated.attempt(job_id), Reason.AUTHENTICATION)

    def test_a_deadline_that_would_pass_degrades_in_time(self, gated: AdmissionRooms) -> None:
        gated.fault("throttled", retry_after=60)
        job_id = gated.submit(**SMALL, **DEGRADE, deadline=datetime.now(UTC) + timedelta(seconds=30))
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert_degraded(gated, job_id, DOCUMENT, Reason.DEADLINE, calls=1)

    def test_a_degraded_result_is_no_answer_that_a_later_attempt_could_find(self, gated: AdmissionRooms) -> None:
        gated.fault("unauthorized")
        job_id = gated.submit(**SMALL, **DEGRADE)
        gated.attempt(job_id)
        gated.release(job_id)
        assert gated.with_house(lambda house: run(house, job_id)).model == "sim-second"
        result = gated.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
        assert (result.degraded, result.model_served, gated.calls()) == (False, "sim-second", 2)
