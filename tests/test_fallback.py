"""Who is asked when the preferred deployment does not answer, or a whole tier: over HTTP, at two accounts."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Protocol
from uuid import UUID

import pytest

from penstock.ai import CallContext, CompletionRequest, complete
from penstock.attempt import Report, run
from penstock.errors import Reason
from penstock.gates.breaker import BreakerState
from penstock.house import House, build_house
from penstock.jobs.execution import Claim, Outcome
from penstock.providers.litellm import LiteLLMProvider
from penstock.settings import Settings
from tests import admission_rooms
from tests.admission_rooms import LONG_DOCUMENT, START_MS, AdmissionRooms, at, without_jitter
from tests.rooms import WORKER

provider, told, addresses, gated = admission_rooms.FIXTURES

PAIR = {"tier": "pair"}
MEDIUM = {"tier": "medium", "prompt_version": "1.2.0"}
"""A job that a smaller tier may answer: `medium` is the first account, `small` the second."""


def calls_of(rooms: AdmissionRooms, job_id: UUID) -> list[tuple[str, str, str, str | None]]:
    """Give deployment, account, state and reason of each call, the oldest first."""
    return [(call.deployment, call.account, call.state, call.reason) for call in rooms.ledger(job_id)]


def spent(rooms: AdmissionRooms, job_id: UUID) -> int:
    return sum(call.nanodollars for call in rooms.ledger(job_id))


ANSWERED = ("second", "second-account", "settled", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("server_error", Reason.SERVER_ERROR),
        ("unavailable", Reason.OVERLOADED),
        ("throttled", Reason.THROTTLED),
        ("empty_choices", Reason.MALFORMED_ANSWER),
        ("context_length", Reason.CONTEXT_LENGTH),
        ("unauthorized", Reason.AUTHENTICATION),
        ("model_not_found", Reason.MODEL_NOT_FOUND),
        ("insufficient_quota", Reason.QUOTA_EXHAUSTED),
    ],
)
def test_the_second_answers_in_the_same_attempt_what_the_preferred_could_not(
    gated: AdmissionRooms, name: str, reason: Reason
) -> None:
    gated.fault(name)
    job_id = gated.submit(**PAIR)
    report = gated.attempt(job_id)
    assert (report.outcome, report.model) == (Outcome.SUCCEEDED, "sim-second")
    job = gated.job(job_id)
    assert (job.state, job.attempts, job.failures, job.reason) == ("succeeded", 1, 0, None)
    assert gated.received() == {"sim-first": 1, "sim-second": 1}
    assert calls_of(gated, job_id) == [("first", "first-account", "settled", reason), ANSWERED]
    assert spent(gated, job_id) == gated.invoice() > 0
    result = gated.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
    assert (result.model_asked, result.model_served, result.degraded) == ("second", "sim-second", False)
    assert gated.places("first") == gated.places("second") == 0


def test_the_second_answers_where_nobody_listens_at_the_first(gated: AdmissionRooms) -> None:
    job_id = gated.submit(tier="closed_pair")
    assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert gated.received() == {"sim-second": 1}
    assert calls_of(gated, job_id) == [("closed", "first-account", "settled", "connection"), ANSWERED]
    assert spent(gated, job_id) == gated.invoice()


@pytest.mark.parametrize(
    ("name", "reason"), [("bad_request", Reason.BAD_REQUEST), ("content_filter", Reason.CONTENT_POLICY)]
)
def test_what_no_other_deployment_would_do_better_is_not_asked_elsewhere(
    gated: AdmissionRooms, name: str, reason: Reason
) -> None:
    gated.fault(name)
    job_id = gated.submit(**PAIR)
    report = gated.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.DEAD, reason)
    assert gated.received() == {"sim-first": 1}


def test_an_answer_that_breaks_the_schema_is_not_bought_elsewhere(gated: AdmissionRooms) -> None:
    gated.fault("wrong_schema", mode="json")
    job_id = gated.submit(**PAIR, prompt="extract_metadata", prompt_version=None)
    assert gated.attempt(job_id).reason is Reason.OUTPUT_INVALID
    assert gated.received() == {"sim-first": 1}


def test_an_open_breaker_sends_every_job_to_the_second_without_a_request_to_the_first(gated: AdmissionRooms) -> None:
    gated.trip("first")
    jobs = [gated.submit(**PAIR) for _ in range(3)]
    assert [gated.attempt(job_id).outcome for job_id in jobs] == [Outcome.SUCCEEDED] * 3
    assert gated.received() == {"sim-second": 3}
    assert [calls_of(gated, job_id) for job_id in jobs] == [[ANSWERED]] * 3


def test_the_preferred_is_asked_again_when_its_cool_down_is_over(gated: AdmissionRooms) -> None:
    gated.trip("first", now_ms=START_MS)
    assert gated.attempt_at(START_MS + 4_999, gated.submit(**PAIR)).model == "sim-second"
    assert gated.attempt_at(START_MS + 5_000, gated.submit(**PAIR)).model == "sim-first"
    assert gated.breaker("first").state is BreakerState.CLOSED


def test_a_quota_without_room_sends_a_job_to_the_second_at_once(gated: AdmissionRooms) -> None:
    first, second = gated.submit(tier="metered_pair"), gated.submit(tier="metered_pair")
    assert gated.attempt_at(START_MS, first).model == "sim-first"
    assert gated.attempt_at(START_MS, second).model == "sim-second"
    assert gated.received() == {"sim-first": 1, "sim-second": 1}
    assert calls_of(gated, second) == [ANSWERED]


def test_a_window_too_small_for_prompt_and_answer_is_passed_over(gated: AdmissionRooms) -> None:
    short, long = gated.submit(tier="narrow_pair"), gated.submit(tier="narrow_pair", document=LONG_DOCUMENT)
    assert gated.attempt(short).model == "sim-first"
    assert gated.attempt(long).model == "sim-second"
    assert gated.received() == {"sim-first": 1, "sim-second": 1}
    assert calls_of(gated, long) == [ANSWERED]


def test_a_request_that_never_fits_the_quota_of_the_first_is_the_seconds(gated: AdmissionRooms) -> None:
    job_id = gated.submit(tier="tiny_pair")
    assert gated.attempt(job_id).model == "sim-second"
    assert calls_of(gated, job_id) == [ANSWERED]


def test_when_both_fail_one_failure_is_spent_and_the_last_reason_stands(gated: AdmissionRooms) -> None:
    gated.fault("unavailable", model="sim-first")
    gated.fault("server_error", model="sim-second")
    job_id = gated.submit(**PAIR)
    report = gated.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.SERVER_ERROR)
    assert (gated.job(job_id).failures, gated.job(job_id).attempts) == (1, 1)
    assert gated.received() == {"sim-first": 1, "sim-second": 1}
    assert [call[3] for call in calls_of(gated, job_id)] == ["overloaded", "server_error"]
    assert [gated.breaker(name).failures_in_a_row for name in ("first", "second")] == [1, 1]
    gated.release(job_id)
    assert gated.attempt(job_id).model == "sim-first"


def test_when_both_are_throttled_nothing_is_spent(gated: AdmissionRooms) -> None:
    gated.fault("throttled", model="sim-first", retry_after=9)
    gated.fault("throttled", model="sim-second", retry_after=4)
    job_id = gated.submit(**PAIR)
    report = gated.attempt(job_id)
    assert (report.outcome, report.reason, gated.job(job_id).failures) == (Outcome.RETRIED, Reason.THROTTLED, 0)
    assert 4.0 <= report.delay_s <= 4.4


@pytest.mark.parametrize("account", ["unauthorized", "insufficient_quota", "model_not_found"])
def test_an_account_that_needs_mending_does_not_bury_a_job_whose_other_deployment_is_only_ill(
    gated: AdmissionRooms, account: str
) -> None:
    gated.fault("unavailable", model="sim-first")
    gated.fault(account, model="sim-second")
    job_id = gated.submit(**PAIR)
    assert gated.attempt(job_id).outcome is Outcome.RETRIED
    gated.release(job_id)
    assert gated.attempt(job_id).model == "sim-first"


def test_an_account_that_needs_mending_does_not_bury_a_job_whose_other_deployment_is_only_busy(
    gated: AdmissionRooms,
) -> None:
    gated.attempt_at(START_MS, gated.submit(tier="metered"))
    gated.fault("insufficient_quota", model="sim-second")
    job_id = gated.submit(tier="metered_last")
    report = gated.attempt_at(START_MS, job_id)
    assert report.outcome is not Outcome.DEAD
    gated.release(job_id)
    gated.fault("insufficient_quota", model="sim-second")
    assert gated.attempt_at(START_MS + 10_000, job_id).model == "sim-first"


def test_an_account_that_needs_mending_does_not_bury_a_job_whose_other_deployment_has_an_open_breaker(
    gated: AdmissionRooms,
) -> None:
    gated.trip("second", now_ms=START_MS)
    gated.fault("unauthorized", model="sim-first")
    job_id = gated.submit(**PAIR)
    assert gated.attempt_at(START_MS, job_id).outcome is not Outcome.DEAD
    gated.release(job_id)
    gated.fault("unauthorized", model="sim-first")
    assert gated.attempt_at(START_MS + 5_000, job_id).model == "sim-second"


@pytest.mark.parametrize(("down", "answers"), [("sim-first", "second"), ("sim-second", "first")])
def test_the_answer_of_either_is_used_by_the_next_attempt_and_not_bought_again(
    gated: AdmissionRooms, down: str, answers: str
) -> None:
    gated.fail("server_error", model=down)
    job_id = gated.submit(**PAIR)

    async def die_after_settlement(house: House) -> None:
        job = await house.journal.claim.add(Claim(job_id, house.worker))
        assert job is not None
        context = CallContext(job_id=job.id, fence=job.fence, tenant=job.tenant, tier=job.tier)
        asked = CompletionRequest(prompt=job.prompt, variables=job.variables, document=job.document, context=context)
        assert (await complete(house, asked)).model_asked == answers

    gated.with_house(die_after_settlement)
    requests, owed = gated.calls(), gated.invoice()
    gated.lose_worker()
    gated.release(job_id)
    assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
    assert (gated.calls(), gated.invoice(), spent(gated, job_id)) == (requests, owed, owed)
    result = gated.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
    assert (result.model_asked, result.model_served) == (answers, f"sim-{answers}")


def test_a_smaller_tier_answers_when_the_breaker_of_the_larger_is_open(gated: AdmissionRooms) -> None:
    gated.trip("first")
    job_id = gated.submit(**MEDIUM)
    assert gated.attempt(job_id).model == "sim-second"
    assert gated.received() == {"sim-second": 1}
    (call,) = gated.ledger(job_id)
    assert (call.tier, call.deployment, call.nanodollars) == ("medium", "second", gated.invoice())


def test_a_smaller_tier_answers_in_the_same_attempt_when_the_larger_fails(gated: AdmissionRooms) -> None:
    gated.fault("server_error")
    job_id = gated.submit(**MEDIUM)
    assert gated.attempt(job_id).model == "sim-second"
    assert gated.job(job_id).failures == 0
    assert calls_of(gated, job_id) == [("first", "first-account", "settled", "server_error"), ANSWERED]


def test_a_smaller_tier_answers_what_never_fits_the_quota_of_the_larger(gated: AdmissionRooms) -> None:
    job_id = gated.submit(tier="tiny", prompt_version="1.2.0")
    assert gated.attempt(job_id).model == "sim-first"
    assert gated.ledger(job_id)[0].deployment == "first"


def test_no_tier_answers_that_the_prompt_does_not_name(gated: AdmissionRooms) -> None:
    gated.trip("first")
    job_id = gated.submit(tier="medium")
    assert gated.attempt(job_id).outcome is Outcome.DEFERRED
    assert gated.calls() == 0


def test_a_larger_tier_never_answers_for_a_smaller_one(gated: AdmissionRooms) -> None:
    gated.trip("second")
    job_id = gated.submit(tier="small", prompt_version="1.2.0")
    assert gated.attempt(job_id).outcome is Outcome.DEFERRED
    assert gated.calls() == 0


def test_a_smaller_tier_does_not_answer_for_one_whose_quota_has_no_room(gated: AdmissionRooms) -> None:
    gated.attempt_at(START_MS, gated.submit(tier="metered"))
    job_id = gated.submit(tier="metered", prompt_version="1.2.0")
    report = gated.attempt_at(START_MS, job_id)
    assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.LIMITED)
    assert gated.received() == {"sim-first": 1}
    assert gated.ledger(job_id) == []


def test_a_smaller_tier_does_not_answer_while_one_deployment_of_the_larger_is_only_busy(gated: AdmissionRooms) -> None:
    gated.trip("second", now_ms=START_MS)
    gated.attempt_at(START_MS, gated.submit(tier="metered"))
    job_id = gated.submit(tier="metered_last", prompt_version="1.2.0")
    report = gated.attempt_at(START_MS, job_id)
    assert (report.outcome, report.reason, report.detail) == (
        Outcome.DEFERRED,
        Reason.LIMITED,
        "requests of quota metered",
    )
    assert gated.received() == {"sim-first": 1}


def test_a_smaller_tier_does_not_answer_for_one_that_its_provider_throttles(gated: AdmissionRooms) -> None:
    gated.fault("throttled", model="sim-first", retry_after=5)
    job_id = gated.submit(**MEDIUM)
    report = gated.attempt(job_id)
    assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.THROTTLED)
    assert 5.0 <= report.delay_s <= 5.5
    assert gated.received() == {"sim-first": 1}


def test_while_every_tier_is_out_a_job_waits_for_the_first_probe_of_any(
    gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_jitter(monkeypatch)
    gated.trip("first", now_ms=START_MS)
    gated.trip("second", now_ms=START_MS - 2_000)
    report = gated.attempt_at(START_MS, gated.submit(**MEDIUM))
    assert (report.outcome, report.reason, report.delay_s) == (Outcome.DEFERRED, Reason.UNAVAILABLE, 3.0)
    assert report.detail == "the breaker of second is open"


PROCESSES, IN_FLIGHT, ROUNDS = 2, 4, 4
THRESHOLD = 5
EACH = IN_FLIGHT * ROUNDS


class Meeting(Protocol):
    """A barrier that all processes wait at, so that they begin together."""

    def wait(self, timeout: float | None = None) -> int: ...


class Seat:
    """What the pool leaves in a process of its own."""

    meeting: Meeting
    provider: LiteLLMProvider


def sit(meeting: Meeting) -> None:
    Seat.meeting, Seat.provider = meeting, LiteLLMProvider()


def storm(settings: Settings, environment: dict[str, str], now_ms: int, jobs: list[UUID]) -> list[Report]:
    """Run jobs, IN_FLIGHT of them beside one another, all at one moment of the gates' clock."""

    async def each(house: House, mine: list[UUID]) -> list[Report]:
        return [await run(house, job_id) for job_id in mine]

    async def all_of_them() -> list[Report]:
        house = build_house(settings, Seat.provider, WORKER)
        try:
            still = at(house, now_ms)
            await house.gates.redis.ping()
            Seat.meeting.wait(60)
            seen = await asyncio.gather(*(each(still, jobs[n::IN_FLIGHT]) for n in range(IN_FLIGHT)))
        finally:
            await house.close()
        return [report for mine in seen for report in mine]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return asyncio.run(all_of_them())


