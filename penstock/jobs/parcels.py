"""Jobs that go to a provider as one file, as rows: a parcel is a row of `provider_batches`. It must not know prices.

A job of a parcel is paused: nobody but the parcel's holder runs it. It has been claimed, by its fence, in the
transaction that wrote its call down, and what ends it looks at that fence. Who works on a parcel takes a turn, by its
number, and writes the row only while the turn is its own.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from penstock.errors import FencedError
from penstock.jobs.execution import ClaimedJob, Ending, claimed, finish
from penstock.jobs.parcel import Parcel, ParcelState, Request, Sent, Wish

ELIGIBLE = """state IN ('paused', 'queued') AND lane = 'batch' AND due_at <= now()
    AND NOT EXISTS (SELECT 1 FROM provider_requests AS had WHERE had.job_id = jobs.id)"""

WISHES = text(f"""
    SELECT id AS batch_id, tier, due_by, now() AS now FROM batches
    WHERE by_provider AND state = 'running' AND is_loaded AND starts_at <= now() AND NOT EXISTS (
            SELECT 1 FROM provider_batches AS parcel WHERE parcel.batch_id = batches.id
                AND (parcel.state = 'collecting' OR (parcel.requests = 0 AND parcel.state = 'ended'
                    AND parcel.ended_at > now() - make_interval(secs => :rest_s))))
        AND EXISTS (SELECT 1 FROM jobs WHERE jobs.batch_id = batches.id AND jobs.{ELIGIBLE})
    ORDER BY created_at, id
""")  # noqa: S608 - constants

ARE_WANTED = text("""
    SELECT EXISTS (SELECT 1 FROM batches WHERE by_provider AND ended_at IS NULL)
        OR EXISTS (SELECT 1 FROM provider_batches WHERE state <> 'ended')
""")

OPEN = text("""
    INSERT INTO provider_batches (id, batch_id, tier, deployment, send_by, ends_by)
    VALUES (:id, :batch_id, :tier, :deployment, :send_by, :ends_by)
    ON CONFLICT DO NOTHING
    RETURNING id
""")

TAKE_LIVE = text("UPDATE batches SET by_provider = false WHERE id = :id AND by_provider RETURNING id")

TAKE_TURN = text("""
    WITH due AS (
        SELECT id FROM provider_batches WHERE state <> 'ended' AND due_at <= now() AND held_until <= now()
        ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE provider_batches AS parcel SET turn = turn + 1, held_until = now() + make_interval(secs => :hold_s)
        FROM due WHERE parcel.id = due.id
        RETURNING parcel.*
    )
    SELECT taken.*, now() AS now, batches.state = 'running' AND by_provider AS may_go,
        batches.ended_at IS NOT NULL OR batches.state = 'cancelled' OR NOT by_provider AS returns,
        batches.ended_at IS NOT NULL OR batches.state = 'cancelled' AS is_cancelled
    FROM taken JOIN batches ON batches.id = taken.batch_id
""")

KEEP = text("""
    UPDATE provider_batches SET state = :state, requests = :requests, bytes = :bytes,
        looked_to = :looked_to, round = :round,
        input_file = :input_file, asked_at = :asked_at, provider_id = :provider_id, provider_state = :provider_state,
        over_at = :over_at, output_file = :output_file, error_file = :error_file, reason = :reason,
        ended_at = CASE WHEN :state = 'ended' THEN now() END,
        due_at = now() + make_interval(secs => :delay_s), held_until = now() + make_interval(secs => :hold_s)
    WHERE id = :id AND turn = :turn
    RETURNING id
""")

GIVE_UP_TURN = text("""
    UPDATE provider_batches SET due_at = now() + make_interval(secs => :delay_s), held_until = now()
    WHERE id = :id AND turn = :turn
""")

BEHIND = f"batch_id = :batch_id AND batch_number > :looked_to AND {ELIGIBLE}"
CANDIDATES = text(f"""
    SELECT jobs.*, payloads.variables, payloads.document FROM (
        (SELECT id FROM jobs WHERE state = 'paused' AND {BEHIND} ORDER BY batch_number LIMIT :most)
        UNION ALL
        (SELECT id FROM jobs WHERE state = 'queued' AND {BEHIND} ORDER BY batch_number LIMIT :most)
    ) AS waiting JOIN jobs USING (id) JOIN payloads ON payloads.job_id = jobs.id
    ORDER BY batch_number LIMIT :most
