"""What a tenant's share pays: the estimate at first, the truth at the end, both divided by its weight."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from penstock.errors import Reason
from penstock.jobs import execution, release
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome
from penstock.jobs.release import Allowance, Share
from penstock.schemas import Lane
from tests.jobs import rows

SIZES = {"tiny": 500, "small": 1_500, "middle": 3_000, "large": 10_000}
ANSWER, BOUND = 120, 768
"""What a summary has, and what is estimated for it: the prompt's `max_tokens`."""


def backlog(engine: Engine, number: int, **changes: Any) -> None:
    rows.submit(engine, *[rows.new_job(lane=Lane.BATCH, **changes) for _ in range(number)])


def run(engine: Engine, jobs: int, **allowed: Any) -> list[ClaimedJob]:
    """Release batch jobs and claim each."""
    rows.start_worker(engine)
    with engine.begin() as connection:
        released = release.release_fairly(connection, "small", Lane.BATCH, Allowance(jobs, **allowed))
    with engine.begin() as connection:
        claimed = execution.claim(connection, [Claim(found.job_id, "w1") for found in released])
    running = [job for job in claimed if job is not None]
    assert len(running) == len(released)
    return running


def end(engine: Engine, endings: Iterable[Ending]) -> None:
    with engine.begin() as connection:
        assert all(execution.finish(connection, list(endings)))


def success(job: ClaimedJob, used_tokens: int, weight: float = 1.0) -> Ending:
    return Ending(job.id, job.fence, Outcome.SUCCEEDED, result="r", used_tokens=used_tokens, weight=weight)


def jain(shares: Iterable[float]) -> float:
    """Give Jain's fairness index: 1 when all shares are equal, 1/n when one has everything."""
    shares = list(shares)
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def test_a_release_charges_the_estimate_and_remembers_it(engine: Engine) -> None:
    backlog(engine, 2, estimated_tokens=700)
    (job,) = run(engine, 1)
    assert rows.row(engine, job.id)["charged_tokens"] == 700
    assert rows.served_tokens(engine) == {"acme": 700, "": 0}


@pytest.mark.parametrize(("used", "stands_at"), [(700, 700), (150, 150), (2_000, 2_000), (0, 0)])
def test_the_end_of_a_job_puts_the_truth_in_the_place_of_the_estimate(
    engine: Engine, used: int, stands_at: int
) -> None:
    backlog(engine, 1, estimated_tokens=700)
    (job,) = run(engine, 1)
    end(engine, [success(job, used)])
    assert rows.served_tokens(engine) == {"acme": stands_at, "": 0}
    assert rows.row(engine, job.id)["charged_tokens"] == 0


def test_estimate_and_truth_are_divided_by_the_weight(engine: Engine) -> None:
    backlog(engine, 1, estimated_tokens=600)
    (job,) = run(engine, 1, shares={"acme": Share(weight=3.0)})
    assert rows.served_tokens(engine)["acme"] == 200
    end(engine, [success(job, 900, weight=3.0)])
    assert rows.served_tokens(engine)["acme"] == 300


def test_a_batch_of_ends_corrects_each_share_once_by_their_sum(engine: Engine) -> None:
    for tenant in ("a", "b"):
        backlog(engine, 2, tenant=tenant, estimated_tokens=500)
    end(engine, [success(job, 100 if job.tenant == "a" else 800) for job in run(engine, 4)])
    served = rows.served_tokens(engine)
    assert (served["a"], served["b"]) == (200, 1_600)


@pytest.mark.parametrize("outcome", [Outcome.RETRIED, Outcome.HANDED_BACK])
def test_a_job_that_is_tried_again_is_charged_once_and_corrected_at_its_end(engine: Engine, outcome: Outcome) -> None:
    backlog(engine, 1, estimated_tokens=700)
    (job,) = run(engine, 1)
    end(engine, [Ending(job.id, job.fence, outcome, used_tokens=9_999)])
    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (700, 700)

    again = rows.claim_again(engine, job.id)
    assert rows.served_tokens(engine)["acme"] == 700

    end(engine, [success(again, 150)])
    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (150, 0)


