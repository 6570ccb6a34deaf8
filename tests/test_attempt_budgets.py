"""What a budget lets an attempt do: whether it calls and whom, and how its result is marked. Over HTTP."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from penstock.ai import CallContext, CompletionRequest, complete
from penstock.attempt import Report, run
from penstock.errors import Reason
from penstock.extractive import summarise
from penstock.gates.breaker import BreakerState
from penstock.house import House
from penstock.jobs import dead_letters, queries
from penstock.jobs.execution import Claim, Outcome
from penstock.money.budgets import CALENDAR, Budget, OnExhausted, Period, Unit, set_budget
from penstock.schemas import JobState, OnUnavailable, dollars
from tests import admission_rooms
from tests.admission_rooms import LOAD, LONG_DOCUMENT, START_MS, AdmissionRooms
from tests.money.books import Sums, assert_balanced
from tests.rooms import DOCUMENT

provider, told, addresses, gated = admission_rooms.FIXTURES

MOST = 768
"""The `max_tokens` of summarise_document."""
FIRST, SECOND = (750, 3000), (150, 600)
"""What a token of a prompt and one of an answer cost at the two accounts, in nano-dollars."""
NO_LIMIT = 2**63 - 1
EXTRACTIVE = {"tier": "small", "prompt_version": "1.2.0"}
MEDIUM = {"tier": "medium", "prompt_version": "1.2.0"}
"""Of the first account, with a smaller tier of the second behind it."""


def prompt_tokens(rooms: AdmissionRooms, version: str = "1.1.0", document: str = DOCUMENT) -> int:
    """Give the most tokens that a prompt can have: its bytes, those of an empty schema, and 16 for each message."""
    rendered = LOAD(rooms.settings.prompts).find("summarise_document", version).render({}, document)
    return sum(len(message.content.encode()) + 16 for message in rendered.messages) + len("{}")


def bound(rooms: AdmissionRooms, max_tokens: int = MOST, rates: tuple[int, int] = FIRST, **prompt: str) -> int:
    """Give the most that a call can cost."""
    return prompt_tokens(rooms, **prompt) * rates[0] + max_tokens * rates[1]


def keep(rooms: AdmissionRooms, hard: int | None, **fields: Any) -> None:
    """Set a budget of acme, of a month and in nano-dollars unless the test says otherwise."""
    given = {"tenant": "acme", "period": Period.MONTH, "unit": Unit.NANODOLLARS, "hard_limit": hard} | fields
    with rooms.engine.begin() as connection:
        set_budget(connection, Budget(**given))


def held(rooms: AdmissionRooms) -> set[tuple[int, int]]:
    """Give what the rows of `spending` hold, which must say what the ledger does."""
    return {sums.held for sums in assert_balanced(rooms.engine).values()}


def assert_refused(rooms: AdmissionRooms, job_id: UUID, report: Report, *, calls: int = 0) -> None:
    """Check that a job died of a budget, and that nothing was sent for it, written down or left held."""
    assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.BUDGET_EXHAUSTED)
    job = rooms.job(job_id)
    assert (job.state, job.reason, job.failures, job.attempts) == ("dead", "budget_exhausted", 0, 1)
    assert (rooms.ledger(job_id), rooms.calls()) == ([], calls)
    assert (rooms.count("results", job_id), rooms.count("answers", job_id)) == (0, 0)
    assert held(rooms) <= {(0, 0)}


class TestExhausted:
    """No room, and none will come: the budget's owner decides what becomes of the job."""

    @pytest.mark.parametrize("choice", OnUnavailable)
    def test_a_job_is_dead_without_a_request_whatever_it_accepts(
        self, gated: AdmissionRooms, choice: OnUnavailable
    ) -> None:
        limit = bound(gated, rates=SECOND, version="1.2.0") - 1
        keep(gated, limit)
        job_id = gated.submit(**EXTRACTIVE, on_unavailable=choice)
        with capture_logs() as lines:
            report = gated.attempt(job_id)
        assert_refused(gated, job_id, report)
        assert report.detail == f"too little is left of the month's budget of its tenant, {dollars(limit)}"
        told = [line for line in lines if line["event"] == "budget.exhausted"]
        named = {"tenant": "acme", "project": "", "period": "month", "unit": "nanodollars"}
        assert told == [{"event": "budget.exhausted", "log_level": "info"} | named]

    def test_what_costs_exactly_the_limit_is_called(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated))
        job_id = gated.submit()
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        (call,) = gated.ledger(job_id)
        assert (call.max_tokens, call.upper_bound_nanodollars) == (MOST, bound(gated))
        assert call.nanodollars == gated.invoice() > 0

    @pytest.mark.parametrize("choice", OnUnavailable)
    def test_one_that_degrades_gives_a_summary_without_a_call_whatever_the_job_accepts(
        self, gated: AdmissionRooms, choice: OnUnavailable
    ) -> None:
        keep(gated, 1, on_exhausted=OnExhausted.DEGRADE)
        job_id = gated.submit(**EXTRACTIVE, document=LONG_DOCUMENT, on_unavailable=choice)
        report = gated.attempt(job_id)
        assert (report.outcome, report.reason) == (Outcome.SUCCEEDED, Reason.BUDGET_EXHAUSTED)
        result = gated.row("SELECT * FROM results WHERE job_id = :id", id=job_id)
        assert (result.text, result.degraded) == (summarise(LONG_DOCUMENT), True)
        assert (result.model_asked, result.model_served, result.over_soft_limit) == ("", "", False)
        assert (gated.job(job_id).state, gated.job(job_id).reason) == ("succeeded", "budget_exhausted")
        assert (gated.ledger(job_id), gated.calls(), held(gated)) == ([], 0, {(0, 0)})

    def test_one_that_degrades_cannot_where_the_prompt_allows_no_summary(self, gated: AdmissionRooms) -> None:
        keep(gated, 1, on_exhausted=OnExhausted.DEGRADE)
        job_id = gated.submit(on_unavailable=OnUnavailable.DEGRADE)
        assert_refused(gated, job_id, gated.attempt(job_id))

    @pytest.mark.parametrize("unit", Unit)
    @pytest.mark.parametrize("period", CALENDAR)
    def test_zero_is_nothing(self, gated: AdmissionRooms, period: Period, unit: Unit) -> None:
        keep(gated, 0, period=period, unit=unit)
        job_id = gated.submit()
        assert_refused(gated, job_id, gated.attempt(job_id))
        other = gated.submit(tenant="other")
        assert gated.attempt(other).outcome is Outcome.SUCCEEDED

    @pytest.mark.parametrize(("room", "is_called"), [(0, True), (-1, False)])
    def test_tokens_are_counted_by_what_a_call_can_have_at_most(
        self, gated: AdmissionRooms, room: int, *, is_called: bool
    ) -> None:
        keep(gated, prompt_tokens(gated) + MOST + room, unit=Unit.TOKENS)
        job_id = gated.submit()
        report = gated.attempt(job_id)
        if not is_called:
            assert_refused(gated, job_id, report)
            return
        assert report.outcome is Outcome.SUCCEEDED
        (line,) = gated.lines()
        tokens = line["input_tokens"] + line["cached_input_tokens"] + line["output_tokens"]
        assert {(sums.settled_tokens, *sums.held) for sums in assert_balanced(gated.engine).values()} == {
            (tokens, 0, 0)
        }

    @pytest.mark.parametrize(
        ("period", "moved", "by", "is_called"),
        [
            (Period.DAY, "day", "1 day", True),
            (Period.MONTH, "day", "1 day", False),
            (Period.MONTH, "month", "1 month", True),
        ],
    )
    def test_what_was_spent_in_an_earlier_period_leaves_room(
        self, gated: AdmissionRooms, period: Period, moved: str, by: str, *, is_called: bool
    ) -> None:
        keep(gated, bound(gated), period=period)
        assert gated.attempt(gated.submit()).outcome is Outcome.SUCCEEDED
        refused, later = gated.submit(), gated.submit()
        assert_refused(gated, refused, gated.attempt(refused), calls=1)
        with gated.engine.begin() as connection:
            moving = text("UPDATE spending SET starts = starts - CAST(:by AS interval) WHERE period = :period")
            connection.execute(moving, {"by": by, "period": moved})
        assert (gated.attempt(later).outcome is Outcome.SUCCEEDED) is is_called

    def test_the_quota_and_the_breakers_probe_are_given_back(self, gated: AdmissionRooms) -> None:
        def level() -> float:
            return float(str(gated.gates.hget("{penstock:quota:steady}:levels", "requests.level")))

        gated.attempt_at(START_MS, gated.submit(tier="steady", tenant="other"))
        gated.trip("steady", now_ms=START_MS - 5_000)
        before = level()
        keep(gated, bound(gated) - 1)
        job_id = gated.submit(tier="steady")
        assert_refused(gated, job_id, gated.attempt_at(START_MS, job_id), calls=1)
        assert (level(), gated.places("steady")) == (before, 0)
        assert gated.breaker("steady").state is BreakerState.HALF_OPEN
        keep(gated, bound(gated))
        assert gated.attempt_at(START_MS, gated.submit(tier="steady")).outcome is Outcome.SUCCEEDED
        assert gated.breaker("steady").state is BreakerState.CLOSED
        assert level() == before - 1

    def test_a_dead_job_that_is_replayed_under_a_higher_limit_is_served(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated) - 1)
        job_id = gated.submit()
        gated.attempt(job_id)
        keep(gated, bound(gated))
        assert gated.attempt(job_id).outcome is None
        with gated.engine.begin() as connection:
            assert dead_letters.replay(connection, [job_id]) == [job_id]
        gated.release(job_id)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert (gated.job(job_id).reason, gated.calls(), len(gated.ledger(job_id))) == (None, 1, 1)

    def test_a_budget_that_changes_between_two_attempts_of_a_process_acts_at_once(self, gated: AdmissionRooms) -> None:
        async def change_twice(house: House) -> list[Outcome | None]:
            seen = [(await run(house, gated.submit())).outcome]
            keep(gated, 0)
            seen.append((await run(house, gated.submit())).outcome)
            keep(gated, None)
            return [*seen, (await run(house, gated.submit())).outcome]

        assert gated.with_house(change_twice) == [Outcome.SUCCEEDED, Outcome.DEAD, Outcome.SUCCEEDED]
        assert gated.calls() == 2


