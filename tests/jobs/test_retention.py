"""What is forgotten, when, and beside whom: text goes, the ledger stays, and no live job loses its payload."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, TextClause, event, text

from penstock.jobs import dead_letters, execution, queries, release, reruns, retention, submission
from penstock.jobs.execution import ClaimedJob, Ending, Outcome
from penstock.jobs.release import Allowance
from penstock.jobs.retention import PurgeProof, TextRows
from penstock.money import ledger
from penstock.money.ledger import CallOutcome, Settlement
from penstock.schemas import JobState, Lane
from tests.jobs import rows

ENDS = ("succeeded", "dead", "cancelled")
LIVE = ("queued", "released", "running", "retrying")
NO_TEXT = TextRows()
NOTHING_KEPT = {"acme": 0.0}


def ended_job(engine: Engine, state: str = "succeeded", *, days_ago: float = 0.0, **changes: Any) -> UUID:
    """Bring a job with text in every place that has room for some to an end, so many days ago."""
    job = rows.running_job(engine, **changes)
    rows.execute(
        engine, "INSERT INTO answers VALUES (:id, 'digest', :call, 'm', 'stop', 'A tale.')", id=job.id, call=uuid4()
    )
    spend(engine, job)
    if state == "cancelled":
        with engine.begin() as connection:
            queries.cancel(connection, [job.id])
    else:
        rows.finish(engine, rows.success(job) if state == "succeeded" else rows.death(job))
    age(engine, job.id, days_ago)
    return job.id


def spend(engine: Engine, job: ClaimedJob, state: str = "settled") -> UUID:
    """Write a row of the ledger for the job."""
    call_id = uuid4()
    rows.execute(
        engine,
        "INSERT INTO ledger (call_id, job_id, fence, tenant, prompt_id, prompt_version, tier, deployment, account,"
        " model_asked, price_version, state, upper_bound_nanodollars, nanodollars, input_tokens)"
        " VALUES (:call, :id, :fence, :tenant, 'p', '1', 'small', 'd', 'a', 'm', '2026-01-01', :state, 9, 7, 5)",
        call=call_id,
        id=job.id,
        fence=job.fence,
        tenant=job.tenant,
        state=state,
    )
    return call_id


def age(engine: Engine, job_id: UUID, days: float) -> None:
    """Let the job have ended so many days earlier."""
    rows.execute(
        engine,
        "UPDATE jobs SET ended_at = ended_at - make_interval(secs => :days * 86400) WHERE id = :id",
        days=days,
        id=job_id,
    )


def later(engine: Engine, seconds: float) -> None:
    """Let everything have happened so much earlier."""
    for each in ("jobs SET kept_until = kept_until - :by, ended_at", "batches SET ended_at"):
        rows.execute(engine, f"UPDATE {each} = ended_at - :by", by=timedelta(seconds=seconds))


def degraded_job(engine: Engine) -> UUID:
    job = rows.running_job(engine)
    rows.finish(engine, Ending(job.id, job.fence, Outcome.SUCCEEDED, result="Sentences.", degraded=True))
    return job.id


def purge(
    engine: Engine, periods: Mapping[str, float | None] | None = None, default: float | None = None, most: int = 100
) -> int:
    with engine.begin() as connection:
        return retention.purge_expired(connection, periods or {}, default, most=most)


def keep_nothing(connection: Connection) -> int:
    return retention.purge_expired(connection, NOTHING_KEPT, None)


def fetch(engine: Engine, job_id: UUID) -> None:
    with engine.begin() as connection:
        retention.note_fetched(connection, [(job_id, rows.row(engine, job_id)["ended_at"])])


def held(engine: Engine, job_id: UUID) -> TextRows:
    """Count the rows that hold text of one job."""
    with engine.begin() as connection:
        payloads, answers, results = (
            connection.scalar(text(f"SELECT count(*) FROM {table} WHERE job_id = :id"), {"id": job_id}) or 0
            for table in ("payloads", "answers", "results")
        )
    row = rows.row(engine, job_id)
    labels = (row["document_name"], row["metadata"], row["detail"])
    return TextRows(payloads, answers, results, int(labels != (None, {}, None)))


def scanned(connection: Connection, statement: TextClause, **values: object) -> dict[str, tuple[int, int]]:
    """Run a purge as if the tables were large: how many jobs it read and threw away, by the index that it went by.

    An index that does not give the order shows as a sort by it.
    """
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    connection.execute(text("SET LOCAL enable_sort = off"))
    given = {"most": 100, "result_expires_s": retention.RESULT_EXPIRES_S} | values
    [plan] = connection.scalars(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"), given).one()
    nodes, found = [plan["Plan"]], {}
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node["Node Type"] == "Sort" and "ended_at" in str(node["Sort Key"]):
            found["sort"] = (node["Actual Rows"], 0)
        if node.get("Relation Name") == "jobs" and node["Node Type"] == "Index Scan" and "tenant" in str(node):
            found[node["Index Name"]] = (node["Actual Rows"], node.get("Rows Removed by Filter", 0))
    return found


def has_payload(engine: Engine, job_id: UUID) -> bool:
    return held(engine, job_id).payloads == 1


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect what is run on the engine."""
    run: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        run.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield run
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("state", ENDS)
def test_text_goes_after_the_period_and_the_history_and_the_ledger_stay(engine: Engine, state: str) -> None:
    job_id = ended_job(engine, state, days_ago=30.01)
    before = rows.everything(engine)

    assert purge(engine, {"acme": 30.0}) == 1

    after = rows.everything(engine)
    assert (after["payloads"], after["answers"], after["results"]) == ([], [], [])
    [row], [was] = after["jobs"], before["jobs"]
    changed = {name: row[name] for name in row if row[name] != was[name]}
    purged_at = changed.pop("purged_at")
    assert isinstance(purged_at, datetime)
    lost: dict[str, Any] = {"document_name": None, "metadata": {}}
    assert changed == (lost | {"detail": None} if state == "dead" else lost)
    for table in ("attempts", "ledger", "tenant_shares", "workers"):
        assert after[table] == before[table]
    assert (row["id"], row["state"], len(after["attempts"]), len(after["ledger"])) == (job_id, state, 1, 1)