def test_a_death_has_paid_its_estimate(engine: Engine) -> None:
    backlog(engine, 1, estimated_tokens=700)
    (job,) = run(engine, 1)
    end(engine, [Ending(job.id, job.fence, Outcome.DEAD, Reason.OUTPUT_INVALID)])
    assert (rows.served_tokens(engine)["acme"], rows.row(engine, job.id)["charged_tokens"]) == (700, 0)


def test_a_job_that_was_born_released_has_no_charge_and_no_correction(engine: Engine) -> None:
    job = rows.running_job(engine)
    end(engine, [success(job, 5_000)])
    assert rows.everything(engine)["tenant_shares"] == []


def test_an_end_that_comes_too_late_corrects_nothing(engine: Engine) -> None:
    backlog(engine, 1, estimated_tokens=700)
    (job,) = run(engine, 1)
    end(engine, [success(job, 150)])
    before = rows.everything(engine)
    with engine.begin() as connection:
        assert execution.finish(connection, [success(job, 9_000)]) == [False]
    assert rows.everything(engine) == before


def test_shares_are_corrected_in_one_order_interactive_first_and_then_by_tenant(engine: Engine) -> None:
    """Hold the share in the middle: those before it are taken, and those behind it are free."""
    jobs = {}
    for lane in Lane:
        for tenant in ("a", "b", "c"):
            job = rows.new_job(lane=lane, tenant=tenant)
            rows.submit(engine, job, window=0)
            jobs[lane, tenant] = job.id
    rows.start_worker(engine)
    with engine.begin() as connection:
        for lane in Lane:
            release.release_fairly(connection, "small", lane, Allowance(9))
        claimed = execution.claim(connection, [Claim(job_id, "w1") for job_id in jobs.values()])
    endings = [success(job, 1) for job in claimed if job is not None]
    random.Random(7).shuffle(endings)

    def lock(connection: Connection, lane: Lane, tenant: str) -> None:
        connection.execute(
            text("SELECT 1 FROM tenant_shares WHERE lane = :lane AND tenant = :tenant FOR UPDATE NOWAIT"),
            {"lane": lane.value, "tenant": tenant},
        )

    def is_free(lane: Lane, tenant: str) -> bool:
        with engine.connect() as connection:
            try:
                lock(connection, lane, tenant)
            except OperationalError:
                return False
            return True

    with engine.connect() as holder:
        lock(holder, Lane.INTERACTIVE, "b")
        with rows.behind(engine, lambda other: execution.finish(other, endings)) as ended:
            free = {
                (lane.value, tenant): is_free(lane, tenant)
                for lane, tenant in jobs
                if (lane, tenant) != (Lane.INTERACTIVE, "b")
            }
            holder.rollback()
    assert ended.result() == [True] * 6
    assert free == {
        ("interactive", "a"): False,
        ("interactive", "c"): True,
        ("batch", "a"): True,
        ("batch", "b"): True,
        ("batch", "c"): True,
    }


def test_feeders_and_ends_of_many_tenants_in_a_race_do_not_deadlock_and_lose_no_token(engine: Engine) -> None:
    tenants = [f"tenant-{number:02}" for number in range(20)]
    for lane in Lane:
        for _ in range(8):
            rows.submit(engine, *[rows.new_job(lane=lane, tenant=tenant) for tenant in tenants], window=0)
    rows.start_worker(engine)
    shuffle = random.Random(11).shuffle

    def feed(connection: Connection) -> list[ClaimedJob]:
        released = [
            found for lane in Lane for found in release.release_fairly(connection, "small", lane, Allowance(20))
        ]
        claimed = execution.claim(connection, [Claim(found.job_id, "w1") for found in released])
        return [job for job in claimed if job is not None]

    def finish(jobs: list[ClaimedJob], connection: Connection) -> list[ClaimedJob]:
        shuffle(jobs)
        assert all(execution.finish(connection, [success(job, 40) for job in jobs]))
        return []

    with engine.begin() as connection:
        running = feed(connection)
    while running:
        shuffle(running)
        halves = [running[::2], running[1::2]]
        running = [
            job for jobs in rows.at_once(engine, *[partial(finish, half) for half in halves], feed) for job in jobs
        ]
    states = Counter(job["state"] for job in rows.everything(engine)["jobs"])
    assert states == {"succeeded": 2 * 8 * 20}
    assert sum(job["charged_tokens"] for job in rows.everything(engine)["jobs"]) == 0


