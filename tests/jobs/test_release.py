"""Which rows get their message next: due retries, tenants side by side, priority within a tenant, each row once."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import combinations
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from penstock.jobs import release
from penstock.jobs.release import Allowance, Group, Outstanding, Release
from penstock.jobs.submission import NewJob
from penstock.schemas import Lane
from tests.jobs import rows

NEW = Group(Lane.INTERACTIVE, is_retry=False)
SIZES = {"tiny": 500, "small": 1_500, "middle": 3_000, "large": 10_000}


def queued(number: int = 1, **changes: object) -> list[NewJob]:
    return [rows.new_job(lane=Lane.BATCH, **changes) for _ in range(number)]


def backlog(engine: Engine, tenant: str, tokens: int, estimated_tokens: int) -> None:
    rows.submit(engine, *queued(tokens // estimated_tokens, tenant=tenant, estimated_tokens=estimated_tokens))


def fair(engine: Engine, most: int, lane: Lane = Lane.BATCH, tier: str = "small") -> list[Release]:
    return allowed(engine, Allowance(most), lane, tier)


def allowed(engine: Engine, allowance: Allowance, lane: Lane = Lane.BATCH, tier: str = "small") -> list[Release]:
    with engine.begin() as connection:
        return release.release_fairly(connection, tier, lane, allowance)


def retries(engine: Engine, most: int = 100, tier: str = "small", lane: Lane = Lane.BATCH) -> list[Release]:
    with engine.begin() as connection:
        return release.release_retries(connection, tier, lane, Allowance(most))


def again(engine: Engine, most: int = 100, older_than_s: float = 5.0) -> list[Release]:
    with engine.begin() as connection:
        return release.release_again(connection, "small", NEW, older_than_s=older_than_s, most=most)


def released_tokens(engine: Engine) -> Counter[str]:
    with engine.begin() as connection:
        sums = connection.execute(
            text("SELECT tenant, sum(estimated_tokens)::bigint AS tokens FROM jobs WHERE state = 'released' GROUP BY 1")
        )
        return Counter({row.tenant: row.tokens for row in sums})


def jain(shares: Iterable[float]) -> float:
    """Give Jain's fairness index: 1 when all shares are equal, 1/n when one has everything."""
    shares = list(shares)
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def test_a_release_says_what_its_message_needs(engine: Engine) -> None:
    (job,) = queued()
    rows.submit(engine, job)
    assert fair(engine, 5) == [Release(job.id, "acme", "small", Lane.BATCH, rows.PROMPT, is_retry=False)]
    released = rows.row(engine, job.id)
    assert (released["state"], released["released_at"] is not None) == ("released", True)
    assert fair(engine, 5) == []


def test_only_due_queued_jobs_of_the_lane_and_tier_are_released(engine: Engine) -> None:
    due, later, other_tier = queued(3)
    interactive = rows.new_job()
    rows.submit(engine, due, later, other_tier, interactive, window=0)
    rows.execute(engine, "UPDATE jobs SET due_at = now() + interval '1 minute' WHERE id = :id", id=later.id)
    rows.execute(engine, "UPDATE jobs SET tier = 'large' WHERE id = :id", id=other_tier.id)
    assert [found.job_id for found in fair(engine, 9)] == [due.id]
    assert [found.job_id for found in fair(engine, 9, Lane.INTERACTIVE)] == [interactive.id]
    assert [found.job_id for found in fair(engine, 9, tier="large")] == [other_tier.id]
    assert rows.state(engine, later.id) == "queued"


@pytest.mark.parametrize("state", ["released", "running", "retrying", "succeeded", "dead", "cancelled"])
def test_no_other_state_is_released_as_new_work(engine: Engine, state: str) -> None:
    rows.submit(engine, *queued())
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state)
    before = rows.everything(engine)
    assert fair(engine, 9) == []
    assert rows.everything(engine) == before


