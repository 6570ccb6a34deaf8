"""What was asked, and what of it was found again, as rows. It must not know how a text becomes a vector.

All that must be equal is in the bucket's digest, tenant and models among it: what is looked for in one bucket is never
found in another. Distances are pgvector's, exact: a bucket is one document's, and small.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from penstock.money.recollection import JournaledAnswer
from penstock.schemas import PromptReference

MAX_DISTANCE = 0.05
"""Cosine distance from which an instruction is another one. docs/semantic-cache.md has what was measured."""
LEAST_AGREEMENT = 0.7
"""Two answers of which fewer words are the same are counted as different."""
MOST_CANDIDATES = 20
LARGEST_BUCKET = 1000

IS_AVAILABLE = text("SELECT to_regtype('vector') IS NOT NULL")

FIND = text("""
    WITH bucket AS MATERIALIZED (
        SELECT * FROM similar_questions
        WHERE bucket = :bucket AND cardinality(embedding) = cardinality(CAST(:embedding AS real[]))
        ORDER BY asked_at DESC LIMIT :largest
    ), near AS (
        SELECT *, CAST(embedding AS vector) <=> CAST(CAST(:embedding AS real[]) AS vector) AS distance FROM bucket
    )
    SELECT near.job_id, near.instruction, near.distance, answers.call_id, answers.model_served, answers.finish_reason,
        answers.text, ledger.deployment
    FROM near JOIN answers USING (job_id, request_digest) JOIN ledger USING (call_id)
    WHERE near.distance < :most AND answers.tenant = :tenant AND answers.model = ANY(CAST(:models AS text[]))
    ORDER BY near.distance, near.asked_at DESC LIMIT :candidates
""")

KEEP = text("""
    WITH answer AS (
        SELECT job_id, request_digest FROM answers
        WHERE job_id = :job_id AND request_digest = :request_digest FOR KEY SHARE
    )
    INSERT INTO similar_questions (job_id, request_digest, bucket, prompt_id, prompt_version, prompt_digest,
        embedding_model, instruction, embedding)
    SELECT job_id, request_digest, :bucket, :prompt_id, :prompt_version, :prompt_digest, :embedding_model, :instruction,
        CAST(:embedding AS real[])
    FROM answer ON CONFLICT DO NOTHING
""")

NOTE = text("""
    INSERT INTO similar_answers (job_id, request_digest, tenant, source_job_id, distance, was_given, agreement)
    SELECT id, :request_digest, tenant, :source_job_id, :distance, :was_given, :agreement FROM jobs WHERE id = :job_id
    ON CONFLICT DO NOTHING
""")

FORGET_STALE = text("""
    WITH current AS (
        SELECT * FROM jsonb_to_recordset(CAST(:prompts AS jsonb)) AS row(id text, version text, digest text)
    ), stale AS (
        SELECT job_id, request_digest FROM similar_questions
        WHERE embedding_model IS DISTINCT FROM :embedding_model OR NOT EXISTS (
            SELECT 1 FROM current WHERE id = prompt_id AND version = prompt_version AND digest = prompt_digest)
        ORDER BY job_id, request_digest FOR UPDATE SKIP LOCKED
    )
    DELETE FROM similar_questions USING stale
    WHERE similar_questions.job_id = stale.job_id AND similar_questions.request_digest = stale.request_digest
""")

COUNT = text("""
    SELECT tenant, count(*) FILTER (WHERE was_given) AS given, count(*) FILTER (WHERE NOT was_given) AS would_be,
        count(agreement) AS judged, count(*) FILTER (WHERE agreement < :least) AS different
    FROM similar_answers WHERE tenant = coalesce(CAST(:tenant AS text), tenant)
    GROUP BY tenant ORDER BY tenant
""")


@dataclass(frozen=True)
class SimilarQuestion:
    """An instruction, by what it may be found again, and the answer that is being paid for."""

    job_id: UUID
    request_digest: str
    tenant: str
    bucket: str
    prompt: PromptReference
    embedding_model: str
    instruction: str
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class Near:
    """An instruction that was answered, `distance` away, and its answer."""

    job_id: UUID
    instruction: str
    distance: float
    answer: JournaledAnswer


@dataclass(frozen=True)
class Count:
    """What the tier did for a tenant, or in shadow mode would have done, and how many answers turned out different."""

    tenant: str
    given: int
    would_be: int
    judged: int
    different: int


@dataclass(frozen=True)
class SimilarReport:
    """Whether Postgres can compute distances, and what was found again, by tenant."""

    is_available: bool
    counts: tuple[Count, ...]


def is_available(connection: Connection) -> bool:
    """Tell whether Postgres can compute distances: its extension `vector` was created."""
    return bool(connection.scalar(IS_AVAILABLE))


def find(connection: Connection, question: SimilarQuestion, models: Sequence[str]) -> list[Near]:
    """Give the answers of `models` to the nearest instructions of the bucket, the nearest first."""
    found = connection.execute(
        FIND,
        {
            "bucket": question.bucket,
            "tenant": question.tenant,
            "models": list(models),
            "embedding": list(question.embedding),
            "most": MAX_DISTANCE,
            "largest": LARGEST_BUCKET,
            "candidates": MOST_CANDIDATES,
        },
    )
    return [
        Near(
            row.job_id,
            row.instruction,
            row.distance,
            JournaledAnswer(row.call_id, row.deployment, row.model_served, row.finish_reason, row.text, is_own=False),
        )
        for row in found
    ]


def keep(connection: Connection, question: SimilarQuestion) -> None:
    """Keep an instruction as long as its answer is kept; where that is gone already, do nothing."""
    prompt = {f"prompt_{name}": value for name, value in question.prompt.model_dump().items()}
    connection.execute(KEEP, asdict(question) | prompt | {"embedding": list(question.embedding)})


def note(
    connection: Connection, question: SimilarQuestion, near: Near, *, was_given: bool, agreement: float | None = None
) -> None:
    """Note that an answer was given again, or would have been; the first time counts."""
    connection.execute(
        NOTE,
        {
            "job_id": question.job_id,
            "request_digest": question.request_digest,
            "source_job_id": near.job_id,
            "distance": near.distance,
            "was_given": was_given,
            "agreement": agreement,
        },
    )


def forget_stale(connection: Connection, prompts: Iterable[PromptReference], embedding_model: str | None) -> int:
    """Delete what no job can find: of prompts that there are no more, or of another model of embeddings."""
    current = json.dumps([prompt.model_dump() for prompt in prompts])
    return connection.execute(FORGET_STALE, {"prompts": current, "embedding_model": embedding_model}).rowcount


def report(connection: Connection, tenant: str | None) -> SimilarReport:
    """Count what was found again, of one tenant or of all."""
    rows = connection.execute(COUNT, {"tenant": tenant, "least": LEAST_AGREEMENT})
    counts = tuple(Count(row.tenant, row.given, row.would_be, row.judged, row.different) for row in rows)
    return SimilarReport(is_available(connection), counts)
