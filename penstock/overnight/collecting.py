"""Fills a parcel: which jobs go into the file, each with its call written down. It must not know how a file is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import Connection

from penstock import ai, telemetry
from penstock.call import bound_of
from penstock.documents.division import is_long
from penstock.errors import ConfigurationError, InvalidRequestError, ProviderError
from penstock.failpoints import Failpoint, reach
from penstock.jobs import parcels
from penstock.jobs.execution import ClaimedJob, Ending, Outcome, finish
from penstock.jobs.parcel import Parcel, ParcelState, Request, Wish
from penstock.money import ledger
from penstock.money.holds import Hold, Shortfall
from penstock.money.ledger import Intent, Verdict
from penstock.money.recollection import Question, recall
from penstock.overnight.desk import Desk
from penstock.providers.base import Deployment
from penstock.schemas import ModelRequest, RenderedPrompt

JOBS_A_CHUNK = 200


@dataclass(frozen=True)
class Planned:
    """A job that is to go into the file: its call, what it asks, and how many bytes its line has."""

    intent: Intent
    digest: str
    bytes: int


@dataclass
class Plan:
    """What is to become of jobs that nobody has claimed yet.

    Those `passed` over take the way of live calls. `repeats` ask what another request of the batch asks: they wait for
    that one's answer. Whoever is in none of the lists is left for a later file.
    """

    planned: list[Planned] = field(default_factory=list)
    repeats: list[tuple[UUID, str]] = field(default_factory=list)
    passed: list[UUID] = field(default_factory=list)
    is_full: bool = False

    @property
    def job_ids(self) -> list[UUID]:
        """Name all jobs of the plan."""
        return [each.intent.job_id for each in self.planned] + [job_id for job_id, _ in self.repeats] + self.passed


async def open_parcels(desk: Desk) -> int:
    """Begin a parcel for each batch that wishes for one and has the time; the others take the way of live calls."""
    wishes = await desk.transact(parcels.wishes, rest_s=desk.terms.rest_s)
    opened = 0
    for wish in wishes:
        opened += await desk.transact(_open, desk, wish)
        reach(Failpoint.PARCEL_OPENED)
    return opened


def _open(connection: Connection, desk: Desk, wish: Wish) -> bool:
    """Open a parcel, and tell whether that was done."""
    deployment = _find_deployment(desk, wish.tier)
    window = timedelta(seconds=desk.terms.window_s)
    if deployment is None or (wish.due_by is not None and wish.now + window > wish.due_by):
        parcels.take_live(connection, wish.batch_id)
        return False
    send_by = wish.now + timedelta(seconds=desk.terms.patience_s)
    if wish.due_by is not None:
        send_by = min(send_by, wish.due_by - window)
    ends_by = wish.due_by or send_by + window
    return parcels.open_parcel(connection, wish, deployment.name, send_by=send_by, ends_by=ends_by) is not None


def _find_deployment(desk: Desk, tier: str) -> Deployment | None:
    """Find the first deployment of a tier that takes files and has a price for them."""
    for deployment in desk.deployments(tier):
        if desk.files.takes(deployment) and desk.price(deployment.name).batch_discount is not None:
            return deployment
    return None


async def collect(desk: Desk, parcel: Parcel) -> None:
    """Put some more jobs into the file, or seal it where it is full or there are none."""
    jobs: dict[int, ClaimedJob] = {}
    if parcel.may_go and parcel.now < parcel.send_by:
        jobs = await desk.transact(parcels.candidates, parcel, most=JOBS_A_CHUNK)
    if jobs:
        try:
            plan = await _plan(desk, parcel, desk.deployment(parcel), list(jobs.values()))
        except ProviderError as error:
            await desk.refuse(parcel, error)
            return
        parcel = await desk.transact(_fill, replace(parcel, looked_to=max(jobs)), plan)
        reach(Failpoint.PARCEL_FILLED)
    else:
        parcel = await desk.keep(parcel, state=ParcelState.SEALED)
        reach(Failpoint.PARCEL_SEALED)
    if parcel.state is ParcelState.SEALED:
        telemetry.emit(
            "parcel.sealed",
            parcel=str(parcel.id),
            batch=str(parcel.batch_id),
            deployment=parcel.deployment,
            requests=parcel.requests,
            bytes=parcel.bytes,
        )


async def _plan(desk: Desk, parcel: Parcel, deployment: Deployment, jobs: Sequence[ClaimedJob]) -> Plan:
    """Say what becomes of each job, up to what the file can still take."""
    plan = Plan()
    questions = {job.id: await _render(desk, parcel, deployment, job) for job in jobs}
    digests = {job_id: ai.digest_of(rendered) for job_id, rendered in questions.items() if rendered is not None}
    asked = await desk.transact(parcels.asked, parcel, set(digests.values()))
    known = await _known(desk, [job for job in jobs if job.id in digests], digests)
    left, left_bytes = desk.terms.most_requests - parcel.requests, desk.terms.most_bytes - parcel.bytes
    for job in jobs:
        rendered, digest = questions[job.id], digests.get(job.id, "")
        planned = None if rendered is None else _planned(desk, deployment, job, rendered, digest)
        if planned is None or job.id in known or planned.bytes > desk.terms.most_bytes:
            plan.passed.append(job.id)
        elif digest in asked and not job.is_fresh:
            plan.repeats.append((job.id, digest))
        elif left < 1 or planned.bytes > left_bytes:
            plan.is_full = True
            return plan
        else:
            plan.planned.append(planned)
            asked.add(digest)
            left, left_bytes = left - 1, left_bytes - planned.bytes
    return plan


async def _render(desk: Desk, parcel: Parcel, deployment: Deployment, job: ClaimedJob) -> RenderedPrompt | None:
    """Make the messages of a job; None where it cannot wait so long, or only a live call can tell what is wrong."""
    if job.deadline is not None and job.deadline <= parcel.ends_by:
        return None
    try:
        rendered = ai.find_prompt(desk.house, job.prompt).render(job.variables, job.document)
    except (ConfigurationError, InvalidRequestError):
        return None
    most = sum(len(message.content.encode()) for message in rendered.messages) + rendered.max_tokens
    if is_long(most, deployment.capacity):  # a token has a byte at least
        counted = await desk.house.provider.count_tokens(deployment, rendered.messages)
        if is_long(counted + rendered.max_tokens, deployment.capacity):
            return None
    return rendered


async def _known(desk: Desk, jobs: Sequence[ClaimedJob], digests: Mapping[UUID, str]) -> set[UUID]:
    """Name the jobs that need no call of their own: their question was answered, or another job is asking it."""
    models = desk.house.catalogue.models(jobs[0].tier) if jobs else ()
    questions = [
        Question(job.id, digests[job.id], job.tenant, job.tier, () if job.is_fresh else models) for job in jobs
    ]
    found = await desk.transact(recall, questions)
    return {job.id for job, each in zip(jobs, found, strict=True) if each.answer is not None or each.is_in_flight}


def _planned(
    desk: Desk, deployment: Deployment, job: ClaimedJob, rendered: RenderedPrompt, digest: str
) -> Planned | None:
    """Plan a call at the price of a batch, whose answer is not cut short by a budget; None if it cannot be written."""
    price = desk.price(deployment.name)
    request = request_of(uuid4(), rendered, min(rendered.max_tokens, deployment.max_output_tokens), desk.terms.window_s)
    try:
        line = desk.files.encode(deployment, request)
    except ProviderError:
        return None
    intent = Intent(
        call_id=request.call_id,
        job_id=job.id,
        fence=0,
        tenant=job.tenant,
        project=job.project,
        prompt_id=job.prompt.id,
        prompt_version=job.prompt.version,
        tier=job.tier,
        deployment=deployment.name,
        account=deployment.account,
        model_asked=deployment.model,
        price_version=price.version,
        bound=bound_of(rendered, price, is_batch=True),
        max_tokens=request.max_tokens,
        least_max_tokens=request.max_tokens,
        batch_id=job.batch_id,
    )
    return Planned(intent, digest, len(line))


def request_of(call_id: UUID, rendered: RenderedPrompt, max_tokens: int, timeout_s: float) -> ModelRequest:
    """Give the request of a call."""
    return ModelRequest(
        call_id=call_id,
        messages=rendered.messages,
        max_tokens=max_tokens,
        output_schema=rendered.output_schema,
        timeout_s=timeout_s,
    )


def _fill(connection: Connection, parcel: Parcel, plan: Plan) -> Parcel:
    """Claim the jobs, write their calls down and put them into the file: one transaction, in which nothing is sent.

    No other call waits for one of these, which may take a day: they name no question in the ledger.
    """
    fences = parcels.take(connection, parcel, plan.job_ids)
    planned = [
        replace(each, intent=replace(each.intent, fence=fences[each.intent.job_id]))
        for each in plan.planned
        if each.intent.job_id in fences
    ]
    verdicts = ledger.intend(connection, [each.intent for each in planned])
    held = [each for each, verdict in zip(planned, verdicts, strict=True) if isinstance(verdict, Hold)]
    passed = [
        *(job_id for job_id in plan.passed if job_id in fences),
        *(each.intent.job_id for each, verdict in zip(planned, verdicts, strict=True) if _is_final(verdict)),
    ]
    parcels.put(connection, parcel, _requests(fences, held, plan, passed))
    finish(connection, [Ending(job_id, fences[job_id], Outcome.DEFERRED) for job_id in passed])
    settled = {*passed, *(each.intent.job_id for each in held), *(job_id for job_id, _ in plan.repeats)}
    back = [(job_id, fence) for job_id, fence in fences.items() if job_id not in settled]
    parcels.put_back(connection, back)
    filled = replace(
        parcel,
        requests=parcel.requests + len(held),
        bytes=parcel.bytes + sum(each.bytes for each in held),
        state=ParcelState.SEALED if plan.is_full or back else ParcelState.COLLECTING,
    )
    parcels.keep(connection, filled)
    return filled


def _is_final(verdict: Verdict) -> bool:
    """Tell a budget that is used up from one that others hold: a later file may find room there."""
    return isinstance(verdict, Shortfall) and not verdict.may_pass


def _requests(fences: Mapping[UUID, int], held: Sequence[Planned], plan: Plan, passed: Sequence[UUID]) -> list[Request]:
    return [
        *(Request(each.intent.job_id, each.intent.fence, each.intent.call_id, each.digest) for each in held),
        *(Request(job_id, fences[job_id], None, digest) for job_id, digest in plan.repeats if job_id in fences),
        *(Request(job_id, fences[job_id], None, "", is_open=False) for job_id in passed),
    ]