def test_a_tenants_own_jobs_go_by_priority_and_then_by_age(engine: Engine) -> None:
    jobs = [*queued(priority=0), *queued(priority=9), *queued(priority=5), *queued(priority=9), *queued(priority=5)]
    for job in jobs:
        rows.submit(engine, job)
    expected = [jobs[1].id, jobs[3].id, jobs[2].id, jobs[4].id, jobs[0].id]
    assert [found.job_id for found in fair(engine, 2) + fair(engine, 9)] == expected


def test_priority_counts_only_within_a_tenant(engine: Engine) -> None:
    rows.submit(engine, *queued(4, tenant="proud", priority=9), *queued(4, tenant="humble", priority=0))
    assert Counter(found.tenant for found in fair(engine, 4)) == {"proud": 2, "humble": 2}


def test_backlogged_tenants_share_by_tokens_whatever_the_size_of_their_documents(engine: Engine) -> None:
    for tenant, size in SIZES.items():
        backlog(engine, tenant, 300_000, size)
    given_to: Counter[str] = Counter()
    while sum(given_to.values()) < 800_000:
        for found in fair(engine, 7):
            given_to[found.tenant] += SIZES[found.tenant]
            assert all(abs(given_to[a] - given_to[b]) <= SIZES[a] + SIZES[b] for a, b in combinations(SIZES, 2))
    assert given_to == released_tokens(engine)
    assert jain(given_to[tenant] for tenant in SIZES) >= 0.99


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 9_999), min_size=25, max_size=25), min_size=2, max_size=4),
    st.lists(st.integers(1, 6), min_size=8, max_size=8),
)
def test_no_mixture_of_sizes_sets_tenants_further_apart_than_their_two_largest_jobs(
    schema: Engine, sizes: list[list[int]], batches: list[int]
) -> None:
    rows.execute(schema, "TRUNCATE jobs, payloads, attempts, answers, results, tenant_shares CASCADE")
    tenants = {f"tenant-{n}": of_tenant for n, of_tenant in enumerate(sizes)}
    size_of: dict[UUID, int] = {}
    for tenant, of_tenant in tenants.items():
        jobs = [queued(tenant=tenant, estimated_tokens=size)[0] for size in of_tenant]
        size_of |= {job.id: job.estimated_tokens for job in jobs}
        rows.submit(schema, *jobs)
    given_to, counts = Counter(dict.fromkeys(tenants, 0)), Counter(dict.fromkeys(tenants, 0))
    for most in batches:
        for found in fair(schema, most):
            given_to[found.tenant] += size_of[found.job_id]
            counts[found.tenant] += 1
            if max(counts.values()) == len(sizes[0]):
                return  # one tenant is not backlogged any more
            for a, b in combinations(tenants, 2):
                assert abs(given_to[a] - given_to[b]) <= max(tenants[a]) + max(tenants[b])


def spend(engine: Engine, tokens: int, most: int = 5) -> Counter[str]:
    """Release at least so many tokens and give what each tenant got of them."""
    before = released_tokens(engine)
    while (now := released_tokens(engine)).total() - before.total() < tokens:
        assert fair(engine, most)
    return Counter({tenant: now[tenant] - before[tenant] for tenant in now})


def test_a_tenant_that_returns_does_not_get_its_idle_time_back(engine: Engine) -> None:
    backlog(engine, "steady", 100_000, 1_000)
    backlog(engine, "returning", 3_000, 1_000)
    spend(engine, 50_000)
    backlog(engine, "returning", 40_000, 1_000)

    shared = spend(engine, 40_000)

    assert abs(shared["steady"] - shared["returning"]) <= 2_000


def test_a_tenant_that_comes_first_in_the_middle_starts_where_the_others_stand(engine: Engine) -> None:
    backlog(engine, "steady", 100_000, 1_000)
    spend(engine, 50_000)
    backlog(engine, "new", 40_000, 2_000)

    shared = spend(engine, 40_000)

    assert abs(shared["steady"] - shared["new"]) <= 3_000