""")  # noqa: S608 - constants

# Its accounts are waited for afterwards, by the intent: who holds those, and settles a call, must not wait for a job.
TAKE = text(f"""
    WITH chosen AS (
        SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND jobs.{ELIGIBLE}
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE jobs SET state = 'running', fence = fence + 1, attempts = attempts + 1, worker = :worker
        FROM chosen WHERE jobs.id = chosen.id
        RETURNING jobs.id, fence
    ), history AS (
        INSERT INTO attempts (job_id, fence, worker) SELECT id, fence, :worker FROM taken
    )
    SELECT id, fence FROM taken
""")  # noqa: S608 - constants

PUT = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
            job_id uuid, fence bigint, call_id uuid, digest text, is_open boolean)
    ), paused AS (
        UPDATE jobs SET state = 'paused' FROM given
        WHERE jobs.id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running' AND given.is_open
    )
    INSERT INTO provider_requests (job_id, provider_batch_id, fence, call_id, request_digest, is_open)
    SELECT job_id, :parcel, fence, call_id, digest, is_open FROM given
""")

PUT_BACK = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(job_id uuid, fence bigint)
    ), back AS (
        UPDATE jobs SET state = 'paused', attempts = attempts - 1 FROM given
        WHERE jobs.id = given.job_id AND jobs.fence = given.fence AND jobs.state = 'running'
    )
    DELETE FROM attempts USING given WHERE attempts.job_id = given.job_id AND attempts.fence = given.fence
""")

ASKED = text("""
    SELECT DISTINCT request_digest FROM provider_requests AS request
    JOIN provider_batches AS parcel ON parcel.id = request.provider_batch_id
    WHERE request.is_open AND request.call_id IS NOT NULL AND parcel.batch_id = :batch_id
        AND request_digest = ANY(CAST(:digests AS text[]))
""")

SENT_COLUMNS = """
    request.call_id, request.request_digest, request.is_open, request.fence AS request_fence,
    ledger.state = 'settled' AS is_settled, ledger.deployment, ledger.price_version, ledger.max_tokens,
    ledger.over_soft_limit,
    jobs.*, payloads.variables, payloads.document
    FROM provider_requests AS request JOIN ledger USING (call_id) JOIN jobs ON jobs.id = request.job_id
    LEFT JOIN payloads ON payloads.job_id = request.job_id
"""

TO_SEND = text(f"""
    SELECT {SENT_COLUMNS}
    WHERE provider_batch_id = :parcel AND request.is_open AND jobs.state = 'paused' AND jobs.fence = request.fence
        AND request.call_id > :after
    ORDER BY request.call_id LIMIT :most
""")

BY_CALL = text(f"""
    SELECT {SENT_COLUMNS} WHERE provider_batch_id = :parcel AND request.call_id = ANY(CAST(:calls AS uuid[]))
""")

UNANSWERED = text("""
    SELECT job_id, fence, call_id, request_digest FROM provider_requests
    WHERE provider_batch_id = :parcel AND is_open AND call_id IS NOT NULL LIMIT :most
""")

REPEATS = text("""
    SELECT job_id, fence, call_id, request_digest FROM provider_requests AS repeat
    WHERE provider_batch_id = :parcel AND is_open AND call_id IS NULL AND NOT EXISTS (
        SELECT 1 FROM provider_requests AS asking JOIN provider_batches AS parcel ON parcel.id = provider_batch_id
        WHERE asking.is_open AND asking.call_id IS NOT NULL AND parcel.batch_id = :batch_id
            AND asking.request_digest = repeat.request_digest)
    LIMIT :most
""")

IS_WAITED_FOR = text("SELECT EXISTS (SELECT 1 FROM provider_requests WHERE provider_batch_id = :parcel AND is_open)")

LEAVE_OUT = text("""
    SELECT job_id, fence, call_id, request_digest FROM provider_requests
    WHERE provider_batch_id = :parcel AND is_open AND call_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM unnest(CAST(:calls AS uuid[])) AS written(call) WHERE call = call_id)