@pytest.mark.parametrize("state", ENDS)
def test_nothing_goes_before_the_period_has_passed(engine: Engine, state: str) -> None:
    ended_job(engine, state, days_ago=29.99)
    before = rows.everything(engine)
    assert purge(engine, {"acme": 30.0}) == 0
    assert rows.everything(engine) == before


@pytest.mark.parametrize(
    ("periods", "default", "purged"),
    [
        ({"acme": 1.0}, None, {"acme"}),
        ({"acme": 3.0}, None, set()),
        ({}, 1.0, {"acme", "globex", "zeta"}),
        ({"acme": None}, 1.0, {"globex", "zeta"}),
        ({"acme": 3.0}, 1.0, {"globex", "zeta"}),
        ({"globex": 1.0}, 3.0, {"globex"}),
        ({"acme": 0.5, "globex": None, "zeta": 1.5}, None, {"acme", "zeta"}),
        ({"nobody": 1.0}, None, set()),
        ({"acme": None, "nobody": 1.0}, 3.0, set()),
    ],
)
def test_each_tenant_has_its_own_period_and_the_others_the_default(
    engine: Engine, periods: dict[str, float | None], default: float | None, purged: set[str]
) -> None:
    ids = {tenant: ended_job(engine, days_ago=2.0, tenant=tenant) for tenant in ("acme", "globex", "zeta")}
    assert purge(engine, periods, default) == len(purged)
    assert {tenant for tenant, job_id in ids.items() if held(engine, job_id) == NO_TEXT} == purged
    assert {held(engine, job_id) for tenant, job_id in ids.items() if tenant not in purged} <= {TextRows(1, 1, 1, 1)}


