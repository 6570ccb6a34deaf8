"""Whether a call may be made now, and what of its quota it takes: whole attempts over HTTP, with a real Redis."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from penstock.attempt import Report, run
from penstock.errors import Reason
from penstock.gates.breaker import BreakerState
from penstock.gates.local import LocalShare
from penstock.house import House
from penstock.jobs.execution import Outcome
from penstock.schemas import Lane
from tests import admission_rooms
from tests.admission_rooms import (
    LONG_DOCUMENT,
    START_MS,
    AdmissionRooms,
    StillClock,
    at,
    change,
    run_all,
    until,
    without_jitter,
)
from workers.embedded import RedisServer

provider, told, addresses, gated = admission_rooms.FIXTURES

BATCH = {"lane": Lane.BATCH}
MINUTE_MS = 60_000
HANGS_S = 20.0
CROWD = """
import asyncio, json, os, sys, time
from redis.exceptions import RedisError
from penstock.gates.breaker import Breaker, BreakerSettings
from penstock.gates.scripts import AsyncScripts
from penstock.store.redis import async_redis

async def main():
    breaker = Breaker(AsyncScripts(async_redis(f"unix://{sys.argv[1]}")), BreakerSettings())
    began_s = time.monotonic()
    seen = await asyncio.gather(*(breaker.status("first") for _ in range(96)), return_exceptions=True)
    print(json.dumps([sum(isinstance(each, RedisError) for each in seen), time.monotonic() - began_s]), flush=True)
    os._exit(0)

