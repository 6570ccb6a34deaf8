"""A document that is too long for one call is answered in parts: each is paid once, what is cited is in the text."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from penstock.ai import CallContext, Completion, CompletionRequest
from penstock.attempt import Report, run
from penstock.cli.display import show
from penstock.client import Client
from penstock.clock import SystemClock
from penstock.errors import InvalidRequestError, Reason
from penstock.house import House
from penstock.intake import Intake
from penstock.jobs import queries
from penstock.jobs.execution import Claim, Outcome
from penstock.long_documents import AT_ONCE, complete
from penstock.schemas import Job, Lane
from tests import admission_rooms
from tests.admission_rooms import START_MS, AdmissionRooms, Told, at, change, until, wait_until
from tests.rooms import DOCUMENT

provider, told, addresses, gated = admission_rooms.FIXTURES

SPEECH = (Path(__file__).parents[1] / "samples" / "state-of-the-union-2000.txt").read_text().strip()
LONG: dict[str, Any] = {"document": SPEECH, "prompt_version": "1.3.0"}
WINDOW = 6_000
PARTS = 6
CALLS = PARTS + 1
NARROW_WINDOW = 4_400


def narrow(house: House, window: int = WINDOW) -> House:
    """Let every deployment have a small context window."""
    for name in house.catalogue.deployment_names:
        change(house, name, context_window=window)
    return house


def attempt(rooms: AdmissionRooms, job_id: UUID, window: int = WINDOW) -> Report:
    return rooms.with_house(lambda house: run(narrow(house, window), job_id))


def attempt_again(rooms: AdmissionRooms, job_id: UUID) -> Report:
    rooms.release(job_id)
    return attempt(rooms, job_id)


def job_of(rooms: AdmissionRooms, job_id: UUID) -> Job:
    with rooms.engine.connect() as connection:
        return queries.get(connection, [job_id])[job_id]


def states(rooms: AdmissionRooms, job_id: UUID) -> list[str]:
    """Give what came of each call of a job, in alphabetical order."""
    return sorted(call.reason or call.state for call in rooms.ledger(job_id))


class TestWhatIsAnswered:
    """The answer draws on all parts, and says on which."""

    def test_what_it_cites_are_sections_of_the_text(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)
        assert attempt(gated, job_id).outcome is Outcome.SUCCEEDED
        job = job_of(gated, job_id)
        assert job.result is not None
        assert job.result.endswith("[1] [4] [6]")
        assert job.sources is not None
        assert [source.number for source in job.sources] == [1, 4, 6]
        assert (job.sources[0].start, job.sources[-1].end) == (0, len(SPEECH))
        for source in job.sources:
            assert source.heading in SPEECH[: source.end]
            assert SPEECH[source.start : source.end].strip()

    @pytest.mark.parametrize(
        ("said", "cited"),
        [
            ("Gates close [2].", [2]),
            ("Gates close [4, 2]; basins fill [5].", [2, 4, 5]),
            ("Gates close [2-4][6].", [2, 3, 4, 6]),
            ("Gates close [7], [0], [x] and [3].", [3]),
            ("Gates close [2000].", [1, 2, 3, 4, 5, 6]),
            ("Gates close.", [1, 2, 3, 4, 5, 6]),
        ],
    )
    def test_numbers_of_no_section_are_no_sources_and_without_any_all_are(
        self, gated: AdmissionRooms, told: Told, said: str, cited: list[int]
    ) -> None:
        told.says(said)
        job_id = gated.submit(**LONG, tier="told")
        assert attempt(gated, job_id).outcome is Outcome.SUCCEEDED
        job = job_of(gated, job_id)
        assert (job.result, [source.number for source in job.sources or ()]) == (said, cited)

    def test_the_command_shows_where_they_are(self, gated: AdmissionRooms, capsys: pytest.CaptureFixture[str]) -> None:
        job_id = gated.submit(**LONG)
        attempt(gated, job_id)
        sources = job_of(gated, job_id).sources or ()
        capsys.readouterr()
        with Client(gated.settings) as client:
            show(client, job_id, as_json=True)
            assert json.loads(capsys.readouterr().out)["sources"] == [source.model_dump() for source in sources]
            show(client, job_id, as_json=False)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"[6] characters {sources[-1].start} to {len(SPEECH)}: {sources[-1].heading}"

    def test_every_call_has_its_row_and_the_books_are_the_providers(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)
        report = attempt(gated, job_id)
        assert states(gated, job_id) == ["settled"] * CALLS
        assert (gated.calls(), gated.count("answers", job_id)) == (CALLS, CALLS)
        assert report.cost_nanodollars == job_of(gated, job_id).cost_nanodollars == gated.invoice()

    def test_answers_that_do_not_fit_together_are_put_together_by_groups(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)
        assert attempt(gated, job_id, NARROW_WINDOW).outcome is Outcome.SUCCEEDED
        parts, groups = 12, 3
        assert gated.calls() == parts + groups + 1
        assert [source.number for source in job_of(gated, job_id).sources or ()] == [1, 6, 11]

    def test_sections_that_are_equal_are_asked_once(self, gated: AdmissionRooms) -> None:
        paragraph = " ".join(f"The gate number {number} shall be opened by noon." for number in range(90))
        chapters = [f"Chapter {number}\n\n{paragraph}" for number in (1, 2, 2, 2, 2)]
        job_id = gated.submit(**LONG | {"document": "\n\n".join(chapters)})
        assert attempt(gated, job_id, NARROW_WINDOW).outcome is Outcome.SUCCEEDED
        assert len(gated.ledger(job_id)) == len(["the first", "the middle ones", "the last"]) + 1
        assert [source.number for source in job_of(gated, job_id).sources or ()] == [1, 3, 5]

    @pytest.mark.parametrize(
        "fields", [{"document": DOCUMENT}, {"prompt_version": "1.2.0"}], ids=["short", "prompt without reduce.txt"]
    )
    def test_what_is_short_or_cannot_be_put_together_is_one_call(
        self, gated: AdmissionRooms, fields: dict[str, Any]
    ) -> None:
        job_id = gated.submit(**LONG | fields)
        assert attempt(gated, job_id).outcome is Outcome.SUCCEEDED
        assert (gated.calls(), job_of(gated, job_id).sources) == (1, None)


class TestWhatIsPaid:
    """However a run ends, what was paid for is not bought again."""

    def test_a_run_that_is_stopped_leaves_no_call_under_way_and_its_answers_to_the_next(
        self, gated: AdmissionRooms
    ) -> None:
        job_id = gated.submit(**LONG)
        gated.fail("latency", extra_ms=150)

        async def stop_in_the_middle(house: House) -> None:
            running = asyncio.create_task(run(narrow(house), job_id))
            await until(lambda: (gated.count("answers", job_id), gated.in_flight()) == (AT_ONCE, PARTS - AT_ONCE))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        gated.with_house(stop_in_the_middle)
        wait_until(lambda: gated.in_flight() == 0)
        assert states(gated, job_id) == ["settled"] * AT_ONCE + ["time_limit"] * (PARTS - AT_ONCE)
        gated.heal()
        assert attempt_again(gated, job_id).outcome is Outcome.SUCCEEDED
        assert states(gated, job_id) == ["settled"] * CALLS + ["time_limit"] * (PARTS - AT_ONCE)

    def test_a_failure_that_may_pass_keeps_no_other_part_from_being_paid(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG, tier="small")  # nobody stands behind it
        gated.fault("server_error")
        report = attempt(gated, job_id)
        assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.SERVER_ERROR)
        assert states(gated, job_id) == ["server_error"] + ["settled"] * (PARTS - 1)
        assert attempt_again(gated, job_id).outcome is Outcome.SUCCEEDED
        assert states(gated, job_id) == ["server_error"] + ["settled"] * CALLS

    def test_its_tenants_share_pays_all_of_its_calls_whichever_attempt_made_them(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG, tier="small")
        gated.fault("server_error")
        attempt(gated, job_id)
        gated.release(job_id)

        async def finish(house: House) -> Completion:
            job = await house.journal.claim.add(Claim(job_id, house.worker))
            assert job is not None
            context = CallContext(job_id=job.id, fence=job.fence, tenant=job.tenant, tier=job.tier)
            request = CompletionRequest(
                prompt=job.prompt, variables=job.variables, document=job.document, context=context
            )
            return await complete(narrow(house), request)

        completion = gated.with_house(finish)
        job = job_of(gated, job_id)
        assert completion.usage == job.usage
        assert 0 < completion.cost_nanodollars < job.cost_nanodollars

    def test_a_failure_that_will_not_pass_is_the_jobs_and_no_other_part_is_begun(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)
        gated.fault("bad_request")
        gated.fail("latency", extra_ms=300)
        report = attempt(gated, job_id)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.BAD_REQUEST)
        assert states(gated, job_id) == ["bad_request"] + ["settled"] * (AT_ONCE - 1)

    def test_a_part_that_was_cut_is_never_passed_on(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG, tier="curt")
        report = attempt(gated, job_id)
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.OUTPUT_TRUNCATED)
        assert set(states(gated, job_id)) == {"output_truncated"}
        assert (gated.count("answers", job_id), gated.count("results", job_id)) == (0, 0)

    def test_a_second_job_pays_only_what_is_missing(self, gated: AdmissionRooms) -> None:
        first, second = (gated.submit(**LONG, fresh=False) for _ in range(2))
        other = gated.submit(**LONG, fresh=False, tenant="birch")
        assert attempt(gated, first).outcome is Outcome.SUCCEEDED
        assert attempt(gated, second).outcome is Outcome.SUCCEEDED
        assert gated.calls() == CALLS
        assert (job_of(gated, first).result, job_of(gated, first).cached) == (job_of(gated, second).result, False)
        assert (job_of(gated, second).cost_nanodollars, job_of(gated, second).cached) == (0, True)
        assert job_of(gated, second).sources == job_of(gated, first).sources
        assert attempt(gated, other).outcome is Outcome.SUCCEEDED
        assert gated.calls() == 2 * CALLS


class TestWhatWaits:
    """Each part is admitted by itself."""

    def test_it_goes_on_part_by_part_as_its_quota_allows(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG, tier="metered")

        async def ten_seconds_on(turn: int, house: House) -> Report:
            return await run(at(narrow(house), START_MS + turn * 10_000), job_id)

        seen = []
        for turn in range(CALLS):
            gated.release(job_id)
            seen.append(gated.with_house(partial(ten_seconds_on, turn)).outcome)
            assert gated.calls() == turn + 1
        assert seen == [Outcome.DEFERRED] * (CALLS - 1) + [Outcome.SUCCEEDED]
        assert (states(gated, job_id), gated.job(job_id).attempts) == (["settled"] * CALLS, 1)

    def test_what_its_own_calls_keep_from_being_admitted_waits_for_them(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)

        async def one_at_a_time(house: House) -> Report:
            quota = house.catalogue.deployments("one")[0].quota
            assert quota is not None
            change(narrow(house), "first", quota=quota.model_copy(update={"name": "single", "concurrency": 1}))
            return await run(house, job_id)

        assert gated.with_house(one_at_a_time).outcome is Outcome.SUCCEEDED
        assert states(gated, job_id) == ["settled"] * CALLS

    def test_its_parts_fit_into_a_minute_of_the_quota(self, gated: AdmissionRooms) -> None:
        job_id = gated.submit(**LONG)

        async def little_quota(house: House) -> Report:
            quota = house.catalogue.deployments("one")[0].quota
            assert quota is not None
            change(house, "first", quota=quota.model_copy(update={"name": "little", "tpm": WINDOW}))
            return await run(at(house, next(minutes_ms)), job_id)

        minutes_ms = iter(range(START_MS, START_MS + 10 * 60_000, 60_000))
        outcomes = []
        for _ in range(CALLS + 1):
            gated.release(job_id)
            outcomes.append(gated.with_house(little_quota).outcome)
        assert outcomes == [Outcome.DEFERRED] * CALLS + [Outcome.SUCCEEDED]
        assert states(gated, job_id) == ["settled"] * CALLS

    def test_others_are_admitted_beside_it(self, gated: AdmissionRooms) -> None:
        long = gated.ready(**LONG, lane=Lane.BATCH)
        other = gated.submit(tenant="birch")
        gated.fail("hang", hold_s=20)

        async def beside(house: House) -> None:
            running = asyncio.create_task(run(narrow(house), long))
            await until(lambda: gated.in_flight() == AT_ONCE)
            gated.heal()
            assert (await run(house, other)).outcome is Outcome.SUCCEEDED
            assert (gated.in_flight(), len(gated.ledger(long))) == (AT_ONCE, AT_ONCE)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        gated.with_house(beside)


class TestTheDoor:
    """What can be read in parts is not too large, and is counted whole."""

    def test_a_document_beyond_a_minute_of_the_quota_is_taken(self, gated: AdmissionRooms) -> None:
        intake = Intake.load(gated.settings, SystemClock())
        fields = {"tenant": "acme", "prompt": "summarise_document", "tier": "tight", "document": SPEECH * 3}
        job = intake.accept(uuid4(), {**fields, "prompt_version": "1.3.0"})
        assert job.document == SPEECH * 3
        with pytest.raises(InvalidRequestError, match="it needs more tokens than any quota"):
            intake.accept(uuid4(), {**fields, "prompt_version": "1.2.0"})

    def test_its_estimate_has_all_of_its_calls(self, gated: AdmissionRooms) -> None:
        intake = Intake.load(gated.settings, SystemClock())
        fields = {"tenant": "acme", "prompt": "summarise_document", "tier": "tight", "document": SPEECH}
        tokens = len(SPEECH.encode()) // 4
        whole = intake.accept(uuid4(), {**fields, "prompt_version": "1.2.0", "tier": "one"}).estimated_tokens
        assert tokens + 768 <= whole <= tokens + 768 + 20
        parts = -(-tokens // (4_500 * 6 // 10 - 768))
        in_parts = intake.accept(uuid4(), {**fields, "prompt_version": "1.3.0"}).estimated_tokens
        assert in_parts == whole + 2 * parts * 768