class Houses:
    """Processes with a house each, called together."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pool = ProcessPoolExecutor(PROCESSES, context, sit, (context.Barrier(PROCESSES),))
        for _ in range(PROCESSES):
            self.pool.submit(int)  # they start, beside the tests before

    def storm(self, rooms: AdmissionRooms, now_ms: int) -> list[Report]:
        environment = admission_rooms.environment()
        jobs = [[rooms.ready() for _ in range(EACH)] for _ in range(PROCESSES)]
        futures = [self.pool.submit(storm, rooms.settings, environment, now_ms, mine) for mine in jobs]
        return [report for future in futures for report in future.result(60)]


@pytest.fixture(scope="module", autouse=True)
def houses() -> Iterator[Houses]:
    made = Houses()
    yield made
    made.pool.shutdown(cancel_futures=True)


def test_several_processes_meet_a_dead_provider_as_often_as_it_takes_to_trip_and_then_once_a_cool_down(
    houses: Houses, gated: AdmissionRooms
) -> None:
    gated.fail("outage")
    reports = houses.storm(gated, START_MS)
    requests = gated.calls()
    assert THRESHOLD <= requests < THRESHOLD + PROCESSES * IN_FLIGHT < PROCESSES * EACH
    assert outcomes(reports) == {Outcome.RETRIED: requests, Outcome.DEFERRED: PROCESSES * EACH - requests}
    assert {report.reason for report in reports} == {Reason.OVERLOADED, Reason.UNAVAILABLE}

    now_ms = START_MS
    for cool_down_ms in (5_000, 10_000):
        assert outcomes(houses.storm(gated, now_ms + cool_down_ms - 1)) == {Outcome.DEFERRED: PROCESSES * EACH}
        assert gated.calls() == requests
        now_ms += cool_down_ms
        probing = outcomes(houses.storm(gated, now_ms))
        assert probing == {Outcome.RETRIED: 1, Outcome.DEFERRED: PROCESSES * EACH - 1}
        requests += 1
        assert gated.calls() == requests

    gated.heal()
    recovered = outcomes(houses.storm(gated, now_ms + 20_000))
    assert set(recovered) <= {Outcome.SUCCEEDED, Outcome.DEFERRED}
    assert gated.calls() - requests == recovered[Outcome.SUCCEEDED] > 0


def outcomes(reports: list[Report]) -> dict[Any, int]:
    seen = [report.outcome for report in reports]
    return {outcome: seen.count(outcome) for outcome in dict.fromkeys(seen)}
