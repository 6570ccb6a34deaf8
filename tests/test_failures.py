"""What a provider does, and what follows, line by line over HTTP; docs/failures.md says the same.

Each behaviour meets one attempt of a job whose tier has one deployment and whose prompt names no other tier.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from penstock.attempt import run
from penstock.errors import Reason
from penstock.gates.breaker import BreakerState
from penstock.house import House
from penstock.jobs.execution import Outcome
from penstock.providers.simulator.faults import KINDS, Stage
from penstock.retry import TREATMENTS, Kind
from penstock.schemas import OnUnavailable
from tests import admission_rooms
from tests.admission_rooms import KEYS, AdmissionRooms, Told

PAGE = Path(__file__).parent.parent / "docs" / "failures.md"
SOON_S = 2.0
HASTY_S = 0.5
"""The timeout of the tier `hasty`."""

RETRIED, DEAD, SUCCEEDED = Outcome.RETRIED, Outcome.DEAD, Outcome.SUCCEEDED
SCHEMA = {"prompt": "extract_metadata", "prompt_version": None}
HASTY = {"tier": "hasty"}
TOLD = {"tier": "told"}

provider, told, addresses, gated = admission_rooms.FIXTURES

Prepare = Callable[[AdmissionRooms, Told], object]


class Bill(StrEnum):
    """What the ledger says of the call."""

    FREE = "nothing"
    PAID = "what was used"
    BOUND = "its upper bound, for nobody knows"


@dataclass(frozen=True)
class Behaviour:
    """What a provider does, and everything that follows from it."""

    did: str
    prepare: Prepare
    reason: Reason | None
    outcome: Outcome
    bill: Bill
    failures: int = 0
    trips: bool = False
    requests: int = 1
    at_least_s: float = 0.0
    at_most_s: float = SOON_S
    job: dict[str, Any] | None = None


def fault(name: str, **parameters: Any) -> Prepare:
    return lambda rooms, _: rooms.fault(name, **parameters)


def replies(body: object, status: int = 200, **headers: str) -> Prepare:
    return lambda _, server: server.answers(body, status=status, headers=headers)


def says(content: str | None, finish_reason: str = "stop", **changes: Any) -> Prepare:
    return lambda _, server: server.says(content, finish_reason, **changes)


def nothing(_rooms: AdmissionRooms, _server: Told) -> None:
    pass


def used_up(max_tokens: int, **limits: int) -> Prepare:
    """Lower a limit, and use up what it allows at once."""

    def prepare(rooms: AdmissionRooms, _: Told) -> None:
        rooms.limit("sim-first", **limits)
        rooms.http.post(**request_of(rooms, max_tokens=max_tokens, headers={})).raise_for_status()

    return prepare


def occupied(rooms: AdmissionRooms, _: Told) -> None:
    """Allow one call in flight, and have it."""
    rooms.limit("sim-first", max_concurrency=1)
    slow = {"X-Simulator-Fault": "drip;interval_ms=100"}
    rooms.held.enter_context(rooms.http.stream("POST", **request_of(rooms, max_tokens=10, headers=slow)))


def request_of(rooms: AdmissionRooms, *, max_tokens: int, headers: dict[str, str]) -> dict[str, Any]:
    """Give a request under the same account."""
    body = {"model": "sim-first", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hello."}]}
    bearer = {"Authorization": f"Bearer {KEYS['ADMISSION_FIRST_KEY']}"}
    return {"url": f"{rooms.simulator}/v1/chat/completions", "json": body, "headers": bearer | headers}


def permanent(did: str, prepare: Prepare, reason: Reason, bill: Bill = Bill.FREE, **more: Any) -> Behaviour:
    return Behaviour(did, prepare, reason, DEAD, bill, failures=1, **more)


def transient(did: str, prepare: Prepare, reason: Reason, bill: Bill, **more: Any) -> Behaviour:
    return Behaviour(did, prepare, reason, RETRIED, bill, failures=1, **more)


def ill(did: str, prepare: Prepare, reason: Reason, bill: Bill, **more: Any) -> Behaviour:
    return transient(did, prepare, reason, bill, trips=True, **more)


def throttled(did: str, prepare: Prepare) -> Behaviour:
    return Behaviour(did, prepare, Reason.THROTTLED, RETRIED, Bill.FREE)


TIMED_OUT: dict[str, Any] = {"job": HASTY, "at_least_s": HASTY_S, "at_most_s": HASTY_S + 1}
UNHEARD: dict[str, Any] = {"job": {"tier": "closed"}, "requests": 0, "at_most_s": 1.0}
"""Nobody counts here: only the time would tell of a second try, before which clients wait for a second."""
NO_USAGE: dict[str, Any] = {"usage": None}

BEHAVIOURS = (
    throttled("429", fault("throttled")),
    throttled("429 with Retry-After", fault("throttled", retry_after=3)),
    throttled("429 for too many requests", used_up(10, rpm=6)),
    throttled("429 for too many tokens", used_up(1000, tpm=6000)),
    throttled("429 for too many calls in flight", occupied),
    throttled("429 for more tokens than a minute has", lambda rooms, _: rooms.limit("sim-first", tpm=100)),
    ill("503", fault("unavailable"), Reason.OVERLOADED, Bill.FREE),
    ill("503 with Retry-After", fault("outage", retry_after=9), Reason.OVERLOADED, Bill.FREE),
    ill("529", fault("overloaded"), Reason.OVERLOADED, Bill.FREE),
    ill("500", fault("server_error"), Reason.SERVER_ERROR, Bill.FREE),
    ill("409", fault("conflict"), Reason.SERVER_ERROR, Bill.FREE),
    ill("502", fault("bad_gateway"), Reason.SERVER_ERROR, Bill.BOUND),
    ill("408", fault("request_timeout"), Reason.TIMEOUT, Bill.BOUND),
    ill("504", fault("gateway_timeout"), Reason.TIMEOUT, Bill.BOUND),
    ill("no byte within the tier's `timeout_s`", fault("hang"), Reason.TIMEOUT, Bill.BOUND, **TIMED_OUT),
    ill("an answer that drips past it", fault("drip", interval_ms=20), Reason.TIMEOUT, Bill.BOUND, **TIMED_OUT),
    ill("an answer later than it", fault("latency", extra_ms=900), Reason.TIMEOUT, Bill.BOUND, **TIMED_OUT),
    ill("nobody listens", nothing, Reason.CONNECTION, Bill.FREE, **UNHEARD),
    ill("a reset", fault("reset"), Reason.CONNECTION, Bill.BOUND),
    ill("a reset in an outage", fault("outage", mode="refuse"), Reason.CONNECTION, Bill.BOUND),
    ill("a connection closed before a byte", fault("hang", hold_s=0), Reason.CONNECTION, Bill.BOUND),
    ill("an answer that got lost", fault("lost_answer"), Reason.CONNECTION, Bill.BOUND),
    ill("an answer cut in its middle", fault("cut"), Reason.CONNECTION, Bill.BOUND),
    transient("200 with a page of HTML", fault("html"), Reason.MALFORMED_ANSWER, Bill.BOUND),
    transient("no choices", fault("empty_choices"), Reason.MALFORMED_ANSWER, Bill.PAID),
    transient("no content", fault("wrong_schema", mode="null"), Reason.MALFORMED_ANSWER, Bill.PAID),
    transient("no usage", says("Text.", **NO_USAGE), Reason.MALFORMED_ANSWER, Bill.BOUND, job=TOLD),
    transient(
        "an answer that breaks the schema",
        fault("wrong_schema", mode="json"),
        Reason.OUTPUT_INVALID,
        Bill.PAID,
        job=SCHEMA,
    ),
    transient("an empty answer", says("  \n"), Reason.OUTPUT_INVALID, Bill.PAID, job=TOLD),
    permanent("an answer cut at `max_tokens`", nothing, Reason.OUTPUT_TRUNCATED, Bill.PAID, job={"tier": "curt"}),
    permanent("400", fault("bad_request"), Reason.BAD_REQUEST),
    permanent("413, 422, another 4xx", replies("Too large.", 413), Reason.BAD_REQUEST, job=TOLD),
    permanent("a redirect", replies("", 307, location="/elsewhere"), Reason.BAD_REQUEST, Bill.BOUND, job=TOLD),
    permanent("400 `context_length_exceeded`", fault("context_length"), Reason.CONTEXT_LENGTH),
    permanent("400 `content_filter`", fault("content_filter"), Reason.CONTENT_POLICY),
    permanent("an answer that it withheld", says("", "content_filter"), Reason.CONTENT_POLICY, Bill.PAID, job=TOLD),
    permanent("401", fault("unauthorized"), Reason.AUTHENTICATION),
    permanent("403", fault("forbidden"), Reason.AUTHENTICATION),
    permanent("404", fault("model_not_found"), Reason.MODEL_NOT_FOUND),
    permanent("402", fault("payment_required"), Reason.QUOTA_EXHAUSTED),
    permanent("429 `insufficient_quota`", fault("insufficient_quota"), Reason.QUOTA_EXHAUSTED),
    Behaviour("an answer", nothing, None, SUCCEEDED, Bill.PAID),
    Behaviour("a late answer", fault("latency", extra_ms=300), None, SUCCEEDED, Bill.PAID, at_least_s=0.3),
    Behaviour("an answer that drips, in time", fault("drip", interval_ms=0), None, SUCCEEDED, Bill.PAID),
)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.did)
def test_what_a_provider_does_has_exactly_these_consequences(
    gated: AdmissionRooms, told: Told, behaviour: Behaviour
) -> None:
    behaviour.prepare(gated, told)
    requests_before, owed_before = gated.calls(), gated.invoice()
    job_id = gated.submit(**(behaviour.job or {}))
    report, took_s = gated.timed_attempt(job_id)

    assert (report.outcome, report.reason) == (behaviour.outcome, behaviour.reason)
    job = gated.job(job_id)
    assert (job.state, job.reason) == (behaviour.outcome.state, behaviour.reason)
    assert (job.attempts, job.failures) == (1, behaviour.failures)
    assert gated.calls() - requests_before + len(told.requests) == behaviour.requests
    assert behaviour.at_least_s <= took_s < behaviour.at_most_s

    (call,) = gated.ledger(job_id)
    owed = gated.invoice() - owed_before + told.nanodollars * len(told.requests)
    billed = {Bill.FREE: 0, Bill.PAID: owed, Bill.BOUND: call.upper_bound_nanodollars}
    assert (call.state, call.reason) == ("unknown" if behaviour.bill is Bill.BOUND else "settled", behaviour.reason)
    assert call.nanodollars == billed[behaviour.bill]
    assert (owed > 0) >= (behaviour.bill is Bill.PAID)
    assert call.nanodollars >= owed

    breaker = gated.breaker(call.deployment)
    assert (breaker.state, breaker.failures_in_a_row) == (BreakerState.CLOSED, int(behaviour.trips))
    assert (breaker.failures, breaker.calls) == (int(behaviour.trips), int(behaviour.trips or is_well(behaviour)))
    assert gated.places("first") == 0


def is_well(behaviour: Behaviour) -> bool:
    """Tell whether it was an answer, good or bad, and so a sign of life."""
    return behaviour.bill is Bill.PAID and behaviour.reason is not Reason.MALFORMED_ANSWER


def test_every_fault_of_the_simulator_is_in_the_table() -> None:
    tried: set[str] = set()

    class Names:
        def fault(self, name: str, **_: Any) -> None:
            tried.add(name)

    for behaviour in BEHAVIOURS:
        if behaviour.prepare.__qualname__.startswith("fault."):
            behaviour.prepare(Names(), None)  # type: ignore[arg-type]
    of_calls = {name for name, kind in KINDS.items() if kind.stage not in {Stage.BATCH, Stage.LINE}}
    assert tried == of_calls - {"enqueued_tokens"}  # what only a batch meets is tried in tests/overnight


@pytest.mark.parametrize("behaviour", [each for each in BEHAVIOURS if each.reason], ids=lambda each: each.did)
def test_the_code_treats_each_reason_as_its_behaviours_say(behaviour: Behaviour) -> None:
    assert behaviour.reason is not None
    treatment = TREATMENTS[behaviour.reason]
    dies, spends = treatment.kind is Kind.PERMANENT, treatment.kind is not Kind.THROTTLED
    assert (dies, spends) == (behaviour.outcome is DEAD, behaviour.failures == 1)
    assert treatment.trips is behaviour.trips


@pytest.mark.parametrize("name", ["server_error", "html", "wrong_schema"])
def test_the_last_failure_that_the_tier_allows_is_the_death(gated: AdmissionRooms, name: str) -> None:
    job_id = gated.submit(**SCHEMA)
    seen = []
    for _ in range(3):
        gated.fault(name)
        report = gated.attempt(job_id)
        seen.append((report.outcome, gated.job(job_id).failures))
        gated.release(job_id) if report.outcome is RETRIED else None
    assert seen == [(RETRIED, 1), (RETRIED, 2), (DEAD, 3)]
    assert (gated.job(job_id).reason, gated.calls()) == (report.reason, 3)


def test_failures_in_a_row_open_the_breaker_and_a_malformed_answer_between_them_changes_nothing(
    gated: AdmissionRooms,
) -> None:
    faults = ["server_error", "html", "overloaded", "throttled", "reset", "bad_request", "unavailable", "conflict"]

    async def meet(house: House) -> list[tuple[int, str]]:
        seen = []
        for name in faults:
            gated.fault(name)
            await run(house, gated.submit())
            status = gated.breaker("first")
            seen.append((status.failures_in_a_row, status.state.value))
            gated.gates.delete("{penstock:quota:first}:levels")  # a 429 froze it
        return seen

    assert [row for row, _ in gated.with_house(meet)] == [1, 1, 2, 2, 3, 3, 4, 5]
    assert gated.breaker("first").state is BreakerState.OPEN


def test_an_answer_ends_a_row_of_failures(gated: AdmissionRooms) -> None:
    for name in ("server_error", "reset"):
        gated.fault(name)
        gated.attempt(gated.submit())
    assert gated.breaker("first").failures_in_a_row == 2
    assert gated.attempt(gated.submit()).outcome is SUCCEEDED
    assert gated.breaker("first").failures_in_a_row == 0


OTHERS = {
    Reason.LIMITED: "nothing: the quota has no room, or the tenant has its calls in flight",
    Reason.LIMITER_AWAY: "nothing: Redis is away, and with it what the quota has left",
    Reason.UNAVAILABLE: "nothing: the breakers of all deployments are open",
    Reason.TOO_LARGE: "nothing: the request needs more than a minute of any quota gives",
    Reason.IN_FLIGHT: "nothing: another job of the tenant is asking the same",
    Reason.BUDGET_HELD: "nothing: calls under way hold what is left of a hard budget",
    Reason.BUDGET_EXHAUSTED: "nothing: too little is left of a hard budget",
    Reason.DEADLINE: "nothing in time: a wait or a backoff would end after the job's deadline",
    Reason.INVALID: "nothing: the request was refused at Celery's door",
    Reason.TIME_LIMIT: "it was still being asked when the run's own time was up",
    Reason.INTERNAL: "perhaps nothing: something of ours broke",
    Reason.WORKER_LOST: "unknown: the worker died, or was away for longer than its lease",
    Reason.POISON: "unknown: the job's third worker died",
}
CRASH = ("again; crashes are counted apart from failures", "no")
THEN = {
    Reason.LIMITED: ("waits as a row until the quota has room", "no"),
    Reason.LIMITER_AWAY: ("waits as a row, 2 s in batch, 1 s in interactive", "no"),
    Reason.UNAVAILABLE: ("waits as a row for the next probe; with `degrade` or `fail` dead at once", "no"),
    Reason.TOO_LARGE: ("dead at once", "no"),
    Reason.IN_FLIGHT: ("waits as a row, half a second at first, for the answer or its turn", "no"),
    Reason.BUDGET_HELD: ("waits as a row, 1 s at a time", "no"),
    Reason.BUDGET_EXHAUSTED: ("dead at once", "no"),
    Reason.DEADLINE: ("dead at once", "no"),
    Reason.INVALID: ("dead at once", "no"),
    Reason.WORKER_LOST: CRASH,
    Reason.POISON: ("dead at once", "no"),
}
BY_KIND = {
    Kind.PERMANENT: ("dead at once", "yes"),
    Kind.TRANSIENT: ("again after a backoff; dead at `max_failures`", "yes"),
    Kind.THROTTLED: ("again when the provider says, or in 1 to 2 s; never dead of it", "no"),
}


def reason_table() -> list[str]:
    """Say in Markdown what follows from each reason."""
    rows = ["| what the provider did | reason | elsewhere at once | then | a failure | breaker | summary |"]
    rows += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for reason, treatment in TREATMENTS.items():
        did = OTHERS.get(reason) or "; ".join(each.did for each in BEHAVIOURS if each.reason is reason)
        then, spends = THEN.get(reason) or BY_KIND[treatment.kind]
        marks = [tick(treatment.elsewhere), then, spends, tick(treatment.trips), tick(treatment.degrades)]
        rows.append("| " + " | ".join([did, f"`{reason}`", *marks]) + " |")
    return rows


def bill_table() -> list[str]:
    """Say in Markdown what each behaviour costs."""
    rows = ["| the ledger says | what the provider did |", "| --- | --- |"]
    return rows + [
        f"| {bill.value} | " + "; ".join(each.did for each in BEHAVIOURS if each.bill is bill) + " |" for bill in Bill
    ]


def tick(yes: bool) -> str:  # noqa: FBT001 - it is all that it says
    return "yes" if yes else "no"


@pytest.mark.parametrize("table", [reason_table, bill_table])
def test_the_page_has_the_tables_that_code_and_behaviours_make(table: Callable[[], Iterable[str]]) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert [row for row in table() if row not in written.splitlines()] == []


def test_the_page_has_no_row_that_code_and_behaviours_do_not_make() -> None:
    written = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    assert written == [*reason_table(), *bill_table()]


def test_every_reason_is_in_the_page_once() -> None:
    named = re.findall(r"\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"))
    assert sorted(named) == sorted(Reason)
    assert set(OTHERS) == set(Reason) - {each.reason for each in BEHAVIOURS}
    assert set(THEN) <= set(OTHERS)


def test_what_a_job_accepts_is_named_in_the_page() -> None:
    assert all(f"`{choice}`" in PAGE.read_text(encoding="utf-8") for choice in OnUnavailable)
