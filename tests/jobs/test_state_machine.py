"""Any sequence of the house's verbs, on a real Postgres, keeps every job inside its state diagram."""

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, text

from penstock.errors import Reason
from penstock.jobs import dead_letters, execution, leases, queries, recovery, release, reruns, submission
from penstock.jobs.execution import Claim, ClaimedJob, Ending, Outcome
from penstock.jobs.release import Allowance, Group
from penstock.jobs.states import TRANSITIONS
from penstock.schemas import JobState, Lane
from tests.jobs import rows

WORKERS = ("w1", "w2")
MOST_JOBS = 5
BORN_AS = {JobState.QUEUED, JobState.RELEASED, JobState.DEAD}

picks = st.integers(0, MOST_JOBS - 1)
workers = st.sampled_from(WORKERS)
ends = st.lists(st.sampled_from(Outcome), min_size=4, max_size=4)


class JobLife(RuleBasedStateMachine):
    """A few jobs, three workers, and everybody who may touch them; `seen` is each row as the last rule left it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.seen: dict[UUID, dict[str, Any]] = {}
        self.ids: list[UUID] = []
        self.runs: list[ClaimedJob] = []
        self.deferred: set[tuple[UUID, int]] = set()
        self.rerun: set[UUID] = set()
        self.may_leave_an_end = False
        rows.execute(engine, f"TRUNCATE {', '.join(rows.TABLES)} CASCADE")

    def pick(self, number: int) -> UUID:
        return self.ids[number % len(self.ids)]

    def row(self, job_id: UUID) -> dict[str, Any]:
        return self.seen[job_id]

    def owns(self, run: ClaimedJob) -> bool:
        row = self.row(run.id)
        return (row["state"], row["fence"]) == ("running", run.fence)

    @initialize()
    def begin_with_two_runs(self) -> None:
        for worker in WORKERS:
            rows.start_worker(self.engine, worker)
        for worker in WORKERS[:2]:
            self.submit(Lane.INTERACTIVE, 9)
            self.no_path_leaves_the_diagram()
            run = rows.claim(self.engine, self.ids[-1], worker)
            assert run is not None
            self.runs.append(run)

    @precondition(lambda self: len(self.ids) < MOST_JOBS)
    @rule(lane=st.sampled_from(Lane), window=st.integers(0, 3))
    def submit(self, lane: Lane, window: int) -> None:
        job = rows.new_job(lane=lane)
        rows.submit(self.engine, job, window=window)
        self.ids.append(job.id)

    @rule(number=picks)
    def submit_again(self, number: int) -> None:
        if self.row(self.pick(number))["reason"] != "invalid":
            rows.submit(self.engine, rows.new_job(id=self.pick(number)))

    @precondition(lambda self: len(self.ids) < MOST_JOBS)
    @rule()
    def refuse(self) -> None:
        self.ids.append(uuid4())
        with self.engine.begin() as connection:
            submission.bury_refused(connection, self.ids[-1], tenant="acme", prompt="x", detail="no")

    @rule(most=st.integers(1, MOST_JOBS))
    def feed(self, most: int) -> None:
        with self.engine.begin() as connection:
            again = [
                found
                for lane in Lane
                for is_retry in (False, True)
                for found in release.release_again(
                    connection, "small", Group(lane, is_retry), older_than_s=-1, most=most
                )
            ]
            allowance = Allowance(most)
            retries = [
                found for lane in Lane for found in release.release_retries(connection, "small", lane, allowance)
            ]
            new = [found for lane in Lane for found in release.release_fairly(connection, "small", lane, allowance)]
        assert {self.row(found.job_id)["state"] for found in again} <= {"released"}
        assert {self.row(found.job_id)["state"] for found in retries} <= {"retrying"}
        assert {self.row(found.job_id)["state"] for found in new} <= {"queued"}

    @rule(worker=workers)
    def feed_and_claim_all(self, worker: str) -> None:
        self.feed(MOST_JOBS)
        self.no_path_leaves_the_diagram()
        self.claim(list(range(len(self.ids))), worker)

    @rule(numbers=st.lists(picks, min_size=1, max_size=3), worker=workers)
    def claim(self, numbers: list[int], worker: str) -> None:
        wanted = [self.pick(number) for number in numbers]
        with self.engine.begin() as connection:
            claimed = execution.claim(connection, [Claim(job_id, worker) for job_id in wanted])
        free = {
            job_id for job_id in wanted if self.row(job_id)["state"] == "released" and not self.row(job_id)["deadline"]
        }
        assert Counter(job.id for job in claimed if job) == Counter(free)
        self.runs += [job for job in claimed if job]

    @rule(numbers=st.lists(st.integers(0, 2), min_size=1, max_size=4), ends=ends)
    def finish(self, numbers: list[int], ends: list[Outcome]) -> None:
        """End some of the latest runs together, or the same one twice."""
        self.end([self.runs[-1 - number % len(self.runs)] for number in numbers], ends)

    @precondition(lambda self: self.zombies())
    @rule(ends=ends, owner_too=st.booleans())
    def finish_as_zombie(self, ends: list[Outcome], *, owner_too: bool) -> None:
        """End a run whose job runs under a later fence, and that later run with it."""
        zombie = self.zombies()[0]
        owner = [run for run in self.runs if run.id == zombie.id and self.owns(run)]
        self.end([zombie, *owner] if owner_too else [zombie], ends)

    def zombies(self) -> list[ClaimedJob]:
        return [run for run in self.runs if self.row(run.id)["state"] == "running" and not self.owns(run)]

    def end(self, runs: list[ClaimedJob], ends: list[Outcome]) -> None:
        endings = [
            Ending(
                run.id,
                run.fence,
                outcome,
                Reason.TIMEOUT,
                failed=True,
                result="r",
                degraded=self.is_degraded(run),
                model_asked="m",
                model_served="m",
            )
            for run, outcome in zip(runs, ends, strict=False)
        ]
        with self.engine.begin() as connection:
            ended = execution.finish(connection, endings)
        first = [runs.index(run) == position for position, run in enumerate(runs)]
        assert ended == [self.owns(run) and is_first for run, is_first in zip(runs, first, strict=True)]
        for run, outcome, has_ended in zip(runs, ends, ended, strict=False):
            if outcome is Outcome.DEFERRED and has_ended:
                self.came_to_nothing(run)

    def came_to_nothing(self, run: ClaimedJob) -> None:
        """Check that a job which could not be admitted is where it was before this run."""
        before, after = self.row(run.id), rows.row(self.engine, run.id)
        assert after["state"] == ("queued" if before["attempts"] == 1 else "retrying")
        assert (after["attempts"], after["fence"]) == (before["attempts"] - 1, before["fence"])
        self.deferred.add((run.id, run.fence))

    @staticmethod
    def is_degraded(run: ClaimedJob) -> bool:
        return run.fence % 2 == 1

    @rule(number=picks)
    def cancel(self, number: int) -> None:
        job_id = self.pick(number)
        with self.engine.begin() as connection:
            cancelled = queries.cancel(connection, [job_id])
        state = self.row(job_id)["state"]
        assert cancelled == ([] if JobState(state).is_terminal else [job_id])

    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        rows.expire_lease(self.engine, worker)
        with self.engine.begin() as connection:
            recovered = recovery.recover_expired(connection)
        mine = {job_id for job_id, row in self.seen.items() if (row["state"], row["worker"]) == ("running", worker)}
        assert {each.job_id for each in recovered} == mine
        assert {each.job_id for each in recovered if each.dead} == {i for i in mine if self.seen[i]["crashes"] == 2}
        rows.start_worker(self.engine, worker)

    @rule(worker=workers, known=st.booleans())
    def beat(self, worker: str, *, known: bool) -> None:
        mine = [job_id for job_id, row in self.seen.items() if (row["state"], row["worker"]) == ("running", worker)]
        with self.engine.begin() as connection:
            leases.renew(connection, worker, 60.0)
            back = leases.release_adrift(connection, worker, mine if known else mine[:1], older_than_s=-1)
        assert back == (0 if known else max(0, len(mine) - 1))

    @rule(worker=workers)
    def ask_what_is_lost(self, worker: str) -> None:
        runs = {(run.id, run.fence): run for run in self.runs if run.worker == worker}
        with self.engine.begin() as connection:
            lost = leases.lost(connection, list(runs))
        assert Counter(lost) == Counter(key for key, run in runs.items() if not self.owns(run))

    @rule(number=picks)
    def pass_deadline(self, number: int) -> None:
        rows.execute(
            self.engine,
            "UPDATE jobs SET deadline = now() WHERE id = :id AND state NOT IN ('succeeded', 'dead', 'cancelled')",
            id=self.pick(number),
        )
        with self.engine.begin() as connection:
            buried = recovery.bury_overdue(connection)
        assert {self.row(each.job_id)["state"] for each in buried} <= {"queued", "released", "retrying"}

    @rule(number=picks)
    def replay(self, number: int) -> None:
        job_id = self.pick(number)
        self.may_leave_an_end = True
        with self.engine.begin() as connection:
            replayed = dead_letters.replay(connection, [job_id])
        row = self.row(job_id)
        assert replayed == ([job_id] if row["state"] == "dead" and row["reason"] != "invalid" else [])

    @precondition(lambda self: any(row["state"] == "succeeded" for row in self.seen.values()))
    @rule()
    def rerun_what_succeeded(self) -> None:
        self.may_leave_an_end = True
        with self.engine.begin() as connection:
            degraded = set(connection.scalars(text("SELECT job_id FROM results WHERE degraded")))
            rerun = reruns.rerun(connection, self.ids)
        assert set(rerun) == {job_id for job_id in degraded if self.row(job_id)["state"] == "succeeded"}
        self.rerun |= degraded

    @rule(number=picks)
    def discard(self, number: int) -> None:
        job_id = self.pick(number)
        self.may_leave_an_end = True
        with self.engine.begin() as connection:
            discarded = dead_letters.discard(connection, [job_id])
        assert discarded == ([job_id] if self.row(job_id)["state"] == "dead" else [])

    @rule()
    def announce(self) -> None:
        with self.engine.begin() as connection:
            letters = dead_letters.take_unannounced(connection)
        untold = {job_id for job_id, row in self.seen.items() if row["state"] == "dead" and not row["announced"]}
        assert Counter(letter.job_id for letter in letters) == Counter(untold)

    @invariant()
    def no_path_leaves_the_diagram(self) -> None:
        with self.engine.begin() as connection:
            now = {row["id"]: dict(row) for row in connection.execute(text("SELECT * FROM jobs")).mappings()}
            self.attempts_fit(connection, now)
            results = list(connection.scalars(text("SELECT job_id FROM results")))
        assert set(results) == self.rerun | {job_id for job_id, row in now.items() if row["state"] == "succeeded"}
        assert len(results) == len(set(results))
        assert now.keys() == set(self.ids)
        for job_id, row in now.items():
            self.step_is_allowed(self.seen.get(job_id), row)
        self.seen = now
        self.may_leave_an_end = False

    def step_is_allowed(self, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        state = JobState(after["state"])
        assert (after["ended_at"] is not None) == state.is_terminal
        if before is None:
            assert state in BORN_AS
            return
        left = JobState(before["state"])
        assert state is left or state in TRANSITIONS[left]
        assert after["fence"] == before["fence"] + (left is JobState.RELEASED and state is JobState.RUNNING)
        if left.is_terminal and not self.may_leave_an_end:
            assert after == before | {"announced": after["announced"]}

    def attempts_fit(self, connection: Connection, jobs: dict[UUID, dict[str, Any]]) -> None:
        """Each claim that was not deferred left an attempt, and the only open one is the last of a running job."""
        attempts: dict[UUID, list[Any]] = {job_id: [] for job_id in jobs}
        for attempt in connection.execute(text("SELECT * FROM attempts ORDER BY fence")):
            attempts[attempt.job_id].append(attempt)
        for job_id, job in jobs.items():
            fences = [fence for fence in range(1, job["fence"] + 1) if (job_id, fence) not in self.deferred]
            assert [attempt.fence for attempt in attempts[job_id]] == fences
            assert job["attempts"] == len(fences)
            still_open = [attempt.fence for attempt in attempts[job_id] if attempt.outcome == "running"]
            assert still_open == ([job["fence"]] if job["state"] == "running" else [])
            assert all((attempt.ended_at is None) == (attempt.outcome == "running") for attempt in attempts[job_id])


def test_no_sequence_of_steps_leaves_the_state_diagram(schema: Engine) -> None:
    run_state_machine_as_test(
        lambda: JobLife(schema),  # type: ignore[arg-type] # any maker of one will do
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None),
    )


def test_every_state_is_in_the_diagram_and_only_the_dead_and_the_degraded_leave_an_end() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {state: following for state, following in TRANSITIONS.items() if state.is_terminal and following} == {
        JobState.DEAD: {JobState.QUEUED, JobState.CANCELLED},
        JobState.SUCCEEDED: {JobState.QUEUED},
    }
