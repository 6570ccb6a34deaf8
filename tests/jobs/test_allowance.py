"""How much a feeder may release: jobs, tokens, a tenant's own bound, and who need not wait for a model."""

from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from penstock.jobs import release
from penstock.jobs.release import Allowance, Release, Share
from penstock.jobs.submission import NewJob
from penstock.schemas import Lane, OnUnavailable
from tests.jobs import rows


def queued(engine: Engine, *sizes: int, **changes: Any) -> list[UUID]:
    """Submit batch jobs of so many tokens, one after the other."""
    jobs: list[NewJob] = [rows.new_job(lane=Lane.BATCH, estimated_tokens=size, **changes) for size in sizes]
    for job in jobs:
        rows.submit(engine, job)
    return [job.id for job in jobs]


def fair(engine: Engine, jobs: int = 100, *, lane: Lane = Lane.BATCH, **allowed: Any) -> list[UUID]:
    with engine.begin() as connection:
        return ids(release.release_fairly(connection, "small", lane, Allowance(jobs, **allowed)))


def retries(engine: Engine, **allowed: Any) -> list[UUID]:
    with engine.begin() as connection:
        return ids(release.release_retries(connection, "small", Lane.BATCH, Allowance(100, **allowed)))


def ids(releases: list[Release]) -> list[UUID]:
    return [found.job_id for found in releases]


def tenants(engine: Engine, released: list[UUID]) -> dict[str, int]:
    return Counter(rows.row(engine, job_id)["tenant"] for job_id in released)


@pytest.mark.parametrize(
    ("tokens", "jobs"), [(None, 4), (1000, 4), (999, 3), (600, 3), (599, 2), (100, 1), (99, 0), (0, 0)]
)
def test_jobs_are_released_while_their_estimates_fit_together(engine: Engine, tokens: float | None, jobs: int) -> None:
    waiting = queued(engine, 100, 200, 300, 400)
    assert fair(engine, tokens=tokens) == waiting[:jobs]


def test_the_first_job_that_does_not_fit_is_waited_for_and_nobody_passes_it(engine: Engine) -> None:
    small, large, _ = queued(engine, 100, 900, 100)
    assert fair(engine, tokens=500) == [small]
    assert fair(engine, tokens=500) == []
    assert fair(engine, tokens=900) == [large]


def test_a_large_job_of_one_tenant_is_not_passed_by_the_small_ones_of_another(engine: Engine) -> None:
    (large,) = queued(engine, 5_000, tenant="large")
    queued(engine, 100, 100, tenant="small")
    assert fair(engine, tokens=1_000) == []
    assert large in fair(engine, tokens=5_000)


@pytest.mark.parametrize(("tokens", "jobs"), [(999.0, 0), (1_000.0, 1), (1_099.0, 1), (1_100.0, 2)])
def test_no_job_counts_for_more_than_there_can_ever_be_at_once(engine: Engine, tokens: float, jobs: int) -> None:
    waiting = queued(engine, 5_000, 100)
    assert fair(engine, tokens=tokens, most_tokens=1_000.0) == waiting[:jobs]


def test_a_job_that_counts_for_less_is_charged_in_full(engine: Engine) -> None:
    (large,) = queued(engine, 5_000)
    fair(engine, tokens=1_000, most_tokens=1_000)
    assert rows.row(engine, large)["charged_tokens"] == 5_000
    assert rows.served_tokens(engine) == {"acme": 5_000, "": 0}


def test_both_bounds_hold_at_once(engine: Engine) -> None:
    waiting = queued(engine, 100, 100, 100)
    assert fair(engine, 1, tokens=1_000) == waiting[:1]
    assert fair(engine, 5, tokens=100) == waiting[1:2]
    assert fair(engine, 0) == []


@pytest.mark.parametrize(("most", "released"), [(1, 1), (2, 2), (3, 3), (None, 5)])
def test_a_tenant_has_no_more_jobs_out_than_its_share_says(engine: Engine, most: int | None, released: int) -> None:
    queued(engine, *[100] * 5)
    assert len(fair(engine, shares={"acme": Share(concurrency=most)})) == released