@pytest.mark.parametrize(("used", "stands_at"), [(100, 1_100), (1_900, 2_900)])
def test_of_a_release_and_an_end_at_once_both_count(engine: Engine, used: int, stands_at: int) -> None:
    backlog(engine, 2, estimated_tokens=1_000)
    (job,) = run(engine, 1)
    with engine.connect() as connection:
        assert execution.finish(connection, [success(job, used)]) == [True]
        feeder = partial(release.release_fairly, tier="small", lane=Lane.BATCH, allowance=Allowance(1))
        with rows.behind(engine, feeder) as released:
            connection.commit()
    assert len(released.result()) == 1
    assert rows.served_tokens(engine)["acme"] == stands_at


def test_backlogged_tenants_share_tokens_by_their_weights(engine: Engine) -> None:
    backlog(engine, 60, tenant="double", estimated_tokens=1_500)
    backlog(engine, 60, tenant="single", estimated_tokens=500)
    shares = {"double": Share(weight=2.0)}
    given_to: Counter[str] = Counter()
    for _ in range(18):
        for job in run(engine, 5, shares=shares):
            given_to[job.tenant] += {"double": 1_500, "single": 500}[job.tenant]
            assert abs(given_to["double"] / 2 - given_to["single"]) <= 1_500 / 2 + 500
    assert given_to == {"double": 54_000, "single": 27_000}


def test_the_default_weight_is_that_of_every_tenant_without_one(engine: Engine) -> None:
    for tenant in ("a", "b"):
        backlog(engine, 40, tenant=tenant, estimated_tokens=300)
    allowed = {"shares": {"a": Share(weight=1.0)}, "default_share": Share(weight=3.0)}
    assert Counter(job.tenant for job in run(engine, 40, **allowed)) == {"a": 10, "b": 30}


def test_a_weight_holds_for_the_truth_too(engine: Engine) -> None:
    """Both were estimated at 1,000: what counts is that one uses 400 a job and the other 800."""
    weights = {"double": 2.0, "single": 1.0}
    used = {"double": 400, "single": 800}
    shares = {tenant: Share(weight) for tenant, weight in weights.items()}
    for tenant in weights:
        backlog(engine, 200, tenant=tenant, estimated_tokens=1_000)
    given_to: Counter[str] = Counter()
    for _ in range(12):
        jobs = run(engine, 20, shares=shares)
        end(engine, [success(job, used[job.tenant], weights[job.tenant]) for job in jobs])
        given_to.update({job.tenant: 0 for job in jobs})
        for job in jobs:
            given_to[job.tenant] += used[job.tenant]
    assert given_to["double"] / given_to["single"] == pytest.approx(2.0, rel=0.1)


@dataclass
class Provider:
    """Runs what it is given for a few passes each, and knows what every job really uses."""

    engine: Engine
    used_by: dict[str, int]
    slots: int
    a_pass: int
    lasts: tuple[int, int]
    passes: int = 0
    running: list[tuple[int, ClaimedJob]] = field(default_factory=list)
    given_to: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(6))

    def pass_once(self) -> None:
        """End what is over, and begin what there is room for."""
        self.passes += 1
        over = [job for until, job in self.running if until <= self.passes]
        self.running = [(until, job) for until, job in self.running if until > self.passes]
        end(self.engine, [success(job, self.used_by[job.tenant]) for job in over])
        for job in over:
            self.given_to[job.tenant] += self.used_by[job.tenant]
        room = min(self.a_pass, self.slots - len(self.running))
        if room > 0:
            begun = run(self.engine, room)
            assert len(begun) == room
            self.running += [(self.passes + self.chance.randint(*self.lasts), job) for job in begun]


