"""Which rows get their message next. It must not know the broker.

Fair between tenants by start-time fair queueing in tokens (Goyal, Vin and Cheng, 1996): a tenant's next job starts
where its last one finished, a tenant that comes back starts where the others stand, the smallest start tag goes first.
Where they stand is the virtual time: the largest start tag that was released, kept in the row of the tenant ''.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from penstock.schemas import Lane, PromptReference


@dataclass(frozen=True)
class Release:
    """A job whose message is to be sent now; `is_retry` chooses the queue."""

    job_id: UUID
    tenant: str
    tier: str
    lane: Lane
    prompt: PromptReference
    is_retry: bool


COUNT = text("""
    SELECT lane, attempts > 0 AS is_retry, count(*) AS jobs FROM jobs
    WHERE state = 'released' AND tier = :tier GROUP BY 1, 2
""")

STARTED = text("""
    SELECT count(*) FROM jobs WHERE tier = :tier AND started_at > now() - make_interval(secs => :window_s)
""")

RETRIES = text("""
    WITH due AS (
        SELECT id FROM jobs WHERE state = 'retrying' AND tier = :tier AND lane = :lane AND due_at <= now()
        ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), released AS (
        UPDATE jobs SET state = 'released', released_at = now() FROM due WHERE jobs.id = due.id RETURNING jobs.*
    )
    SELECT * FROM released ORDER BY due_at
""")

# Bounded by :most whatever is queued: the tenants are found by skipping through the index, and only those that stand
# first can hold the smallest start tags.
FAIR = text("""
    WITH RECURSIVE virtual AS (
        SELECT coalesce(max(served_tokens), 0) AS time FROM tenant_shares
        WHERE tier = :tier AND lane = :lane AND tenant = ''
    ), waiting AS (
        (SELECT tenant FROM jobs WHERE state = 'queued' AND tier = :tier AND lane = :lane ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (
            SELECT jobs.tenant FROM jobs
            WHERE state = 'queued' AND tier = :tier AND lane = :lane AND jobs.tenant > waiting.tenant
            ORDER BY jobs.tenant LIMIT 1
        ) FROM waiting WHERE waiting.tenant IS NOT NULL
    ), shares AS (
        SELECT waiting.tenant, greatest(coalesce(share.served_tokens, 0), virtual.time) AS stands_at
        FROM waiting CROSS JOIN virtual
        LEFT JOIN tenant_shares AS share
            ON share.tier = :tier AND share.lane = :lane AND share.tenant = waiting.tenant
        WHERE waiting.tenant IS NOT NULL
        ORDER BY stands_at, waiting.tenant LIMIT :most
    ), heads AS (
        SELECT head.id, shares.tenant, head.created_at,
            shares.stands_at + sum(head.estimated_tokens) OVER
                (PARTITION BY shares.tenant ORDER BY head.priority DESC, head.created_at, head.id)
                - head.estimated_tokens AS start_tag
        FROM shares CROSS JOIN LATERAL (
            SELECT id, priority, created_at, estimated_tokens FROM jobs
            WHERE state = 'queued' AND tier = :tier AND lane = :lane AND tenant = shares.tenant AND due_at <= now()
            ORDER BY priority DESC, created_at, id LIMIT :most
        ) AS head
    ), first AS MATERIALIZED (
        SELECT id, start_tag, created_at FROM heads ORDER BY start_tag, created_at, id LIMIT 2 * :most
    ), chosen AS (
        SELECT locked.id, first.start_tag FROM first CROSS JOIN LATERAL (
            SELECT id FROM jobs WHERE jobs.id = first.id AND jobs.state = 'queued' FOR UPDATE SKIP LOCKED
        ) AS locked
        ORDER BY first.start_tag, first.created_at, first.id LIMIT :most
    ), released AS (
        UPDATE jobs SET state = 'released', released_at = now() FROM chosen WHERE jobs.id = chosen.id
        RETURNING jobs.*, chosen.start_tag
    ), charged AS (
        INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens)
        SELECT :tier, :lane, tenant, max(start_tag + estimated_tokens) FROM released GROUP BY tenant
        UNION ALL SELECT :tier, :lane, '', max(start_tag) FROM released HAVING count(*) > 0
        ORDER BY 3  -- one order for all: two feeders cannot deadlock
        ON CONFLICT (tier, lane, tenant) DO UPDATE
            SET served_tokens = greatest(share.served_tokens, excluded.served_tokens)
    )
    SELECT * FROM released ORDER BY start_tag, created_at
""")

LOST_DOORBELLS = text("""
    UPDATE jobs SET released_at = now()
    WHERE id IN (
        SELECT id FROM jobs WHERE state = 'released' AND tier = :tier AND lane = :lane AND (attempts > 0) = :is_retry
            AND released_at < now() - make_interval(secs => :older_than_s)
        ORDER BY released_at LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING *
""")


@dataclass(frozen=True)
class Group:
    """The released jobs of a lane that are, or are not, retries."""

    lane: Lane
    is_retry: bool


def released(connection: Connection, tier: str) -> dict[Group, int]:
    """Count the jobs of a tier whose message is out and that nobody has claimed; groups without any are missing."""
    return {Group(Lane(row.lane), row.is_retry): row.jobs for row in connection.execute(COUNT, {"tier": tier})}


def started(connection: Connection, tier: str, *, window_s: float) -> int:
    """Count the jobs of a tier that were claimed in the last `window_s` seconds."""
    return int(connection.scalar(STARTED, {"tier": tier, "window_s": window_s}) or 0)


def release_retries(connection: Connection, tier: str, lane: Lane, *, most: int) -> list[Release]:
    """Release due retries of a lane, the longest due first."""
    return _releases(connection, RETRIES, {"tier": tier, "lane": lane.value, "most": most})


def release_fairly(connection: Connection, tier: str, lane: Lane, *, most: int) -> list[Release]:
    """Release queued jobs of a lane, tenants side by side by tokens, each tenant's own by priority and age."""
    return _releases(connection, FAIR, {"tier": tier, "lane": lane.value, "most": most})


def release_again(connection: Connection, tier: str, group: Group, *, older_than_s: float, most: int) -> list[Release]:
    """Pick released jobs whose message seems to be lost; a second message does no harm."""
    values = {"tier": tier, "lane": group.lane.value, "is_retry": group.is_retry}
    return _releases(connection, LOST_DOORBELLS, values | {"older_than_s": older_than_s, "most": most})


def _releases(connection: Connection, statement: TextClause, values: dict[str, object]) -> list[Release]:
    return [
        Release(
            job_id=row.id,
            tenant=row.tenant,
            tier=row.tier,
            lane=Lane(row.lane),
            prompt=PromptReference(id=row.prompt_id, version=row.prompt_version, digest=row.prompt_digest),
            is_retry=row.attempts > 0,
        )
        for row in connection.execute(statement, values)
    ]