def test_where_everything_is_kept_no_statement_is_run(engine: Engine) -> None:
    ended_job(engine, days_ago=10_000)
    with statements(engine) as run:
        assert (purge(engine), purge(engine, {"acme": None})) == (0, 0)
        assert run == []
        assert purge(engine, {"acme": None}, 1.0) == 0
        assert len(run) == 1


@pytest.mark.parametrize("state", LIVE)
def test_a_live_job_keeps_its_text_however_old_it_is(engine: Engine, state: str) -> None:
    job_id = ended_job(engine, days_ago=1_000)
    rows.execute(engine, "UPDATE jobs SET state = :state", state=state)
    before = rows.everything(engine)
    assert (purge(engine, NOTHING_KEPT), purge(engine, {}, 1.0)) == (0, 0)
    with engine.begin() as connection:
        until = retention.survey(connection, "acme", None).until
        assert retention.purge(connection, "acme", until, most=9).jobs == 0
    assert rows.everything(engine) == before
    assert has_payload(engine, job_id)


def test_a_second_purge_finds_nothing_to_do(engine: Engine) -> None:
    for state in ENDS:
        ended_job(engine, state, days_ago=2.0)
    assert purge(engine, {}, 1.0) == 3
    before = rows.everything(engine)
    assert (purge(engine, {}, 1.0), purge(engine, NOTHING_KEPT)) == (0, 0)
    assert rows.everything(engine) == before


def test_a_purge_is_bounded_and_takes_the_oldest_first(engine: Engine) -> None:
    ids = [ended_job(engine, days_ago=days) for days in (4, 8, 6, 7, 5)]
    gone: list[set[int]] = []
    for _ in range(4):
        assert purge(engine, {"acme": 1.0}, most=2) == [2, 2, 1, 0][len(gone)]
        gone.append(
            {days for days, job_id in zip((4, 8, 6, 7, 5), ids, strict=True) if not has_payload(engine, job_id)}
        )
    assert gone == [{8, 7}, {8, 7, 6, 5}, {8, 7, 6, 5, 4}, {8, 7, 6, 5, 4}]


def test_the_bound_holds_over_all_tenants_and_the_shortest_period_goes_first(engine: Engine) -> None:
    ids = {tenant: ended_job(engine, "dead", days_ago=9, tenant=tenant) for tenant in ("acme", "globex", "zeta")}
    periods: dict[str, float | None] = {"acme": 3.0, "globex": 2.0, "zeta": 0.0}
    order = []
    while purge(engine, periods, most=1):
        order.append({tenant for tenant, job_id in ids.items() if not has_payload(engine, job_id)})
    assert order == [{"zeta"}, {"zeta", "globex"}, {"zeta", "globex", "acme"}]


def test_without_retention_the_payload_goes_at_the_end_and_the_result_when_it_was_fetched(engine: Engine) -> None:
    job_id = ended_job(engine)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == TextRows(results=1, labels=1)
    assert rows.row(engine, job_id)["purged_at"] is None
    before = rows.everything(engine)
    assert purge(engine, NOTHING_KEPT) == 0
    assert rows.everything(engine) == before

    fetch(engine, job_id)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT
    assert rows.row(engine, job_id)["purged_at"] is not None


def test_without_retention_a_result_that_waits_is_not_read_again(engine: Engine) -> None:
    for _ in range(20):
        ended_job(engine)
    assert (purge(engine, NOTHING_KEPT), purge(engine, NOTHING_KEPT)) == (20, 0)
    periods = json.dumps([{"tenant": "acme", "days": 0}])
    with engine.begin() as connection:
        found = scanned(connection, retention.PURGE_EXPIRED, periods=periods, default=None)
    assert found == {"jobs_purgeable": (0, 0)}


def test_a_purge_by_hand_goes_by_the_same_index(engine: Engine) -> None:
    ended_job(engine)
    purge(engine, NOTHING_KEPT)
    for _ in range(2):
        ended_job(engine)
    with engine.connect() as connection:
        until = retention.survey(connection, "acme", None).until
        found = scanned(connection, retention.PURGE, tenant="acme", until=until)
    assert found == {"jobs_purgeable": (3, 0)}