@pytest.mark.parametrize(
    ("slots", "a_pass", "lasts"), [(32, 32, (1, 1)), (32, 8, (2, 6))], ids=["one after the other", "side by side"]
)
def test_documents_of_any_size_get_their_tenants_the_same_when_every_answer_is_shorter_than_its_bound(
    engine: Engine, slots: int, a_pass: int, lasts: tuple[int, int]
) -> None:
    for tenant, size in SIZES.items():
        backlog(engine, 900_000 // size, tenant=tenant, estimated_tokens=size + BOUND)
    used_by = {tenant: size + ANSWER for tenant, size in SIZES.items()}
    provider = Provider(engine, used_by, slots, a_pass, lasts)
    while provider.given_to.total() < 1_600_000:
        provider.pass_once()
    assert jain(provider.given_to[tenant] for tenant in SIZES) >= 0.99


def test_estimates_that_are_wrong_in_different_ways_set_no_tenant_back(engine: Engine) -> None:
    wrong_by = {"tiny": 0.5, "small": 1.0, "middle": 2.0, "large": 0.4}
    for tenant, size in SIZES.items():
        backlog(engine, 800, tenant=tenant, estimated_tokens=size)
    used_by = {tenant: int(size * wrong_by[tenant]) for tenant, size in SIZES.items()}
    provider = Provider(engine, used_by, slots=32, a_pass=4, lasts=(5, 15))
    while provider.given_to.total() < 600_000:
        provider.pass_once()
    assert jain(provider.given_to[tenant] for tenant in SIZES) >= 0.99


def test_a_backlogged_tenant_keeps_the_credit_of_its_corrections(engine: Engine) -> None:
    """Four jobs of 1,000 each were begun for both; then it shows that one tenant used 100 a job."""
    for tenant in ("over", "true"):
        backlog(engine, 20, tenant=tenant, estimated_tokens=1_000)
    begun = [job for _ in range(8) for job in run(engine, 1)]
    assert Counter(job.tenant for job in begun) == {"over": 4, "true": 4}
    end(engine, [success(job, 100) for job in begun if job.tenant == "over"])
    assert rows.served_tokens(engine)["over"] == 400
    assert Counter(job.tenant for job in run(engine, 4)) == {"over": 4}


def test_a_credit_is_kept_while_nothing_is_released(engine: Engine) -> None:
    for tenant in ("over", "true"):
        backlog(engine, 20, tenant=tenant, estimated_tokens=1_000)
    begun = run(engine, 8)
    end(engine, [success(job, 100 if job.tenant == "over" else 1_000) for job in begun])
    served = rows.served_tokens(engine)
    assert (served["over"], served["true"]) == (400, 4_000)
    assert Counter(job.tenant for job in run(engine, 4)) == {"over": 4}


def test_a_tenant_that_was_away_does_not_catch_up_what_it_missed(engine: Engine) -> None:
    backlog(engine, 40, tenant="steady", estimated_tokens=1_000)
    for _ in range(20):
        end(engine, [success(job, 1_000) for job in run(engine, 1)])
    assert rows.served_tokens(engine) == {"steady": 20_000, "": 19_000}
    backlog(engine, 40, tenant="late", estimated_tokens=1_000)
    shared = Counter(job.tenant for _ in range(20) for job in run(engine, 1))
    assert abs(shared["late"] - shared["steady"]) <= 2


def test_the_virtual_time_never_goes_back(engine: Engine) -> None:
    backlog(engine, 20, estimated_tokens=1_000)
    begun = [job for _ in range(5) for job in run(engine, 1)]
    assert rows.served_tokens(engine)[""] == 4_000
    end(engine, [success(job, 0) for job in begun])
    run(engine, 1)
    assert rows.served_tokens(engine)[""] == 4_000