class TestProjects:
    """A call counts for its tenant and for its project, and both must have room."""

    def test_an_exhausted_project_stops_its_own_jobs_alone(self, gated: AdmissionRooms) -> None:
        keep(gated, NO_LIMIT)
        keep(gated, bound(gated) - 1, project="demo")
        job_id = gated.submit(project="demo")
        report = gated.attempt(job_id)
        assert_refused(gated, job_id, report)
        assert "budget of project 'demo'" in str(report.detail)
        assert gated.attempt(gated.submit(project="main")).outcome is Outcome.SUCCEEDED
        assert gated.attempt(gated.submit()).outcome is Outcome.SUCCEEDED

    def test_an_exhausted_tenant_stops_the_jobs_of_a_project_that_has_room(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated) - 1)
        keep(gated, NO_LIMIT, project="demo")
        job_id = gated.submit(project="demo")
        assert_refused(gated, job_id, gated.attempt(job_id))

    def test_a_project_of_the_same_name_is_another_tenants(self, gated: AdmissionRooms) -> None:
        keep(gated, 0, project="demo", tenant="other")
        assert gated.attempt(gated.submit(project="demo")).outcome is Outcome.SUCCEEDED

    def test_what_a_project_spends_is_the_tenants_too(self, gated: AdmissionRooms) -> None:
        gated.attempt(gated.submit(project="demo"))
        gated.attempt(gated.submit(project="main"))
        spent: dict[tuple[str, str], Sums] = {
            (project, period): sums for (_, project, period, _), sums in assert_balanced(gated.engine).items()
        }
        costs = [line["nanodollars"] for line in gated.lines()]
        for period in ("day", "month"):
            assert spent["demo", period].settled_nanodollars == costs[0] > 0
            assert spent["main", period].settled_nanodollars == costs[1] > 0
            assert spent["", period].settled_nanodollars == sum(costs)


