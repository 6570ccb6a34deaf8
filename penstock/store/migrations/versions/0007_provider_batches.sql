ALTER TABLE batches
    ADD COLUMN by_provider boolean NOT NULL DEFAULT false,
    ADD COLUMN due_by timestamptz;

COMMENT ON COLUMN batches.by_provider IS 'its jobs wait, paused, to be sent to a provider as a file; false again once they take the way of live calls';
COMMENT ON COLUMN batches.due_by IS 'when it must have ended; no file is sent whose window passes that';

-- A parcel: jobs of one batch that are sent to one deployment as one file. Whoever works on it holds it for a turn, by
-- its number: who has lost the turn writes nothing any more.
CREATE TABLE provider_batches (
    id             uuid PRIMARY KEY,
    batch_id       uuid NOT NULL REFERENCES batches,
    tier           text NOT NULL,
    deployment     text NOT NULL,
    state          text NOT NULL DEFAULT 'collecting' CHECK (state IN
        ('collecting', 'sealed', 'uploaded', 'sent', 'over', 'settled', 'ended')),
    requests       integer NOT NULL DEFAULT 0,
    bytes          bigint NOT NULL DEFAULT 0,
    looked_to      bigint NOT NULL DEFAULT -1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    send_by        timestamptz NOT NULL,
    ends_by        timestamptz NOT NULL,
    turn           bigint NOT NULL DEFAULT 0,
    held_until     timestamptz NOT NULL DEFAULT now(),
    due_at         timestamptz NOT NULL DEFAULT now(),
    round          integer NOT NULL DEFAULT 1,
    input_file     text,
    asked_at       timestamptz,
    provider_id    text,
    provider_state text,
    over_at        timestamptz,
    output_file    text,
    error_file     text,
    reason         text,
    ended_at       timestamptz
);

COMMENT ON COLUMN provider_batches.looked_to IS 'up to which item of the batch''s input its jobs were looked at';
COMMENT ON COLUMN provider_batches.asked_at IS 'since when the provider may have a batch whose id we were not told';
COMMENT ON COLUMN provider_batches.round IS 'which try to have the file worked off: part of the marker that the provider keeps';

CREATE UNIQUE INDEX provider_batches_collecting ON provider_batches (batch_id) WHERE state = 'collecting';
CREATE INDEX provider_batches_live ON provider_batches (due_at) WHERE state <> 'ended';

-- A file has a job once. While `is_open` it waits for that file; then it takes the way of live calls, or has ended, and
-- is no longer here.
CREATE TABLE provider_requests (
    job_id            uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    provider_batch_id uuid NOT NULL REFERENCES provider_batches,
    fence             bigint NOT NULL,
    call_id           uuid UNIQUE,
    request_digest    text NOT NULL,
    is_open           boolean NOT NULL
);

COMMENT ON COLUMN provider_requests.call_id IS 'NULL: another job asks the same, or it was passed over';

CREATE INDEX provider_requests_closed ON provider_requests (provider_batch_id) WHERE NOT is_open;
CREATE INDEX provider_requests_open ON provider_requests (provider_batch_id) WHERE is_open;
CREATE INDEX provider_requests_by_question ON provider_requests (request_digest, provider_batch_id)
    WHERE is_open AND call_id IS NOT NULL;

-- A tenant reads how many of its jobs wait for a file, and nothing of the file.
GRANT SELECT (id, batch_id, provider_id) ON provider_batches TO penstock_tenant;
GRANT SELECT (provider_batch_id, job_id, is_open) ON provider_requests TO penstock_tenant;
ALTER TABLE provider_batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE provider_requests ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_reads ON provider_batches FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM batches WHERE batches.id = batch_id));
CREATE POLICY tenant_reads ON provider_requests FOR SELECT TO penstock_tenant
    USING (EXISTS (SELECT 1 FROM provider_batches AS parcel WHERE parcel.id = provider_batch_id));
