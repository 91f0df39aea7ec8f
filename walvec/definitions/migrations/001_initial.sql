-- The control database: definitions, tasks, dead letters, progress. Every row belongs to an environment.
-- json, not jsonb: values go back as they came (jsonb refuses \u0000 and reorders keys).

CREATE TABLE walvec_control.environments (
    environment text PRIMARY KEY,
    version     bigint NOT NULL DEFAULT 1,
    key_check   bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN walvec_control.environments.version IS 'grows with every change of a definition; its row lock puts the changes in order';
COMMENT ON COLUMN walvec_control.environments.key_check IS 'a known text, encrypted: tells a wrong secret key at once';

CREATE TABLE walvec_control.connections (
    environment    text NOT NULL REFERENCES walvec_control.environments,
    id             text NOT NULL,
    name           text NOT NULL,
    provider       text NOT NULL,
    mode           text NOT NULL,
    credentials    bytea NOT NULL,
    on_slot_loss   text NOT NULL,
    status         text NOT NULL,
    status_message text NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, id),
    CONSTRAINT connections_name UNIQUE (environment, name)
);

CREATE TABLE walvec_control.providers (
    environment   text NOT NULL REFERENCES walvec_control.environments,
    id            text NOT NULL,
    name          text NOT NULL,
    provider      text NOT NULL,
    api_key       bytea,
    base_url      text,
    default_model text,
    limits        json NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, id),
    CONSTRAINT providers_name UNIQUE (environment, name)
);

CREATE TABLE walvec_control.vector_tables (
    environment           text NOT NULL REFERENCES walvec_control.environments,
    id                    text NOT NULL,
    name                  text NOT NULL,
    connection_id         text NOT NULL,
    embedding_provider_id text NOT NULL,
    definition            json NOT NULL,
    dead_in_row           integer NOT NULL DEFAULT 0,
    created_at            timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, id),
    CONSTRAINT vector_tables_name UNIQUE (environment, name),
    CONSTRAINT vector_tables_connection FOREIGN KEY (environment, connection_id)
        REFERENCES walvec_control.connections (environment, id),
    CONSTRAINT vector_tables_provider FOREIGN KEY (environment, embedding_provider_id)
        REFERENCES walvec_control.providers (environment, id)
);
CREATE INDEX vector_tables_by_connection ON walvec_control.vector_tables (environment, connection_id);
CREATE INDEX vector_tables_by_provider ON walvec_control.vector_tables (environment, embedding_provider_id);
COMMENT ON COLUMN walvec_control.vector_tables.definition IS 'the whole table with its generations; see walvec.definitions.rows';
COMMENT ON COLUMN walvec_control.vector_tables.dead_in_row IS 'beside the definition: counted often, and the feed need not move for it';

CREATE TABLE walvec_control.tasks (
    sequence    bigint GENERATED ALWAYS AS IDENTITY,
    environment text NOT NULL REFERENCES walvec_control.environments,
    id          text NOT NULL,
    task_type   text NOT NULL,
    target_id   text NOT NULL,
    generation  integer NOT NULL,
    status      text NOT NULL DEFAULT 'pending',
    params      json NOT NULL,
    progress    json NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    last_error  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, id),
    CONSTRAINT tasks_target FOREIGN KEY (environment, target_id)
        REFERENCES walvec_control.vector_tables (environment, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX tasks_one_open_backfill ON walvec_control.tasks (environment, target_id)
    WHERE task_type IN ('backfill', 'rebackfill') AND status IN ('pending', 'running');
CREATE INDEX tasks_open ON walvec_control.tasks (environment, target_id, sequence)
    WHERE status IN ('pending', 'running');
CREATE INDEX tasks_recent ON walvec_control.tasks (environment, target_id, sequence DESC);

CREATE TABLE walvec_control.dead_letters (
    id              bigint GENERATED ALWAYS AS IDENTITY,
    environment     text NOT NULL REFERENCES walvec_control.environments,
    vector_table_id text NOT NULL,
    generation      integer NOT NULL,
    key_id          uuid NOT NULL,
    key             bytea NOT NULL,
    kind            text NOT NULL,
    reason          text NOT NULL,
    epoch           integer NOT NULL,
    lsn             bigint NOT NULL,
    ordinal         bigint NOT NULL,
    attempts        integer NOT NULL,
    payload         bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id),
    CONSTRAINT dead_letters_one_open UNIQUE (environment, vector_table_id, generation, key_id),
    CONSTRAINT dead_letters_table FOREIGN KEY (environment, vector_table_id)
        REFERENCES walvec_control.vector_tables (environment, id) ON DELETE CASCADE
);
CREATE INDEX dead_letters_page ON walvec_control.dead_letters (environment, vector_table_id, id);
COMMENT ON COLUMN walvec_control.dead_letters.key_id IS '128-bit hash of the key: keys of any length fit the index';

CREATE TABLE walvec_control.progress (
    environment       text NOT NULL REFERENCES walvec_control.environments,
    connection_id     text NOT NULL,
    epoch             integer NOT NULL,
    lsn               bigint NOT NULL,
    system_identifier text NOT NULL,
    timeline          bigint NOT NULL,
    log_identity      text NOT NULL,
    slot_created_lsn  bigint NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, connection_id),
    CONSTRAINT progress_connection FOREIGN KEY (environment, connection_id)
        REFERENCES walvec_control.connections (environment, id) ON DELETE CASCADE
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE walvec_control.reports (
    environment text NOT NULL,
    role        text NOT NULL,
    subject     text NOT NULL,
    report      json NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (environment, role, subject)
) WITH (fillfactor = 50);