class TestDeployments:
    """Budgets are asked again for each deployment: another one may be cheaper."""

    def test_the_cheaper_second_answers_what_does_not_fit_at_the_dear_first(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated, rates=SECOND))
        job_id = gated.submit(tier="pair")
        report = gated.attempt(job_id)
        assert (report.outcome, report.model) == (Outcome.SUCCEEDED, "sim-second")
        assert gated.received() == {"sim-second": 1}
        (call,) = gated.ledger(job_id)
        assert (call.deployment, call.max_tokens) == ("second", MOST)
        assert call.nanodollars == gated.invoice() > 0
        assert (gated.job(job_id).attempts, gated.job(job_id).failures) == (1, 0)
        assert gated.places("first") == gated.places("second") == 0

    def test_the_dear_first_answers_while_it_fits(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated))
        assert gated.attempt(gated.submit(tier="pair")).model == "sim-first"

    def test_a_smaller_tier_answers_what_does_not_fit_at_the_larger(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated, rates=SECOND, version="1.2.0"))
        job_id = gated.submit(**MEDIUM)
        assert gated.attempt(job_id).model == "sim-second"
        (call,) = gated.ledger(job_id)
        assert (call.tier, call.deployment, gated.received()) == ("medium", "second", {"sim-second": 1})

    @pytest.mark.parametrize("job", [{"tier": "pair"}, MEDIUM], ids=["deployments", "tiers"])
    def test_a_job_that_fits_nowhere_is_dead(self, gated: AdmissionRooms, job: dict[str, str]) -> None:
        keep(gated, bound(gated, rates=SECOND, version=job.get("prompt_version", "1.1.0")) - 1)
        job_id = gated.submit(**job)
        assert_refused(gated, job_id, gated.attempt(job_id))

    def test_a_summary_is_the_last_resort_behind_the_smaller_tier(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated, rates=SECOND, version="1.2.0"), on_exhausted=OnExhausted.DEGRADE)
        first, second = gated.submit(**MEDIUM), gated.submit(**MEDIUM)
        gated.attempt(first)
        gated.attempt(second)
        degraded = [
            gated.row("SELECT degraded FROM results WHERE job_id = :id", id=each).degraded for each in (first, second)
        ]
        assert (degraded, gated.received()) == ([False, True], {"sim-second": 1})

    def test_a_failure_is_tried_again_though_the_other_deployment_does_not_fit(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated) - 1)
        gated.fault("server_error")
        job_id = gated.submit(tier="metered_last")  # the cheap one first
        report = gated.attempt(job_id)
        assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.SERVER_ERROR)
        assert (gated.job(job_id).failures, gated.received()) == (1, {"sim-second": 1})
        gated.release(job_id)
        assert gated.attempt(job_id).model == "sim-second"

    def test_a_failure_of_the_one_that_fits_is_tried_again(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated, rates=SECOND))
        gated.fault("server_error")
        job_id = gated.submit(tier="pair")
        report = gated.attempt(job_id)
        assert (report.outcome, report.reason) == (Outcome.RETRIED, Reason.SERVER_ERROR)
        assert [call.deployment for call in gated.ledger(job_id)] == ["second"]
        gated.release(job_id)
        assert gated.attempt(job_id).model == "sim-second"

    def test_a_job_waits_for_the_cheaper_one_that_is_only_busy(self, gated: AdmissionRooms) -> None:
        keep(gated, bound(gated, rates=SECOND))
        gated.trip("second", now_ms=START_MS)
        job_id = gated.submit(tier="pair")
        report = gated.attempt_at(START_MS, job_id)
        assert (report.outcome, report.reason) == (Outcome.DEFERRED, Reason.UNAVAILABLE)
        gated.release(job_id)
        assert gated.attempt_at(START_MS + 5_000, job_id).model == "sim-second"

    def test_no_job_waits_for_one_that_is_out_and_too_dear_as_well(self, gated: AdmissionRooms) -> None:
        keep(gated, 0)
        gated.trip("second", now_ms=START_MS)
        report = gated.attempt_at(START_MS, gated.submit(tier="pair"))
        assert (report.outcome, report.reason) == (Outcome.DEAD, Reason.BUDGET_EXHAUSTED)


