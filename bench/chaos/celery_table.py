"""What the tasks of plain Celery write down, in one SQLite file for all processes. It must not know Celery."""

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WAIT_S = 60.0
TABLES = """
    CREATE TABLE IF NOT EXISTS workers (pid INTEGER);
    CREATE TABLE IF NOT EXISTS runs (job TEXT, call TEXT, pid INTEGER, began_at REAL);
    CREATE TABLE IF NOT EXISTS results (job TEXT, call TEXT, is_own INTEGER, ended_at REAL);
"""


@dataclass(frozen=True)
class Ran:
    """One execution of a task; `ended_at` is None where it came to no result. Times are readings of the wall clock."""

    job: str
    call: str
    pid: int
    began_at: float
    ended_at: float | None
    is_own: bool


class Table:
    """A connection to the file, for one thread."""

    def __init__(self, path: str) -> None:
        """Open it; several processes write, each waits for the others."""
        self._connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(TABLES)

    def ready(self, pid: int) -> None:
        """Note a worker that takes jobs."""
        self._connection.execute("INSERT INTO workers VALUES (?)", (pid,))

    def begin(self, job: str, call: str, pid: int) -> None:
        """Note that a task begins, and under which name it will call."""
        self._connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (job, call, pid, time.time()))

    def end(self, job: str, call: str, is_own: bool) -> None:  # noqa: FBT001 - a row
        """Keep a result; `is_own` says that it is about the job's document."""
        self._connection.execute("INSERT INTO results VALUES (?, ?, ?, ?)", (job, call, is_own, time.time()))

    def pids(self) -> set[int]:
        """Give the workers that took jobs at some time."""
        return {pid for (pid,) in self._connection.execute("SELECT pid FROM workers")}

    def done(self) -> int:
        """Count the jobs with a result."""
        (jobs,) = self._connection.execute("SELECT count(DISTINCT job) FROM results").fetchone()
        return int(jobs)

    def runs(self) -> list[Ran]:
        """Read everything, in the order of beginning."""
        statement = """
            SELECT runs.job, runs.call, pid, began_at, ended_at, coalesce(is_own, 1)
            FROM runs LEFT JOIN results USING (call) ORDER BY began_at
        """
        return [
            Ran(job, call, pid, began_at, ended_at, bool(own))
            for job, call, pid, began_at, ended_at, own in self._connection.execute(statement)
        ]


@dataclass(frozen=True)
class PeerBooks:
    """What came of the jobs, by their runs and the invoice by call."""

    accepted: frozenset[str]
    runs: tuple[Ran, ...]
    invoice: Mapping[str, int]

    @property
    def lost(self) -> int:
        """Count the accepted jobs without a result."""
        return len(self.accepted - {run.job for run in self.runs if run.ended_at is not None})

    @property
    def more_than_one_result(self) -> int:
        """Count the jobs with several."""
        results = Counter(run.job for run in self.runs if run.ended_at is not None)
        return sum(number > 1 for number in results.values())

    @property
    def foreign_results(self) -> int:
        """Count the results that are about another document."""
        return sum(not run.is_own for run in self.runs)

    @property
    def bought_twice(self) -> int:
        """Count the paid calls of runs that began after the job's first result was written."""
        first: dict[str, float] = {}
        for run in self.runs:
            if run.ended_at is not None:
                first[run.job] = min(run.ended_at, first.get(run.job, run.ended_at))
        return sum(run.call in self.invoice and run.began_at > first.get(run.job, run.began_at) for run in self.runs)

    @property
    def repeated_calls(self) -> int:
        """Count the calls that were paid beyond one for each job."""
        paid = [run.job for run in self.runs if run.call in self.invoice]
        return len(paid) - len(set(paid))

    def executions(self, job: str) -> int:
        """Count the runs of a job."""
        return sum(run.job == job for run in self.runs)

    def recoveries_s(self, kills: Iterable[tuple[int, float]]) -> list[float]:
        """Give how long each run under way at a kill of its process took to begin again; those that never did are lost.

        A kill is a process and when it died.
        """
        of_process, of_job = defaultdict(list), defaultdict(list)
        for run in self.runs:
            of_process[run.pid].append(run)
            of_job[run.job].append(run)
        waits_s = []
        for pid, killed_at in kills:
            for run in of_process[pid]:
                again = [other.began_at for other in of_job[run.job] if other.began_at > killed_at]
                if run.ended_at is None and again:
                    waits_s.append(min(again) - killed_at)
        return waits_s
