-- Distances are computed by pgvector. Where it is missing, or somebody else has to create it, the tier is off until it
-- is there: the tables do not need it.
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'the extension vector is for a superuser to create; the semantic tier of the cache is off until then';
END $$;

-- What users asked where an answer was paid for. It goes with its answer.
CREATE TABLE similar_questions (
    job_id          uuid NOT NULL,
    request_digest  text NOT NULL,
    bucket          text NOT NULL,
    prompt_id       text NOT NULL,
    prompt_version  text NOT NULL,
    prompt_digest   text NOT NULL,
    embedding_model text NOT NULL,
    instruction     text NOT NULL,
    embedding       real[] NOT NULL,
    asked_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, request_digest),
    FOREIGN KEY (job_id, request_digest) REFERENCES answers ON DELETE CASCADE
);

COMMENT ON COLUMN similar_questions.bucket IS 'a digest of all that must be equal: everything but the instruction';

CREATE INDEX similar_questions_by_bucket ON similar_questions (bucket, asked_at DESC);

-- One row a question to which another job's answer was given, or would have been, in shadow mode. It holds no text.
CREATE TABLE similar_answers (
    job_id         uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    request_digest text NOT NULL,
    tenant         text NOT NULL,
    source_job_id  uuid NOT NULL,
    distance       double precision NOT NULL,
    was_given      boolean NOT NULL,
    agreement      double precision CHECK (agreement BETWEEN 0 AND 1),
    found_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, request_digest)
);

COMMENT ON COLUMN similar_answers.was_given IS 'false: in shadow mode, the job was answered by a model all the same';
COMMENT ON COLUMN similar_answers.agreement IS 'of the two answers, where both are known';

CREATE INDEX similar_answers_by_tenant ON similar_answers (tenant, found_at);
