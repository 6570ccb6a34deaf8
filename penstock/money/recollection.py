"""What earlier calls of a job left: an answer that was paid for is not asked again. It must not know prices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

ANSWER = text("""
    SELECT given.position, answers.call_id, answers.model_served, answers.finish_reason, answers.text,
        ledger.deployment, ledger.over_soft_limit, EXISTS (
            SELECT 1 FROM ledger AS cut WHERE cut.job_id = given.job_id AND cut.reason = 'output_truncated') AS was_cut
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS given(position integer, job_id uuid, request_digest text)
    LEFT JOIN answers ON answers.job_id = given.job_id AND answers.request_digest = given.request_digest
    LEFT JOIN ledger ON ledger.call_id = answers.call_id
""")


@dataclass(frozen=True)
class JournaledAnswer:
    """An answer that was paid for by an earlier call of the same job."""

    call_id: UUID
    deployment: str
    model_served: str
    finish_reason: str
    text: str
    over_soft_limit: bool = False


@dataclass(frozen=True)
class Recollection:
    """What the calls of earlier attempts left: an answer that can be used, and whether one was cut at its bound."""

    answer: JournaledAnswer | None = None
    was_cut: bool = False


def recall(connection: Connection, wanted: Sequence[tuple[UUID, str]]) -> list[Recollection]:
    """Look up what earlier calls left, by job and request digest."""
    rows = [{"position": n, "job_id": str(job), "request_digest": digest} for n, (job, digest) in enumerate(wanted)]
    found = [Recollection()] * len(wanted)
    for row in connection.execute(ANSWER, {"rows": json.dumps(rows)}):
        answer = None
        if row.call_id is not None:
            answer = JournaledAnswer(
                row.call_id, row.deployment, row.model_served, row.finish_reason, row.text, row.over_soft_limit
            )
        found[row.position] = Recollection(answer, row.was_cut)
    return found
