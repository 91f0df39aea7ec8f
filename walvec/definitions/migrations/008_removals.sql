-- What a deleted vector table leaves behind, until it is removed: written with the deletion, gone with the removal.
-- Nothing is referred to: the definitions, the environment even, may be gone by then.
CREATE TABLE walvec_control.removals (
    sequence       bigint GENERATED ALWAYS AS IDENTITY,
    id             text PRIMARY KEY,
    environment_id text NOT NULL,
    what           text NOT NULL,
    target_id      text NOT NULL,
    name           text NOT NULL,
    connection_id  text NOT NULL,
    credentials    bytea,
    definition     json,
    view_schema    text,
    attempts       integer NOT NULL DEFAULT 0,
    last_error     text,
    next_at        timestamptz NOT NULL DEFAULT now(),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX removals_due ON walvec_control.removals (next_at, sequence);
CREATE INDEX removals_by_connection ON walvec_control.removals (connection_id);
COMMENT ON COLUMN walvec_control.removals.what IS 'storage, topics, publication (a table''s place in it) or slot (with its publication)';
COMMENT ON COLUMN walvec_control.removals.credentials IS 'of the connection as they were last, under its place; the connection''s own are newer while it is there';
COMMENT ON COLUMN walvec_control.removals.definition IS 'the vector table as it was; see walvec.definitions.rows';

ALTER TABLE walvec_control.connections ADD COLUMN last_tested_at timestamptz;
