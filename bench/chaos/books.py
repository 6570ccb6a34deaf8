"""What a run left in Postgres and at the provider, compared call by call. It must not know what had happened."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

OPEN_STATES = {"intent", "unknown"}

CALLS = text("""
    SELECT ledger.call_id, ledger.job_id, ledger.fence, ledger.tenant, ledger.state, ledger.reason, ledger.intended_at,
        ledger.settled_at, ledger.nanodollars + coalesce(sum(corrections.nanodollars), 0)::bigint AS nanodollars,
        max(corrections.corrected_at) AS corrected_at
    FROM ledger LEFT JOIN ledger_corrections AS corrections USING (call_id) GROUP BY ledger.call_id
""")
ANSWERS = text("SELECT job_id, call_id FROM answers")
ATTEMPTS = text("SELECT job_id, fence, started_at, ended_at, outcome FROM attempts ORDER BY job_id, fence")
JOBS = text("SELECT id, state, reason FROM jobs")
RESULTS = text("""
    SELECT count(*) FROM jobs WHERE (state = 'succeeded') <> EXISTS (SELECT 1 FROM results WHERE job_id = jobs.id)
        OR (SELECT count(*) FROM attempts WHERE job_id = jobs.id AND outcome = 'succeeded') > 1
""")
FOREIGN = text("""
    SELECT count(*) FROM results JOIN payloads USING (job_id) WHERE results.text <> payloads.document
""")
UNBOOKED = text("""
    WITH sums AS (
        SELECT tenant, sum(nanodollars)::bigint AS nanodollars FROM ledger_amounts JOIN (
            SELECT call_id, tenant FROM ledger) AS calls USING (call_id) GROUP BY tenant
    )
    SELECT coalesce(sum(abs(coalesce(booked.settled, 0) - coalesce(sums.nanodollars, 0)) + coalesce(booked.held, 0)), 0)
    FROM sums FULL JOIN (
        SELECT tenant, sum(settled_nanodollars)::bigint AS settled, sum(held_nanodollars)::bigint AS held FROM spending
        WHERE period = 'month' AND project = '' GROUP BY tenant
    ) AS booked USING (tenant)
""")


@dataclass(frozen=True)
class Books:
    """Everything that was written, and the provider's invoice by the name of the call."""

    calls: Sequence[Row[Any]]
    answers: Mapping[UUID, UUID]
    attempts: Mapping[UUID, Sequence[Row[Any]]]
    jobs: Mapping[UUID, Row[Any]]
    invoice: Mapping[str, int]
    wrong_results: int
    foreign_results: int
    unbooked: int

    @property
    def difference(self) -> int:
        """Give by how many nano-dollars the ledger is above the invoice."""
        booked: int = sum(call.nanodollars for call in self.calls)
        return booked - sum(self.invoice.values())

    def hidden(self) -> Counter[str]:
        """Give, by reason, what calls of an unknown end are held to cost above what they did cost."""
        above: Counter[str] = Counter()
        for call in self.calls:
            if call.state in OPEN_STATES:
                above[call.reason or call.state] += call.nanodollars - self.invoice.get(str(call.call_id), 0)
        return above

    def misjudged(self) -> int:
        """Count the calls whose end is known and whose cost is not what the invoice says."""
        return sum(
            call.state not in OPEN_STATES and call.nanodollars != self.invoice.get(str(call.call_id), 0)
            for call in self.calls
        )

    def too_low(self) -> int:
        """Count the calls that cost more than the ledger says, and the lines of the invoice that it does not know."""
        known = {str(call.call_id) for call in self.calls}
        below = [call for call in self.calls if call.nanodollars < self.invoice.get(str(call.call_id), 0)]
        return len(below) + len(self.invoice.keys() - known)

    def bought_twice(self) -> tuple[int, int]:
        """Count the paid calls of attempts that began after the job's answer was recorded.

        And those of attempts that were under way when an earlier attempt, taken for dead, recorded it.
        """
        recorded = {call.call_id: call.corrected_at or call.settled_at for call in self.calls}
        late, beside = 0, 0
        for call in self.calls:
            first = self.answers.get(call.job_id)
            if first in {None, call.call_id} or str(call.call_id) not in self.invoice:
                continue
            known_at = recorded[first]
            late += self._began(call) > known_at
            beside += self._began(call) <= known_at < call.intended_at
        return late, beside

    def repeated_calls(self) -> int:
        """Count the calls that were paid beyond one for each job."""
        paid = [call.job_id for call in self.calls if str(call.call_id) in self.invoice]
        return len(paid) - len(set(paid))

    def executions(self, job_id: UUID) -> int:
        """Count the attempts of a job."""
        return len(self.attempts.get(job_id, ()))

    def recovered_after_s(self, job_id: UUID, fence: int, killed_at: datetime, replayed: Sequence[datetime]) -> float:
        """Say how long after its worker was killed a job was claimed again, or had ended."""
        runs = self.attempts.get(job_id, ())
        ended = next((run.ended_at for run in runs if run.fence == fence), killed_at)
        again = min((run.started_at for run in runs if run.fence > fence), default=None)
        if ended is None:
            return math.inf
        died = again is None or any(ended <= at <= again for at in replayed)
        over_at = ended if died or again is None else again
        return max(0.0, (over_at - killed_at).total_seconds())

    def _began(self, call: Row[Any]) -> datetime:
        started: datetime = call.intended_at
        for run in self.attempts.get(call.job_id, ()):
            if run.fence == call.fence:
                started = run.started_at
        return started


def read(connection: Connection, lines: Sequence[Mapping[str, Any]]) -> Books:
    """Read everything."""
    attempts: defaultdict[UUID, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(ATTEMPTS):
        attempts[row.job_id].append(row)
    invoice: Counter[str] = Counter()
    for line in lines:
        invoice[str(line["client_request_id"])] += line["nanodollars"]
    return Books(
        calls=connection.execute(CALLS).all(),
        answers={row.job_id: row.call_id for row in connection.execute(ANSWERS)},
        attempts=attempts,
        jobs={row.id: row for row in connection.execute(JOBS)},
        invoice=invoice,
        wrong_results=int(connection.scalar(RESULTS) or 0),
        foreign_results=int(connection.scalar(FOREIGN) or 0),
        unbooked=int(connection.scalar(UNBOOKED) or 0),
    )