class TestSoftLimits:
    """A soft limit stops nothing: it is told once, and marks what is paid for after it."""

    def results(self, rooms: AdmissionRooms, *jobs: UUID) -> list[bool]:
        """Give which results are marked."""
        with rooms.engine.connect() as connection:
            found = queries.get(connection, list(jobs))
        assert {job.state for job in found.values()} == {JobState.SUCCEEDED}
        return [found[job_id].over_soft_limit for job_id in jobs]

    @pytest.mark.parametrize("project", ["", "demo"])
    @pytest.mark.parametrize("period", CALENDAR)
    @pytest.mark.parametrize("unit", Unit)
    def test_the_call_that_passes_it_is_told_of_once_and_the_results_after_it_are_marked(
        self, gated: AdmissionRooms, unit: Unit, period: Period, project: str
    ) -> None:
        keep(gated, None, soft_limit=1, unit=unit, period=period, project=project)
        jobs = [gated.submit(project="demo") for _ in range(3)]
        with capture_logs() as lines:
            for job_id in jobs:
                assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        (call,) = gated.ledger(jobs[0])
        tokens = call.input_tokens + call.cached_input_tokens + call.output_tokens
        said = {"tenant": "acme", "project": project, "period": period, "unit": unit, "soft_limit": 1}
        settled = {"settled": tokens if unit is Unit.TOKENS else call.nanodollars}
        passed = [line for line in lines if line["event"] == "budget.soft_limit_passed"]
        assert passed == [{"event": "budget.soft_limit_passed", "log_level": "info"} | said | settled]
        assert self.results(gated, *jobs) == [False, True, True]

    def test_what_is_settled_at_the_limit_has_not_passed_it(self, gated: AdmissionRooms) -> None:
        first, second, third = (gated.submit() for _ in range(3))
        gated.attempt(first)
        keep(gated, None, soft_limit=gated.invoice())
        with capture_logs() as lines:
            gated.attempt(second)
        gated.attempt(third)
        assert [line["event"] for line in lines].count("budget.soft_limit_passed") == 1
        assert self.results(gated, first, second, third) == [False, False, True]

    def test_a_failure_that_costs_nothing_passes_no_limit(self, gated: AdmissionRooms) -> None:
        keep(gated, None, soft_limit=0)
        gated.fault("server_error")
        job_id = gated.submit()
        with capture_logs() as lines:
            gated.attempt(job_id)
        assert [line for line in lines if line["event"] == "budget.soft_limit_passed"] == []
        gated.release(job_id)
        gated.attempt(job_id)
        assert self.results(gated, job_id) == [False]

    def test_a_result_is_marked_too_when_a_later_attempt_finds_the_answer_that_was_paid_for(
        self, gated: AdmissionRooms
    ) -> None:
        gated.attempt(gated.submit())
        keep(gated, None, soft_limit=0)
        job_id = gated.submit()

        async def die_after_settlement(house: House) -> None:
            job = await house.journal.claim.add(Claim(job_id, house.worker))
            assert job is not None
            context = CallContext(job_id=job.id, fence=job.fence, tenant=job.tenant, tier=job.tier, is_fresh=True)
            asked = CompletionRequest(
                prompt=job.prompt, variables=job.variables, document=job.document, context=context
            )
            assert (await complete(house, asked)).over_soft_limit

        gated.with_house(die_after_settlement)
        gated.lose_worker()
        gated.release(job_id)
        assert gated.attempt(job_id).outcome is Outcome.SUCCEEDED
        assert (gated.calls(), self.results(gated, job_id)) == (2, [True])
