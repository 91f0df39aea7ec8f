-- What API processes share of the requests they serve.

-- Unlogged: a crash of the database forgets the counts, and costs no more than a window.
CREATE UNLOGGED TABLE walvec_control.permits (
    subject  text PRIMARY KEY,
    bucket   bigint NOT NULL,
    previous bigint NOT NULL,
    current  bigint NOT NULL,
    granted  bigint NOT NULL
);
COMMENT ON TABLE walvec_control.permits IS 'requests counted per organization and rate, in the current window and the one before';
COMMENT ON COLUMN walvec_control.permits.bucket IS 'number of the current window since 1970';
COMMENT ON COLUMN walvec_control.permits.granted IS 'what the last lease was given';

CREATE TABLE walvec_control.kept_answers (
    org_id       text NOT NULL,
    environment  text NOT NULL,
    key          text NOT NULL,
    request      text NOT NULL,
    request_hash bytea NOT NULL,
    attempt      text NOT NULL,
    held_until   timestamptz NOT NULL,
    status       integer,
    answer       bytea,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, environment, key)
);
CREATE INDEX kept_answers_by_age ON walvec_control.kept_answers (created_at);
COMMENT ON COLUMN walvec_control.kept_answers.request IS 'method and path';
COMMENT ON COLUMN walvec_control.kept_answers.attempt IS 'who holds the key while status is NULL, until held_until';
COMMENT ON COLUMN walvec_control.kept_answers.answer IS 'headers and body, encrypted: it may show a new API key';