def test_a_tenant_that_returns_is_not_made_to_wait_for_what_it_had_alone(engine: Engine) -> None:
    backlog(engine, "early", 50_000, 1_000)
    spend(engine, 50_000)
    backlog(engine, "late", 100_000, 1_000)
    spend(engine, 20_000)
    backlog(engine, "early", 40_000, 1_000)

    shared = spend(engine, 40_000)

    assert abs(shared["early"] - shared["late"]) <= 2_000


def test_tenants_that_return_one_after_the_other_starve_nobody(engine: Engine) -> None:
    backlog(engine, "steady", 120_000, 1_000)
    for number in range(8):
        backlog(engine, f"visitor-{number}", 2_000, 1_000)
    spend(engine, 30_000)
    for number in range(8):
        backlog(engine, f"visitor-{number}", 5_000, 1_000)
        shared = spend(engine, 10_000)
        assert shared["steady"] >= 4_000


def test_lanes_and_tiers_keep_separate_accounts(engine: Engine) -> None:
    rows.submit(engine, *[rows.new_job(tenant="busy") for _ in range(50)], window=0)
    fair(engine, 50, Lane.INTERACTIVE)
    rows.submit(engine, *queued(4, tenant="busy"), *queued(4, tenant="other"))
    assert Counter(found.tenant for found in fair(engine, 4)) == {"busy": 2, "other": 2}


def test_many_small_jobs_do_not_delay_another_tenants_one_job(engine: Engine) -> None:
    rows.submit(engine, *queued(500, tenant="night-batch"))
    fair(engine, 100)
    (single,) = queued(tenant="single")
    rows.submit(engine, single)
    assert single.id in [found.job_id for found in fair(engine, 2)]


def test_of_two_feeders_at_once_the_second_takes_other_rows_and_both_are_charged(engine: Engine) -> None:
    jobs = queued(20)
    rows.submit(engine, *jobs)
    with engine.connect() as connection:
        first = release.release_fairly(connection, "small", Lane.BATCH, Allowance(4))
        feeder = partial(release.release_fairly, tier="small", lane=Lane.BATCH, allowance=Allowance(8))
        with rows.behind(engine, feeder) as second:
            connection.commit()
    taken = [found.job_id for found in [*first, *second.result()]]
    assert (len(taken), len(set(taken))) == (8, 8)
    assert rows.served_tokens(engine)["acme"] == 800


def test_a_feeder_that_rolls_back_has_released_and_charged_nothing(engine: Engine) -> None:
    rows.submit(engine, *queued(4))
    before = rows.everything(engine)
    with engine.connect() as connection:
        assert len(release.release_fairly(connection, "small", Lane.BATCH, Allowance(4))) == 4
        connection.rollback()
    assert rows.everything(engine) == before


def test_feeders_in_a_race_release_each_row_once(engine: Engine) -> None:
    for tenant in ("a", "b", "c"):
        rows.submit(engine, *queued(100, tenant=tenant))

    def feed(_connection: Connection) -> list[Release]:
        return [found for _ in range(40) for found in fair_in_turn(engine)]

    def fair_in_turn(engine: Engine) -> list[Release]:
        return fair(engine, 4)

    found = [feeder.job_id for feeds in rows.at_once(engine, feed, feed) for feeder in feeds]
    assert (len(found), len(set(found))) == (300, 300)


def test_due_retries_are_released_the_longest_due_first(engine: Engine) -> None:
    jobs = queued(30)
    rows.submit(engine, *jobs)
    rows.execute(engine, "UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now() + interval '1 minute'")
    order = [jobs[(7 * n) % 29].id for n in range(29)]
    for position, job_id in enumerate(order):
        rows.execute(
            engine,
            "UPDATE jobs SET due_at = now() - make_interval(secs => :ago) WHERE id = :id",
            id=job_id,
            ago=1000 - position,
        )
    first, second = retries(engine, 20), retries(engine, 20)
    assert [found.job_id for found in first] == order[:20]
    assert [found.job_id for found in second] == order[20:]
    assert {found.is_retry for found in first} == {True}
    assert retries(engine) == []
    assert rows.state(engine, jobs[29].id) == "retrying"