def test_without_retention_a_result_that_is_fetched_while_the_payload_goes_is_due_at_once(engine: Engine) -> None:
    job_id = ended_job(engine)
    ended_at = rows.row(engine, job_id)["ended_at"]
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        with rows.behind(engine, lambda connection: retention.note_fetched(connection, [(job_id, ended_at)])):
            purging.commit()
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT


def test_without_retention_a_purge_that_began_before_a_fetch_takes_the_result_too(engine: Engine) -> None:
    job_id = ended_job(engine)
    ended_at = rows.row(engine, job_id)["ended_at"]
    with engine.connect() as fetching:
        retention.note_fetched(fetching, [(job_id, ended_at)])
        assert purge(engine, NOTHING_KEPT) == 0  # it passes over what somebody holds
        fetching.commit()
    assert rows.row(engine, job_id)["kept_until"] is not None
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT


@pytest.mark.parametrize("ends", [True, False])
def test_without_retention_the_results_of_a_batch_wait_for_its_end_and_not_for_ever(
    engine: Engine, *, ends: bool
) -> None:
    batch_id, job_id = uuid4(), ended_job(engine)
    rows.execute(
        engine,
        "INSERT INTO batches (id, tenant, name, project, prompt_id, prompt_version, prompt_digest, tier, state,"
        " request_digest, abort_if) VALUES (:id, 'acme', 'night', '', 'p', '1', 'd', 'small', 'running', 'd', '{}')",
        id=batch_id,
    )
    rows.execute(engine, "UPDATE jobs SET batch_id = :id", id=batch_id)
    for _ in range(3):
        assert purge(engine, NOTHING_KEPT) == 1
        assert held(engine, job_id) == TextRows(results=1, labels=1)
        assert purge(engine, NOTHING_KEPT) == 0
        later(engine, retention.RESULT_EXPIRES_S + 60)
    if not ends:
        later(engine, retention.BATCH_EXPIRES_S)
        assert purge(engine, NOTHING_KEPT) == 1
        assert held(engine, job_id) == NO_TEXT
        return
    rows.execute(engine, "UPDATE batches SET state = 'done', ended_at = now()")
    assert purge(engine, NOTHING_KEPT) == 1
    later(engine, retention.RESULT_EXPIRES_S - 60)
    assert purge(engine, NOTHING_KEPT) == 0
    assert held(engine, job_id) == TextRows(results=1, labels=1)
    later(engine, 120)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT


def test_without_retention_an_answer_that_comes_late_is_not_kept(engine: Engine) -> None:
    job = rows.running_job(engine)
    call_id = spend(engine, job, "intent")
    rows.finish(engine, rows.success(job))
    purge(engine, NOTHING_KEPT)
    with engine.begin() as connection:
        answer = Settlement(call_id, CallOutcome.ANSWERED, 7, request_digest="d", model_served="m", answer="A tale.")
        ledger.settle(connection, [answer])
    assert held(engine, job.id) == TextRows(results=1, labels=1)


@pytest.mark.parametrize("days", [0.0, 7.0])
def test_a_result_that_waits_goes_in_the_end_whatever_its_tenant_is_granted_now(engine: Engine, days: float) -> None:
    job_id = ended_job(engine)
    purge(engine, NOTHING_KEPT)
    waits_s = days * 86_400 + retention.RESULT_EXPIRES_S
    for later_s, jobs in ((waits_s - 60, 0), (120, 1)):
        later(engine, later_s)
        assert purge(engine, {"acme": days}) == jobs
    assert held(engine, job_id) == NO_TEXT


def test_without_retention_a_result_that_was_fetched_before_the_first_pass_goes_with_the_payload(
    engine: Engine,
) -> None:
    job_id = ended_job(engine)
    fetch(engine, job_id)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT


