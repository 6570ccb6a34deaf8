"""Which rows get their message next. It must not know the broker.

Fair between tenants by start-time fair queueing in tokens (Goyal, Vin and Cheng, 1996): a tenant's next job starts
where its last one finished, the smallest start tag goes first. A job weighs its estimate until its end states the
truth; both are divided by the tenant's weight. A tenant that comes back starts where the others stand, at the virtual
time: the largest start tag that was released, kept in the row of the tenant ''. Whoever waited at the last release
stands where it stands: what its ends correct is not lost. Charges are added, so that they and corrections commute.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from penstock.jobs.execution import REFUSED_AGE_S
from penstock.jobs.states import SUSPECT_AFTER
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


@dataclass(frozen=True)
class Share:
    """What a tenant has a right to: a weight beside the others, and so many jobs outstanding, None being any number."""

    weight: float = 1.0
    concurrency: int | None = None


@dataclass(frozen=True)
class Allowance:
    """How much may be released: jobs, and tokens by their estimates, of which none counts for more than `most_tokens`.

    The first job that does not fit is waited for, and nobody passes it.
    `only_impatient` takes those alone that need not wait while no model of the tier can be asked: they accept another
    end, or one of the `open_tiers` may answer them.
    """

    jobs: int
    tokens: float | None = None
    most_tokens: float | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)
    default_share: Share = Share()
    only_impatient: bool = False
    open_tiers: tuple[str, ...] = ()


WAITING = text("""
    SELECT lane FROM (VALUES ('interactive'), ('batch')) AS lanes(lane)
    WHERE EXISTS (
            SELECT 1 FROM jobs WHERE state = 'queued' AND tier = :tier AND jobs.lane = lanes.lane AND due_at <= now())
        OR EXISTS (
            SELECT 1 FROM jobs WHERE state = 'retrying' AND tier = :tier AND jobs.lane = lanes.lane AND due_at <= now())
""")

FEED = text("SELECT pg_try_advisory_xact_lock(hashtextextended('penstock.feed.' || :tier, 0))")

COUNT = text("""
    SELECT lane, attempts > 0 AS is_retry, count(*) AS jobs, sum(estimated_tokens)::bigint AS tokens FROM jobs
    WHERE state = 'released' AND tier = :tier GROUP BY 1, 2
""")

STARTED = text("""
    SELECT count(*) FROM jobs WHERE tier = :tier AND started_at > now() - make_interval(secs => :window_s)
""")

# Whoever was there when two workers died runs with no other such job in its worker, so that the one which kills is
# found without the others. One is released at a time, and claimed before the next: two cannot race for the same worker.
RETRIES = """
    WITH suspects AS (
        SELECT id FROM jobs
        WHERE crashes >= {suspect} AND state = 'retrying' AND tier = :tier AND lane = :lane AND due_at <= now()
            AND {which}
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE crashes >= {suspect} AND state = 'released' AND tier = :tier)
            AND (SELECT count(*) FROM jobs WHERE crashes >= {suspect} AND state = 'running' AND tier = :tier)
                < greatest(1, (SELECT count(*) FROM workers WHERE tier = :tier AND lease_until > now()))
        ORDER BY due_at LIMIT 1
    ), due AS (
        SELECT id FROM jobs
        WHERE state = 'retrying' AND tier = :tier AND lane = :lane AND due_at <= now() AND {which}
            AND (crashes < {suspect} OR id IN (SELECT id FROM suspects))
        ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), released AS (
        UPDATE jobs SET state = 'released', released_at = now() FROM due WHERE jobs.id = due.id RETURNING jobs.*
    )
    SELECT {message} FROM released ORDER BY due_at