asyncio.run(main())
"""
"""A process of its own, for what does not end cannot be told to."""
ESTIMATES = "{penstock:estimates:openai/sim-first:summarise_document@1.1.0}"


def levels(rooms: AdmissionRooms, quota: str) -> dict[str, float]:
    """Read the numbers of a quota pool as they were last written."""
    found: dict[str, str] = rooms.gates.hgetall(f"{{penstock:quota:{quota}}}:levels")  # type: ignore[assignment]
    return {name: float(value) for name, value in found.items() if not name.endswith(".unsent")}


def leases(rooms: AdmissionRooms, quota: str) -> list[dict[str, Any]]:
    """Read what is taken for calls in flight."""
    keys = rooms.gates.scan_iter(match=f"{{penstock:quota:{quota}}}:lease:*")
    return [json.loads(str(rooms.gates.get(key))) for key in keys]


class TestWhoMustWait:
    """A job that cannot be admitted now is a row again, and has lost nothing but the time."""

    @pytest.mark.parametrize("lane", Lane)
    def test_it_is_queued_within_a_second_until_exactly_when_its_quota_has_room(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch, lane: Lane
    ) -> None:
        without_jitter(monkeypatch)
        gated.attempt_at(START_MS, gated.submit(tier="metered"))
        job_id = gated.ready(tier="metered", lane=lane)
        before = gated.now()
        report = gated.attempt_at(START_MS + 4_000, job_id)
        assert report == Report(job_id, Outcome.DEFERRED, Reason.LIMITED, "requests of quota metered", 6.0, model="")
        job = gated.job(job_id)
        assert (job.state, job.reason, job.detail) == ("queued", "limited", "requests of quota metered")
        assert (job.attempts, job.failures, job.ended_at) == (0, 0, None)
        assert timedelta() <= job.due_at - before - timedelta(seconds=6) < timedelta(seconds=1)
        assert (gated.count("attempts", job_id), gated.ledger(job_id), gated.calls()) == (0, [], 1)

    def test_it_is_admitted_when_that_time_has_come_and_not_a_millisecond_before(self, gated: AdmissionRooms) -> None:
        gated.attempt_at(START_MS, gated.submit(tier="metered"))
        job_id = gated.submit(tier="metered")
        seen = []
        for passed_ms in (0, 8_999, 9_000):  # the last second is waited for in the slot
            gated.release(job_id)
            seen.append(gated.attempt_at(START_MS + passed_ms, job_id).outcome)
        assert seen == [Outcome.DEFERRED, Outcome.DEFERRED, Outcome.SUCCEEDED]
        job = gated.job(job_id)
        assert (job.attempts, gated.count("attempts", job_id), gated.calls()) == (1, 1, 2)

    def test_one_that_had_failed_before_stays_a_retry_with_its_history(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="metered")
        gated.fault("server_error")
        gated.attempt_at(START_MS, job_id)
        gated.release(job_id)
        assert gated.attempt_at(START_MS, job_id).outcome is Outcome.DEFERRED
        job = gated.job(job_id)
        assert (job.state, job.attempts, job.failures) == ("retrying", 1, 1)
        assert gated.count("attempts", job_id) == 1

    def test_one_whose_deadline_comes_first_is_dead_of_it_without_a_call(self, gated: AdmissionRooms) -> None:
        gated.attempt_at(START_MS, gated.submit(tier="metered"))
        job_id = gated.submit(tier="metered", deadline=datetime.now(UTC) + timedelta(seconds=9))
        report = gated.attempt_at(START_MS, job_id)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.DEADLINE)
        assert (gated.ledger(job_id), gated.calls()) == ([], 1)

    def test_a_tenant_has_no_more_calls_in_flight_than_its_share_and_others_go_on(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        gated.fault("hang")
        first, second, other = (gated.submit(tenant=tenant) for tenant in ("crowded", "crowded", "spacious"))

        async def crowd(house: House) -> tuple[Report, Report]:
            running = asyncio.create_task(run(house, first))
            await until(lambda: gated.calls() == 1)
            seen = await run(house, second), await run(house, other)
            running.cancel()
            await asyncio.wait([running])
            return seen

        refused, admitted = gated.with_house(crowd)
        detail = "the tenant has all its calls of quota first in flight"
        assert refused == Report(second, Outcome.DEFERRED, Reason.LIMITED, detail, 1.0, model="")
        assert admitted.outcome is Outcome.SUCCEEDED
        gated.release(second)
        assert gated.attempt(second).outcome is Outcome.SUCCEEDED

    def test_a_request_that_never_fits_is_dead_and_was_never_sent(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="tiny")
        report = gated.attempt(job_id)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.TOO_LARGE)
        assert report.detail == "it needs more tokens than a minute of tiny has"
        assert (gated.job(job_id).reason, gated.ledger(job_id), gated.calls()) == ("too_large", [], 0)
        assert list(gated.gates.scan_iter(match="*quota*")) == []


class TestWhatIsLearnt:
    """How large requests are is learnt from answers, and shared by all houses."""

    def test_the_prompt_is_charged_as_the_provider_counted_the_last_one(self, gated: AdmissionRooms) -> None:
        def charged() -> int:
            gated.fault("latency", extra_ms=400)
            job_id = gated.submit(tier="frugal")

            async def look(house: House) -> int:
                running = asyncio.create_task(run(house, job_id))
                await until(lambda: gated.in_flight() == 1)
                (lease,) = leases(gated, "frugal")
                assert (await running).outcome is Outcome.SUCCEEDED
                return int(lease["amounts"]["tokens"])

            return gated.with_house(look)

        guessed, known = charged(), charged()
        real = gated.lines()[0]["input_tokens"]
        assert guessed != real + 768
        assert known - 768 in {real, real + 1}

    def test_after_a_hundred_short_answers_max_tokens_is_lower_in_every_house(self, gated: AdmissionRooms) -> None:
        jobs = gated.submit_many(100, tier="frugal")

        async def four_at_once(house: House) -> None:
            for n in range(0, 100, 4):
                assert await run_all(house, jobs[n : n + 4]) == [Outcome.SUCCEEDED] * 4

        gated.with_house(four_at_once)
        assert gated.max_tokens("sim-frugal") == [768] * 100
        assert gated.attempt(gated.submit(tier="frugal")).outcome is Outcome.SUCCEEDED
        assert gated.max_tokens("sim-frugal")[100:] == [64]

    @pytest.mark.parametrize(("output", "expected"), [(24, 64), (100, 129), (300, 366), (700, 768)])
    def test_max_tokens_follows_the_answers_and_never_passes_the_prompts(
        self, gated: AdmissionRooms, output: int, expected: int
    ) -> None:
        gated.teach("openai/sim-frugal", "1.1.0", output)
        gated.attempt(gated.submit(tier="frugal"))
        assert gated.max_tokens("sim-frugal") == [expected]

    def test_a_prompts_length_of_answers_says_nothing_about_another_version(self, gated: AdmissionRooms) -> None:
        gated.teach("openai/sim-frugal", "1.0.0", 24)
        gated.attempt(gated.submit(tier="frugal"))
        assert gated.max_tokens("sim-frugal") == [768]

    @pytest.mark.parametrize("fresh", [True, False])
    def test_an_answer_cut_there_is_asked_once_more_with_all_that_the_prompt_allows_and_the_bound_rises(
        self, gated: AdmissionRooms, *, fresh: bool
    ) -> None:
        gated.teach("openai/sim-frugal", "1.1.0", 24)
        job_id = gated.submit(tier="frugal", document=LONG_DOCUMENT, fresh=fresh)
        report = gated.attempt(job_id)
        assert report.outcome is Outcome.SUCCEEDED
        assert gated.max_tokens("sim-frugal") == [64, 768]
        calls = gated.ledger(job_id)
        assert [(call.state, call.reason) for call in calls] == [("settled", "output_truncated"), ("settled", None)]
        assert [call.output_tokens for call in calls] == [64, calls[1].output_tokens]
        assert sum(call.nanodollars for call in calls) == gated.invoice()
        assert (gated.job(job_id).attempts, gated.job(job_id).failures) == (1, 0)

        gated.attempt(gated.submit(tier="frugal"))
        bucket = math.ceil(1.1 ** math.ceil(math.log(calls[1].output_tokens) / math.log(1.1)))
        assert gated.max_tokens("sim-frugal")[2:] == [math.ceil(bucket * 1.2)] != [64]

    def test_an_answer_that_is_cut_at_the_prompts_own_bound_is_asked_no_third_time(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(tier="frugal", document=LONG_DOCUMENT)
        gated.teach("openai/sim-frugal", "1.1.0", 24)

        async def curt(house: House) -> Report:
            change(house, "frugal", max_output_tokens=80)
            return await run(house, job_id)

        report = gated.with_house(curt)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.OUTPUT_TRUNCATED)
        assert gated.max_tokens("sim-frugal") == [64, 80]
        assert sum(call.nanodollars for call in gated.ledger(job_id)) == gated.invoice()

    def test_an_answer_that_was_cut_is_not_bought_again_because_its_repeat_had_to_wait(
        self, gated: AdmissionRooms
    ) -> None:
        gated.teach("openai/sim-frugal", "1.1.0", 24)
        gated.attempt_at(START_MS, gated.submit(tier="tight"))  # begins the pool; a minute fills it
        job_id = gated.submit(tier="tight", document=LONG_DOCUMENT)
        now_ms, seen = START_MS, []
        for _ in range(3):
            now_ms += MINUTE_MS
            gated.release(job_id)
            seen.append(gated.attempt_at(now_ms, job_id).outcome)
            if seen[-1] is Outcome.SUCCEEDED:
                break
        assert seen[-1] is Outcome.SUCCEEDED
        assert gated.max_tokens("sim-frugal") == [64, 768]


class TestRedisAway:
    """Batch waits, interactive has a share of the rate, and a call in flight is not lost."""

    @pytest.fixture
    def redis(self, gated: AdmissionRooms, tmp_path: Path) -> Iterator[RedisServer]:
        """A Redis for the gates alone, which a test may kill."""
        server = RedisServer(tmp_path / "redis")
        server.start()
        address = SecretStr(f"unix://{server.socket_path}")
        gated.settings = gated.settings.model_copy(update={"redis_url": address})
        yield server
        server.stop()

    def test_batch_is_deferred_without_a_call_whether_its_deployment_has_a_quota_or_not(
        self, gated: AdmissionRooms, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        redis.kill()
        job_id = gated.ready(**BATCH)
        report, took_s = gated.timed_attempt(job_id)
        detail = "Redis is away, and batch waits for it"
        assert report == Report(job_id, Outcome.DEFERRED, Reason.LIMITER_AWAY, detail, 2.0, model="")
        job = gated.job(job_id)
        assert (job.state, job.attempts, job.reason) == ("queued", 0, "limiter_away")
        assert (gated.ledger(job_id), gated.calls()) == ([], 0)
        assert took_s < 1.0

    @pytest.mark.parametrize(("processes", "share"), [(1, 8), (2, 4), (4, 2)])
    def test_interactive_takes_its_processs_share_of_the_rate_and_no_more(
        self, gated: AdmissionRooms, redis: RedisServer, processes: int, share: int
    ) -> None:
        redis.kill()
        jobs = [gated.submit(tier="steady") for _ in range(10)]

        async def all_at_one_moment(house: House) -> list[Outcome | None]:
            house.running.processes = processes
            still = replace(house, gates=replace(house.gates, local=LocalShare(StillClock())))
            return await run_all(still, jobs)

        outcomes = gated.with_house(all_at_one_moment)
        assert outcomes.count(Outcome.SUCCEEDED) == gated.calls() == share
        assert outcomes.count(Outcome.DEFERRED) == 10 - share
        waiting = [gated.job(job_id) for job_id in jobs if gated.job(job_id).state == "queued"]
        assert {(job.reason, job.attempts) for job in waiting} == {("limiter_away", 0)}

    def test_interactive_is_answered_through_an_open_breaker_that_nobody_can_read(
        self, gated: AdmissionRooms, redis: RedisServer
    ) -> None:
        gated.trip("first")
        redis.kill()
        assert gated.attempt(gated.submit()).outcome is Outcome.SUCCEEDED

    def test_an_answer_that_comes_meanwhile_is_kept(self, gated: AdmissionRooms, redis: RedisServer) -> None:
        gated.fault("latency", extra_ms=400)
        job_id = gated.submit()

        async def die_in_flight(house: House) -> Report:
            running = asyncio.create_task(run(house, job_id))
            await until(lambda: gated.in_flight() == 1)
            redis.kill()
            return await running

        assert gated.with_house(die_in_flight).outcome is Outcome.SUCCEEDED
        (call,) = gated.ledger(job_id)
        assert (call.state, call.nanodollars) == ("settled", gated.invoice())

    def test_when_it_is_back_all_share_the_limiter_again(self, gated: AdmissionRooms, redis: RedisServer) -> None:
        jobs = {name: gated.ready(tier="metered") for name in ("before", "away", "share used", "back")}
        night = gated.ready(**BATCH)

        async def through_an_outage(house: House) -> dict[str, Report]:
            seen = {"before": await run(house, jobs["before"])}
            redis.kill()
            seen["away"] = await run(house, jobs["away"])
            seen["share used"] = await run(house, jobs["share used"])
            redis.start()
            while not await is_there(house):
                await asyncio.sleep(0.01)
            await house.gates.redis.flushall()
            seen["back"] = await run(house, jobs["back"])
            seen["batch"] = await run(house, night)
            assert await house.gates.redis.exists("{penstock:quota:metered}:levels") == 1
            return seen

        seen = gated.with_house(through_an_outage)
        assert {name: (report.outcome, report.reason) for name, report in seen.items()} == {
            "before": (Outcome.SUCCEEDED, None),
            "away": (Outcome.SUCCEEDED, None),
            "share used": (Outcome.DEFERRED, Reason.LIMITER_AWAY),
            "back": (Outcome.SUCCEEDED, None),
            "batch": (Outcome.SUCCEEDED, None),
        }
        assert gated.calls() == 4

    def test_one_that_hangs_is_away_for_all_calls_at_once_and_not_for_one_after_the_other(
        self, redis: RedisServer
    ) -> None:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            command = [sys.executable, "-c", CROWD, str(redis.socket_path)]
            told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANGS_S).stdout
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        refused, took_s = json.loads(told)
        assert refused == 96
        assert took_s < 4  # a second for an answer, and once more

    def test_a_restart_leaves_what_the_quota_had_granted(self, gated: AdmissionRooms, redis: RedisServer) -> None:
        first, second = gated.submit(tier="metered"), gated.submit(tier="metered")
        assert gated.attempt(first).outcome is Outcome.SUCCEEDED
        redis.stop()
        redis.start()
        assert gated.attempt(second).reason is Reason.LIMITED


async def is_there(house: House) -> bool:
    try:
        await house.gates.breaker.status("first")
    except RedisError:
        return False
    return True


class TestRedisBusy:
    """A Redis that is there is not taken for one that is away."""

    def test_jobs_that_begin_and_end_together_all_pass_the_gates(self, gated: AdmissionRooms) -> None:
        jobs = gated.submit_many(150, **BATCH)
        with capture_logs() as events:
            outcomes = gated.with_house(lambda house: run_all(house, jobs))
        assert [event for event in events if event["event"] == "service.unavailable"] == []
        assert outcomes == [Outcome.SUCCEEDED] * 150
        assert gated.gates.hget(ESTIMATES, "answers") == "150"


class TestRedisEmptied:
    """A Redis that has forgotten everything hears of the calls in flight by their next extension."""

    def test_calls_go_on_and_their_leases_are_renewed(self, gated: AdmissionRooms) -> None:
        gated.fault("latency", extra_ms=800)
        job_id = gated.submit()

        async def empty_in_flight(house: House) -> list[int]:
            running = asyncio.create_task(run(house, job_id))
            await until(lambda: gated.in_flight() == 1)
            seen = [gated.places("first")]
            gated.gates.flushall()
            seen.append(gated.places("first"))
            await house.gates.limiter.extend()
            seen.append(gated.places("first"))
            assert (await running).outcome is Outcome.SUCCEEDED
            return [*seen, gated.places("first")]

        assert gated.with_house(empty_in_flight) == [1, 0, 1, 0]
        assert gated.attempt(gated.submit()).outcome is Outcome.SUCCEEDED
        assert gated.ledger(job_id)[0].nanodollars > 0

    def test_what_comes_next_begins_with_one_second_of_the_rate(self, gated: AdmissionRooms) -> None:
        jobs = [gated.submit(tier="steady") for _ in range(9)]
        gated.with_house(lambda house: run_all(at(house, START_MS), jobs[:1]))
        gated.gates.flushall()
        outcomes = gated.with_house(lambda house: run_all(at(house, START_MS), jobs[1:]))
        assert outcomes == [Outcome.SUCCEEDED] * 8
        assert levels(gated, "steady")["requests.level"] == -4.0


class TestCancelled:
    """A run that is stopped gives back what it can."""

    def test_while_it_waits_for_its_grant_everything_is_given_back(self, gated: AdmissionRooms) -> None:
        for job_id in [gated.submit(tier="steady") for _ in range(4)]:
            gated.attempt_at(START_MS, job_id)
        before = levels(gated, "steady")
        gated.trip("steady", now_ms=START_MS - 5_000)
        epoch = gated.gates.hget("{penstock:breaker:steady}", "epoch")
        patient = [gated.submit(tier="steady") for _ in range(4)]

        async def stop(house: House) -> list[Any]:
            still = at(house, START_MS)
            running = [asyncio.create_task(run(still, patient[0]))]
            await until(lambda: gated.places("steady") == 1)
            assert gated.breaker("steady").state is BreakerState.HALF_OPEN
            running[0].cancel()
            return await asyncio.gather(*running, return_exceptions=True)

        (ended,) = gated.with_house(stop)
        assert isinstance(ended, asyncio.CancelledError)
        assert (gated.places("steady"), leases(gated, "steady")) == (0, [])
        assert levels(gated, "steady") == before
        assert (gated.ledger(patient[0]), gated.calls()) == ([], 4)
        assert gated.job(patient[0]).state == "retrying"
        assert int(str(gated.gates.hget("{penstock:breaker:steady}", "epoch"))) == int(str(epoch)) + 2
        gated.release(patient[0])
        assert gated.attempt_at(START_MS, patient[0]).outcome is Outcome.SUCCEEDED

    def test_in_flight_its_connection_is_closed_and_its_place_is_free_at_once(self, gated: AdmissionRooms) -> None:
        gated.fault("hang")
        job_id = gated.submit(tenant="crowded")

        async def stop(house: House) -> int:
            running = asyncio.create_task(run(house, job_id))
            await until(lambda: gated.in_flight() == 1)
            assert gated.places("first") == 1
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            places = gated.places("first")
            await until(lambda: gated.in_flight() == 0)
            return places

        assert gated.with_house(stop) == 0
        assert gated.read("stats")["models"]["sim-first"]["statuses"] == {"closed": 1}
        (call,) = gated.ledger(job_id)
        assert (call.state, call.reason, call.nanodollars) == ("unknown", "time_limit", call.upper_bound_nanodollars)
        assert gated.breaker("first").failures_in_a_row == 0
        gated.release(job_id)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED


class TestThrottled:
    """A 429 stops every house for as long as the provider asks, and costs a burst one cut."""

    def test_a_second_house_keeps_to_the_freeze_without_a_call(
        self, gated: AdmissionRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_jitter(monkeypatch)
        gated.fail("throttled", retry_after=5)
        burst = [gated.submit() for _ in range(6)]
        outcomes = gated.with_house(lambda house: run_all(at(house, START_MS), burst))
        sent = gated.calls()
        assert outcomes == [Outcome.RETRIED] * sent + [Outcome.DEFERRED] * (6 - sent)
        assert sent > 1
        assert levels(gated, "first")["factor"] == 0.95

        gated.heal()
        job_id = gated.submit()
        report = gated.attempt_at(START_MS + 2_000, job_id)
        assert report == Report(
            job_id, Outcome.DEFERRED, Reason.LIMITED, "the provider throttled quota first", 3.0, model=""
        )
        assert gated.calls() == sent
        gated.release(job_id)
        assert gated.attempt_at(START_MS + 5_000, job_id).outcome is Outcome.SUCCEEDED

    def test_no_job_of_a_storm_spends_a_failure_and_all_are_answered_after_it(self, gated: AdmissionRooms) -> None:
        gated.fail("throttled", retry_after=1)
        jobs = [gated.submit() for _ in range(6)]
        now_ms = START_MS
        for _ in range(5):
            gated.with_house(lambda house, now_ms=now_ms: run_all(at(house, now_ms), jobs))  # type: ignore[misc]
            now_ms += 1_000
            for job_id in jobs:
                gated.release(job_id)
        assert {gated.job(job_id).failures for job_id in jobs} == {0}
        assert gated.breaker("first").failures_in_a_row == 0
        gated.heal()
        outcomes = gated.with_house(lambda house: run_all(at(house, now_ms), jobs))
        assert outcomes == [Outcome.SUCCEEDED] * 6

    def test_without_retry_after_the_freeze_is_a_second(self, gated: AdmissionRooms) -> None:
        gated.fault("throttled")
        gated.attempt_at(START_MS, gated.submit())
        assert levels(gated, "first")["frozen"] == START_MS + 1_000