@pytest.mark.parametrize(("late_s", "is_kept"), [(-1, True), (1, False)])
def test_without_retention_a_result_that_nobody_fetches_expires(engine: Engine, late_s: int, *, is_kept: bool) -> None:
    job_id = ended_job(engine, days_ago=(retention.RESULT_EXPIRES_S + late_s * 30) / 86_400)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == (TextRows(results=1, labels=1) if is_kept else NO_TEXT)


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_without_retention_a_job_that_gave_no_result_loses_everything_at_once(engine: Engine, state: str) -> None:
    job_id = ended_job(engine, state)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT
    assert rows.row(engine, job_id)["purged_at"] is not None


def test_where_a_period_is_given_a_fetch_changes_nothing(engine: Engine) -> None:
    job_id = ended_job(engine, days_ago=0.5)
    fetch(engine, job_id)
    assert purge(engine, {"acme": 1.0}) == 0
    assert held(engine, job_id) == TextRows(1, 1, 1, 1)


def test_only_the_first_fetch_counts(engine: Engine) -> None:
    job_id = ended_job(engine)
    fetch(engine, job_id)
    [first] = rows.everything(engine)["results"]
    assert first["fetched_at"] >= rows.row(engine, job_id)["ended_at"]
    fetch(engine, job_id)
    assert rows.everything(engine)["results"] == [first]


def test_a_fetch_of_the_result_before_is_no_fetch_of_the_one_that_took_its_place(engine: Engine) -> None:
    job_id = degraded_job(engine)
    seen = rows.row(engine, job_id)["ended_at"]
    fetch(engine, job_id)
    with engine.begin() as connection:
        assert reruns.rerun(connection, [job_id]) == [job_id]
        release.release_fairly(connection, "small", Lane.INTERACTIVE, Allowance(1))
    again = rows.claim(engine, job_id)
    assert again is not None
    rows.finish(engine, rows.success(again))
    with engine.begin() as connection:
        retention.note_fetched(connection, [(job_id, seen)])
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id).results == 1
    fetch(engine, job_id)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job_id) == NO_TEXT


def test_what_a_refusal_quotes_goes_too(engine: Engine) -> None:
    job_id = uuid4()
    with engine.begin() as connection:
        submission.bury_refused(connection, job_id, tenant="acme", prompt="x", detail="variables.secret: is not taken")
    assert purge(engine, NOTHING_KEPT) == 1
    row = rows.row(engine, job_id)
    assert (row["detail"], row["reason"], row["state"]) == (None, "invalid", "dead")


def test_a_purged_job_is_neither_replayed_nor_rerun_and_may_be_discarded(engine: Engine) -> None:
    dead, degraded = rows.dead_job(engine), degraded_job(engine)
    assert purge(engine, NOTHING_KEPT) == 2
    with engine.begin() as connection:
        assert dead_letters.replay(connection, [dead]) == []
        assert reruns.rerun(connection, [degraded]) == []
        assert dead_letters.discard(connection, [dead]) == [dead]
        left = retention.survey(connection, "acme", None)
    assert (rows.state(engine, dead), rows.state(engine, degraded)) == ("cancelled", "succeeded")
    assert (left.rows, left.unpurged_jobs) == (TextRows(results=1, labels=1), 1)


def test_two_purges_at_once_share_the_jobs_without_waiting(engine: Engine) -> None:
    ids = [ended_job(engine, "dead") for _ in range(6)]
    with engine.connect() as first, engine.connect() as second:
        some = retention.purge_expired(first, NOTHING_KEPT, None, most=4)
        rest = retention.purge_expired(second, NOTHING_KEPT, None)
        second.commit()
        first.commit()
    assert (some, rest) == (4, 2)
    assert {held(engine, job_id) for job_id in ids} == {NO_TEXT}


def test_a_purge_neither_waits_for_an_end_that_is_being_written_nor_misses_it(engine: Engine) -> None:
    job = rows.running_job(engine)
    with engine.connect() as ending:
        assert execution.finish(ending, [rows.death(job)]) == [True]
        assert purge(engine, NOTHING_KEPT) == 0
        ending.commit()
    assert has_payload(engine, job.id)
    assert purge(engine, NOTHING_KEPT) == 1
    assert held(engine, job.id) == NO_TEXT