"""

# Bounded by :most whatever is queued: the tenants are found by skipping through the index, and only those that stand
# first can hold the smallest start tags.
FAIR = """
    WITH RECURSIVE virtual AS (
        SELECT coalesce(max(served_tokens), 0) AS time, coalesce(max(releases), 0) AS releases FROM tenant_shares
        WHERE tier = :tier AND lane = :lane AND tenant = ''
    ), given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:shares AS jsonb)) AS row(tenant text, weight float8, concurrency integer)
    ), waiting AS (
        (SELECT tenant FROM jobs WHERE state = 'queued' AND tier = :tier AND lane = :lane AND {which}
            ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (
            SELECT jobs.tenant FROM jobs
            WHERE state = 'queued' AND tier = :tier AND lane = :lane AND {which} AND jobs.tenant > waiting.tenant
            ORDER BY jobs.tenant LIMIT 1
        ) FROM waiting WHERE waiting.tenant IS NOT NULL
    ), entitled AS (
        SELECT waiting.tenant, coalesce(given.weight, :weight) AS weight,
            CASE WHEN given.tenant IS NULL THEN :concurrency ELSE given.concurrency END AS concurrency
        FROM waiting LEFT JOIN given USING (tenant) WHERE waiting.tenant IS NOT NULL
    ), shares AS (
        SELECT entitled.*, coalesce(share.served_tokens, 0) AS served,
            CASE WHEN share.releases = virtual.releases THEN share.served_tokens
                ELSE greatest(coalesce(share.served_tokens, 0), virtual.time) END AS stands_at
        FROM entitled CROSS JOIN virtual
        LEFT JOIN tenant_shares AS share
            ON share.tier = :tier AND share.lane = :lane AND share.tenant = entitled.tenant
        WHERE (entitled.concurrency IS NULL OR entitled.concurrency > (
            SELECT count(*) FROM jobs
            WHERE state IN ('released', 'running') AND tier = :tier AND jobs.tenant = entitled.tenant))
            AND EXISTS (
                SELECT 1 FROM jobs WHERE state = 'queued' AND tier = :tier AND lane = :lane AND {which}
                    AND jobs.tenant = entitled.tenant AND due_at <= now())
        ORDER BY stands_at, entitled.tenant LIMIT greatest(:most, 64)
    ), heads AS (
        SELECT head.id, head.created_at, head.estimated_tokens, shares.weight,
            shares.stands_at + (sum(head.estimated_tokens) OVER
                (PARTITION BY shares.tenant ORDER BY head.priority DESC, head.created_at, head.id)
                - head.estimated_tokens) / shares.weight AS start_tag
        FROM shares CROSS JOIN LATERAL (
            SELECT id, priority, created_at, estimated_tokens FROM jobs
            WHERE state = 'queued' AND tier = :tier AND lane = :lane AND {which} AND tenant = shares.tenant
                AND due_at <= now()
            ORDER BY priority DESC, created_at, id
            LIMIT least(:most, shares.concurrency - (
                SELECT count(*) FROM jobs
                WHERE state IN ('released', 'running') AND tier = :tier AND jobs.tenant = shares.tenant))
        ) AS head
    ), first AS MATERIALIZED (
        SELECT heads.*, sum(least(estimated_tokens, CAST(:most_tokens AS float8)))
            OVER (ORDER BY start_tag, created_at, id) AS together
        FROM heads ORDER BY start_tag, created_at, id LIMIT 2 * :most
    ), chosen AS (
        SELECT locked.id, first.start_tag, first.weight FROM first CROSS JOIN LATERAL (
            SELECT id FROM jobs WHERE jobs.id = first.id AND jobs.state = 'queued' FOR UPDATE SKIP LOCKED
        ) AS locked
        WHERE CAST(:tokens AS float8) IS NULL OR first.together <= :tokens
        ORDER BY first.start_tag, first.created_at, first.id LIMIT :most
    ), released AS (
        UPDATE jobs SET state = 'released', released_at = now(), charged_tokens = estimated_tokens
        FROM chosen WHERE jobs.id = chosen.id
        RETURNING jobs.*, chosen.start_tag, chosen.weight
    ), charges AS (
        SELECT shares.tenant, shares.stands_at - shares.served
            + coalesce(sum(released.estimated_tokens), 0) / shares.weight AS tokens
        FROM shares LEFT JOIN released USING (tenant) WHERE EXISTS (SELECT 1 FROM released)
        GROUP BY shares.tenant, shares.stands_at, shares.served, shares.weight
        UNION ALL SELECT '', greatest(0, max(start_tag) - (SELECT time FROM virtual)) FROM released HAVING count(*) > 0
    ), charged AS (
        INSERT INTO tenant_shares AS share (tier, lane, tenant, served_tokens, releases)
        SELECT :tier, :lane, tenant, round(tokens), virtual.releases + 1 FROM charges CROSS JOIN virtual
        ORDER BY 3  -- one order for all: two feeders cannot deadlock
        ON CONFLICT (tier, lane, tenant) DO UPDATE
            SET served_tokens = share.served_tokens + excluded.served_tokens, releases = excluded.releases
    )
    SELECT {message} FROM released ORDER BY start_tag, created_at
"""

MESSAGE = "id, tenant, tier, lane, prompt_id, prompt_version, prompt_digest, attempts"
ANYBODY = "true"
IMPATIENT = """(on_unavailable <> 'wait' OR fallback_tiers <> '{}')
            AND (on_unavailable <> 'wait' OR fallback_tiers && CAST(:open_tiers AS text[]))"""


def _variants(statement: str) -> dict[bool, TextClause]:
    """Make the statement for everybody, and that for those alone that need not wait."""
    filled = statement.replace("{message}", MESSAGE).replace("{suspect}", str(SUSPECT_AFTER))
    return {only: text(filled.replace("{which}", IMPATIENT if only else ANYBODY)) for only in (False, True)}


RETRIES_OF = _variants(RETRIES)
FAIR_OF = _variants(FAIR)

# A claim that was refused marks its row by this age: its message is sent again with the next release, not when missed.
REFUSED = text(f"""
    UPDATE jobs SET released_at = now()
    WHERE id IN (
        SELECT id FROM jobs WHERE crashes >= {SUSPECT_AFTER} AND state = 'released' AND tier = :tier AND lane = :lane
            AND released_at <= now() - make_interval(secs => {REFUSED_AGE_S})
        FOR UPDATE SKIP LOCKED)
    RETURNING {MESSAGE}
""")  # noqa: S608 - constants

LOST_DOORBELLS = text(f"""
    UPDATE jobs SET released_at = now()
    WHERE id IN (
        SELECT id FROM jobs WHERE state = 'released' AND tier = :tier AND lane = :lane AND (attempts > 0) = :is_retry
            AND released_at < now() - make_interval(secs => :older_than_s)
        ORDER BY released_at LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING {MESSAGE}
""")  # noqa: S608 - no value is interpolated


@dataclass(frozen=True)
class Group:
    """The released jobs of a lane that are, or are not, retries."""

    lane: Lane
    is_retry: bool


@dataclass(frozen=True)
class Outstanding:
    """What is on its way: jobs, and their estimates together."""

    jobs: int
    tokens: int


def waiting(connection: Connection, tier: str) -> list[Lane]:
    """Name the lanes of a tier in which work is due, interactive first."""
    found = {row.lane for row in connection.execute(WAITING, {"tier": tier})}
    return [lane for lane in Lane if lane.value in found]


def begin_feeding(connection: Connection, tier: str) -> bool:
    """Be the one feeder of a tier until the transaction ends; False when another is. What it counts stays true so."""
    return bool(connection.scalar(FEED, {"tier": tier}))


def released(connection: Connection, tier: str) -> dict[Group, Outstanding]:
    """Count the jobs of a tier whose message is out and that nobody has claimed; groups without any are missing."""
    return {
        Group(Lane(row.lane), row.is_retry): Outstanding(row.jobs, row.tokens)
        for row in connection.execute(COUNT, {"tier": tier})
    }


def started(connection: Connection, tier: str, *, window_s: float) -> int:
    """Count the jobs of a tier that were claimed in the last `window_s` seconds."""
    return int(connection.scalar(STARTED, {"tier": tier, "window_s": window_s}) or 0)


def release_retries(connection: Connection, tier: str, lane: Lane, allowance: Allowance) -> list[Release]:
    """Release due retries of a lane, the longest due first; their tokens are not looked at.

    Of the jobs that have seen SUSPECT_AFTER crashes at most as many are under way as the tier has live workers, and
    one of them waits to be claimed. To be called by the tier's one feeder, as `begin_feeding` makes sure.
    """
    values: dict[str, object] = {"tier": tier, "lane": lane.value, "most": allowance.jobs}
    due = _releases(connection, RETRIES_OF[allowance.only_impatient], values | _open_tiers(allowance))
    return due + _releases(connection, REFUSED, {"tier": tier, "lane": lane.value})


def release_fairly(connection: Connection, tier: str, lane: Lane, allowance: Allowance) -> list[Release]:
    """Release queued jobs of a lane, tenants side by side by tokens, each tenant's own by priority and age."""
    shares = [
        {"tenant": tenant, "weight": share.weight, "concurrency": share.concurrency}
        for tenant, share in allowance.shares.items()
    ]
    values: dict[str, object] = {
        "tier": tier,
        "lane": lane.value,
        "most": allowance.jobs,
        "tokens": allowance.tokens,
        "most_tokens": allowance.most_tokens,
        "shares": json.dumps(shares),
        "weight": allowance.default_share.weight,
        "concurrency": allowance.default_share.concurrency,
    }
    return _releases(connection, FAIR_OF[allowance.only_impatient], values | _open_tiers(allowance))


def release_again(connection: Connection, tier: str, group: Group, *, older_than_s: float, most: int) -> list[Release]:
    """Pick released jobs whose message seems to be lost; a second message does no harm."""
    values = {"tier": tier, "lane": group.lane.value, "is_retry": group.is_retry}
    return _releases(connection, LOST_DOORBELLS, values | {"older_than_s": older_than_s, "most": most})


def _open_tiers(allowance: Allowance) -> dict[str, object]:
    return {"open_tiers": list(allowance.open_tiers)} if allowance.only_impatient else {}


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