""")

RESUME = text("""
    WITH given AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(job_id uuid, fence bigint)
    ), waiting AS (
        SELECT jobs.id FROM jobs JOIN given ON jobs.id = given.job_id AND jobs.fence = given.fence
        JOIN provider_requests AS request ON request.job_id = jobs.id AND request.is_open
        WHERE jobs.state = 'paused' ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
    )
    UPDATE jobs SET state = 'running' FROM waiting WHERE jobs.id = waiting.id
""")

# A job that was finished by somebody else, or cancelled, waits for its file no longer either.
SHUT = text("""
    WITH handed_over AS (
        UPDATE provider_requests SET is_open = false WHERE job_id = ANY(CAST(:handed_over AS uuid[])) AND is_open
    )
    DELETE FROM provider_requests WHERE job_id = ANY(CAST(:ended AS uuid[]))
""")


def are_wanted(connection: Connection) -> bool:
    """Tell whether some batch wishes for files, or a file is on its way."""
    return bool(connection.scalar(ARE_WANTED))


def wishes(connection: Connection, *, rest_s: float) -> list[Wish]:
    """List the batches that have jobs for a file; one whose last file stayed empty rests for `rest_s` seconds."""
    return [Wish(row.batch_id, row.tier, row.due_by, row.now) for row in connection.execute(WISHES, {"rest_s": rest_s})]


def open_parcel(
    connection: Connection, wish: Wish, deployment: str, *, send_by: datetime, ends_by: datetime
) -> UUID | None:
    """Begin to collect for a deployment; None where that is being done for the batch already."""
    values = {"id": uuid4(), "batch_id": wish.batch_id, "tier": wish.tier, "deployment": deployment}
    made: UUID | None = connection.scalar(OPEN, values | {"send_by": send_by, "ends_by": ends_by})
    return made


def take_live(connection: Connection, batch_id: UUID) -> bool:
    """Let the rest of a batch take the way of live calls, and tell whether that is new: its jobs follow its state."""
    return connection.scalar(TAKE_LIVE, {"id": batch_id}) is not None


def take_turn(connection: Connection, *, hold_s: float) -> Parcel | None:
    """Take a parcel that is due and that nobody works on; whoever had it before has lost it."""
    row = connection.execute(TAKE_TURN, {"hold_s": hold_s}).one_or_none()
    if row is None:
        return None
    fields = {name: getattr(row, name) for name in Parcel.__dataclass_fields__}
    return Parcel(**fields | {"state": ParcelState(row.state)})


def keep(connection: Connection, parcel: Parcel, *, delay_s: float = 0.0, hold_s: float = 0.0) -> None:
    """Write the row, due again in `delay_s` seconds, and hold it on for `hold_s`; raise FencedError in a later turn."""
    values = asdict(parcel) | {"state": parcel.state.value, "delay_s": delay_s, "hold_s": hold_s}
    if connection.execute(KEEP, values).one_or_none() is None:
        raise FencedError(f"parcel {parcel.id} is in a later turn than {parcel.turn}")


def give_up_turn(connection: Connection, parcel: Parcel, *, delay_s: float) -> None:
    """Let others go on in `delay_s` seconds, from what was written last."""
    connection.execute(GIVE_UP_TURN, {"id": parcel.id, "turn": parcel.turn, "delay_s": delay_s})


def candidates(connection: Connection, parcel: Parcel, *, most: int) -> dict[int, ClaimedJob]:
    """Look at jobs that could go into the file, by their number, in the order of the input. None of them is taken."""
    given = {"batch_id": parcel.batch_id, "looked_to": parcel.looked_to, "most": most}
    return {row.batch_number: _job(row, parcel, row.fence) for row in connection.execute(CANDIDATES, given)}


def take(connection: Connection, parcel: Parcel, job_ids: Collection[UUID]) -> dict[UUID, int]:
    """Claim those of the jobs that are still there, and give their fences; to be put before the transaction ends."""
    found = connection.execute(TAKE, {"ids": [str(job_id) for job_id in job_ids], "worker": parcel.worker})
    return {row.id: row.fence for row in found}


def put(connection: Connection, parcel: Parcel, requests: Iterable[Request]) -> None:
    """Put claimed jobs into the file, paused; those whose request is closed stay claimed, and are to be finished."""
    rows = [asdict(each) | {"job_id": str(each.job_id), "call_id": _text(each.call_id)} for each in requests]
    connection.execute(PUT, {"parcel": parcel.id, "rows": json.dumps(rows)})


def put_back(connection: Connection, claimed: Iterable[tuple[UUID, int]]) -> None:
    """Leave claimed jobs for a later file, as if they had not been claimed."""
    connection.execute(PUT_BACK, {"rows": _runs(claimed)})


def asked(connection: Connection, parcel: Parcel, digests: Collection[str]) -> set[str]:
    """Tell which of these questions a file of the batch asks already."""
    return set(connection.scalars(ASKED, {"batch_id": parcel.batch_id, "digests": list(digests)}))


def to_send(connection: Connection, parcel: Parcel, *, after: UUID, most: int) -> list[Sent]:
    """Give requests whose jobs still wait for the file, those behind a call, in the order of their calls."""
    found = connection.execute(TO_SEND, {"parcel": parcel.id, "after": after, "most": most})
    return [_sent(row, parcel) for row in found]


def by_call(connection: Connection, parcel: Parcel, calls: Iterable[UUID]) -> dict[UUID, Sent]:
    """Look up requests of the parcel by their calls."""
    found = connection.execute(BY_CALL, {"parcel": parcel.id, "calls": [str(call) for call in calls]})
    return {row.call_id: _sent(row, parcel) for row in found}


def left_out(connection: Connection, parcel: Parcel, calls: Iterable[UUID]) -> list[Request]:
    """Give the open requests that are not among the calls of the file."""
    found = connection.execute(LEAVE_OUT, {"parcel": parcel.id, "calls": [str(call) for call in calls]})
    return [_request(row) for row in found]


def unanswered(connection: Connection, parcel: Parcel, *, most: int) -> list[Request]:
    """Give open requests that have a call."""
    return [_request(row) for row in connection.execute(UNANSWERED, {"parcel": parcel.id, "most": most})]


def repeats(connection: Connection, parcel: Parcel, *, most: int) -> list[Request]:
    """Give open requests without a call, of which no open one of the batch asks the same any more."""
    given = {"parcel": parcel.id, "batch_id": parcel.batch_id, "most": most}
    return [_request(row) for row in connection.execute(REPEATS, given)]


def is_waited_for(connection: Connection, parcel: Parcel) -> bool:
    """Tell whether a request of the parcel is open."""
    return bool(connection.scalar(IS_WAITED_FOR, {"parcel": parcel.id}))


def end(connection: Connection, endings: Sequence[Ending]) -> list[bool]:
    """End jobs that waited for a file, and close their requests; False where a job had ended or was cancelled."""
    connection.execute(RESUME, {"rows": _runs((ending.job_id, ending.fence) for ending in endings)})
    ended = finish(connection, endings)
    jobs: dict[bool, list[str]] = {True: [], False: []}
    for ending in endings:
        jobs[ending.outcome.state.is_terminal].append(str(ending.job_id))
    connection.execute(SHUT, {"ended": jobs[True], "handed_over": jobs[False]})
    return ended


def _runs(runs: Iterable[tuple[UUID, int]]) -> str:
    return json.dumps([{"job_id": str(job_id), "fence": fence} for job_id, fence in runs])


def _text(call_id: UUID | None) -> str | None:
    return None if call_id is None else str(call_id)


def _request(row: Any) -> Request:
    return Request(row.job_id, row.fence, row.call_id, row.request_digest)


def _sent(row: Any, parcel: Parcel) -> Sent:
    return Sent(
        call_id=row.call_id,
        digest=row.request_digest,
        is_open=row.is_open,
        is_settled=row.is_settled,
        deployment=row.deployment,
        price_version=row.price_version,
        max_tokens=row.max_tokens,
        over_soft_limit=row.over_soft_limit,
        job=_job(row, parcel, row.request_fence),
    )


def _job(row: Any, parcel: Parcel, fence: int) -> ClaimedJob:
    """Give a job as the parcel's run of it sees it."""
    run = {"worker": parcel.worker, "started_at": parcel.created_at, "waited_s": 0.0, "ends_in_s": None}
    return claimed(row, fence=fence, **run)