def test_retries_of_another_tier_and_other_states_stay(engine: Engine) -> None:
    rows.submit(engine, *queued(2))
    rows.execute(engine, "UPDATE jobs SET due_at = now() - interval '1 minute'")
    before = rows.everything(engine)
    assert retries(engine) == []
    assert rows.everything(engine) == before
    rows.execute(engine, "UPDATE jobs SET state = 'retrying'")
    assert retries(engine, tier="large") == []
    assert len(retries(engine)) == 2


def test_two_feeders_at_once_share_the_retries(engine: Engine) -> None:
    rows.submit(engine, *queued(6))
    rows.execute(engine, "UPDATE jobs SET state = 'retrying', due_at = now() - interval '1 minute'")
    with engine.connect() as first, engine.connect() as second:
        some = release.release_retries(first, "small", Lane.BATCH, Allowance(4))
        rest = release.release_retries(second, "small", Lane.BATCH, Allowance(9))
        second.commit()
        first.commit()
    assert (len(some), len(rest)) == (4, 2)
    assert len({found.job_id for found in [*some, *rest]}) == 6


def test_a_replayed_or_retried_job_goes_to_the_queue_of_retries(engine: Engine) -> None:
    job = rows.running_job(engine)
    rows.execute(engine, "UPDATE jobs SET state = 'queued', lane = 'batch'")
    assert [(found.job_id, found.is_retry) for found in fair(engine, 1)] == [(job.id, True)]


def test_a_message_that_seems_lost_is_sent_again_after_a_while_and_only_so_often(engine: Engine) -> None:
    old, older, young = rows.new_job(), rows.new_job(), rows.new_job()
    running = rows.running_job(engine)
    rows.submit(engine, old, older, young)
    for job_id, ago_s in {old.id: 6, older.id: 60, young.id: 4, running.id: 60}.items():
        rows.execute(
            engine,
            "UPDATE jobs SET released_at = now() - make_interval(secs => :ago) WHERE id = :id",
            id=job_id,
            ago=ago_s,
        )
    assert [found.job_id for found in again(engine, most=1)] == [older.id]
    assert [found.job_id for found in again(engine)] == [old.id]
    assert again(engine) == []
    assert [rows.state(engine, job.id) for job in (old, older, young)] == ["released"] * 3
    assert rows.state(engine, running.id) == "running"


def test_two_feeders_at_once_send_a_lost_message_again_once(engine: Engine) -> None:
    rows.submit(engine, *[rows.new_job() for _ in range(6)])
    rows.execute(engine, "UPDATE jobs SET released_at = now() - interval '1 minute'")
    with engine.connect() as first, engine.connect() as second:
        some = release.release_again(first, "small", NEW, older_than_s=5, most=4)
        rest = release.release_again(second, "small", NEW, older_than_s=5, most=9)
        second.commit()
        first.commit()
    assert len({found.job_id for found in some}) + len({found.job_id for found in rest}) == 6
    assert {found.job_id for found in some}.isdisjoint(found.job_id for found in rest)


def test_released_and_started_jobs_are_counted_by_tier(engine: Engine) -> None:
    rows.running_job(engine)
    old = rows.running_job(engine)
    rows.submit(engine, rows.new_job(), rows.new_job(estimated_tokens=150), rows.new_job(tier="large"), *queued())
    rows.execute(engine, "UPDATE jobs SET started_at = now() - interval '1 hour' WHERE id = :id", id=old.id)
    with engine.begin() as connection:
        assert release.released(connection, "small") == {NEW: Outstanding(2, 250)}
        assert release.released(connection, "large") == {NEW: Outstanding(1, 100)}
        assert release.started(connection, "small", window_s=60) == 1
        assert release.started(connection, "large", window_s=60) == 0