def test_an_end_that_comes_after_a_purge_began_waits_for_the_next(engine: Engine) -> None:
    job = rows.running_job(engine)
    other = ended_job(engine, "dead")
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        assert rows.finish(engine, rows.success(job))
        purging.commit()
    assert held(engine, other) == NO_TEXT
    assert held(engine, job.id) == TextRows(payloads=1, results=1, labels=1)


def test_a_job_that_is_being_replayed_keeps_its_payload(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as replaying:
        assert dead_letters.replay(replaying, [job_id]) == [job_id]
        assert purge(engine, NOTHING_KEPT) == 0
        replaying.commit()
    assert purge(engine, NOTHING_KEPT) == 0
    assert (rows.state(engine, job_id), has_payload(engine, job_id)) == ("queued", True)


def test_a_degraded_job_that_is_being_rerun_keeps_its_payload(engine: Engine) -> None:
    job_id = degraded_job(engine)
    with engine.connect() as rerunning:
        assert reruns.rerun(rerunning, [job_id]) == [job_id]
        assert purge(engine, NOTHING_KEPT) == 0
        rerunning.commit()
    assert purge(engine, NOTHING_KEPT) == 0
    assert (rows.state(engine, job_id), has_payload(engine, job_id)) == ("queued", True)


def replay(connection: Connection, job_id: UUID) -> list[UUID]:
    retention.hold(connection, [job_id])
    return dead_letters.replay(connection, [job_id])


def rerun(connection: Connection, job_id: UUID) -> list[UUID]:
    retention.hold(connection, [job_id])
    return reruns.rerun(connection, [job_id])


def test_a_replay_that_waited_for_a_purge_finds_no_payload(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        with rows.behind(engine, lambda connection: replay(connection, job_id)) as replayed:
            purging.commit()
    assert replayed.result() == []
    assert (rows.state(engine, job_id), has_payload(engine, job_id)) == ("dead", False)


def test_a_rerun_that_waited_for_a_purge_finds_no_payload(engine: Engine) -> None:
    job_id = degraded_job(engine)
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        with rows.behind(engine, lambda connection: rerun(connection, job_id)) as rerun_:
            purging.commit()
    assert rerun_.result() == []
    assert (rows.state(engine, job_id), has_payload(engine, job_id)) == ("succeeded", False)


@pytest.mark.parametrize("is_fetched", [False, True])
def test_a_rerun_that_did_not_wait_for_a_purge_first_takes_no_job_without_a_payload(
    engine: Engine, *, is_fetched: bool
) -> None:
    job_id = degraded_job(engine)
    if is_fetched:
        fetch(engine, job_id)
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        with rows.behind(engine, lambda connection: reruns.rerun(connection, [job_id])) as rerun_:
            purging.commit()
    assert rerun_.result() == []
    assert (rows.state(engine, job_id), has_payload(engine, job_id)) == ("succeeded", False)


def test_a_purge_that_gave_up_leaves_a_replay_its_payload(engine: Engine) -> None:
    job_id = rows.dead_job(engine)
    with engine.connect() as purging:
        assert keep_nothing(purging) == 1
        with rows.behind(engine, lambda connection: replay(connection, job_id)) as replayed:
            purging.rollback()
    assert replayed.result() == [job_id]
    assert has_payload(engine, job_id)


def test_in_a_race_of_purges_and_replays_every_live_job_has_its_payload(engine: Engine) -> None:
    rows.submit(engine, *[rows.new_job() for _ in range(300)])
    rows.execute(engine, "UPDATE jobs SET state = 'dead', reason = 'timeout', ended_at = now() - interval '1 hour'")
    with engine.begin() as connection:
        ids = list(connection.scalars(text("SELECT id FROM jobs")))

    def forget(connection: Connection) -> int:
        return sum(retention.purge_expired(connection, NOTHING_KEPT, None, most=10) for _ in range(10))

    def replay_all(connection: Connection) -> int:
        return sum(len(replay(connection, job_id)) for job_id in sorted(ids)[::3])

    purged, replayed, purged_too = rows.at_once(engine, forget, replay_all, forget)
    with engine.begin() as connection:
        found = connection.execute(
            text("""
                SELECT state, purged_at IS NOT NULL AS purged, payloads.job_id IS NOT NULL AS kept, count(*) AS jobs
                FROM jobs LEFT JOIN payloads ON job_id = id GROUP BY 1, 2, 3
            """)
        ).all()
    counts = {(row.state, row.purged, row.kept): row.jobs for row in found}
    assert counts.pop(("queued", False, True), 0) == replayed
    assert counts.pop(("dead", True, False)) == purged + purged_too
    assert counts == {("dead", False, True): 300 - replayed - purged - purged_too} or counts == {}


def test_an_answer_that_comes_after_the_purge_is_settled_and_not_kept(engine: Engine) -> None:
    job = rows.running_job(engine)
    call_id = spend(engine, job, "intent")
    with engine.begin() as connection:
        queries.cancel(connection, [job.id])
    assert purge(engine, NOTHING_KEPT) == 1
    late = Settlement(
        call_id, CallOutcome.ANSWERED, 3, request_digest="d", model_served="m", finish_reason="stop", answer="A tale."
    )
    with engine.begin() as connection:
        ledger.settle(connection, [late])
    assert held(engine, job.id) == NO_TEXT
    [row] = rows.everything(engine)["ledger"]
    assert (row["state"], row["nanodollars"]) == ("settled", 3)


def test_a_survey_counts_what_ended_until_then_and_what_lives(engine: Engine) -> None:
    ended_job(engine, days_ago=3)
    ended_job(engine, "dead", days_ago=1)
    ended_job(engine, tenant="globex", days_ago=3)
    rows.running_job(engine)
    with engine.begin() as connection:
        all_of_it = retention.survey(connection, "acme", None)
        until = connection.scalar(text("SELECT now() - interval '2 days'"))
        assert isinstance(until, datetime)
        old = retention.survey(connection, "acme", until)
        to_come = retention.survey(connection, "acme", datetime.fromisoformat("2999-01-01T00:00:00+00:00"))
        now = connection.scalar(text("SELECT now()"))
        nobody = retention.survey(connection, "nobody", None)
    assert (all_of_it.rows, all_of_it.unpurged_jobs) == (TextRows(2, 2, 1, 2), 2)
    assert (old.rows, old.unpurged_jobs, old.until) == (TextRows(1, 1, 1, 1), 1, until)
    assert (all_of_it.live_jobs, all_of_it.ledger_rows, old.live_jobs, old.ledger_rows) == (1, 2, 1, 2)
    assert to_come == all_of_it
    assert to_come.until == now
    assert (nobody.has_jobs, nobody.rows, nobody.live_jobs, nobody.ledger_rows) == (False, NO_TEXT, 0, 0)


def test_a_proof_is_complete_only_when_nothing_is_left() -> None:
    now = datetime.fromisoformat("2026-01-31T12:00:00+00:00")

    def prove(left: TextRows) -> PurgeProof:
        def look(found: TextRows) -> retention.Survey:
            return retention.Survey("acme", now, True, 1, 2, 3, found)

        batches = [retention.Purged(2, TextRows(1, 2, 3, 4)), retention.Purged(1, TextRows(1, 1, 1, 1))]
        return retention.prove(look(TextRows(2, 3, 4, 5)), batches, look(left))

    proof = prove(NO_TEXT)
    assert (proof.jobs, proof.before, proof.deleted) == (3, TextRows(2, 3, 4, 5), TextRows(2, 3, 4, 5))
    assert (proof.ledger_rows, proof.live_jobs, proof.is_complete) == (3, 2, True)
    for left in (TextRows(payloads=1), TextRows(answers=1), TextRows(results=1), TextRows(labels=1)):
        assert not prove(left).is_complete


def test_ends_are_those_of_the_state_diagram() -> None:
    assert {state.value for state in JobState if state.is_terminal} == set(ENDS)
