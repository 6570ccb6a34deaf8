"""What earlier calls left: an answer that was paid for is not asked again. It must not know prices.

The journal of answers is the cache, too: an answer stands in for the next one to the same question of its tenant, for
as long as the job that paid for it keeps its text.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.money import ledger
from penstock.money.ledger import NOTHING
from penstock.schemas import TOKEN_CLASSES, Usage

RECALL = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            position integer, job_id uuid, request_digest text, tenant text, tier text, models text[])
    )
    SELECT given.position, known.*, asking.call_id AS asking, asking.is_lost, EXISTS (
        SELECT 1 FROM ledger AS cut WHERE cut.job_id = given.job_id AND cut.reason = 'output_truncated') AS was_cut
    FROM given
    LEFT JOIN LATERAL (
        SELECT answers.call_id, answers.job_id = given.job_id AS is_own, answers.model_served, answers.finish_reason,
            answers.text, ledger.deployment, ledger.over_soft_limit, ledger.input_tokens, ledger.cached_input_tokens,
            ledger.cache_write_tokens, ledger.output_tokens, ledger.reasoning_tokens
        FROM answers JOIN ledger USING (call_id)
        WHERE answers.request_digest = given.request_digest AND (answers.job_id = given.job_id
            OR (answers.tenant = given.tenant AND answers.model = ANY(given.models)))
        ORDER BY answers.job_id = given.job_id DESC, array_position(given.models, answers.model),
            answers.answered_at DESC, answers.call_id
        LIMIT 1
    ) AS known ON true
    LEFT JOIN LATERAL (
        SELECT call_id, NOT EXISTS (SELECT 1 FROM jobs
            WHERE jobs.id = job_id AND jobs.fence = ledger.fence AND jobs.state = 'running') AS is_lost
        FROM ledger
        WHERE ledger.tenant = given.tenant AND ledger.tier = given.tier AND ledger.settled_at IS NULL
            AND ledger.request_digest = given.request_digest AND given.models <> '{}'
        LIMIT 1
    ) AS asking ON known.call_id IS NULL
""")


FORGET = text("""
    DELETE FROM answers
    WHERE call_id = :call_id AND request_digest = :request_digest AND (job_id = :job_id OR tenant = :tenant)
""")


@dataclass(frozen=True)
class Question:
    """What a job asks of a tier.

    An answer of one of `models`, the preferred one first, is taken from another job of the tenant, too, and one that is
    being asked for is waited for. Without any the job takes its own answers alone.
    """

    job_id: UUID
    request_digest: str
    tenant: str = ""
    tier: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class JournaledAnswer:
    """An answer that was paid for by an earlier call: of the same job, or of another job of the tenant."""

    call_id: UUID
    deployment: str
    model_served: str
    finish_reason: str
    text: str
    over_soft_limit: bool = False
    is_own: bool = True
    usage: Usage = NOTHING


@dataclass(frozen=True)
class Recollection:
    """What earlier calls left: an answer that can be used, or that another call is asking for it right now.

    `was_cut` says that an answer of this job was cut at its bound.
    """

    answer: JournaledAnswer | None = None
    was_cut: bool = False
    is_in_flight: bool = False


def forget(connection: Connection, question: Question, call_id: UUID) -> None:
    """Delete an answer to a question that turned out to be of no use; its call stays in the ledger."""
    connection.execute(FORGET, asdict(question) | {"call_id": call_id})


def recall(connection: Connection, questions: Sequence[Question]) -> list[Recollection]:
    """Look up what earlier calls left of each question.

    A call that asks the same and whose run is over, as after a crash, is waited for by nobody: it is closed as unknown.
    """
    rows = [asdict(each) | {"position": n, "job_id": str(each.job_id)} for n, each in enumerate(questions)]
    found = connection.execute(RECALL, {"rows": json.dumps(rows)}).all()
    lost = [row.asking for row in found if row.is_lost]
    closed = set(ledger.abandon_lost(connection, lost)) if lost else set()
    left = [Recollection()] * len(questions)
    for row in found:
        answer = None
        if row.call_id is not None:
            answer = JournaledAnswer(
                row.call_id,
                row.deployment,
                row.model_served,
                row.finish_reason,
                row.text,
                row.over_soft_limit,
                row.is_own,
                Usage(**{name: getattr(row, name) for name in TOKEN_CLASSES}),
            )
        is_in_flight = row.asking is not None and row.asking not in closed
        left[row.position] = Recollection(answer, row.was_cut, is_in_flight)
    return left