def test_released_and_running_jobs_of_both_lanes_count_and_others_do_not(engine: Engine) -> None:
    rows.running_job(engine)
    rows.submit(engine, rows.new_job())
    rows.submit(engine, rows.new_job(tier="large"), rows.new_job(tenant="globex"))
    rows.dead_job(engine)
    waiting = queued(engine, 100, 100, 100)
    assert fair(engine, shares={"acme": Share(concurrency=2)}) == []
    assert fair(engine, shares={"acme": Share(concurrency=3)}) == waiting[:1]
    assert fair(engine, shares={"acme": Share(concurrency=3)}) == []


def test_the_default_share_bounds_each_tenant_that_has_none_of_its_own(engine: Engine) -> None:
    for tenant in ("acme", "globex", "free"):
        queued(engine, *[100] * 4, tenant=tenant)
    released = fair(engine, default_share=Share(concurrency=2), shares={"free": Share()})
    assert tenants(engine, released) == {"acme": 2, "globex": 2, "free": 4}


def test_a_tenant_at_its_bound_holds_nobody_up(engine: Engine) -> None:
    queued(engine, *[100] * 3, tenant="a")
    rows.running_job(engine, tenant="a")
    others = queued(engine, 100, 100, tenant="b")
    assert fair(engine, 2, shares={"a": Share(concurrency=1)}) == others


def test_a_tenant_whose_jobs_are_all_put_off_holds_nobody_up(engine: Engine) -> None:
    later = queued(engine, 100, tenant="a")
    rows.execute(engine, "UPDATE jobs SET due_at = now() + interval '1 minute' WHERE id = :id", id=later[0])
    due = queued(engine, 100, tenant="b")
    assert fair(engine, 1) == due


def test_while_no_model_can_be_asked_only_those_are_released_that_do_not_wait(engine: Engine) -> None:
    queued(engine, 100, tenant="a")
    degrades = queued(engine, 100, tenant="a", on_unavailable=OnUnavailable.DEGRADE)
    queued(engine, 100, tenant="b", on_unavailable=OnUnavailable.WAIT)
    fails = queued(engine, 100, tenant="c", on_unavailable=OnUnavailable.FAIL)
    assert sorted(fair(engine, only_impatient=True)) == sorted(degrades + fails)
    assert fair(engine, only_impatient=True) == []
    assert len(fair(engine)) == 2


def test_a_job_that_an_open_tier_may_answer_does_not_wait(engine: Engine) -> None:
    may_be_small = queued(engine, 100, fallback_tiers=("medium", "tiny"))
    queued(engine, 100, fallback_tiers=("large",))
    queued(engine, 100)
    assert fair(engine, only_impatient=True) == []
    assert fair(engine, only_impatient=True, open_tiers=("huge",)) == []
    assert fair(engine, only_impatient=True, open_tiers=("huge", "tiny")) == may_be_small


def test_retries_wait_for_a_model_as_new_jobs_do(engine: Engine) -> None:
    waits = queued(engine, 100)
    degrades = queued(engine, 100, on_unavailable=OnUnavailable.DEGRADE)
    may_be_small = queued(engine, 100, fallback_tiers=("tiny",))
    rows.execute(engine, "UPDATE jobs SET state = 'retrying', attempts = 1, due_at = now()")
    assert retries(engine, only_impatient=True) == degrades
    assert retries(engine, only_impatient=True, open_tiers=("tiny",)) == may_be_small
    assert retries(engine) == waits


def test_a_tenant_that_waits_for_a_model_does_not_hide_one_that_does_not(engine: Engine) -> None:
    queued(engine, 100, 100, tenant="a")
    (impatient,) = queued(engine, 100, tenant="b", on_unavailable=OnUnavailable.FAIL)
    assert fair(engine, 1, only_impatient=True) == [impatient]


def test_one_feeder_at_a_time_feeds_a_tier_and_the_end_of_its_transaction_frees_it(engine: Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        assert release.begin_feeding(first, "small") is True
        assert release.begin_feeding(second, "small") is False
        assert release.begin_feeding(second, "large") is True
        second.rollback()
        assert release.begin_feeding(first, "large") is True
        first.commit()
        assert release.begin_feeding(second, "small") is True
        second.rollback()
        assert release.begin_feeding(first, "small") is True
